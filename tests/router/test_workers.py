"""The keeper of the worker processes: what dies is replaced, patiently, and nothing holds up the end."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.cli import workers as keeper
from router.cli.workers import VARIABLE, Workers, inherited
from router.slots import SlotDirectory


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[SlotDirectory]:
    directory = SlotDirectory(tmp_path / "data")
    yield directory
    directory.close()


def program(directory: Path, text: str) -> str:
    """A program in place of the router; it is started as `PROGRAM -m router.cli.main ...`."""
    path = directory / "worker"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


async def there(mark: Path) -> None:
    """A program has made its mark."""
    async with asyncio.timeout(60):
        while not mark.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)


async def until_said(caplog: pytest.LogCaptureFixture, word: str, times: int) -> str:
    async with asyncio.timeout(60):
        while "\n".join(caplog.messages).count(word) < times:  # noqa: ASYNC110 - other processes end
            await asyncio.sleep(0.01)
    return "\n".join(caplog.messages)


async def test_workers_that_die_at_once_are_started_with_growing_pauses(
    tmp_path: Path, shared: SlotDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    marks = tmp_path / "marks"
    monkeypatch.setattr(sys, "executable", program(tmp_path, f"date +%s%N >> {marks}; exit 3"))
    workers = Workers(1, [], 1.0, shared)
    await workers.start()
    said = await until_said(caplog, "ended with 3; starting another", 3)
    assert said.count("worker") == 3
    times = [int(line) / 1e9 for line in marks.read_text().split()]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] >= 0.4
    assert pauses[1] >= 0.8
    await workers.stop()


async def test_the_end_does_not_wait_for_a_pause(
    tmp_path: Path, shared: SlotDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("FIRST_PAUSE", "LONGEST_PAUSE"):
        monkeypatch.setattr(keeper, name, 3600.0)
    monkeypatch.setattr(sys, "executable", program(tmp_path, "exit 3"))
    workers = Workers(1, [], 3600.0, shared)
    await workers.start()
    await until_said(caplog, "ended with 3; starting another", 1)
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(60):
        await workers.run(stop, asyncio.Event())
        await workers.stop()


async def test_a_worker_that_cannot_be_started_is_tried_again(
    tmp_path: Path, shared: SlotDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, "exit 0"))
    workers = Workers(1, [], 1.0, shared)
    await workers.start()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "not there"))
    await until_said(caplog, "no worker could be started", 1)
    mark = tmp_path / "mark"
    monkeypatch.setattr(sys, "executable", program(tmp_path, f"touch {mark}; exec sleep 60"))
    await there(mark)
    await workers.stop()


async def test_the_second_signal_ends_a_worker_that_does_not_listen(
    tmp_path: Path, shared: SlotDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    text = f"trap 'test -e {mark}2 && exit 0; touch {mark}2' TERM; touch {mark}; while :; do sleep 0.02; done"
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))
    workers = Workers(1, [], 60.0, shared)
    await workers.start()
    await there(mark)
    stop, hurry = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(workers.run(stop, hurry))
    stop.set()
    await there(Path(f"{mark}2"))
    assert not running.done()
    hurry.set()
    async with asyncio.timeout(60):
        await running
    await workers.stop()


async def test_what_ignores_every_signal_is_killed(
    tmp_path: Path, shared: SlotDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    text = f"trap '' TERM INT; touch {mark}$$; while :; do sleep 0.02; done"
    monkeypatch.setattr(sys, "executable", program(tmp_path, text))
    workers = Workers(2, [], 60.0, shared)
    await workers.start()
    async with asyncio.timeout(60):
        while len(list(tmp_path.glob("mark*"))) < 2:  # noqa: ASYNC110 - other processes make them
            await asyncio.sleep(0.02)
    workers.pass_on(signal.SIGTERM)
    processes = list(workers._processes.values())
    async with asyncio.timeout(60):
        await workers.stop()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2


def test_sockets_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        monkeypatch.setenv(VARIABLE, f"{one.detach()},{two.detach()}")
        found = inherited()
        try:
            assert len(found) == 2
            assert all(each.gettimeout() == 0 for each in found)
            assert inherited() == [], "what a worker starts is no worker"
        finally:
            for each in found:
                each.close()
