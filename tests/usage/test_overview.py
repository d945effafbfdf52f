"""The numbers of the overview page, after calls that the ledger's own functions reserved and settled."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

import pytest

from providers.errors import StoreUnavailable
from router import functions, overview
from router.changes import Change, TeamChange
from router.checks import pack_value
from router.keys import Keys
from router.limits import Limit
from router.overview import Overviews
from router.overview_rows import FIELDS, Sums
from router.periods import HOUR, DaysAgo, Span, day_of, zone_of
from router.records import Key
from router.standing import rate_name
from router.store import Store
from router.usage import METRICS, Query, Team, UsageReader

NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC).timestamp()


@dataclass
class Calls:
    """Settles calls at any time, as the router does."""

    store: Store
    zone: str = "UTC"
    made: int = 0
    rows: list[str] = field(default_factory=list)

    async def settle(
        self, key: Key, at: float = NOW, model: str = "gpt-4o", provider: str = "openai", **used: int
    ) -> None:
        self.made += 1
        hour = str(int(at) // HOUR)
        used = {"calls": 1, **used}
        if "in_" in used:
            used["in"] = used.pop("in_")
        row = {
            "id": f"c{self.made}",
            "time": at,
            "key": key.id,
            "model": model,
            "status": 500 if "errors" in used else 200,
        }
        if "ms" in used:
            row["ms"] = used.pop("ms")
        row |= {"stream": True, "first_content_ms": 10.0 * self.made, "answered_by": f"{provider}/{model}"}
        metrics = [part for name, amount in used.items() for part in (f"{model}\t{provider}\t{name}", amount)]
        bill = [1, 0, 0, f"{key.id}\t", metrics, hour, day_of(at, zone_of(self.zone)).isoformat(), json.dumps(row)]
        prefix = f"sy:{{{key.team}}}:"
        arguments = (prefix, f"c{self.made}", hour, pack_value([]), pack_value(bill), key.id)
        await functions.call(self.store, "settle", [prefix + "holds"], [*arguments])

    async def refuse(self, key: Key, at: float = NOW) -> None:
        """Through a limit that lets nothing pass."""
        self.made += 1
        prefix = f"sy:{{{key.team}}}:"
        check = ["w", f"w:{key.id}:rpm", "rpm", 0, 1, 0, 0, 1]
        row = json.dumps({"id": f"c{self.made}", "time": at, "key": key.id, "model": "gpt-4o"})
        arguments = (
            prefix,
            f"c{self.made}",
            str(int(at) // HOUR),
            pack_value([check]),
            "30000",
            "",
            "",
            "",
            "",
            "0",
            row,
        )
        day = day_of(at, zone_of(self.zone)).isoformat()
        answer = await functions.call(self.store, "reserve", [prefix + "holds"], [*arguments, key.id, day])
        assert answer[0] == 0


@pytest.fixture
def calls(store: Store) -> Calls:
    return Calls(store)


@pytest.fixture
def overviews(keys: Keys) -> Overviews:
    keys.clock = lambda: NOW
    return Overviews(keys, lambda: 7.0)


async def test_the_day_of_all_teams(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    ann, _ = await keys.create(Change(name="ann", team="research"))
    bob, _ = await keys.create(Change(name="bob", team="ops"))
    await calls.settle(ann, in_=100, out=10, cost=50)
    await calls.settle(ann, NOW - 3 * HOUR, in_=10, out=1, cost=5, fallbacks=1)
    await calls.settle(bob, model="kimi-k2", provider="kimi", in_=7, out=3, errors=1)
    await calls.settle(bob, NOW - 14 * HOUR, in_=1000, cost=1)  # yesterday, after this time of day
    await calls.settle(bob, NOW - 25 * HOUR, in_=500, cost=2)  # yesterday, before
    board = await overviews.board()
    assert board.today == Sums(calls=3, errors=1, fallbacks=1, tokens_in=117, tokens_out=14, cost=55)
    assert board.yesterday == Sums(calls=1, tokens_in=500, cost=2)
    assert [hour.sums.calls for hour in board.hours] == [0] * 9 + [1] + [0] * 10 + [1, 0, 0, 2]
    assert board.hours[-1].start == int(NOW) // HOUR * HOUR
    assert [(row.model, row.provider, row.sums.calls, row.sums.cost) for row in board.models] == [
        ("gpt-4o", "openai", 2, 55),
        ("kimi-k2", "kimi", 1, 0),
    ]
    assert [(row.name, row.team, row.sums.calls, row.sums.tokens) for row in board.keys] == [
        ("ann", "research", 2, 121),
        ("bob", "ops", 1, 10),
    ]
    assert [(row.key, row.model, row.status) for row in board.errors] == [("bob", "kimi-k2", 500)]
    assert {row.id for row in board.requests} == {f"c{n}" for n in range(1, 6)}
    assert board.requests_per_minute == 2
    assert board.ttft_p95_ms == 50
    assert (board.zone, board.rate) == ("UTC", 7.0)


async def test_a_key_at_its_limit_is_shown_whatever_it_used(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    await keys.teams.create(
        TeamChange(name="ops", limits=(Limit(measure="cost", window="day", amount=5_000_000, currency="usd"),))
    )
    for number in range(12):
        key, _ = await keys.create(Change(name=f"k{number}", team="ops"))
        await calls.settle(key, cost=100 + number)
    stuck, _ = await keys.create(
        Change(name="stuck", team="ops", limits=(Limit(measure="requests", window="minute", amount=3),))
    )
    await calls.refuse(stuck)
    await calls.refuse(stuck)
    rate = rate_name(stuck.team, stuck.id, "rpm")
    await calls.store.run("HSET", rate, str(int(NOW)), "3", "s", "3", "t", str(int(NOW)), "l", str(int(NOW)))
    board = await overviews.board()
    assert [row.name for row in board.keys] == [*(f"k{n}" for n in range(11, 2, -1)), "stuck"]
    shown = board.keys[-1]
    assert shown.sums == Sums(refused=2)
    assert [(bar.name, bar.limit, bar.spent, bar.unit, bar.share) for bar in shown.limits] == [
        ("rpm", 3, 3, "requests", 1)
    ]
    assert board.today.refused == 2
    assert [(row.key, row.limit, row.status) for row in board.errors] == [("stuck", "rpm", 429)]
    (team,) = board.teams
    assert (team.name, team.limits[0].name, team.limits[0].limit) == ("ops", "team.budget_day", 5_000_000)


async def test_one_key_sees_its_own(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    ann, _ = await keys.create(Change(name="ann", team="research"))
    bob, _ = await keys.create(Change(name="bob", team="research"))
    await calls.settle(ann, in_=100, out=10, cost=50)
    await calls.settle(ann, NOW - 20 * HOUR, model="kimi-k2", provider="kimi", in_=3)
    await calls.settle(bob, in_=1, cost=7)
    await calls.refuse(ann)
    await calls.refuse(bob)
    own = await overviews.own(ann)
    assert own.today == own.key.sums == Sums(calls=1, tokens_in=100, tokens_out=10, cost=50, refused=1)
    assert [(hour.sums.calls, hour.sums.refused) for hour in own.hours if hour.sums != Sums()] == [(1, 0), (1, 1)]
    assert [(row.model, row.sums.calls) for row in own.models] == [("gpt-4o", 1)]
    assert {row.key for row in own.requests} == {"ann"}
    assert len(own.requests) == 3  # with the one that a limit refused


async def test_days_are_those_of_the_default_team(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    await keys.teams.ensure_default()
    await keys.teams.change("default", TeamChange(timezone="Asia/Shanghai"))
    calls.zone = "Asia/Shanghai"
    key, _ = await keys.create(Change(name="ann"))
    for hours in (0, 4, 5, 20, 21, 28, 29):  # it is 20:30 there
        await calls.settle(key, NOW - hours * HOUR)
    board = await overviews.board()
    assert board.zone == "Asia/Shanghai"
    assert board.today.calls == 4
    assert board.yesterday.calls == 2  # those before 20:30


async def test_readers_share_one_reading(
    keys: Keys, calls: Calls, overviews: Overviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await keys.create(Change(name="ann"))
    await calls.settle(key)
    monkeypatch.setattr(overview, "FRESH", 60.0)
    first = await overviews.board()
    await calls.settle(key)
    assert await overviews.board() is first
    overviews = Overviews(keys, lambda: 7.0)
    monkeypatch.setattr(overview, "FRESH", 0.0)
    monkeypatch.setattr(overview, "SHARE", 0)
    found = await asyncio.gather(overviews.board(), overviews.board())
    assert found[0] is found[1]
    await calls.settle(key)
    assert [found[0].today.calls, (await overviews.board()).today.calls] == [2, 3]


async def test_a_reading_that_took_long_serves_for_long(
    keys: Keys, calls: Calls, overviews: Overviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await keys.create(Change(name="ann"))
    monkeypatch.setattr(overview, "FRESH", 0.0)
    monkeypatch.setattr(overview, "SHARE", 1_000_000)
    board, own = await overviews.board(), await overviews.own(key)
    await calls.settle(key)
    assert await overviews.board() is board
    assert await overviews.own(key) is own


async def test_hours_that_are_over_are_read_again_a_few_at_a_time(
    keys: Keys, calls: Calls, overviews: Overviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await keys.create(Change(name="ann"))
    for hours in range(24):
        await calls.settle(key, NOW - hours * HOUR)
    assert sum(hour.sums.calls for hour in (await overviews.board()).hours) == 24
    for hours in range(24):
        await calls.settle(key, NOW - hours * HOUR)  # as a journal that comes late
    monkeypatch.setattr(overview, "FRESH", 0.0)
    monkeypatch.setattr(overview, "SHARE", 0.0)
    overviews._board = None
    found = [sum(hour.sums.calls for hour in (await overviews.board()).hours) for _ in range(2)]
    assert found == [25, 25]  # the hour that runs; the others are remembered
    monkeypatch.setattr(overview, "REMEMBERED", 0.0)
    looks = 0
    while (total := sum(hour.sums.calls for hour in (await overviews.board()).hours)) < 48:
        assert 25 <= total <= 25 + overview.AGAIN * (looks + 1)
        looks += 1
        assert looks < 40
    assert looks >= 23 // overview.AGAIN


async def test_an_hour_that_ended_just_now_may_still_change(
    keys: Keys, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "FRESH", 0.0)
    monkeypatch.setattr(overview, "SHARE", 0.0)
    ended = int(NOW) // HOUR * HOUR
    now = ended + 600.0
    keys.clock = lambda: now
    overviews = Overviews(keys, lambda: 7.0)
    key, _ = await keys.create(Change(name="ann"))
    for number in (1, 2):
        await calls.settle(key, ended - 1)
        assert (await overviews.board()).hours[-2].sums.calls == number
    now = ended + 901.0
    await overviews.board()
    await calls.settle(key, ended - 1)
    assert (await overviews.board()).hours[-2].sums.calls == 2, "it is over"


async def test_the_store_is_away(keys: Keys, store: Store, overviews: Overviews) -> None:
    await store.close()
    with pytest.raises(StoreUnavailable):
        await overviews.board()


def test_the_store_s_names_are_those_of_the_sums() -> None:
    assert len(FIELDS) == len(Sums.__struct_fields__)


async def test_hours_that_are_over_are_kept_for_others(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    ann, _ = await keys.create(Change(name="ann"))
    await calls.settle(ann, NOW - 2 * HOUR, in_=7, cost=3)
    await calls.settle(ann, model="now")
    first = await overviews.board()
    name = f"sy:{{{ann.team}}}:sh:{int(NOW) // HOUR - 2}"
    assert await calls.store.run("DEL", name) == 1
    other = Overviews(keys, lambda: 7.0)  # another worker, or this one after its restart
    assert (await other.board()).today == first.today
    await calls.store.run("SET", f"sy:sums:{int(NOW) // HOUR - 2}", b'[["of another version",1]]')
    assert (await Overviews(keys, lambda: 7.0).board()).today.calls == 1


async def test_a_full_store_is_read_all_the_same(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    ann, _ = await keys.create(Change(name="ann"))
    await calls.settle(ann)
    await calls.settle(ann, NOW - 2 * HOUR)
    await calls.store.run("CONFIG", "SET", "maxmemory", 1)
    try:
        assert (await overviews.board()).today.calls == 2
        assert await calls.store.run("KEYS", "sy:sums:*") == []
    finally:
        await calls.store.run("CONFIG", "SET", "maxmemory", 0)


async def test_who_is_about_to_sign_in_finds_the_numbers_read(
    keys: Keys, calls: Calls, overviews: Overviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "FRESH", 60.0)
    ann, _ = await keys.create(Change(name="ann"))
    await calls.settle(ann)
    overviews.warm()
    board = await overviews.board()
    assert board.today.calls == 1
    overviews.warm()
    assert await overviews.board() is board


async def test_numbers_that_cannot_be_read_beforehand_are_asked_for_again(
    keys: Keys, store: Store, overviews: Overviews
) -> None:
    await store.close()
    overviews.warm()
    with pytest.raises(StoreUnavailable):
        await overviews.board()


async def test_a_key_of_many_models_is_summed_whole(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    ann, _ = await keys.create(Change(name="ann"))
    for number in range(70):
        await calls.settle(ann, model=f"made-up-{number}", provider="wide", in_=2)
        await calls.settle(ann, NOW - 20 * HOUR, model=f"made-up-{69 - number}", provider="wide", in_=3)
    expected = Sums(calls=70, tokens_in=140)
    board = await overviews.board()
    assert board.keys[0].sums == board.today == expected
    own = await overviews.own(ann)
    assert own.today == expected
    assert [hour.sums for hour in own.hours if hour.sums.calls] == [Sums(calls=70, tokens_in=210), expected]
    assert own.models[0].model == "other"
    assert own.models[0].sums.calls == 20


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Asia/Kathmandu", "Pacific/Chatham", "America/St_Johns"])
async def test_today_is_the_usage_reports_today_where_it_begins_within_an_hour(
    keys: Keys, calls: Calls, zone: str
) -> None:
    await keys.teams.ensure_default()
    await keys.teams.change("default", TeamChange(timezone=zone))
    calls.zone = zone
    midnight = datetime(2026, 11, 22, tzinfo=ZoneInfo(zone)).timestamp()
    key, _ = await keys.create(Change(name="ann"))
    for minutes in (-300, -90, 1, 7, 14):
        await calls.settle(key, midnight + minutes * 60, in_=7, cost=5)
    team = Team("default", "default", ZoneInfo(zone))

    async def reported(by: Literal["day", "hour"]) -> tuple[int, ...]:
        found = await UsageReader(calls.store, clock=keys.clock).read(Query(Span(DaysAgo(0)), by=by), [team])
        return tuple(found.total[METRICS.index(name)] for name in ("calls", "in", "cost"))

    async def shown() -> tuple[int, ...]:
        today = (await Overviews(keys, lambda: 7.0).board()).today
        return today.calls, today.tokens_in, today.cost

    keys.clock = lambda: midnight + HOUR / 3
    assert await shown() == await reported("day") == (3, 21, 15)
    # A call before midnight, in the hour that midnight falls in: by hours it counts to the day in which that ends.
    await calls.settle(key, midnight - 60)
    assert await shown() == await reported("hour") == (4, 21, 15)
    assert await reported("day") == (3, 21, 15)


@pytest.mark.parametrize(
    ("zone", "present", "today", "yesterday"),
    [
        pytest.param("Europe/Berlin", (2026, 11, 22, 12, 30), 13, 12.5, id="as ever"),
        pytest.param("Europe/Berlin", (2026, 10, 25, 12, 0), 14, 12.0, id="clocks went back today"),
        pytest.param("Europe/Berlin", (2026, 10, 25, 23, 30), 25, 23.5, id="and it is late"),
        pytest.param("Europe/Berlin", (2026, 10, 26, 12, 0), 13, 13.0, id="clocks went back yesterday"),
        pytest.param("Europe/Berlin", (2026, 3, 29, 12, 0), 12, 12.0, id="clocks went forward today"),
        pytest.param("Europe/Berlin", (2026, 3, 30, 12, 0), 13, 11.0, id="clocks went forward yesterday"),
        pytest.param("Asia/Kolkata", (2026, 11, 22, 12, 15), 13, 12.75, id="half an hour off"),
        pytest.param("Asia/Kolkata", (2026, 11, 22, 0, 10), 1, 2 / 3, id="just after midnight"),
        pytest.param("Asia/Kolkata", (2026, 11, 22, 23, 45), 24, 24.0, id="the hour that is tomorrow's already"),
    ],
)
def test_yesterday_ends_at_this_time_of_day(zone: str, present: tuple[int, ...], today: int, yesterday: float) -> None:
    """today, yesterday: how many hours are meant at this time of the clock on the wall."""
    where = ZoneInfo(zone)
    year, month, of_month, hour, minute = present
    now = datetime(year, month, of_month, hour, minute, tzinfo=where).timestamp()
    found, before = overview._today(now, where), overview._yesterday(now, where)
    assert not set(found) & set(before)
    assert (len(found), set(found.values())) == (today, {1.0})
    assert sum(before.values()) == pytest.approx(yesterday)
    assert list(before) == list(range(min(before), max(before) + 1))
    assert set(list(before.values())[:-1]) <= {1.0}  # the last hour alone in part


async def test_a_key_s_hour_that_days_meet_in_is_whole(keys: Keys, calls: Calls) -> None:
    await keys.teams.ensure_default()
    await keys.teams.change("default", TeamChange(timezone="Asia/Kolkata"))
    calls.zone = "Asia/Kolkata"
    midnight = datetime(2026, 11, 22, 18, 30, tzinfo=UTC).timestamp()
    keys.clock = lambda: midnight + 600
    key, _ = await keys.create(Change(name="ann"))
    await calls.settle(key, midnight - 1, model="yesterday's")
    await calls.settle(key, midnight + 1, model="today's", cost=5)
    own = await Overviews(keys, lambda: 7.0).own(key)
    assert own.today == Sums(calls=1, cost=5)
    assert own.hours[-1].sums == Sums(calls=2, cost=5)


async def test_a_busy_team_among_many_fills_the_table(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    for number in range(160):
        await keys.teams.create(TeamChange(name=f"team-{number}"))
    busy, _ = await keys.create(Change(name="busy", team="team-7"))
    for second in range(60):
        await calls.settle(busy, NOW - second / 2)
    board = await overviews.board()
    assert len(board.requests) == 50
    assert board.requests_per_minute == 60


async def test_calls_per_minute_are_those_of_the_last_one(
    keys: Keys, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "FRESH", 0.0)
    monkeypatch.setattr(overview, "SHARE", 0.0)
    now = NOW
    keys.clock = lambda: now
    one, other = Overviews(keys, lambda: 7.0), Overviews(keys, lambda: 7.0)
    key, _ = await keys.create(Change(name="ann"))
    assert (await one.board()).requests_per_minute == 0

    # A burst: a worker that looked before it and one that did not say the same, whenever they are asked.
    for _ in range(60):
        await calls.settle(key, now)
    for seconds in (1, 15, 45, 60):
        now = NOW + seconds
        assert [(await some.board()).requests_per_minute for some in (one, other)] == [60, 60]
    now = NOW + 61
    assert [(await some.board()).requests_per_minute for some in (one, other)] == [0, 0]

    # More than are shown: by the sums since a look that is a minute old. Who has none, makes no more of it than is.
    for _ in range(110):
        await calls.settle(key, now, calls=4)
    now += 1
    assert (await one.board()).requests_per_minute == pytest.approx(60 * 440 / 62, rel=0.02)
    assert (await Overviews(keys, lambda: 7.0).board()).requests_per_minute == 500
    now += 60
    assert (await one.board()).requests_per_minute == 0
    now += 300
    for _ in range(110):
        await calls.settle(key, now, calls=4)
    now += 1
    assert (await one.board()).requests_per_minute == 60 + 2 * 440, "its last look is too old"


async def test_long_calls_among_the_newest_do_not_thin_the_minute(
    keys: Keys, calls: Calls, overviews: Overviews
) -> None:
    key, _ = await keys.create(Change(name="ann"))
    await calls.settle(key, calls=1000)
    for number in range(120):
        await calls.settle(key, NOW - (120 - number) / 10)
    await calls.settle(key, NOW - 300, ms=300_000)  # it ended just now
    assert (await overviews.board()).requests_per_minute == pytest.approx(600, rel=0.05)


async def test_a_team_that_is_gone_is_not_shown(keys: Keys, overviews: Overviews) -> None:
    limits = (Limit(measure="requests", window="day", amount=5),)
    await keys.teams.create(TeamChange(name="here", limits=limits))
    await keys.teams.create(TeamChange(name="gone", limits=limits))
    await keys.teams.change("gone", TeamChange(state="revoked"))
    assert [team.name for team in (await overviews.board()).teams] == ["here"]


async def test_a_key_that_moved_has_its_limits_where_it_is(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    limits = (Limit(measure="requests", window="day", amount=5),)
    ann, _ = await keys.create(Change(name="ann", team="alpha", limits=limits))
    await keys.teams.create(TeamChange(name="beta"))
    await calls.settle(ann, cost=9)
    await keys.change(ann.id, Change(team="beta"))
    moved = (await keys.get(ann.id)).key
    await calls.settle(moved, cost=2)
    board = await overviews.board()
    assert [(row.name, row.team, row.sums.cost, len(row.limits)) for row in board.keys] == [
        ("ann", "alpha", 9, 0),
        ("ann", "beta", 2, 1),
    ]


async def test_requests_stand_in_the_order_of_the_times_that_are_shown(
    keys: Keys, calls: Calls, overviews: Overviews
) -> None:
    ann, _ = await keys.create(Change(name="ann"))
    await calls.settle(ann, NOW - 5)
    await calls.refuse(ann, NOW - 4)
    await calls.settle(ann, NOW - 2, errors=1)
    await calls.settle(ann, NOW - 9, errors=1)  # it took the longest, and ended last
    board, own = await overviews.board(), await overviews.own(ann)
    assert [row.id for row in board.requests] == ["c3", "c1", "c4"]
    assert [row.id for row in await overviews.newest(None)] == ["c3", "c1", "c4"]
    assert [row.id for row in board.errors] == ["c3", "c2", "c4"]
    assert [row.id for row in own.requests] == ["c3", "c2", "c1", "c4"]
    assert [row.id for row in await overviews.newest(ann.id)] == ["c3", "c2", "c1", "c4"]


async def test_a_holder_sees_what_limits_refused(keys: Keys, calls: Calls, overviews: Overviews) -> None:
    ann, _ = await keys.create(Change(name="ann"))
    await calls.settle(ann)
    await calls.refuse(ann)
    own = await overviews.own(ann)
    assert {(row.id, row.status, row.limit) for row in own.requests} == {("c1", 200, None), ("c2", 429, "rpm")}
