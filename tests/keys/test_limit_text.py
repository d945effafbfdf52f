"""Limits as text: every form that is read, what is refused and how, and what a change does to those that are there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import InvalidRequest
from router.limit_text import (
    MOST_LIMITS,
    amount_text,
    limits_json,
    limits_of_options,
    limits_words,
    merge,
    parse_count,
    parse_limits,
    parse_money,
)
from router.limits import LARGEST, NAMES, Limit


@pytest.mark.parametrize(
    ("text", "micro", "currency"),
    [
        ("5usd", 5_000_000, "usd"),
        ("5 usd", 5_000_000, "usd"),
        ("$5", 5_000_000, "usd"),
        ("US$5", 5_000_000, "usd"),
        ("1.5USD", 1_500_000, "usd"),
        ("0.000001usd", 1, "usd"),
        ("0usd", 0, "usd"),
        ("30cny", 30_000_000, "cny"),
        ("¥30", 30_000_000, "cny"),
        ("￥30", 30_000_000, "cny"),
        ("30元", 30_000_000, "cny"),
        ("30 rmb", 30_000_000, "cny"),
    ],
)
def test_money_is_read_exactly(text: str, micro: int, currency: str) -> None:
    assert parse_money(text, "p") == (micro, currency)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("5", "lacks its currency"),
        (5, "lacks its currency"),
        (5.5, "lacks its currency"),
        ("5eur", "usd or cny"),
        ("$5cny", "usd or cny"),
        ("-5usd", "not negative"),
        ("$-5", "not negative"),
        ("nan", "amount with its currency"),
        ("nanusd", "amount with its currency"),
        ("infusd", "amount with its currency"),
        ("1e3usd", "amount with its currency"),
        ("", "amount with its currency"),
        ("5 5usd", "amount with its currency"),
        ("1,000usd", "usd or cny|amount with its currency"),
        (True, "amount with its currency"),
        (["5usd"], "amount with its currency"),
        ("0.0000001usd", "six decimal places"),
        ("99999999999999usd", "at most 1125899906 usd"),
    ],
)
def test_what_is_no_money_is_refused(value: object, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as caught:
        parse_money(value, "limits.budget.day")
    assert caught.value.param == "limits.budget.day"
    assert caught.value.message.startswith("limits.budget.day")


@pytest.mark.parametrize(
    ("value", "amount"),
    [(60, 60), ("60", 60), (0, 0), ("0", 0), ("100k", 100_000), ("2m", 2_000_000), ("1.5M", 1_500_000), ("2 k", 2000)],
)
def test_counts_are_read(value: object, amount: int) -> None:
    assert parse_count(value, "p", "tokens") == amount


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-1, "not negative"),
        ("-1", "not negative"),
        ("1.5", "not a whole number of tokens"),
        ("0.0001k", "not a whole number"),
        (1.5, "whole number of tokens"),
        (True, "whole number of tokens"),
        ("nan", "whole number of tokens"),
        ("١٢", "whole number of tokens"),
        ("1e9", "whole number of tokens"),
        ("5usd", "whole number of tokens"),
        ("", "whole number of tokens"),
        (LARGEST + 1, "at most"),
        ("9" * 18, "at most"),
        ("9" * 4000, "whole number"),
    ],
)
def test_what_is_no_count_is_refused(value: object, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        parse_count(value, "limits.tpm", "tokens")


ALL: dict[str, Any] = {
    "rpm": 60,
    "tpm": 100_000,
    "concurrency": 4,
    "budget": {"day": "5usd", "total": "20.5usd"},
    "max_requests": {"day": 10, "total": 50},
    "max_tokens": {"month": 2_000_000},
    "models": {"gpt-4*": {"rpm": 5, "budget": {"week": "30cny"}}},
}


def test_json_survives_the_way_there_and_back() -> None:
    limits = merge((), parse_limits(ALL))
    assert limits_json(limits) == ALL
    assert limits_words(limits)[:4] == ["rpm=60", "tpm=100000", "concurrency=4", "budget_day=5usd"]
    assert limits_words(limits)[-1] == "budget_week[gpt-4*]=30cny"


@given(
    st.lists(
        st.builds(
            lambda place, amount, currency, models: Limit(
                measure=place[0],
                window=place[1],
                amount=min(amount, 1_000_000) if place[0] == "running" else amount,
                currency=currency if place[0] == "cost" else "",
                models=models,
            ),
            st.sampled_from(list(NAMES)),
            st.integers(0, LARGEST),
            st.sampled_from(["usd", "cny"]),
            st.sampled_from(["", "gpt-4*", "a"]),
        ),
        max_size=20,
        unique_by=lambda limit: limit.name,
    )
)
def test_any_limits_survive_the_way_there_and_back(limits: list[Limit]) -> None:
    found = merge((), parse_limits(limits_json(limits)))
    assert sorted(found, key=lambda limit: limit.name) == sorted(limits, key=lambda limit: limit.name)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        pytest.param({}, ALL, id="nothing"),
        pytest.param({"rpm": None}, {**ALL, "rpm": ...}, id="one is lifted"),
        pytest.param({"rpm": "none"}, {**ALL, "rpm": ...}, id="by the word, too"),
        pytest.param({"budget": {"day": None}}, {**ALL, "budget": {"total": "20.5usd"}}, id="one window"),
        pytest.param({"budget": None}, {**ALL, "budget": ...}, id="all windows"),
        pytest.param({"max_requests": None}, {**ALL, "max_requests": ...}, id="all windows, and rpm stays"),
        pytest.param({"max_requests": 7}, {**ALL, "max_requests": {"day": 10, "total": 7}}, id="a bare number"),
        pytest.param(
            {"budget": {"day": "9cny"}}, {**ALL, "budget": {"day": "9cny", "total": "20.5usd"}}, id="replaced"
        ),
        pytest.param({"models": {"gpt-4*": None}}, {**ALL, "models": ...}, id="a pattern"),
        pytest.param(
            {"models": {"gpt-4*": {"rpm": None}}}, {**ALL, "models": {"gpt-4*": {"budget": {"week": "30cny"}}}}
        ),
        pytest.param(None, {}, id="all"),
    ],
)
def test_a_change_is_merged_field_by_field(change: Any, left: dict[str, Any]) -> None:
    found = merge(merge((), parse_limits(ALL)), parse_limits(change))
    assert limits_json(found) == {name: value for name, value in left.items() if value is not ...}


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "limits"),
        ({"rpmm": 5}, "limits.rpmm"),
        ({"budget": "5usd"}, "limits.budget"),
        ({"budget": {"hour": "5usd"}}, "limits.budget"),
        ({"budget": {"day": 5}}, "limits.budget.day"),
        ({"max_tokens": {"total": -1}}, "limits.max_tokens.total"),
        ({"models": {"": {"rpm": 1}}}, "limits.models"),
        ({"models": {"a b": {"rpm": 1}}}, "limits.models"),
        ({"models": {"a[": {"rpm": 1}}}, "limits.models"),
        ({"models": {"a": {"models": {}}}}, "limits.models.a.models"),
        ({"models": None}, "limits.models"),
        ({"concurrency": 10**7}, "limits.concurrency"),
    ],
)
def test_what_is_wrong_is_named(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_limits(value)
    assert caught.value.param == param


def test_there_is_an_end_to_the_number_of_limits() -> None:
    many = {f"m{number}": {"rpm": 1, "tpm": 1} for number in range(MOST_LIMITS // 2 + 1)}
    with pytest.raises(InvalidRequest, match=f"at most {MOST_LIMITS}"):
        merge((), parse_limits({"models": many}))


def test_options_become_the_same_json() -> None:
    found = limits_of_options(
        {"rpm": "60", "tpm": None, "budget_day": "5usd", "budget_total": "none"},
        {"max_requests": ["50", "100/day"], "max_tokens": ["2m/month"]},
        ["gpt-4*:rpm=5,max_requests=9,budget_week=$1", "o3:none"],
    )
    assert found == {
        "rpm": "60",
        "budget": {"day": "5usd", "total": None},
        "max_requests": {"total": "50", "day": "100"},
        "max_tokens": {"month": "2m"},
        "models": {"gpt-4*": {"rpm": "5", "max_requests": {"total": "9"}, "budget": {"week": "$1"}}, "o3": None},
    }
    assert limits_of_options({}, {"max_requests": ["none"]}) == {"max_requests": None}
    assert parse_limits(found)


@pytest.mark.parametrize(
    ("repeated", "for_models"),
    [({"max_requests": ["5/hour"]}, []), ({}, ["rpm=5"]), ({}, ["gpt:"]), ({}, ["gpt:qps=5"]), ({}, [":rpm=5"])],
)
def test_options_that_are_none_are_refused(repeated: dict[str, list[str]], for_models: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        limits_of_options({}, repeated, for_models)


def test_amounts_are_written_without_loss() -> None:
    assert amount_text(Limit(measure="cost", window="day", amount=1, currency="usd")) == "0.000001usd"
    assert amount_text(Limit(measure="cost", window="day", amount=1_500_000, currency="cny")) == "1.5cny"
    assert amount_text(Limit(measure="tokens", window="day", amount=5)) == "5"


@pytest.mark.parametrize(
    ("repeated", "models"),
    [
        ({"max_requests": ["5", "6"]}, []),
        ({"max_requests": ["5/day", "6/Day"]}, []),
        ({"max_requests": ["5", "6/total"]}, []),
        ({"max_tokens": ["none", "5/day"]}, []),
        ({"max_tokens": ["5/day", "none"]}, []),
        ({}, ["x:rpm=1,rpm=2"]),
        ({}, ["x:rpm=1", "x:rpm=2"]),
        ({}, ["x:rpm=1", "x:none"]),
        ({}, ["x:max_requests=1,max_requests_total=2"]),
    ],
)
def test_what_is_given_twice_is_refused(repeated: dict[str, list[str]], models: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        limits_of_options({}, repeated, models)


def test_several_times_and_models_are_not_twice() -> None:
    found = limits_of_options({}, {"max_requests": ["5", "6/day"]}, ["x:rpm=1", "x:tpm=2", "y:rpm=1"])
    assert found == {
        "max_requests": {"total": "5", "day": "6"},
        "models": {"x": {"rpm": "1", "tpm": "2"}, "y": {"rpm": "1"}},
    }
