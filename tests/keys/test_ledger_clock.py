"""A router whose clock is wrong: the store's decides on windows, expiries and the hour of each call."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from providers.errors import QuotaExceeded, StoreUnavailable
from router.changes import TeamChange
from router.checks import Amounts
from router.keys import Change, Keys
from router.known import Known
from router.ledger import Ask, Bill, Ledger
from router.limits import Limit
from router.periods import window, zone_of
from router.records import counters_name
from router.store import Store
from tests.keys.test_ledger import refused

HOUR, DAY = 3600, 86_400
WRONG = (-400 * DAY, -DAY, -HOUR, -60, 0, 60, HOUR, DAY, 40 * DAY)
ZONE = "Asia/Shanghai"
CALLS = tuple(Limit(measure="requests", window=name, amount=5) for name in ("day", "week", "month", "total"))
RATES = (Limit(measure="requests", window="minute", amount=1000), Limit(measure="running", window="now", amount=1000))


def ask(_known: Known, _local_only: bool) -> Ask:
    return Ask(Amounts(tokens=10, cost=10))


async def windows(store: Store, team: str, key: str) -> dict[str, int]:
    found: dict[bytes, bytes] = await cast("Any", store.redis).hgetall(counters_name(team, key))
    return {name.decode()[:-2]: int(value) for name, value in found.items() if name.endswith(b":w")}


@pytest.mark.parametrize("off", WRONG)
async def test_windows_are_those_of_the_stores_clock(store: Store, keys: Keys, off: int) -> None:
    """From the first call on."""
    began = time.time()
    ledger = Ledger(store, keys, clock=lambda: time.time() + off)
    try:
        key, credential = await keys.create(Change(name="k", team="t", limits=(*CALLS, *RATES)))
        await keys.teams.change(key.team, TeamChange(timezone=ZONE))
        holds = await asyncio.gather(
            *(ledger.reserve(credential, call_id=f"c{number}", prepare=ask) for number in range(4))
        )
        holds.append(await ledger.reserve(credential, call_id="last", prepare=ask))
        now = time.time()
        # From the first answer on the hour is the store's, too.
        assert began - 1 <= holds[-1].moment <= now + 1
        for hold in holds:
            ledger.settle(hold, Bill(1, 10, 10))
        with pytest.raises(QuotaExceeded):
            await ledger.reserve(credential, call_id="one more", prepare=ask)
        zone = zone_of(ZONE)
        found = await windows(store, key.team, key.id)
        for name in ("day", "week", "month", "total"):  # one of them may end while the calls are made
            wanted = {window(name, moment, zone)[0] for moment in (began, now)}
            assert found["max_requests" + ("" if name == "total" else f"_{name}")] in wanted
    finally:
        await ledger.close()


async def test_a_clock_that_jumps_while_it_runs(store: Store, keys: Keys) -> None:
    off = 0.0
    ledger = Ledger(store, keys, clock=lambda: time.time() + off)
    try:
        _, credential = await keys.create(Change(name="k", limits=(*CALLS, *RATES)))
        refused = made = 0
        for number, jump in enumerate((0, DAY, -DAY, 40 * DAY, -40 * DAY, HOUR, -HOUR, 0)):
            off = jump
            try:
                ledger.settle(await ledger.reserve(credential, call_id=f"c{number}", prepare=ask), Bill(1, 1, 1))
                made += 1
            except QuotaExceeded:
                refused += 1
        assert (made, refused) == (5, 3), "no jump opens another window"
    finally:
        await ledger.close()


@pytest.mark.parametrize("off", [-DAY, 0, DAY])
async def test_an_expiry_is_by_the_stores_clock(store: Store, keys: Keys, off: int) -> None:
    ledger = Ledger(store, keys, clock=lambda: time.time() + off)
    try:
        _, other = await keys.create(Change(name="other"))
        ledger.settle(await ledger.reserve(other, call_id="first"))  # it has heard the store's clock
        expiry = int(time.time()) + 2
        keys.clock = lambda: expiry - 2.0
        _, credential = await keys.create(Change(name="k", expires_at=expiry))
        assert await refused(ledger, credential) == "This API key has expired."
        assert time.time() >= expiry  # which is the store's clock
    finally:
        await ledger.close()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), StoreUnavailable("not now")])
async def test_a_plan_that_fails_holds_nothing(store: Store, keys: Keys, ledger: Ledger, error: Exception) -> None:
    key, credential = await keys.create(Change(name="k", limits=CALLS))

    def prepare(_known: Known, _local_only: bool) -> Ask:
        raise error

    with pytest.raises(type(error)):
        await ledger.reserve(credential, call_id="c", prepare=prepare)
    assert await windows(store, key.team, key.id) == {}
