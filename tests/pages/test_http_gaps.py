"""The live tail tells all there is when a stream opens, and all that comes after it: nothing falls in between."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from providers.errors import StoreUnavailable
from router.admin.pages import live
from router.admin.pages.live import News, Tail, Told, Watch
from router.changes import TeamChange
from router.overview import Overviews
from router.overview_rows import RequestRow, request_row
from router.recent import recent_name
from tests.pages.house import TOKEN, House
from tests.pages.site import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG_AGO = 60.0
"""Unix seconds at which the calls of these tests began."""


class Log:
    """A store with a log of calls, and what reads it. `before` and `after` happen while the newest calls are read."""

    def __init__(self) -> None:
        self.entries: list[RequestRow] = []
        self.read_to = 0
        self.skipped = False
        self.away = 0
        """Questions for the newest calls that are not answered."""
        self.asked: list[str | None] = []
        self.before: list[tuple[str, int | None]] = []
        self.after: list[tuple[str, int | None]] = []

    def say(self, name: str, status: int | None = None, key: str = "k") -> None:
        row = {"id": name, "time": LONG_AGO, "key": key, "status": status}
        self.entries.append(request_row(row, "team", {}))

    def begin(self) -> None:
        self.read_to = len(self.entries)

    async def read(self) -> News:
        found, self.read_to = self.entries[self.read_to :], len(self.entries)
        skipped, self.skipped = self.skipped, False
        return News([] if skipped else list({row.id: row for row in found}.values()), skipped=skipped)

    async def newest(self, key: str | None) -> Sequence[RequestRow]:
        self.asked.append(key)
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        for name, status in self.before:
            self.say(name, status)
        found = {row.id: row for row in self.entries if key in (None, row.key_id)}
        for name, status in self.after:
            self.say(name, status)
        self.before, self.after = [], []
        return list(found.values())[::-1]


class Page:
    """What a page shows of a stream."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.shows: dict[str, int | None] = {}
        self.opened = 0

    def take(self, told: Told) -> None:
        if told.newest is not None:
            self.opened += 1
            self.shows = {row.id: row.status for row in told.newest}
        for row in told.rows:
            assert row.status is not None or self.shows.get(row.id) is None, f"{row.id} runs again"
            self.shows[row.id] = row.status

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                self.take(await self._watch.next(0.05))


async def test_who_comes_later_hears_the_end_of_a_call_that_his_page_shows_as_running() -> None:
    log = Log()
    tail = Tail(log, log.newest, pace=0.001)
    with tail.watch(None) as one:
        first = Page(one)
        log.say("long")
        await first.until(lambda: first.shows == {"long": None})
        log.say("long", 200)
        await first.until(lambda: first.shows == {"long": 200})
        with tail.watch(None) as two:
            second = Page(two)
            await second.until(lambda: second.shows == {"long": 200})
        assert first.opened == 1  # nobody else is told anew


async def test_what_happens_while_a_stream_opens_is_told() -> None:
    for early in (True, False):  # the worker's first viewer, and one who comes to others
        log = Log()
        for name in ("a", "b", "c"):
            log.say(name)
        tail = Tail(log, log.newest, pace=0.001)
        with ExitStack() as watching:
            if not early:
                other = Page(watching.enter_context(tail.watch(None)))
                await other.until(lambda other=other: other.opened == 1)  # type: ignore[misc]
            log.say("d")
            log.before, log.after = [("a", 200), ("d", 200)], [("b", 200), ("new", None)]
            page = Page(watching.enter_context(tail.watch(None)))
            await page.until(lambda page=page: page.opened == 1)  # type: ignore[misc]
            log.say("c", 200)
            whole = {"a": 200, "b": 200, "c": 200, "d": 200, "new": None}
            await page.until(lambda page=page, whole=whole: page.shows == whole)  # type: ignore[misc]


async def test_a_key_is_told_of_its_own_calls_and_all_its_viewers_by_one_reading() -> None:
    log = Log()
    log.say("mine", key="k1")
    log.say("other", key="k2")
    tail = Tail(log, log.newest, pace=0.001)
    with tail.watch("k1") as one, tail.watch("k1") as two:
        pages = [Page(one), Page(two)]
        for page in pages:
            await page.until(lambda page=page: page.opened == 1)  # type: ignore[misc]
        assert [page.shows for page in pages] == [{"mine": None}] * 2
        assert log.asked == ["k1"]


