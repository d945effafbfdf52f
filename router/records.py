"""Keys and teams as they lie in the store, the names of everything that belongs to them, and the values that the
router makes of them.

    sy:teams                    set of team ids
    sy:team-as:<digest>         who has a team's name (see `router.teams`)
    sy:at:<key id>              team id of a key
    sy:{<team id>}:team         a TeamRecord
    sy:{<team id>}:keys         set of key ids
    sy:{<team id>}:key:<key id> a Record
    sy:{<team id>}:used         hash: key id -> Unix seconds of its last use

A record is `<etag>\\n<JSON>`. An etag is `<version>.<6 random characters>` and new at every write, so that equal etags
mean equal content. The braces make a Redis Cluster keep all of a team in one slot. Ids are base62 of a fixed length
(`default` is the one exception), so no name that a person chooses ever becomes part of a name in the store.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from providers.errors import StoreUnavailable
from router.credentials import ALPHABET, ID_LENGTH
from router.limits import Limit
from router.networks import allowed
from router.routing import Rights

State = Literal["active", "disabled", "revoked"]

TEAMS: Final = "sy:teams"
AUDIT: Final = "sy:{audit}:log"
AUDIT_HEAD: Final = "sy:{audit}:head"
AUDIT_END: Final = "sy:audit-end"
"""The same mark in another place."""
DEFAULT_TEAM: Final = "default"
"""The id, and the first name, of the team of keys that were made without one."""
TEAM_ID_LENGTH: Final = 8
_NONCE_LENGTH: Final = 6


def place_name(key_id: str) -> str:
    return f"sy:at:{key_id}"


def key_name(team: str, key_id: str) -> str:
    return f"sy:{{{team}}}:key:{key_id}"


def team_name(team: str) -> str:
    return f"sy:{{{team}}}:team"


def keys_name(team: str) -> str:
    return f"sy:{{{team}}}:keys"


def used_name(team: str) -> str:
    return f"sy:{{{team}}}:used"


def counters_name(account: str, scope: str) -> str:
    """The ledger's counters. scope: a key id, or `team`."""
    return f"sy:{{{account}}}:n:{scope}"


def is_key_id(text: str) -> bool:
    return len(text) == ID_LENGTH and text.isascii() and text.isalnum()


def is_team_id(text: str) -> bool:
    return text == DEFAULT_TEAM or (len(text) == TEAM_ID_LENGTH and text.isascii() and text.isalnum())


def new_team_id() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(TEAM_ID_LENGTH))


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key as it lies in the store.

    digest, old_digest: hex; empty for an anonymous key, which no credential opens. old_until: until when (Unix seconds)
    the secret before the last rotation still counts. team: a team's id. networks: CIDR; empty for everywhere. moving:
    the team that the key is on its way to (see `router.moves`). version and etag stand in front of the JSON.
    """

    id: str
    name: str
    created: int
    digest: str = ""
    old_digest: str = ""
    old_until: int | None = None
    owner: str = ""
    team: str = DEFAULT_TEAM
    tags: tuple[str, ...] = ()
    state: State = "active"
    expires_at: int | None = None
    models: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    allow_fallback: bool = True
    local_only: bool = False
    manage_local: bool = False
    admin: bool = False
    anonymous: bool = False
    moving: str = ""
    version: int = 1
    etag: str = ""

    def __repr__(self) -> str:
        return f"Record({self.id})"


class TeamRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A team. Its limits count all its keys together; its models and deny hold beside those of the key.

    timezone: IANA name; calendar windows of its limits and of its keys' limits begin at its midnight.
    """

    id: str
    name: str
    created: int
    state: State = "active"
    timezone: str = "UTC"
    limits: tuple[Limit, ...] = ()
    models: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    owner: str = ""
    tags: tuple[str, ...] = ()
    version: int = 1
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the rest of the router sees it: everything but its digests. team: its id."""

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
    etag: str = ""
    team_name: str = ""
    networks: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    old_until: int | None = None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and now >= self.expires_at

    def condition(self, now: float) -> str:
        """Its state in one word: the stored one, or `expired`."""
        return "expired" if self.state == "active" and self.expired(now) else self.state

    def admits(self, address: str) -> bool:
        """Whether calls from this address may use it."""
        return allowed(self.networks, address)


@dataclass(frozen=True, slots=True)
class Listed:
    """A key and when it was last used (Unix seconds, to the minute), None for never."""

    key: Key
    last_used: int | None


class Page(NamedTuple):
    """Some keys, in the order of teams and ids, and the cursor of the rest (None: there is no more). unreadable: ids
    whose records nobody can read, passed over on the way."""

    keys: Sequence[Listed]
    cursor: str | None
    unreadable: Sequence[str] = ()


class Made(NamedTuple):
    """A new key with its credential, which exists in clear only here, and whether its team had to be made."""

    key: Key
    credential: str
    team_created: bool


class Rotated(NamedTuple):
    """A key with its new credential, which exists in clear only here. ended: the rotation before this one was not over
    yet, and its old secret ended now."""

    key: Key
    credential: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What the first start made, each to be shown once. None: made earlier, or given by the operator."""

    admin_token: str | None
    key: str | None

    def __repr__(self) -> str:
        return f"Bootstrap(admin_token={'...' if self.admin_token else None}, key={'...' if self.key else None})"


