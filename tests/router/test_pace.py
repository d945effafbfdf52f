"""When a stream's first token came, and the time between tokens: `/metrics` and OpenTelemetry say the same."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from providers.errors import Broken
from providers.registry import vendor, wire
from providers.wire import Stamp
from router.metrics import Metrics
from router.otel_spans import Ended, points_of
from router.settlement import settle
from router.trace import Trace
from tests.prices.support import Bench, attempt, chat, finished
from tests.router.test_metric_counts import samples

FIRST, END = 1.0, 3.0
"""Seconds after the call came in."""
TEXT = "four tokens here "


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def usage(output: int, reasoning: int | None = None) -> dict[str, Any]:
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    said = {"prompt_tokens": 10, "completion_tokens": output, "total_tokens": 10 + output, **details}
    return {**chunk(), "choices": [], "usage": said}


def streamed(bench: Bench, dialect: str, chunks: list[dict[str, Any]], **body: Any) -> Trace:
    """A call whose provider said this."""
    call = chat(dialect=dialect, stream=True, **body)
    lane = vendor("openai").lane(call, wire(dialect), Stamp("id", 1.0, lambda: 1.0, "m"))
    for one in chunks:
        frames = lane.feed(b"data: " + orjson.dumps(one) + b"\n\n")
        assert all(frame.error is None for frame in frames)
    lane.feed(b"data: [DONE]\n\n")
    record = attempt(bench.target("openai", "gpt-5"), meter=lane.meter)
    return finished(call, record, meter=lane.meter, status=200, first_content=FIRST)


def seen(trace: Trace) -> dict[str, float]:
    """What is observed of the call, where `/metrics` and OpenTelemetry say the same."""
    bill = settle(trace, lambda _: None)
    metrics = Metrics("1")
    metrics.observe(trace, "chat", END, bill)
    families = {"first_token": "ttft_seconds", "per_token": "time_per_output_token_seconds"}
    ours = {
        name: sum(samples(metrics, f"{family}_sum").values())
        for name, family in families.items()
        if samples(metrics, f"{family}_count")
    }
    points = {
        point.measure: point.value for point in points_of(Ended(trace, END, "chat", bill, lambda target: target.model))
    }
    assert {name: points[name] for name in ("first_token", "per_token") if name in points} == pytest.approx(ours)
    assert ("first_chunk" in points) == ("first_token" in ours)
    return ours


ROLE = chunk(role="assistant", content="")
SAID = [chunk(content=TEXT) for _ in range(5)]
STOP = chunk("stop")


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
@pytest.mark.parametrize(
    ("chunks", "pace"),
    [
        pytest.param([ROLE, *SAID, STOP, usage(21)], 0.1, id="2 s for 20 further tokens"),
        pytest.param([ROLE, *SAID, STOP, usage(21, 0)], 0.1, id="no reasoning"),
        pytest.param([ROLE, *SAID, STOP, usage(1021, 1000)], 0.1, id="hidden reasoning was before"),
        pytest.param([ROLE, *SAID, STOP, usage(1001, 1000)], None, id="one token beside the reasoning"),
        pytest.param(
            [ROLE, chunk(reasoning_content=TEXT), *SAID, STOP, usage(41, 20)], 0.05, id="reasoning that is streamed"
        ),
        pytest.param(
            [chunk(role="assistant", reasoning=TEXT), *SAID, STOP, usage(41, 20)], 0.05, id="by its other name"
        ),
        pytest.param(
            [chunk(content=[{"type": "thinking", "thinking": [{"text": TEXT}]}]), *SAID, STOP, usage(41, 20)],
            0.05,
            id="as a part",
        ),
        pytest.param([ROLE, *SAID, STOP, usage(0, 1000)], None, id="output that had to be counted"),
        pytest.param([ROLE, *SAID, STOP, usage(1)], None, id="one token"),
    ],
)
def test_tokens_that_came_after_the_first(
    bench: Bench, dialect: str, chunks: list[dict[str, Any]], pace: float | None
) -> None:
    found = seen(streamed(bench, dialect, chunks))
    assert found == pytest.approx({"first_token": FIRST, **({} if pace is None else {"per_token": pace})})


def test_several_choices_have_no_pace(bench: Bench) -> None:
    other = {**chunk(), "choices": [{"index": 1, "delta": {"content": TEXT}, "finish_reason": "stop"}]}
    trace = streamed(bench, "openai", [ROLE, *SAID, STOP, other, usage(42)], n=2)
    assert seen(trace) == {"first_token": FIRST}


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_a_stream_without_content_has_no_first_token(bench: Bench, dialect: str) -> None:
    trace = streamed(bench, dialect, [ROLE, STOP, usage(0)])
    assert seen(trace) == {}
    assert trace.content_at is None
    assert samples_of_overhead(trace) == 1, "but the router's own time counts"


def samples_of_overhead(trace: Trace) -> float:
    metrics = Metrics("1")
    metrics.observe(trace, "chat", END)
    return sum(samples(metrics, "overhead_seconds_count").values())


def test_a_stream_that_did_not_end_well_has_no_pace(bench: Bench) -> None:
    left = streamed(bench, "openai", [ROLE, *SAID, STOP, usage(21)])
    left.client_gone = True
    broken = streamed(bench, "openai", [ROLE, *SAID])
    broken.error = Broken("x")
    for trace in (left, broken):
        metrics = Metrics("1")
        metrics.observe(trace, "chat", END, settle(trace, lambda _: None))
        assert samples(metrics, "ttft_seconds_count")
        assert not samples(metrics, "time_per_output_token_seconds_count")
