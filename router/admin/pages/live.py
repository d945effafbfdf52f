"""The live tail of requests: one reading of the store for all who watch in a worker, about once a second and only while
somebody does.

Who comes is told the newest calls as they are, in place of whatever his page shows, and from then on what is said of
calls. Both are read in turn by one task: what was said up to a reading is in the newest calls that are read after it,
and what is said later comes with the next reading. So nothing falls in between, whenever a page was made, however long
its stream was away, and whichever worker it comes to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from providers.errors import Overloaded, StoreUnavailable
from router.keys import Keys
from router.overview_rows import RequestRow, request_row
from router.recent import Row, recent_name, rows_of
from router.usage import Team, UsageReader, team_of_record

PACE: Final = 1.0
"""Seconds until the viewers are told again."""
READS: Final = 4
"""Readings in that time while there is much to read."""
FIRST: Final = 5.0
"""Seconds before its beginning from which on a tail reads calls."""
FIRST_ENTRIES: Final = 100
"""Of a team that is read for the first time."""
PAGE: Final = 100
"""Entries of one team in one answer of the store."""
AT_ONCE: Final = 20
"""Teams in one round trip: the answer takes some milliseconds of the worker at most."""
MOST_ENTRIES: Final = 1000
"""In one reading."""
LATE: Final = 8
"""Readings in a row that may leave something of a team for the next one; then they skip to its newest calls."""
MOST_ROWS: Final = 50
"""That a viewer is told at once; pages show no more."""
MOST_ANEW: Final = 10
"""Keys whose newest calls are read between two readings; each costs as much as a refresh of a page."""
MOST_SHOWN: Final = 1000
"""Calls that are known as shown, and calls of whose beginning is known what their end does not say."""
MOST_WAITING: Final = 4
"""Readings that may wait for a viewer; who is slower than that is cut off, and comes again."""
MOST_VIEWERS: Final = 200
"""In one worker."""
MOST_HOLDERS: Final = 150
"""Of these, who hold keys without the right `admin`: the other places are for administrators."""
MOST_OF_KEY: Final = 10
"""Of these, with one such key."""
LOGGED: Final = 600.0
"""Seconds until a kind of error that comes again with every reading is logged again."""
TEAMS_KNOWN: Final = 10.0
NAMES_KNOWN: Final = 60.0
"""Seconds for which the teams (unless there is a new one), and the names of keys, are not read again."""

_log = logging.getLogger("switchyard.pages")
_Entries = Sequence[tuple[bytes, dict[bytes, bytes]]]
"""Of a stream, newest first."""

Rows = Sequence[RequestRow]


Newest = Callable[[str | None], Awaitable[Rows]]
"""Reads the calls that a page shows, as they are now, newest first: those of a key by its id, or of all. Raises
StoreUnavailable."""


class News(NamedTuple):
    """rows: calls of which something was said, oldest first. more: whether there was much, so that the next reading
    should be soon. skipped: whether some calls were passed over."""

    rows: Rows
    more: bool = False
    skipped: bool = False


class Feed(Protocol):
    def begin(self) -> None:
        """Nobody has watched until now."""

    async def read(self) -> News:
        """What was said since the reading before. Raises StoreUnavailable."""


class TeamFeed:
    """Reads on in the streams of all teams, each from where the reading before ended: nothing is missed, however busy
    others are, unless they write more than can be read."""

    def __init__(self, keys: Keys, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._monotonic = monotonic
        self._usage = UsageReader(keys.cabinet.store, clock=keys.clock)
        self._teams: tuple[float, int, Sequence[Team]] = (0.0, 0, ())
        self._names: dict[str, str] = {}
        self._names_until = 0.0
        self._cursors: dict[str, bytes] = {}
        """The last entry that was read, by the team's id."""
        self._late: Counter[str] = Counter()
        self._running: OrderedDict[str, Row] = OrderedDict()
        self._window = FIRST

    def begin(self) -> None:
        self._cursors.clear()
        self._late.clear()
        self._running.clear()
        self._window = FIRST

    async def read(self) -> News:
        teams = {team.id: team for team in await self._known_teams()}
        cursors = dict(self._cursors)  # kept when all was read: else it is read again
        async with self._usage.errors():
            skipped = await self._skip([team for team in teams if self._late[team] >= LATE], cursors)
            met = await self._meet([team for team in teams if team not in cursors], cursors)
            found, late = await self._on([team for team in teams if team not in met], cursors)
            rows = [(row, teams[team]) for team, some in (met | found).items() for row in rows_of(teams[team], some)]
            await self._learn(rows)
        self._cursors = cursors
        self._window = FIRST + TEAMS_KNOWN  # teams that come later may be heard of only after a while
        self._late = Counter({team: self._late[team] + 1 for team in late})
        rows = [(self._whole(row), team) for row, team in rows]
        rows.sort(key=lambda one: int(one[0]["_at"]))
        more = any(len(entries) >= PAGE for entries in found.values())
        return News([request_row(row, team.name, self._names) for row, team in rows], more, skipped)

    async def _meet(self, teams: Sequence[str], cursors: dict[str, bytes]) -> dict[str, _Entries]:
        """The last seconds of teams that were not read yet."""
        since = (self._keys.clock() - self._window) * 1000
        found: dict[str, _Entries] = {}
        for start in range(0, len(teams), AT_ONCE):
            some = teams[start : start + AT_ONCE]
            asked = [("XREVRANGE", recent_name(team), "+", "-", "COUNT", FIRST_ENTRIES) for team in some]
            for team, entries in zip(some, await self._usage.store.gather(asked), strict=True):
                cursors[team] = entries[0][0] if entries else b"0-0"
                found[team] = [entry for entry in entries if _milliseconds(entry[0]) >= since]
            await asyncio.sleep(0)  # calls first
        return found

    async def _on(self, teams: Sequence[str], cursors: dict[str, bytes]) -> tuple[dict[str, _Entries], Sequence[str]]:
        """What is new of these teams, up to a bound, and of which there is more."""
        # Who had to wait comes first.
        waiting = deque(sorted(teams, key=lambda team: -self._late[team]))
        found: dict[str, list[tuple[bytes, dict[bytes, bytes]]]] = {}
        left = MOST_ENTRIES
        while waiting and left > 0:
            some = [waiting.popleft() for _ in range(min(AT_ONCE, len(waiting)))]
            asked = [("XRANGE", recent_name(team), b"(" + cursors[team], "+", "COUNT", PAGE) for team in some]
            for team, entries in zip(some, await self._usage.store.gather(asked), strict=True):
                if not entries:
                    continue
                left -= len(entries)
                cursors[team] = entries[-1][0]
                found.setdefault(team, []).extend(entries)
                if len(entries) >= PAGE:
                    waiting.append(team)
            await asyncio.sleep(0)  # calls first
        return {team: entries[::-1] for team, entries in found.items()}, list(waiting)

    async def _skip(self, teams: Sequence[str], cursors: dict[str, bytes]) -> bool:
        """Go to the end of these teams' streams."""
        if not teams:
            return False
        asked = [("XREVRANGE", recent_name(team), "+", "-", "COUNT", 1) for team in teams]
        for team, entries in zip(teams, await self._usage.store.gather(asked), strict=True):
            del self._late[team]
            if entries:
                cursors[team] = entries[0][0]
        return True

    def _whole(self, row: Row) -> Row:
        """What is said of a call's end alone is completed by what was said of its beginning."""
        name = row["id"]
        if (known := self._running.pop(name, None)) is not None:
            row = {**known, **row, "_began": known["_began"]}
        if row.get("status") is None and not row.get("lost"):
            self._running[name] = row
            if len(self._running) > MOST_SHOWN:
                self._running.popitem(last=False)
        return row

    async def _learn(self, rows: Sequence[tuple[Mapping[str, Any], Team]]) -> None:
        """The names of these rows' keys."""
        now = self._monotonic()
        if now >= self._names_until:
            self._names, self._names_until = {}, now + NAMES_KNOWN
        wanted = {key: team.id for row, team in rows if isinstance(key := row.get("key"), str)}
        if new := {key: team for key, team in wanted.items() if key not in self._names}:
            self._names |= await self._usage.key_names(new)

    async def _known_teams(self) -> Sequence[Team]:
        count = await self._keys.cabinet.team_count()
        until, before, teams = self._teams
        now = self._monotonic()
        if now >= until or count != before:
            teams = [team_of_record(record) for record in await self._keys.teams.list()]
            self._teams = (now + TEAMS_KNOWN, count, teams)
        return teams


