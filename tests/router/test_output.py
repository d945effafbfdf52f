"""The request log: whole JSON lines, and a sink that fails in any way costs lines, never a call."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from router import output
from router.output import Messages, Output


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's threads take their time to end."""
    monkeypatch.setattr(output, "STOP_SECONDS", 60.0)


@contextmanager
def to_file(path: Path) -> Iterator[Output]:
    handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        yield Output(handle)
    finally:
        os.close(handle)


def lines_of(data: bytes) -> list[Any]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.decode().splitlines()]


@pytest.mark.parametrize(
    "value",
    ["two\nlines", "a\r\nb\u2028c\x85d\0", '"}{"', "你好 😀", None, 2**80, -1.5, float("nan"), "half \ud800 a pair"],
    ids=ascii,
)
def test_one_line_each(tmp_path: Path, value: Any) -> None:
    with to_file(tmp_path / "log") as log:
        log.start()
        for number in range(3):
            log.write({"n": number, "value": value})
        log.stop()
        assert log.dropped == 0
    data = (tmp_path / "log").read_bytes()
    assert data.count(b"\n") == 3
    found = [json.loads(line) for line in data.split(b"\n")[:-1]]
    assert [line["n"] for line in found] == [0, 1, 2]
    assert found[0]["value"] == (None if value != value else value)


def test_the_thread_writes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "FLUSH_SECONDS", 0.01)
    reader, writer = os.pipe()
    log = Output(writer)
    log.start()
    log.write({"a": 1})
    assert os.read(reader, 100) == b'{"a":1}\n'
    log.stop()
    os.close(reader)
    os.close(writer)


def test_what_does_not_fit_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LIMIT", 5)
    with to_file(tmp_path / "log") as log:
        for number in range(8):
            log.write({"n": number})
        assert log.dropped == 3
        log.stop()
    assert [line["n"] for line in lines_of((tmp_path / "log").read_bytes())] == [0, 1, 2, 3, 4]


def test_messages_stand_between_the_lines_and_are_there_without_them(tmp_path: Path) -> None:
    told = logging.getLogger("told")
    told.propagate = False
    for requests in (True, False):
        place = tmp_path / str(requests)
        handle = os.open(place, os.O_CREAT | os.O_WRONLY, 0o600)
        log = Output(handle, requests=requests)
        told.addHandler(handler := Messages(log))
        log.write({"n": 1})
        told.warning("half \ud800 a %s\nand more", "pair")
        log.write({"n": 2})
        log.start()
        log.stop()
        log.say("late")
        log.stop()
        told.removeHandler(handler)
        os.close(handle)
        first, second = (b'{"n":1}\n', b'{"n":2}\n') if requests else (b"", b"")
        assert place.read_bytes() == first + b"half \\ud800 a pair\nand more\n" + second + b"late\n"
        assert log.dropped == 0


def test_a_message_does_not_wait_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "FLUSH_SECONDS", 3600.0)
    reader, writer = os.pipe()
    log = Output(writer)
    log.start()
    log.say("now")
    assert os.read(reader, 100) == b"now\n"
    log.stop()
    os.close(reader)
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk() -> None:
    handle = os.open("/dev/full", os.O_WRONLY)
    log = Output(handle)
    log.start()
    for number in range(500):
        log.write({"n": number})
    log.stop()
    os.close(handle)
    assert log.dropped == 500


def test_a_closed_pipe_and_a_closed_descriptor() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = Output(writer)
    log.write({"a": 1})
    log.stop()
    assert log.dropped == 1
    os.close(writer)
    log.write({"a": 1})
    log.stop()
    assert log.dropped == 2


def fill(writer: int) -> None:
    """Leave no room in a pipe."""
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"\n" * 65536)
    except BlockingIOError:
        pass


def test_a_reader_that_stopped_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is full and blocks: the thread hangs in it, the router does not."""
    monkeypatch.setattr(output, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(output, "FLUSH_SECONDS", 0.01)
    reader, writer = os.pipe()
    fill(writer)
    os.set_blocking(writer, True)
    log = Output(writer)
    log.start()
    log.write({"n": 1})
    limit = time.monotonic() + 60
    while log._lines and time.monotonic() < limit:
        time.sleep(0.001)
    log.write({"n": 2})
    ended = threading.Thread(target=log.stop, daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive()
    assert log.dropped == 1
    os.close(reader)  # ends the thread
    assert log._thread is not None
    log._thread.join(30)
    os.close(writer)
    assert log.dropped == 2


def test_a_full_pipe_that_does_not_block() -> None:
    reader, writer = os.pipe()
    fill(writer)
    log = Output(writer)
    log.write({"n": 1})
    log.stop()
    assert log.dropped == 1
    os.close(reader)
    os.close(writer)


def test_after_a_torn_line_the_next_one_is_whole() -> None:
    """A pipe that takes part of a line and then no more, until its reader wakes up."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    log = Output(writer)
    log.write({"long": "x" * 6000})
    log._flush()
    assert log.dropped == 1
    seen = os.read(reader, 8192)
    assert len(seen) == 4096
    log.write({"n": 2})
    log.stop()
    seen += os.read(reader, 8192)
    assert json.loads(seen.split(b"\n")[1]) == {"n": 2}
    os.close(reader)
    os.close(writer)


def test_lines_of_several_workers_in_one_pipe_stay_whole() -> None:
    """What a pipe takes in one piece is bounded: longer writes of two processes mix."""
    reader, writer = os.pipe()
    try:
        # Small, so that writes block in their middle.
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        logs = [Output(writer) for _ in range(2)]
        got: list[bytes] = []

        def read() -> None:
            while data := os.read(reader, 1000):
                got.append(data)

        thread = threading.Thread(target=read)
        thread.start()
        for log in logs:
            for number in range(2000):
                log.write({"n": number, "filler": "x" * (number % 400)})
        stopping = [threading.Thread(target=log.stop) for log in logs]
        for one in stopping:
            one.start()
        for one in stopping:
            one.join()
        os.close(writer)
        writer = -1
        thread.join(60)
        found = lines_of(b"".join(got))
        assert len(found) == 4000
        assert sum(line["n"] for line in found) == 2 * sum(range(2000))
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
