"""Keys and teams for people and machines: the JSON of the command line and of the admin API. No secret and no digest is
in it."""

from __future__ import annotations

from datetime import UTC, datetime

from router.limit_text import limits_json
from router.records import Key, TeamRecord


def describe_key(key: Key, last_used: int | None, now: float) -> dict[str, object]:
    """team: its name. Times are ISO 8601 in UTC, limits as in `router.limit_text`."""
    overlap = key.old_until if key.old_until is not None and key.old_until > now else None
    if overlap is not None and key.expires_at is not None:
        overlap = min(overlap, key.expires_at)
    if key.condition(now) in ("revoked", "expired"):
        overlap = None
    return {
        "id": key.id,
        "name": key.name,
        "owner": key.owner,
        "team": key.team_name or key.team,
        "team_id": key.team,
        "tags": list(key.tags),
        "state": key.condition(now),
        "created": iso(key.created),
        "expires_at": iso(key.expires_at),
        "last_used": iso(None if last_used is None else max(last_used, key.created)),  # to the minute
        "old_key_until": iso(overlap),
        "models": list(key.rights.models),
        "deny": list(key.rights.deny),
        "networks": list(key.networks),
        "limits": limits_json(key.limits),
        "rights": {
            "allow_fallback": key.rights.allow_fallback,
            "local_only": key.rights.local_only,
            "manage_local": key.rights.manage_local,
            "admin": key.rights.admin,
        },
        "anonymous": key.anonymous,
        "version": key.version,
        "etag": key.etag,
    }


def describe_team(team: TeamRecord) -> dict[str, object]:
    """Times are ISO 8601 in UTC, limits as in `router.limit_text`."""
    return {
        "id": team.id,
        "name": team.name,
        "state": team.state,
        "timezone": team.timezone,
        "owner": team.owner,
        "tags": list(team.tags),
        "created": iso(team.created),
        "models": list(team.models),
        "deny": list(team.deny),
        "limits": limits_json(team.limits),
        "version": team.version,
        "etag": team.etag,
    }


def iso(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
