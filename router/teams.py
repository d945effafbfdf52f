"""Teams: they hold keys, and may have limits of their own. What a team is: `router.records.TeamRecord`.

A name belongs to one team, whatever its case. Who has a name is kept in `sy:team-as:<digest of the name>`: the team's
id and when it was taken (Unix seconds). A name whose team does not bear it (a creation or a renaming that was
interrupted) may be taken over after `CLAIM_LIMIT` seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any, Final

import msgspec

from providers.errors import InvalidRequest, NotFound
from router.audit import Plan, Trail
from router.cabinet import Cabinet
from router.changes import LONGEST_NAME, Conflict, TeamChange, checked_team, quoted
from router.descriptions import describe_team
from router.limit_text import merge
from router.records import DEFAULT_TEAM, TeamRecord, is_team_id, new_etag, new_team_id, successor
from router.turns import Turns

CLAIM_LIMIT: Final = 30
"""Seconds. A writer needs far less between taking a name and bearing it."""
TRIES: Final = 8


def folded(name: str) -> str:
    """Names that are equal so are the same name."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def claim_name(name: str) -> str:
    return f"sy:team-as:{hashlib.sha256(folded(name).encode()).hexdigest()[:24]}"


def near(name: str, names: Iterable[str]) -> str | None:
    """One of the names that `name` is probably a slip of. Names that differ in their numbers alone are no slip."""
    plain = folded(name)
    found: list[tuple[float, str]] = []
    for other in names:
        known = folded(other)
        if _without(plain, str.isdigit) == _without(known, str.isdigit):
            continue
        if sorted(plain) == sorted(known) or _letters(plain) == _letters(known) != "":
            found.append((1.0, other))
            continue
        likeness = SequenceMatcher(None, plain, known).ratio()
        if likeness >= 0.85:
            found.append((likeness, other))
    return max(found)[1] if found else None


def _without(name: str, unwanted: Callable[[str], bool]) -> str:
    return "".join(mark for mark in name if not unwanted(mark))


def _letters(name: str) -> str:
    return _without(name, lambda mark: not mark.isalnum())