async def test_many_who_come_at_once_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_ANEW", 3)
    log = Log()
    asked_at: list[int] = []
    real = log.read

    async def read() -> News:
        asked_at.append(len(log.asked))
        return await real()

    monkeypatch.setattr(log, "read", read)
    tail = Tail(log, log.newest, pace=0.001)
    with ExitStack() as watching:
        pages = [Page(watching.enter_context(tail.watch(f"k{number}"))) for number in range(8)]
        for page in pages:
            await page.until(lambda page=page: page.opened == 1)  # type: ignore[misc]
    assert log.asked == [f"k{number}" for number in range(8)]
    assert asked_at[:3] == [0, 3, 6]


async def test_while_the_store_is_away_a_page_waits_and_is_told_then() -> None:
    log = Log()
    log.away = 3
    log.say("call")
    tail = Tail(log, log.newest, pace=0.001)
    with tail.watch(None) as watch:
        page = Page(watch)
        await page.until(lambda: page.opened == 1)
        assert page.shows == {"call": None}
        assert len(log.asked) == 4


async def test_when_calls_were_passed_over_pages_are_told_anew() -> None:
    log = Log()
    tail = Tail(log, log.newest, pace=0.001)
    with tail.watch(None) as watch:
        page = Page(watch)
        log.say("long")
        await page.until(lambda: page.shows == {"long": None})
        log.skipped = True
        log.say("long", 200)
        await page.until(lambda: page.shows == {"long": 200})
        assert watch.skipped


async def test_the_end_of_a_call_that_was_running_when_the_stream_opened_is_told_among_very_many() -> None:
    log = Log()
    log.say("long")
    tail = Tail(log, log.newest, pace=0.001)
    with tail.watch(None) as watch:
        page = Page(watch)
        await page.until(lambda: page.opened == 1)
        log.say("long", 200)
        for number in range(3 * live.MOST_ROWS):
            log.say(f"{number}", 200)
        await page.until(lambda: page.shows["long"] == 200)
        assert len(page.shows) == live.MOST_ROWS + 1


# --- the store and the stream


async def _said(house: House, team: str, name: str, **more: Any) -> None:
    row = {"id": name, "time": LONG_AGO, "model": "m", **more}
    await house.keys.cabinet.ask("XADD", recent_name(team), "*", "r", json.dumps(row))


async def test_the_newest_calls_are_those_of_this_moment(house: House) -> None:
    key, _ = await house.key()
    other, _ = await house.key()
    overviews = Overviews(house.keys, lambda: None)
    newest: Callable[[str | None], Awaitable[Sequence[RequestRow]]] = overviews.newest

    async def shown(asked: str | None) -> dict[str, tuple[int | None, str | None]]:
        return {row.id: (row.status, row.key) for row in await newest(asked)}

    await overviews.board()  # what a page remembers of teams and calls
    await _said(house, key.team, "mine", key=key.id)
    assert (await shown(key.id))["mine"] == (None, key.name)
    await _said(house, key.team, "mine", key=key.id, status=200)
    await _said(house, other.team, "theirs", key=other.id)
    assert await shown(key.id) == {"mine": (200, key.name)}
    team = (await house.keys.teams.create(TeamChange(name="new in the tail"))).id
    await _said(house, team, "of a new team", key="gone")
    found = await shown(None)
    assert list(found)[:3] == ["of a new team", "theirs", "mine"]
    assert found["theirs"] == (None, other.name)
    assert found["mine"] == (200, key.name)
    assert await shown("no key") == {}


async def test_a_stream_opens_with_how_it_stands(house: House) -> None:
    """Also beside another stream of the same worker, and for a call that began long ago."""
    key, credential = await house.key()
    loop = asyncio.get_running_loop()
    for secret in (TOKEN, credential):
        site = await house.sign_in(secret)
        name = f"long-{len(secret)}"

        def end(name: str = name) -> None:
            ending = _said(house, key.team, name, key=key.id, status=200)
            asyncio.run_coroutine_threadsafe(ending, loop).result(20)

        def look(name: str = name, site: Site = site, end: Callable[[], None] = end) -> str:
            with site.watch() as first:
                first.until("rows", f"r-{name}")
                end()
                first.until("row", f"r-{name}")
                with site.watch() as second:
                    return second.until("rows")[-1].data

        await _said(house, key.team, name, key=key.id)
        rows = await asyncio.to_thread(look)
        (row,) = re.findall(rf'<tr id="r-{name}".*?</tr>', rows, re.DOTALL)
        assert "200 OK" in row
        assert "Running" not in row
