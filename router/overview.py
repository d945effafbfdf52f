"""The numbers of the overview page, read from the sums that the ledger keeps for pages (see `router/ledger.lua`).

What is read does not grow with the calls or the keys behind it: a hash for each team and hour, the head of a sorted set
for each team, the records of the keys that are shown. Hours that are over are remembered, and all who ask within a
moment share one reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta, tzinfo
from typing import Any, Final

from router import overview_rows as rows
from router.keys import Keys
from router.overview_rows import FIELDS, Amounts, Board, Hour, KeyRow, Own, RequestRow, Sums, TeamRow, Where
from router.periods import HOUR, begin, day_of, zone_of
from router.recent import RecentReader, Row, Wanted, errors_name, recent_name, rows_of
from router.records import DEFAULT_TEAM, Key, Record, TeamRecord, readable
from router.standing import TEAM, Scope, standings
from router.usage import Team, UsageReader, day_name, hour_name, team_of_record

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
MOST_TEAMS_READ: Final = 500
"""Teams whose limits are read; of more, the first by name."""
MOST_ERRORS: Final = 10
MOST_REQUESTS: Final = 50
MOST_ENTRIES: Final = 600
"""Entries of recent requests that one reading takes of all teams together."""
MOST_OWN: Final = 50
"""Models of one key that are read."""
MOST_OWNERS: Final = 1000
"""Holders of keys whose numbers are kept."""


class Overviews:
    """Reads the numbers, and keeps them for a moment. `rate` gives CNY for one USD. Raises StoreUnavailable."""

    def __init__(self, keys: Keys, rate: Callable[[], float | None]) -> None:
        self._keys = keys
        self._cabinet = keys.cabinet
        self._usage = UsageReader(keys.cabinet.store, clock=keys.clock)
        self._recent = RecentReader(self._usage)
        self._rate = rate
        self._clock = keys.clock
        self._past: dict[int, tuple[float, dict[Where, Amounts], bool]] = {}
        """Sums of all teams by hour: when they were read, the sums, and if the hour was over then."""
        self._teams: tuple[float, Sequence[TeamRecord]] = (0.0, ())
        self._board: tuple[float, Board] | None = None
        self._reading: asyncio.Task[Board] | None = None
        self._own: dict[str, tuple[float, Own]] = {}

    # --- all teams

    async def board(self) -> Board:
        """The numbers of all teams, at most a moment old."""
        if self._board is not None and asyncio.get_running_loop().time() < self._board[0]:
            return self._board[1]
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_board())
        # Who leaves does not end the reading of the others.
        return await asyncio.shield(self._reading)

    def warm(self) -> None:
        """Begin to read what `board` will be asked for soon: somebody is about to sign in."""
        if self._board is None and (self._reading is None or self._reading.done()):
            self._reading = asyncio.create_task(self._read_board())
            self._reading.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to who asks

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
            requests, errors, per_minute = await self._tails(teams, now)
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
            requests_per_minute=per_minute,
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

        unknown = [hour for hour in hours if over(hour) and (hour not in self._past or not self._past[hour][2])]
        summed = await self._cabinet.gather([("GET", _summed_name(hour)) for hour in unknown])
        for hour, raw in zip(unknown, summed, strict=True):
            if (told := rows.unpacked(raw)) is not None:
                self._past[hour] = (moment, told, True)
        again = sorted((self._past[hour][0], hour) for hour in hours if hour in self._past and self._past[hour][2])
        wanted = [hour for hour in hours if hour not in self._past or not self._past[hour][2]]
        wanted += [hour for read, hour in again[:AGAIN] if moment >= read + REMEMBERED]
        commands = [("HGETALL", f"sy:{{{team.id}}}:sh:{hour}") for hour in wanted for team in teams]
        answers = iter(await self._cabinet.gather(commands))
        for number, hour in enumerate(wanted):
            sums: dict[Where, Amounts] = {}
            for _ in teams:
                for where, amounts in rows.sums_of_hour(next(answers)).items():
                    rows.add(sums.setdefault(where, rows.nothing()), amounts)
            self._past[hour] = (moment, sums, over(hour))
            if number % 10 == 9:
                await asyncio.sleep(0)  # calls first
        await self._cabinet.gather(
            [
                ("SET", _summed_name(hour), rows.packed(self._past[hour][1]), "EX", SUMMED_SECONDS)
                for hour in wanted
                if over(hour)
            ]
        )
        oldest = min(hours, default=0)
        for hour in [hour for hour in self._past if hour < oldest]:
            del self._past[hour]
        return {hour: past[1] for hour, past in self._past.items()}

    async def _key_rows(self, teams: Sequence[Team], now: float) -> tuple[KeyRow, ...]:
        """The keys that cost, or used, the most today, and some that limits refused the most."""
        orders = ("cost", "tokens", "refused")
        answers = iter(
            await self._cabinet.gather(
                [
                    ("ZRANGE", f"sy:{{{team.id}}}:top:{_day(now, team)}:{what}", 0, MOST_KEYS - 1, "REV", "WITHSCORES")
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
        sums = await self._own_days(wanted, now)
        records = await self._key_records(wanted)
        limits = await standings(
            self._cabinet.store,
            [
                Scope(team.id, key, record.limits if record is not None else (), team.zone)
                for (team, key), record in zip(wanted, records, strict=True)
            ],
            rate=self._rate(),
            now=now,
        )
        return tuple(
            KeyRow(key, record.name if record is not None else key, team.name, team.id, used, rows.bars(some))
            for (team, key), record, used, some in zip(wanted, records, sums, limits, strict=True)
        )

    async def _own_days(self, wanted: Sequence[tuple[Team, str]], now: float) -> list[Sums]:
        """What each of these keys used today, in its team's time zone."""
        models = await self._models([(team, key, _day(now, team)) for team, key in wanted])
        return [
            Sums(*_total(found.values()))
            for found in await self._of_keys(
                [
                    (day_name(team.id, _day(now, team)), key, some)
                    for (team, key), some in zip(wanted, models, strict=True)
                ],
                [("ZSCORE", f"sy:{{{team.id}}}:top:{_day(now, team)}:refused", key) for team, key in wanted],
            )
        ]

    async def _models(self, wanted: Sequence[tuple[Team, str, str]]) -> list[list[Where]]:
        """What a key has used on a day: at most MOST_OWN of it."""
        names = [f"sy:{{{team.id}}}:km:{key}:{day}" for team, key, day in wanted]
        answers = await self._cabinet.gather([("SRANDMEMBER", name, MOST_OWN) for name in names])
        return [sorted(_where(one) for one in answer) for answer in answers]

    async def _of_keys(
        self, wanted: Sequence[tuple[str, str, Sequence[Where]]], refused: Sequence[tuple[str, ...]]
    ) -> list[dict[Where, Amounts]]:
        """The sums of keys in hashes of hours or days: for each the name of the hash, the key and what it used.
        `refused` are the commands that answer how often limits refused it there."""
        names = [name for name in FIELDS if name != b"refused"]
        commands: list[tuple[str, ...]] = [
            (
                "HMGET",
                table,
                *(f"{key}\t{model}\t{provider}\t{name.decode()}" for model, provider in models for name in names),
            )
            for table, key, models in wanted
            if models
        ]
        answers = iter(await self._cabinet.gather([*commands, *refused]))
        found: list[dict[Where, Amounts]] = []
        for _, _, models in wanted:
            values = iter(next(answers) if models else ())
            sums: dict[Where, Amounts] = {}
            for where in models:
                amounts = sums[where] = rows.nothing()
                for name in names:
                    amounts[FIELDS[name]] = rows.number(next(values))
            found.append(sums)
        for sums in found:
            sums["", ""] = rows.nothing()
            sums["", ""][FIELDS[b"refused"]] = int(float(next(answers) or 0))
        return found

    async def _key_records(self, wanted: Sequence[tuple[Team, str]]) -> list[Record | None]:
        raws = await self._cabinet.gather([("GET", f"sy:{{{team.id}}}:key:{key}") for team, key in wanted])
        found = [readable(raw) if raw is not None else None for raw in raws]
        # It may have moved to another team since.
        return [
            record if record is not None else await self._cabinet.find(key)
            for record, (_, key) in zip(found, wanted, strict=True)
        ]

    async def _team_rows(self, records: Sequence[TeamRecord], now: float) -> tuple[TeamRow, ...]:
        limited = [record for record in records if record.limits][:MOST_TEAMS_READ]
        scopes = [Scope(record.id, TEAM, record.limits, zone_of(record.timezone)) for record in limited]
        found = await standings(self._cabinet.store, scopes, rate=self._rate(), now=now)
        shown = [TeamRow(record.id, record.name, rows.bars(some)) for record, some in zip(limited, found, strict=True)]
        shown.sort(key=lambda row: -row.limits[0].share)
        return tuple(shown[:MOST_TEAMS])

    async def _tails(
        self, teams: Sequence[Team], now: float
    ) -> tuple[tuple[RequestRow, ...], tuple[RequestRow, ...], float]:
        """The newest requests and errors, newest first, and how many requests begin in a minute."""
        each = max(4, min(MOST_ENTRIES // max(len(teams), 1), 4 * MOST_REQUESTS))
        asked = [("XREVRANGE", recent_name(team.id), "+", "-", "COUNT", each) for team in teams]
        asked += [("XREVRANGE", errors_name(team.id), "+", "-", "COUNT", MOST_ERRORS) for team in teams]
        answers = await self._cabinet.gather(asked)
        requests: list[tuple[Row, Team]] = []
        errors: list[tuple[Row, Team]] = []
        per_minute = 0.0
        for team, recent, failed in zip(teams, answers[: len(teams)], answers[len(teams) :], strict=True):
            some = rows_of(team, recent)
            per_minute += _per_minute([rows.began(row) for row in some], now, whole=len(recent) < each)
            requests += [(row, team) for row in some]
            errors += [(row, team) for row in rows_of(team, failed)]
        newest = sorted(requests, key=lambda one: -one[0]["_at"])[: 2 * MOST_REQUESTS]
        worst = sorted(errors, key=lambda one: -one[0]["_at"])[:MOST_ERRORS]
        names = await self._usage.key_names(
            {str(row["key"]): team.id for row, team in (*newest, *worst) if row.get("key")}
        )
        return (
            tuple(rows.request_row(row, team.name, names) for row, team in newest),
            tuple(rows.request_row(row, team.name, names) for row, team in worst),
            per_minute,
        )

    # --- one key

    async def own(self, key: Key) -> Own:
        """The numbers of one key, for its holder: nothing of anybody else's but its team's limits."""
        loop = asyncio.get_running_loop()
        known = self._own.get(key.id)
        if known is not None and loop.time() < known[0]:
            return known[1]
        began = loop.time()
        found = await self._read_own(key)
        if len(self._own) >= MOST_OWNERS:
            self._own.pop(next(iter(self._own)))
        self._own[key.id] = (began + max(FRESH, (loop.time() - began) * SHARE), found)
        return found

    async def _read_own(self, key: Key) -> Own:
        now = self._clock()
        record = await self._cabinet.team(key.team)
        if record is None:  # nobody has written the team of keys without a team yet
            record = TeamRecord(id=key.team, name=key.team_name or key.team, created=key.created)
        team = team_of_record(record)
        rate = self._rate()
        async with self._usage.errors():
            own, shared = await standings(
                self._cabinet.store,
                [Scope(team.id, key.id, key.limits, team.zone), Scope(team.id, TEAM, record.limits, team.zone)],
                rate=rate,
                now=now,
            )
            days = sorted({day_of(hour * HOUR, team.zone).isoformat() for hour in _last(now)} | {_day(now, team)})
            used = await self._models([(team, key.id, day) for day in days])
            models = sorted({where for some in used for where in some})[:MOST_OWN]
            hours = await self._of_keys(
                [(hour_name(team.id, hour), key.id, models) for hour in _last(now)],
                [("HGET", f"sy:{{{team.id}}}:rh:{hour}", key.id) for hour in _last(now)],
            )
            (today,) = await self._of_keys(
                [(day_name(team.id, _day(now, team)), key.id, models)],
                [("ZSCORE", f"sy:{{{team.id}}}:top:{_day(now, team)}:refused", key.id)],
            )
            recent = await self._recent.rows(Wanted(key=key.id, limit=MOST_REQUESTS), [team])
        sums = Sums(*_total(today.values()))
        return Own(
            as_of=now,
            zone=str(team.zone),
            key=KeyRow(key.id, key.name, record.name, team.id, sums, rows.bars(own)),
            team_limits=rows.bars(shared),
            today=sums,
            hours=tuple(
                Hour(hour * HOUR, Sums(*_total(found.values()))) for hour, found in zip(_last(now), hours, strict=True)
            ),
            models=rows.model_rows({where: amounts for where, amounts in today.items() if any(amounts)}, MOST_MODELS),
            requests=tuple(rows.request_row(row, record.name, {key.id: key.name}) for row, _ in recent),
            rate=rate,
        )


# --- spans of hours (Unix seconds // 3600)


def _last(now: float) -> range:
    hour = int(now) // HOUR
    return range(hour - HOURS + 1, hour + 1)


def _today(now: float, zone: tzinfo) -> dict[int, float]:
    """The hours of today, and the part of each that is meant. Days of zones that are half an hour off begin within an
    hour, of which the half is taken."""
    return _span(begin(day_of(now, zone), zone), now, end_whole=True)


def _yesterday(now: float, zone: tzinfo) -> dict[int, float]:
    """The hours of yesterday until this time of day."""
    today = day_of(now, zone)
    first = begin(today - timedelta(days=1), zone)
    return _span(first, first + now - begin(today, zone), end_whole=False)


def _span(first: float, last: float, *, end_whole: bool) -> dict[int, float]:
    hours = dict.fromkeys(range(int(first) // HOUR, int(last) // HOUR + 1), 1.0)
    hours[int(first) // HOUR] = 1 - first % HOUR / HOUR
    if not end_whole:
        hours[int(last) // HOUR] = last % HOUR / HOUR
    return hours


def _needed(now: float, zone: tzinfo) -> list[int]:
    return sorted({*_last(now), *_today(now, zone), *_yesterday(now, zone)})


def _over(found: Mapping[int, dict[Where, Amounts]], span: Mapping[int, float]) -> tuple[Sums, dict[Where, Amounts]]:
    """All that was used in a span, and by model and provider."""
    models: dict[Where, Amounts] = {}
    for hour, part in span.items():
        for where, amounts in found.get(hour, {}).items():
            rows.add(models.setdefault(where, rows.nothing()), amounts, part)
    return Sums(*_total(models.values())), models


def _hour(found: Mapping[int, dict[Where, Amounts]], hour: int) -> Hour:
    return Hour(hour * HOUR, Sums(*_total(found.get(hour, {}).values())))


# --- small parts


def _total(some: Iterable[Amounts]) -> Amounts:
    total = rows.nothing()
    for amounts in some:
        rows.add(total, amounts)
    return total


def _summed_name(hour: int) -> str:
    """An hour of all teams together, in a slot of its own: what its teams' hashes say, by who read them."""
    return f"sy:sums:{hour}"


def _day(now: float, team: Team) -> str:
    return day_of(now, team.zone).isoformat()


def _where(member: bytes) -> Where:
    model, _, provider = member.decode("utf-8", "replace").rpartition("\t")
    return model, provider


def _pairs(answer: Sequence[Any]) -> list[tuple[str, int]]:
    """Members and scores, as servers of either protocol version answer them."""
    flat = [part for one in answer for part in one] if answer and isinstance(answer[0], list | tuple) else answer
    return [(flat[at].decode(), int(float(flat[at + 1]))) for at in range(0, len(flat), 2)]


def _per_minute(began: Sequence[float], now: float, *, whole: bool) -> float:
    """How many calls begin in a minute, by the newest ones. `whole`: there are no more than these."""
    if not began:
        return 0.0
    oldest = min(began)
    if whole or oldest < now - 60:
        return float(sum(moment >= now - 60 for moment in began))
    return 60 * len(began) / max(now - oldest, 1.0)


def _percentile(values: Iterable[float | None]) -> float | None:
    """The 95th percentile."""
    known = sorted(value for value in values if value is not None)
    return known[min(len(known) * 95 // 100, len(known) - 1)] if known else None
