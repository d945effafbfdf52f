"""What a worker remembers of keys and their teams between calls: never trusted, only compared.

A reservation names the etags it reckons with and is refused as stale when the store has others. So nothing here can be
out of date for longer than one question, and nobody has to be told of a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from typing import Any, Final, NamedTuple, Protocol

from redis.exceptions import ResponseError

from providers.errors import StoreUnavailable
from router.checks import Check, Windows
from router.limits import Limit
from router.periods import zone_of
from router.pipe import pack
from router.records import (
    DEFAULT_TEAM,
    Key,
    Record,
    TeamRecord,
    decode_key,
    decode_team,
    key_name,
    key_of,
    place_name,
    split,
    team_name,
)
from router.routing import Rights

LIMIT: Final = 0.2
"""Seconds for finding out about one key."""
MOST_KEPT: Final = 20_000
"""Keys of which a worker remembers the record: 2 to 3 kB each."""
PLACES: Final = 3
"""Teams in which a key is looked for that is being moved just now."""
_NOBODY: Final = b"\0" * 32


Checks = dict[tuple[tuple[str, ...], float], tuple[Check, ...]]
"""By the patterns that fit a call and the exchange rate."""


class Asks(Protocol):
    """The store's hot path (`router.link.Links`)."""

    def ask(self, tag: str, command: bytes, *, limit: float = ...) -> Awaitable[Any]: ...


@dataclass(slots=True, eq=False)
class Known:
    """A key and its team as they lay in the store, as it confirmed last at `seen` (monotonic seconds)."""

    key: Key
    digest: bytes
    old_digest: bytes
    """The secret before the last rotation, of 32 zero bytes where there is none. It counts until `key.old_until`."""
    team: TeamRecord
    zone: tzinfo
    names: tuple[str, str]
    """Of the two records in the store."""
    etags: tuple[str, str]
    """Theirs; empty for a default team that nobody has written yet."""
    prefix: str
    """What all names of the team in the store begin with."""
    seen: float
    patterns: tuple[str, ...]
    """Of models, in the limits of key and team."""
    team_checks: Checks
    """Which of the team's limits count a call, for all of its keys."""
    checks: Checks = field(default_factory=dict)
    """Which limits count a call: the key's, then the team's."""
    windows: Windows = field(default_factory=dict)
    """Where their counters are not in the calendar's windows."""

    @property
    def limits(self) -> tuple[Limit, ...]:
        return (*self.key.limits, *self.team.limits)


class Shared(NamedTuple):
    """What all keys of a team have in common: kept once."""

    team: TeamRecord
    etag: str
    zone: tzinfo
    name: str
    """Of its record in the store."""
    prefix: str
    checks: Checks


class Memory:
    """Records by key id. Make it inside the running loop."""

    def __init__(self, links: Asks, monotonic: Callable[[], float]) -> None:
        self._links = links
        self._monotonic = monotonic
        self._kept: dict[str, Known] = {}
        self._teams: dict[str, Shared] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key_id: str) -> Known | None:
        return self._kept.get(key_id)

    async def fetch(self, key_id: str, limit: float = LIMIT) -> Known | None:
        """As the store has it now; known within `limit` seconds. Raises StoreUnavailable."""
        until = asyncio.get_running_loop().time() + limit
        kept = self._kept.get(key_id)
        if kept is not None:
            found = await self._read(key_id, kept.team.id, until)
            if found is not None:
                return found
        # Never seen, or it has moved to another team.
        before: bytes | None = None
        for _ in range(PLACES):
            place = await self._asked(place_name(key_id), pack("GET", place_name(key_id)), until)
            if place is None or place == before:
                break
            found = await self._read(key_id, place.decode(), until)
            if found is not None:
                return found
            before = place  # it may have left while we looked there
        self._kept.pop(key_id, None)
        return None

    async def _read(self, key_id: str, team: str, until: float) -> Known | None:
        raw_key, raw_team = await self._asked(team, pack("MGET", key_name(team, key_id), team_name(team)), until)
        return self.learn(key_id, team, raw_key, raw_team)

    async def _asked(self, tag: str, command: bytes, until: float) -> Any:
        try:
            return await self._links.ask(tag, command, limit=until - asyncio.get_running_loop().time())
        except ResponseError as error:
            raise StoreUnavailable("The key store refuses to be read.", retry_after=1) from error

    def learn(self, key_id: str, team: str, raw_key: bytes | None, raw_team: bytes | None) -> Known | None:
        """What the store said of a key and its team. None when there is no such key (any more)."""
        if raw_key is None:
            self._kept.pop(key_id, None)
            return None
        kept = self._kept.get(key_id)
        etags = (split(raw_key)[0], split(raw_team)[0] if raw_team else "")
        if kept is not None and kept.etags == etags and kept.team.id == team:
            kept.seen = self._monotonic()
            return kept
        shared = self._teams.get(team)
        if shared is None or shared.etag != etags[1]:
            if len(self._teams) >= MOST_KEPT and team not in self._teams:
                del self._teams[next(iter(self._teams))]
            shared = self._teams[team] = _shared(team, raw_team, etags[1])
        known = make_known(decode_key(raw_key), shared, etags[0], self._monotonic())
        if len(self._kept) >= MOST_KEPT and key_id not in self._kept:
            del self._kept[next(iter(self._kept))]
        self._kept[key_id] = known
        return known


def _shared(team_id: str, raw: bytes | None, etag: str) -> Shared:
    if raw:
        team = decode_team(raw)
    elif team_id == DEFAULT_TEAM:
        team = TeamRecord(id=DEFAULT_TEAM, name=DEFAULT_TEAM, created=0)
    else:
        raise StoreUnavailable("The record of the key's team is missing in the store; restore it from an export.")
    return Shared(team, etag, zone_of(team.timezone), team_name(team_id), f"sy:{{{team_id}}}:", {})


def rights_in(rights: Rights, team: TeamRecord) -> Rights:
    """The rights of a key of this team: what both allow."""
    return replace(rights, deny=(*rights.deny, *team.deny), team_models=team.models)


def make_known(record: Record, shared: Shared, etag: str, seen: float) -> Known:
    team = shared.team
    key = key_of(record, team.name)
    if team.models or team.deny:
        key = replace(key, rights=rights_in(key.rights, team))
    return Known(
        key=key,
        digest=bytes.fromhex(record.digest) if record.digest else _NOBODY,
        old_digest=bytes.fromhex(record.old_digest) if record.old_digest else _NOBODY,
        team=team,
        zone=shared.zone,
        names=(key_name(team.id, record.id), shared.name),
        etags=(etag, shared.etag),
        prefix=shared.prefix,
        seen=seen,
        patterns=tuple(dict.fromkeys(limit.models for limit in (*record.limits, *team.limits) if limit.models)),
        team_checks=shared.checks,
    )
