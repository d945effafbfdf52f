"""Upstream HTTP/1.1: open a call, get status, headers and bytes, abort. The only file that opens sockets to providers.

An asyncio protocol on httptools (llhttp), since a general client costs more CPU than the rest of a call together.
What it keeps to:

- A connection carries one call at a time and goes back to the pool only after a complete message; a cancelled or
  broken call closes its socket at once, so a pool can never hold a poisoned or leaked connection.
- A body that is cut (content-length or chunks unfinished) raises Broken. A close-delimited body just ends; the lanes
  look for the terminal event themselves.
- A pooled connection that the server closed before its first answer byte is replaced by a fresh one, once, unseen by
  the caller.
- Redirects are not followed, environment proxies are ignored, 1xx answers are skipped, headers are bounded.
- Reading stops when HIGH_WATER bytes wait for the caller: back-pressure reaches the provider.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import ssl
import zlib
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import httptools

from providers.errors import Broken, Overloaded, SwitchyardError, TimedOut, Unreachable
from providers.vendor import UpstreamRequest

HIGH_WATER = 256 * 1024
"""Bytes that may wait unread before the socket is paused."""
MAX_HEADER_BYTES = 64 * 1024
IDLE_SECONDS = 20.0
"""How long a finished connection is kept; below the keep-alive of the usual servers (uvicorn 5 s is the exception:
see retry)."""
MAX_IDLE = 64
"""Idle connections kept for one origin."""
FINISH_SECONDS = 1.0
"""How long a finished stream may take to close its message before the connection is dropped."""
RESOLVE_SECONDS = 30.0
"""How long looked-up addresses are used; after that they serve only when the resolver fails."""
USER_AGENT = "switchyard"


class Response(Protocol):
    """An answer whose headers have come."""

    status: int
    headers: dict[str, str]

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises Broken when it is cut."""
        ...

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body. Raises Broken beyond `limit` bytes."""
        ...

    def finish(self) -> None:
        """The caller has all it wants: keep the connection when the message ends soon, else drop it."""
        ...

    def abort(self) -> None:
        """Close the connection now. Does nothing after `finish`."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes: scheme, host and port, how to get there, and how long connecting may take (seconds)."""

    base_url: str
    connect: float = 3.0
    proxy: str | None = None
    ca_bundle: str | None = None


@dataclass(frozen=True, slots=True)
class _Origin:
    tls: bool
    host: str
    port: int
    prefix: str
    """Path of the base URL, without a trailing slash."""
    authority: str
    proxy: str | None
    ca_bundle: str | None
    proxy_tls: bool = False
    proxy_host: str = ""
    proxy_port: int = 0
    proxy_auth: str = ""


