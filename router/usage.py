"""What was used: reads the sums that the ledger keeps by hour and by day.

The names of the hashes follow from the team and the dates, so nothing is searched for: a report over thirty days of
one team reads thirty hashes, however many keys there are. Each field is `<key id>\\t<model>\\t<provider>\\t<metric>`.
Hours are kept for 35 days, days (of the team's time zone) for 400.

Large hashes are read in pieces, so that no command of a report holds the store up, and a report that would not fit is
refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Literal, get_args

import msgspec
from redis.exceptions import RedisError

from providers.errors import InvalidRequest, StoreUnavailable
from router.patterns import Pattern
from router.periods import HOUR, Span, hour_day, zone_of
from router.records import TeamRecord, key_name, place_name, split
from router.store import Store, explain

log = logging.getLogger("switchyard.usage")

Metric = Literal[
    "calls", "errors", "fallbacks", "aborted", "estimated", "unpriced",
    "in", "cached", "cache_write", "out", "reasoning", "media", "cost",
]  # fmt: skip
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
"""Calls, then tokens, then the cost in micro-USD. `cached` and `cache_write` are part of `in`, `reasoning` of `out`."""
Dimension = Literal["team", "key", "model", "provider", "hour", "day"]
DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)
By = Literal["hour", "day"]

MOST_ROWS: Final = 50_000
MOST_HASHES: Final = 100_000
AT_ONCE: Final = 200
"""Commands in one pipeline."""
PIECE: Final = 2000
"""Fields that one command may answer: some milliseconds of the store's and of our own time."""
READERS: Final = 2
"""Reports that are read at once in one process; the others wait."""

_INDEX: Final[Mapping[bytes, int]] = {metric.encode(): place for place, metric in enumerate(METRICS)}

Amounts = list[int]
"""One sum for each of METRICS, in their order."""


@dataclass(frozen=True, slots=True)
class Team:
    """A team as far as its usage goes."""

    id: str
    name: str
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Query:
    """What to sum up. `key` is a key's id; `model` and `provider` are names or patterns of them."""

    span: Span
    group_by: tuple[Dimension, ...] = ()
    by: By | None = None
    key: str | None = None
    model: str | None = None
    provider: str | None = None

    @property
    def hourly(self) -> bool:
        """Whether the sums by hour are read. Raises InvalidRequest where days were asked for and cannot do."""
        needed = self.span.exact or "hour" in self.group_by
        if needed and self.by == "day":
            raise InvalidRequest("sums by day have no hours: leave `by` out, or say by=hour", param="by")
        return needed or self.by == "hour"


@dataclass(frozen=True, slots=True)
class Row:
    """`group`: a value for each dimension asked for, in that order (ids of teams and keys, ISO days and hours)."""

    group: tuple[str, ...]
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Report:
    """Rows by time, then by cost. `names` gives the names of teams and keys by their ids."""

    group_by: tuple[Dimension, ...]
    rows: list[Row]
    total: Amounts
    names: Mapping[str, str] = field(default_factory=dict)


