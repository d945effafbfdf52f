"""Every case of tests/fixtures/vendors through the engine and the HTTP transport, against a provider on a real socket.

The provider gives the case's bytes in pieces of 1, 7 or all, and frames them in turn by chunks, by content-length and
by closing the connection, so that each case meets each framing. What it was asked and what the client got must be the
files' bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from msgspec import Struct

from providers import registry
from providers.errors import SwitchyardError, UnsupportedFeature
from providers.vendor import Vendor
from providers.wire import Wire
from router.config import ProviderConfig
from router.engine import Engine, Job
from router.health import Health
from router.provider import Provider, compile_provider
from router.routing import Attempt, Plan, Target
from router.trace import Trace
from router.transport import USER_AGENT, HttpTransport
from router.watch import Watch
from tests.wires.cases import CHUNKS, CREATED, KEY, NO_SPEC, REQUEST_ID, ROOT, VENDORS, Answer, Case, cases, run, stamp

FOLDERS = sorted(path.name for path in ROOT.iterdir())
FRAMINGS = ("chunked", "length", "close")
TYPES = {".sse": "text/event-stream; charset=utf-8", ".ndjson": "application/x-ndjson", ".json": "application/json"}
PREFIX = "/some/path/v1"
"""The path of the base URL where the vendor has none of its own."""
OWN_HEADERS = {"host", "user-agent", "accept", "accept-encoding", "content-length", "content-type"}
"""What every request carries; beside it only what the case's upstream_request names."""


class Script(Struct):
    """How the provider answers the next request, and what it saw of it."""

    status: int
    headers: Mapping[str, str]
    pieces: list[bytes]
    framing: str
    hold: asyncio.Event | None = None
    """Awaited when `hold_at` bytes of the body have been sent."""
    hold_at: int = 0
    line: str = ""
    seen: dict[str, str] = {}
    body: bytes = b""
    requests: int = 0


class Upstream:
    """One provider; the scripts are set one after the other."""

    def __init__(self) -> None:
        self.script: Script | None = None
        self.port = 0
        self.open: set[asyncio.Task[Any]] = set()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
                seen = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
                assert len(seen) == len(fields), "a header twice"
                script = self.script
                assert script is not None
                script.requests += 1
                script.line, script.seen = line, seen
                script.body = await reader.readexactly(int(seen["content-length"]))
                await self.answer(script, writer)
                if script.framing == "close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            # The router closed the connection: where it was told an error it does so at once.
            pass
        finally:
            writer.close()
            self.open.discard(task)

    async def answer(self, script: Script, writer: asyncio.StreamWriter) -> None:
        headers = dict(script.headers)
        if script.framing == "chunked":
            headers["transfer-encoding"] = "chunked"
        elif script.framing == "length":
            headers["content-length"] = str(sum(map(len, script.pieces)))
        else:
            headers["connection"] = "close"
        text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {script.status} As Scripted\r\n{text}\r\n".encode())
        sent = 0
        for piece in script.pieces:
            sent += len(piece)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if script.framing == "chunked" else piece)
            await writer.drain()
            # Let the router read before the next piece, else the kernel hands it several at once.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if script.hold is not None and sent >= script.hold_at:
                async with asyncio.timeout(15):
                    await script.hold.wait()
        if script.framing == "chunked":
            writer.write(b"0\r\n\r\n")
            await writer.drain()


