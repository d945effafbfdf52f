"""Secrets of a deployment: made once, read by the router and its store as files, and no more rights than needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from typer.testing import CliRunner, Result

from router.changes import change_of
from router.cli.init import MADE, STORE_RULES
from router.cli.main import app
from router.credentials import key_id_of, load_peppers
from router.keys import open_keys
from router.nodes import read
from router.store import StoreError, open_store
from tests.conftest import Serve
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator
from tests.simulators.stores import Cluster, Server
from tools.check_docs import ROOT


def init(*arguments: str, env: dict[str, str] | None = None) -> Result:
    cleared = {name: None for name in os.environ if name.startswith("SWITCHYARD_")}
    return CliRunner().invoke(app, ["init", *arguments], env={**cleared, "COLUMNS": "200", **(env or {})})


def files(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_secrets_are_made_once_and_only_what_is_missing(tmp_path: Path) -> None:
    place = tmp_path / "secrets"
    done = init("secrets", "--dir", str(place))
    assert done.exit_code == 0, done.stderr
    first = files(place)
    assert not any(text.strip() in done.stdout for text in first.values())
    assert {path.stat().st_mode & 0o777 for path in place.rglob("*") if path.is_file()} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o750}
    texts = [text for name, text in first.items() if name != "metrics/switchyard_metrics_token"]
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) > 40
    assert first["metrics/switchyard_metrics_token"] == first["router/metrics_token"]
    assert first["router/store_password"].strip() in first["router/redis_url"]
    assert first["router/store_password"].strip() not in first["store/users.acl"]

    assert "nothing to do" in init("secrets", "--dir", str(place)).stdout
    assert files(place) == first

    (place / "grafana/admin_password").unlink()
    (place / "store/users.acl").write_text("user default on nopass +@all ~*\n")
    init("secrets", "--dir", str(place))
    again = files(place)
    assert again.pop("grafana/admin_password") != first.pop("grafana/admin_password")
    assert again == first

    init("secrets", "--dir", str(place), "--renew", "router/store_password")
    renewed = files(place)
    changed = {name for name, text in renewed.items() if name in again and again[name] != text}
    assert changed == {"router/store_password", "router/redis_url", "store/users.acl"}
    for name in ("router/pepper", "router/nothing"):
        assert init("secrets", "--dir", str(place), "--renew", name).exit_code == 2


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("redis://switchyard:PASSWORD@redis.example:6380/0", id="as --store made it"),
        pytest.param("rediss://switchyard:PASSWORD@redis.example:6380/3", id="edited"),
        pytest.param("redis+sentinel://switchyard:PASSWORD@s0:26379,s1:26379/mymaster/0", id="sentinels"),
        pytest.param("redis://someone:of-their-own@redis.example:6379/0", id="a login of one's own"),
    ],
)
def test_the_address_of_the_store_stays(tmp_path: Path, url: str) -> None:
    def run(*more: str) -> tuple[str, dict[str, str]]:
        done = init("secrets", "--dir", str(tmp_path), *more)
        assert done.exit_code == 0, done.stderr
        return done.stdout, files(tmp_path)

    _, first = run("--store", "redis.example:6380")
    url = url.replace("PASSWORD", first["router/store_password"].strip())
    (tmp_path / "router/redis_url").write_text(url + "\n")
    first["router/redis_url"] = url + "\n"
    assert run() == ("nothing to do: all secrets are there\n", first)
    told, renewed = run("--renew", "grafana/admin_password")
    assert told == "made grafana/admin_password\n"
    assert renewed["router/redis_url"] == url + "\n"

    (tmp_path / "router/store_password").unlink()
    told, found = run()
    assert found["router/redis_url"] == url + "\n"
    assert found["router/store_password"].strip() in url, "the store's users are those that the address names"
    assert told.startswith("wrote router/store_password")

    told, renewed = run("--renew", "router/store_password")
    assert told == "made router/store_password; wrote router/redis_url, store/users.acl\n"
    login = f"://switchyard:{renewed['router/store_password'].strip()}@"
    assert renewed["router/redis_url"].strip() == re.sub("://.*@", login, url)
    told, moved = run("--store", "elsewhere:6379")
    assert told == "wrote router/redis_url\n"
    assert moved["router/redis_url"].strip() == f"redis{login}elsewhere:6379/0"


@pytest.mark.parametrize(
    ("store", "url"),
    [
        ("cache", "redis://LOGIN@cache/0"),
        ("[::1]:6380", "redis://LOGIN@[::1]:6380/0"),
        ("rediss://cache:6380/3", "rediss://LOGIN@cache:6380/3"),
        ("redis+sentinel://s0:26379,s1:26379/mymaster", "redis+sentinel://LOGIN@s0:26379,s1:26379/mymaster"),
        ("redis+cluster://n0:6379,n1:6379", "redis+cluster://LOGIN@n0:6379,n1:6379"),
    ],
)
def test_a_store_is_a_host_and_port_or_a_url(tmp_path: Path, store: str, url: str) -> None:
    assert init("secrets", "--dir", str(tmp_path), "--store", store).exit_code == 0
    found = files(tmp_path)
    login = f"switchyard:{found['router/store_password'].strip()}"
    assert found["router/redis_url"].strip() == url.replace("LOGIN", login)
    assert read(found["router/redis_url"].strip()).login.username == "switchyard"


@pytest.mark.parametrize(
    "store",
    ["", " ", "bad host:6379", "cache:6379/3", "cache:port", "cache:0", "me:secret@cache:6379", "http://cache:6379",
     "redis://", "unix:///run/redis.sock", "redis+sentinel://s0:26379"],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_nothing_is_written(tmp_path: Path, store: str) -> None:
    done = init("secrets", "--dir", str(tmp_path / "new"), "--store", store)
    assert done.exit_code == 2
    assert done.stderr.startswith("switchyard: --store is HOST:PORT, or a URL without a login")
    assert "secret" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_an_empty_pepper_is_not_made_anew(tmp_path: Path) -> None:
    """Keys were made with the one that stood there."""
    (tmp_path / "router").mkdir()
    (tmp_path / "router/pepper").write_text("\n")
    done = init("secrets", "--dir", str(tmp_path))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"switchyard: {tmp_path / 'router/pepper'} cannot be used: it is empty.")
    assert files(tmp_path) == {"router/pepper": "\n"}


def test_one_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    assert init("secrets", "--dir", str(tmp_path)).exit_code == 0
    whole = files(tmp_path)
    program = (
        "import os, signal, sys; from router.cli import init, main;"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); main.app(sys.argv[1:])"
    )
    arguments = ("init", "secrets", "--dir", str(tmp_path), "--renew", "router/admin_token")
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, timeout=60, check=False)
    (left,) = files(tmp_path).keys() - whole.keys()
    assert left.startswith("router/.admin_token")
    assert "nothing to do" in init("secrets", "--dir", str(tmp_path)).stdout
    assert files(tmp_path) == whole


def test_the_help_names_what_can_be_renewed() -> None:
    words = set(re.findall(r"\w+/\w+", init("secrets", "--help").stdout))
    assert MADE.keys() - {"router/pepper"} <= words
    assert "router/pepper" not in words


def test_a_person_can_read_what_they_sign_in_with(tmp_path: Path) -> None:
    assert init("show", "--dir", str(tmp_path)).exit_code == 1
    init("secrets", "--dir", str(tmp_path))
    shown = json.loads(init("show", "--dir", str(tmp_path), "--json").stdout)
    made = files(tmp_path)
    assert shown == {name: made[name].strip() for name in shown}
    assert set(shown) == {"router/admin_token", "grafana/admin_password", "webui/admin_password"}
    assert shown["router/admin_token"] in init("show", "--dir", str(tmp_path)).stdout


def test_the_umask_keeps_no_program_from_its_part(tmp_path: Path) -> None:
    place = tmp_path / "above/secrets"
    before = os.umask(0o077)
    try:
        assert init("secrets", "--dir", str(place)).exit_code == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "above").rglob("*") if path.is_dir()} == {0o750}


def test_what_everybody_can_read_is_told(tmp_path: Path) -> None:
    init("secrets", "--dir", str(tmp_path))
    (tmp_path / "router/pepper").chmod(0o644)
    done = init("secrets", "--dir", str(tmp_path))
    assert done.exit_code == 0
    assert [line for line in done.stderr.splitlines() if "warning" in line] == [
        f"warning: everybody on this machine can read {tmp_path / 'router/pepper'}: chmod 640 it"
    ]


def test_what_is_no_text_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "router/pepper").write_bytes(b"\xff" * 40)
    for command in (("secrets",), ("secrets", "--renew", "router/admin_token")):
        done = init(*command, "--dir", str(tmp_path))
        assert done.exit_code == 1
        assert done.stderr == f"switchyard: {tmp_path / 'router/pepper'} cannot be used: it is not text\n"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["pepper"]
    (tmp_path / "router/admin_token").write_bytes(b"\xff" * 40)
    assert init("show", "--dir", str(tmp_path)).exit_code == 1


def test_a_password_of_ones_own_may_have_any_character(tmp_path: Path) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "router/store_password").write_text("p@ss/w:rd#100%?\n")
    assert init("secrets", "--dir", str(tmp_path), "--store", "127.0.0.1:6399").exit_code == 0
    servers = read((tmp_path / "router/redis_url").read_text().strip())
    assert (servers.login.username, servers.login.password) == ("switchyard", "p@ss/w:rd#100%?")
    assert servers.name == "redis://127.0.0.1:6399/0"


@pytest.mark.parametrize(("name", "program"), [("grafana", "Grafana"), ("webui", "Open WebUI")])
def test_a_renewed_password_that_its_program_does_not_read_again_is_told(
    tmp_path: Path, name: str, program: str
) -> None:
    done = init("secrets", "--dir", str(tmp_path), "--renew", f"{name}/admin_password")
    assert f"{program} keeps the password that it has" in done.stderr


def test_of_several_at_once_all_leave_one_set(tmp_path: Path) -> None:
    """Each in a process of its own; without a lock the address and the users of the store come from different ones."""
    place = tmp_path / "secrets"
    command = [sys.executable, "-m", "router.cli.main", "init", "secrets", "--dir", str(place)]
    for _ in range(2):
        running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        told = [process.communicate(timeout=60)[0] for process in running]
        assert [process.returncode for process in running] == [0] * 4
        assert sum(text.startswith("made") for text in told) == 1
        found = files(place)
        assert found["router/store_password"].strip() in found["router/redis_url"]
        assert hashlib.sha256(found["router/store_password"].strip().encode()).hexdigest() in found["store/users.acl"]
        assert found["metrics/switchyard_metrics_token"] == found["router/metrics_token"]
        shutil.rmtree(place)


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = init("secrets", "--dir", str(tmp_path / "file"))
    assert done.exit_code == 1
    assert done.stderr.startswith("switchyard: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "cannot be read from .*/pepper: No such file", id="missing"),
        pytest.param(b"", "is too short", id="empty"),
        pytest.param(b"short", "is too short", id="short"),
        pytest.param(b"\xff" * 40, "cannot be read from .*/pepper: it is not text", id="no text"),
    ],
)
def test_a_pepper_in_a_file_must_be_one(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "pepper"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match=f"SWITCHYARD_PEPPER {said}"):
        load_peppers(tmp_path / "data", {"SWITCHYARD_PEPPER": f"file:{file}"})
    assert not (tmp_path / "data").exists()


# --- with a router and a store that read them


def valkey_conf() -> dict[str, str]:
    """docker/valkey.conf without what names the container's directories."""
    lines = (ROOT / "docker/valkey.conf").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    assert settings.pop("aclfile") == "/secrets/store/users.acl"
    assert settings.pop("dir") == "/data"
    assert settings.pop("save") == '""'
    return settings


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, secrets: Path) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("store"), {**valkey_conf(), "aclfile": secrets / "store/users.acl"}, valkey=True
    )
    assert init("secrets", "--dir", str(secrets), "--store", server.address).exit_code == 0
    with server:
        yield server


