"""API keys: everything that may be done with them. How they lie in the store: `router.records`.

Each change stands in the audit log before it is made, and counts from the key's next call: whoever admits calls
compares with the store.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import msgspec

from providers.errors import InvalidRequest, NotAllowed, NotFound, Unauthorized
from router.audit import Actor, Audit, Plan, Trail
from router.cabinet import Cabinet
from router.changes import LONGEST_NAME, Change, Conflict, checked, parse_expiry, quoted, text
from router.credentials import (
    ALPHABET,
    ID_LENGTH,
    SHORTEST_TOKEN,
    base62,
    digest,
    load_peppers,
    new_credential,
    new_id,
)
from router.descriptions import describe_key
from router.holders import Holder, Holders
from router.limit_text import merge
from router.pepper import Pepper
from router.records import (
    DEFAULT_TEAM,
    Bootstrap,
    Key,
    Listed,
    Made,
    Page,
    Record,
    Rotated,
    TeamRecord,
    is_key_id,
    is_team_id,
    key_of,
    new_etag,
    readable,
    successor,
)
from router.store import Store, StoreError
from router.teams import Teams, difference, require
from router.throttle import Throttle
from router.turns import Turns

__all__ = ["Bootstrap", "Change", "Conflict", "Key", "Keys", "Listed", "describe", "open_keys", "parse_expiry"]

MOST_SCANNED: Final = 5000
"""Records that one page reads at most, however few of them fit its filter."""
PAGING_LIMIT: Final = 10.0
"""Seconds for which a large team's list of ids serves the pages after the first."""


def anonymous_id(name: str) -> str:
    """The id of the anonymous key of that name: the same in every router, so that all meet in one record without a
    lock.
    """
    number = int.from_bytes(hashlib.sha256(b"anonymous:" + name.encode()).digest())
    return base62(number % len(ALPHABET) ** ID_LENGTH, ID_LENGTH)


def describe(listed: Listed, now: float) -> dict[str, object]:
    """A key for people and machines: the command line's and the admin API's JSON."""
    return describe_key(listed.key, listed.last_used, now)


async def open_keys(store: Store, data_dir: Path, environ: Mapping[str, str] | None = None) -> Keys:
    """The keys of this store, with its pepper checked now and whenever the store comes back (see `Store.problem`)."""
    environ = os.environ if environ is None else environ
    pepper = Pepper(*load_peppers(data_dir, environ))
    keys = Keys(store, pepper, admin_token=environ.get("SWITCHYARD_ADMIN_TOKEN") or None)
    store.add_gate(keys.check_pepper)
    await store.ready()
    return keys