class UsageReader:
    """Reads usage of one store. Raises `InvalidRequest` and `StoreUnavailable`."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self._turn = asyncio.Semaphore(READERS)
        self.clock = clock

    async def read(self, query: Query, teams: Sequence[Team]) -> Report:
        """Sum up what these teams used."""
        now = self.clock()
        hourly = query.hourly
        sums = _Sums(query, {team.zone for team in teams})
        planned = 0
        plans: list[tuple[Team, list[tuple[str, int | str]]]] = []
        for team in teams:
            names: list[tuple[str, int | str]]
            if hourly:
                names = [(hour_name(team.id, hour), hour) for hour in query.span.hours(now, team.zone)]
            else:
                days = query.span.days(now, team.zone)
                names = [(day_name(team.id, day.isoformat()), day.isoformat()) for day in days]
            planned += len(names)
            if planned > MOST_HASHES:
                raise InvalidRequest("that is too much to read at once: ask for fewer teams or a shorter time")
            plans.append((team, names))
        async with self._turn, self.errors():
            for team, names in plans:
                async for label, pairs in self._hashes(names, query.key):
                    sums.add(team, label, pairs)
            named = {team.id: team.name for team in teams} | await self.key_names(sums.keys)
        # In a thread, as everything whose length is that of the report: calls go on meanwhile.
        return await asyncio.to_thread(sums.report, named)

    # --- the store

    async def _hashes(
        self, names: Sequence[tuple[str, int | str]], key: str | None
    ) -> AsyncIterator[tuple[int | str, Iterable[tuple[bytes, bytes]]]]:
        """The pairs of these hashes (name, label), piece by piece, each field once."""
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            sizes = await self._ask([("HLEN", name) for name, _ in some])
            whole: list[tuple[str, int | str]] = []
            waiting = 0
            for (name, label), size in zip(some, sizes, strict=True):
                if size > PIECE:
                    async for pairs in self._pieces(name, key):
                        yield label, pairs
                    continue
                if size == 0:
                    continue
                if waiting + size > PIECE:
                    async for found in self._whole(whole):
                        yield found
                    whole, waiting = [], 0
                whole.append((name, label))
                waiting += size
            async for found in self._whole(whole):
                yield found

    async def _whole(
        self, names: Sequence[tuple[str, int | str]]
    ) -> AsyncIterator[tuple[int | str, Iterable[tuple[bytes, bytes]]]]:
        answers = await self._ask([("HGETALL", name) for name, _ in names])
        for (_, label), found in zip(names, answers, strict=True):
            yield label, found.items()

    async def _pieces(self, name: str, key: str | None) -> AsyncIterator[Iterable[tuple[bytes, bytes]]]:
        """A large hash, a few thousand fields at a time. It may be told some fields twice while it grows."""
        seen: set[bytes] = set()
        match = () if key is None else ("MATCH", f"{_literal(key)}\t*")
        cursor = 0
        while True:
            cursor, found = await self.store.run("HSCAN", name, cursor, *match, "COUNT", PIECE // 2)
            fresh = [(field, value) for field, value in found.items() if field not in seen]
            seen.update(field for field, _ in fresh)
            yield fresh
            if cursor == 0:
                return

    async def key_names(self, keys: Mapping[str, str]) -> dict[str, str]:
        """The names of keys (id -> team id, where they were used); one without a record keeps its id."""
        named = await self._named(keys)
        gone = [key for key in keys if key not in named]
        # They may have gone to another team.
        places = await self._ask([("GET", place_name(key)) for key in gone])
        moved = {key: place.decode() for key, place in zip(gone, places, strict=True) if place}
        return named | await self._named(moved)

    async def _named(self, keys: Mapping[str, str]) -> dict[str, str]:
        raws = await self._ask([("GET", key_name(team, key)) for key, team in keys.items()])
        return {key: _named(raw) for key, raw in zip(keys, raws, strict=True) if raw}

    async def _ask(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        """The answers to these commands; one round trip for every AT_ONCE of them."""
        answers: list[Any] = []
        for start in range(0, len(commands), AT_ONCE):
            answers += await self.store.gather(commands[start : start + AT_ONCE])
        return answers

    @asynccontextmanager
    async def errors(self) -> AsyncIterator[None]:
        """Tells the store's failures in our own words."""
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"Usage cannot be read: {explain(self.store.name, error)}.") from error