@pytest.fixture(scope="module")
def env(secrets: Path) -> dict[str, str]:
    """As in docker/compose.yaml."""
    return {
        "SWITCHYARD_REDIS_URL": f"file:{secrets}/router/redis_url",
        "SWITCHYARD_ADMIN_TOKEN": f"file:{secrets}/router/admin_token",
        "SWITCHYARD_PEPPER": f"file:{secrets}/router/pepper",
    }


@pytest.fixture(scope="module")
def deployed(
    module_serve: Serve, store: Server, env: dict[str, str], cloud: Simulator, local: Simulator
) -> RouterProcess:
    config = {**providers(cloud.url, local.url), "redis": {"url": "${SWITCHYARD_REDIS_URL:-embedded}"}}
    return module_serve(config, {**env, **UNHURRIED})


def test_a_router_works_with_the_rights_that_its_store_gives_it(
    deployed: RouterProcess, store: Server, secrets: Path
) -> None:
    assert not (deployed.directory / "data/pepper").exists()
    assert deployed.admin_token == ""
    token = (secrets / "router/admin_token").read_text().strip()
    admin = Client(deployed.port, token)
    assert admin.request("GET", "/readyz").json["store"] == "ok"
    assert admin.request("GET", "/readyz").json["store_warnings"] == []
    made = admin.request("POST", "/admin/api/keys", {"name": "k", "limits": {"rpm": 5}, "team": "t"})
    assert made.status in (200, 201), made
    reply = Client(deployed.port, made.json["key"]).ask(OPENAI, "chat", stream=True)
    assert reply.status == 200, (reply.body, admin.request("GET", "/readyz").body, deployed.tail()[-1500:])
    for path in ("keys", "teams", "usage", "usage/requests", "audit", "audit/verify", "status"):
        assert admin.request("GET", f"/admin/api/{path}").status in (200, 404), path
    assert admin.request("DELETE", f"/admin/api/keys/{made.json['id']}").status == 200
    assert "NOPERM" not in "\n".join(deployed.err)
    assert re.search(r"\bACL\b", "\n".join(deployed.err)) is None


