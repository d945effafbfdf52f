"""Incremental framing: SSE and newline-delimited JSON, cut at any byte.

Rules: lines are split on bytes, so half a UTF-8 character is never decoded. Every event is bounded; beyond the bound
the stream is `Broken`. What we send ends in LF LF and is ASCII-safe where line splitters of real clients would cut
(U+2028, U+2029, U+0085: `str.splitlines` and httpx's line reader).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from providers.errors import Broken

MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one event or line. Text deltas are small; the room is for media by value (Gemini's images)."""

DONE = b"data: [DONE]\n\n"


class SSE(Struct, frozen=True):
    """One event. `data` lines are joined with LF; `event` is b"" when the stream names none."""

    event: bytes
    data: bytes


class SSEReader:
    """Server-sent events by the WHATWG rules: LF, CR or CRLF, comments, several data lines, a byte order mark at the
    start.

    Deviation on purpose: an unfinished last event is given by `close` too, since vendors forget the last blank line.
    """

    __slots__ = ("_buffer", "_data", "_event", "_limit", "_size", "_started")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._event = b""
        self._size = 0
        self._limit = limit
        self._started = False

    def feed(self, chunk: bytes) -> list[SSE]:
        """Raises Broken when an event passes the bound."""
        if not self._started:
            chunk = self._strip_mark(chunk)
            if not self._started:
                return []
        # The common shape, an event a chunk as providers send it, needs no line work at all.
        if (
            not self._buffer
            and not self._data
            and not self._event
            and chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and len(chunk) <= self._limit
            and chunk.count(b"\n") == 2
            and b"\r" not in chunk
        ):
            return [SSE(b"", chunk[6:-2])]
        text = self._buffer + chunk if self._buffer else chunk
        found: list[SSE] = []
        if b"\r" in text:
            # A CR at the very end may be half a CRLF: keep it back.
            held = text.endswith(b"\r")
            text = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            *lines, rest = text.split(b"\n")
            self._buffer = rest + b"\r" if held else rest
        else:
            *lines, self._buffer = text.split(b"\n")
        for line in lines:
            self._line(line, found)
        if len(self._buffer) + self._size > self._limit:
            raise Broken(f"the provider sent an event of more than {self._limit} bytes")
        return found

    def close(self) -> list[SSE]:
        """The body ended: whatever was left, as an event."""
        found: list[SSE] = []
        tail, self._buffer = self._buffer.rstrip(b"\r"), b""
        if tail:
            self._line(tail, found)
        self._line(b"", found)
        return found

    def _strip_mark(self, chunk: bytes) -> bytes:
        chunk = self._buffer + chunk
        mark = b"\xef\xbb\xbf"
        if len(chunk) < 3 and mark.startswith(chunk):
            self._buffer = chunk
            return b""
        self._buffer = b""
        self._started = True
        return chunk.removeprefix(mark)

    def _line(self, line: bytes, found: list[SSE]) -> None:
        if not line:
            if self._data:
                found.append(SSE(self._event, b"\n".join(self._data)))
            self._data, self._event, self._size = [], b"", 0
            return
        if line.startswith(b":"):
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value)
            if self._size > self._limit:
                raise Broken(f"the provider sent an event of more than {self._limit} bytes")
            self._data.append(value)
        elif name == b"event":
            self._event = value


class LineReader:
    """Newline-delimited JSON. Blank lines are dropped; `close` gives an unfinished last line."""

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._buffer = b""
        self._limit = limit

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises Broken when a line passes the bound."""
        *lines, self._buffer = (self._buffer + chunk).split(b"\n") if self._buffer else chunk.split(b"\n")
        if len(self._buffer) > self._limit or any(len(line) > self._limit for line in lines):
            raise Broken(f"the provider sent a line of more than {self._limit} bytes")
        return [line for line in lines if line.strip()]

    def close(self) -> list[bytes]:
        tail, self._buffer = self._buffer, b""
        return [tail] if tail.strip() else []


_CUTS = re.compile(rb"\xe2\x80[\xa8\xa9]|\xc2\x85")
_ESCAPES = {b"\xe2\x80\xa8": rb"\u2028", b"\xe2\x80\xa9": rb"\u2029", b"\xc2\x85": rb"\u0085"}


def line_safe(json_text: bytes) -> bytes:
    """JSON on one line that no line splitter cuts: U+2028, U+2029 and U+0085 become escapes (they only stand inside
    strings)."""
    if json_text.isascii() or not _CUTS.search(json_text):
        return json_text
    return _CUTS.sub(lambda found: _ESCAPES[found[0]], json_text)


def sse(json_text: bytes, event: bytes = b"") -> bytes:
    """One event as we send it."""
    body = b"data: " + line_safe(json_text) + b"\n\n"
    return b"event: " + event + b"\n" + body if event else body


def ndjson(objects: Iterable[bytes]) -> bytes:
    return b"".join(line_safe(item) + b"\n" for item in objects)
