"""The HTTP server: uvicorn on httptools, with the limits and deadlines it does not have itself.

uvicorn bounds neither the number nor the size of headers, sets no deadline for receiving a request, and accepts two
Host headers or none. This protocol class adds all four, says errors as JSON, and tells the running call at once when
its client has left (a plain ASGI handler is never told).
"""

from __future__ import annotations

import asyncio
import socket
from asyncio import Transport
from collections.abc import Callable
from typing import Any, ClassVar, cast

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from router.config import Limits

SWEEP_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 75

_REFUSALS: dict[int, tuple[str, str]] = {
    400: ("invalid_request", "this is not a valid HTTP/1.1 request"),
    408: ("request_timeout", "the request took too long to arrive"),
    414: ("uri_too_long", "the request's path and query are too long"),
    431: ("headers_too_large", "the request's headers are too many or too large"),
}


_CHUNKED = b"transfer-encoding: chunked\r\n"


class Corked:
    """A transport that sends a response's head together with the first bytes of its body: one system call, not two.

    uvicorn writes the head by itself; it is held until the next write, or until `flush` where no body follows. It also
    sends chunks to HTTP/1.0 clients, who do not know them (RFC 9112, 6.1): for those `old` takes the frames off, and
    the end of the connection ends the body.
    """

    __slots__ = ("_framed", "_held", "_inner", "old")

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._held = b""
        self._framed = False
        self.old = False

    def write(self, data: bytes) -> None:
        if self._inner.is_closing():
            return  # nobody gets it
        if self.old:
            data = self._plain(data)
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._held = data
            return
        self._inner.write(data)

    def _plain(self, data: bytes) -> bytes:
        if data.startswith(b"HTTP/1.1 "):
            self._framed = _CHUNKED in data
            return data.replace(_CHUNKED, b"", 1)
        if not self._framed:
            return data
        out = []
        while data:
            size, _, rest = data.partition(b"\r\n")
            length = int(size, 16)
            out.append(rest[:length])
            data = rest[length + 2 :]
        return b"".join(out)

    def flush(self) -> None:
        if self._held and not self._inner.is_closing():
            data, self._held = self._held, b""
            self._inner.write(data)

    def close(self) -> None:
        self.flush()
        self._inner.close()

    def __getattr__(self, name: str) -> Any:  # whatever else a transport has
        return getattr(self._inner, name)


class Protocol(HttpToolsProtocol):
    """One client connection. `on_lost` is called once when the client leaves while a call runs."""

    limits: ClassVar[Limits]
    """Set on a subclass for each server: uvicorn makes the instances."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.on_lost: Callable[[], None] | None = None
        self._running: RequestResponseCycle | None = None
        self._head_bytes = 0
        self._hosts = 0
        self._receiving_since: float | None = None
        self._head_done = False
        self._refused = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._corked = Corked(transport)
        self.transport = cast("Transport", self._corked)
        # A connection that never says anything is bound by the deadline for headers too.
        self._receiving_since = self.loop.time()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # as uvicorn starts every request
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells the request that came last, which may wait for this one.
            self._running.disconnected = True
            self._running.message_event.set()
        lost, self.on_lost = self.on_lost, None
        if lost is not None:
            lost()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._head_done:
            self._head_bytes += len(data)
        super().data_received(data)
        # The parser keeps an unfinished header itself; what came so far is counted here.
        if not self._head_done and self._head_bytes > self.limits.header_bytes + self.limits.max_url_bytes:
            self.refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["connection"] = self  # type: ignore[typeddict-unknown-key]  # how the app finds us
        self._head_bytes = 0
        self._hosts = 0
        self._head_done = False
        self._receiving_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            self._stop(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self.limits.header_count:
            self._stop(431)
        if self.headers[-1][0] == b"host":
            self._hosts += 1

    def on_headers_complete(self) -> None:
        self._head_done = True
        self._corked.old = self.parser.get_http_version() == "1.0"
        if sum([len(name) + len(value) + 4 for name, value in self.headers]) > self.limits.header_bytes:
            self._stop(431)
        if self._hosts > 1 or (self._hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._stop(400)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving_since = None

    def write_body(self, data: bytes) -> bool:
        """A piece of the running answer's chunked body, at once. False, and nothing written, when the client has to
        take what waits first, or the answer is of another kind: `send` it then."""
        cycle = self.cycle
        if self.flow.write_paused or not cycle.chunked_encoding or cycle.response_complete:
            return False
        if not cycle.disconnected:
            self._corked.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def on_response_complete(self) -> None:
        self._corked.flush()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self.refuse(400)

    def refuse(self, status: int) -> None:
        """Answer what never became a request, and close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        code, message = _REFUSALS[status]
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = orjson.dumps({"error": error})
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            + body
        )
        self._corked.close()

    def overdue(self, now: float) -> bool:
        """Whether the request being received has passed its deadline."""
        since = self._receiving_since
        if since is None:
            return False
        return now - since > (self.limits.body_seconds if self._head_done else self.limits.header_seconds)

    def expire(self) -> None:
        """The request did not arrive in time. A call that waits for the body ends as if its client had left."""
        self._receiving_since = None
        if self._head_done:
            # The handler owns the answer now; closing tells it that nobody listens.
            self.transport.abort()
        elif self._head_bytes:
            self.refuse(408)
        else:
            self.transport.close()

    def _stop(self, status: int) -> None:
        self.refuse(status)
        # Raising makes the parser stop; uvicorn then wants to answer 400, which `refuse` has already settled.
        raise httptools.HttpParserError(_REFUSALS[status][1])


class Server(uvicorn.Server):
    """uvicorn without its signal handling: the caller says when to stop, and how long running calls may take."""

    def __init__(self, app: Any, limits: Limits) -> None:  # an ASGI application, by uvicorn's own typing
        bound = type("BoundProtocol", (Protocol,), {"limits": limits})
        config = uvicorn.Config(
            app,
            http=bound,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=2,
            backlog=2048,
        )
        super().__init__(config)

    async def serve_until(self, stop: asyncio.Event, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
        """Accept on `sockets` until `stop` is set; then accept no more. Running calls go on: see `finish`."""
        if not self.config.loaded:
            self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=sockets)
        ready()
        counter = 0
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            await self.on_tick(counter * 10)
            counter += 1
            now = loop.time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol) and connection.overdue(now):
                    connection.expire()
            try:
                async with asyncio.timeout(SWEEP_SECONDS):
                    await stop.wait()
            except TimeoutError:
                pass
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()

    async def finish(self) -> None:
        """Close what is left."""
        await self.shutdown(sockets=[])