def test_the_store_lets_nobody_else_in_and_the_router_no_further(store: Server, secrets: Path) -> None:
    with Redis(port=store.port) as nobody:
        assert nobody.ping()
        with pytest.raises(NoPermissionError):
            nobody.get("sy:admin")
    with pytest.raises(AuthenticationError), Redis(port=store.port, username="switchyard", password="x") as wrong:
        wrong.ping()
    password = (secrets / "router/store_password").read_text().strip()
    with Redis(port=store.port, username="switchyard", password=password) as own:
        own.get("sy:admin")
        for command in (
            *("CONFIG GET *", "KEYS *", "EVAL x 0", "FLUSHALL", "FLUSHDB", "SHUTDOWN", "ACL LIST"),
            *("FUNCTION FLUSH", "FUNCTION DELETE x", "GET other", "MONITOR", "REPLICAOF a 1", "SCRIPT FLUSH"),
        ):
            with pytest.raises(NoPermissionError):
                own.execute_command(*command.split())


async def test_the_rights_that_the_page_names_are_enough_for_a_cluster(tmp_path: Path) -> None:
    page = (ROOT / "docs/quotas.md").read_text()
    found = re.search(r"with a Cluster also `([^`]+)`", page)
    assert found is not None
    assert STORE_RULES.removeprefix("~sy:* resetchannels ") in page
    with Cluster(tmp_path / "cluster") as cluster:
        for server in cluster.servers:
            with server.client() as client:
                client.execute_command(
                    "ACL", "SETUSER", "switchyard", "on", ">pw", *f"{STORE_RULES} {found[1]}".split()
                )
        url = cluster.url.replace("://", "://switchyard:pw@")
        opened = await open_store(url, tmp_path, role="command")
        try:
            keys = await open_keys(opened, tmp_path, {"SWITCHYARD_PEPPER": "x" * 40})
            assert opened.problem is None
            await keys.make(change_of({"name": "k", "team": "t"}, 0.0))
            assert [listed.key.name for listed in await keys.list()] == ["k"]
        finally:
            await opened.close()


