"""The limits of teams in the metrics, read from a real store: whose are shown, and how often it is asked."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping

import pytest

from router import team_gauges
from router.cabinet import Cabinet
from router.limits import MICRO, Limit
from router.metrics import Rows
from router.periods import zone_of
from router.records import State, TeamRecord, counters_name, new_etag
from router.standing import TEAM, Scope, rate_name, standings
from router.store import Store
from router.team_gauges import FRESH_SECONDS, LATE_SECONDS, TeamGauges

DAY = Limit(measure="cost", window="day", amount=5 * MICRO, currency="usd")
MONTH = Limit(measure="cost", window="month", amount=70 * MICRO, currency="cny")
RATE = Limit(measure="tokens", window="minute", amount=4000)
OF_MODELS = Limit(measure="requests", window="total", amount=9, models="gpt-*")
NOW = 1_795_348_800.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's store takes its time."""
    monkeypatch.setattr(team_gauges, "ANSWER_SECONDS", 20.0)
    monkeypatch.setattr(team_gauges, "FIRST_SECONDS", 20.0)


class Watch:
    """A store's gauges with a clock of their own, and how often they were read."""

    def __init__(self, store: Store) -> None:
        self.now = 0.0
        self.store = store
        self.gauges = TeamGauges(store, lambda: 7.0, lambda: NOW, lambda: self.now)
        self.reads = 0
        gather = self.gauges._cabinet.team_ids

        async def counted() -> list[str]:
            self.reads += 1
            return await gather()

        self.gauges._cabinet.team_ids = counted  # type: ignore[method-assign]  # the real one, counted

    async def team(self, name: str, *limits: Limit, state: State = "active") -> str:
        made = TeamRecord(
            id=f"t{name}",
            name=name,
            created=1,
            limits=limits,
            state=state,
            etag=new_etag(1),
        )
        await Cabinet(self.store).add_team(made)
        return made.id


def values(rows: Rows, name: str) -> Mapping[tuple[str, ...], float]:
    return dict(rows.get(name, ()))


async def test_the_values_are_those_of_the_usage_reports(store: Store) -> None:
    watch = Watch(store)
    limits = (RATE, DAY, OF_MODELS, MONTH)
    team = await watch.team("blue", *limits)
    spent = {"budget_day": (NOW, 2_500_000, 500_000), "budget_month": (NOW - 90 * 86400, 8, 8)}
    for name, numbers in spent.items():
        for part, number in zip("wsh", numbers, strict=True):
            await store.run("HSET", counters_name(team, TEAM), f"{name}:{part}", int(number))
    await store.run("HSET", counters_name(team, TEAM), "max_requests[gpt-*]:s", 3)
    await store.run("HSET", rate_name(team, TEAM, "tpm"), int(NOW) - 5, 700, int(NOW) - 500, 50)
    rows = await watch.gauges.read()
    ((*found,),) = await standings(store, [Scope(team, TEAM, limits, zone_of("UTC"))], rate=7.0, now=NOW)
    scale = {"usd": MICRO, "cny": MICRO}
    for name, part in (("team_limit_spent", "spent"), ("team_limit_held", "held")):
        assert values(rows, name) == {
            ("blue", one.name.removeprefix("team."), one.unit): getattr(one, part) / scale.get(one.unit, 1)
            for one in found
        }
    assert values(rows, "team_limit_spent") == {
        ("blue", "tpm", "tokens"): 700,
        ("blue", "budget_day", "usd"): 2.5,
        ("blue", "max_requests[gpt-*]", "requests"): 3,
        ("blue", "budget_month", "cny"): 0,
    }
    assert values(rows, "team_limit")["blue", "budget_month", "cny"] == 70
    assert values(rows, "team_limits_cut") == {(): 0}


async def test_teams_without_limits_take_no_place(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(team_gauges, "MOST_TEAMS", 3)
    monkeypatch.setattr(team_gauges, "BATCH", 2)
    watch = Watch(store)
    for number in range(5):
        await watch.team(f"a{number}")
        await watch.team(f"b{number}", DAY, state="revoked")
    for number in range(3):
        await watch.team(f"z{number}", DAY)
    rows = await watch.gauges.read()
    assert [labels[0] for labels, _ in rows["team_limit"]] == ["z0", "z1", "z2"]
    assert values(rows, "team_limits_cut") == {(): 0}
    assert caplog.messages == []
    for number in range(3, 5):
        await watch.team(f"z{number}", DAY)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watch.now += FRESH_SECONDS
            rows = await watch.gauges.read()
    assert [labels[0] for labels, _ in rows["team_limit"]] == ["z0", "z1", "z2"]
    assert values(rows, "team_limits_cut") == {(): 2}
    assert len(caplog.messages) == 1, "it is said once"
    assert "the limits of 3 teams; 2 more" in caplog.text


async def test_who_scrapes_at_the_same_time_or_again_reads_once(store: Store) -> None:
    watch = Watch(store)
    await watch.team("blue", DAY)
    found = await asyncio.gather(*(watch.gauges.read() for _ in range(20)))
    assert watch.reads == 1
    assert all(rows is found[0] for rows in found)
    watch.now += FRESH_SECONDS - 0.1
    assert await watch.gauges.read() is found[0]
    assert watch.reads == 1
    await watch.team("red", DAY)
    watch.now += 0.2
    assert {labels[0] for labels, _ in (await watch.gauges.read())["team_limit"]} == {"blue", "red"}
    assert watch.reads == 2


async def test_a_late_answer_leaves_the_last_rows_for_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(store)
    await watch.team("blue", DAY)
    first = await watch.gauges.read()
    assert first
    monkeypatch.undo()  # it is the waiting that is looked at
    watch.now += FRESH_SECONDS
    pid = store.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert await watch.gauges.read() is first, "the store is slow"
        assert watch.gauges._reading is not None
        assert not watch.gauges._reading.done(), "it was not waited for"
        watch.now = LATE_SECONDS + 1
        assert await watch.gauges.read() == {}, "it has been for long"
    finally:
        os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(15):
        while not await watch.gauges.read():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(0.02)
    await watch.gauges.close()
