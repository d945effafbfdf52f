"""Secrets of a deployment: made once, read by the router and its store as files, and no more rights than needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from typer.testing import CliRunner, Result

from router.cli.main import app
from router.credentials import load_peppers
from router.store import StoreError
from tests.conftest import Serve
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import RouterProcess, providers
from tests.simulators.server import Simulator
from tests.simulators.stores import Server
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


def test_a_person_can_read_what_they_sign_in_with(tmp_path: Path) -> None:
    assert init("show", "--dir", str(tmp_path)).exit_code == 1
    init("secrets", "--dir", str(tmp_path))
    shown = json.loads(init("show", "--dir", str(tmp_path), "--json").stdout)
    made = files(tmp_path)
    assert shown == {name: made[name].strip() for name in shown}
    assert set(shown) == {"router/admin_token", "grafana/admin_password", "webui/admin_password"}
    assert shown["router/admin_token"] in init("show", "--dir", str(tmp_path)).stdout


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = init("secrets", "--dir", str(tmp_path / "file"))
    assert done.exit_code == 1
    assert done.stderr.startswith("switchyard: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * 40], ids=["missing", "empty", "short", "no text"])
def test_a_pepper_in_a_file_must_be_one(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "pepper"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match="SWITCHYARD_PEPPER"):
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
    return module_serve({**providers(cloud.url, local.url), "redis": {"url": "${SWITCHYARD_REDIS_URL:-embedded}"}}, env)


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
    assert "ACL" not in "\n".join(deployed.err)


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
