"""The HTTP client towards providers, against raw sockets: framing, pooling, cancellation, back-pressure, bounds.

Everything runs on uvloop, as the router does, and on the standard loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from providers.errors import Broken, TimedOut, Unreachable, UpstreamError
from providers.vendor import UpstreamRequest
from router import connection
from router.transport import HIGH_WATER, MAX_HEADER_BYTES, HttpTransport, Route
from tests.simulators.dialects import dialect_of
from tests.simulators.scripts import SCRIPTS
from tests.simulators.server import Exchange, Script, Simulator, refused_port

TEXT = b'{"choices": []}' * 20
Use = Callable[[HttpTransport], Awaitable[Any]]
Run = Callable[[Use], Any]


@pytest.fixture(scope="module")
def host() -> Iterator[Simulator]:
    with Simulator(SCRIPTS, dialect_of) as simulator:
        yield simulator


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(use: Use) -> Any:
        async def with_transport() -> Any:
            transport = HttpTransport()
            try:
                return await use(transport)
            finally:
                await transport.close()
                await asyncio.sleep(0)
                assert transport.open_sockets == 0 or not transport._idle

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(with_transport())

    return run


def ask(model: str = "raw", method: str = "POST", path: str = "/v1/chat/completions") -> UpstreamRequest:
    return UpstreamRequest(method, path, {"content-type": "application/json"}, b'{"model": "%b"}' % model.encode())


async def fetch(transport: HttpTransport, route: Route, request: UpstreamRequest | None = None) -> bytes:
    response = await transport.open(route, request or ask())
    try:
        body = await response.read_all(1 << 26)
        response.finish()
        return body
    finally:
        response.abort()


async def no_sockets(transport: HttpTransport) -> None:
    """Wait until all connections are closed."""
    for _ in range(1500):
        if not transport.open_sockets:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{transport.open_sockets} connections are left")


def raw(*pieces: bytes, close: bool = False) -> Script:
    """Sends the pieces, each in a write of its own."""

    async def script(x: Exchange) -> None:
        for piece in pieces:
            await x.send(piece)
            if len(pieces) > 1:
                await asyncio.sleep(0.0005)
        if close:
            x.peer.close()

    return script


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(TEXT) + TEXT
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Two: a\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(TEXT[at : at + 37]), TEXT[at : at + 37]) for at in range(0, len(TEXT), 37))
    + b"0\r\nX-Trailer: 1\r\n\r\n"
)
TO_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + TEXT
FRAMINGS = {"length": (LENGTH, False), "chunked": (CHUNKED, False), "close": (TO_CLOSE, True)}


@pytest.mark.parametrize(("answer", "close"), FRAMINGS.values(), ids=FRAMINGS)
def test_bodies_cut_anywhere(run: Run, host: Simulator, answer: bytes, close: bool) -> None:
    """At every byte once into two, and once a byte at a time."""

    async def use(transport: HttpTransport) -> None:
        route = Route(host.url)
        for at in range(1, len(answer), 11):
            host.scripts["raw"] = raw(answer[:at], answer[at:], close=close)
            assert await fetch(transport, route) == TEXT, at
        host.scripts["raw"] = raw(*(answer[at : at + 1] for at in range(len(answer))), close=close)
        assert await fetch(transport, route) == TEXT

    before = len(host.peers)
    run(use)
    if not close:
        assert len(host.peers) - before == 1, "one connection for all"


@pytest.mark.parametrize(
    ("answer", "close"),
    [
        (LENGTH[:-1], True),
        (CHUNKED[:-1], True),
        (CHUNKED[: len(CHUNKED) // 2], True),
        (b"HTTP/1.1 200 OK\r\nContent-Le", True),
        (b"", True),
        (b"garbage\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx", False),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", False),
    ],
    ids=["short length", "no last chunk", "half the chunks", "half a header", "nothing", "garbage", "bad chunk",
         "upgrade", "brotli", "no gzip"],
)  # fmt: skip
def test_broken_answers(run: Run, host: Simulator, answer: bytes, close: bool) -> None:
    host.scripts["raw"] = raw(answer, close=close)

    async def use(transport: HttpTransport) -> None:
        with pytest.raises(Broken):
            async with asyncio.timeout(15):
                await fetch(transport, Route(host.url))
        host.scripts["raw"] = raw(LENGTH)
        assert await fetch(transport, Route(host.url)) == TEXT

    run(use)


def test_answers_without_a_body(run: Run, host: Simulator) -> None:
    async def use(transport: HttpTransport) -> None:
        for answer in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
            host.scripts["raw"] = raw(answer)
            assert await fetch(transport, Route(host.url)) == b""
        host.scripts["raw"] = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n")
        async with asyncio.timeout(15):
            assert await fetch(transport, Route(host.url), ask(method="HEAD")) == b""
        host.scripts["raw"] = raw(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n", LENGTH)
        assert await fetch(transport, Route(host.url)) == TEXT

    run(use)


def test_what_is_sent(run: Run, host: Simulator) -> None:
    host.scripts["raw"] = raw(LENGTH)

    async def use(transport: HttpTransport) -> None:
        await fetch(transport, Route(host.url + "/prefix/"))

    run(use)
    request = host.requests[-1]
    assert request.path == "/prefix/v1/chat/completions"
    assert request.headers["host"] == f"127.0.0.1:{host.port}"
    assert request.headers["content-length"] == str(len(request.body))
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("path", ["/v1/a b", "/v1/a\r\nx-injected: 1", "/v1/ä", "/v1/\0"])
def test_nothing_is_injected(run: Run, host: Simulator, path: str) -> None:
    before = len(host.requests)

    async def use(transport: HttpTransport) -> None:
        with pytest.raises(UpstreamError):
            await transport.open(Route(host.url), ask(path=path))
        bad = UpstreamRequest("POST", "/v1/x", {"x-a": "1\r\nx-injected: 1"}, b"")
        with pytest.raises(UpstreamError):
            await transport.open(Route(host.url), bad)

    run(use)
    assert len(host.requests) == before


def test_a_request_body_in_pieces(run: Run, host: Simulator) -> None:
    host.scripts["answer"] = raw(LENGTH)

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%04d" % number * 1000
            yield b""

    async def use(transport: HttpTransport) -> None:
        request = UpstreamRequest("POST", "/api/blobs/x", {}, b"")
        response = await transport.open(Route(host.url), request, body=pieces())
        assert await response.read_all(1 << 20) == TEXT
        response.finish()

    run(use)
    host.scripts["answer"] = SCRIPTS["answer"]
    assert len(host.requests[-1].body) == 400_000


# --- the pool


def test_a_stale_connection_is_replaced_once(run: Run, host: Simulator) -> None:
    """The server closed it between two calls, or when the second came: the caller does not notice."""
    calls = 0

    async def answers_once(x: Exchange) -> None:
        nonlocal calls
        calls += 1
        if sum(request.peer is x.peer for request in host.requests) > 1:
            x.peer.close()
            return
        await x.send(LENGTH)

    host.scripts["raw"] = answers_once

    async def use(transport: HttpTransport) -> None:
        for _ in range(5):
            assert await fetch(transport, Route(host.url)) == TEXT

    run(use)
    assert calls == 9


def test_a_fresh_connection_is_not_retried(run: Run, host: Simulator) -> None:
    """A call that a server has received may have been done: it is not sent again."""
    host.scripts["raw"] = raw(close=True)
    before = len(host.requests)

    async def use(transport: HttpTransport) -> None:
        with pytest.raises(Broken):
            await fetch(transport, Route(host.url))

    run(use)
    assert len(host.requests) - before == 1


def test_a_thousand_calls_against_a_server_that_closes_idle_connections(run: Run, host: Simulator) -> None:
    """Closed right after the answer, a moment later or not at all: no call fails."""
    chance = random.Random(7)

    async def moody(x: Exchange) -> None:
        await x.send(LENGTH)
        pause = chance.choice([None, None, 0.0, 0.0002, 0.001])
        if pause is not None:
            await asyncio.sleep(pause)
            x.peer.close()

    host.scripts["raw"] = moody

    async def use(transport: HttpTransport) -> int:
        async def some(count: int) -> int:
            good = 0
            for _ in range(count):
                good += await fetch(transport, Route(host.url)) == TEXT
            return good

        return sum(await asyncio.gather(*(some(125) for _ in range(8))))

    assert run(use) == 1000


def test_bytes_after_an_answer_spoil_the_connection(run: Run, host: Simulator) -> None:
    """What comes unasked is never taken for the next answer."""
    host.scripts["raw"] = raw(LENGTH + LENGTH.replace(b"choices", b"strange"))

    async def use(transport: HttpTransport) -> None:
        for _ in range(3):
            body = await fetch(transport, Route(host.url))
            assert body == TEXT
            await asyncio.sleep(0.01)

    run(use)


def test_connection_close_is_kept_to(run: Run, host: Simulator) -> None:
    host.scripts["raw"] = raw(LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    before = len(host.peers)

    async def use(transport: HttpTransport) -> None:
        for _ in range(3):
            await fetch(transport, Route(host.url))

    run(use)
    assert len(host.peers) - before == 3


def test_cancelled_calls_leave_nothing(run: Run, host: Simulator) -> None:
    """500 calls cancelled at every stage; then there is no open socket, and five calls work."""
    host.scripts["raw"] = raw(LENGTH[:60])
    chance = random.Random(11)

    async def use(transport: HttpTransport) -> None:
        route = Route(host.url, connect=30.0)

        async def one() -> None:
            task = asyncio.ensure_future(fetch(transport, route, ask(chance.choice(["silent", "raw"]))))
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        for _ in range(25):
            await asyncio.gather(*(one() for _ in range(20)))
        await no_sockets(transport)
        assert not any(transport._idle.values())
        host.scripts["raw"] = raw(LENGTH)
        for _ in range(5):
            assert await fetch(transport, route) == TEXT

    run(use)
    for peer in host.peers[:-1]:
        assert peer.gone.wait(15)


def test_an_unfinished_answer_is_not_reused(run: Run, host: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """`abort` in mid-body closes; `finish` waits a moment for the end and keeps the connection."""
    monkeypatch.setattr(connection, "FINISH_SECONDS", 15.0)
    host.scripts["raw"] = raw(CHUNKED[:200], CHUNKED[200:])

    async def use(transport: HttpTransport) -> None:
        response = await transport.open(Route(host.url), ask())
        await response.read()
        response.abort()
        response.abort()
        await no_sockets(transport)
        response = await transport.open(Route(host.url), ask())
        await response.read()
        response.finish()
        async with asyncio.timeout(10):
            while not any(transport._idle.values()):  # noqa: ASYNC110 - the host ends its answer
                await asyncio.sleep(0.01)
        assert transport.open_sockets == 1
        assert await fetch(transport, Route(host.url)) == TEXT
        assert transport.open_sockets == 1

    before = len(host.peers)
    run(use)
    assert len(host.peers) - before == 2


def test_a_finished_stream_that_goes_on_is_dropped(run: Run, host: Simulator) -> None:
    async def use(transport: HttpTransport) -> None:
        response = await transport.open(Route(host.url), ask("endless-body"))
        await response.read()
        response.finish()
        await no_sockets(transport)

    run(use)


def test_another_route_is_another_connection(run: Run, host: Simulator) -> None:
    """Connections are told apart by everything that says where they lead."""
    host.scripts["raw"] = raw(LENGTH)
    before = len(host.peers)

    async def use(transport: HttpTransport) -> None:
        for url in (host.url, host.url.replace("127.0.0.1", "localhost"), host.url, host.url + "/"):
            assert await fetch(transport, Route(url)) == TEXT

    run(use)
    assert len(host.peers) - before == 2


# --- back-pressure and bounds


def test_reading_stops_when_nobody_takes(run: Run, host: Simulator) -> None:
    sent: list[int] = []

    async def use(transport: HttpTransport) -> None:
        response = await transport.open(Route(host.url), ask("endless-body"))
        last = -1
        async with asyncio.timeout(60):
            while last != host.requests[-1].peer.sent or last < HIGH_WATER:
                last = host.requests[-1].peer.sent
                await asyncio.sleep(0.2)
        sent.append(last)
        async with asyncio.timeout(15):  # it goes on when there is room again
            while host.requests[-1].peer.sent == last:
                assert await response.read()
        response.abort()

    run(use)
    assert sent[0] < 16 * 1024 * 1024, "the kernel's buffers, and little more"


@pytest.mark.parametrize("script", ["huge-headers", "endless-headers"])
def test_headers_are_bounded(run: Run, host: Simulator, script: str) -> None:
    async def use(transport: HttpTransport) -> None:
        async with asyncio.timeout(15):
            with pytest.raises(Broken, match="headers"):
                await fetch(transport, Route(host.url), ask(script))

    run(use)
    if script == "endless-headers":
        assert host.requests[-1].left()
        assert host.requests[-1].peer.sent < MAX_HEADER_BYTES + 16 * 1024 * 1024


def test_a_body_is_bounded(run: Run, host: Simulator) -> None:
    async def use(transport: HttpTransport) -> None:
        response = await transport.open(Route(host.url), ask("endless-body"))
        with pytest.raises(Broken, match="longer than 100000 bytes"):
            await response.read_all(100_000)
        response.abort()

    run(use)


# --- getting there


def test_places_that_cannot_be_reached(run: Run) -> None:
    async def use(transport: HttpTransport) -> None:
        with pytest.raises(Unreachable, match="refused"):
            await transport.open(Route(f"http://127.0.0.1:{refused_port()}"), ask())
        for url in ("ftp://127.0.0.1/x", "http:///x", "nonsense"):
            with pytest.raises(Unreachable):
                await transport.open(Route(url), ask())
        with pytest.raises(UpstreamError):
            await transport.open(Route("http://no-such-host.invalid", connect=2.0), ask())

    run(use)


def test_connecting_takes_no_longer_than_it_may(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs: the deadline holds, and other hosts are not held up."""
    import socket
    import threading

    release = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        release.wait(10)
        return []

    async def use(transport: HttpTransport) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        try:
            with pytest.raises(TimedOut):
                await transport.open(Route("http://hangs.example", connect=0.2), ask())
        finally:
            release.set()
            monkeypatch.undo()

    run(use)