def _milliseconds(name: bytes) -> int:
    return int(name.partition(b"-")[0])


class Told(NamedTuple):
    """newest: all that a page shows, newest first, in place of what it shows; None: that stays. rows: calls of which
    something was said since, oldest first."""

    newest: Rows | None
    rows: Rows


class Watch:
    """One viewer's end. key: the id of the key whose calls he may see, None for all."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        self._newest: Rows | None = None
        self._waiting: deque[Rows] = deque()
        self._news = asyncio.Event()
        self._running: OrderedDict[str, None] = OrderedDict()
        """Calls that he was told of while they ran."""
        self.anew = True
        """Whether he waits for the newest calls: he has just come, or some calls were passed over."""
        self.behind = False
        """Whether he was too slow; nothing more comes then."""
        self.stale = False
        """Whether the store is away."""
        self.skipped = False
        """Whether some calls were passed over; who has told him sets it back."""

    def tell(self, rows: Rows, *, stale: bool, skipped: bool = False) -> None:
        """rows: those that he may see."""
        if not rows and stale == self.stale and not skipped:
            return
        self.stale = stale
        self.skipped = self.skipped or skipped
        self.anew = self.anew or skipped
        if rows:
            if len(self._waiting) >= MOST_WAITING:
                self.behind = True
            else:
                self._waiting.append(self._chosen(rows))
        self._news.set()

    def show(self, newest: Rows) -> None:
        """newest: those that he may see, read after all that he was told."""
        self.anew = False
        self._newest = newest
        self._waiting.clear()
        self._running = OrderedDict((row.id, None) for row in newest if _runs(row))
        self._news.set()

    def _chosen(self, rows: Rows) -> Rows:
        """The newest of very many, and the ends of those that he saw running."""
        if len(rows) > MOST_ROWS:
            newest = {row.id for row in rows[-MOST_ROWS:]}
            rows = [row for row in rows if row.id in newest or (row.id in self._running and not _runs(row))]
        for row in rows:
            self._running.pop(row.id, None)
            if _runs(row):
                self._running[row.id] = None
        while len(self._running) > MOST_SHOWN:
            self._running.popitem(last=False)
        return rows

    async def next(self, seconds: float) -> Told:
        """What has come, or nothing after some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
        told = Told(self._newest, [row for some in self._waiting for row in some])
        self._newest = None
        self._waiting.clear()
        return told


