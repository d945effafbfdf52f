"""Reading and writing the records of keys and teams. The layout is in `router.records`.

No command names two slots, so that all of it works on a Cluster. Records change by compare-and-set only: the function
`put` of the ledger's library writes when the record still has the etag that was read.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, cast

import msgspec
from redis.exceptions import RedisError

from providers.errors import StoreUnavailable
from router import functions
from router.records import (
    TEAMS,
    Record,
    TeamRecord,
    decode_key,
    decode_team,
    encode,
    key_name,
    keys_name,
    new_etag,
    place_name,
    split,
    successor,
    team_name,
    unreadable,
    used_name,
)
from router.store import Store, explain

BATCH: Final = 500
"""Records in one round trip: bounds the time that it occupies the store."""


class Cabinet:
    """The records in a store. Everything raises `StoreUnavailable` when the store cannot be asked, or holds what cannot
    be read."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @contextlib.asynccontextmanager
    async def errors(self) -> AsyncIterator[None]:
        """The store's errors, as ours."""
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"The keys cannot be read or changed: {explain(self.store.name, error)}.") from error

    async def call(self, function: str, keys: Sequence[str], arguments: Sequence[str | bytes]) -> Any:
        """A function of the ledger's library."""
        async with self.errors():
            return await functions.call(self.store, function, keys, arguments)

    async def ask(self, *command: str | bytes | int) -> Any:
        """One command about one slot."""
        async with self.errors():
            return await self.store.run(*command)

    async def gather(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """Many commands, each about one slot, in few round trips."""
        found: list[Any] = []
        async with self.errors():
            for start in range(0, len(commands), BATCH):
                found += await self.store.gather(commands[start : start + BATCH])
        return found

    async def raw(self, name: str) -> bytes | None:
        return cast("bytes | None", await self.ask("GET", name))

    async def put(self, name: str, expected: str, raw: bytes, members: Iterable[tuple[str, str]] = ()) -> bool:
        """Write a record if it has the etag `expected` ("" for none, "*" for any), and add the members to their sets
        (of the same slot). Whether it was written; a repetition of the same writing counts as written."""
        pairs = list(members)
        names = [name, *(of for of, _ in pairs)]
        return bool(await self.call("put", names, [expected, raw, *(member for _, member in pairs)]))

    # --- keys

    async def place(self, key_id: str) -> str | None:
        """The id of the team that the key is in."""
        found = await self.raw(place_name(key_id))
        return None if found is None else found.decode()

    async def key(self, team: str, key_id: str) -> Record | None:
        raw = await self.raw(key_name(team, key_id))
        if raw is None:
            return None
        try:
            return decode_key(raw)
        except StoreUnavailable:
            raise unreadable(f"The record of key {key_id}") from None

    async def find(self, key_id: str) -> Record | None:
        """A key wherever it is. One that is on its way to another team arrives first (see `move`)."""
        for _ in range(3):
            team = await self.place(key_id)
            record = None if team is None else await self.key(team, key_id)
            if record is None:
                if team is None or team == await self.place(key_id):
                    return None
            elif record.moving:
                await self._arrive(record)
            else:
                return record
        return None

    async def add(self, record: Record) -> bool:
        """A new key. False when there is one with its id, which is left as it is. Its place is written first: a place
        without a record means nothing, a record without its place could not be used."""
        await self.ask("SET", place_name(record.id), record.team, "NX")
        members = [(keys_name(record.team), record.id)]
        return await self.put(key_name(record.team, record.id), "", encode(record), members)

    async def replace(self, old: Record, new: Record) -> bool:
        """False when somebody else changed it meanwhile."""
        return await self.put(key_name(old.team, old.id), old.etag, encode(new))

    async def move(self, old: Record, new: Record) -> bool:
        """`new` (in another team) takes the place of `old`. False when somebody else changed it meanwhile.

        The old record is frozen first: marked, it still opens for calls, but who wants to change it finishes the move.
        Then the new one is written, then the place, and the old one goes. Interrupted anywhere, no change is lost and
        the key works.
        """
        frozen = successor(old, msgspec.structs.replace(old, moving=new.team))
        if not await self.replace(old, frozen):
            return False
        await self._arrive(frozen, new)
        return True

    async def _arrive(self, frozen: Record, new: Record | None = None) -> None:
        if new is None:  # what an interrupted move left
            new = successor(frozen, msgspec.structs.replace(frozen, team=frozen.moving, moving=""))
        await self.put(key_name(new.team, new.id), "", encode(new), [(keys_name(new.team), new.id)])
        used = cast("bytes | None", await self.ask("HGET", used_name(frozen.team), new.id))
        if used is not None:
            await self.ask("HSET", used_name(new.team), new.id, used)
        await self.ask("SET", place_name(new.id), new.team)
        await self.ask("SREM", keys_name(frozen.team), new.id)
        await self.ask("HDEL", used_name(frozen.team), new.id)
        await self.ask("DEL", key_name(frozen.team, new.id))

    async def key_ids(self, team: str) -> list[str]:
        """In order of the ids, which are random."""
        found = cast("Iterable[bytes]", await self.ask("SMEMBERS", keys_name(team)))
        return sorted(member.decode() for member in found)

    async def keys(self, team: str, key_ids: Sequence[str]) -> list[bytes | None]:
        """The raw records of a team's keys."""
        return await self._many("MGET", [key_name(team, key_id) for key_id in key_ids])

    async def used(self, team: str, key_ids: Sequence[str]) -> list[int | None]:
        """When keys were last used, in Unix seconds."""
        found = await self._many("HMGET", key_ids, used_name(team))
        return [int(value) if value is not None and value.isdigit() else None for value in found]

    async def _many(self, command: str, names: Sequence[str], *first: str) -> list[bytes | None]:
        found: list[bytes | None] = []
        for start in range(0, len(names), BATCH):
            found += cast("list[bytes | None]", await self.ask(command, *first, *names[start : start + BATCH]))
        return found

    # --- teams

    async def team(self, team: str) -> TeamRecord | None:
        raw = await self.raw(team_name(team))
        return None if raw is None else decode_team(raw)

    async def team_ids(self) -> list[str]:
        return sorted(member.decode() for member in cast("Iterable[bytes]", await self.ask("SMEMBERS", TEAMS)))

    async def team_count(self) -> int:
        """One more for each team that was made: none goes."""
        return cast("int", await self.ask("SCARD", TEAMS))

    async def teams(self) -> list[TeamRecord]:
        """All teams, by name."""
        raws = await self.gather([("GET", team_name(team)) for team in await self.team_ids()])
        found = [decode_team(raw) for raw in raws if raw is not None]
        return sorted(found, key=lambda team: (team.name.casefold(), team.id))

    async def add_team(self, record: TeamRecord) -> bool:
        """False when there is one with its id. The index is written first: an id without a record is skipped."""
        await self.ask("SADD", TEAMS, record.id)
        return await self.put(team_name(record.id), "", encode(record))

    async def replace_team(self, old: TeamRecord, new: TeamRecord) -> bool:
        """False when somebody else changed it meanwhile."""
        return await self.put(team_name(old.id), old.etag, encode(new))

    # --- small values that are changed like records

    async def value(self, name: str) -> tuple[str, str]:
        """Etag and text; empty when there is nothing."""
        raw = await self.raw(name)
        if raw is None:
            return "", ""
        etag, content = split(raw)
        return etag, content.decode()

    async def set_value(self, name: str, expected: str, text: str) -> bool:
        return await self.put(name, expected, f"{new_etag(1)}\n{text}".encode())
