"""The arithmetic of money: whole numbers, rounded up once, and never above the bound."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.events import Usage
from router.prices import Price, Rates, Tier

rates = st.integers(0, 200_000_000)
optional_rates = st.none() | rates
tokens = st.integers(0, 3_000_000)


def rates_of(kind: type[Rates], **more: Any) -> st.SearchStrategy[Any]:
    return st.builds(
        kind,
        input=rates,
        output=rates,
        cached=optional_rates,
        cache_write=optional_rates,
        reasoning=optional_rates,
        **more,
    )


@st.composite
def prices(draw: st.DrawFn) -> Price:
    steps = sorted(draw(st.sets(st.tuples(st.integers(0, 2_000_000), st.sampled_from([0, 200])), max_size=3)))
    tiers = tuple(
        draw(rates_of(Tier, above=st.just(above), output_above=st.just(output_above))) for above, output_above in steps
    )
    made: Price = draw(rates_of(Price, tiers=st.just(tiers), call=st.integers(0, 10_000)))
    return made


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    whole, output = draw(tokens), draw(tokens)
    cached = draw(st.none() | st.integers(0, whole))
    written = draw(st.none() | st.integers(0, whole - (cached or 0)))
    reasoning = draw(st.none() | st.integers(0, output))
    return Usage(whole, output, cached, written, reasoning)


def exact(price: Price, usage: Usage) -> Fraction:
    """The same sum, term by term, in fractions."""
    whole, output = usage.input or 0, usage.output or 0
    found: Rates = price
    for tier in price.tiers:
        if whole > tier.above and (not tier.output_above or output > tier.output_above):
            found = tier

    def part(rate: int | None, other: int) -> int:
        return other if rate is None else rate

    cached, written, reasoning = usage.cached or 0, usage.cache_write or 0, usage.reasoning or 0
    total = (
        (whole - cached - written) * found.input
        + cached * part(found.cached, found.input)
        + written * part(found.cache_write, found.input)
        + (output - reasoning) * found.output
        + reasoning * part(found.reasoning, found.output)
    )
    return Fraction(total, 1_000_000) + price.call


@given(prices(), usages())
def test_a_cost_is_the_exact_sum_rounded_up_once(price: Price, usage: Usage) -> None:
    cost, wanted = price.cost(usage), exact(price, usage)
    assert type(cost) is int
    assert wanted <= cost < wanted + 1


@given(prices(), usages(), st.integers(0, 100_000), st.integers(0, 100_000))
def test_no_usage_within_the_bound_costs_more_than_the_bound(
    price: Price, usage: Usage, more: int, longer: int
) -> None:
    assert price.cost(usage) <= price.bound((usage.input or 0) + more, (usage.output or 0) + longer)


@given(prices(), usages())
def test_parts_larger_than_the_whole_never_make_a_cost_negative(price: Price, usage: Usage) -> None:
    odd = Usage(usage.input, usage.output, cached=9_999_999, cache_write=9_999_999, reasoning=9_999_999)
    assert price.cost(odd) >= 0


CHEAP = Price(input=150_000, output=600_000, cached=75_000)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        pytest.param(Usage(), 0, id="nothing is known"),
        pytest.param(Usage(0, 0), 0, id="nothing was used"),
        pytest.param(Usage(1, 0), 1, id="a fraction is rounded up"),
        pytest.param(Usage(1_000_000, 0), 150_000, id="a million of input"),
        pytest.param(Usage(None, 1_000_000), 600_000, id="a million of output"),
        pytest.param(Usage(1_000_000, 0, 400_000), 120_000, id="cached is a part of input"),
        pytest.param(
            Usage(1_000_000, 0, None, 400_000), 150_000, id="a part without a price of its own costs the whole's"
        ),
        pytest.param(Usage(0, 1_000_000, None, None, 500_000), 600_000, id="reasoning costs what output costs"),
    ],
)
def test_a_cost(usage: Usage, cost: int) -> None:
    assert CHEAP.cost(usage) == cost


LONG = Price(
    input=1_000_000,
    output=2_000_000,
    tiers=(
        Tier(above=0, output_above=200, input=1_000_000, output=8_000_000),
        Tier(above=1000, input=4_000_000, output=16_000_000),
    ),
)


@pytest.mark.parametrize(
    ("prompt", "output", "cost"),
    [
        pytest.param(1000, 200, 1000 + 400, id="at both thresholds the lower price holds"),
        pytest.param(1000, 201, 1000 + 8 * 201, id="a long answer"),
        pytest.param(1001, 10, 4 * 1001 + 160, id="a long prompt, for the whole call"),
        pytest.param(1001, 201, 4 * 1001 + 16 * 201, id="both"),
    ],
)
def test_a_tier_holds_for_the_whole_call(prompt: int, output: int, cost: int) -> None:
    assert LONG.cost(Usage(prompt, output)) == cost


def test_images_are_paid_by_number_and_not_by_their_tokens_too() -> None:
    price = Price(input=300_000, output=2_500_000, image=39_000, image_tokens=1290)
    assert price.cost(Usage(10, 1290), images_out=1) == 3 + 39_000
    assert price.cost(Usage(10, 1300), images_out=1) == 28 + 39_000
    assert price.bound(10, 1300) >= price.cost(Usage(10, 1300), images_out=1)
    assert Price(image=40_000).cost(Usage(), images_out=3) == 120_000


def test_images_are_reserved_for_every_answer() -> None:
    assert Price(image=40_000).bound(10, 10, 3) == 3 * 4 * 40_000
    assert Price(image=40_000, max_images=1).bound(10, 10, 3) == 3 * 40_000
    assert Price(image=40_000).bound(10, 0) == 0
    counted = Price(output=2_500_000, image=39_000, image_tokens=1290)
    assert counted.bound(0, 10, 1) >= counted.cost(Usage(0, 10), images_out=4)


def test_a_call_has_a_price_of_its_own() -> None:
    assert Price(call=5000).cost(Usage()) == 5000
    assert not Price(call=5000).free
    assert Price(source="local").free
