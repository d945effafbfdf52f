"""Whether the audit log tells where each key and team comes from. A log that was emptied, and goes on as if it were
new, does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from providers.errors import StoreUnavailable
from router.cabinet import BATCH, Cabinet
from router.records import DEFAULT_TEAM, Record, TeamRecord, decode_key, decode_team, team_name

SLACK: Final = 60
"""Seconds that clocks of routers may differ."""
_MAKING: Final = ("key.create", "key.migrate", "team.create", "keys.import")


@dataclass(slots=True)
class Origins:
    """Keys and teams (`key <id>`, `team <id>`) without an entry of their making so far, and when they were made (Unix
    seconds)."""

    open: dict[str, int]
    brought: float = 0.0
    """What is older than this may have come with an import."""

    @classmethod
    async def read(cls, cabinet: Cabinet) -> Origins:
        """To be read before the log: entries come before what they tell of. Raises StoreUnavailable."""
        found: dict[str, int] = {}
        for team in await cabinet.team_ids():
            raw = await cabinet.raw(team_name(team))
            if raw is not None and team != DEFAULT_TEAM:  # that one is made without an entry
                found[f"team {team}"] = _created(raw, decode_team)
            ids = await cabinet.key_ids(team)
            for start in range(0, len(ids), BATCH):
                batch = ids[start : start + BATCH]
                for key_id, raw in zip(batch, await cabinet.keys(team, batch), strict=True):
                    if raw is not None:
                        found[f"key {key_id}"] = _created(raw, decode_key)
        return cls(found)

    def add(self, entry: Mapping[str, Any] | None) -> None:
        """An entry of the log, read but not trusted."""
        if entry is None:
            return
        action, after = entry.get("action"), entry.get("after")
        if action in _MAKING:
            self.open.pop(str(entry.get("target")), None)
        if not isinstance(after, Mapping):
            return
        if action == "key.issue" and isinstance(after.get("keys"), Mapping):
            for key_id in after["keys"]:
                self.open.pop(f"key {key_id}", None)
        elif action == "keys.import":
            told = after.get("exported_at")
            self.brought = max(self.brought, _seconds(entry.get("time")), told if isinstance(told, int) else 0)

    def lost(self) -> str | None:
        """What the log does not tell."""
        missing = sorted(target for target, made in self.open.items() if made > self.brought + SLACK)
        if not missing:
            return None
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        return f"{len(missing)} keys or teams were made without an entry ({some}): the log was emptied or replaced"


def _created(raw: bytes, decode: Callable[[bytes], Record | TeamRecord]) -> int:
    try:
        return decode(raw).created
    except StoreUnavailable:  # unreadable: whether it came from elsewhere cannot be known
        return 0


def _seconds(text: object) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
