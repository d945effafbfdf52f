"""What a router that runs writes: a JSON line for each request, and messages, by a thread of their own.
No prompts, no credentials: ids, names, numbers.

The queue is bounded: when the sink is slower than the traffic, lines are dropped and counted, never waited for. So no
reader that stands still holds up the router, nor its end.
"""

from __future__ import annotations

import json
import logging
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


class Output:
    """Writes to a file descriptor. `requests`: False leaves the requests' lines out."""

    def __init__(self, fd: int, *, requests: bool = True) -> None:
        self.dropped = 0
        self._fd = fd
        self._lines: deque[Mapping[str, Any] | bytes] = deque()
        self._news = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._requests = requests
        self._shared = _is_pipe(fd)
        """Other processes may write to it too: only short writes are whole there."""
        self._torn = False
        """The last line was cut: the next one begins on a line of its own."""

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Queue a request's line. Values are strings, numbers, booleans or None."""
        if self._requests:
            self._queue(line)

    def say(self, text: str) -> None:
        """Queue a message, and have it written at once: it may be of one line or of several."""
        self._queue(text.encode("utf-8", "backslashreplace") + b"\n")
        self._news.set()

    def stop(self) -> None:
        """Flush what waits and end the thread. When the sink is stuck, what waits is given up: the router's end waits
        for no reader."""
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._stopping = True
        self._news.set()
        self._thread.join(timeout=STOP_SECONDS)
        if not self._thread.is_alive():
            self._thread = None
        else:
            self.dropped += len(self._lines)
            self._lines.clear()

    def _queue(self, line: Mapping[str, Any] | bytes) -> None:
        if len(self._lines) >= LIMIT:
            self.dropped += 1
        else:
            self._lines.append(line)

    def _run(self) -> None:
        while not self._stopping:
            self._news.wait(FLUSH_SECONDS if self._requests else None)
            self._news.clear()
            self._flush()
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


class Messages(logging.Handler):
    """Puts the messages of `logging` between the requests' lines."""

    def __init__(self, log: Output) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.say(self.format(record))
        except (TypeError, ValueError, KeyError):  # its words do not fit its values: as logging's own handlers do
            self.handleError(record)


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


def _encoded(line: Mapping[str, Any] | bytes) -> bytes:
    if isinstance(line, bytes):
        return line
    try:
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # A number or a text that orjson does not write (64 bits, surrogates): providers may send any.
        return json.dumps(line, default=str).encode() + b"\n"
