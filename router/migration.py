"""Keys of the layout before teams: `sy:<id>:key` (JSON), `sy:<id>:used`, and the set `sy:keys` of all ids.

Each key is written anew, then its old record and last its entry in the index go: an interrupted migration goes on where
it stopped, and one that is done finds an empty index. The label that was a key's team becomes a team.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

import msgspec

from router.changes import Conflict, TeamChange
from router.records import DEFAULT_TEAM, Record, new_etag, used_name

if TYPE_CHECKING:
    from router.keys import Keys

log = logging.getLogger("switchyard.keys")

INDEX: Final = "sy:keys"
_decode = msgspec.json.Decoder(Record).decode


async def migrate(keys: Keys) -> int:
    """Bring keys of the old layout over. How many there were. Raises StoreUnavailable."""
    found = cast("Iterable[bytes]", await keys.cabinet.ask("SMEMBERS", INDEX))
    ids = sorted(member.decode() for member in found)
    if not ids:
        return 0
    teams: dict[str, str] = {}
    for key_id in ids:
        await _bring(keys, key_id, teams)
    log.warning("%d keys were brought over from the layout of an earlier version", len(ids))
    return len(ids)


async def _bring(keys: Keys, key_id: str, teams: dict[str, str]) -> None:
    cabinet = keys.cabinet
    raw = await cabinet.raw(f"sy:{key_id}:key")
    if raw is not None:
        try:
            old = _decode(raw)
        except msgspec.DecodeError:
            log.warning("the record of key %s cannot be read; it stays as it is", key_id)
            return
        label = old.team.strip().replace("/", "-") if old.team != DEFAULT_TEAM else ""
        if label not in teams:
            teams[label] = await _team(keys, label)
        record = msgspec.structs.replace(old, team=teams[label], etag=new_etag(old.version))
        place = await cabinet.place(key_id)
        if place is None or place == record.team:
            told = {"team_id": record.team}
            async with keys.trail.entry("key.migrate", f"key {key_id}", None, told, name=record.name):
                await cabinet.add(record)
        used = await cabinet.raw(f"sy:{key_id}:used")
        if used is not None and used.isdigit():
            await cabinet.ask("HSETNX", used_name(record.team), key_id, used)
    await cabinet.ask("DEL", f"sy:{key_id}:key")
    await cabinet.ask("DEL", f"sy:{key_id}:used")
    await cabinet.ask("SREM", INDEX, key_id)


async def _team(keys: Keys, label: str) -> str:
    """The id of the team of that name, made when it is missing: a label is taken as it is, also when it is like
    another one."""
    if not label:
        return (await keys.teams.ensure_default()).id
    found = await keys.teams.find(label)
    if found is None:
        try:
            found = await keys.teams.create(TeamChange(name=label))
        except Conflict:  # another router does the same
            found = await keys.teams.get(label)
    return found.id
