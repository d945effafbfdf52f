"""One JSON line for each request, written by a thread of its own. No prompts, no credentials: ids, names, numbers.

The queue is bounded: when the sink is slower than the traffic, lines are dropped and counted, never waited for.
"""

from __future__ import annotations

import json
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

LIMIT = 10_000
"""Lines that may wait."""
FLUSH_SECONDS = 0.2
STOP_SECONDS = 2.0


class RequestLog:
    """Writes to a file descriptor (standard error by default)."""

    def __init__(self, fd: int = 2, *, enabled: bool = True) -> None:
        self.dropped = 0
        self._fd = fd
        self._lines: deque[Mapping[str, Any]] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._enabled = enabled
        self._shared = _is_pipe(fd)
        """Other processes may write to it too: only short writes are whole there."""
        self._torn = False
        """The last line was cut: the next one begins on a line of its own."""

    def start(self) -> None:
        if self._enabled:
            self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
            self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Queue one line. Values are strings, numbers, booleans or None."""
        if not self._enabled:
            return
        if len(self._lines) >= LIMIT:
            self.dropped += 1
            return
        self._lines.append(line)

    def stop(self) -> None:
        """Flush what waits and end the thread. When the sink is stuck, what waits is given up: the router's end waits
        for no reader."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=STOP_SECONDS)
            if self._thread.is_alive():
                self.dropped += len(self._lines)
                self._lines.clear()
                return
        self._flush()

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        while self._lines:
            batch = [_encoded(self._lines.popleft()) for _ in range(min(len(self._lines), 200))]
            for some in _pieces(batch) if self._shared else (batch,):
                if not self._put(b"".join(some)):
                    self.dropped += len(some)

    def _put(self, data: bytes) -> bool:
        """False when the sink takes no more (closed pipe, full disk, a reader that stopped): inference goes on, the
        loss is counted."""
        if self._torn:
            data = b"\n" + data
        for _ in range(100):
            try:
                while data:
                    written = os.write(self._fd, data)
                    self._torn = data[written - 1] != _LINE_END
                    data = data[written:]
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                return False
            else:
                return True
        return False


_LINE_END = 0x0A


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def _pieces(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Lines in writes that a pipe takes whole (POSIX: up to PIPE_BUF bytes), so that those of several workers do not
    mix."""
    some: list[bytes] = []
    size = 0
    for line in lines:
        if some and size + len(line) > select.PIPE_BUF:
            yield some
            some, size = [], 0
        some.append(line)
        size += len(line)
    yield some


def _encoded(line: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # A number or a text that orjson does not write (64 bits, surrogates): providers may send any.
        return json.dumps(line, default=str).encode() + b"\n"
