"""One connection to a provider, and the one call that it carries: HTTP/1.1 by httptools (llhttp).

- A body that is cut (content-length or chunks unfinished) raises Broken. A close-delimited body just ends; the lanes
  look for the terminal event themselves.
- 1xx answers are skipped, headers are bounded, compressed bodies nobody asked for are unpacked within bounds.
- Reading stops when HIGH_WATER bytes wait for the caller: back-pressure reaches the provider.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools

from providers.errors import Broken, SwitchyardError, Unreachable
from router.origin import Origin

HIGH_WATER = 256 * 1024
"""Bytes that may wait unread before the socket is paused."""
MAX_HEADER_BYTES = 64 * 1024
FINISH_SECONDS = 1.0
"""How long a finished stream may take to close its message before the connection is dropped."""


class Pool(Protocol):
    """Where connections come from and go back to."""

    def keep(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...


class Stale(Exception):
    """A pooled connection had been closed by the server: nothing of the answer was seen."""


class Connection(asyncio.Protocol):
    """One socket, one call at a time."""

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.pool = pool
        self.origin = origin
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.closed = False
        self.uses = 0
        self.idle_since = 0.0
        self.writable: asyncio.Event | None = None
        self.tunnel: asyncio.Future[None] | None = None
        self._tunnel_head = b""
        self._parser: httptools.HttpResponseParser | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self._tunnel_answer(data)
            return
        exchange = self.exchange
        if exchange is None or self._parser is None:
            # Bytes outside a call: the server is confused or says good-bye. Never reuse it.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            exchange.fail(Broken("the provider asked for another protocol"))
            self.close()
        except httptools.HttpParserError as bad:
            inner = bad.__context__
            exchange.fail(
                inner if isinstance(inner, SwitchyardError) else Broken("the provider's answer is not valid HTTP")
            )
            self.close()
        else:
            exchange.took(len(data))
            exchange.wake()

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.pool.forget(self)
        if self.writable is not None:
            self.writable.set()
        if self.tunnel is not None and not self.tunnel.done():
            self.tunnel.set_exception(Unreachable("the proxy closed the connection"))
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.lost()

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self.writable is not None:
            self.writable.set()
            self.writable = None

    # one call

    def start(self, exchange: Exchange, head: bytes) -> None:
        self.exchange = exchange
        self.uses += 1
        self._parser = httptools.HttpResponseParser(exchange)
        exchange.parser = self._parser
        assert self.transport is not None
        self.transport.write(head)

    async def write(self, data: bytes) -> None:
        if self.transport is None or self.closed:
            raise Broken("the provider closed the connection while the request was being sent")
        self.transport.write(data)
        if self.writable is not None:
            await self.writable.wait()

    def ended(self, *, reuse: bool) -> None:
        """The exchange is over."""
        self.exchange = None
        self._parser = None
        if reuse and not self.closed:
            self.pool.keep(self)
        else:
            self.close()

    def close(self) -> None:
        if not self.closed and self.transport is not None:
            self.closed = True
            self.transport.abort()

    def _tunnel_answer(self, data: bytes) -> None:
        assert self.tunnel is not None
        self._tunnel_head += data
        if b"\r\n\r\n" not in self._tunnel_head and len(self._tunnel_head) < MAX_HEADER_BYTES:
            return
        status = self._tunnel_head.split(b" ", 2)[1:2]
        if not self.tunnel.done():
            if status == [b"200"]:
                self.tunnel.set_result(None)
            else:
                self.tunnel.set_exception(Unreachable("the proxy refused the connection"))


class Exchange:
    """One request and its answer on a connection: the parser's callbacks and the caller's `Response`."""

    def __init__(self, connection: Connection, *, head_only: bool) -> None:
        self.connection = connection
        self.parser: httptools.HttpResponseParser | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self._head_only = head_only
        self._header_bytes = 0
        self._head_bytes = 0
        """Everything that came before the head was complete."""
        self._chunks: list[bytes] = []
        self._waiting: asyncio.Future[None] | None = None
        self._size = 0
        self._paused = False
        self._has_head = False
        self._complete = False
        self._keep = False
        self._framed = False
        self._error: SwitchyardError | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._relaying = False
        self._inflate: Any = None
        self._over = False
        self._finish_timer: asyncio.TimerHandle | None = None

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            # A second answer to one request: never taken for the next one's. What came before it stands.
            raise Broken("the provider sent more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise Broken("the provider's answer has too many or too large headers")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self.parser is not None
        status = self.parser.get_status_code()
        if 100 <= status < 200:
            return
        self.status = status
        self._has_head = True
        self._keep = self.parser.should_keep_alive()
        self._framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(47 if encoding != "deflate" else 15)
        elif encoding not in ("identity", ""):
            raise Broken("the provider's answer is encoded in a way nobody asked for")

    def on_body(self, data: bytes) -> None:
        if self._over:
            # Nobody wants it; a provider that talks on and on is not listened to until the timer rings.
            self._size += len(data)
            if self._size > HIGH_WATER:
                self._end()
            return
        if self._inflate is not None:
            data = self._inflated(data)
        if not data:
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._paused:
            transport = self.connection.transport
            if transport is not None and not transport.is_closing():
                self._paused = True
                transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self._has_head:
            # End of a 1xx answer: the real one follows.
            self.headers = {}
            return
        self._complete = True
        if self._over:
            self._end(reuse=self._keep)

    # the connection's side

    def took(self, size: int) -> None:
        """Bytes went by. The parser tells of a header only when it is complete: one without end is bounded here."""
        if self._has_head:
            return
        self._head_bytes += size
        if self._head_bytes > MAX_HEADER_BYTES:
            self.fail(Broken("the provider's answer has too many or too large headers"))
            self.connection.close()

    def wake(self) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        sink = self._sink
        if sink is not None and self._chunks:
            try:
                if not sink(self._taken()):
                    self._relaying = False
                elif not self._complete:
                    return
            except Exception as bug:  # noqa: BLE001 - not ours: it belongs to whoever waits in `relay`
                waiting.set_exception(bug)
                return
        if self._chunks or self._complete or self._has_head:
            waiting.set_result(None)

    def lost(self) -> None:
        if not self._complete and self._error is None:
            if self._has_head and not self._framed:
                self._complete = True
            else:
                self._error = Broken("the provider closed the connection before its answer was complete")
        self._keep = False
        waiting = self._waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def fail(self, error: SwitchyardError) -> None:
        self._error = error
        self._keep = False
        waiting = self._waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def head(self) -> None:
        """Wait for status and headers. Raises Stale when the connection had been dead from the start."""
        while not self._has_head:
            if self._error is not None:
                if self._header_bytes == 0 and self.connection.closed and self.connection.uses > 1:
                    raise Stale
                raise self._error
            await self._wait()
        if self._head_only:
            self._complete = True
            self._keep = False

    # Response

    async def read(self) -> bytes:
        while not self._chunks:
            if self._complete:
                return self._tail()
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._taken()

    async def relay(self, sink: Callable[[bytes], bool]) -> None:
        if self._chunks and not sink(self._taken()):
            return
        self._sink = sink
        self._relaying = True
        try:
            while self._relaying and not self._complete and self._error is None:
                await self._wait()
        finally:
            self._sink = None

    def _taken(self) -> bytes:
        """What has come, now the caller's."""
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            transport = self.connection.transport
            if transport is not None and not transport.is_closing():
                transport.resume_reading()
        return data

    async def read_all(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                parts.clear()  # the error's traceback keeps this frame alive for a while
                raise Broken(f"the provider's answer is longer than {limit} bytes")
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        if self._over:
            return
        if self._complete or self._error is not None:
            self._end(reuse=self._keep and self._complete)
            return
        self._over = True
        self._chunks.clear()
        self._size = 0
        transport = self.connection.transport
        if self._paused and transport is not None and not transport.is_closing():
            transport.resume_reading()
        self._finish_timer = asyncio.get_running_loop().call_later(FINISH_SECONDS, self._end)

    def abort(self) -> None:
        if not self._over:
            self._end(reuse=False)

    def _end(self, *, reuse: bool = False) -> None:
        self._over = True
        if self._finish_timer is not None:
            self._finish_timer.cancel()
            self._finish_timer = None
        connection = self.connection
        if connection.exchange is self:
            connection.ended(reuse=reuse)

    async def _wait(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _inflated(self, data: bytes) -> bytes:
        try:
            out: bytes = self._inflate.decompress(data, HIGH_WATER * 4)
        except zlib.error:
            raise Broken("the provider's answer is labelled as compressed and is not") from None
        if self._inflate.unconsumed_tail:
            raise Broken("the provider's answer expands beyond all bounds")
        return out

    def _tail(self) -> bytes:
        if self._inflate is None:
            return b""
        inflate, self._inflate = self._inflate, None
        if not inflate.eof:
            raise Broken("the provider's compressed answer is cut")
        rest: bytes = inflate.flush()
        return rest
