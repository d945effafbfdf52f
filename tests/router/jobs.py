"""Calls through the engine in virtual time, with providers that are a few lines of script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson

from providers.errors import SwitchyardError
from providers.vendor import UpstreamRequest
from providers.wires.openai import WIRE
from router.engine import Engine, Job
from router.health import Health
from router.routing import Plan, Rights, Snapshot, compile_snapshot, plan
from router.trace import Trace
from router.transport import Response, Route
from router.watch import Watch
from tests.routing.support import config_of

CONFIG = """
providers:
  cloud:
    vendor: openai-compatible
    base_url: http://cloud.test/v1
    api_key: sk-cloud
    timeouts: {connect: 1, first_content: 4, idle: 3, total: 30}
  box:
    vendor: openai-compatible
    base_url: http://box.test/v1
    local: true
    max_concurrency: 1
    queue: 1
    timeouts: {connect: 1, first_content: 10, idle: 3, total: 60}
models:
  chat: {targets: [cloud/m], fallback: [box/m]}
  own: {targets: [box/m], fallback: []}
fallback: []
"""
ANSWER = orjson.dumps(
    {
        "id": "a", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
    }
)  # fmt: skip
REFUSAL = orjson.dumps({"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}})


def chunk(text: str | None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    whole = {
        "id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }  # fmt: skip
    return b"data: %s\n\n" % orjson.dumps(whole)


Step = bytes | float
"""Bytes that come, or seconds until the next ones; `inf` is for ever."""


class Scripted:
    """An answer: its status, then steps."""

    def __init__(self, status: int, steps: Sequence[Step]) -> None:
        self.status = status
        kind = "text/event-stream" if any(b"data:" in step for step in steps if isinstance(step, bytes)) else "x"
        self.headers = {"content-type": kind.replace("x", "application/json")}
        self.aborted = False
        self._steps = list(steps)

    async def read(self) -> bytes:
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, bytes):
                return step
            await asyncio.sleep(min(step, 1e6))
        return b""

    async def relay(self, sink: Callable[[bytes], bool]) -> None:
        while data := await self.read():
            if not sink(data):
                return

    async def read_all(self, limit: int) -> bytes:
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Upstream:
    """The transport: `answers` by host, asked for anew for each request."""

    def __init__(self, **answers: Callable[[], Scripted]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def open(
        self, route: Route, request: UpstreamRequest, *, body: AsyncIterator[bytes] | None = None
    ) -> Response:
        host = route.base_url.removeprefix("http://").partition(".")[0]
        self.asked.append(host)
        return self.answers[host]()


class Screen:
    """The client's side. `slow` is what each send waits for."""

    def __init__(self, slow: Callable[[], Awaitable[None]] | None = None) -> None:
        self.starts = 0
        self.seen = b""
        self._slow = slow

    async def start(self, content_type: str, length: int | None) -> None:
        self.starts += 1

    async def send(self, data: bytes, *, more: bool) -> None:
        if self._slow is not None:
            await self._slow()
        self.seen += data

    def write(self, data: bytes) -> bool:
        if self._slow is None:
            self.seen += data
        return self._slow is None


class Bench:
    """An engine with its health, on the running loop's clock."""

    def __init__(self, upstream: Upstream, *, stall: float = 5.0) -> None:
        loop = asyncio.get_running_loop()
        self.upstream = upstream
        self.stall = stall
        self.snapshot: Snapshot = compile_snapshot(config_of(CONFIG))
        self.health = Health(loop.time, lambda: 0.5)
        self.engine = Engine({"http": upstream}, self.health, {}, clock=loop.time, monotonic=loop.time)
        self.engine.resize(self.snapshot.providers)
        self.watches: list[Watch] = []
        self.traces: list[Trace] = []

    def plan(self, model: str) -> Plan:
        return plan(self.snapshot, model, self.call(model, False).needs, Rights(), lambda *_: None, lambda: 0.5)

    @staticmethod
    def call(model: str, stream: bool) -> Any:
        body: Mapping[str, Any] = {
            "model": model, "stream": stream, "messages": [{"role": "user", "content": "Hi"}],
        }  # fmt: skip
        return WIRE.read_call("chat", dict(body))

    async def left(self, model: str, *, after: float) -> Trace:
        """What is known of a streamed call whose client leaves after some seconds."""
        before = asyncio.all_tasks()
        asked = asyncio.create_task(self.ask(model, stream=True))
        await asyncio.sleep(after)
        for task in asyncio.all_tasks() - before - {asked}:
            task.cancel()  # the call's own task: what the server does when the connection is lost
        await asyncio.gather(asked, return_exceptions=True)
        return self.traces[-1]

    async def ask(
        self, model: str, *, stream: bool = False, seconds: float | None = None, screen: Screen | None = None
    ) -> tuple[Trace, SwitchyardError | None]:
        """Run one call in a task of its own; what is known of it, and the error that it raised."""
        screen = screen or Screen()
        loop = asyncio.get_running_loop()
        trace = Trace("id", loop.time(), loop.time(), "openai", "chat")
        self.traces.append(trace)

        async def run() -> SwitchyardError | None:
            task = asyncio.current_task()
            assert task is not None
            watch = Watch(task, self.stall)
            self.watches.append(watch)
            try:
                await self.engine.run(
                    Job(self.call(model, stream), WIRE, self.plan(model), trace, screen, watch, seconds)
                )
            except SwitchyardError as error:
                return error
            finally:
                watch.close()
            return None

        return trace, await asyncio.create_task(run())
