"""What is counted of a finished call: exactly what its bill says, part by part, under bounded names."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from providers.errors import (
    Broken,
    DeadlineExceeded,
    ModelNotFound,
    RateLimitExceeded,
    Refused,
    StoreUnavailable,
    TimedOut,
)
from providers.events import Usage
from providers.wire import Meter
from router import otel_names
from router.metric_labels import ModelLabels
from router.metrics import Metrics
from router.otel_context import Tracer
from router.otel_spans import Ended, spans_of
from router.routing import Plan, Skipped, Target
from router.settlement import Bill, Part, settle
from router.slots import ALONE, Slot
from router.snapshot import Attempt
from router.trace import Trace
from tests.prices.support import Bench, attempt, chat, finished, meter
from tests.router.test_metric_text import scraped

Sums = Counter[tuple[str, ...]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def bill_of(*parts: Part) -> Bill:
    return Bill("measured", 1, 0, sum(part.cost for part in parts), False, Usage(), {}, parts)


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Values by the labels' values, the ones that are not 0."""
    return {
        tuple(value for label, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(scraped(metrics))
        for sample in family.samples
        if sample.name == f"switchyard_{name}" and sample.value
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_tokens_and_cost_are_the_bills_exactly(bench: Bench, tmp_path: Path, workers: int) -> None:
    dice = random.Random(5)
    slots = [ALONE] if workers == 1 else [Slot(number, workers, tmp_path) for number in range(workers)]
    every = [Metrics("1", slot) for slot in slots]
    names = ModelLabels(bench.snapshot, [("openai", "gpt-5"), ("kimi", "kimi-k2")])
    targets = [bench.target(*name) for name in (("openai", "gpt-5"), ("kimi", "kimi-k2"), ("box", "invented"))]
    tokens, cost = Sums(), Sums()
    for number in range(500):
        parts = []
        for target in dice.choices(targets, k=dice.choice((1, 1, 1, 2, 3))):
            numbers = [dice.choice((None, 0, 1, dice.randrange(10**9))) for _ in range(5)]
            usage = Usage(*numbers)
            parts.append(Part(target, usage, 0, dice.choice((0, 1, 333_333, dice.randrange(10**10))), False, True))
            where = target.provider.name, "other" if target.model == "invented" else target.model
            kinds = ("input", "output", "input_cached", "input_cache_write", "output_reasoning")
            values = (usage.input, usage.output, usage.cached, usage.cache_write, usage.reasoning)
            for kind, value in zip(kinds, values, strict=True):
                tokens[(*where, kind)] += value or 0
            cost["usd", *where] += parts[-1].cost
        trace = finished(chat(), attempt(parts[-1].target), status=200)
        every[number % workers].observe(trace, "route", 1.0, bill_of(*parts), names.of)
    for metrics in every:
        assert samples(metrics, "tokens_total") == {where: amount for where, amount in tokens.items() if amount}
        dollars = samples(metrics, "cost_total")
        assert {where: round(value * 1_000_000) for where, value in dollars.items()} == cost
        assert samples(metrics, "settlements_total") == {("measured",): 500}


def planned(bench: Bench, *targets: tuple[str, str], skipped: tuple[str, ...] = ()) -> Plan:
    attempts = tuple(
        Attempt(Target(bench.snapshot.providers[provider], model), "fallback" if index else "target")
        for index, (provider, model) in enumerate(targets)
    )
    if skipped:
        attempts = tuple(Attempt(one.target, "fallback") for one in attempts)
    return Plan("m", "exact", attempts, tuple(Skipped(name, "unhealthy", "", "target") for name in skipped))


def one(trace: Trace, *, settled: bool = True) -> Metrics:
    metrics = Metrics("1")
    part = Part(trace.answered, Usage(5, 11), 0, 7, False, True) if trace.answered is not None else None
    bill = bill_of(*([part] if part else [])) if settled else None
    metrics.observe(trace, "chat", 3.0, bill, lambda target: target.model)
    return metrics


def test_outcomes(bench: Bench) -> None:
    target = bench.target("openai", "gpt-5")
    plan = planned(bench, ("openai", "gpt-5"), ("box", "local"))
    streamed: dict[str, Any] = {"status": 200, "first_content": 1.0, "plan": plan, "meter": meter("Hello")}
    well = one(finished(chat(stream=True), attempt(target), **streamed))
    assert samples(well, "requests_total") == {("openai", "chat", "openai", "gpt-5", "2xx", "none"): 1}
    assert samples(well, "time_per_output_token_seconds_sum") == {("openai",): 0.2}, "2 s for 10 further tokens"
    assert samples(well, "ttft_seconds_sum") == {("openai",): 1}

    broken = one(finished(chat(stream=True), attempt(target, "broken"), error=Broken("x"), **streamed))
    assert samples(broken, "requests_total") == {("openai", "chat", "openai", "gpt-5", "5xx", "none"): 1}
    assert samples(broken, "time_per_output_token_seconds_count") == {}

    late = one(finished(chat(stream=True), attempt(target, "deadline"), error=DeadlineExceeded("x"), **streamed))
    assert samples(late, "requests_total") == {("openai", "chat", "openai", "gpt-5", "504", "none"): 1}

    left = one(finished(chat(stream=True), attempt(target, "aborted"), client_gone=True, **streamed))
    assert samples(left, "requests_total") == {("openai", "chat", "openai", "gpt-5", "499", "none"): 1}
    assert samples(left, "client_disconnects_total") == {("openai",): 1}
    assert samples(left, "time_per_output_token_seconds_count") == {}

    whole = one(finished(chat(), attempt(target), **streamed))
    assert samples(whole, "ttft_seconds_count") == samples(whole, "time_per_output_token_seconds_count") == {}


def test_one_token_has_no_pace(bench: Bench) -> None:
    target, metrics = bench.target("openai", "gpt-5"), Metrics("1")
    for output in (None, 0, 1):
        trace = finished(chat(stream=True), attempt(target), status=200, first_content=1.0, meter=meter("Hello"))
        metrics.observe(trace, "chat", 3.0, bill_of(Part(target, Usage(5, output), 0, 7, False, True)))
    assert samples(metrics, "ttft_seconds_count") == {("openai",): 3}
    assert samples(metrics, "time_per_output_token_seconds_count") == {}


def test_calls_that_nobody_answered(bench: Bench) -> None:
    missing = finished(chat(), answered=False, status=404, error=ModelNotFound("x"))
    metrics = one(missing, settled=False)
    assert samples(metrics, "requests_total") == {("openai", "chat", "none", "none", "4xx", "none"): 1}
    assert samples(metrics, "settlements_total") == samples(metrics, "tokens_total") == {}
    refused = RateLimitExceeded("x", limit="team.rpm[gpt-*]")
    metrics = one(finished(chat(), answered=False, status=429, error=refused), settled=False)
    assert samples(metrics, "quota_rejections_total") == {("rpm", "team"): 1}
    away = finished(chat(), answered=False, status=503, error=StoreUnavailable("x"))
    assert samples(one(away, settled=False), "store_refusals_total") == {(): 1}
    assert samples(one(away), "store_refusals_total") == {}, "the store has counted it"
    late = finished(chat(), attempt(bench.target("openai", "x"), "timeout"), answered=False, status=504)
    late.error = TimedOut("x")
    metrics = one(late)
    assert samples(metrics, "upstream_attempts_total") == {("openai", "timeout"): 1}
    assert samples(metrics, "requests_total") == {("openai", "chat", "none", "none", "5xx", "none"): 1}
    late.error = DeadlineExceeded("x")
    assert samples(one(late), "requests_total") == {("openai", "chat", "none", "none", "504", "none"): 1}


def test_a_call_that_used_nothing_is_not_measured(bench: Bench) -> None:
    """It counts as settled, with the ledger's sum, and as no provider's count; its span has neither mark nor cost."""
    target = bench.target("openai", "gpt-5")
    refused = finished(chat(), attempt(target, "refused", 401, meter=Meter()), answered=False, status=502)
    answered = finished(chat(), attempt(target, meter=meter("Hi", Usage(3, 1))), status=200)
    metrics = Metrics("1")
    for trace, used in ((refused, False), (answered, True)):
        bill = settle(trace, lambda target: bench.price("openai", "gpt-5"))
        assert bill.mark == "measured"
        metrics.observe(trace, "chat", 3.0, bill)
        trace.context = Tracer(1.0, random.Random(1).getrandbits).begin([])
        span, *_ = spans_of(Ended(trace, 3.0, "chat", bill, lambda target: target.model), {})
        assert [name in span.attributes for name in (otel_names.MARK, otel_names.COST)] == [used, used]
    assert samples(metrics, "settlements_total") == {("none",): 1, ("measured",): 1}


def test_a_fallback_that_answered_nothing_is_none(bench: Bench) -> None:
    """It refused the call, or the client left while it was asked."""
    refused = finished(chat(), attempt(bench.target("box", "x"), "refused"), answered=False, status=400)
    refused.fallback, refused.error = "timeout", Refused("x")
    metrics = one(refused)
    assert samples(metrics, "requests_total") == {("openai", "chat", "none", "none", "4xx", "none"): 1}
    assert samples(metrics, "fallbacks_total") == {}


@pytest.mark.parametrize(
    ("plan", "came_from"),
    [
        ({"targets": (("openai", "a"), ("box", "b"))}, "openai"),
        ({"targets": (("box", "b"),), "skipped": ("kimi/k2/x", "openai/a")}, "kimi"),
    ],
)
def test_where_a_fallback_came_from(bench: Bench, plan: dict[str, tuple[tuple[str, str], ...]], came_from: str) -> None:
    made = planned(bench, *plan["targets"], skipped=plan.get("skipped", ()))  # type: ignore[arg-type]  # names there
    trace = finished(chat(), attempt(bench.target("box", "b")), status=200, fallback="timeout", plan=made)
    assert samples(one(trace), "fallbacks_total") == {(came_from, "box", "timeout"): 1}
