"""Who pays what in the end: the rows of the settlement table, one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.errors import Broken, Overloaded, RateLimited
from providers.events import Usage
from providers.wire import Meter
from router.estimate import bound, prompt_bound, prompt_estimate, text_tokens
from router.prices import Price
from router.settlement import Bill, settle, so_far
from router.snapshot import Target
from router.trace import AttemptRecord, Trace
from tests.prices.support import Bench, attempt, chat, embed, finished, meter

PRICE = Price(input=1_000_000, output=10_000_000, cached=100_000, reasoning=20_000_000, image=40_000)
"""A micro-dollar for a token of the prompt, ten for one of the answer."""
TEXT = "What is the capital of Portugal, and why is it not Porto?"
PROMPT = prompt_estimate(chat(TEXT))
BOUND = prompt_bound(chat(TEXT))
SAID = "Lisbon. " * 40
COUNTED = text_tokens(len(SAID), 0)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def bill(trace: Trace, price: Callable[[Target], Price | None] = lambda _: PRICE) -> Bill:
    return settle(trace, price)


def streamed(bench: Bench, seen: Meter, outcome: str = "ok", status: int | None = 200, **more: Any) -> Trace:
    """A stream that one target answered."""
    record = attempt(bench.target("openai", "m"), outcome, status, meter=seen)
    return finished(chat(TEXT, stream=True), record, **more)


def shown(found: Bill) -> tuple[str, int, int | None, int | None]:
    return found.mark, found.requests, found.usage.input, found.usage.output


# --- an answer that is complete


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        pytest.param(Usage(20, 50), ("measured", 20, 50), id="the provider's word"),
        pytest.param(None, ("estimated", PROMPT, COUNTED), id="no usage"),
        pytest.param(Usage(), ("estimated", PROMPT, COUNTED), id="an empty usage"),
        pytest.param(Usage(0, 0), ("estimated", PROMPT, COUNTED), id="zero beside content"),
        pytest.param(Usage(20, 0), ("estimated", 20, COUNTED), id="zero output beside content"),
        pytest.param(Usage(0, 50), ("estimated", PROMPT, 50), id="zero input (a cached prompt at older Ollamas)"),
        pytest.param(Usage(None, 50), ("estimated", PROMPT, 50), id="no input"),
        pytest.param(Usage(-5, 50), ("estimated", PROMPT, 50), id="negative input"),
        pytest.param(Usage(20, -50), ("estimated", 20, COUNTED), id="negative output"),
        pytest.param(Usage(10**9, 50), ("estimated", PROMPT, 50), id="absurd input"),
        pytest.param(Usage(20, 10**9), ("estimated", 20, COUNTED), id="absurd output"),
        pytest.param(Usage(20, 1), ("estimated", 20, COUNTED), id="fewer tokens than the text can have"),
        pytest.param(Usage(9000, 50), ("measured", 9000, 50), id="a provider that added a prompt of its own"),
        pytest.param(Usage(20, 9000, reasoning=8950), ("measured", 20, 9000), id="reasoning that nobody sees"),
        pytest.param(Usage(20, 50, reasoning=200), ("estimated", 20, 250), id="reasoning counted apart"),
        pytest.param(Usage(20, 50, reasoning=10**9), ("estimated", 20, 50), id="absurd reasoning"),
    ],
)
def test_a_complete_answer(bench: Bench, said: Usage | None, wanted: tuple[str, int, int]) -> None:
    found = bill(streamed(bench, meter(SAID, said)))
    assert (found.mark, found.usage.input, found.usage.output) == wanted
    assert found.requests == 1
    assert found.tokens == wanted[1] + wanted[2]
    assert found.metrics.get("estimated", 0) == (wanted[0] == "estimated")


def test_parts_have_their_own_prices(bench: Bench) -> None:
    found = bill(streamed(bench, meter(SAID, Usage(100, 60, cached=40, reasoning=10))))
    assert found.cost == 60 + 4 + 10 * 50 + 20 * 10
    assert found.metrics == {"calls": 1, "in": 100, "cached": 40, "out": 60, "reasoning": 10, "cost": found.cost}


@pytest.mark.parametrize("cached", [101, -1, 10**9])
def test_cached_tokens_beyond_the_prompt_are_paid_in_full(bench: Bench, cached: int) -> None:
    found = bill(streamed(bench, meter(SAID, Usage(100, 60, cached=cached))))
    assert found.cost == 100 + 600
    assert found.usage.cached is None


def test_images_are_paid_by_number(bench: Bench) -> None:
    found = bill(streamed(bench, meter("Here", Usage(20, 5), images=2)))
    assert found.cost == 20 + 50 + 2 * 40_000
    assert found.metrics["media"] == 2


def test_chinese_is_counted_by_the_character(bench: Bench) -> None:
    found = bill(streamed(bench, meter("里斯本是葡萄牙的首都。" * 10)))
    assert found.usage.output == 110


def test_a_whole_answer(bench: Bench) -> None:
    trace = finished(chat(TEXT), attempt(bench.target("openai", "m"), meter=meter(SAID, Usage(20, 50), finish=None)))
    assert shown(bill(trace)) == ("measured", 1, 20, 50)


def test_a_dearer_service_is_charged(bench: Bench) -> None:
    record = attempt(bench.target("openai", "m"), meter=meter(SAID, Usage(20, 50)))
    assert bill(finished(chat(TEXT, service_tier="priority"), record)).cost == 520 * 5 // 2


# --- an answer that is not


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        pytest.param(meter(SAID, None, None), (PROMPT, COUNTED), id="nothing reported"),
        pytest.param(meter(SAID, Usage(20, 10), None), (20, COUNTED), id="counted more than reported"),
        pytest.param(meter(SAID, Usage(20, 90), None), (20, 90), id="reported more than counted"),
    ],
)
@pytest.mark.parametrize(
    ("outcome", "more", "mark"),
    [
        pytest.param("broken", {"error": Broken("cut")}, "estimated", id="broke off"),
        pytest.param("timeout", {"error": Broken("late")}, "estimated", id="fell silent"),
        pytest.param("ok", {"error": Overloaded("shutting down")}, "estimated", id="shut down"),
        pytest.param("aborted", {"client_gone": True}, "aborted", id="client left"),
        pytest.param("ok", {"client_gone": True}, "aborted", id="client stalled"),
    ],
)
def test_an_answer_that_broke_off(
    bench: Bench, seen: Meter, wanted: tuple[int, int], outcome: str, more: dict[str, Any], mark: str
) -> None:
    found = bill(streamed(bench, seen, outcome, **more))
    assert shown(found) == (mark, 1, *wanted)
    assert found.metrics.get("aborted", 0) == (mark == "aborted")
    assert found.metrics.get("errors", 0) == (mark != "aborted")


def test_a_client_that_leaves_after_the_end_pays_the_whole_answer(bench: Bench) -> None:
    found = bill(streamed(bench, meter(SAID, Usage(20, 50)), client_gone=True))
    assert shown(found) == ("measured", 1, 20, 50)


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        pytest.param({"meter": meter(finish=None)}, ("aborted", 1, PROMPT, 0), id="while the provider thought"),
        pytest.param({"meter": None}, ("measured", 0, None, None), id="in the queue"),
        pytest.param(
            {"meter": meter(finish=None), "asked": False}, ("measured", 0, None, None), id="while connecting failed"
        ),
    ],
)
def test_a_client_that_leaves_before_the_first_byte(bench: Bench, record: dict[str, Any], wanted: Any) -> None:
    trace = finished(
        chat(TEXT, stream=True),
        attempt(bench.target("openai", "m"), "aborted", None, **record),
        answered=False,
        client_gone=True,
    )
    assert shown(bill(trace)) == wanted


# --- attempts that failed


FAILED = [
    pytest.param("refused", 400, {}, None, id="400"),
    pytest.param("rate_limited", 429, {}, None, id="429"),
    pytest.param("auth", 401, {}, None, id="401"),
    pytest.param("unavailable", 500, {}, None, id="500"),
    pytest.param("broken", 302, {}, None, id="a redirect"),
    pytest.param("rate_limited", 200, {}, None, id="an error in place of the answer"),
    pytest.param("rate_limited", None, {}, None, id="an error without a status"),
    pytest.param("unreachable", None, {"asked": False}, None, id="out of reach"),
    pytest.param("timeout", None, {"asked": False}, None, id="connecting took too long"),
    pytest.param("overloaded", None, {"meter": None}, None, id="no place"),
    pytest.param("unsupported", None, {"meter": None}, None, id="it cannot do this"),
    pytest.param("broken", None, {}, None, id="the connection was lost before an answer began"),
    pytest.param("timeout", None, {}, (PROMPT, 0), id="silence"),
    pytest.param("broken", 200, {}, (PROMPT, 0), id="garbage"),
    pytest.param("broken", 200, {"meter": meter(finish=None, usage=Usage(33, 7))}, (33, 7), id="garbage with usage"),
    pytest.param("unavailable", 200, {"meter": meter(finish=None, usage=Usage(33, 7))}, (33, 7), id="usage, an error"),
    pytest.param("unavailable", 500, {"meter": meter(finish=None, usage=Usage(33, 7))}, None, id="500 with usage"),
    pytest.param(
        "broken", 200, {"meter": meter(finish=None, usage=Usage(33, 10**5))}, (33, BOUND - 33), id="much output"
    ),
    pytest.param("broken", 200, {"meter": meter(finish=None, usage=Usage(10**5, 7))}, (BOUND, 0), id="a long prompt"),
]


@pytest.mark.parametrize(("outcome", "status", "more", "paid"), FAILED)
def test_an_attempt_that_failed(
    bench: Bench, outcome: str, status: int | None, more: dict[str, Any], paid: tuple[int, int] | None
) -> None:
    record = attempt(bench.target("openai", "m"), outcome, status, **{"meter": meter(finish=None), **more})
    found = bill(finished(chat(TEXT), record, answered=False, error=RateLimited("no")))
    assert found.requests == (paid is not None)
    assert found.metrics["errors"] == 1
    if paid is None:
        assert (found.mark, found.tokens, found.cost) == ("measured", 0, 0)
    else:
        assert (found.mark, found.usage.input, found.usage.output) == ("estimated", *paid)


@pytest.mark.parametrize(("outcome", "status", "more", "paid"), FAILED)
def test_an_attempt_that_failed_before_another_answered(
    bench: Bench, outcome: str, status: int | None, more: dict[str, Any], paid: tuple[int, int] | None
) -> None:
    first = attempt(bench.target("openai", "m"), outcome, status, **{"meter": meter(finish=None), **more})
    second = attempt(bench.target("gemini", "m"), meter=meter(SAID, Usage(20, 50)))
    found = bill(finished(chat(TEXT), first, second, fallback=outcome))
    extra = paid or (0, 0)
    assert shown(found) == ("estimated" if paid else "measured", 1, 20 + extra[0], 50 + extra[1])
    assert found.cost == 20 + 500 + min(extra[0] + 10 * extra[1], BOUND)
    assert found.metrics["fallbacks"] == 1
    assert [part.target.provider.name for part in found.parts] == (["openai"] if paid else []) + ["gemini"]


def test_the_text_of_an_error_is_no_answer(bench: Bench) -> None:
    """Through a real lane: a stream whose first event is an error, and one that fails after it began."""
    from providers.registry import vendor, wire
    from providers.wire import Stamp

    error = b'data: {"error": {"message": "%s", "type": "server_error"}}\n\n' % (b"sorry " * 500)
    piece = b'data: {"id": "a", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}]}\n\n'
    for said, chars in ((error, 0), (piece + error, 2)):
        lane = vendor("openai").lane(chat(TEXT, stream=True), wire("openai"), Stamp("id", 1.0, lambda: 1.0, "m"))
        assert any(frame.kind == "error" for frame in lane.feed(said))
        assert lane.meter.chars == chars


# --- embeddings, and calls that ask nobody


def test_embeddings_have_no_output(bench: Bench) -> None:
    record = attempt(bench.target("openai", "m"), meter=meter(usage=Usage(7, 5), finish=None))
    assert shown(bill(finished(embed("Hello"), record))) == ("measured", 1, 7, 0)
    record = attempt(bench.target("openai", "m"), meter=meter(usage=None, finish=None))
    found = bill(finished(embed([[1, 2, 3]]), record))
    assert shown(found) == ("estimated", 1, 3, 0)


def test_a_call_that_was_never_understood_or_asked_nobody_is_free() -> None:
    empty = Trace("id", 0.0, 0.0, "openai", "chat")
    assert shown(settle(empty, lambda _: PRICE)) == ("measured", 0, None, None)
    empty.call = chat(TEXT)
    found = settle(empty, lambda _: PRICE)
    assert (found.tokens, found.cost, found.metrics) == (0, 0, {"calls": 1})


# --- prices that nobody knows


def test_an_unknown_price_is_marked_and_adds_nothing(bench: Bench) -> None:
    found = bill(streamed(bench, meter(SAID, Usage(20, 50))), lambda _: None)
    assert (found.unpriced, found.cost, found.tokens, found.mark) == (True, 0, 70, "measured")
    assert found.metrics["unpriced"] == 1


def test_an_endpoint_is_priced_by_the_model_that_it_names(bench: Bench) -> None:
    seen = meter(SAID, Usage(20, 50))
    seen.model = "doubao-seed-2-1-pro-260915"
    record = attempt(bench.target("doubao", "ep-1"), meter=seen)
    found = settle(finished(chat(TEXT), record), lambda target: bench.price("doubao", target.model))
    assert not found.unpriced
    assert found.cost > 0


# --- while it runs


def test_so_far() -> None:
    running = meter("x" * 400, None, None)
    assert so_far(None, 50, PRICE) == (50, 50)
    assert so_far(running, 50, PRICE) == (150, 50 + 1000)
    assert so_far(running, 50, None) == (150, 0)
    running.usage = Usage(70, 120)
    assert so_far(running, 50, PRICE) == (190, 70 + 1200)
    running.usage = Usage(10**9, 10**9)
    assert so_far(running, 50, PRICE) == (150, 50 + 1000)


# --- whatever happens

counts = st.none() | st.integers(-10, 10**7) | st.just(10**12)
usages = st.none() | st.builds(Usage, counts, counts, counts, counts, counts, counts)
records = st.builds(
    lambda outcome, status, text, usage, finish, images, asked: (
        outcome,
        status,
        meter(text, usage, finish, images=images),
        asked,
    ),
    st.sampled_from(["ok", "aborted", "timeout", "broken", "rate_limited", "refused", "unreachable", "running", "new"]),
    st.sampled_from([None, 200, 206, 302, 400, 429, 500]),
    st.text(max_size=300),
    usages,
    st.sampled_from([None, "stop", "length"]),
    st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=300)
@given(st.lists(records, min_size=1, max_size=3), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_a_bill_is_always_whole_and_never_negative(
    drawn: list[Any], answered: bool, gone: bool, failed: bool, stream: bool
) -> None:
    targets = [Target(_provider(index), "m") for index in range(len(drawn))]
    made: list[AttemptRecord] = [
        attempt(target, outcome, status, meter=seen, asked=asked)
        for target, (outcome, status, seen, asked) in zip(targets, drawn, strict=True)
    ]
    error = Broken("no") if failed else None
    call = chat(TEXT, stream=stream)
    found = settle(finished(call, *made, answered=answered, client_gone=gone, error=error), lambda _: PRICE)
    assert found.tokens >= 0
    assert found.cost >= 0
    assert found.requests in (0, 1)
    assert all(type(value) is int and value > 0 for value in found.metrics.values())
    assert found.tokens == sum((part.usage.input or 0) + (part.usage.output or 0) for part in found.parts)
    assert found.cost == sum(part.cost for part in found.parts)
    if answered:  # what was delivered is never free
        seen = made[-1].meter
        if made[-1].asked and seen is not None and seen.chars:
            assert (found.parts[-1].usage.output or 0) >= (seen.chars + seen.wide) // 128
    if not made[-1].asked and not answered and len(made) == 1:
        assert found.tokens == 0


_PROVIDERS: dict[int, Any] = {}


def _provider(index: int) -> Any:
    if index not in _PROVIDERS:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            made = Bench(Path(folder))
        _PROVIDERS.update(enumerate(made.snapshot.providers.values()))
    return _PROVIDERS[index]


@given(st.integers(0, 3000), st.integers(0, 100))
def test_a_call_that_keeps_to_its_limits_never_costs_more_than_was_reserved(length: int, output: int) -> None:
    call = chat("x" * length, max_tokens=100)
    target = Target(_provider(0), "m")
    from router.snapshot import Attempt

    most = bound(call, [Attempt(target, "target")], lambda _: PRICE)
    record = attempt(target, meter=meter("y" * output, Usage(prompt_estimate(call), output or 1)))
    found = settle(finished(call, record), lambda _: PRICE)
    assert found.cost <= most.cost
    assert found.tokens <= most.tokens


@given(usages, st.integers(0, 9), st.sampled_from(["broken", "unavailable", "timeout"]), st.integers(1, 4))
def test_failed_attempts_never_cost_more_than_the_hold_has_for_them(
    said: Usage | None, images: int, outcome: str, answers: int
) -> None:
    from router.snapshot import Attempt

    call = chat(TEXT, max_tokens=100, n=answers)
    first, second = (Target(_provider(index), "m") for index in range(2))
    most = bound(call, [Attempt(first, "target"), Attempt(second, "fallback")], lambda _: PRICE)
    lost = attempt(first, outcome, meter=meter("", said, None, images=images))
    won = attempt(second, meter=meter("Hi", Usage(PROMPT, 100 * answers), images=4 * answers))
    found = settle(finished(call, lost, won, fallback=outcome), lambda _: PRICE)
    assert found.cost <= most.cost
    assert found.tokens <= most.tokens


def test_a_whole_answer_that_broke_off_within_is_charged_its_prompt_at_most(bench: Bench) -> None:
    lost = attempt(bench.target("openai", "m"), "broken", meter=meter(SAID, Usage(20, 10**4), None))
    won = attempt(bench.target("gemini", "m"), meter=meter(SAID, Usage(20, 50)))
    found = bill(finished(chat(TEXT), lost, won, fallback="broken"))
    assert (found.parts[0].cost, found.parts[1].cost) == (BOUND, 520)


def test_tokens_that_were_reported_before_an_error_are_charged_as_before_a_reset(bench: Bench) -> None:
    """Through a real lane: a role, a usage, and then an error or nothing more."""
    from providers.registry import vendor, wire
    from providers.wire import Stamp

    role = b'data: {"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": null}]}\n\n'
    usage = b'data: {"id": "a", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 9}}\n\n'
    error = b'data: {"error": {"message": "no", "type": "server_error"}}\n\n'
    found: list[Bill] = []
    for end in (error, b""):
        call = chat(TEXT, stream=True)
        lane = vendor("openai").lane(call, wire("openai"), Stamp("id", 1.0, lambda: 1.0, "m"))
        frames = [*lane.feed(role + usage + end), *([] if end else lane.close())]
        failed = frames[-1].error
        assert failed is not None
        record = attempt(bench.target("openai", "m"), failed.reason, meter=lane.meter)
        found.append(bill(finished(call, record, answered=False, error=failed)))
    assert shown(found[0]) == shown(found[1]) == ("estimated", 1, 20, 9)
    assert found[0].cost == found[1].cost == 20 + 90
