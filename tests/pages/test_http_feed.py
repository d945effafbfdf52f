"""What the live tail reads: entries of all teams' streams, each from where the reading before ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from providers.errors import StoreUnavailable
from router.admin.pages import live
from router.admin.pages.live import News, Tail, TeamFeed
from router.changes import TeamChange
from router.overview import Overviews
from router.overview_rows import RequestRow, request_row
from router.recent import recent_name
from tests.pages.house import TOKEN, House

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Team:
    """A team whose calls are written as the ledger writes them."""

    def __init__(self, house: House, name: str) -> None:
        self._house = house
        self._name = name

    async def __aenter__(self) -> Team:
        self.id = (await self._house.keys.teams.create(TeamChange(name=self._name))).id
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._house.keys.cabinet.ask("DEL", recent_name(self.id))

    async def say(self, rows: Sequence[dict[str, Any]]) -> None:
        told = [("XADD", recent_name(self.id), "MAXLEN", "~", 2000, "*", "r", json.dumps(row)) for row in rows]
        await self._house.keys.cabinet.gather(told)

    async def begin(self, *calls: str, key: str = "k") -> None:
        now = self._house.keys.clock()
        await self.say(
            [{"id": call, "time": now, "key": key, "model": "m", "dialect": "openai", "stream": True} for call in calls]
        )

    async def end(self, *calls: str, key: str = "k") -> None:
        await self.say([{"id": call, "key": key, "model": "m", "status": 200} for call in calls])


def shown(news: News) -> list[tuple[str, int | None]]:
    return [(row.id, row.status) for row in news.rows]


async def all_of(feed: TeamFeed, enough: Callable[[list[RequestRow]], bool]) -> list[RequestRow]:
    found: list[RequestRow] = []
    async with asyncio.timeout(20):
        while not enough(found):
            found += (await feed.read()).rows
    return found


async def test_every_call_is_read_once_and_whole(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST", 120.0)
    async with Team(house, "feed one") as one, Team(house, "feed two") as two:
        await one.begin("before")
        feed = TeamFeed(house.keys)
        assert shown(await feed.read()) == [("before", None)]
        assert shown(await feed.read()) == []
        await two.begin("b")
        await one.begin("a")
        await one.end("a")
        assert sorted(shown(await feed.read())) == [("a", 200), ("b", None)]
        await one.end("before")
        await two.end("b")
        (first, second) = sorted((await feed.read()).rows, key=lambda row: row.id)
        # The end alone does not say it.
        assert [(row.id, row.status, row.dialect, row.stream) for row in (first, second)] == [
            ("b", 200, "openai", True),
            ("before", 200, "openai", True),
        ]
        assert (first.team, second.team) == ("feed two", "feed one")
        feed.begin()  # nobody watched for a while: the last seconds again
        assert sorted(name for name, _ in shown(await feed.read())) == ["a", "b", "before"]


async def test_a_new_team_is_read_at_once(house: House) -> None:
    feed = TeamFeed(house.keys, monotonic=lambda: 5.0)
    async with Team(house, "feed known"):
        await feed.read()
        async with Team(house, "feed new") as new:
            await new.begin("first")
            assert ("first", None) in shown(await feed.read())


async def test_a_quiet_key_misses_nothing_beside_a_busy_one(house: House) -> None:
    async with Team(house, "busy") as busy, Team(house, "quiet") as quiet:
        tail = Tail(TeamFeed(house.keys), Overviews(house.keys, lambda: None).newest, pace=0.01)
        with tail.watch("quiet key") as holder:
            async with asyncio.timeout(20):
                while (await holder.next(0.05)).newest is None:
                    pass
            mine: list[RequestRow] = []

            async def listen() -> None:
                async with asyncio.timeout(20):
                    while len([row for row in mine if row.status == 200]) < 20:
                        mine.extend((await holder.next(0.05)).rows)

            listening = asyncio.create_task(listen())
            for number in range(20):
                await quiet.begin(f"q{number}", key="quiet key")
                for half in range(2):
                    calls = [f"{number}.{half}.{at}" for at in range(50)]
                    await busy.begin(*calls)
                    await busy.end(*calls)
                await quiet.end(f"q{number}", key="quiet key")
            await listening
            assert {row.id for row in mine} == {f"q{number}" for number in range(20)}
            assert not holder.skipped


async def test_much_is_read_in_turns_and_the_quiet_teams_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAGE", 10)
    monkeypatch.setattr(live, "MOST_ENTRIES", 20)
    monkeypatch.setattr(live, "AT_ONCE", 1)
    async with Team(house, "much") as much, Team(house, "more") as more, Team(house, "little") as little:
        feed = TeamFeed(house.keys)
        await feed.read()
        for team, name in ((much, "m"), (more, "n")):
            await team.begin(*(f"{name}{number}" for number in range(60)))
        await little.begin("little")
        first = await feed.read()
        assert first.more
        assert 20 <= len(first.rows) < 30
        found = [*first.rows, *await all_of(feed, lambda found: len(found) >= 121 - len(first.rows))]
        assert len({row.id for row in found}) == len(found) == 121
        assert not (await feed.read()).more


async def test_who_writes_more_than_can_be_read_is_skipped_and_that_is_said(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "PAGE", 5)
    monkeypatch.setattr(live, "MOST_ENTRIES", 5)
    async with Team(house, "flood") as flood:
        feed = TeamFeed(house.keys)
        await feed.read()
        skipped = []
        for number in range(live.LATE + 1):
            await flood.begin(*(f"{number}.{at}" for at in range(10)))
            skipped.append((await feed.read()).skipped)
        assert skipped == [False] * live.LATE + [True]
        await flood.begin("after")
        news = await feed.read()
        assert (shown(news), news.skipped) == ([("after", None)], False)


async def test_a_reading_that_fails_is_done_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Team(house, "unlucky") as team:
        feed = TeamFeed(house.keys)
        await feed.read()
        await team.begin("a", key="new key")
        store = house.keys.cabinet.store
        real = store.gather

        async def gather(commands: Sequence[Any]) -> list[Any]:
            if commands[0][0] == "GET":  # the names of keys, after the streams
                raise OSError("away")
            return await real(commands)

        with monkeypatch.context() as away:
            away.setattr(store, "gather", gather)
            with pytest.raises(StoreUnavailable):
                await feed.read()
        assert shown(await feed.read()) == [("a", None)]


async def test_what_another_version_wrote_is_passed_over(house: House) -> None:
    async with Team(house, "other version") as team:
        feed = TeamFeed(house.keys)
        await feed.read()
        name = recent_name(team.id)
        await cast("Any", house.keys.cabinet.store.redis).xadd(name, {"x": "no row"})
        await house.keys.cabinet.ask("XADD", name, "*", "r", "not json")
        await team.begin("a")
        assert shown(await feed.read()) == [("a", None)]


async def test_a_row_that_was_made_for_an_administrator_is_made_anew_for_the_key_s_holder(house: House) -> None:
    async with Team(house, "rows") as team:
        key, credential = await house.key(team="rows")
        await team.end("shown", key=key.id)
        for secret, column in ((TOKEN, True), (credential, False)):
            site = await house.sign_in(secret)
            text = (await asyncio.to_thread(site.get, "/admin/overview")).text
            assert 'id="r-shown"' in text
            assert ("c-key" in text) == column


async def test_a_viewer_is_told_of_a_call_once_until_there_is_something_new_of_it() -> None:
    class Same:
        """Tells the same again and again."""

        reads = 0
        status: int | None = None

        def begin(self) -> None:
            pass

        async def read(self) -> News:
            self.reads += 1
            return News(await self.newest(None))

        async def newest(self, _: str | None) -> Sequence[RequestRow]:
            return [request_row({"id": "one", "time": 0.0, "key": "k", "status": self.status}, "team", {})]

    feed = Same()
    tail = Tail(feed, feed.newest, pace=0.0)
    with tail.watch(None) as watch:
        found: list[RequestRow] = []
        async with asyncio.timeout(15):
            for reads, feed.status in ((3, None), (6, 200)):
                while feed.reads < reads:  # noqa: ASYNC110 - the task that reads says nothing
                    await asyncio.sleep(0)
                told = await watch.next(0)
                found += [*(told.newest or ()), *told.rows]
    assert [row.status for row in found] == [None, 200]
