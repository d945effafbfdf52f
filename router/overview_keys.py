"""What single keys used, for the overview page: found by name, never searched for.

The ledger keeps a set of the models that a key has used on a day, at most fifty, and beside it the sums of all others;
so the fields of the usage by hour and day that belong to a key are known. See `router/ledger.lua`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.cabinet import Cabinet
from router.overview_rows import FIELDS, Amounts, Sums, Where, nothing, number, total
from router.periods import HOUR, day_of
from router.records import Record, key_name, readable
from router.usage import Team, day_name, hour_name

OTHERS: Final[Where] = ("other", "other")
"""What a key used beyond the models that are kept by name."""
REFUSED: Final[Where] = ("", "")
_NAMES: Final = tuple(name for name in FIELDS if name != b"refused")


@dataclass(frozen=True, slots=True)
class Part:
    """What a key used in a day (of its team's time zone), or in an hour."""

    team: Team
    key: str
    days: tuple[str, ...]
    """The day; of an hour that days meet in, both."""
    hour: int | None = None

    @property
    def table(self) -> str:
        return day_name(self.team.id, self.days[0]) if self.hour is None else hour_name(self.team.id, self.hour)

    @property
    def named(self) -> list[tuple[Team, str, str]]:
        return [(self.team, self.key, day) for day in self.days]

    @property
    def refused(self) -> tuple[str, str, str]:
        """The command that answers how often a limit refused it."""
        if self.hour is None:
            return "ZSCORE", f"sy:{{{self.team.id}}}:top:{self.days[0]}:refused", self.key
        return "HGET", f"sy:{{{self.team.id}}}:rh:{self.hour}", self.key


class KeySums:
    """Reads what keys used. Raises what the store raises."""

    def __init__(self, cabinet: Cabinet) -> None:
        self._cabinet = cabinet

    async def today(self, wanted: Sequence[tuple[Team, str]], now: float) -> list[Sums]:
        """What each of these keys used today, in its team's time zone."""
        found = await self._parts([Part(team, key, (day(now, team),)) for team, key in wanted])
        return [Sums(*total(one.values())) for one in found]

    async def hours(
        self, team: Team, key: str, hours: Sequence[int], now: float
    ) -> tuple[dict[Where, Amounts], list[Sums]]:
        """What a key used today, by model and provider, and in each of these hours."""
        parts = [
            Part(team, key, tuple(dict.fromkeys((day(hour * HOUR, team), day((hour + 1) * HOUR - 1, team)))), hour)
            for hour in hours
        ]
        found = await self._parts([Part(team, key, (day(now, team),)), *parts])
        return found[0], [Sums(*total(one.values())) for one in found[1:]]

    async def records(self, wanted: Sequence[tuple[Team, str]]) -> list[Record | None]:
        """The records of these keys, also of those that have moved to another team since."""
        raws = await self._cabinet.gather([("GET", key_name(team.id, key)) for team, key in wanted])
        found = [readable(raw) if raw is not None else None for raw in raws]
        return [
            record if record is not None else await self._cabinet.find(key)
            for record, (_, key) in zip(found, wanted, strict=True)
        ]

    async def _parts(self, parts: Sequence[Part]) -> list[dict[Where, Amounts]]:
        days = list(dict.fromkeys(named for part in parts for named in part.named))
        asked: list[tuple[str, ...]] = [("SMEMBERS", f"sy:{{{team.id}}}:km:{key}:{on}") for team, key, on in days]
        asked += [("HGETALL", f"sy:{{{team.id}}}:kr:{key}:{on}") for team, key, on in days]
        answers = await self._cabinet.gather(asked)
        models = dict(zip(days, ([*map(_where, one)] for one in answers), strict=False))
        rest = dict(zip(days, answers[len(days) :], strict=True))
        named = {part: sorted({where for one in part.named for where in models[one]}) for part in parts}
        commands: list[tuple[str, ...]] = [
            (
                "HMGET",
                part.table,
                *(f"{part.key}\t{model}\t{provider}\t{name.decode()}" for model, provider in some for name in _NAMES),
            )
            for part, some in named.items()
            if some
        ]
        values = iter(await self._cabinet.gather([*commands, *(part.refused for part in parts)]))
        found = [_amounts(named[part], next(values)) if named[part] else {} for part in parts]
        for part, sums in zip(parts, found, strict=True):
            others = nothing()
            for one in part.named:
                _add_rest(others, rest[one], part.hour)
            sums[OTHERS] = others
            sums[REFUSED] = nothing()
            sums[REFUSED][FIELDS[b"refused"]] = int(float(next(values) or 0))
        return found


def day(now: float, team: Team) -> str:
    """The date in a team's time zone."""
    return day_of(now, team.zone).isoformat()


def _amounts(models: Sequence[Where], values: Sequence[Any]) -> dict[Where, Amounts]:
    each = iter(values)
    found: dict[Where, Amounts] = {}
    for where in models:
        amounts = found[where] = nothing()
        for name in _NAMES:
            amounts[FIELDS[name]] = number(next(each))
    return found


def _add_rest(into: Amounts, fields: Mapping[bytes, bytes], hour: int | None) -> None:
    """Add the fields `<hour>\\t<name>` of one hour, or of all."""
    for field, value in fields.items():
        of, _, name = field.partition(b"\t")
        if (hour is None or of == str(hour).encode()) and name in FIELDS:
            into[FIELDS[name]] += number(value)


def _where(member: bytes) -> Where:
    model, _, provider = member.decode("utf-8", "replace").rpartition("\t")
    return model, provider
