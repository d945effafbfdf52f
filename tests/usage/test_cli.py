"""`switchyard usage` and `switchyard logs`: on this machine's store beside a running router, and on a remote one."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from router.cli import logs
from router.cli.main import app
from router.recent import errors_name, recent_name
from router.records import Key
from router.store import Store
from tests.simulators.router import UNHURRIED
from tests.usage.conftest import TOKEN


def command(directory: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    config = directory / "switchyard.yaml"
    config.write_text(json.dumps({"data_dir": str(directory), "prices": {"usd_cny": 7}}))
    environ = {"PATH": os.environ["PATH"], "SWITCHYARD_CONFIG": str(config), "SWITCHYARD_ADMIN_TOKEN": TOKEN}
    environ |= UNHURRIED
    return [sys.executable, "-m", "router.cli.main", *words], environ


async def switchyard(directory: Path, *words: str) -> tuple[int, str, str]:
    """The verb in a thread of this process: starting Python for each would take most of the time."""
    _, environ = command(directory)
    done = await asyncio.to_thread(CliRunner().invoke, app, words, env=environ)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(params=["local", "remote"])
def where(request: pytest.FixtureRequest, port: int) -> tuple[str, ...]:
    return ("--url", f"http://127.0.0.1:{port}/v1") if request.param == "remote" else ()


async def test_usage(tmp_path: Path, used: tuple[Key, Key], where: tuple[str, ...]) -> None:
    status, out, err = await switchyard(tmp_path, "usage", *where)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["research", "ann", "gpt-4o", "1", "0", "100", "10", "0.000005", "0.000035"] in lines
    assert lines[-1] == ["total", "4", "2", "202", "22", "0.00001", "0.00007"]
    status, out, _ = await switchyard(tmp_path, "usage", "--json", "--group-by", "provider", "--key", "ann", *where)
    report = json.loads(out)
    assert [(row["provider"], row["calls"]) for row in report["data"]] == [("openai", 1), ("kimi", 1)]
    status, out, _ = await switchyard(tmp_path, "usage", "--csv", "--since", "2h", "--group-by", "key,hour", *where)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["key"]: row["calls"] for row in rows} == {"ann": "2", "'=cmd()": "2"}
    status, out, _ = await switchyard(tmp_path, "usage", "--group-by", "", "--team", "research", *where)
    assert out.splitlines()[0].split() == ["CALLS", "ERRORS", "IN", "OUT", "USD", "CNY"]
    assert out.splitlines()[1].split() == ["2", "1", "101", "11", "0.000005", "0.000035"]


async def test_what_makes_no_sense_is_refused(tmp_path: Path, used: object, where: tuple[str, ...]) -> None:
    for words, code, told in (
        (("usage", "--since", "garbage"), 2, "since is 7d"),
        (("usage", "--team", "nobody"), 1, "no team 'nobody'"),
        (("usage", "--csv", "--json"), 2, "not both"),
        (("logs", "--key", "nobody"), 1, "no key 'nobody'"),
        (("logs", "-n", "0"), 2, "--number"),
    ):
        status, out, err = await switchyard(tmp_path, *words, *where)
        assert (status, out) == (code, ""), err
        assert told in err
        assert "Traceback" not in err


async def test_a_remote_router_that_is_none(tmp_path: Path) -> None:
    for url, code, told in (
        ("http://127.0.0.1:9", 1, "cannot be reached"),
        ("ftp://x", 2, "--url is the router's address"),
        ("http://[", 2, "--url is the router's address"),
    ):
        status, out, err = await switchyard(tmp_path, "logs", "--url", url)
        assert (status, out) == (code, ""), err
        assert told in err
        assert "Traceback" not in err


async def test_logs(tmp_path: Path, store: Store, used: tuple[Key, Key], where: tuple[str, ...]) -> None:
    ann = used[0]
    row = {"id": "call of ann", "key": ann.id, "status": 502, "outcome": "provider_broken\x1b[2J", "ms": 12.5}
    await cast("Any", store.redis).xadd(recent_name(ann.team), {"r": json.dumps(row)})
    refused = {"id": "no", "time": 1.0, "key": ann.id, "status": 429, "outcome": "limit", "limit": "rpm"}
    await cast("Any", store.redis).xadd(errors_name(ann.team), {"r": json.dumps(refused)})
    row = {"id": "other", "time": 2.0, "key": ann.id, "status": 200, "outcome": "ok", "fallback": "unreachable"}
    await cast("Any", store.redis).xadd(recent_name(ann.team), {"r": json.dumps(row)})
    status, out, err = await switchyard(tmp_path, "logs", *where)
    assert (status, err) == (0, "")
    lines = [line.split()[1:5] for line in out.splitlines()]
    assert lines == [
        ["STATUS", "TEAM", "KEY", "MODEL"],
        ["429", "research", "ann", "-"],
        ["200", "research", "ann", "-"],
        ["502", "research", "ann", "gpt-4o"],
        ["running", "-ops", "=cmd()", "gpt-4o"],
    ]
    assert out.splitlines()[1].endswith("limit rpm")
    assert "unreachable" in out.splitlines()[2]
    assert "\x1b" not in out
    status, out, _ = await switchyard(tmp_path, "logs", "--failed", "--json", *where)
    refusal, found = [json.loads(line) for line in out.splitlines()]
    assert (refusal["key"], refusal["status"], refusal["limit"]) == ("ann", 429, "rpm")
    assert (found["key"], found["status"], found["ms"]) == ("ann", 502, 12.5)
    status, out, _ = await switchyard(tmp_path, "logs", "--fallback", "--json", *where)
    (found,) = [json.loads(line) for line in out.splitlines()]
    assert (found["id"], found["fallback"]) == ("other", "unreachable")


def test_columns_stand_below_each_other_while_following(capsys: pytest.CaptureFixture[str]) -> None:
    show = logs._Shown(as_json=False, follow=True)
    reasons = ("unreachable", "model_not_found", "context_too_small", "embeddings_differ", None)
    show([{"id": reason, "fallback": reason, "tokens_in": 7} for reason in reasons])
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.index(" 7 ") for line in lines] == [head.index(" IN ")] * len(reasons)


async def test_following_shows_each_call_once_when_it_begins_and_once_when_it_ends(
    tmp_path: Path, store: Store, used: tuple[Key, Key], where: tuple[str, ...]
) -> None:
    team = used[0].team
    line, environ = command(tmp_path, "logs", "-f", "--json", *where)
    follower = await asyncio.create_subprocess_exec(
        *line, env={**environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert follower.stdout is not None

    async def next_row() -> tuple[str, Any]:
        assert follower.stdout is not None
        async with asyncio.timeout(60):
            row = json.loads(await follower.stdout.readline())
        return row["id"], row["status"]

    try:
        assert {await next_row(), await next_row()} == {("call of ann", None), ("call of =cmd()", None)}
        for entry in (
            {"id": "next", "time": time.time(), "key": used[0].id},
            {"id": "next", "key": used[0].id, "status": 200},
        ):
            await cast("Any", store.redis).xadd(recent_name(team), {"r": json.dumps(entry)})
            assert await next_row() == ("next", entry.get("status"))
        follower.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(follower.communicate(), 60)
        assert (out, err) == (b"", b"")
        assert follower.returncode == 0
    finally:
        if follower.returncode is None:
            follower.kill()
            await follower.wait()
