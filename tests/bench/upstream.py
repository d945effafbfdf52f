"""An upstream that answers at once, in the shapes of OpenAI and of Ollama, for as little CPU as Python allows.

Run as `python -m tests.bench.upstream`: binds a free port of 127.0.0.1, prints the port on one line and serves until
its standard input closes. Request bodies are not parsed as JSON; only `"stream"` is looked for. Each content chunk of
a stream carries `@<CLOCK_MONOTONIC in ns, 19 digits>@` as its text, so that the reader at the far end of a gateway can
tell how long the chunk was under way (both ends read the same clock of the same machine).
"""

import asyncio
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Final, cast

import uvloop

CHUNKS: Final = 100  # content chunks of a stream
PACE: Final = 0.010  # seconds between them
MARKER: Final = "Benchmarks measure the road, not the traveller."  # in every whole answer

_TEXT: Final = f"{MARKER} The quick brown fox jumps over the lazy dog, and the dog, for once, does not object."
_STAMP: Final = b"@0000000000000000000@"
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED: Final = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
_STREAM: Final = re.compile(rb'"stream" *: *true')
_NO_STREAM: Final = re.compile(rb'"stream" *: *false')

WHOLE: Final = (
    '{"id":"chatcmpl-BenchBenchBenchBenchBenchBench","object":"chat.completion","created":1760000000,"model":"bench",'
    '"choices":[{"index":0,"message":{"role":"assistant","content":"' + _TEXT + '","refusal":null},"logprobs":null,'
    '"finish_reason":"stop"}],"usage":{"prompt_tokens":96,"completion_tokens":28,"total_tokens":124,'
    '"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},'
    '"system_fingerprint":"fp_0123456789"}'
).encode()
_OLLAMA_WHOLE: Final = (
    '{"model":"bench","created_at":"2026-01-02T03:04:05.123456789Z","message":{"role":"assistant","content":"'
    + _TEXT
    + '"},"done_reason":"stop","done":true,"total_duration":5191566416,"load_duration":2154458,'
    '"prompt_eval_count":96,"prompt_eval_duration":383809000,"eval_count":28,"eval_duration":4799921000}'
).encode()


def _sse(delta: str, finish: str) -> bytes:
    """One chat completion chunk as OpenAI sends it (about 240 bytes)."""
    return (
        'data: {"id":"chatcmpl-BenchBenchBenchBenchBenchBench","object":"chat.completion.chunk","created":1760000000,'
        '"model":"bench","service_tier":"default","system_fingerprint":"fp_0123456789",'
        '"choices":[{"index":0,"delta":{' + delta + '},"logprobs":null,"finish_reason":' + finish + "}]}\n\n"
    ).encode()


