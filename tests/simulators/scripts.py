"""What a provider may do to a call, by name: `SCRIPTS["silent"]` answers the model `silent`, `silent@1`, ...

Each script is written once for all dialects. Unknown model names get `answer`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

from tests.simulators.dialects import SECRET, dialect_of
from tests.simulators.server import Exchange, Script, Simulator

ANSWER = "Good day from the simulator, 你好."
"""What `answer` says."""
PIECES = ("Good day ", "from the ", "simulator, ", "你好.")
PAUSE = 0.3
"""Seconds between the first content and the fault that follows it, where no test tells that the content has come."""
PART = "Only the beginning"
"""What comes before the fault, in scripts that fail after content."""


def complaint(exchange: Exchange) -> str:
    """An error text that repeats everything secret a provider was sent, and the call itself."""
    seen = exchange.request.headers
    credential = seen.get("authorization") or seen.get("x-goog-api-key") or "none"
    call = exchange.request.body.decode(errors="replace")
    return f"simulated trouble: authorization: {credential}, key {SECRET} of org-simulated0123456789, in {call:.300}"


async def answer(x: Exchange) -> None:
    """As a healthy provider, whole or streamed."""
    if not x.stream:
        await x.answer(200, x.dialect.whole(x.request, ANSWER))
        return
    await say(x, PIECES)


async def say(x: Exchange, pieces: tuple[str, ...], pause: float = 0.0) -> None:
    """A healthy stream; `pause` is seconds before each piece."""
    await x.open_stream()
    if x.dialect.opening(x.request):
        await x.chunk(x.dialect.opening(x.request))
    for piece in pieces:
        if pause:
            await asyncio.sleep(pause)
        await x.chunk(x.dialect.content(x.request, piece))
    for frame in x.dialect.finish(x.request):
        await x.chunk(frame)
    await x.end_chunks()


def status(code: int, headers: Mapping[str, str] | None = None) -> Script:
    """An error answer that echoes the credential."""

    async def script(x: Exchange) -> None:
        await x.answer(code, x.dialect.error(code, complaint(x)), headers)

    return script


async def silent(x: Exchange) -> None:
    """Takes the request and never says a word."""
    await x.peer.until_gone()


async def headers_then_silence(x: Exchange) -> None:
    if x.stream:
        await x.open_stream()
    else:
        await x.head(200, {"content-type": "application/json", "content-length": "900"})
    await x.peer.until_gone()


async def error_in_200(x: Exchange) -> None:
    """Status 200, and an error in place of the answer."""
    if not x.stream:
        await x.answer(200, x.dialect.error(500, complaint(x)))
        return
    await x.open_stream()
    await x.chunk(x.dialect.stream_error(complaint(x)))
    await x.end_chunks()


async def role_then_garbage(x: Exchange) -> None:
    if not x.stream:
        await x.answer(200, b'{"id": "half an ans')
        return
    await x.open_stream()
    await x.chunk(x.dialect.opening(x.request))
    await x.chunk(x.dialect.garbage())
    await x.end_chunks()


async def _begin(x: Exchange) -> None:
    """A stream's head and its first content."""
    await x.open_stream()
    await x.chunk(x.dialect.opening(x.request))
    await x.chunk(x.dialect.content(x.request, PART))


async def _begin_and_wait(x: Exchange) -> None:
    """As before, and time to have it delivered: a fault in the same read of the router still counts as one before the
    content."""
    await _begin(x)
    await x.heard(PAUSE)


async def content_then_garbage(x: Exchange) -> None:
    await _begin_and_wait(x)
    await x.chunk(x.dialect.garbage())
    await x.peer.until_gone(2)


async def content_then_error(x: Exchange) -> None:
    await _begin_and_wait(x)
    await x.chunk(x.dialect.stream_error(complaint(x)))
    await x.end_chunks()


async def content_then_reset(x: Exchange) -> None:
    await _begin_and_wait(x)
    x.peer.reset()


async def content_then_cut(x: Exchange) -> None:
    """The connection closes in the middle of the chunked body."""
    await _begin_and_wait(x)
    x.peer.close()


