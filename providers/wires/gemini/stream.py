"""The frames of a Gemini stream: SSE when `alt=sse` was heard, else a JSON array that dribbles out object by object."""

from __future__ import annotations

import re

from providers.errors import Broken
from providers.framing import MAX_EVENT, SSEReader

_OUTSIDE = re.compile(rb'[{}"]')
_INSIDE = re.compile(rb'["\\]')
_BETWEEN = b" \t\r\n,[]"


class ArrayReader:
    """Top-level objects of a JSON array (or one bare object), cut anywhere."""

    __slots__ = ("_at", "_buffer", "_depth", "_limit", "_quoted")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._buffer = b""
        self._at = 0
        self._depth = 0
        self._quoted = False
        self._limit = limit

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises Broken when an object passes the bound or something else stands between objects."""
        text = self._buffer + chunk
        at, start = self._at, 0
        found: list[bytes] = []
        while True:
            if self._depth == 0:
                rest = text[at:].lstrip(_BETWEEN)
                at = start = len(text) - len(rest)
                if not rest:
                    break
                if rest[:1] != b"{":
                    raise Broken("the provider's answer is not the JSON it should be")
                self._depth, at = 1, at + 1
            mark = (_INSIDE if self._quoted else _OUTSIDE).search(text, at)
            if mark is None:
                at = len(text)
                break
            at = mark.end()
            match mark[0]:
                case b'"':
                    self._quoted = not self._quoted
                case b"\\":
                    if at == len(text):
                        at -= 1  # the escaped character has not come yet
                        break
                    at += 1
                case b"{":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth == 0:
                        found.append(text[start:at])
                        start = at
        self._buffer, self._at = text[start:], at - start
        if len(self._buffer) > self._limit or any(len(item) > self._limit for item in found):
            raise Broken(f"the provider sent an event of more than {self._limit} bytes")
        return found

    def close(self) -> list[bytes]:
        """An object that was cut off is nobody's."""
        return []


class Frames:
    """The objects of a stream, whichever framing it turns out to have."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner: SSEReader | ArrayReader | None = None

    def feed(self, chunk: bytes) -> list[bytes]:
        if self._inner is None:
            head = chunk.lstrip()
            if not head:
                return []
            self._inner = ArrayReader() if head[:1] in (b"[", b"{") else SSEReader()
            chunk = head
        if isinstance(self._inner, ArrayReader):
            return self._inner.feed(chunk)
        return [event.data for event in self._inner.feed(chunk)]

    def close(self) -> list[bytes]:
        if isinstance(self._inner, SSEReader):
            return [event.data for event in self._inner.close()]
        return []
