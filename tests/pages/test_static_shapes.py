"""Numbers, times and limits as the pages show them."""

from __future__ import annotations

from datetime import UTC
from functools import partial
from zoneinfo import ZoneInfo

import pytest

from router.admin.pages.shapes import Shapes
from router.admin.pages.texts import text
from router.overview_rows import LimitBar

NOON = 1_795_320_000.0
"""2026-11-22 04:00 UTC, noon in Shanghai."""
ENGLISH = Shapes(partial(text, "en"), chinese=False, zone=UTC, rate=7.0)
CHINESE = Shapes(partial(text, "zh"), chinese=True, zone=ZoneInfo("Asia/Shanghai"), rate=7.0)
POOR = Shapes(partial(text, "zh"), chinese=True, zone=UTC)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (987, "987"),
        (9_876, "9,876"),
        (9_999, "9,999"),
        (10_000, "10k"),
        (12_345, "12.3k"),
        (123_456, "123k"),
        (999_949, "1M"),
        (1_234_567, "1.23M"),
        (45_600_000, "45.6M"),
        (7_800_000_000, "7.8B"),
    ],
)
def test_counts(count: int | None, shown: str) -> None:
    assert ENGLISH.compact(count) == shown


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 0, "–"),
        (0, 5, "0%"),
        (1, 5000, "<0.1%"),
        (13, 1000, "1.3%"),
        (1, 8, "12%"),
        (9999, 10_000, ">99.9%"),
        (5, 5, "100%"),
    ],
)
def test_shares(part: int, whole: int, shown: str) -> None:
    assert ENGLISH.percent(part, whole) == shown


@pytest.mark.parametrize(
    ("micro", "shown"),
    [
        (None, "–"),
        (0, "$0.00"),
        (42, "<$0.0001"),
        (420, "$0.0004"),
        (99_000, "$0.0990"),
        (12_345_678, "$12.35"),
        (-1_500_000, "-$1.50"),
        (98_765_430_000, "$98,765.43"),
        (234_567_890_000, "$235k"),
    ],
)
def test_money(micro: int | None, shown: str) -> None:
    assert ENGLISH.money(micro) == shown


def test_money_in_the_readers_currency() -> None:
    assert (ENGLISH.cost(1_000_000), ENGLISH.other_cost(1_000_000)) == ("$1.00", "¥7.00")
    assert (CHINESE.cost(1_000_000), CHINESE.other_cost(1_000_000)) == ("¥7.00", "$1.00")
    assert (POOR.cost(1_000_000), POOR.other_cost(1_000_000)) == ("$1.00", "")
    assert (ENGLISH.sign, CHINESE.sign, POOR.sign) == ("$", "¥", "$")
    assert (ENGLISH.shown(1_500_000), CHINESE.shown(1_500_000)) == (1.5, 10.5)
    assert ENGLISH.exact_money(1_234_567_890) == "$1,234.567890"


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (None, "–"),
        (0.4, "0 ms"),
        (843, "843 ms"),
        (2410, "2.41 s"),
        (34_100, "34.1 s"),
        (59_990, "1 min 00 s"),
        (125_000, "2 min 05 s"),
    ],
)
def test_durations(ms: float | None, shown: str) -> None:
    assert ENGLISH.duration(ms) == shown


def test_times() -> None:
    assert CHINESE.clock(NOON) == "12:00:00"
    assert CHINESE.moment(NOON) == "2026-11-22 12:00:00 UTC+0800"
    assert CHINESE.stamp(NOON) == "2026-11-22T12:00:00+08:00"
    assert CHINESE.when(NOON - 86_400, NOON) == "11-21 12:00"
    assert [ENGLISH.age(NOON - ago, NOON) for ago in (-5, 0, 59, 60, 7200, 200_000)] == [
        "0 s ago", "0 s ago", "59 s ago", "1 min ago", "2 h ago", "2 d ago",
    ]  # fmt: skip
    assert CHINESE.until(NOON + 3600, NOON) == "13:00"
    assert CHINESE.until(NOON + 10 * 86_400, NOON) == "12-02 12:00"


def test_words_of_others_stay_on_one_line() -> None:
    assert ENGLISH.plain("a\nb\x1b[31mc\u2028d") == "a b [31mc d"
    assert ENGLISH.plain("x" * 500, 20) == "x" * 19 + "…"
    assert ENGLISH.word("reason", "unreachable") == "cannot be reached"
    assert ENGLISH.word("reason", "OPENAI_API_KEY is\nnot set") == "OPENAI_API_KEY is not set"
    assert ENGLISH.limit_name("team.budget_day[gpt-*]") == "Team: Budget, day (gpt-*)"


def test_comparison_with_yesterday() -> None:
    assert ENGLISH.change(5, 0) is None
    for now, way, words in (
        (112, "up", "12% above yesterday"),
        (50, "down", "50% below yesterday"),
        (100, "same", "As yesterday"),
        (4200, "up", "42× above yesterday"),
    ):
        found = ENGLISH.change(now, 100)
        assert found is not None
        assert (found.way, found.words) == (way, words)


@pytest.mark.parametrize(
    ("limit", "spent", "held", "tone", "widths"),
    [
        (100, 20, 5, "ok", (20.0, 5.0)),
        (100, 70, 10, "near", (70.0, 10.0)),
        (100, 99, 1, "full", (99.0, 1.0)),
        (100, 150, 50, "full", (75.0, 25.0)),
        (0, 0, 0, "full", (100.0, 0.0)),
    ],
)
def test_bars(limit: int, spent: int, held: int, tone: str, widths: tuple[float, float]) -> None:
    bar = ENGLISH.bar(LimitBar("max_requests_day", "requests", limit, spent, held, int(NOON) + 60), NOON)
    assert (bar.title, bar.tone, (bar.spent, bar.held), bar.resets) == ("Requests, day", tone, widths, "04:01")
    assert bool(bar.holding) is bool(held)


def test_bars_show_the_tightest_first_in_their_own_currency() -> None:
    limits = [
        LimitBar(name, "cny", 10_000_000, spent, 0, None)
        for name, spent in (("budget_day", 1), ("budget_week", 9_000_000))
    ]
    shut = LimitBar("rpm", "requests", 0, 0, 0, None)
    found = ENGLISH.bars([*limits, shut], NOON, 2)
    assert [(bar.title, bar.used) for bar in found] == [("Requests per minute", "0"), ("Budget, week", "¥9.00")]