class Keys:
    """All that may be done with keys. Raises `InvalidRequest`, `NotFound`, `Conflict` and `StoreUnavailable`.

    `teams` are the teams of the same store, `audit` its log, `cabinet` its records.
    """

    def __init__(
        self,
        store: Store,
        pepper: Pepper | bytes,
        *,
        admin_token: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if admin_token is not None and len(admin_token) < SHORTEST_TOKEN:
            raise StoreError(
                f"the admin token (server.admin_token, SWITCHYARD_ADMIN_TOKEN) is too short: give it {SHORTEST_TOKEN}"
                " or more random characters (openssl rand -hex 24), or leave it unset and one is made"
            )
        self.peppers = pepper if isinstance(pepper, Pepper) else Pepper(pepper)
        self.clock = clock
        self.cabinet = Cabinet(store)
        self.audit = Audit(self.cabinet, self.peppers, clock=clock)
        self.trail = Trail(self.audit)
        self._turns = Turns()
        self.teams = Teams(self.cabinet, self.trail, clock=clock, turns=self._turns)
        self._store = store
        self.first: list[tuple[str, Record, str]] = []
        """What a start that is not through yet has made."""
        self._paging: tuple[str, float, Sequence[str]] = ("", 0.0, [])
        self._holders = Holders(self.cabinet, self.peppers, admin_token, clock)
        self.throttle = Throttle()
        """Of wrong admin tokens, wherever they are shown."""

    @property
    def pepper(self) -> bytes:
        """The one in use: which reading of the setting is meant may show only when the store is there."""
        return self.peppers.value

    def acting(self, actor: Actor) -> Keys:
        """The same, and the audit log will name `actor`."""
        other = copy.copy(self)
        other.trail = Trail(self.audit, actor)
        other.teams = Teams(self.cabinet, other.trail, clock=self.clock, turns=self._turns)
        return other

    # --- making and changing

    async def create(self, change: Change) -> tuple[Key, str]:
        """A new key and its credential, which exists in clear only in this answer. Its team is made when there is none
        of that name."""
        made = await self.make(change)
        return made.key, made.credential

    async def make(self, change: Change) -> Made:
        """As `create`, and whether the team was made."""
        fields = self.examined(change)
        await self.refuse_ids([fields["name"]])
        team, team_created = await self.teams.find_or_make(fields.pop("team", "") or DEFAULT_TEAM)
        record, credential = self.new_record(fields, team)
        key = key_of(record, team.name)
        after = describe_key(key, None, self.clock())
        async with self.trail.entry("key.create", f"key {record.id}", None, after, name=record.name):
            await self._add(record)
        return Made(key, credential, team_created)

    def examined(self, change: Change) -> dict[str, Any]:
        """The fields of a new key. Raises InvalidRequest."""
        fields = checked(change, self.clock())
        if "name" not in fields:
            raise InvalidRequest("a key needs a name", param="name")
        fields["limits"] = merge((), fields.get("limits", ()))
        return fields

    async def refuse_ids(self, names: Iterable[str]) -> None:
        """Raises Conflict for a name that is the id of a key."""
        for name in names:
            if is_key_id(name) and await self.cabinet.place(name) is not None:
                raise Conflict(f"'{name}' is the id of a key: choose another name")

    def new_record(self, fields: Mapping[str, Any], team: TeamRecord) -> tuple[Record, str]:
        """A key that nobody has written yet, and its credential. Raises Conflict for a revoked team."""
        if team.state == "revoked":
            raise Conflict(f"the team '{team.name}' is revoked: it takes no new keys")
        key_id = new_id()
        credential = new_credential(key_id)
        record = Record(
            id=key_id,
            name="",
            created=int(self.clock()),
            digest=digest(self.pepper, credential).hex(),
            team=team.id,
            etag=new_etag(1),
        )
        return msgspec.structs.replace(record, **fields), credential

    async def change(
        self, ref: str, change: Change, *, expected_version: int | None = None, expected_etag: str | None = None
    ) -> Key:
        """Set fields of a key (by id or by its name, when only one key has it). Effective on the next call made with
        it. With another team the key moves there; what it spent stays with the old team and it starts from nothing.
        """
        fields = checked(change, self.clock())
        team = await self._destination(fields.pop("team", ""))
        steps = fields.pop("limits", ())

        def changed(old: Record) -> Record:
            if old.state == "revoked" and fields.get("state", "revoked") != "revoked":
                raise Conflict("a revoked key stays revoked: create a new one")
            new = msgspec.structs.replace(old, **fields, limits=merge(old.limits, steps))
            if team is not None and team.id != old.team:
                if team.state == "revoked" or old.state == "revoked":
                    raise Conflict("what is revoked stays where it is: create a new key")
                new = msgspec.structs.replace(new, team=team.id)
            return new

        key_id = await self._resolve(ref)
        await self.refuse_ids([fields["name"]] if fields.get("name", key_id) != key_id else ())
        action = {"revoked": "key.revoke"}.get(fields.get("state", ""), "key.change")
        return await self._swap(key_id, ref, action, changed, expected_version, expected_etag)

    async def revoke(self, ref: str, *, expected_version: int | None = None, expected_etag: str | None = None) -> Key:
        """End a key for good. Its record stays, so that logs and spending keep their owner."""
        change = Change(state="revoked")
        return await self.change(ref, change, expected_version=expected_version, expected_etag=expected_etag)

    async def rotate(
        self,
        ref: str,
        overlap: int,
        *,
        expected_version: int | None = None,
        expected_etag: str | None = None,
    ) -> Rotated:
        """A new secret for a key that keeps its id, its limits and what it spent. The old one works for `overlap` more
        seconds; one before it ends now."""
        key_id = await self._resolve(ref)
        credential = new_credential(key_id)
        shown = digest(self.pepper, credential).hex()
        now = int(self.clock())
        ended = False

        def told() -> dict[str, object]:
            return {"overlap_seconds": overlap, "ended_earlier": ended}

        def rotated(old: Record) -> Record:
            nonlocal ended
            if old.anonymous:
                raise Conflict("this key is of a listener without keys: it has no secret to rotate")
            if old.state == "revoked":
                raise Conflict("a revoked key stays revoked: create a new one")
            ended = bool(old.old_digest) and (old.old_until or 0) > now
            kept = {"old_digest": old.digest, "old_until": now + overlap} if overlap else _NO_OVERLAP
            return msgspec.structs.replace(old, digest=shown, **kept)

        key = await self._swap(key_id, ref, "key.rotate", rotated, expected_version, expected_etag, told)
        return Rotated(key, credential, ended)

    async def end_overlap(
        self, ref: str, *, expected_version: int | None = None, expected_etag: str | None = None
    ) -> Key:
        """From now on only the newest secret of the key works."""

        def ended(old: Record) -> Record:
            return msgspec.structs.replace(old, **_NO_OVERLAP)

        key_id = await self._resolve(ref)
        return await self._swap(key_id, ref, "key.end_overlap", ended, expected_version, expected_etag)

    async def _swap(
        self,
        key_id: str,
        ref: str,
        action: str,
        changed: Callable[[Record], Record],
        expected_version: int | None,
        expected_etag: str | None,
        more: Callable[[], Mapping[str, object]] = dict,
    ) -> Key:
        """more: what the audit log is told beside the fields that differ."""

        async def plan() -> Plan[Key]:
            old = await self.cabinet.find(key_id)
            if old is None:
                raise _missing(ref)
            require(expected_version, old.version, old.etag, "key")
            require(expected_etag, old.version, old.etag, "key")
            new = changed(old)
            key = await self._named(new)
            if new == old:
                return Plan(key, {}, {}, key.name, None)
            new = successor(old, new)
            key = key_of(new, key.team_name)
            now = self.clock()
            before, after = difference(describe_key(await self._named(old), None, now), describe_key(key, None, now))
            write = self.cabinet.replace if new.team == old.team else self.cabinet.move
            return Plan(key, before, {**after, **more()}, key.name, lambda: write(old, new))

        async with self._turns(key_id):
            key = await self.trail.swap(action, f"key {key_id}", plan)
        if key is None:
            raise Conflict("the key is being changed by others: try again")
        return key

    async def _destination(self, ref: str) -> TeamRecord | None:
        return await self.teams.get(ref) if ref else None

    async def _named(self, record: Record) -> Key:
        team = await self.cabinet.team(record.team)
        return key_of(record, team.name if team is not None else "")

    async def ensure_anonymous(self, name: str) -> Key:
        """The key whose rights keyless callers of a listener get; when missing it is made, for local providers only."""
        team = await self.teams.ensure_default()
        record = Record(
            id=anonymous_id(name),
            name=text(name, "name"),
            created=int(self.clock()),
            local_only=True,
            allow_fallback=True,
            anonymous=True,
            etag=new_etag(1),
        )
        found = await self.cabinet.find(record.id)
        if found is None:
            after = describe_key(key_of(record, team.name), None, self.clock())
            async with self.trail.entry("key.create", f"key {record.id}", None, after, name=record.name):
                await self.cabinet.add(record)
            found = await self.cabinet.find(record.id)
        return await self._named(found or record)

    # --- looking

    async def list(self, *, team: str = "") -> Sequence[Listed]:
        """All keys (of one team), oldest first."""
        found = [listed async for listed in self.scan(team=team)]
        return sorted(found, key=lambda listed: (listed.key.created, listed.key.id))

    async def scan(self, *, team: str = "") -> AsyncIterator[Listed]:
        """All keys (of one team), in the order of teams and ids, however many there are."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self.page(team=team, limit=MOST_SCANNED, cursor=cursor)
            for listed in page.keys:
                yield listed
            cursor = page.cursor

    async def page(self, *, team: str = "", state: str = "", q: str = "", limit: int = 100, cursor: str = "") -> Page:
        """At most `limit` keys from `cursor` on. state: as `Key.condition` tells it; q: a substring of id, name, owner
        or a tag, without regard to case. Bounded: a page may be short of matches while its cursor leads on."""
        teams = [await self.teams.get(team)] if team else sorted(await self.teams.list(), key=lambda one: one.id)
        at_team, _, after = cursor.partition(":")
        if cursor and not (is_team_id(at_team) and is_key_id(after)):
            raise InvalidRequest("cursor is the `next` of the page before", param="cursor")
        now, wanted = self.clock(), q.casefold()
        found: list[Listed] = []
        unreadable: list[str] = []
        scanned = 0
        for one in teams:
            if one.id < at_team:
                continue
            ids = await self._ids(one.id, after if one.id == at_team else "")
            while ids:
                batch = ids[: max(1, min(500, MOST_SCANNED - scanned))]
                for key_id, raw in zip(batch, await self.cabinet.keys(one.id, batch), strict=True):
                    record = None if raw is None else readable(raw)
                    if record is None:
                        unreadable += [key_id] if raw is not None else []
                        continue
                    key = key_of(record, one.name)
                    if (state and key.condition(now) != state) or (wanted and not _fits(key, wanted)):
                        continue
                    if len(found) == limit:
                        last = found[-1].key
                        passed = [one for one in unreadable if one <= last.id or one not in batch]
                        return Page(await self._with_use(found), f"{last.team}:{last.id}", passed)
                    found.append(Listed(key, None))
                scanned += len(batch)
                ids = ids[len(batch) :]
                if scanned >= MOST_SCANNED:
                    return Page(await self._with_use(found), f"{one.id}:{batch[-1]}", unreadable)
        return Page(await self._with_use(found), None, unreadable)

    async def _ids(self, team: str, after: str) -> Sequence[str]:
        """A team's key ids behind `after`. Who goes from page to page of a large team has its list read once; keys that
        are made meanwhile may be missing on later pages."""
        known, since, ids = self._paging
        if not after or known != team or self.clock() - since > PAGING_LIMIT:
            ids = await self.cabinet.key_ids(team)
            self._paging = (team, self.clock(), ids)
        if len(ids) <= MOST_SCANNED:
            self._paging = ("", 0.0, [])  # reading it again costs less than keeping it
        return ids[bisect_right(ids, after) :]

    async def _with_use(self, listed: Sequence[Listed]) -> Sequence[Listed]:
        by_team: dict[str, list[str]] = {}
        for one in listed:
            by_team.setdefault(one.key.team, []).append(one.key.id)
        used: dict[str, int | None] = {}
        for team, ids in by_team.items():
            used |= dict(zip(ids, await self.cabinet.used(team, ids), strict=True))
        return [Listed(one.key, used[one.key.id]) for one in listed]

    async def get(self, ref: str) -> Listed:
        """One key, by id or by its name when only one key has it."""
        record = await self.cabinet.find(await self._resolve(ref))
        if record is None:
            raise _missing(ref)
        (used,) = await self.cabinet.used(record.team, [record.id])
        return Listed(await self._named(record), used)

    async def _resolve(self, ref: str) -> str:
        if is_key_id(ref) and await self.cabinet.find(ref) is not None:
            return ref
        found: list[Record] = []
        if 0 < len(ref) <= LONGEST_NAME:
            name = msgspec.json.encode(ref)
            for team in await self.cabinet.team_ids():
                raws = await self.cabinet.keys(team, await self.cabinet.key_ids(team))
                records = [readable(raw) for raw in raws if raw is not None and name in raw]
                found += [one for one in records if one is not None and one.name == ref]
        alive = [one for one in found if one.state != "revoked"]
        if len(found) > 1 and len(alive) != 1:
            which = alive or found
            state = "" if alive else ", all revoked"
            ids = ", ".join(one.id for one in which[:5])
            raise Conflict(f"{len(which)} keys are named '{ref}'{state}: use the id ({ids})")
        if not found:
            raise _missing(ref)
        return (alive or found)[0].id

    # --- who may administer

    async def authenticate(self, credential: str) -> Key | None:
        """The active key of this credential, for administration; calls go through the ledger."""
        try:
            return await self._holders.key(credential)
        except Unauthorized:
            return None

    async def admin(self, token: str, address: str | None = None) -> Actor | None:
        """Who this is: the holder of the admin token, or of a key with the `admin` right (from one of its networks,
        when `address` is told). None for a wrong secret; for a right one that may not raises, with the reason,
        Unauthorized, or NotAllowed where it lacks the right or comes from elsewhere."""
        return await self._holders.admin(token, address)

    async def holder(self, secret: str) -> Holder | None:
        """Whose secret this is: the admin token, or any key's. None for a wrong one; raises Unauthorized as `admin`."""
        return await self._holders.holder(secret)

    async def still(self, key_id: str | None, proof: str) -> Holder | None:
        """As `holder`, of the secret that gave `proof`. key_id: None for the admin token."""
        return await self._holders.still(key_id, proof)

    def seen_admin(self, token: str) -> bool:
        """Whether this is the admin token as last read: the store is not asked."""
        return self._holders.seen_admin(token)

    def turn(self, secret: str, address: str) -> AbstractAsyncContextManager[None]:
        """Time to judge a secret that may be an admin's. Raises TooManyAttempts, but for the admin token as last read:
        behind one address may be the admin and others."""
        return nullcontext() if self.seen_admin(secret) else self.throttle.turn(address)

    def admin_changed(self, proof: str) -> bool:
        """Whether the admin token is known to be another one than that which gave `proof`: the store is not asked."""
        return self._holders.changed(proof)

    async def is_admin(self, token: str) -> bool:
        """Whether this is the admin token, or the credential of a key with the `admin` right."""
        try:
            return await self.admin(token) is not None
        except (Unauthorized, NotAllowed):
            return False

    # --- starting

    async def check_pepper(self) -> str | None:
        """A problem when the keys of this store were made under another pepper."""
        return await self.peppers.examine(self._store)

    def pepper_check(self) -> str:
        """A text that is the same for the same pepper, and says nothing about it."""
        return self.peppers.check

    async def bootstrap(self) -> Bootstrap:
        """At the very first start: an admin token (unless SWITCHYARD_ADMIN_TOKEN is set) and a first key named
        `default`. Before that, keys of the layout before this one are brought over.
        """
        from router.firststart import begin  # used at a start only

        return await begin(self, self.first, made_token=not self._holders.given)

    async def _add(self, record: Record) -> None:
        if not await self.cabinet.add(record):
            raise Conflict("this id is taken")  # 62^12 ids: it will not happen


_NO_OVERLAP: Final[Mapping[str, Any]] = {"old_digest": "", "old_until": None}


def _missing(ref: str) -> NotFound:
    return NotFound(f"there is no key {quoted(ref)}")


def _fits(key: Key, wanted: str) -> bool:
    return any(wanted in one.casefold() for one in (key.id, key.name, key.owner, *key.tags))
