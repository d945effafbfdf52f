"""Upstream HTTP/1.1: open a call, get status, headers and bytes, abort. The only place that opens sockets to providers.

Our own client on asyncio and httptools, since a general one costs more CPU than the rest of a call together. What the
pool keeps to (`connection.py` says what a connection does):

- A connection carries one call at a time and comes back only after a complete message; a cancelled or broken call
  closes its socket at once, so the pool can never hold a poisoned or leaked connection.
- A pooled connection that the server closed before its first answer byte is replaced by a fresh one, once, unseen by
  the caller.
- Redirects are not followed, and environment proxies are ignored.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from providers.errors import Broken, ConnectTimedOut, Overloaded, Unreachable
from providers.vendor import UpstreamRequest
from router.connection import HIGH_WATER, MAX_HEADER_BYTES, Connection, Exchange, Stale
from router.origin import Origin, Route, origin_of
from router.resolver import Resolver

__all__ = ["HIGH_WATER", "MAX_HEADER_BYTES", "HttpTransport", "Response", "Route"]

IDLE_SECONDS = 20.0
"""How long a finished connection is kept; below the keep-alive of the usual servers (uvicorn 5 s is the exception:
see retry)."""
MAX_IDLE = 64
"""Idle connections kept for one origin."""
USER_AGENT = "switchyard"


class Response(Protocol):
    """An answer whose headers have come."""

    status: int
    headers: dict[str, str]

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises Broken when it is cut."""
        ...

    async def relay(self, sink: Callable[[bytes], bool]) -> None:
        """Give bytes to `sink` as they come, without a task switch for each, until it says False, or there is no more.
        `read` goes on from there, and tells the end and failures."""
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


class HttpTransport:
    """Connections to all providers over HTTP/1.1, pooled by origin."""

    def __init__(self) -> None:
        self._idle: dict[Origin, deque[Connection]] = {}
        self._open: set[Connection] = set()
        self._origins: dict[Route, Origin] = {}
        self._tls: dict[str | None, tuple[float, ssl.SSLContext]] = {}
        self._resolver = Resolver()
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
        sent, ConnectTimedOut when connecting took too long, Broken when the answer cannot be read. Cancellation closes
        the socket.
        """
        origin = self._origins.get(route)
        if origin is None:
            origin = self._origins[route] = origin_of(route)
        head = self._head(origin, request, chunked=body is not None)
        while True:
            connection = self._take(origin)
            if connection is None:
                connection = await self._connect(origin, route.connect)
            exchange = Exchange(connection, head_only=request.method == "HEAD")
            try:
                connection.start(exchange, head)
                if body is not None:
                    async for piece in body:
                        if piece:
                            await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await connection.write(b"0\r\n\r\n")
                await exchange.head()
            except Stale:
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

    def keep(self, connection: Connection) -> None:
        idle = self._idle.setdefault(connection.origin, deque())
        if self._closed or len(idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_SECONDS / 2, self._sweep)

    def forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection.exchange is None:
            try:
                idle.remove(connection)
            except ValueError:
                pass

    def _take(self, origin: Origin) -> Connection | None:
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

    async def _connect(self, origin: Origin, seconds: float) -> Connection:
        try:
            async with asyncio.timeout(seconds):
                return await self._dial(origin)
        except TimeoutError:
            raise ConnectTimedOut(f"connecting to the provider took longer than {seconds:g} seconds") from None
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

    async def _dial(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        host, port = (origin.proxy_host, origin.proxy_port) if origin.proxy else (origin.host, origin.port)
        first_tls = origin.proxy_tls if origin.proxy else origin.tls
        context = self._context(origin.ca_bundle) if first_tls else None
        failure: OSError | None = None
        for family, address in await self._resolver.addresses(host, port):
            try:
                transport, connection = await loop.create_connection(
                    lambda: Connection(self, origin),
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

    async def _tunnel(self, connection: Connection, origin: Origin) -> None:
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

    def _head(self, origin: Origin, request: UpstreamRequest, *, chunked: bool) -> bytes:
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
