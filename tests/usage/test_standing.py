"""Where limits stand, from counters as the ledger writes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest

from router.limits import Limit
from router.standing import TEAM, Standing, in_usd, rate_name, standing, standing_json, tightest
from router.store import Store
from tests.usage.conftest import NOON, Ledger

KEY = "k" * 12


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def cost(window: str, amount: int, currency: str = "usd", models: str = "") -> Limit:
    return Limit(
        measure="cost", window=cast("Any", window), amount=amount, currency=cast("Any", currency), models=models
    )


async def look(store: Store, limits: Sequence[Limit], zone: str = "UTC", scope: str = KEY, now: float = NOON) -> Any:
    found = await standing(store, "default", {scope: limits}, zone=ZoneInfo(zone), rate=7.1, now=now)
    return [standing_json(one) for one in found]


async def test_every_kind_of_limit(store: Store, ledger: Ledger) -> None:
    limits = [
        cost("day", 5_000_000),
        cost("total", 20_000_000),
        Limit(measure="requests", window="month", amount=100),
        Limit(measure="tokens", window="week", amount=1000, models="gpt-4*"),
        Limit(measure="running", window="now", amount=4),
        Limit(measure="requests", window="total", amount=0),
    ]
    await ledger.counted(
        "default",
        KEY,
        {
            "budget_day:w": at("2026-11-22T00:00Z"), "budget_day:s": 1_250_000, "budget_day:h": 250_000,
            "budget_total:w": 0, "budget_total:s": 25_000_000, "budget_total:h": 0,
            "max_requests_month:w": at("2026-11-01T00:00Z"), "max_requests_month:s": 7, "max_requests_month:h": 1,
            "max_tokens_week[gpt-4*]:w": at("2026-11-16T00:00Z"), "max_tokens_week[gpt-4*]:s": 900,
            "concurrency:w": 0, "concurrency:h": 3,
        },
    )  # fmt: skip
    assert await look(store, limits) == [
        {"name": "budget_day", "limit": 5.0, "spent": 1.25, "held": 0.25, "remaining": 3.5, "unit": "usd",
         "resets_at": "2026-11-23T00:00:00Z"},
        {"name": "budget_total", "limit": 20.0, "spent": 25.0, "held": 0.0, "remaining": 0.0, "unit": "usd",
         "resets_at": None},
        {"name": "max_requests_month", "limit": 100, "spent": 7, "held": 1, "remaining": 92, "unit": "requests",
         "resets_at": "2026-12-01T00:00:00Z"},
        {"name": "max_tokens_week[gpt-4*]", "limit": 1000, "spent": 900, "held": 0, "remaining": 100, "unit": "tokens",
         "resets_at": "2026-11-23T00:00:00Z"},
        {"name": "concurrency", "limit": 4, "spent": 0, "held": 3, "remaining": 1, "unit": "calls", "resets_at": None},
        {"name": "max_requests", "limit": 0, "spent": 0, "held": 0, "remaining": 0, "unit": "requests",
         "resets_at": None},
    ]  # fmt: skip


async def test_a_window_that_is_over_counts_nothing(store: Store, ledger: Ledger) -> None:
    counted = {"budget_day:w": at("2026-11-21T16:00Z"), "budget_day:s": 1_000_000, "budget_day:h": 5}
    await ledger.counted("default", KEY, counted)
    (utc,) = await look(store, [cost("day", 5_000_000)])
    assert (utc["spent"], utc["held"]) == (0, 0)
    # In Shanghai the same counter began this midnight, and ends at 16:00 UTC.
    (shanghai,) = await look(store, [cost("day", 5_000_000)], "Asia/Shanghai")
    assert (shanghai["spent"], shanghai["resets_at"]) == (1, "2026-11-22T16:00:00Z")


async def test_yuan_are_counted_in_dollars_and_told_in_yuan(store: Store, ledger: Ledger) -> None:
    await ledger.counted("default", TEAM, {"budget_total:w": 0, "budget_total:s": 1_000_000, "budget_total:h": 0})
    (found,) = await look(store, [cost("total", 300_000_000, "cny")], scope=TEAM)
    assert found == {
        "name": "team.budget_total", "limit": 300.0, "spent": 7.1, "held": 0.0, "remaining": 292.9,
        "unit": "cny", "resets_at": None,
    }  # fmt: skip
    assert in_usd(300_000_000, "cny", 7.5) == Decimal(40)
    assert in_usd(300_000_000, "usd", 7.5) == Decimal(300)


async def test_rates_count_the_last_sixty_seconds(store: Store) -> None:
    now = int(NOON)
    fields = {"s": 99, "t": now - 90, "l": now - 10, str(now - 90): 50, str(now - 60): 5, str(now - 10): 7}
    rpm = Limit(measure="requests", window="minute", amount=20)
    await cast("Any", store.redis).hset(rate_name("default", KEY, "rpm"), mapping=fields)
    (found,) = await look(store, [rpm])
    assert (found["spent"], found["remaining"], found["held"]) == (12, 8, 0)
    assert found["resets_at"] == datetime.fromtimestamp(now + 51, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    (found,) = await look(store, [rpm], now=NOON + 60)
    assert (found["spent"], found["resets_at"]) == (0, None)
    (found,) = await look(store, [Limit(measure="tokens", window="minute", amount=20)])
    assert (found["spent"], found["resets_at"]) == (0, None)


async def test_no_limits_ask_nothing(store: Store) -> None:
    assert await look(store, []) == []


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ([], None),
        ([Standing("rpm", Limit(measure="requests", window="minute", amount=1), 0, 0, None)], None),
        ([Standing("only gpt", cost("total", 1, models="gpt*"), 0, 0, None)], None),
        ([Standing("day", cost("day", 1), 0, 0, 1), Standing("month", cost("month", 100), 0, 0, 1)], "month"),
        ([Standing("own", cost("total", 100), 0, 0, 1), Standing("team", cost("total", 900), 850, 0, 1)], "team"),
        ([Standing("month", cost("month", 1), 0, 0, 1), Standing("total", cost("total", 100), 0, 0, 1)], "total"),
    ],
)
def test_the_limit_that_a_balance_means(found: Sequence[Standing], name: str | None) -> None:
    chosen = tightest(found)
    assert (chosen.name if chosen is not None else None) == name
