"""The live tail of requests: one reading of the store for all who watch in a worker, about once a second and only while
somebody does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from providers.errors import Overloaded, StoreUnavailable
from router.keys import Keys
from router.overview_rows import RequestRow, request_row
from router.recent import RecentReader, Wanted
from router.usage import Team, UsageReader, team_of_record

PACE: Final = 1.0
"""Seconds between two readings."""
OVERLAP: Final = 2.0
"""Seconds that are read again: stores' clocks differ, and entries of one moment may come later."""
FIRST: Final = 5.0
"""Seconds before its beginning from which on a tail shows calls."""
MOST_ROWS: Final = 50
"""Of one reading; pages show no more."""
MOST_SHOWN: Final = 500
"""Calls that are known as shown."""
MOST_WAITING: Final = 4
"""Readings that may wait for a viewer; who is slower than that is cut off, and comes again."""
MOST_VIEWERS: Final = 200
"""In one worker."""
TEAMS_KNOWN: Final = 10.0
NAMES_KNOWN: Final = 60.0
"""Seconds for which the teams, and the names of keys, are not read again."""

_log = logging.getLogger("switchyard.pages")

Rows = Sequence[RequestRow]
Read = Callable[[float], Awaitable[Rows]]
"""The calls of which something was said since that moment (Unix seconds), oldest first. Raises StoreUnavailable."""


class RowReader:
    """Reads them from the streams of all teams."""

    def __init__(self, keys: Keys, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._monotonic = monotonic
        self._usage = UsageReader(keys.cabinet.store, clock=keys.clock)
        self._recent = RecentReader(self._usage)
        self._teams: tuple[float, Sequence[Team]] = (0.0, ())
        self._names: dict[str, str] = {}
        self._names_until = 0.0

    async def __call__(self, since: float) -> Rows:
        found = await self._recent.rows(Wanted(limit=MOST_ROWS, after=int(since * 1000)), await self._known_teams())
        now = self._monotonic()
        if now >= self._names_until:
            self._names, self._names_until = {}, now + NAMES_KNOWN
        wanted = {key: team.id for row, team in found if isinstance(key := row.get("key"), str)}
        if new := {key: team for key, team in wanted.items() if key not in self._names}:
            async with self._usage.errors():
                self._names |= await self._usage.key_names(new)
        return [request_row(row, team.name, self._names) for row, team in reversed(found)]

    async def _known_teams(self) -> Sequence[Team]:
        until, teams = self._teams
        now = self._monotonic()
        if now >= until or not teams:
            teams = [team_of_record(record) for record in await self._keys.teams.list()]
            self._teams = (now + TEAMS_KNOWN, teams)
        return teams


class Watch:
    """One viewer's end. key: the id of the key whose calls he may see, None for all."""

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._waiting: deque[Rows] = deque()
        self._news = asyncio.Event()
        self.behind = False
        """Whether he was too slow; nothing more comes then."""
        self.stale = False
        """Whether the store is away."""

    def tell(self, rows: Rows, *, stale: bool) -> None:
        mine = [row for row in rows if self._key is None or row.key_id == self._key]
        if not mine and stale == self.stale:
            return
        self.stale = stale
        if mine:
            if len(self._waiting) >= MOST_WAITING:
                self.behind = True
            else:
                self._waiting.append(mine)
        self._news.set()

    async def next(self, seconds: float) -> Rows:
        """What has come, or nothing after some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
        rows = [row for some in self._waiting for row in some]
        self._waiting.clear()
        return rows


class Tail:
    """Reads for all who watch. `clock` is Unix time in seconds."""

    def __init__(self, read: Read, clock: Callable[[], float] = time.time, *, pace: float = PACE) -> None:
        self._read = read
        self._clock = clock
        self._pace = pace
        self._viewers: set[Watch] = set()
        self._task: asyncio.Task[None] | None = None
        self._shown: OrderedDict[str, RequestRow] = OrderedDict()
        self._stale = False

    @contextlib.contextmanager
    def watch(self, key: str | None) -> Iterator[Watch]:
        """Be told of calls from now on, those of the last seconds first. Raises Overloaded."""
        if len(self._viewers) >= MOST_VIEWERS:
            raise Overloaded("Too many watch the live requests at once.", retry_after=10.0)
        watch = Watch(key)
        watch.stale = self._stale
        self._viewers.add(watch)
        if self._task is None:
            self._shown.clear()
            self._task = asyncio.create_task(self._run(), name="live requests")
        elif late := [row for row in self._shown.values() if row.time >= self._clock() - FIRST]:
            watch.tell(late, stale=self._stale)
        try:
            yield watch
        finally:
            self._viewers.discard(watch)
            if not self._viewers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        since = self._clock() - FIRST
        while True:
            began = self._clock()
            try:
                rows = self._new(await self._read(since))
            except StoreUnavailable:
                rows, self._stale = [], True
            except Exception:  # noqa: BLE001 - a bug of ours, or a row nobody can read: the tail goes on with the next
                _log.exception("reading the live requests failed")
                rows = []
            else:
                self._stale = False
                since = began - OVERLAP
            for watch in self._viewers:
                watch.tell(rows, stale=self._stale)
            await asyncio.sleep(self._pace)

    def _new(self, rows: Rows) -> Rows:
        """Those of which something is new."""
        found = []
        for row in rows:
            if self._shown.get(row.id) == row:
                continue
            self._shown[row.id] = row
            self._shown.move_to_end(row.id)
            found.append(row)
        while len(self._shown) > MOST_SHOWN:
            self._shown.popitem(last=False)
        return found
