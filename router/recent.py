"""Recent requests, read from the streams that the ledger keeps for each team (about the newest 2000 calls; no prompts).

A call adds an entry when it begins and one when it ends, each with the field `r`: a JSON object with `id`, and in the
end's with `status`. Here the two become one row. Calls that a limit refused never began: of them a second stream has
the first one of a key by a limit in an hour, next to the newest calls that failed.

Those rows are read of which the newest was said; they are told in the order in which the calls began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from router.periods import iso
from router.usage import Team, UsageReader
from router.usage_text import money

PAGE: Final = 200
"""Entries in one answer of the store."""
MOST: Final = 1000
"""Rows in one answer of ours."""
MOST_ENTRIES: Final = 50_000
OVERLAP: Final = 2000
"""Milliseconds that a follower reads again: stores' clocks differ, and entries of one millisecond may come later."""

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows. key: an id. failed: only those with a status of 400 or more, or that were lost. status: `running` or
    a number. fallback: only those that a fallback answered. after: only what happened since (Unix milliseconds)."""

    key: str | None = None
    status: int | None = None
    running: bool = False
    failed: bool = False
    fallback: bool = False
    limit: int = 100
    after: int | None = None

    def match(self, row: Row) -> bool:
        status = row.get("status")
        if self.key is not None and row.get("key") != self.key:
            return False
        if self.running and (status is not None or row.get("lost")):
            return False
        if self.status is not None and status != self.status:
            return False
        if self.fallback and not row.get("fallback"):
            return False
        return not self.failed or bool(row.get("lost")) or (isinstance(status, int) and status >= 400)


@dataclass(slots=True)
class _Stream:
    team: Team
    name: str = ""
    rows: dict[str, Row] = field(default_factory=dict)
    last: str = "+"
    oldest: int = 0
    over: bool = False


@dataclass(frozen=True, slots=True)
class Recent:
    """Rows, those that began last first; `cursor` is the `after` of a follower's next question."""

    rows: list[Row]
    cursor: int


class RecentReader:
    """Reads the streams. Raises StoreUnavailable."""

    def __init__(self, usage: UsageReader) -> None:
        self._usage = usage
        self._clock: Callable[[], float] = usage.clock

    async def read(self, wanted: Wanted, teams: Sequence[Team]) -> Recent:
        """The newest rows of these teams, as they are shown, with what limits refused."""
        found = await self.rows(wanted, teams, refused=True)
        async with self._usage.errors():
            names = await self._usage.key_names({str(row["key"]): team.id for row, team in found if row.get("key")})
        cursor = max(max((row["_at"] for row, _ in found), default=0) - OVERLAP, wanted.after or 0)
        return Recent([self._shown(row, team, names) for row, team in found], cursor)

    async def rows(
        self,
        wanted: Wanted,
        teams: Sequence[Team],
        *,
        refused: bool = False,
        page: int = PAGE,
        most: int = MOST_ENTRIES,
    ) -> list[tuple[Row, Team]]:
        """The newest rows of these teams as they are kept (see `rows_of`), those that began last first. refused: with
        what limits refused. page: entries that are read of a stream at once; most: of all streams together, about."""
        streams = [_Stream(team, recent_name(team.id)) for team in teams]
        if refused:
            # What both have is told by the stream of all calls: it also has what was said of them later.
            streams[:0] = [_Stream(team, errors_name(team.id)) for team in teams]
        async with self._usage.errors():
            left = most
            asked = streams
            found: list[tuple[Row, Team]] = []
            while asked and left > 0:
                left -= await self._page(asked, wanted, page)
                # A stream is read on while it may hold one of the newest rows.
                found = _matching(streams, wanted)
                edge = found[wanted.limit - 1][0]["_at"] if len(found) >= wanted.limit else -1
                asked = [stream for stream in streams if not stream.over and stream.oldest >= edge]
        return newest_first(found[: wanted.limit])

    async def _page(self, streams: Sequence[_Stream], wanted: Wanted, page: int) -> int:
        least = "-" if wanted.after is None else f"{wanted.after}-0"
        read = 0
        for start in range(0, len(streams), 50):
            some = streams[start : start + 50]
            answers = await self._usage.store.gather(
                [("XREVRANGE", stream.name, stream.last, least, "COUNT", page) for stream in some]
            )
            for stream, entries in zip(some, answers, strict=True):
                read += len(entries)
                stream.over = len(entries) < page
                _merge(stream, entries)
            await asyncio.sleep(0)  # others first
        return read

    def _shown(self, row: Row, team: Team, names: Mapping[str, str]) -> Row:
        known = {name: value for name, value in row.items() if not name.startswith("_") and name != "time"}
        start = began(row)
        key = row.get("key")
        shown: Row = {
            "id": known.pop("id"),
            "time": iso(start),
            "team": team.name,
            "team_id": team.id,
            "key": names.get(str(key), key),
            "key_id": key,
            "status": known.pop("status", None),
            "age": None,
        }
        known.pop("key", None)
        known.pop("team", None)
        if "cost" in known:
            cost = known["cost"]
            known["cost"] = money(cost) if isinstance(cost, int) else None
            known["cost_micro_usd"] = cost
        if shown["status"] is None and not row.get("lost"):
            shown["age"] = round(max(0.0, self._clock() - start), 1)
        return shown | known


def began(row: Mapping[str, Any]) -> float:
    """When a call began (Unix seconds), by its router's clock where that is told."""
    told = row.get("time")
    return float(told) if isinstance(told, int | float) else float(row["_began"]) / 1000


def newest_first(found: Sequence[tuple[Row, Team]]) -> list[tuple[Row, Team]]:
    """In the order of the times that are shown of them."""
    return sorted(found, key=lambda one: (began(one[0]), one[0]["_at"], one[0]["id"]), reverse=True)


def recent_name(team: str) -> str:
    return f"sy:{{{team}}}:recent"


def rows_of(team: Team, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Row]:
    """The calls in some entries of a team's stream, which come newest first: `_at` is when something was last said of
    one, `_began` when it began (Unix milliseconds)."""
    stream = _Stream(team)
    _merge(stream, entries)
    return list(stream.rows.values())


def errors_name(team: str) -> str:
    """Like the stream of recent requests, of those that failed, were lost or were refused by a limit."""
    return f"sy:{{{team}}}:errors"


def _matching(streams: Sequence[_Stream], wanted: Wanted) -> list[tuple[Row, Team]]:
    """The rows that are wanted, those of which the newest was said first. Of a call that several streams have the last
    one tells."""
    found = {(stream.team.id, name): (row, stream.team) for stream in streams for name, row in stream.rows.items()}
    wanted_ones = (one for one in found.values() if wanted.match(one[0]))
    return sorted(wanted_ones, key=lambda one: (one[0]["_at"], one[0]["id"]), reverse=True)


def _merge(stream: _Stream, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> None:
    """Entries come newest first."""
    for name, fields in entries:
        at = int(name.partition(b"-")[0])
        stream.last, stream.oldest = f"({name.decode()}", at
        try:
            entry = _decode(fields[b"r"])
        except (KeyError, msgspec.DecodeError):
            continue  # of a newer router
        call = entry.get("id")
        if not isinstance(call, str):
            continue
        known = stream.rows.get(call)
        if known is None:
            stream.rows[call] = {**entry, "_at": at, "_began": at}
        else:
            known["_began"] = at
            if not _ends(entry):
                stream.rows[call] = {**entry, **known}


def _ends(entry: Row) -> bool:
    return entry.get("status") is not None or bool(entry.get("lost"))
