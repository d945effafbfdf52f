"""Which limits count a call, over which windows, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from router.checks import Amounts, Calendar, Check, Windows, checks_of, learn_windows, packed
from router.limits import Limit

SHANGHAI = ZoneInfo("Asia/Shanghai")
UTC = ZoneInfo("UTC")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def one(limit: Limit, **more: Any) -> Check:
    (check,) = checks_of([limit], "k", "", lambda pattern: True, more.get("yuan", 7.0))
    return check


def rows(
    checks: Sequence[Check], moment: float, zone: ZoneInfo = UTC, windows: Windows | None = None
) -> list[list[Any]]:
    taken = packed(checks, Amounts(10, 20, 5), Calendar(zone), moment, {} if windows is None else windows)
    found: list[list[Any]] = msgspec.msgpack.decode(taken)
    return found


def test_days_weeks_and_months_are_those_of_the_zone() -> None:
    checks = [
        one(Limit(measure="cost", window=window, amount=5, currency="usd")) for window in ("day", "week", "month")
    ]
    noon = at("2026-11-22T20:00+00:00")  # Monday the 23rd in Shanghai, Sunday the 22nd in UTC
    starts = [row[5] for row in rows(checks, noon, SHANGHAI)]
    assert starts == [at(f"2026-11-{day}T00:00+08:00") for day in ("23", "23", "01")]
    assert [row[5] for row in rows(checks, noon)] == [at(f"2026-11-{day}T00:00+00:00") for day in ("22", "16", "01")]


def test_a_day_has_23_or_25_hours_when_clocks_change() -> None:
    day = [one(Limit(measure="requests", window="day", amount=5))]
    berlin = ZoneInfo("Europe/Berlin")
    for moment, hours in (
        ("2026-03-29T12:00+02:00", 23),
        ("2026-10-25T12:00+01:00", 25),
        ("2026-10-26T12:00+01:00", 24),
    ):
        (row,) = rows(day, at(moment), berlin)
        assert row[6] - row[5] == hours * 3600


def test_the_window_that_the_store_is_in_goes_on_until_its_end() -> None:
    """Its clock stepped back, or the team's time zone was changed from Shanghai to UTC: a day is not begun twice."""
    day = one(Limit(measure="requests", window="day", amount=5))
    total = one(Limit(measure="requests", window="total", amount=5))
    began, ends = int(at("2026-11-23T00:00+08:00")), int(at("2026-11-24T00:00+08:00"))
    windows: Windows = {}
    learn_windows(windows, [total, day], [0, 0, began, ends])
    for moment in ("2026-11-22T15:30+00:00", "2026-11-22T20:00+00:00", "2026-11-23T15:59+00:00"):
        assert [row[5:7] for row in rows([day, total], at(moment), UTC, windows)] == [[began, ends], [0, 0]]
    (after,) = rows([day], ends, UTC, windows)
    assert (after[5], after[6]) == (at("2026-11-23T00:00+00:00"), at("2026-11-24T00:00+00:00"))
    assert not windows


@pytest.mark.parametrize(
    ("limit", "amounts", "taken"),
    [
        pytest.param(1000, Amounts(600, 0, 100, False), 600, id="its bound"),
        pytest.param(1000, Amounts(9000, 0, 100, True), 1000, id="no maximum named: the minute to itself"),
        pytest.param(1000, Amounts(9000, 0, 100, False), 9000, id="a maximum that is too large is refused"),
        pytest.param(1000, Amounts(9000, 0, 1001, True), 9000, id="a prompt that is too large is refused"),
    ],
)
def test_tokens_of_a_minute(limit: int, amounts: Amounts, taken: int) -> None:
    assert one(Limit(measure="tokens", window="minute", amount=limit)).taken(amounts) == taken


def test_tokens_for_ever_take_the_whole_bound_always() -> None:
    assert one(Limit(measure="tokens", window="total", amount=10)).taken(Amounts(9000, 0, 5, True)) == 9000


def test_yuan_count_as_micro_dollars() -> None:
    assert one(Limit(measure="cost", window="total", amount=70_000_000, currency="cny")).amount == 10_000_000
    assert one(Limit(measure="cost", window="total", amount=5_000_000, currency="usd"), yuan=9.0).amount == 5_000_000


def test_limits_of_some_models_count_only_those() -> None:
    limits = [
        Limit(measure="requests", window="minute", amount=1, models="gpt-*"),
        Limit(measure="running", window="now", amount=2),
    ]
    assert [check.title for check in checks_of(limits, "team", "team.", lambda pattern: False, 7.0)] == [
        "team.concurrency"
    ]
    assert [check.suffix for check in checks_of(limits, "team", "team.", lambda pattern: True, 7.0)] == [
        "w:team:rpm[gpt-*]",
        "n:team",
    ]