def _runs(row: RequestRow) -> bool:
    return row.status is None and not row.lost


class Tail:
    """Reads for all who watch."""

    def __init__(
        self,
        feed: Feed,
        newest: Newest,
        *,
        pace: float = PACE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed = feed
        self._newest = newest
        self._pace = pace
        self._monotonic = monotonic
        self._log_again: dict[type[Exception], float] = {}
        self._viewers: dict[Watch, None] = {}
        """In the order in which they came."""
        self._task: asyncio.Task[None] | None = None
        self._shown: OrderedDict[str, RequestRow] = OrderedDict()
        self._stale = False

    @contextlib.contextmanager
    def watch(self, key: str | None) -> Iterator[Watch]:
        """Be told of the newest calls, and of all from then on. key: an id, None for all. Raises Overloaded."""
        holders = [watch.key for watch in self._viewers if watch.key is not None]
        if len(self._viewers) >= MOST_VIEWERS or (key is not None and len(holders) >= MOST_HOLDERS):
            raise Overloaded("Too many watch the live requests at once.", retry_after=10.0)
        if key is not None and holders.count(key) >= MOST_OF_KEY:
            raise Overloaded("Too many watch the live requests of this key at once.", retry_after=10.0)
        watch = Watch(key)
        watch.stale = self._stale
        self._viewers[watch] = None
        if self._task is None:
            self._shown.clear()
            self._feed.begin()
            self._task = asyncio.create_task(self._run(), name="live requests")
        try:
            yield watch
        finally:
            del self._viewers[watch]
            if not self._viewers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        found: dict[str, RequestRow] = {}
        reads, skipped = 0, False
        while True:
            news = News(())
            with self._asking():
                news = await self._feed.read()
            for row in news.rows:
                found.pop(row.id, None)
                found[row.id] = row
            reads, skipped = reads + 1, skipped or news.skipped
            if not news.more or reads >= READS:
                self._tell(self._new(list(found.values())), skipped)
                found, reads, skipped = {}, 0, False
                await self._show()
            await asyncio.sleep(self._pace / READS if news.more else self._pace)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Whatever the store does, the tail goes on."""
        try:
            yield
        except StoreUnavailable:
            self._stale = True
        except Exception as error:  # noqa: BLE001 - a bug of ours, or a row nobody can read: the tail goes on with the next
            now = self._monotonic()
            if now >= self._log_again.get(type(error), now):
                self._log_again[type(error)] = now + LOGGED
                _log.exception("reading the live requests failed")
        else:
            self._stale = False

    async def _show(self) -> None:
        """The newest calls, for who waits for them. All that was read of the feed has been told."""
        for key in list(dict.fromkeys(watch.key for watch in self._viewers if watch.anew))[:MOST_ANEW]:
            if self._stale:
                return
            with self._asking():
                newest = await self._newest(key)
                for watch in self._viewers:
                    if watch.anew and watch.key == key:
                        watch.show(newest)

    def _tell(self, rows: Rows, skipped: bool) -> None:
        by_key: dict[str | None, list[RequestRow]] = {None: list(rows)}
        for row in rows:
            if row.key_id is not None:
                by_key.setdefault(row.key_id, []).append(row)
        for watch in self._viewers:
            watch.tell(by_key.get(watch.key, ()), stale=self._stale, skipped=skipped)

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
