"""Recent requests, from streams as the ledger writes them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

from router import recent
from router.recent import RecentReader, Wanted, errors_name, recent_name
from router.store import Store
from router.usage import UsageReader
from tests.usage.conftest import NOON, Ledger, teams_of


async def put(store: Store, team: str, at: float, row: dict[str, Any] | str) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    await cast("Any", store.redis).xadd(recent_name(team), {"r": text}, id=f"{int(at * 1000)}-*")


async def fail(store: Store, team: str, at: float, row: dict[str, Any]) -> None:
    await cast("Any", store.redis).xadd(errors_name(team), {"r": json.dumps(row)}, id=f"{int(at * 1000)}-*")


async def refuse(store: Store, team: str, at: float, call: str, key: str = "k" * 12) -> None:
    """As the ledger does it: nothing of it is among the recent ones."""
    row = {"id": call, "time": at, "key": key, "status": 429, "outcome": "limit", "limit": "rpm"}
    await fail(store, team, at, row)


async def begin(store: Store, team: str, at: float, call: str, key: str = "k" * 12) -> None:
    await put(store, team, at, {"id": call, "time": at, "key": key, "model": "gpt-4o"})


async def end(store: Store, team: str, at: float, call: str, status: int = 200, key: str = "k" * 12) -> None:
    await put(store, team, at, {"id": call, "key": key, "status": status, "outcome": "ok", "cost": 12})


async def test_start_and_end_become_one_row(store: Store, ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    await ledger.key("default", "k" * 12, "ann")
    await begin(store, "default", NOON - 30, "one")
    await begin(store, "default", NOON - 20, "two")
    await end(store, "default", NOON - 10, "one", 502)
    await put(store, "default", NOON - 9, "not json")
    await put(store, "default", NOON - 8, {"id": 7})
    await put(store, "default", NOON - 7, {"id": "gone", "lost": True})
    await cast("Any", store.redis).xadd(recent_name("default"), {"other": "x"}, id=f"{int(NOON - 6) * 1000}-*")
    rows = (await RecentReader(reader).read(Wanted(), await teams_of(reader))).rows
    assert [(row["id"], row["status"], row["age"]) for row in rows] == [
        ("gone", None, None),
        ("two", None, 20.0),
        ("one", 502, None),
    ]
    assert rows[2] == {
        "id": "one", "time": "2026-11-22T12:29:30Z", "team": "default", "team_id": "default", "key": "ann",
        "key_id": "k" * 12, "status": 502, "age": None, "model": "gpt-4o", "outcome": "ok",
        "cost": "0.000012", "cost_micro_usd": 12,
    }  # fmt: skip


async def test_a_call_that_was_given_up_and_ended_after_all_has_ended(
    store: Store, ledger: Ledger, reader: UsageReader
) -> None:
    await ledger.team("default", "default")
    await begin(store, "default", NOON - 30, "one")
    await put(store, "default", NOON - 20, {"id": "one", "lost": True})
    await end(store, "default", NOON - 10, "one")
    (row,) = (await RecentReader(reader).read(Wanted(), await teams_of(reader))).rows
    assert row["status"] == 200
    assert "lost" not in row


async def test_filters_reach_past_the_first_page(store: Store, ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    await ledger.team("team0001", "other")
    rare = "r" * 12
    await end(store, "default", NOON - 1000, "rare", 502, rare)
    for number in range(recent.PAGE * 2 + 50):
        await end(store, "default", NOON - 900 + number, f"many{number}")
    await end(store, "team0001", NOON - 950, "elsewhere")
    teams = await teams_of(reader)
    recents = RecentReader(reader)

    async def ids(**wanted: Any) -> list[str]:
        return [row["id"] for row in (await recents.read(Wanted(**wanted), teams)).rows]

    assert await ids(key=rare) == await ids(failed=True) == await ids(status=502) == ["rare"]
    assert await ids(running=True) == []
    assert await ids(limit=2) == ["many449", "many448"]
    everything = await ids(limit=1000)
    assert len(everything) == 452
    assert everything[-2:] == ["elsewhere", "rare"]
    newest = [row["id"] for row in (await recents.read(Wanted(limit=1), teams[1:])).rows]
    assert newest == ["elsewhere"]


async def test_what_a_limit_refused_is_among_the_recent_calls(
    store: Store, ledger: Ledger, reader: UsageReader
) -> None:
    await ledger.team("default", "default")
    await ledger.team("team0001", "other")
    for number in range(3):
        await end(store, "default", NOON + 10 * number, f"good{number}")
    await refuse(store, "default", NOON + 5, "early", "e" * 12)
    await refuse(store, "team0001", NOON + 15, "elsewhere")
    await refuse(store, "default", NOON + 25, "late")
    # What failed is in both streams; what was given up may have ended after all.
    broken = {"id": "broken", "key": "k" * 12, "status": 502}
    for write in (put, fail):
        await write(store, "default", NOON + 26, broken)
    await begin(store, "default", NOON + 27, "slow")
    for write in (put, fail):
        await write(store, "default", NOON + 28, {"id": "slow", "lost": True})
    await end(store, "default", NOON + 29, "slow")
    await end(store, "default", NOON + 30, "good3")
    teams = await teams_of(reader)
    recents = RecentReader(reader)

    async def ids(**wanted: Any) -> list[str]:
        return [row["id"] for row in (await recents.read(Wanted(**wanted), teams)).rows]

    everything = ["good3", "slow", "broken", "late", "good2", "elsewhere", "good1", "early", "good0"]
    assert await ids() == everything
    for limit in range(1, len(everything)):
        assert await ids(limit=limit) == everything[:limit]
    assert await ids(failed=True) == ["broken", "late", "elsewhere", "early"]
    assert await ids(failed=True, limit=2) == ["broken", "late"]
    assert await ids(status=429) == ["late", "elsewhere", "early"]
    assert await ids(status=429, key="e" * 12) == ["early"]
    assert await ids(running=True) == []
    (row,) = (await recents.read(Wanted(status=429, limit=1), teams)).rows
    assert (row["key_id"], row["limit"], row["age"]) == ("k" * 12, "rpm", None)


async def test_a_follower_is_told_of_refusals(store: Store, ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    teams = await teams_of(reader)
    recents = RecentReader(reader)
    await begin(store, "default", NOON, "long")
    await end(store, "default", NOON + 1, "good")
    for wanted in (Wanted(), Wanted(failed=True)):
        seen = await recents.read(wanted, teams)
        await refuse(store, "default", NOON + 10, "refused")
        more = await recents.read(replace(wanted, after=seen.cursor), teams)
        assert "refused" in {row["id"] for row in more.rows}
        # A call that began long before, and ended last, is what the next question begins at.
        await put(store, "default", NOON + 60, {"id": "long", "time": NOON, "status": 502})
        last = await recents.read(replace(wanted, after=more.cursor), teams)
        assert "long" in {row["id"] for row in last.rows}
        assert last.cursor == int((NOON + 60) * 1000) - recent.OVERLAP
        await cast("Any", store.redis).delete(errors_name("default"))
        await cast("Any", store.redis).delete(recent_name("default"))


async def test_calls_stand_in_the_order_in_which_they_began(store: Store, ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    await begin(store, "default", NOON, "long")
    for number in (1, 2, 3):
        await begin(store, "default", NOON + number, f"short{number}")
        await end(store, "default", NOON + number + 0.5, f"short{number}")
    await end(store, "default", NOON + 9.5, "long")
    recents, teams = RecentReader(reader), await teams_of(reader)
    shown = (await recents.read(Wanted(), teams)).rows
    assert [row["id"] for row in shown] == ["short3", "short2", "short1", "long"]
    assert [row["time"] for row in shown] == sorted((row["time"] for row in shown), reverse=True)
    # Which rows are told is another matter: those that were heard of last.
    assert [row["id"] for row in (await recents.read(Wanted(limit=2), teams)).rows] == ["short3", "long"]


async def test_calls_that_a_fallback_answered(store: Store, ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    await end(store, "default", NOON, "own")
    await put(store, "default", NOON + 1, {"id": "other", "key": "k" * 12, "status": 200, "fallback": "unreachable"})
    await begin(store, "default", NOON + 2, "running")
    found = (await RecentReader(reader).read(Wanted(fallback=True), await teams_of(reader))).rows
    assert [(row["id"], row["fallback"]) for row in found] == [("other", "unreachable")]


async def test_a_follower_misses_nothing(store: Store, ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    await ledger.team("team0001", "other")
    teams = await teams_of(reader)
    recents = RecentReader(reader)
    await end(store, "default", NOON, "first")
    seen = await recents.read(Wanted(), teams)
    # The other team's server has a clock that is a second late.
    await end(store, "team0001", NOON - 1, "late")
    await end(store, "default", NOON, "same millisecond")
    more = await recents.read(Wanted(after=seen.cursor), teams)
    assert {row["id"] for row in more.rows} == {"first", "late", "same millisecond"}
    await end(store, "default", NOON + 60, "next")
    more = await recents.read(Wanted(after=more.cursor), teams)
    assert more.rows[0]["id"] == "next"
    last = await recents.read(Wanted(after=more.cursor), teams)
    assert {row["id"] for row in last.rows} == {"next"}
    nothing = await recents.read(Wanted(after=last.cursor + 10_000), teams)
    assert nothing.rows == []
    assert nothing.cursor == last.cursor + 10_000


async def test_a_stream_of_a_thousand_entries_is_read_in_pages(
    store: Store, ledger: Ledger, reader: UsageReader
) -> None:
    await ledger.team("default", "default")
    for number in range(1000):
        await begin(store, "default", NOON - 1000 + number, f"call{number}")
    found = await RecentReader(reader).read(Wanted(limit=1000), await teams_of(reader))
    assert len({row["id"] for row in found.rows}) == 1000


async def test_a_stream_is_read_on_only_while_it_may_hold_newer_rows(
    store: Store, ledger: Ledger, reader: UsageReader
) -> None:
    for team, since in (("default", 0), ("team0001", -1000)):
        await ledger.team(team, team)
        for number in range(30):
            await end(store, team, NOON + since + number, f"{team} {number}")
    teams = await teams_of(reader)
    await store.run("CONFIG", "RESETSTAT")
    found = await RecentReader(reader).rows(Wanted(limit=5), teams, page=5)
    assert [row["id"] for row, _ in found] == [f"default {number}" for number in range(29, 24, -1)]
    asked = (await store.run("INFO", "commandstats"))["cmdstat_xrevrange"]["calls"]
    assert asked == 3, "another of the same millisecond may be on the first one's second page"