class Teams:
    """All that may be done with teams. Raises `InvalidRequest`, `NotFound`, `Conflict` and `StoreUnavailable`."""

    def __init__(
        self,
        cabinet: Cabinet,
        trail: Trail,
        *,
        clock: Callable[[], float] = time.time,
        turns: Turns | None = None,
    ) -> None:
        self._turns = turns or Turns()
        self._cabinet = cabinet
        self._trail = trail
        self._clock = clock

    async def list(self) -> Sequence[TeamRecord]:
        """All teams, by name."""
        await self.ensure_default()
        return await self._cabinet.teams()

    async def get(self, ref: str) -> TeamRecord:
        """A team by its id or its name."""
        found = await self.find(ref)
        if found is None:
            raise self._missing(ref, [team.name for team in await self._cabinet.teams()])
        return found

    async def find(self, ref: str) -> TeamRecord | None:
        if folded(ref) == DEFAULT_TEAM:
            return await self.ensure_default()
        if is_team_id(ref) and (team := await self._cabinet.team(ref)) is not None:
            return team
        if not ref or len(ref) > LONGEST_NAME:
            return None
        _, claim = await self._cabinet.value(claim_name(ref))
        team = await self._cabinet.team(claim.partition(" ")[0]) if claim else None
        return team if team is not None and folded(team.name) == folded(ref) else None

    def _missing(self, ref: str, names: Iterable[str]) -> NotFound:
        likely = near(ref, names)
        return NotFound(
            f"there is no team {quoted(ref)}" + (f"; did you mean '{likely}'?" if likely else ""), param="team"
        )

    async def ensure_default(self) -> TeamRecord:
        """The team of keys without one. The first who needs it makes it."""
        found = await self._cabinet.team(DEFAULT_TEAM)
        if found is not None:
            return found
        made = TeamRecord(id=DEFAULT_TEAM, name=DEFAULT_TEAM, created=int(self._clock()), etag=new_etag(1))
        await self._cabinet.add_team(made)
        return await self._cabinet.team(DEFAULT_TEAM) or made

    async def find_or_make(self, ref: str) -> tuple[TeamRecord, bool]:
        """The team, and whether it was made just now. Raises InvalidRequest when `ref` looks like a slip of another
        team's name."""
        found = await self.find(ref)
        if found is not None:
            return found, False
        if likely := near(ref, [team.name for team in await self._cabinet.teams()]):
            raise InvalidRequest(
                f"there is no team '{ref}'; did you mean '{likely}'? If it is another one, create it first:"
                f" switchyard teams create '{ref}'",
                param="team",
            )
        for attempt in range(TRIES):
            try:
                return await self.create(TeamChange(name=ref)), True
            except Conflict:  # somebody else makes it just now, and may not have written it yet
                found = await self.find(ref)
                if found is not None:
                    return found, False
                await asyncio.sleep(0.01 * attempt)
        raise Conflict(f"the team '{ref}' is just being made by others: try again in a minute")

    async def create(self, change: TeamChange) -> TeamRecord:
        fields = checked_team(change)
        if "name" not in fields:
            raise InvalidRequest("a team needs a name", param="name")
        name = fields["name"]
        await self._free(name, None)
        limits = merge((), fields.pop("limits", ()))
        team_id = await self._claim(name, None)
        made = TeamRecord(id=team_id, created=int(self._clock()), limits=limits, etag=new_etag(1), **fields)
        async with self._trail.entry("team.create", f"team {team_id}", None, describe_team(made), name=name):
            if not await self._cabinet.add_team(made):
                raise Conflict(f"there is a team '{name}' already")
        return made

    async def change(
        self, ref: str, change: TeamChange, *, expected: str | int | None = None, expected_version: int | None = None
    ) -> TeamRecord:
        """Set fields of a team; effective on the next call with any of its keys. expected: the version or the etag that
        it must still have; expected_version: likewise, beside an etag."""
        fields = checked_team(change)
        steps = fields.pop("limits", ())
        team_id = (await self.get(ref)).id
        left = ""

        async def plan() -> Plan[TeamRecord]:
            nonlocal left
            old = await self._cabinet.team(team_id)
            if old is None:
                raise NotFound(f"there is no team {quoted(ref)}", param="team")
            require(expected, old.version, old.etag, "team")
            require(expected_version, old.version, old.etag, "team")
            _allowed(old, fields)
            new = msgspec.structs.replace(old, **fields, limits=merge(old.limits, steps))
            if new == old:
                return Plan(old, {}, {}, old.name, None)
            new = successor(old, new)
            left = ""
            if folded(new.name) != folded(old.name):
                await self._free(new.name, old.id)
                await self._claim(new.name, old.id)
                left = old.name
            before, after = difference(describe_team(old), describe_team(new))
            return Plan(new, before, after, new.name, lambda: self._cabinet.replace_team(old, new))

        async with self._turns(team_id):
            team = await self._trail.swap("team.change", f"team {team_id}", plan)
        if team is None:
            raise Conflict("the team is being changed by others: try again")
        if left:
            await self._release(left, team_id)
        return team

    # --- names

    async def take_name(self, team: TeamRecord) -> None:
        """For a team that comes with its id from elsewhere. Raises Conflict when another team has the name."""
        await self._claim(team.name, team.id)

    async def _free(self, name: str, team_id: str | None) -> None:
        """Raises Conflict when `name` means another team: by its name, or by its id."""
        bearer = await self.find(name)
        if bearer is not None and bearer.id != team_id:
            which = f"there is a team '{bearer.name}' already"
            raise Conflict(which if folded(bearer.name) == folded(name) else f"'{name}' is the id of a team")

    async def _claim(self, name: str, team_id: str | None) -> str:
        """Take a name. The id of the team that may bear it: `team_id`, or for a new team an id that may be used."""
        place = claim_name(name)
        now = int(self._clock())
        etag, text = await self._cabinet.value(place)
        if text:
            holder, _, since = text.partition(" ")
            team = await self._cabinet.team(holder)
            if team is not None and folded(team.name) == folded(name):
                if holder == team_id:
                    return holder
                raise Conflict(f"there is a team '{name}' already")
            if holder != team_id and now - int(since or 0) < CLAIM_LIMIT:
                if team is None and team_id is None:
                    return holder  # whoever writes the record first has made the team
                raise Conflict(f"the name '{name}' is just being given to another team: try again in a minute")
        chosen = team_id or new_team_id()
        if not await self._cabinet.set_value(place, etag, f"{chosen} {now}"):
            raise Conflict(f"the name '{name}' is just being given to another team: try again in a minute")
        return chosen

    async def _release(self, name: str, team_id: str) -> None:
        etag, text = await self._cabinet.value(claim_name(name))
        if text.partition(" ")[0] == team_id:
            await self._cabinet.set_value(claim_name(name), etag, f"{team_id} 0")


def _allowed(old: TeamRecord, fields: dict[str, Any]) -> None:
    if old.state == "revoked" and fields.get("state", "revoked") != "revoked":
        raise Conflict("a revoked team stays revoked: create a new one and move keys there")
    if old.id == DEFAULT_TEAM:
        if fields.get("state") == "revoked":
            raise Conflict("the team 'default' can be disabled, not revoked: keys without a team are in it")
        if folded(fields.get("name", DEFAULT_TEAM)) != DEFAULT_TEAM:
            raise Conflict("the team 'default' keeps its name: keys without a team are in it")


def require(expected: str | int | None, version: int, etag: str, what: str) -> None:
    """Raises Conflict when the record is not at the version (or etag) that the caller saw."""
    if expected is not None and expected != (version if isinstance(expected, int) else etag):
        raise Conflict(f"the {what} was changed meanwhile (version {version}): read it again")


def difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of two descriptions, what differs; without versions."""
    names = [name for name in after if before.get(name) != after[name] and name not in ("version", "etag")]
    return {name: before.get(name) for name in names}, {name: after[name] for name in names}