def test_a_key_for_another_program_is_made_once(deployed: RouterProcess, env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "webui/openai_api_key"
    arguments = ("key", "open-webui", str(file), "--right", "admin", "--config", str(deployed.config_path))
    own = {**env, "SIMULATED_KEY": "x"}
    done = init(*arguments, env=own)
    assert done.exit_code == 0, done.stderr
    key = file.read_text().strip()
    assert key not in done.stdout + done.stderr
    assert Client(deployed.port, key).ask(OPENAI, "chat", stream=False).status == 200
    assert Client(deployed.port, key).request("GET", "/admin/api/keys").status == 200
    assert "nothing to do" in init(*arguments, env=own).stdout
    assert file.read_text().strip() == key


@pytest.fixture
def give(deployed: RouterProcess, env: dict[str, str], tmp_path: Path) -> Callable[..., tuple[Result, str]]:
    """give(name, options): `init key`, and what is in the file then."""
    file = tmp_path / "part/key"

    def run(name: str, *options: str) -> tuple[Result, str]:
        command = ("key", name, str(file), "--config", str(deployed.config_path), *options)
        done = init(*command, env={**env, "SIMULATED_KEY": "x"})
        return done, file.read_text().strip() if file.exists() else ""

    return run


def works(router: RouterProcess, key: str) -> bool:
    return Client(router.port, key).request("GET", "/v1/models").status == 200


def test_a_key_that_works_no_more_is_made_anew(
    deployed: RouterProcess, give: Callable[..., tuple[Result, str]], secrets: Path, tmp_path: Path
) -> None:
    admin = Client(deployed.port, (secrets / "router/admin_token").read_text().strip())
    _, first = give("renewed")
    done, second = give("renewed", "--renew")
    assert "made a new secret" in done.stdout
    assert key_id_of(second) == key_id_of(first)
    assert works(deployed, second)
    assert not works(deployed, first)
    assert second not in done.stdout + done.stderr

    (tmp_path / "part/key").unlink()
    _, third = give("renewed")
    assert key_id_of(third) == key_id_of(first), "the volume was lost: no second key of that name"
    assert not works(deployed, second)

    (tmp_path / "part/key").write_text("sk-of-another-store\n")
    _, fourth = give("renewed")
    assert key_id_of(fourth) == key_id_of(first)
    assert works(deployed, fourth)

    assert admin.request("DELETE", f"/admin/api/keys/{key_id_of(fourth)}").status == 200
    _, fifth = give("renewed")
    assert key_id_of(fifth) != key_id_of(first)
    assert works(deployed, fifth)

    assert admin.request("PATCH", f"/admin/api/keys/{key_id_of(fifth)}", {"state": "disabled"}).status == 200
    done, same = give("renewed")
    assert done.exit_code == 0, "its program starts, and is refused"
    assert "is disabled" in done.stdout
    assert same == fifth
    assert not works(deployed, fifth)
    done, same = give("renewed", "--renew")
    assert done.exit_code == 1
    assert "is disabled" in done.stderr
    assert same == fifth


def test_a_persons_key_of_the_same_name_is_left_alone(
    deployed: RouterProcess, give: Callable[..., tuple[Result, str]], secrets: Path
) -> None:
    admin = Client(deployed.port, (secrets / "router/admin_token").read_text().strip())
    hers = admin.request("POST", "/admin/api/keys", {"name": "namesake"}).json["key"]
    done, made = give("namesake", "--right", "admin")
    assert done.exit_code == 0, done.stderr
    assert works(deployed, hers)
    assert key_id_of(made) != key_id_of(hers)


def test_a_config_without_the_store_of_the_deployment_gets_no_key(tmp_path: Path, env: dict[str, str]) -> None:
    config, file = tmp_path / "switchyard.yaml", tmp_path / "key"
    config.write_text("providers: {}\n")
    own = {**env, "SWITCHYARD_EMBEDDED": "never", "SWITCHYARD_DATA_DIR": str(tmp_path)}
    done = init("key", "webui", str(file), "--config", str(config), env=own)
    assert done.exit_code == 1
    assert 'redis: {url: "${SWITCHYARD_REDIS_URL}"}' in done.stderr
    assert not file.exists()


def test_the_command_line_takes_the_admin_token_as_the_router_does(deployed: RouterProcess, secrets: Path) -> None:
    def listing(token: str) -> Result:
        env = {"SWITCHYARD_ADMIN_TOKEN": token}
        return CliRunner().invoke(app, ["keys", "ls", "--url", f"http://127.0.0.1:{deployed.port}"], env=env)

    done = listing(f"file:{secrets}/router/admin_token")
    assert done.exit_code == 0, done.stderr
    missing = listing(f"file:{secrets}/router/nothing")
    assert missing.exit_code == 2
    assert missing.stderr.startswith(f"switchyard: the admin token cannot be read from {secrets}/router/nothing: ")