def _origin(route: Route) -> _Origin:
    parts = urlsplit(route.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unreachable("the provider's base_url is not an http or https URL")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    host = parts.hostname
    named = f"[{host}]" if ":" in host else host
    authority = named if port == (443 if tls else 80) else f"{named}:{port}"
    found = {"tls": tls, "host": host, "port": port, "prefix": parts.path.rstrip("/"), "authority": authority}
    if route.proxy is None:
        return _Origin(**found, proxy=None, ca_bundle=route.ca_bundle)  # type: ignore[arg-type]  # one dict, checked by the dataclass
    proxy = urlsplit(route.proxy)
    if proxy.scheme not in ("http", "https") or not proxy.hostname:
        raise Unreachable("the provider's proxy is not an http or https URL")
    auth = ""
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        auth = f"proxy-authorization: Basic {b64encode(pair.encode()).decode()}\r\n"
    return _Origin(
        **found,  # type: ignore[arg-type]  # one dict, checked by the dataclass
        proxy=route.proxy,
        ca_bundle=route.ca_bundle,
        proxy_tls=proxy.scheme == "https",
        proxy_host=proxy.hostname,
        proxy_port=proxy.port or (443 if proxy.scheme == "https" else 8080),
        proxy_auth=auth,
    )


class _Stale(Exception):
    """A pooled connection had been closed by the server: nothing of the answer was seen."""


class _Connection(asyncio.Protocol):
    """One socket, one call at a time."""

    def __init__(self, pool: HttpTransport, origin: _Origin) -> None:
        self.pool = pool
        self.origin = origin
        self.transport: asyncio.Transport | None = None
        self.exchange: _Exchange | None = None
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

    def start(self, exchange: _Exchange, head: bytes) -> None:
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


class _Exchange:
    """One request and its answer on a connection: the parser's callbacks and the caller's `Response`."""

    def __init__(self, connection: _Connection, *, head_only: bool) -> None:
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
        if waiting is not None and not waiting.done() and (self._chunks or self._complete or self._has_head):
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
        """Wait for status and headers. Raises _Stale when the connection had been dead from the start."""
        while not self._has_head:
            if self._error is not None:
                if self._header_bytes == 0 and self.connection.closed and self.connection.uses > 1:
                    raise _Stale
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


class _Resolver:
    """Name look-ups in threads of their own, so that a hanging resolver starves nobody; last good addresses survive a
    failure."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")
        self._known: dict[tuple[str, int], tuple[float, list[tuple[int, str]]]] = {}

    async def addresses(self, host: str, port: int) -> list[tuple[int, str]]:
        """(family, numeric address) pairs. Raises OSError."""
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, host)]
        loop = asyncio.get_running_loop()
        known = self._known.get((host, port))
        if known is not None and known[0] > loop.time():
            return known[1]
        try:
            infos = await loop.run_in_executor(
                self._pool, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except OSError:
            if known is None:
                raise
            return known[1]
        found = [(int(family), str(address[0])) for family, _, _, _, address in infos]
        # IPv4 first: a machine without IPv6 routes answers at once, and local servers mostly listen there.
        found.sort(key=lambda pair: pair[0] != socket.AF_INET)
        self._known[host, port] = (loop.time() + RESOLVE_SECONDS, found)
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class HttpTransport:
    """Connections to all providers over HTTP/1.1, pooled by origin."""

    def __init__(self) -> None:
        self._idle: dict[_Origin, deque[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._origins: dict[Route, _Origin] = {}
        self._tls: dict[str | None, tuple[float, ssl.SSLContext]] = {}
        self._resolver = _Resolver()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def open_sockets(self) -> int:
        return len(self._open)

    async def open(
        self, route: Route, request: UpstreamRequest, *, body: AsyncIterator[bytes] | None = None
    ) -> Response:
        """Send one request and wait for the answer's headers.

        `body` streams a large request body (chunked) in place of `request.body`. Raises Unreachable when nothing was
        sent, TimedOut when connecting took too long, Broken when the answer cannot be read. Cancellation closes the
        socket.
        """
        origin = self._origins.get(route)
        if origin is None:
            origin = self._origins[route] = _origin(route)
        head = self._head(origin, request, chunked=body is not None)
        while True:
            connection = self._take(origin)
            if connection is None:
                connection = await self._connect(origin, route.connect)
            exchange = _Exchange(connection, head_only=request.method == "HEAD")
            try:
                connection.start(exchange, head)
                if body is not None:
                    async for piece in body:
                        if piece:
                            await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await connection.write(b"0\r\n\r\n")
                await exchange.head()
            except _Stale:
                exchange.abort()
                if body is not None:
                    raise Broken("the provider closed the connection") from None
                continue
            except BaseException:
                # Cancelled, timed out or broken: a half-used connection is never kept.
                exchange.abort()
                raise
            return exchange

    async def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            connection.close()
        self._resolver.close()

    # the pool

    def keep(self, connection: _Connection) -> None:
        idle = self._idle.setdefault(connection.origin, deque())
        if self._closed or len(idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_SECONDS / 2, self._sweep)

    def forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection.exchange is None:
            try:
                idle.remove(connection)
            except ValueError:
                pass

    def _take(self, origin: _Origin) -> _Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.closed:
                return connection
        return None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = None
        oldest = loop.time() - IDLE_SECONDS
        for idle in self._idle.values():
            while idle and idle[0].idle_since < oldest:
                idle.popleft().close()
        if any(self._idle.values()):
            self._sweeper = loop.call_later(IDLE_SECONDS / 2, self._sweep)

    async def _connect(self, origin: _Origin, seconds: float) -> _Connection:
        try:
            async with asyncio.timeout(seconds):
                return await self._dial(origin)
        except TimeoutError:
            raise TimedOut(f"connecting to the provider took longer than {seconds:g} seconds") from None
        except ssl.SSLCertVerificationError as bad:
            raise Unreachable(f"the provider's certificate is not acceptable: {bad.verify_message}") from bad
        except ssl.SSLError as bad:
            raise Unreachable("the provider does not speak TLS as expected") from bad
        except socket.gaierror as bad:
            raise Unreachable("the provider's host name was not found") from bad
        except OSError as bad:
            if bad.errno in (24, 23):  # EMFILE, ENFILE
                raise Overloaded("the router has no free file descriptors") from bad
            reason = os.strerror(bad.errno).lower() if bad.errno else "connection failed"
            raise Unreachable(f"the provider cannot be reached: {reason}") from bad

    async def _dial(self, origin: _Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        host, port = (origin.proxy_host, origin.proxy_port) if origin.proxy else (origin.host, origin.port)
        first_tls = origin.proxy_tls if origin.proxy else origin.tls
        context = self._context(origin.ca_bundle) if first_tls else None
        failure: OSError | None = None
        for family, address in await self._resolver.addresses(host, port):
            try:
                transport, connection = await loop.create_connection(
                    lambda: _Connection(self, origin),
                    address,
                    port,
                    family=family,
                    ssl=context,
                    server_hostname=host if context else None,
                )
            except ssl.SSLError:
                raise
            except OSError as bad:
                failure = failure or bad
                continue
            self._open.add(connection)
            raw = transport.get_extra_info("socket")
            if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if origin.proxy and origin.tls:
                try:
                    await self._tunnel(connection, origin)
                except BaseException:
                    connection.close()
                    raise
            return connection
        raise failure or OSError("no address")

    async def _tunnel(self, connection: _Connection, origin: _Origin) -> None:
        """CONNECT through the proxy, then TLS to the provider inside."""
        loop = asyncio.get_running_loop()
        connection.tunnel = loop.create_future()
        target = f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
        assert connection.transport is not None
        connection.transport.write(
            f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{origin.proxy_auth}\r\n".encode("latin-1")
        )
        await connection.tunnel
        connection.tunnel = None
        inner = await loop.start_tls(
            connection.transport, connection, self._context(origin.ca_bundle), server_hostname=origin.host
        )
        assert inner is not None
        connection.transport = inner

    def _context(self, ca_bundle: str | None) -> ssl.SSLContext:
        """A verifying context; one with a bundle is made anew when the file changes, so that a new CA needs no
        restart."""
        changed = 0.0
        if ca_bundle is not None:
            try:
                changed = os.stat(ca_bundle).st_mtime
            except OSError as bad:
                raise Unreachable("the provider's ca_bundle cannot be read") from bad
        known = self._tls.get(ca_bundle)
        if known is not None and known[0] == changed:
            return known[1]
        context = ssl.create_default_context(cafile=ca_bundle)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls[ca_bundle] = (changed, context)
        return context

    def _head(self, origin: _Origin, request: UpstreamRequest, *, chunked: bool) -> bytes:
        target = origin.prefix + request.path
        auth = ""
        if origin.proxy and not origin.tls:
            target = f"http://{origin.authority}{target}"
            auth = origin.proxy_auth
        named = "".join([f"{name}: {value}\r\n" for name, value in request.headers.items()])
        if _UNSAFE.search(target) or named.count("\n") != len(request.headers) or "\0" in named:
            raise Unreachable("the path or a header of the provider's request holds characters that HTTP cannot carry")
        if chunked:
            length = "transfer-encoding: chunked\r\n"
        elif request.body or request.method in _WITH_BODY:
            length = f"content-length: {len(request.body)}\r\n"
        else:
            length = ""
        text = (
            f"{request.method} {target} HTTP/1.1\r\nhost: {origin.authority}\r\nuser-agent: {USER_AGENT}\r\n"
            f"accept: */*\r\naccept-encoding: identity\r\n{auth}{named}{length}\r\n"
        )
        try:
            head = text.encode("latin-1")
        except UnicodeEncodeError:
            raise Unreachable(
                "the path or a header of the provider's request holds characters that HTTP cannot carry"
            ) from None
        return head if chunked else head + request.body


_UNSAFE = re.compile(r"[^\x21-\x7e]")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