@pytest.mark.parametrize(("answer", "close"), FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("stop_after", [0, 3, 10_000])
def test_relayed_bytes_are_the_ones_that_are_read(
    run: Run, host: Simulator, answer: bytes, close: bool, stop_after: int
) -> None:
    """What a sink takes, and what is read once it has said stop, make up the body."""
    host.scripts["raw"] = raw(*(answer[at : at + 7] for at in range(0, len(answer), 7)), close=close)

    async def use(transport: HttpTransport) -> bytes:
        response = await transport.open(Route(host.url), ask())
        taken: list[bytes] = []

        def sink(data: bytes) -> bool:
            taken.append(data)
            return len(taken) <= stop_after

        try:
            await response.relay(sink)
            assert len(taken) <= stop_after + 1
            return b"".join(taken) + await response.read_all(1 << 20)
        finally:
            response.abort()

    assert run(use) == TEXT


def test_a_relay_ends_with_what_its_sink_raises_and_with_a_cut(run: Run, host: Simulator) -> None:
    async def use(transport: HttpTransport) -> None:
        host.scripts["raw"] = raw(CHUNKED[:-60], CHUNKED[-60:-30])

        def broken_sink(data: bytes) -> bool:
            raise ZeroDivisionError

        response = await transport.open(Route(host.url), ask())
        with pytest.raises(ZeroDivisionError):
            await response.relay(broken_sink)
        response.abort()
        host.scripts["raw"] = raw(CHUNKED[:90], CHUNKED[90:-60], close=True)
        response = await transport.open(Route(host.url), ask())
        await response.relay(lambda data: True)
        with pytest.raises(Broken):
            await response.read()
        response.abort()
        await no_sockets(transport)

    run(use)
