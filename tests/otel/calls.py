"""Ended calls, made by hand."""

from __future__ import annotations

import time
from typing import Any

from providers.events import Usage
from providers.wire import Meter
from providers.wires.openai import WIRE
from router.otel import Sender
from router.otel_spans import Ended
from router.routing import Target, compile_snapshot
from router.settlement import settle
from router.trace import AttemptRecord, Trace
from tests.routing.support import config_of

TEXT = """
providers:
  one: {vendor: openai-compatible, base_url: "http://one.test/v1", api_key: k}
models:
  chat: {targets: [one/m]}
"""


def ended(sender: Sender, *, model: str = "chat", said: str = "m-1", **body: Any) -> Ended:
    """A streamed call that took half a second, with two providers' answers."""
    target = Target(compile_snapshot(config_of(TEXT)).providers["one"], model)
    call = WIRE.read_call("chat", {"model": model, "messages": [{"role": "user", "content": "Hi"}], **body})
    now = time.monotonic()
    trace = Trace("id1", time.time(), now, "openai", "chat", call=call, context=sender.begin([]))
    for outcome in ("timeout", "ok"):
        record = AttemptRecord(target, outcome, None if outcome == "timeout" else 200, 0.2, started=now)
        record.meter = Meter()
        if trace.context is not None:
            record.span_id, _ = trace.context.attempt()
        trace.attempts.append(record)
    meter = trace.meter = trace.attempts[-1].meter
    assert meter is not None
    meter.usage, meter.finish, meter.model, meter.chars, meter.frames = Usage(7, 3, 2, None, 1), "stop", said, 9, 3
    trace.answered, trace.committed, trace.status, trace.first_content = target, True, 200, now + 0.1
    return Ended(trace, now + 0.5, "chat", settle(trace, lambda _: None), lambda target: "m")
