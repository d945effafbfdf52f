"""A provider on a real socket: reads requests, records them, lets a script answer each one byte by byte.

The event loop runs in a thread of its own, so that tests may be plain functions and fixtures may live for a session.
Which script answers is said by the model's name (`silent@7`: the script `silent`; what follows the @ only makes the
deployment's name unique, so that one test's failures do not open another test's breaker), by `Simulator.default`, or
by a script that the test itself registers.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

from tests.simulators.ports import free_port as free_port
from tests.simulators.ports import refused_port as refused_port

Script = Callable[["Exchange"], Awaitable[None]]


class Gone(Exception):
    """The router closed the connection while a script was writing or waiting."""


class Peer(asyncio.Protocol):
    """One connection from the router."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.transport: asyncio.Transport | None = None
        self.gone = threading.Event()
        self.closed_at: float | None = None
        """Monotonic seconds when the router closed the connection (or we did)."""
        self.sent = 0
        """Bytes that a script handed to the socket."""
        self.received = 0
        self.closed_by_us = False
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=256 * 1024)
        self.simulator.peers.append(self)
        self._task = asyncio.get_running_loop().create_task(self.simulator.converse(self))

    def data_received(self, data: bytes) -> None:
        if not self.received and data[0] == 0x16 and self.transport is not None:
            # A TLS greeting on a plain port: as web servers answer it.
            self.transport.write(head(400, {"content-length": "0", "connection": "close"}))
            self.close()
            return
        self.received += len(data)
        self._buffer += data
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_at = time.monotonic()
        self.gone.set()
        self._news.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> None:
        """Hand bytes to the socket, waiting while it is full."""
        if self.gone.is_set() or self.transport is None or self.transport.is_closing():
            raise Gone
        self.sent += len(data)
        self.transport.write(data)
        await self._writable.wait()
        # A socket that always takes more would never let the loop see that the other side has closed.
        await asyncio.sleep(0)
        if self.gone.is_set():
            raise Gone

    def close(self) -> None:
        """An orderly FIN after what was sent."""
        self.closed_by_us = True
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """A RST; what was sent before may be lost on the way."""
        self.closed_by_us = True
        if self.transport is not None and not self.gone.is_set():
            raw = cast("socket.socket", self.transport.get_extra_info("socket"))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    async def until_gone(self, seconds: float = 30.0) -> None:
        """Say nothing until the router gives up. Ends the connection itself after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.gone.is_set() and time.monotonic() < deadline:
            self._news.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._news.wait()
            except TimeoutError:
                break
        if not self.gone.is_set():
            self.close()

    async def read_until(self, mark: bytes) -> bytes | None:
        """Bytes up to and with `mark`; None when the connection ended before it."""
        while mark not in self._buffer:
            if not await self._more():
                return None
        end = self._buffer.index(mark) + len(mark)
        return self._take(end)

    async def read_exactly(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not await self._more():
                return None
        return self._take(size)

    async def _more(self) -> bool:
        if self.gone.is_set():
            return False
        self._news.clear()
        await self._news.wait()
        return not self.gone.is_set() or bool(self._buffer)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


@dataclass(slots=True)
class Request:
    """What the router sent. Header names are lower case; `path` has the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: Peer
    raw_head: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else {}

    @property
    def model(self) -> str:
        """The model's name, from the body or (Gemini) the path."""
        if "/models/" in self.path and ":" in self.path:
            return self.path.split("/models/")[1].rsplit(":", 1)[0].replace("%40", "@")
        found = self.json.get("model") if self.body[:1] == b"{" else None
        return found if isinstance(found, str) else ""

    def left(self, seconds: float = 25.0) -> bool:
        """Whether the router closes this request's connection in time."""
        return self.peer.gone.wait(seconds)