async def content_then_end(x: Exchange) -> None:
    """The body ends in good order, but the answer has no finish and no end mark."""
    await _begin_and_wait(x)
    await x.end_chunks()


async def content_then_close(x: Exchange) -> None:
    """As before, in a body that the closing of the connection ends."""
    await x.head(200, {"content-type": x.dialect.stream_type, "connection": "close"})
    await x.send(x.dialect.opening(x.request) + x.dialect.content(x.request, PART))
    await x.heard(PAUSE)
    x.peer.close()


async def content_then_silence(x: Exchange) -> None:
    await _begin(x)
    await x.peer.until_gone()


async def comments(x: Exchange) -> None:
    """Keep-alive comments and nothing else."""
    await x.open_stream()
    while not x.peer.gone.is_set():
        await x.chunk(b": keep-alive\n\n" if x.dialect.stream_type == "text/event-stream" else b"\n")
        await asyncio.sleep(0.05)


async def content_then_comments(x: Exchange) -> None:
    await _begin(x)
    while not x.peer.gone.is_set():
        await x.chunk(b": keep-alive\n\n" if x.dialect.stream_type == "text/event-stream" else b"\n")
        await asyncio.sleep(0.05)


async def slow(x: Exchange) -> None:
    """A healthy stream at a token each tenth of a second."""
    await say(x, PIECES * 2, pause=0.1)


async def endless_slow(x: Exchange) -> None:
    """A token each 50 ms for as long as anyone listens; a call that is not streamed waits as long."""
    if not x.stream:
        await x.peer.until_gone()
        return
    await _begin(x)
    while not x.peer.gone.is_set():
        await x.chunk(x.dialect.content(x.request, "and on "))
        await asyncio.sleep(0.05)


async def flood(x: Exchange) -> None:
    """200 MB of content as fast as it is taken."""
    await _begin(x)
    frame = x.dialect.content(x.request, "x" * 16_000)
    for _ in range(12_800):
        await x.chunk(frame)
    for last in x.dialect.finish(x.request):
        await x.chunk(last)
    await x.end_chunks()


async def short_length(x: Exchange) -> None:
    """The connection closes before the body is as long as its Content-Length says."""
    body = x.dialect.whole(x.request, ANSWER)
    await x.head(200, {"content-type": "application/json", "content-length": str(len(body))})
    await x.send(body[:-20])
    x.peer.close()


async def html(x: Exchange) -> None:
    body = b"<!DOCTYPE html><html><body><h1>Welcome to the hotel network</h1></body></html>"
    await x.answer(200, body, {"content-type": "text/html"})


async def whole_for_stream(x: Exchange) -> None:
    """JSON in answer to a call for a stream."""
    body = x.dialect.error(500, complaint(x)) if x.stream else b"[]"
    await x.answer(200, body)


async def huge_line(x: Exchange) -> None:
    """10 MB without a line end."""
    await x.open_stream()
    await x.chunk(x.dialect.content(x.request, "").rstrip()[:-40])
    for _ in range(160):
        await x.chunk(b"x" * 65536)
    await x.peer.until_gone(2)


async def content_then_huge_line(x: Exchange) -> None:
    await _begin_and_wait(x)
    await x.chunk(x.dialect.content(x.request, "").rstrip()[:-40])
    for _ in range(160):
        await x.chunk(b"x" * 65536)
    await x.peer.until_gone(2)


async def huge_headers(x: Exchange) -> None:
    """300 KB of headers."""
    await x.answer(200, x.dialect.whole(x.request, ANSWER), {f"x-filler-{n}": "y" * 3000 for n in range(100)})


