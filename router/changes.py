"""What may be set on keys and teams, and how it is checked. Errors name the field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_network
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET, UnsetType

from providers.errors import InvalidRequest, SwitchyardError
from router.credentials import ADMIN_PREFIX, PREFIX
from router.limit_text import Step, parse_limits
from router.networks import network_problem
from router.records import State

LONGEST_NAME: Final = 100
MOST_PATTERNS: Final = 500
MOST_TAGS: Final = 50
MOST_NETWORKS: Final = 100
LONGEST_LIFE: Final = 1000 * 31_557_600
"""Seconds."""
RIGHTS: Final = ("allow_fallback", "local_only", "manage_local", "admin")
STATES: Final = ("active", "disabled", "revoked")


class Conflict(SwitchyardError):
    """Somebody else changed it meanwhile, or its state forbids the change."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class _Change(msgspec.Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    state: State | UnsetType = UNSET
    models: tuple[str, ...] | UnsetType = UNSET
    deny: tuple[str, ...] | UnsetType = UNSET
    limits: tuple[Step, ...] | UnsetType = UNSET

    def fields(self) -> dict[str, Any]:
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}


class Change(_Change, frozen=True, kw_only=True):
    """What to set on a key, new or old. Unset fields stay as they are. `expires_at` is in Unix seconds, None for
    never. team: id or name. limits: steps that are applied to those it has.
    """

    team: str | UnsetType = UNSET
    expires_at: int | UnsetType | None = UNSET
    networks: tuple[str, ...] | UnsetType = UNSET
    allow_fallback: bool | UnsetType = UNSET
    local_only: bool | UnsetType = UNSET
    manage_local: bool | UnsetType = UNSET
    admin: bool | UnsetType = UNSET


class TeamChange(_Change, frozen=True, kw_only=True):
    """What to set on a team, new or old. Unset fields stay as they are."""

    timezone: str | UnsetType = UNSET


def checked(change: Change, now: float) -> dict[str, Any]:
    """The fields that are set, cleaned. Raises `InvalidRequest` naming the field."""
    fields = _common(change.fields(), "a key needs a name")
    if "team" in fields:
        fields["team"] = text(fields["team"], "team")
    if "networks" in fields:
        fields["networks"] = _networks(fields["networks"])
    expires = fields.get("expires_at")
    if expires is not None and cast("int", expires) <= now:
        raise InvalidRequest("the expiry lies in the past", param="expires_at")
    if expires is not None and cast("int", expires) > now + LONGEST_LIFE:
        raise InvalidRequest("the expiry is too far ahead: at most 1000 years, or never", param="expires_at")
    return fields


def checked_team(change: TeamChange) -> dict[str, Any]:
    """The fields that are set, cleaned. Raises `InvalidRequest` naming the field."""
    fields = _common(change.fields(), "a team needs a name")
    if "timezone" in fields:
        fields["timezone"] = _timezone(str(fields["timezone"]).strip())
    return fields


def _common(fields: dict[str, Any], nameless: str) -> dict[str, Any]:
    for param in ("name", "owner"):
        if param in fields:
            fields[param] = text(fields[param], param)
    if fields.get("name") == "":
        raise InvalidRequest(nameless, param="name")
    if "/" in fields.get("name", "") or fields.get("name") in (".", ".."):
        raise InvalidRequest("a name holds no slash, and is not . or ..: it becomes part of an address", param="name")
    for param, most in (("tags", MOST_TAGS), ("models", MOST_PATTERNS), ("deny", MOST_PATTERNS)):
        if param in fields:
            fields[param] = _words(fields[param], param, most)
    if "state" in fields and fields["state"] not in STATES:
        raise InvalidRequest("state is active, disabled or revoked", param="state")
    return fields


_SECRET: Final = re.compile(rf"({re.escape(PREFIX)}|{re.escape(ADMIN_PREFIX)})[0-9A-Za-z-]{{20}}")


def quoted(value: str) -> str:
    """What a caller wrote, for an error: cut, and never a secret."""
    return "that is written like a secret (name a key by its id)" if _SECRET.search(value) else f"'{value[:100]}'"


def _open(value: str, param: str) -> None:
    if _SECRET.search(value):
        raise InvalidRequest(f"{param} holds a key or token itself: secrets have no place there", param=param)


