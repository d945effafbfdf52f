"""The numbers of the overview page, read from the sums that the ledger keeps for pages (see `router/ledger.lua`).

What is read does not grow with the calls or the keys behind it: a hash for each team and hour, the head of a sorted set
for each team, the records of the keys that are shown. Hours that are over are remembered, and all who ask within a
moment share one reading.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple

from providers.errors import StoreUnavailable
from router import overview_rows as rows
from router.keys import Keys
from router.overview_keys import KeySums, day
from router.overview_rows import Amounts, Board, Hour, KeyRow, Own, RequestRow, Sums, TeamRow, Where
from router.periods import HOUR, DaysAgo, Span, zone_of
from router.recent import RecentReader, Row, Wanted, errors_name, newest_first, rows_of
from router.records import DEFAULT_TEAM, Key, TeamRecord, key_of, team_name, team_of_key
from router.standing import TEAM, Scope, standings
from router.usage import Team, UsageReader, team_of_record

FRESH: Final = 2.0
"""Seconds for which a reading serves all who ask."""
SHARE: Final = 20
"""A reading serves for this many times as long as it took: pages never take more than a twentieth of a worker."""
SETTLED: Final = 900
"""Seconds after its end in which an hour may still change: calls are counted in the hour in which they began."""
REMEMBERED: Final = 600.0
"""Seconds for which an hour that is over is not read again; what was kept in a journal may come late."""
AGAIN: Final = 3
"""Hours that are over which one reading reads again, the oldest readings first: all of them would take long."""
SUMMED_SECONDS: Final = 3 * 86400
"""Seconds for which an hour's sums of all teams are kept in the store, once it is over: for other workers and routers,
and for those that start."""
TEAMS_KNOWN: Final = 5.0
"""Seconds for which the list of teams is not read again."""
HOURS: Final = 24
MOST_KEYS: Final = 10
MOST_REFUSED: Final = 3
"""Keys that are shown because limits refused them, whatever they used."""
MOST_MODELS: Final = 10
MOST_TEAMS: Final = 20
MOST_TEAMS_READ: Final = 200
"""Teams whose limits are read; of more, the first by name."""
MOST_ERRORS: Final = 10
MOST_REQUESTS: Final = 50
MOST_ENTRIES: Final = 600
"""Entries of recent requests that one reading takes of all teams together."""
MOST_OWN_ENTRIES: Final = 800
"""Entries that are read for the holder of a key: recent requests of the team, and what failed or was refused."""
LEAST_LOOK: Final = 60
MOST_LOOK: Final = 120
"""Seconds over which calls per minute are reckoned by the sums, at least and at most."""
MOST_OWNERS: Final = 1000
"""Holders of keys whose numbers are kept."""


class _Past(NamedTuple):
    """An hour's sums: when they were read (the loop's time), and whether the hour was over then."""

    read_at: float
    sums: dict[Where, Amounts]
    over: bool


class Overviews:
    """Reads the numbers, and keeps them for a moment. `rate` gives CNY for one USD. Raises StoreUnavailable."""

    def __init__(self, keys: Keys, rate: Callable[[], float | None]) -> None:
        self._keys = keys
        self._cabinet = keys.cabinet
        self._usage = UsageReader(keys.cabinet.store, clock=keys.clock)
        self._recent = RecentReader(self._usage)
        self._rate = rate
        self._clock = keys.clock
        self._past: dict[int, _Past] = {}
        """Sums of all teams by hour."""
        self._teams: tuple[float, Sequence[TeamRecord]] = (0.0, ())
        self._board: tuple[float, Board] | None = None
        self._reading: asyncio.Task[Board] | None = None
        self._looks: deque[tuple[float, Mapping[int, int]]] = deque()
        """The calls of this hour and the one before, as they were at times of the last minute and once before it."""
        self._own: dict[str, tuple[float, Own]] = {}
        self._owns: dict[str, asyncio.Task[Own]] = {}
        self._key_sums = KeySums(keys.cabinet)

    # --- all teams

    async def board(self) -> Board:
        """The numbers of all teams, at most a moment old."""
        if self._board is not None and asyncio.get_running_loop().time() < self._board[0]:
            return self._board[1]
        # Who leaves does not end the reading of the others.
        return await asyncio.shield(self._begin())

    def warm(self) -> None:
        """Begin to read what `board` will be asked for soon: somebody is about to sign in."""
        if self._board is None:
            self._begin()

    @property
    def last_board(self) -> Board | None:
        """The numbers of all teams as they were read last."""
        return None if self._board is None else self._board[1]

    def _begin(self) -> asyncio.Task[Board]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_board())
            self._reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to who asks
        return self._reading

    async def _read_board(self) -> Board:
        loop = asyncio.get_running_loop()
        began = loop.time()
        now = self._clock()
        records = await self._records(began)
        teams = [team_of_record(record) for record in records]
        zone = next((team.zone for team in teams if team.id == DEFAULT_TEAM), zone_of("UTC"))
        async with self._usage.errors():
            found = await self._hours(teams, _needed(now, zone), now, began)
            keys = await self._key_rows(teams, now)
            standing = await self._team_rows(records, now)
            requests, errors = await self._tails(teams, now)
        today, models = _over(found, _today(now, zone))
        board = Board(
            as_of=now,
            zone=str(zone),
            today=today,
            yesterday=_over(found, _yesterday(now, zone))[0],
            hours=tuple(_hour(found, hour) for hour in _last(now)),
            models=rows.model_rows(models, MOST_MODELS),
            keys=keys,
            teams=standing,
            errors=errors,
            requests=requests[:MOST_REQUESTS],
            requests_per_minute=self._per_minute(found, requests, now),
            ttft_p95_ms=_percentile([row.first_content_ms for row in requests if row.stream]),
            rate=self._rate(),
        )
        self._board = (began + max(FRESH, (loop.time() - began) * SHARE), board)
        return board

    async def _records(self, moment: float) -> Sequence[TeamRecord]:
        until, known = self._teams
        if moment >= until:
            known = await self._cabinet.teams() or (TeamRecord(id=DEFAULT_TEAM, name=DEFAULT_TEAM, created=0),)
            self._teams = (moment + TEAMS_KNOWN, known)
        return known

    async def _hours(
        self, teams: Sequence[Team], hours: Sequence[int], now: float, moment: float
    ) -> Mapping[int, dict[Where, Amounts]]:
        """The sums of these hours, of all teams together."""

        def over(hour: int) -> bool:
            return now > (hour + 1) * HOUR + SETTLED

        def settled(hour: int) -> bool:
            return hour in self._past and self._past[hour].over

        unknown = [hour for hour in hours if over(hour) and not settled(hour)]
        summed = await self._cabinet.gather([("GET", _summed_name(hour)) for hour in unknown])
        for hour, raw in zip(unknown, summed, strict=True):
            if (told := rows.unpacked(raw)) is not None:
                self._past[hour] = _Past(moment, told, over=True)
        again = sorted((self._past[hour].read_at, hour) for hour in hours if settled(hour))
        wanted = [hour for hour in hours if not settled(hour)]
        wanted += [hour for read_at, hour in again[:AGAIN] if moment >= read_at + REMEMBERED]
        commands = [("HGETALL", f"sy:{{{team.id}}}:sh:{hour}") for hour in wanted for team in teams]
        answers = iter(await self._cabinet.gather(commands))
        for number, hour in enumerate(wanted):
            sums: dict[Where, Amounts] = {}
            for _ in teams:
                for where, amounts in rows.sums_of_hour(next(answers)).items():
                    rows.add(sums.setdefault(where, rows.nothing()), amounts)
            self._past[hour] = _Past(moment, sums, over(hour))
            if number % 10 == 9:
                await asyncio.sleep(0)  # calls first
        kept = [
            ("SET", _summed_name(hour), rows.packed(self._past[hour].sums), "EX", SUMMED_SECONDS)
            for hour in wanted
            if over(hour)
        ]
        with contextlib.suppress(StoreUnavailable):  # a full store: others read the hours themselves
            await self._cabinet.gather(kept)
        oldest = min(hours, default=0)
        for hour in [hour for hour in self._past if hour < oldest]:
            del self._past[hour]
        return {hour: past.sums for hour, past in self._past.items()}

    async def _key_rows(self, teams: Sequence[Team], now: float) -> tuple[KeyRow, ...]:
        """The keys that cost, or used, the most today, and some that limits refused the most."""
        orders = ("cost", "tokens", "refused")
        answers = iter(
            await self._cabinet.gather(
                [
                    ("ZRANGE", f"sy:{{{team.id}}}:top:{day(now, team)}:{what}", 0, MOST_KEYS - 1, "REV", "WITHSCORES")
                    for team in teams
                    for what in orders
                ]
            )
        )
        scores: dict[tuple[Team, str], list[int]] = {}
        for team in teams:
            for place, _ in enumerate(orders):
                for key, score in _pairs(next(answers)):
                    scores.setdefault((team, key), [0] * len(orders))[place] = score
        used = sorted(scores.items(), key=lambda item: (-item[1][0], -item[1][1], item[0][1]))
        shown = used[:MOST_KEYS]
        refused = sorted(used[MOST_KEYS:], key=lambda item: -item[1][2])[:MOST_REFUSED]
        if refused := [item for item in refused if item[1][2]]:
            shown = shown[: MOST_KEYS - len(refused)] + refused
        wanted = [(team, key) for (team, key), _ in shown]
        sums = await self._key_sums.today(wanted, now)
        records = await self._key_sums.records(wanted)
        limits = await standings(
            self._cabinet.store,
            [
                # A key that has moved is counted anew where it is now.
                Scope(team.id, key, record.limits if record is not None and record.team == team.id else (), team.zone)
                for (team, key), record in zip(wanted, records, strict=True)
            ],
            rate=self._rate(),
            now=now,
        )
        return tuple(
            KeyRow(key, record.name if record is not None else key, team.name, team.id, used, rows.bars(some))
            for (team, key), record, used, some in zip(wanted, records, sums, limits, strict=True)
        )

    async def _team_rows(self, records: Sequence[TeamRecord], now: float) -> tuple[TeamRow, ...]:
        limited = [record for record in records if record.limits and record.state == "active"][:MOST_TEAMS_READ]
        scopes = [Scope(record.id, TEAM, record.limits, zone_of(record.timezone)) for record in limited]
        found = await standings(self._cabinet.store, scopes, rate=self._rate(), now=now)
        shown = [TeamRow(record.id, record.name, rows.bars(some)) for record, some in zip(limited, found, strict=True)]
        shown.sort(key=lambda row: -row.limits[0].share)
        return tuple(shown[:MOST_TEAMS])

    async def _tails(self, teams: Sequence[Team], now: float) -> tuple[tuple[RequestRow, ...], tuple[RequestRow, ...]]:
        """The newest requests and errors, newest first."""
        newest = await self._newest(teams, 2 * MOST_REQUESTS)
        answers = await self._cabinet.gather(
            [("XREVRANGE", errors_name(team.id), "+", "-", "COUNT", MOST_ERRORS) for team in teams]
        )
        errors = [(row, team) for team, some in zip(teams, answers, strict=True) for row in rows_of(team, some)]
        worst = newest_first(sorted(errors, key=lambda one: -one[0]["_at"])[:MOST_ERRORS])
        names = await self._usage.key_names(
            {str(row["key"]): team.id for row, team in (*newest, *worst) if row.get("key")}
        )
        return (
            tuple(rows.request_row(row, team.name, names) for row, team in newest),
            tuple(rows.request_row(row, team.name, names) for row, team in worst),
        )

    async def _newest(self, teams: Sequence[Team], limit: int) -> list[tuple[Row, Team]]:
        # A few of each team first: those whose newest are among the newest of all are read on.
        page = max(4, min(MOST_ENTRIES // max(len(teams), 1), 4 * MOST_REQUESTS))
        return await self._recent.rows(Wanted(limit=limit), teams, page=page)

    def _per_minute(
        self, found: Mapping[int, dict[Where, Amounts]], requests: Sequence[RequestRow], now: float
    ) -> float:
        """How many calls there are in a minute: the newest ones are counted where they reach back so far. Of more it is
        what was added to the sums since this worker looked a minute ago; where it did not, what the newest ones come
        to, but not more than the sums hold."""
        hour = int(now) // HOUR
        calls = {one: rows.total(found.get(one, {}).values())[0] for one in (hour - 1, hour)}
        while len(self._looks) > 1 and self._looks[1][0] <= now - LEAST_LOOK:
            self._looks.popleft()
        self._looks.append((now, calls))
        # Whatever began since the oldest of very many was last heard of is among them.
        heard = [row.time + (row.ms or 0) / 1000 for row in requests]
        since = max(now - 60, min(heard) if len(heard) >= 2 * MOST_REQUESTS else 0)
        newest = sum(row.time >= since for row in requests)
        if since == now - 60:
            return float(newest)
        then, before = self._looks[0]
        if LEAST_LOOK <= now - then <= MOST_LOOK:
            added = sum(max(amount - before.get(one, 0), 0) for one, amount in calls.items())
            return 60 * added / (now - then)
        return min(60 * newest / max(now - since, 0.05), float(max(sum(calls.values()), newest)))

    async def newest(self, key_id: str | None) -> tuple[RequestRow, ...]:
        """The newest calls as the store has them now, newest first: of all, or those that the holder of a key sees."""
        async with self._usage.errors():
            if key_id is not None:
                record = await self._cabinet.find(key_id)
                if record is None:
                    return ()
                key = key_of(record)
                return await self._own_requests(key, team_of_record(await self._team_of(key)))
            teams = [team_of_record(record) for record in await self._keys.teams.list()]
            found = await self._newest(teams, MOST_REQUESTS)
            names = await self._usage.key_names({str(row["key"]): team.id for row, team in found if row.get("key")})
        return tuple(rows.request_row(row, team.name, names) for row, team in found)

    # --- one key

    async def _team_of(self, key: Key) -> TeamRecord:
        return team_of_key(key, await self._cabinet.raw(team_name(key.team)))

    async def own(self, key: Key) -> Own:
        """The numbers of one key, for its holder: nothing of anybody else's but its team's limits."""
        loop = asyncio.get_running_loop()
        known = self._own.get(key.id)
        if known is not None and loop.time() < known[0]:
            return known[1]
        reading = self._owns.get(key.id)
        if reading is None:
            reading = self._owns[key.id] = asyncio.create_task(self._read_own(key))
            reading.add_done_callback(lambda _: self._owns.pop(key.id, None))
        return await asyncio.shield(reading)

    def last_own(self, key_id: str) -> Own | None:
        """The numbers of one key as they were read last."""
        known = self._own.get(key_id)
        return None if known is None else known[1]

    async def _read_own(self, key: Key) -> Own:
        loop = asyncio.get_running_loop()
        began = loop.time()
        now = self._clock()
        record = await self._team_of(key)
        team = team_of_record(record)
        rate = self._rate()
        async with self._usage.errors():
            own, shared = await standings(
                self._cabinet.store,
                [Scope(team.id, key.id, key.limits, team.zone), Scope(team.id, TEAM, record.limits, team.zone)],
                rate=rate,
                now=now,
            )
            today, hours = await self._key_sums.hours(team, key.id, _last(now), now)
            requests = await self._own_requests(key, team)
        sums = Sums(*rows.total(today.values()))
        found = Own(
            as_of=now,
            zone=str(team.zone),
            key=KeyRow(key.id, key.name, record.name, team.id, sums, rows.bars(own)),
            team_limits=rows.bars(shared),
            today=sums,
            hours=tuple(Hour(hour * HOUR, used) for hour, used in zip(_last(now), hours, strict=True)),
            models=rows.model_rows({where: amounts for where, amounts in today.items() if any(amounts)}, MOST_MODELS),
            requests=requests,
            rate=rate,
        )
        self._own.pop(key.id, None)
        if len(self._own) >= MOST_OWNERS:
            self._own.pop(next(iter(self._own)))
        self._own[key.id] = (began + max(FRESH, (loop.time() - began) * SHARE), found)
        return found

    async def _own_requests(self, key: Key, team: Team) -> tuple[RequestRow, ...]:
        """The newest calls of a key, among the newest of its team, and what its limits refused."""
        found = await self._recent.rows(
            Wanted(key=key.id, limit=MOST_REQUESTS), [team], refused=True, page=MOST_ENTRIES // 3, most=MOST_OWN_ENTRIES
        )
        return tuple(rows.request_row(row, team.name, {key.id: key.name}) for row, _ in found)


# --- spans of hours (Unix seconds // 3600)


def _last(now: float) -> range:
    hour = int(now) // HOUR
    return range(hour - HOURS + 1, hour + 1)


def _today(now: float, zone: tzinfo) -> dict[int, float]:
    """The hours of today, as reports count them, and the part of each that is meant: all."""
    return dict.fromkeys(Span(DaysAgo(0)).hours(now, zone), 1.0)


def _yesterday(now: float, zone: tzinfo) -> dict[int, float]:
    """The hours of yesterday until this time of day, by the clock on the wall; of the last one a part."""
    wall = datetime.fromtimestamp(int(now), zone)
    until = datetime.combine(wall.date() - timedelta(days=1), wall.time(), zone).timestamp() / HOUR
    return {hour: min(until - hour, 1.0) for hour in Span(DaysAgo(1), DaysAgo(1)).hours(now, zone) if hour < until}


def _needed(now: float, zone: tzinfo) -> list[int]:
    return sorted({*_last(now), *_today(now, zone), *_yesterday(now, zone)})


def _over(found: Mapping[int, dict[Where, Amounts]], span: Mapping[int, float]) -> tuple[Sums, dict[Where, Amounts]]:
    """All that was used in a span, and by model and provider."""
    models: dict[Where, Amounts] = {}
    for hour, part in span.items():
        for where, amounts in found.get(hour, {}).items():
            rows.add(models.setdefault(where, rows.nothing()), amounts, part)
    return Sums(*rows.total(models.values())), models


def _hour(found: Mapping[int, dict[Where, Amounts]], hour: int) -> Hour:
    return Hour(hour * HOUR, Sums(*rows.total(found.get(hour, {}).values())))


# --- small parts


def _summed_name(hour: int) -> str:
    """An hour of all teams together, in a slot of its own: what its teams' hashes say, by who read them."""
    return f"sy:sums:{hour}"


def _pairs(answer: Sequence[Any]) -> list[tuple[str, int]]:
    """Members and scores, as servers of either protocol version answer them."""
    flat = [part for one in answer for part in one] if answer and isinstance(answer[0], list | tuple) else answer
    return [(flat[at].decode(), int(float(flat[at + 1]))) for at in range(0, len(flat), 2)]


def _percentile(values: Iterable[float | None]) -> float | None:
    """The 95th percentile."""
    known = sorted(value for value in values if value is not None)
    return known[min(len(known) * 95 // 100, len(known) - 1)] if known else None
