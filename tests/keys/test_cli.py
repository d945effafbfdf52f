"""`switchyard keys`: on the store of this machine, with and without a router running, and on a remote router."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from router.admin import admin_app
from router.cli.main import app
from router.keys import Change, Keys
from router.ledger import Ledger
from router.store import Store
from tests.simulators.router import UNHURRIED


def config_in(directory: Path) -> str:
    config = directory / "switchyard.yaml"
    config.write_text(json.dumps({"data_dir": str(directory)}))
    return str(config)


async def switchyard(directory: Path, *words: str, verb: str = "keys", **more: str) -> tuple[int, str, str]:
    """The verb in a thread of this process: starting Python for each would take most of the time, and their stores'
    patience is this process's."""
    environ = {"SWITCHYARD_CONFIG": config_in(directory), "SWITCHYARD_ADMIN_TOKEN": None, **more}
    done = await asyncio.to_thread(CliRunner().invoke, app, [verb, *words], env=environ)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def process(directory: Path, *words: str) -> tuple[int, str, str]:
    """The verb as a process of its own."""
    environ = {"PATH": os.environ["PATH"], "SWITCHYARD_CONFIG": config_in(directory), **UNHURRIED}
    command = [sys.executable, "-m", "router.cli.main", "keys", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def test_keys_can_be_made_before_any_router_runs(tmp_path: Path) -> None:
    status, out, err = process(tmp_path, "create", "alice", "--expires", "30d", "--tags", "a,b")
    assert (status, out.count("\n")) == (0, 1)
    assert out.startswith("sk-sy-")
    assert "not shown again" in err
    assert f"made a new store in {tmp_path}" in err, "a router elsewhere does not know the key"
    status, out, err = process(tmp_path, "ls", "--json")
    assert err == ""
    (key,) = json.loads(out)
    assert (key["name"], key["tags"], key["state"]) == ("alice", ["a", "b"], "active")
    status, out, _ = process(tmp_path, "ls")
    assert "alice" in out


async def test_keys_of_a_running_router_take_effect_at_once(
    tmp_path: Path, store: Store, keys: Keys, ledger: Ledger
) -> None:
    options = ("--name", "bob", "--models", "gpt-*,o3", "--right", "manage_local", "--no-fallback", "--json")
    status, out, _ = await switchyard(tmp_path, "create", *options)
    assert status == 0
    made = json.loads(out)
    rights = (await ledger.reserve(made["key"], call_id="c1")).key.rights
    assert (rights.models, rights.manage_local, rights.allow_fallback) == (("gpt-*", "o3"), True, False)
    status, out, _ = await switchyard(
        tmp_path, "set", "bob", "--local-only", "--no-right", "manage-local", "--models", ""
    )
    assert status == 0
    rights = (await ledger.reserve(made["key"], call_id="c2")).key.rights
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
        (("create", "x", "--rpm", "fast"), 2, "limits.rpm is a whole number of calls"),
        (("create", "x", "--budget-day", "5"), 2, "limits.budget.day lacks its currency"),
        (("create", "x", "--budget-day", "-5usd"), 2, "not negative"),
        (("create", "x", "--max-requests", "5/hour"), 2, "50/day"),
        (("create", "x", "--networks", "10.0.0.1/8"), 2, "10.0.0.0/8"),
        (("create", "x", "--model-limit", "rpm=5"), 2, "gpt-4*:rpm=5"),
        (("issue", "ann"), 2, "--team"),
        (("issue", "--team", "t"), 2, "--names"),
        (("issue", "--team", "t", "--names", "/nowhere"), 2, "cannot be read"),
        (("rotate", "nobody"), 1, "no key 'nobody'"),
        (("rotate", "x", "--overlap", "1h", "--end-overlap"), 2, "exclude"),
        (("rotate", "x", "--overlap", "soon"), 2, "24h"),
        (("import", "/nowhere"), 2, "cannot be read"),
        (("ls", "--state", "gone"), 2, "state"),
        (("ls", "--team", "nobody"), 1, "no team 'nobody'"),
        (("ls", "--url", "ftp://x"), 2, "http://"),
        (("ls", "--url", "http://[::1"), 2, "http://"),
        (("ls", "--url", "http://127.0.0.1:9"), 2, "SWITCHYARD_ADMIN_TOKEN"),
        (("ls", "--url", "http://127.0.0.1:9", "--token", "t"), 1, "cannot be reached"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, words: tuple[str, ...], status: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "switchyard.yaml"
    config.write_text(json.dumps({"data_dir": str(tmp_path)}))
    monkeypatch.setenv("SWITCHYARD_CONFIG", str(config))
    monkeypatch.delenv("SWITCHYARD_ADMIN_TOKEN", raising=False)
    found = CliRunner().invoke(app, ["keys", *words])
    assert (found.exit_code, found.stdout) == (status, "")
    assert told in " ".join(found.stderr.split())
    assert found.exception is None or isinstance(found.exception, SystemExit)


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

    async def remote(*words: str, login: str = token, verb: str = "keys") -> tuple[int, str, str]:
        return await switchyard(elsewhere, *words, "--url", url, verb=verb, SWITCHYARD_ADMIN_TOKEN=login)

    try:
        assert (await remote("create", "carol"))[0] == 0
        assert "carol" in (await remote("ls"))[1]
        assert (await remote("set", "carol", "--owner", "c"))[0] == 0
        assert (await remote("rotate", "carol", "--overlap", "0"))[1].startswith("sk-sy-")
        assert (await remote("issue", "--team", "lab", "dan", "eve"))[1].count("sk-sy-") == 2
        assert "revoked" in (await remote("revoke", "carol"))[1]
        _, out, _ = await remote("ls", "--team", "lab", "--limit", "1", "--json")
        assert len(json.loads(out)) == 1
        assert (await remote("set", "lab", "--rpm", "5", verb="teams"))[0] == 0
        assert "rpm=5" in (await remote("ls", verb="teams"))[1]
        assert "key.issue" in (await remote("ls", verb="audit"))[1]
        assert "whole" in (await remote("verify", verb="audit"))[1]
        status, _, err = await remote("ls", login="wrong")
        assert status == 1
        assert "Incorrect admin token" in err
    finally:
        server.should_exit = True
        await serving


LIMITS = ("--rpm", "60", "--budget-day", "5usd", "--max-requests", "50", "--max-requests", "9/day")


async def test_limits_teams_rotation_and_the_log_on_this_machine(tmp_path: Path, keys: Keys) -> None:
    status, out, err = await switchyard(tmp_path, "create", "ann", "--team", "lab", *LIMITS)
    assert status == 0
    assert "The team 'lab' is new" in err
    status, _, err = await switchyard(tmp_path, "create", "bob", "--team", "laab")
    assert (status, "did you mean 'lab'?" in err) == (2, True)
    status, shown, _ = await switchyard(tmp_path, "set", "ann", "--rpm", "none", "--model-limit", "o*:rpm=1", "--json")
    assert json.loads(shown)["limits"] == {
        "budget": {"day": "5usd"},
        "max_requests": {"day": 9, "total": 50},
        "models": {"o*": {"rpm": 1}},
    }
    assert (await switchyard(tmp_path, "create", "ops", "--timezone", "Asia/Shanghai", verb="teams"))[0] == 0
    status, _, err = await switchyard(tmp_path, "set", "ann", "--team", "ops")
    assert "What it spent stays with 'lab'" in err
    status, new, err = await switchyard(tmp_path, "rotate", "ann", "--overlap", "1h")
    assert new != out
    assert "the old one works until" in err
    for secret in (out, new):
        assert await keys.authenticate(secret.strip()) is not None
    status, _, err = await switchyard(tmp_path, "rotate", "ann")
    assert "its old secret ended now" in err
    assert await keys.authenticate(out.strip()) is None
    assert (await switchyard(tmp_path, "rotate", "ann", "--end-overlap"))[0] == 0
    assert await keys.authenticate(new.strip()) is None
    status, shown, _ = await switchyard(tmp_path, "ls", "--json", verb="audit")
    assert {entry["actor"].split()[0] for entry in json.loads(shown)} == {"command"}
    assert new[19:].strip() not in shown
    status, shown, _ = await switchyard(tmp_path, "verify", verb="audit")
    assert (status, "whole; head" in shown) == (0, True)
    await keys.cabinet.ask("LPOP", "sy:{audit}:log")
    status, shown, _ = await switchyard(tmp_path, "verify", verb="audit")
    assert (status, "NOT WHOLE" in shown) == (1, True)


async def test_keys_are_issued_exported_and_imported_by_files(tmp_path: Path, keys: Keys) -> None:
    names = tmp_path / "names.csv"
    names.write_text("name,owner,rpm\nann,=Ann,5\nbob,,\n")
    status, out, err = await switchyard(tmp_path, "issue", "--team", "lab", "--names", str(names), "--rpm", "9", "eve")
    assert status == 0
    head, *rows = list(csv.reader(out.splitlines()))
    assert head == ["id", "name", "key", "owner", "team", "expires_at"]
    assert [(row[1], row[3]) for row in rows] == [("ann", "'=Ann"), ("bob", ""), ("eve", "")]
    assert "3 keys for team 'lab'" in err
    names.write_text("name,rpm\nann,5x\n,5\n")
    status, out, err = await switchyard(tmp_path, "issue", "--team", "lab", "--names", str(names))
    assert (status, out) == (2, "")
    assert "line 2: limits.rpm" in err
    assert "line 3: a key needs a name" in err
    status, exported, _ = await switchyard(tmp_path, "export", "--usage")
    file = tmp_path / "export.jsonl"
    file.write_text(exported)
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    status, _, err = await switchyard(other, "import", str(file))
    assert (status, "another pepper" in err) == (2, True)
    (other / "pepper").write_text((tmp_path / "pepper").read_text())
    third = tmp_path / "third"
    third.mkdir(mode=0o700)
    (third / "pepper").write_text((tmp_path / "pepper").read_text())
    status, out, _ = await switchyard(third, "import", str(file))
    assert (status, out) == (0, "3 keys and 2 teams written; 0 keys were there already.\n")
    status, out, _ = await switchyard(third, "ls", "--team", "lab", "--json")
    assert {key["name"]: key["limits"] for key in json.loads(out)} == {
        "ann": {"rpm": 5},
        "bob": {"rpm": 9},
        "eve": {"rpm": 9},
    }
