"""`switchyard keys`: on the store of this machine, with and without a router running, and on a remote router."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn

from router.admin import admin_app
from router.keys import Change, Keys
from router.ledger import Ledger
from router.store import Store


async def switchyard(directory: Path, *words: str, **more: str) -> tuple[int, str, str]:
    config = directory / "switchyard.yaml"
    config.write_text(json.dumps({"data_dir": str(directory)}))
    environ = {"PATH": os.environ["PATH"], "SWITCHYARD_CONFIG": str(config), **more}
    command = [sys.executable, "-m", "router.cli.main", "keys", *words]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


async def test_keys_can_be_made_before_any_router_runs(tmp_path: Path) -> None:
    status, out, err = await switchyard(tmp_path, "create", "alice", "--expires", "30d", "--tags", "a,b")
    assert (status, out.count("\n")) == (0, 1)
    assert out.startswith("sk-sy-")
    assert "not shown again" in err
    status, out, _ = await switchyard(tmp_path, "ls", "--json")
    (key,) = json.loads(out)
    assert (key["name"], key["tags"], key["state"]) == ("alice", ["a", "b"], "active")
    status, out, _ = await switchyard(tmp_path, "ls")
    assert "alice" in out


async def test_keys_of_a_running_router_take_effect_at_once(
    tmp_path: Path, store: Store, keys: Keys, ledger: Ledger
) -> None:
    options = ("--name", "bob", "--models", "gpt-*,o3", "--right", "manage_local", "--no-fallback", "--json")
    status, out, _ = await switchyard(tmp_path, "create", *options)
    assert status == 0
    made = json.loads(out)
    rights = (await ledger.reserve(made["key"], call_id="c")).key.rights
    assert (rights.models, rights.manage_local, rights.allow_fallback) == (("gpt-*", "o3"), True, False)
    status, out, _ = await switchyard(
        tmp_path, "set", "bob", "--local-only", "--no-right", "manage-local", "--models", ""
    )
    assert status == 0
    rights = (await ledger.reserve(made["key"], call_id="c")).key.rights
    assert (rights.models, rights.manage_local, rights.local_only) == ((), False, True)
    assert (await switchyard(tmp_path, "revoke", made["id"]))[0] == 0
    status, out, _ = await switchyard(tmp_path, "show", "bob")
    assert "revoked" in out
    assert made["key"][19:] not in out
    assert store.problem is None


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("create",), 2, "needs a name"),
        (("create", "x", "--expires", "soon"), 2, "30d"),
        (("create", "x", "--right", "root"), 2, "no right root"),
        (("show", "nobody"), 1, "no key 'nobody'"),
        (("set", "nobody"), 2, "nothing to change"),
        (("ls", "--url", "ftp://x"), 2, "http://"),
        (("ls", "--url", "http://127.0.0.1:9"), 2, "SWITCHYARD_ADMIN_TOKEN"),
        (("ls", "--url", "http://127.0.0.1:9", "--token", "t"), 1, "cannot be reached"),
    ],
)
async def test_mistakes_are_told(tmp_path: Path, words: tuple[str, ...], status: int, told: str) -> None:
    found, out, err = await switchyard(tmp_path, *words)
    assert (found, out) == (status, "")
    assert told in err
    assert "Traceback" not in err


async def test_a_remote_router_is_asked_through_its_admin_api(tmp_path: Path, keys: Keys) -> None:
    _, token = await keys.create(Change(name="boss", admin=True))

    async def describe() -> tuple[bool, dict[str, object]]:
        return True, {}

    config = uvicorn.Config(admin_app(keys, describe), port=0, lifespan="off", log_level="error", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    async def remote(*words: str, login: str = token) -> tuple[int, str, str]:
        return await switchyard(elsewhere, *words, "--url", url, SWITCHYARD_ADMIN_TOKEN=login)

    try:
        assert (await remote("create", "carol"))[0] == 0
        assert "carol" in (await remote("ls"))[1]
        assert (await remote("set", "carol", "--owner", "c"))[0] == 0
        assert "revoked" in (await remote("revoke", "carol"))[1]
        status, _, err = await remote("ls", login="wrong")
        assert status == 1
        assert "Incorrect admin token" in err
    finally:
        server.should_exit = True
        await serving
