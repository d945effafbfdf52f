"""API keys: their records in the store, and everything that may be done to them.

One JSON record per key under `sy:<id>:key`, and the set `sy:keys` of all ids (a listing never scans the key space).
The index is written
first: an id without a record is skipped, a record without an index entry would be lost to the operator. The layout
stays behind this
module and `router.ledger`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, cast

import msgspec
from msgspec import UNSET, UnsetType
from redis.exceptions import RedisError

from providers.errors import InvalidRequest, NotFound, StoreUnavailable, SwitchyardError
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
from router.routing import Rights
from router.store import Store, StoreError, explain, where

State = Literal["active", "disabled", "revoked"]

INDEX: Final = "sy:keys"
PEPPER_CHECK: Final = "sy:pepper"
ADMIN: Final = "sy:admin"
FIRST_START: Final = "sy:first-start"
LONGEST_NAME: Final = 100
MOST_PATTERNS: Final = 500
MOST_TAGS: Final = 50

_SWAP: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
"""Replace a record only if nobody changed it meanwhile. Repeating it is harmless: the second one finds another value.
"""


def record_name(key_id: str) -> str:
    return f"sy:{key_id}:key"


def used_name(key_id: str) -> str:
    return f"sy:{key_id}:used"


class Conflict(SwitchyardError):
    """Somebody else changed the key meanwhile, or its state forbids the change."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it lies in the store. `digest` is empty for an anonymous key, which no credential opens."""

    id: str
    name: str
    digest: str = ""
    owner: str = ""
    team: str = ""
    tags: tuple[str, ...] = ()
    state: State = "active"
    created: int
    expires_at: int | None = None
    models: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    allow_fallback: bool = True
    local_only: bool = False
    manage_local: bool = False
    admin: bool = False
    anonymous: bool = False
    version: int = 1

    def __repr__(self) -> str:
        return f"Record({self.id})"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What to set on a key, new or old. Unset fields stay as they are. `expires_at` is in Unix seconds, None for
    never.
    """

    name: str | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    team: str | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    state: State | UnsetType = UNSET
    expires_at: int | UnsetType | None = UNSET
    models: tuple[str, ...] | UnsetType = UNSET
    deny: tuple[str, ...] | UnsetType = UNSET
    allow_fallback: bool | UnsetType = UNSET
    local_only: bool | UnsetType = UNSET
    manage_local: bool | UnsetType = UNSET
    admin: bool | UnsetType = UNSET

    def fields(self) -> dict[str, object]:
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the rest of the router sees it: everything but its digest."""

    id: str
    name: str
    owner: str
    team: str
    tags: tuple[str, ...]
    state: State
    created: int
    expires_at: int | None
    rights: Rights
    anonymous: bool
    version: int

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    def condition(self, now: float) -> str:
        """Its state in one word: the stored one, or `expired`."""
        return "expired" if self.state == "active" and self.expired(now) else self.state


