"""Recent requests, from streams as the ledger writes them."""

from __future__ import annotations

import json
from typing import Any, cast

from router import recent
from router.recent import RecentReader, Wanted, recent_name
from router.store import Store
from router.usage import UsageReader
from tests.usage.conftest import NOON, Ledger, teams_of


async def put(store: Store, team: str, at: float, row: dict[str, Any] | str) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    await cast("Any", store.redis).xadd(recent_name(team), {"r": text}, id=f"{int(at * 1000)}-*")


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
        ("one", 502, None),
        ("two", None, 20.0),
    ]
    assert rows[1] == {
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
    await end(store, "default", NOON - 1000, "rare", 429, rare)
    for number in range(recent.PAGE * 2 + 50):
        await end(store, "default", NOON - 900 + number, f"many{number}")
    await end(store, "team0001", NOON - 950, "elsewhere")
    teams = await teams_of(reader)
    recents = RecentReader(reader)

    async def ids(**wanted: Any) -> list[str]:
        return [row["id"] for row in (await recents.read(Wanted(**wanted), teams)).rows]

    assert await ids(key=rare) == await ids(failed=True) == await ids(status=429) == ["rare"]
    assert await ids(running=True) == []
    assert await ids(limit=2) == ["many449", "many448"]
    everything = await ids(limit=1000)
    assert len(everything) == 452
    assert everything[-2:] == ["elsewhere", "rare"]
    newest = [row["id"] for row in (await recents.read(Wanted(limit=1), teams[1:])).rows]
    assert newest == ["elsewhere"]


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