async def endless_headers(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 200 OK\r\nx-filler: ")
    for _ in range(1600):
        await x.send(b"z" * 65536)


async def endless_body(x: Exchange) -> None:
    """A whole answer without an end."""
    await x.head(200, {"content-type": "application/json", "transfer-encoding": "chunked"})
    await x.chunk(b'{"choices": [{"message": {"content": "')
    while not x.peer.gone.is_set():
        await x.chunk(b"x" * 262144)


def redirect(elsewhere: Callable[[], str]) -> Script:
    """307 to another host. `elsewhere` gives its base URL."""

    async def script(x: Exchange) -> None:
        await x.answer(307, b"", {"location": elsewhere() + x.request.path})

    return script


async def interim(x: Exchange) -> None:
    """100 and 103 before the answer."""
    await x.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await x.send(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")
    await answer(x)


async def false_gzip(x: Exchange) -> None:
    """Plain JSON labelled as gzip."""
    await x.answer(200, x.dialect.whole(x.request, ANSWER), {"content-encoding": "gzip"})


async def true_gzip(x: Exchange) -> None:
    """Compressed though nobody asked for it."""
    packer = zlib.compressobj(wbits=31)
    body = packer.compress(x.dialect.whole(x.request, ANSWER)) + packer.flush()
    await x.answer(200, body, {"content-encoding": "gzip"})


@cache
def _packed_zeros() -> bytes:
    """100 MB of zeros in 100 KB of gzip: packed once, since it takes a second."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()


async def bomb(x: Exchange) -> None:
    """100 MB of zeros in 100 KB of gzip."""
    await x.answer(200, await asyncio.to_thread(_packed_zeros), {"content-encoding": "gzip"})


async def answer_then_close(x: Exchange) -> None:
    """Answers, promises to keep the connection, and closes it a moment later: a race for whoever reuses it."""
    await answer(x)
    x.peer.close()


async def trailers(x: Exchange) -> None:
    """A chunked answer with trailer fields."""
    body = x.dialect.whole(x.request, ANSWER)
    await x.head(200, {"content-type": "application/json", "transfer-encoding": "chunked", "trailer": "x-sum"})
    await x.chunk(body)
    await x.send(b"0\r\nx-sum: 1\r\n\r\n")


async def after_done(x: Exchange) -> None:
    """Goes on talking after the end mark."""
    await x.open_stream()
    for piece in PIECES:
        await x.chunk(x.dialect.content(x.request, piece))
    for frame in x.dialect.finish(x.request):
        await x.chunk(frame)
    await x.chunk(x.dialect.content(x.request, "MORE"))
    await x.end_chunks()


async def byte_by_byte(x: Exchange) -> None:
    """A healthy stream, a byte a chunk."""
    await x.open_stream()
    frames = [x.dialect.opening(x.request), *(x.dialect.content(x.request, piece) for piece in PIECES)]
    for byte in b"".join([*frames, *x.dialect.finish(x.request)]):
        await x.chunk(bytes([byte]))
    await x.end_chunks()


SCRIPTS: Final[Mapping[str, Script]] = {
    "answer": answer,
    "silent": silent,
    "headers-then-silence": headers_then_silence,
    "error-in-200": error_in_200,
    "role-then-garbage": role_then_garbage,
    "content-then-garbage": content_then_garbage,
    "content-then-error": content_then_error,
    "content-then-reset": content_then_reset,
    "content-then-cut": content_then_cut,
    "content-then-end": content_then_end,
    "content-then-close": content_then_close,
    "content-then-silence": content_then_silence,
    "content-then-comments": content_then_comments,
    "content-then-huge-line": content_then_huge_line,
    "comments": comments,
    "slow": slow,
    "endless-slow": endless_slow,
    "flood": flood,
    "short-length": short_length,
    "html": html,
    "whole-for-stream": whole_for_stream,
    "huge-line": huge_line,
    "huge-headers": huge_headers,
    "endless-headers": endless_headers,
    "endless-body": endless_body,
    "interim": interim,
    "false-gzip": false_gzip,
    "true-gzip": true_gzip,
    "bomb": bomb,
    "answer-then-close": answer_then_close,
    "trailers": trailers,
    "after-done": after_done,
    "byte-by-byte": byte_by_byte,
    **{str(code): status(code) for code in (400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504, 529)},
    "429-2s": status(429, {"retry-after": "2"}),
    "429-day": status(429, {"retry-after": "86400"}),
    "429-negative": status(429, {"retry-after": "-1"}),
    "429-words": status(429, {"retry-after": "soon"}),
    "429-ms": status(429, {"retry-after-ms": "1500"}),
}


def provider(*, default: str = "answer") -> Simulator:
    """A simulated provider that speaks all dialects, each under its own paths."""
    return Simulator(SCRIPTS, dialect_of, default=default)