def _framed(data: bytes) -> bytes:
    """The bytes as one chunk of HTTP/1.1 chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True, slots=True)
class Script:
    """A stream cut into what is written before, around and after the time stamp of each chunk."""

    opening: bytes
    before: bytes
    after: bytes
    closing: bytes


def _script(media_type: bytes, opening: bytes, chunk: bytes, closing: bytes) -> Script:
    before, after = _framed(chunk).split(_STAMP)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % media_type
    return Script(head + opening, before, after, closing + b"0\r\n\r\n")


def _whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


_OPENAI_STREAM: Final = _script(
    b"text/event-stream; charset=utf-8",
    _framed(_sse('"role":"assistant","content":"","refusal":null', "null")),
    _sse('"content":"' + _STAMP.decode() + '"', "null"),
    _framed(_sse("", '"stop"'))
    + _framed(
        b'data: {"id":"chatcmpl-BenchBenchBenchBenchBenchBench","object":"chat.completion.chunk","created":1760000000,'
        b'"model":"bench","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[],'
        b'"usage":{"prompt_tokens":96,"completion_tokens":100,"total_tokens":196}}\n\n'
    )
    + _framed(b"data: [DONE]\n\n"),
)
_OLLAMA_STREAM: Final = _script(
    b"application/x-ndjson",
    b"",
    b'{"model":"bench","created_at":"2026-01-02T03:04:05.123456789Z","message":{"role":"assistant","content":"'
    + _STAMP
    + b'"},"done":false}\n',
    _framed(
        b'{"model":"bench","created_at":"2026-01-02T03:04:05.123456789Z","message":{"role":"assistant","content":""},'
        b'"done_reason":"stop","done":true,"total_duration":5191566416,"load_duration":2154458,'
        b'"prompt_eval_count":96,"prompt_eval_duration":383809000,"eval_count":100,"eval_duration":4799921000}\n'
    ),
)

# path -> (whole answer, stream, whether a request that does not say streams)
_CHATS: Final[dict[bytes, tuple[bytes, Script, bool]]] = {
    b"/v1/chat/completions": (_whole(WHOLE), _OPENAI_STREAM, False),
    b"/api/chat": (_whole(_OLLAMA_WHOLE), _OLLAMA_STREAM, True),
}
_DETAILS: Final = b'{"family":"bench","families":["bench"],"parameter_size":"1B","quantization_level":"Q4_0"}'
_FIXED: Final[dict[bytes, bytes]] = {
    b"/v1/models": _whole(b'{"object":"list","data":[{"id":"bench","object":"model","created":0,"owned_by":"bench"}]}'),
    b"/api/tags": _whole(
        b'{"models":[{"name":"bench:latest","model":"bench:latest","modified_at":"2026-01-02T03:04:05Z","size":1,'
        b'"digest":"00","details":' + _DETAILS + b"}]}"
    ),
    b"/api/ps": _whole(b'{"models":[]}'),
    b"/api/version": _whole(b'{"version":"0.12.0"}'),
    b"/api/show": _whole(
        b'{"modelfile":"","template":"","details":' + _DETAILS + b',"model_info":{"bench.context_length":32768},'
        b'"capabilities":["completion","tools"]}'
    ),
}
_NOT_FOUND: Final = _whole(b'{"error":{"message":"no such path","type":"invalid_request_error"}}', b"404 Not Found")


class Upstream(asyncio.Protocol):
    """One connection. Requests are answered in order; a stream occupies the connection until its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._script: Script | None = None
        self._left = 0
        self._next = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # asyncio types the argument more widely than it is

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while self._buffer and self._script is None:
            request = self._take()
            if request is None:
                return
            self._answer(*request)

    def _take(self) -> tuple[bytes, bytes] | None:
        """Path and body of the next whole request, taken off the buffer."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        body = end + 4
        length = _LENGTH.search(buffer, 0, end + 2)
        if length is not None:
            stop = body + int(length[1])
        elif _CHUNKED.search(buffer, 0, end + 2):
            last = buffer.find(b"0\r\n\r\n", body)
            stop = last + 5 if last >= 0 else len(buffer) + 1
        else:
            stop = body
        if len(buffer) < stop:
            return None
        self._buffer = buffer[stop:]
        return buffer.split(b" ", 2)[1].partition(b"?")[0], buffer[body:stop]

    def _answer(self, path: bytes, body: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        chat = _CHATS.get(path)
        if chat is None:
            transport.write(_FIXED.get(path, _NOT_FOUND))
            return
        whole, script, streams = chat
        if _NO_STREAM.search(body) if streams else not _STREAM.search(body):
            transport.write(whole)
            return
        self._script = script
        self._left = CHUNKS
        self._next = self._loop.time()
        transport.write(script.opening)
        self._tick()

    def _tick(self) -> None:
        transport, script = self._transport, self._script
        if transport is None or script is None:  # the client left
            return
        chunk = b"%b@%019d@%b" % (script.before, time.monotonic_ns(), script.after)
        self._left -= 1
        if self._left:
            transport.write(chunk)
            self._next += PACE
            self._loop.call_at(self._next, self._tick)
            return
        transport.write(chunk + script.closing)
        self._script = None
        if self._buffer:
            self.data_received(b"")


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(loop), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    closed = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: closed.set() if not os.read(sys.stdin.fileno(), 4096) else None)
    await closed.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve())
