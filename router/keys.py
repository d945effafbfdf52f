"""API keys: everything that may be done with them. How they lie in the store: `router.records`.

Each change stands in the audit log before it is made, and counts from the key's next call: whoever admits calls
compares with the store.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import hmac
import os
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from providers.errors import InvalidRequest, NotFound, StoreUnavailable
from router.audit import Actor, Audit, Trail
from router.cabinet import Cabinet
from router.changes import LONGEST_NAME, Change, Conflict, checked, parse_expiry, quoted, text
from router.credentials import (
    ALPHABET,
    ID_LENGTH,
    SHORTEST_TOKEN,
    base62,
    digest,
    key_id_of,
    load_pepper,
    new_admin_token,
    new_credential,
    new_id,
)
from router.descriptions import describe_key
from router.limit_text import merge
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
    decode_key,
    is_key_id,
    key_of,
    new_etag,
    successor,
)
from router.store import ANSWER_LIMIT, Store, StoreError, where
from router.teams import TRIES, Teams, difference, require

__all__ = ["Bootstrap", "Change", "Conflict", "Key", "Keys", "Listed", "describe", "open_keys", "parse_expiry"]

PEPPER_CHECK: Final = "sy:pepper"
ADMIN: Final = "sy:admin"
FIRST_START: Final = "sy:first-start"
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
    keys = Keys(store, load_pepper(data_dir, environ), admin_token=environ.get("SWITCHYARD_ADMIN_TOKEN") or None)
    store.add_gate(keys.check_pepper)
    await store.ready()
    return keys


class Keys:
    """All that may be done with keys. Raises `InvalidRequest`, `NotFound`, `Conflict` and `StoreUnavailable`.

    `teams` are the teams of the same store, `audit` its log, `cabinet` its records.
    """

    def __init__(
        self, store: Store, pepper: bytes, *, admin_token: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        if admin_token is not None and len(admin_token) < SHORTEST_TOKEN:
            raise StoreError(
                f"the admin token (server.admin_token, SWITCHYARD_ADMIN_TOKEN) is too short: give it {SHORTEST_TOKEN}"
                " or more random characters (openssl rand -hex 24), or leave it unset and one is made"
            )
        self.pepper = pepper
        self.clock = clock
        self.cabinet = Cabinet(store)
        self.audit = Audit(self.cabinet, pepper, clock=clock)
        self.trail = Trail(self.audit)
        self.teams = Teams(self.cabinet, self.trail, clock=clock)
        self._store = store
        self._seen_admin: bytes | None = None
        self._first: tuple[str, Record, str] | None = None
        self._paging: tuple[str, float, Sequence[str]] = ("", 0.0, [])
        self._admin_digest = None if admin_token is None else digest(pepper, admin_token)

    def acting(self, actor: Actor) -> Keys:
        """The same, and the audit log will name `actor`."""
        other = copy.copy(self)
        other.trail = Trail(self.audit, actor)
        other.teams = Teams(self.cabinet, other.trail, clock=self.clock)
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
        team, team_created = await self.teams.find_or_make(fields.pop("team", "") or DEFAULT_TEAM)
        record, credential = self.new_record(fields, team)
        key = key_of(record, team.name)
        after = describe_key(key, None, self.clock())
        async with self.trail.entry("key.create", f"key {record.id}", None, after):
            await self._add(record)
        return Made(key, credential, team_created)

    def examined(self, change: Change) -> dict[str, Any]:
        """The fields of a new key. Raises InvalidRequest."""
        fields = checked(change, self.clock())
        if "name" not in fields:
            raise InvalidRequest("a key needs a name", param="name")
        fields["limits"] = merge((), fields.get("limits", ()))
        return fields

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

        def rotated(old: Record) -> Record:
            nonlocal ended
            if old.anonymous:
                raise Conflict("this key is of a listener without keys: it has no secret to rotate")
            if old.state == "revoked":
                raise Conflict("a revoked key stays revoked: create a new one")
            ended = bool(old.old_digest) and (old.old_until or 0) > now
            kept = {"old_digest": old.digest, "old_until": now + overlap} if overlap else _NO_OVERLAP
            return msgspec.structs.replace(old, digest=shown, **kept)

        key = await self._swap(key_id, ref, "key.rotate", rotated, expected_version, expected_etag)
        return Rotated(key, credential, ended)

    async def end_overlap(self, ref: str) -> Key:
        """From now on only the newest secret of the key works."""
        key_id = await self._resolve(ref)
        return await self._swap(
            key_id, ref, "key.end_overlap", lambda old: msgspec.structs.replace(old, **_NO_OVERLAP), None, None
        )

    async def _swap(
        self,
        key_id: str,
        ref: str,
        action: str,
        changed: Callable[[Record], Record],
        expected_version: int | None,
        expected_etag: str | None,
    ) -> Key:
        for _ in range(TRIES):
            old = await self.cabinet.find(key_id)
            if old is None:
                raise _missing(ref)
            require(expected_version, old.version, old.etag, "key")
            require(expected_etag, old.version, old.etag, "key")
            new = changed(old)
            key = await self._named(new)
            if new == old:
                return key
            new = successor(old, new)
            key = key_of(new, key.team_name)
            now = self.clock()
            before, after = difference(describe_key(await self._named(old), None, now), describe_key(key, None, now))
            async with self.trail.entry(action, f"key {key_id}", before, after) as entry:
                write = self.cabinet.replace if new.team == old.team else self.cabinet.move
                done = await write(old, new)
                if not done:
                    entry.failed = "changed by others meanwhile"
            if done:
                return key
        raise Conflict("the key is being changed by others: try again")

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
            async with self.trail.entry("key.create", f"key {record.id}", None, after):
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
        now, wanted = self.clock(), q.casefold()
        found: list[Listed] = []
        scanned = 0
        for one in teams:
            if one.id < at_team:
                continue
            ids = await self._ids(one.id, after if one.id == at_team else "")
            while ids:
                batch = ids[: max(1, min(500, MOST_SCANNED - scanned))]
                for record in _records(await self.cabinet.keys(one.id, batch)):
                    key = key_of(record, one.name)
                    if (state and key.condition(now) != state) or (wanted and not _fits(key, wanted)):
                        continue
                    if len(found) == limit:
                        last = found[-1].key
                        return Page(await self._with_use(found), f"{last.team}:{last.id}")
                    found.append(Listed(key, None))
                scanned += len(batch)
                ids = ids[len(batch) :]
                if scanned >= MOST_SCANNED:
                    return Page(await self._with_use(found), f"{one.id}:{batch[-1]}")
        return Page(await self._with_use(found), None)

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
        ids: list[str] = []
        if 0 < len(ref) <= LONGEST_NAME:
            name = msgspec.json.encode(ref)
            for team in await self.cabinet.team_ids():
                raws = await self.cabinet.keys(team, await self.cabinet.key_ids(team))
                ids += [one.id for one in _records(raw for raw in raws if raw and name in raw) if one.name == ref]
        if len(ids) > 1:
            raise Conflict(f"{len(ids)} keys are named '{ref}': use the id ({', '.join(ids[:5])})")
        if not ids:
            raise _missing(ref)
        return ids[0]

    # --- who may administer

    async def authenticate(self, credential: str) -> Key | None:
        """The active key of this credential, for administration; calls go through the ledger."""
        key_id = key_id_of(credential)
        if key_id is None:
            return None
        record = await self.cabinet.find(key_id)
        shown = digest(self.pepper, credential).hex()
        right = hmac.compare_digest(shown, record.digest if record and record.digest else "0" * 64)
        old = hmac.compare_digest(shown, record.old_digest if record and record.old_digest else "0" * 64)
        if record is None or not (right or (old and self.clock() < (record.old_until or 0))):
            return None
        team = await self.cabinet.team(record.team)
        key = key_of(record, team.name if team is not None else "")
        active = key.condition(self.clock()) == "active" and (team is None or team.state == "active")
        return key if active else None

    async def admin(self, token: str, address: str | None = None) -> Actor | None:
        """Who this is: the holder of the admin token, or of a key with the `admin` right (from one of its networks,
        when `address` is told)."""
        shown = digest(self.pepper, token)
        if self._admin_digest is not None:
            if hmac.compare_digest(shown, self._admin_digest):
                return Actor("admin token", address or "")
        else:
            try:
                async with asyncio.timeout(None if self._seen_admin is None else ANSWER_LIMIT):
                    self._seen_admin = await self.cabinet.raw(ADMIN)
            except (StoreUnavailable, TimeoutError):
                if self._seen_admin is None:  # else the status page works just when it is needed
                    raise
            kept = self._seen_admin
            if hmac.compare_digest(shown.hex().encode(), kept or b"0" * 64):
                return Actor("admin token", address or "")
        key = await self.authenticate(token)
        if key is None or not key.rights.admin or (address is not None and not key.admits(address)):
            return None
        return Actor(f"key {key.id}", address or "")

    def seen_admin(self, token: str) -> bool:
        """Whether this is the admin token as last read: the store is not asked."""
        own = self._admin_digest.hex().encode() if self._admin_digest is not None else self._seen_admin
        return hmac.compare_digest(digest(self.pepper, token).hex().encode(), own or b"0" * 64)

    async def is_admin(self, token: str) -> bool:
        """Whether this is the admin token, or the credential of a key with the `admin` right."""
        return await self.admin(token) is not None

    # --- starting

    async def check_pepper(self) -> str | None:
        """A problem when the keys of this store were made under another pepper."""
        mine = self.pepper_check().encode()
        await self._store.run("SET", PEPPER_CHECK, mine, "NX")
        if await self._store.run("GET", PEPPER_CHECK) == mine:
            return None
        return (
            f"the keys in {where(self._store.name)} were made under another pepper, so none would be recognised:"
            " restore data_dir/pepper, or give all routers of this store the same SWITCHYARD_PEPPER"
        )

    def pepper_check(self) -> str:
        """A text that is the same for the same pepper, and says nothing about it."""
        return digest(self.pepper, "the check value of a pepper").hex()[:32]

    async def bootstrap(self) -> Bootstrap:
        """At the very first start: an admin token (unless SWITCHYARD_ADMIN_TOKEN is set) and a first key named
        `default`. Before that, keys of the layout before this one are brought over.
        """
        from router.migration import migrate  # used at a start only

        await migrate(self)
        team = await self.teams.ensure_default()
        # Made once and written until the store has it: a reply that was lost does not cost the operator the secrets.
        if self._first is None:
            self._first = (new_admin_token(), *self.new_record({"name": "default"}, team))
        token, record, credential = self._first
        mine = digest(self.pepper, token).hex()
        shown = self._admin_digest is None and await self._claim(ADMIN, mine)
        begun = await self.cabinet.raw(FIRST_START)
        ours = begun == record.id.encode()
        if begun is None and await self._alone(record.id):
            after = describe_key(key_of(record, team.name), None, self.clock())
            async with self.trail.entry("key.create", f"key {record.id}", None, after):
                await self.cabinet.add(record)
            ours = True
        ours = await self._claim(FIRST_START, record.id) and ours
        self._first = None
        return Bootstrap(token if shown else None, credential if ours else None)

    async def _alone(self, key_id: str) -> bool:
        """Whether there is no key but anonymous ones and this one."""
        async for listed in self.scan():
            if not listed.key.anonymous and listed.key.id != key_id:
                return False
        return True

    async def _claim(self, name: str, value: str) -> bool:
        """Write what nobody has written yet. Whether it is there by us, also when an earlier try of ours wrote it."""
        await self.cabinet.ask("SET", name, value, "NX")
        return await self.cabinet.raw(name) == value.encode()

    async def _add(self, record: Record) -> None:
        if not await self.cabinet.add(record):
            raise Conflict("this id is taken")  # 62^12 ids: it will not happen


_NO_OVERLAP: Final[Mapping[str, Any]] = {"old_digest": "", "old_until": None}


def _missing(ref: str) -> NotFound:
    return NotFound(f"there is no key {quoted(ref)}")


def _records(raws: Any) -> Sequence[Record]:  # an iterable of bytes and None
    return [decode_key(raw) for raw in raws if raw is not None]


def _fits(key: Key, wanted: str) -> bool:
    return any(wanted in one.casefold() for one in (key.id, key.name, key.owner, *key.tags))
