"""Around the engine: the caller's own settings, who is tried when all are ill, and what the answer's headers say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from providers.errors import InvalidRequest, RateLimited, SwitchyardError, Unavailable
from providers.wires.openai import WIRE
from router.calls import MAX_TIMEOUT, Calls, _header_text, _seconds, answer_headers
from router.health import FAILURES, OPEN_SECONDS, Health
from router.http import Scope, header, read_body
from router.routing import Plan, Rights, compile_snapshot
from router.runtime import Runtime
from router.trace import AttemptRecord, Trace
from tests.routing.support import config_of

TEXT = """
providers:
  one: {vendor: openai-compatible, base_url: "http://one.test/v1", api_key: k}
  two: {vendor: openai-compatible, base_url: "http://two.test/v1", api_key: k}
  box: {vendor: openai-compatible, base_url: "http://box.test/v1", local: true}
models:
  chat: {targets: [{to: one/m, priority: 1}, {to: two/m, priority: 2}], fallback: [box/m]}
fallback: []
"""


class Sick:
    """The parts of a runtime that planning needs, with the health of three deployments at hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.health = Health(lambda: self.now, lambda: 0.5)
        runtime = SimpleNamespace(
            snapshot=compile_snapshot(config_of(TEXT)), health=self.health, roll=lambda: 0.5, clock=lambda: 0.0
        )
        runtime.unhealthy = lambda provider, model: Runtime.unhealthy(cast("Any", runtime), provider, model)
        runtime.cooling = lambda provider, model: Runtime.cooling(cast("Any", runtime), provider, model)
        self.calls = Calls(cast("Any", runtime))

    def broken(self, *deployments: str) -> None:
        for name in deployments:
            for _ in range(FAILURES):
                self.health.failure(name, Unavailable("it fell over"))

    def limited(self, *deployments: str, seconds: float) -> None:
        for name in deployments:
            self.health.failure(name, RateLimited("too many", retry_after=seconds))

    def plan(self, *, fallback: bool = True) -> Plan:
        call = WIRE.read_call("chat", {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]})
        return self.calls._plan(call, Rights(), fallback=fallback)

    def targets(self, *, fallback: bool = True) -> list[str]:
        return [str(attempt.target) for attempt in self.plan(fallback=fallback).attempts]


def test_the_healthy_come_first_and_the_ill_are_left_out() -> None:
    sick = Sick()
    assert sick.targets() == ["one/m", "two/m", "box/m"]
    sick.broken("one/m")
    assert sick.targets() == ["two/m", "box/m"]
    sick.broken("two/m")
    assert sick.targets() == ["box/m"]
    skipped = sick.plan().skipped[0]
    assert (skipped.reason, skipped.target) == ("unhealthy", "one/m")
    assert skipped.detail == "unavailable; it is tried again in 10 s"


def test_where_only_ill_health_leaves_nobody_all_are_tried() -> None:
    sick = Sick()
    sick.broken("one/m", "two/m")
    assert sick.targets(fallback=False) == ["one/m", "two/m"]
    sick.broken("box/m")
    assert sick.targets() == ["one/m", "two/m", "box/m"]


def test_but_for_those_who_asked_for_a_pause() -> None:
    sick = Sick()
    sick.broken("one/m")
    sick.limited("two/m", seconds=20)
    assert sick.targets(fallback=False) == ["one/m"]


def test_when_all_asked_for_a_pause_the_caller_is_told_how_long() -> None:
    sick = Sick()
    sick.limited("one/m", seconds=20)
    sick.now = 5
    sick.limited("two/m", seconds=30)
    assert sick.targets() == ["box/m"]
    with pytest.raises(RateLimited, match="too many") as told:
        sick.plan(fallback=False)
    assert told.value.retry_after == 15
    assert told.value.status == 503
    sick.now = 6
    with pytest.raises(RateLimited) as later:
        sick.plan(fallback=False)
    assert later.value.retry_after == 14
    assert told.value.retry_after == 15, "what was told is not changed afterwards"
    sick.now = 5 + OPEN_SECONDS + 20
    assert sick.targets(fallback=False) == ["one/m", "two/m"]


@pytest.mark.parametrize(("text", "seconds"), [(None, None), ("20", 20), ("0.5", 0.5), (" 7 ", 7), ("3600", 3600)])
def test_the_callers_deadline(text: str | None, seconds: float | None) -> None:
    assert _seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "nan", "inf", "-inf", "1e9", "3600.1", "soon", "1,5", "0x10", "9" * 5000]
)
def test_a_deadline_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"at most {MAX_TIMEOUT:g}"):
        _seconds(text)


@pytest.mark.parametrize("name", ["m", "模型", "a\r\nset-cookie: x", "a\0b", "é", "a\u2028b", "\x7f", "x" * 300])
def test_a_models_name_in_a_header(name: str) -> None:
    sent = _header_text(name)
    assert all(32 <= byte < 127 for byte in sent)
    assert sent


def test_headers_say_who_answered_and_why() -> None:
    snapshot = compile_snapshot(config_of(TEXT))
    plan = Sick().plan()
    trace = Trace("id1", 0.0, 10.0, "openai", "chat", plan=plan)
    trace.attempts = [AttemptRecord(plan.attempts[0].target), AttemptRecord(plan.attempts[2].target)]
    trace.answered, trace.fallback = plan.attempts[2].target, "timeout"
    trace.upstream_seconds, trace.first_content = 1.5, 12.0
    found = {name.decode(): value.decode() for name, value in answer_headers(trace, 12.5)}
    assert found == {
        "x-request-id": "id1",
        "x-switchyard-attempts": "2",
        "x-switchyard-overhead-ms": "500.00",
        "x-switchyard-model": "m",
        "x-switchyard-provider": "box",
        "x-switchyard-fallback": "timeout",
    }
    assert snapshot.providers.keys() == {"one", "two", "box"}


# --- bodies


class Line:
    """A client that sends these pieces; None: it leaves."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = list(pieces)
        self.asked = 0

    async def __call__(self) -> Scope:
        self.asked += 1
        piece = self.pieces.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}


async def test_a_body_in_pieces() -> None:
    assert await read_body((), Line(b"ab", b"", b"cd"), 4) == b"abcd"
    assert await read_body((), Line(b""), 4) == b""


@pytest.mark.parametrize("pieces", [(b"abcde",), (b"abc", b"de"), (b"abc", b"de", None)])
async def test_a_body_that_is_longer_than_it_may_be(pieces: tuple[bytes | None, ...]) -> None:
    with pytest.raises(SwitchyardError) as refused:
        await read_body((), Line(*pieces), 4)
    assert refused.value.status == 413


async def test_a_body_that_is_announced_too_long_is_not_read() -> None:
    line = Line(b"abc")
    with pytest.raises(SwitchyardError):
        await read_body([(b"content-length", b"5")], line, 4)
    assert line.asked == 0


@pytest.mark.parametrize("pieces", [(None,), (b"ab", None)])
async def test_a_client_that_leaves_while_sending(pieces: tuple[bytes | None, ...]) -> None:
    from router.http import ClientGone

    with pytest.raises(ClientGone):
        await read_body((), Line(*pieces), 4)


def test_the_first_header_of_a_name() -> None:
    headers = [(b"a", b"1"), (b"b", "é".encode("latin-1")), (b"a", b"2")]
    assert header(headers, b"a") == "1"
    assert header(headers, b"b") == "é"
    assert header(headers, b"c") is None