@dataclass(slots=True)
class Exchange:
    """One request being answered: what a script works with."""

    request: Request
    peer: Peer
    dialect: Any
    """A dialect of `tests.simulators.dialects`: how answers look on the request's wire."""

    @property
    def stream(self) -> bool:
        return bool(self.dialect.is_stream(self.request))

    async def send(self, data: bytes) -> None:
        await self.peer.send(data)

    async def heard(self, otherwise: float) -> None:
        """Wait until the client has what was sent so far, where its test tells (see `Simulator.until_told`), else for
        `otherwise` seconds."""
        told = self.peer.simulator.told.get(self.request.model)
        if told is None:
            await asyncio.sleep(otherwise)
            return
        while not told.is_set() and not self.peer.gone.is_set():  # noqa: ASYNC110 - another thread tells
            await asyncio.sleep(0.002)

    async def head(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Status line and headers as given, nothing added."""
        await self.send(head(status, headers or {}))

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer with its length."""
        given = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self.send(head(status, given) + body)

    async def open_stream(self, headers: Mapping[str, str] | None = None) -> None:
        """The head of a chunked stream in the dialect's content type."""
        await self.head(
            200, {"content-type": self.dialect.stream_type, "transfer-encoding": "chunked", **(headers or {})}
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_chunks(self) -> None:
        await self.send(b"0\r\n\r\n")


def head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Simulator:
    """A provider. `requests` holds the inference and list requests in order of arrival."""

    def __init__(
        self,
        scripts: Mapping[str, Script],
        dialects: Callable[[Request], Any],
        *,
        default: str = "answer",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.scripts: dict[str, Script] = dict(scripts)
        self.default = default
        self.requests: list[Request] = []
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []
        """Bugs of scripts: a test that sees one is wrong about what it tested."""
        self.told: dict[str, threading.Event] = {}
        """What scripts wait for before they go on, by model: see `until_told`."""
        self.host = "127.0.0.1"
        self.port = 0
        self._dialects = dialects
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True, name="simulator")
        self._thread.start()
        if not ready.wait(60):
            raise RuntimeError("the simulator did not start")
        return self

    def __exit__(self, *_: object) -> None:
        loop = self._loop
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(5)

    @property
    def calls(self) -> list[Request]:
        """The requests for an answer: without model lists and details, which routers ask for by themselves."""
        return [request for request in self.requests if request.method == "POST" and request.path != "/api/show"]

    def drop_connections(self) -> None:
        """Close every connection that is open."""
        assert self._loop is not None
        for peer in self.peers:
            self._loop.call_soon_threadsafe(peer.close)

    def until_told(self, model: str) -> Callable[[], None]:
        """Let the script for a model stop after its first content, until what is given here is called."""
        told = self.told[model] = threading.Event()
        return told.set

    def asked(self, model: str) -> list[Request]:
        """The requests for one model, by the name that was sent."""
        return [request for request in self.requests if request.model == model]

    def wait_for(self, model: str, seconds: float = 60.0) -> Request:
        """The first request for a model, once it is there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.asked(model)
            if found:
                return found[0]
            time.sleep(0.005)
        raise AssertionError(f"no request for {model} within {seconds} s")

    def _run(self, ready: threading.Event) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._loop = loop
        self._server = loop.run_until_complete(
            loop.create_server(lambda: Peer(self), self.host, self.port, ssl=self._tls, backlog=512)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        # What goes wrong while a router tears connections down is the subject of the tests, not their failure.
        loop.set_exception_handler(lambda _, context: None)
        ready.set()
        try:
            loop.run_forever()
        finally:
            self._server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            for peer in self.peers:
                if peer.transport is not None and not peer.transport.is_closing():
                    peer.transport.abort()
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()

    async def converse(self, peer: Peer) -> None:
        """Requests on one connection, one after the other."""
        try:
            while True:
                request = await read_request(peer)
                if request is None:
                    return
                self.requests.append(request)
                exchange = Exchange(request, peer, self._dialects(request))
                await self._script(request)(exchange)
                if peer.closed_by_us:
                    return
        except Gone:
            return
        except Exception as bug:
            self.failures.append(bug)
            peer.reset()

    def _script(self, request: Request) -> Script:
        name = request.model.split("@")[0].removesuffix(":latest")
        return self.scripts.get(name) or self.scripts[self.default]


async def read_request(peer: Peer) -> Request | None:
    """The next request of a connection, None at its end."""
    raw = await peer.read_until(b"\r\n\r\n")
    if raw is None:
        return None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body: bytes | None = await _read_chunked(peer)
    else:
        body = await peer.read_exactly(int(headers.get("content-length", "0")))
    return None if body is None else Request(method, path, headers, body, peer, raw)


async def _read_chunked(peer: Peer) -> bytes | None:
    parts: list[bytes] = []
    while True:
        line = await peer.read_until(b"\r\n")
        if line is None:
            return None
        part = await peer.read_exactly(int(line, 16) + 2)
        if part is None:
            return None
        if line.strip() == b"0":
            return b"".join(parts)
        parts.append(part[:-2])