class Client:
    """The client's side."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.content_type = ""
        self.length: int | None = None
        self.parts: list[bytes] = []
        self.ended = False

    async def start(self, content_type: str, length: int | None) -> None:
        assert not self.started.is_set(), "started twice"
        self.content_type, self.length = content_type, length
        self.started.set()

    async def send(self, data: bytes, *, more: bool) -> None:
        assert self.started.is_set(), "bytes before the headers"
        assert not self.ended, "bytes after the end"
        self.parts.append(data)
        self.ended = not more

    def write(self, data: bytes) -> bool:
        assert self.started.is_set(), "bytes before the headers"
        assert not self.ended, "bytes after the end"
        self.parts.append(data)
        return True


class Replay:
    """The engine with one provider, and that provider."""

    def __init__(self, upstream: Upstream, transport: HttpTransport) -> None:
        self.upstream = upstream
        self.transport = transport

    def engine(self) -> Engine:
        """One that has met no rate limit of another case."""
        return Engine(
            # What the litellm vendor's own transport would get goes over HTTP here: the wire is the same.
            {"http": self.transport, "litellm": self.transport},
            Health(time.monotonic, lambda: 0.5),
            {},
            clock=lambda: CREATED + 1.5,
            monotonic=time.monotonic,
        )

    async def case(self, case: Case, size: int, framing: str) -> None:
        """Raises AssertionError where a byte differs."""
        wanted = run(case, size)
        spec: Mapping[str, Any] = case.json("case") or NO_SPEC
        client = case.json("client")
        wire = registry.wire(client["wire"])
        call = wire.read_call(client["op"], client["body"], path_model=client.get("path_model"))
        model = spec.get("model", call.asked_model)
        provider = _provider(case.folder.parent.name, spec, self.upstream.port)
        script = self.upstream.script = _script(case, spec, call.stream, size, framing)
        got = Client()
        if wanted.error is not None and wanted.status == 200:
            # With the failure in the same read there would be nothing to send: it comes after the first content.
            whole = b"".join(script.pieces)
            cut = _first_content(provider.vendor, wire, call, model, whole)
            if size == 0:
                script.pieces = [piece for piece in (whole[:cut], whole[cut:]) if piece]
            script.hold, script.hold_at = got.started, cut
        target = Target(provider, model)
        trace = Trace(REQUEST_ID, CREATED, time.monotonic(), wire.name, call.op, call)
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, stall=10)
        plan = Plan(call.asked_model, "exact", (Attempt(target, "target"),), ())
        raised: SwitchyardError | None = None
        try:
            await self.engine().run(Job(call, wire, plan, trace, got, watch))
        except SwitchyardError as error:
            raised = error
        finally:
            watch.close()
        _check_request(case, script, provider, raised)
        _check_answer(case, wire, wanted, got, trace, raised)


def _provider(folder: str, spec: Mapping[str, Any], port: int) -> Provider:
    name = VENDORS.get(folder, folder)
    vendor = registry.vendor(name, spec.get("options"))
    path = urlsplit(vendor.base_url).path if vendor.base_url else PREFIX
    row = {"vendor": name, "api_key": KEY, "base_url": f"http://127.0.0.1:{port}{path}", "timeouts": {"connect": 15}}
    settings = ProviderConfig.model_validate(row)
    return compile_provider(folder, settings, vendor=vendor, own_listeners=())


def _script(case: Case, spec: Mapping[str, Any], stream: bool, size: int, framing: str) -> Script:
    status = spec.get("status", 200)
    path = case.file("upstream", *(("sse", "ndjson") if stream and status < 400 else ()), "json", "txt")
    body = path.read_bytes() if path is not None else b""
    headers = {
        "content-type": TYPES.get(path.suffix, "text/html") if path is not None else "",
        **spec.get("headers", {}),
    }
    step = size or max(len(body), 1)
    pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    return Script(status, headers, [piece for piece in pieces if piece], framing)


def _first_content(vendor: Vendor, wire: Wire, call: Any, model: str, body: bytes) -> int:
    """How many bytes it takes until there is something to send."""
    lane = vendor.lane(call, wire, stamp(model))
    for position in range(len(body)):
        if any(frame.kind in ("content", "terminal") for frame in lane.feed(body[position : position + 1])):
            return position + 1
    raise AssertionError("no content at all")


def _check_request(case: Case, script: Script, provider: Provider, raised: SwitchyardError | None) -> None:
    wanted = case.json("upstream_request")
    if wanted is None:
        assert script.requests == 0, "the provider was asked, yet there is no upstream_request.json"
        return
    assert script.requests == 1, f"the provider was asked {script.requests} times ({raised})"
    base = urlsplit(provider.base_url)
    assert script.line == f"{wanted.get('method', 'POST')} {base.path}{wanted['path']} HTTP/1.1"
    assert orjson.loads(script.body) == wanted["body"]
    assert script.seen["host"] == base.netloc
    assert script.seen["user-agent"] == USER_AGENT
    assert script.seen["content-type"] == "application/json"
    named = wanted.get("headers", {})
    assert script.seen.items() >= named.items()
    assert script.seen.keys() == OWN_HEADERS | named.keys()
    assert sum(KEY in value for value in script.seen.values()) == 1, "the key goes in one header"
    assert KEY not in script.line
    assert KEY.encode() not in script.body


def _check_answer(
    case: Case, wire: Wire, wanted: Answer, got: Client, trace: Trace, raised: SwitchyardError | None
) -> None:
    path = case.file("answer", "sse", "ndjson", "json")
    assert path is not None
    text = path.read_text(encoding="utf-8")
    if raised is not None:
        assert not got.started.is_set(), "the error was raised although the answer had begun"
        assert wire.write_error(raised, REQUEST_ID).decode() == text
        assert raised.status == wanted.status
        assert type(raised) is type(wanted.error)
        assert isinstance(raised, UnsupportedFeature) == (case.json("upstream_request") is None)
        return
    body = b"".join(got.parts)
    assert body.decode() == text
    assert got.ended, "the answer was not ended"
    assert got.content_type == (wire.whole_type if got.length is not None else wire.stream_type)
    assert got.length in (None, len(body))
    assert type(trace.error) is type(wanted.error)
    assert trace.attempts[0].outcome == ("ok" if wanted.error is None else getattr(wanted.error, "reason", ""))
    assert trace.meter is not None
    assert wanted.meter is not None
    assert trace.meter.usage == wanted.meter.usage
    assert trace.meter.finish == wanted.meter.finish


@asynccontextmanager
async def _replaying() -> Any:
    upstream, transport = Upstream(), HttpTransport()
    server = await asyncio.start_server(upstream.converse, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield Replay(upstream, transport)
    finally:
        await transport.close()
        server.close()
        await server.wait_closed()
        if upstream.open:
            _, stuck = await asyncio.wait(upstream.open, timeout=15)
            assert not stuck, "the router left a connection open"


def _rounds() -> Iterator[Any]:
    for folder in FOLDERS:
        for turn, size in enumerate(CHUNKS):
            yield pytest.param(folder, size, turn, id=f"{folder}-{size or 'all'}")


@pytest.mark.parametrize(("folder", "size", "turn"), list(_rounds()))
async def test_every_case_of(folder: str, size: int, turn: int) -> None:
    failures: list[str] = []
    async with _replaying() as replay:
        for number, case in enumerate(cases(folder)):
            framing = FRAMINGS[(number + turn) % len(FRAMINGS)]
            try:
                async with asyncio.timeout(20):
                    await replay.case(case, size, framing)
            except (AssertionError, TimeoutError, SwitchyardError) as error:
                failures.append(f"{case.id} ({framing}): {type(error).__name__} {error}")
    assert not failures, "\n\n".join(failures)