# --- reading and writing

_Kind = TypeVar("_Kind", Record, TeamRecord)
_key = msgspec.json.Decoder(Record).decode
_team = msgspec.json.Decoder(TeamRecord).decode
_encode = msgspec.json.Encoder().encode


def new_etag(version: int) -> str:
    return f"{version}." + "".join(secrets.choice(ALPHABET) for _ in range(_NONCE_LENGTH))


def version_of(etag: str) -> int:
    return int(etag.partition(".")[0])


def split(raw: bytes) -> tuple[str, bytes]:
    """The etag and the JSON of a record. Raises StoreUnavailable when it is none."""
    etag, line, content = raw.partition(b"\n")
    if not line or not etag.partition(b".")[0].isdigit() or not etag.isascii():
        raise unreadable()
    return etag.decode("ascii"), content


def decode_key(raw: bytes) -> Record:
    """Raises StoreUnavailable when a newer router has written it, or nobody has."""
    return _decoded(raw, _key)


def readable(raw: bytes) -> Record | None:
    """As `decode_key`; None when it cannot be read."""
    try:
        return decode_key(raw)
    except StoreUnavailable:
        return None


def decode_team(raw: bytes) -> TeamRecord:
    """Raises StoreUnavailable when a newer router has written it, or nobody has."""
    return _decoded(raw, _team)


def team_of_key(key: Key, raw: bytes | None) -> TeamRecord:
    """A key's team by its record, which nobody has written yet for keys without a team. Raises StoreUnavailable."""
    if raw is None:
        return TeamRecord(id=key.team, name=key.team_name or key.team, created=key.created)
    return decode_team(raw)


def _decoded(raw: bytes, decode: Callable[[bytes], _Kind]) -> _Kind:
    etag, content = split(raw)
    try:
        return msgspec.structs.replace(decode(content), version=version_of(etag), etag=etag)
    except msgspec.DecodeError as error:
        raise unreadable() from error


def encode(record: Record | TeamRecord) -> bytes:
    """Its raw form. `record.etag` must be set."""
    return record.etag.encode() + b"\n" + _encode(msgspec.structs.replace(record, version=1, etag=""))


def successor(old: _Kind, new: _Kind) -> _Kind:
    """`new` as the version after `old`."""
    version = old.version + 1
    return msgspec.structs.replace(new, version=version, etag=new_etag(version))


def key_of(record: Record, team_name: str = "") -> Key:
    return Key(
        id=record.id,
        name=record.name,
        owner=record.owner,
        team=record.team,
        tags=record.tags,
        state=record.state,
        created=record.created,
        expires_at=record.expires_at,
        rights=Rights(
            allow_fallback=record.allow_fallback,
            models=record.models,
            deny=record.deny,
            local_only=record.local_only,
            manage_local=record.manage_local,
            admin=record.admin,
        ),
        anonymous=record.anonymous,
        version=record.version,
        etag=record.etag,
        team_name=team_name,
        networks=record.networks,
        limits=record.limits,
        old_until=record.old_until,
    )


def unreadable(what: str = "A record") -> StoreUnavailable:
    return StoreUnavailable(f"{what} in the store cannot be read; a newer router may have written it.")