def text(value: str, param: str) -> str:
    """One line of printable characters, stripped. Not a secret that got into the wrong field."""
    value = value.strip()
    _open(value, param)
    if len(value) > LONGEST_NAME or not value.isprintable():
        raise InvalidRequest(f"{param} must be at most {LONGEST_NAME} printable characters", param=param)
    return value


def _words(values: Sequence[str], param: str, most: int) -> tuple[str, ...]:
    cleaned = tuple(dict.fromkeys(value.strip() for value in values))
    if len(cleaned) > most:
        raise InvalidRequest(f"{param} may hold at most {most} entries", param=param)
    for value in cleaned:
        _open(value, param)
        if not value or len(value) > 200 or not value.isprintable() or any(mark in value for mark in " ,"):
            raise InvalidRequest(
                f"{param}: each entry is 1 to 200 printable characters without spaces or commas", param=param
            )
    return cleaned


def _networks(values: Sequence[str]) -> tuple[str, ...]:
    if len(values) > MOST_NETWORKS:
        raise InvalidRequest(f"networks may hold at most {MOST_NETWORKS} entries", param="networks")
    found = []
    for value in values:
        written = value.strip()
        if problem := network_problem(written):
            raise InvalidRequest(f"networks: {quoted(written)} {problem}", param="networks")
        found.append(str(ip_network(written)))
    return tuple(dict.fromkeys(found))


@lru_cache(256)
def _timezone(name: str) -> str:
    try:
        known = name == "UTC" or (bool(name) and ZoneInfo(name) is not None)
    except (OSError, ValueError, KeyError):  # a directory, no such name at all, or none that is here
        known = False
    if not known:
        raise InvalidRequest(
            "timezone is a name such as UTC, Asia/Shanghai or Europe/Berlin; this machine does not know the one given",
            param="timezone",
        )
    return name


_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}


def parse_expiry(written: str, now: float) -> int | None:
    """`30d`, `12h`, `2027-01-31`, `2027-01-31T12:00:00+08:00` or `never`, as Unix seconds. Dates without a zone are
    UTC.
    """
    written = written.strip()
    if written.lower() in ("never", "none"):
        return None
    if match := re.fullmatch(r"([0-9]{1,9})([smhdwy])", written.lower()):
        seconds = int(match[1]) * _UNITS[match[2]]
        if not 0 < seconds <= 100 * _UNITS["y"]:
            raise InvalidRequest("an expiry lies between 1 second and 100 years ahead", param="expires")
        return int(now) + seconds
    try:
        when = datetime.fromisoformat(written)
    except ValueError:
        raise InvalidRequest(
            "an expiry is a number with s, m, h, d, w or y (30d, 12h), a date (2027-01-31) or never",
            param="expires",
        ) from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


LONGEST_OVERLAP: Final = 365 * 86400


def parse_overlap(written: str) -> int:
    """`24h`, `7d` or `0`, in seconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw]?)", written.strip().lower())
    if match is None or (not match[2] and int(match[1])):
        raise InvalidRequest("an overlap is a number with s, m, h, d or w (24h, 7d), or 0 for none", param="overlap")
    seconds = int(match[1]) * _UNITS[match[2] or "s"]
    if seconds > LONGEST_OVERLAP:
        raise InvalidRequest("an overlap is at most 365 days", param="overlap")
    return seconds


# --- from JSON


_PLAIN: Final = ("name", "owner", "team", "state", "timezone")
_LISTS: Final = ("tags", "models", "deny", "networks")


def change_of(fields: Mapping[str, Any], now: float) -> Change:
    """A key's change from the admin API's JSON, whose types are right already. A field that is null counts as left out,
    but for what is inside `limits`."""
    rights = {name: value for name, value in (fields.get("rights") or {}).items() if value is not None}
    expires = fields.get("expires")
    more: dict[str, Any] = {} if expires is None else {"expires_at": parse_expiry(expires, now)}
    return Change(**_plain(fields), **rights, **more)


def team_change_of(fields: Mapping[str, Any]) -> TeamChange:
    """A team's change from the admin API's JSON, whose types are right already."""
    return TeamChange(**_plain(fields))


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: fields[name] for name in _PLAIN if fields.get(name) is not None}
    found |= {name: tuple(fields[name]) for name in _LISTS if fields.get(name) is not None}
    if "limits" in fields:
        found["limits"] = parse_limits(fields["limits"])
    return found