class _Sums:
    """The rows of a report while it is read."""

    def __init__(self, query: Query, zones: set[tzinfo]) -> None:
        self.keys: dict[str, str] = {}
        """Ids of the keys in the rows, with their teams'."""
        self._group_by = query.group_by
        self._key = query.key
        self._model = None if query.model is None else Pattern(query.model)
        self._provider = None if query.provider is None else Pattern(query.provider)
        self._rows: dict[tuple[str, ...], Amounts] = {}
        self._total: Amounts = [0] * len(METRICS)
        self._shown = zones.pop() if len(zones) == 1 else UTC

    def add(self, team: Team, label: int | str, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Add fields of the hash of an hour (`label`: its number) or of a day (its ISO date)."""
        if isinstance(label, str):
            day, hour = label, ""
        else:
            day = hour_day(label, team.zone).isoformat()
            hour = datetime.fromtimestamp(label * HOUR, self._shown).isoformat(timespec="minutes")
        here: dict[bytes, Amounts | None] = {}
        total = self._total
        for name, value in pairs:
            of, _, metric = name.rpartition(b"\t")
            place = _INDEX.get(metric)
            if place is None:
                continue
            try:
                row = here[of]
            except KeyError:
                row = here[of] = self._row(team, day, hour, of)
            if row is not None:
                try:
                    amount = int(value)
                except ValueError:
                    self._unreadable(team, label, name)
                    continue
                row[place] += amount
                total[place] += amount

    def _unreadable(self, team: Team, label: int | str, name: bytes) -> None:
        """Somebody else wrote into the store."""
        hashed = day_name(team.id, label) if isinstance(label, str) else hour_name(team.id, label)
        log.warning("%s has a value that is no number, which counts as 0: %s", hashed, name.decode("utf-8", "replace"))

    def _row(self, team: Team, day: str, hour: str, of: bytes) -> Amounts | None:
        key, _, rest = of.decode("utf-8", "replace").partition("\t")
        model, _, provider = rest.rpartition("\t")
        if self._key is not None and key != self._key:
            return None
        if self._model is not None and self._model.match(model) is None:
            return None
        if self._provider is not None and self._provider.match(provider) is None:
            return None
        values = {"team": team.id, "key": key, "model": model, "provider": provider, "hour": hour, "day": day}
        group = tuple(values[dimension] for dimension in self._group_by)
        row = self._rows.get(group)
        if row is None:
            if len(self._rows) >= MOST_ROWS:
                raise InvalidRequest(f"more than {MOST_ROWS} rows: group by less, or filter", param="group_by")
            row = self._rows[group] = [0] * len(METRICS)
            if "key" in self._group_by:
                self.keys[key] = team.id
        return row

    def report(self, names: Mapping[str, str]) -> Report:
        times = [place for place, dimension in enumerate(self._group_by) if dimension in ("hour", "day")]
        cost = METRICS.index("cost")
        rows = [Row(group, amounts) for group, amounts in self._rows.items() if any(amounts)]
        rows.sort(
            key=lambda row: ([row.group[place] for place in times], -row.amounts[cost], -row.amounts[0], row.group)
        )
        return Report(self._group_by, rows, self._total, names)


# --- names in the store


def hour_name(team: str, hour: int) -> str:
    return f"sy:{{{team}}}:uh:{hour}"


def day_name(team: str, day: str) -> str:
    return f"sy:{{{team}}}:ud:{day}"


class _Named(msgspec.Struct):
    name: str


_decode: Final = msgspec.json.Decoder(_Named).decode


def team_of_record(record: TeamRecord) -> Team:
    return Team(record.id, record.name, zone_of(record.timezone))


def _named(raw: bytes) -> str:
    # The name alone: a report may show thousands of keys.
    return _decode(split(raw)[1]).name


def _literal(text: str) -> str:
    """`text` in a MATCH pattern of the store's, where it stands for itself."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)


# --- what is asked for, as text


def parse_group_by(text: str | None, allowed: Sequence[Dimension] = DIMENSIONS) -> tuple[Dimension, ...]:
    """`team,key`: the dimensions in that order. Raises InvalidRequest."""
    words = [word.strip().lower() for word in (text or "").split(",")[: len(DIMENSIONS) + 1] if word.strip()]
    found: list[Dimension] = []
    for word in words:
        known = next((dimension for dimension in allowed if dimension == word), None)
        if known is None:
            raise InvalidRequest(f"group_by takes {', '.join(allowed)}", param="group_by")
        if known not in found:
            found.append(known)
    return tuple(found)


def parse_by(text: str | None) -> By | None:
    """`hour`, `day` or None. Raises InvalidRequest."""
    if text is None or text == "":
        return None
    if text == "hour":
        return "hour"
    if text == "day":
        return "day"
    raise InvalidRequest("by is hour or day", param="by")