@dataclass(frozen=True, slots=True)
class Listed:
    """A key and when it was last used (Unix seconds, to the minute), None for never."""

    key: Key
    last_used: int | None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What the first start made, each to be shown once. None: made earlier, or given by the operator."""

    admin_token: str | None
    key: str | None

    def __repr__(self) -> str:
        return f"Bootstrap(admin_token={'...' if self.admin_token else None}, key={'...' if self.key else None})"


_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.Encoder().encode


def decode(raw: bytes) -> Record:
    try:
        return _decode(raw)
    except msgspec.DecodeError as error:
        raise StoreUnavailable(
            "A key's record in the store cannot be read; a newer router may have written it."
        ) from error


def key_of(record: Record) -> Key:
    return Key(
        record.id,
        record.name,
        record.owner,
        record.team,
        record.tags,
        record.state,
        record.created,
        record.expires_at,
        Rights(
            allow_fallback=record.allow_fallback,
            models=record.models,
            deny=record.deny,
            local_only=record.local_only,
            manage_local=record.manage_local,
            admin=record.admin,
        ),
        record.anonymous,
        record.version,
    )


def anonymous_id(name: str) -> str:
    """The id of the anonymous key of that name: the same in every router, so that all meet in one record without a
    lock.
    """
    number = int.from_bytes(hashlib.sha256(b"anonymous:" + name.encode()).digest())
    return base62(number % len(ALPHABET) ** ID_LENGTH, ID_LENGTH)


async def open_keys(store: Store, data_dir: Path, environ: Mapping[str, str] | None = None) -> Keys:
    """The keys of this store, with its pepper checked now and whenever the store comes back (see `Store.problem`)."""
    environ = os.environ if environ is None else environ
    keys = Keys(store, load_pepper(data_dir, environ), admin_token=environ.get("SWITCHYARD_ADMIN_TOKEN") or None)
    store.add_gate(keys.check_pepper)
    await store.ready()
    return keys


class Keys:
    """All that may be done with keys. Raises `InvalidRequest`, `NotFound`, `Conflict` and `StoreUnavailable`."""

    def __init__(
        self, store: Store, pepper: bytes, *, admin_token: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        if admin_token is not None and len(admin_token) < SHORTEST_TOKEN:
            raise StoreError(
                f"the admin token (server.admin_token, SWITCHYARD_ADMIN_TOKEN) is too short: give it {SHORTEST_TOKEN}"
                " or more random characters (openssl rand -hex 24), or leave it unset and one is made"
            )
        self._store = store
        self._redis = store.redis
        self.pepper = pepper
        self.clock = clock
        self._seen_admin: bytes | None = None
        self._first: tuple[str, Record, str] | None = None
        self._admin_digest = None if admin_token is None else digest(pepper, admin_token)

    # --- making and changing

    async def create(self, change: Change) -> tuple[Key, str]:
        """A new key and its credential, which exists in clear only in this answer."""
        record, credential = self._new(change)
        await self._add(record)
        return key_of(record), credential

    def _new(self, change: Change) -> tuple[Record, str]:
        fields = checked(change, self.clock())
        if "name" not in fields:
            raise InvalidRequest("a key needs a name", param="name")
        key_id = new_id()
        credential = new_credential(key_id)
        record = Record(id=key_id, digest=digest(self.pepper, credential).hex(), created=int(self.clock()), name="")
        return msgspec.structs.replace(record, **fields), credential

    async def change(self, ref: str, change: Change, *, expected_version: int | None = None) -> Key:
        """Set fields of a key (by id or by its name, when only one key has it). Effective on the next call made with
        it.
        """
        fields = checked(change, self.clock())
        key_id = await self._resolve(ref)
        for _ in range(5):
            raw = await self._read(key_id)
            if raw is None:
                raise NotFound(f"there is no key '{ref}'")
            old = decode(raw)
            if expected_version is not None and old.version != expected_version:
                raise Conflict(f"the key was changed meanwhile (version {old.version}): read it again")
            if old.state == "revoked" and fields.get("state", "revoked") != "revoked":
                raise Conflict("a revoked key stays revoked: create a new one")
            new = msgspec.structs.replace(old, **fields)
            if new == old:
                return key_of(old)
            new = msgspec.structs.replace(new, version=old.version + 1)
            async with self._errors():
                swapped = await cast(
                    "Awaitable[int]",
                    self._redis.eval(_SWAP, 1, record_name(key_id), raw, _encode(new)),
                )
            if swapped:
                return key_of(new)
        raise Conflict("the key is being changed by others: try again")

    async def revoke(self, ref: str, *, expected_version: int | None = None) -> Key:
        """End a key for good. Its record stays, so that logs and spending keep their owner."""
        return await self.change(ref, Change(state="revoked"), expected_version=expected_version)

    async def ensure_anonymous(self, name: str) -> Key:
        """The key whose rights keyless callers of a listener get; when missing it is made, for local providers only."""
        record = Record(
            id=anonymous_id(name),
            name=_text(name, "name"),
            created=int(self.clock()),
            local_only=True,
            allow_fallback=True,
            anonymous=True,
        )
        await self._add(record, only_new=True)
        raw = await self._read(record.id)
        return key_of(record if raw is None else decode(raw))

    # --- looking

    async def list(self) -> Sequence[Listed]:
        """All keys, oldest first."""
        async with self._errors():
            members = await cast("Awaitable[set[bytes]]", self._redis.smembers(INDEX))
            ids = sorted(member.decode() for member in members)
            if not ids:
                return []
            names = [record_name(key_id) for key_id in ids] + [used_name(key_id) for key_id in ids]
            values = cast("list[bytes | None]", await self._redis.mget(names))
        found = [
            Listed(key_of(decode(raw)), _when(used))
            for raw, used in zip(values[: len(ids)], values[len(ids) :], strict=True)
            if raw is not None
        ]
        return sorted(found, key=lambda listed: (listed.key.created, listed.key.id))

    async def get(self, ref: str) -> Listed:
        """One key, by id or by its name when only one key has it."""
        key_id = await self._resolve(ref)
        async with self._errors():
            raw, used = cast("list[bytes | None]", await self._redis.mget(record_name(key_id), used_name(key_id)))
        if raw is None:
            raise NotFound(f"there is no key '{ref}'")
        return Listed(key_of(decode(raw)), _when(used))

    async def authenticate(self, credential: str) -> Key | None:
        """The active key of this credential, for administration; calls go through the ledger."""
        key_id = key_id_of(credential)
        if key_id is None:
            return None
        raw = await self._read(key_id)
        shown = digest(self.pepper, credential).hex()
        record = decode(raw) if raw else None
        right = hmac.compare_digest(shown, record.digest if record and record.digest else "0" * 64)
        if record is None or not right:
            return None
        key = key_of(record)
        return key if key.condition(self.clock()) == "active" else None

    async def is_admin(self, token: str) -> bool:
        """Whether this is the admin token, or the credential of a key with the `admin` right."""
        shown = digest(self.pepper, token)
        if self._admin_digest is not None:
            if hmac.compare_digest(shown, self._admin_digest):
                return True
        else:
            try:
                async with self._errors():
                    self._seen_admin = cast("bytes | None", await self._redis.get(ADMIN))
            except StoreUnavailable:
                if self._seen_admin is None:  # else the status page works just when it is needed
                    raise
            kept = self._seen_admin
            if hmac.compare_digest(shown.hex().encode(), kept or b"0" * 64):
                return True
        key = await self.authenticate(token)
        return key is not None and key.rights.admin

    # --- starting

    async def check_pepper(self) -> str | None:
        """A problem when the keys of this store were made under another pepper."""
        mine = digest(self.pepper, "the check value of a pepper").hex()[:32].encode()
        await self._redis.set(PEPPER_CHECK, mine, nx=True)
        if await self._redis.get(PEPPER_CHECK) == mine:
            return None
        return (
            f"the keys in {where(self._store.name)} were made under another pepper, so none would be recognised:"
            " restore data_dir/pepper, or give all routers of this store the same SWITCHYARD_PEPPER"
        )

    async def bootstrap(self) -> Bootstrap:
        """At the very first start: an admin token (unless SWITCHYARD_ADMIN_TOKEN is set) and a first key named
        `default`.
        """
        # Made once and written until the store has it: a reply that was lost does not cost the operator the secrets.
        if self._first is None:
            self._first = (new_admin_token(), *self._new(Change(name="default")))
        token, record, credential = self._first
        mine = digest(self.pepper, token).hex()
        async with self._errors():
            shown = self._admin_digest is None and await self._claim(ADMIN, mine)
            begun = await self._redis.get(FIRST_START)
        ours = begun == record.id.encode()
        if begun is None and all(listed.key.anonymous or listed.key.id == record.id for listed in await self.list()):
            await self._add(record)
            ours = True
        async with self._errors():
            ours = await self._claim(FIRST_START, record.id) and ours
        self._first = None
        return Bootstrap(token if shown else None, credential if ours else None)

    async def _claim(self, name: str, value: str) -> bool:
        """Write what nobody has written yet. Whether it is there by us, also when an earlier try of ours wrote it."""
        await self._redis.set(name, value, nx=True)
        return bool(await self._redis.get(name) == value.encode())

    # --- the store

    async def _add(self, record: Record, *, only_new: bool = False) -> None:
        async with self._errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.sadd(INDEX, record.id)
            pipe.set(record_name(record.id), _encode(record), nx=only_new)
            await pipe.execute()

    async def _read(self, key_id: str) -> bytes | None:
        async with self._errors():
            return cast("bytes | None", await self._redis.get(record_name(key_id)))

    async def _resolve(self, ref: str) -> str:
        if re.fullmatch(r"[0-9A-Za-z]{12}", ref) and await self._read(ref) is not None:
            return ref
        ids = [listed.key.id for listed in await self.list() if listed.key.name == ref]
        if len(ids) > 1:
            raise Conflict(f"{len(ids)} keys are named '{ref}': use the id ({', '.join(ids[:5])})")
        if not ids:
            raise NotFound(f"there is no key '{ref[:LONGEST_NAME]}'")
        return ids[0]

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(
                f"The keys cannot be read or changed: {explain(self._store.name, error)}."
            ) from error


def _when(used: bytes | None) -> int | None:
    return int(used) if used is not None and used.isdigit() else None


# --- what may be set


def _text(value: str, param: str) -> str:
    value = value.strip()
    if not value and param == "name":
        raise InvalidRequest("a key needs a name", param=param)
    if len(value) > LONGEST_NAME or not value.isprintable():
        raise InvalidRequest(f"{param} must be at most {LONGEST_NAME} printable characters", param=param)
    return value


def _words(values: Sequence[str], param: str, most: int) -> tuple[str, ...]:
    cleaned = tuple(dict.fromkeys(value.strip() for value in values))
    if len(cleaned) > most:
        raise InvalidRequest(f"{param} may hold at most {most} entries", param=param)
    for value in cleaned:
        if not value or len(value) > 200 or not value.isprintable() or any(mark in value for mark in " ,"):
            raise InvalidRequest(
                f"{param}: each entry is 1 to 200 printable characters without spaces or commas", param=param
            )
    return cleaned


def checked(change: Change, now: float) -> dict[str, object]:
    """The fields that are set, cleaned. Raises `InvalidRequest` naming the field."""
    fields = change.fields()
    for param in ("name", "owner", "team"):
        if param in fields:
            fields[param] = _text(cast("str", fields[param]), param)
    for param, most in (("tags", MOST_TAGS), ("models", MOST_PATTERNS), ("deny", MOST_PATTERNS)):
        if param in fields:
            fields[param] = _words(cast("Sequence[str]", fields[param]), param, most)
    expires = fields.get("expires_at")
    if expires is not None and not now < cast("int", expires) < 1e11:
        raise InvalidRequest("the expiry lies in the past", param="expires_at")
    if "state" in fields and fields["state"] not in ("active", "disabled", "revoked"):
        raise InvalidRequest("state is active, disabled or revoked", param="state")
    return fields


_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}


def parse_expiry(text: str, now: float) -> int | None:
    """`30d`, `12h`, `2027-01-31`, `2027-01-31T12:00:00+08:00` or `never`, as Unix seconds. Dates without a zone are
    UTC.
    """
    text = text.strip()
    if text.lower() in ("never", "none"):
        return None
    if match := re.fullmatch(r"([0-9]{1,9})([smhdwy])", text.lower()):
        seconds = int(match[1]) * _UNITS[match[2]]
        if not 0 < seconds <= 100 * _UNITS["y"]:
            raise InvalidRequest("an expiry lies between 1 second and 100 years ahead", param="expires")
        return int(now) + seconds
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            "an expiry is a number with s, m, h, d, w or y (30d, 12h), a date (2027-01-31) or never",
            param="expires",
        ) from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def describe(listed: Listed, now: float) -> dict[str, object]:
    """A key for people and machines: the command line's and the admin API's JSON."""
    key = listed.key
    return {
        "id": key.id,
        "name": key.name,
        "owner": key.owner,
        "team": key.team,
        "tags": list(key.tags),
        "state": key.condition(now),
        "created": _iso(key.created),
        "expires_at": _iso(key.expires_at),
        "last_used": _iso(listed.last_used),
        "models": list(key.rights.models),
        "deny": list(key.rights.deny),
        "rights": {
            "allow_fallback": key.rights.allow_fallback,
            "local_only": key.rights.local_only,
            "manage_local": key.rights.manage_local,
            "admin": key.rights.admin,
        },
        "anonymous": key.anonymous,
        "version": key.version,
    }


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
