"""Where a key and its team stand: each limit with what is spent, held and left, read from the ledger's counters.

A counter is in the hash `sy:{team}:n:<scope>` (scope: a key's id, or `team`), in the fields `<limit>:w` (start of its
window in Unix seconds, 0 for none), `:s` (spent) and `:h` (held by running calls). A rate is in a hash of its own,
`sy:{team}:w:<scope>:<limit>`, with one field for each second. Costs are counted in micro-USD.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from router import periods
from router.limits import MICRO, Limit, Window
from router.periods import iso
from router.records import counters_name
from router.usage_text import Rate, to_cny

if TYPE_CHECKING:
    from router.store import Store

TEAM: Final = "team"
"""The scope of a team's own limits."""
MINUTE: Final = 60
UNITS: Final[Mapping[str, str]] = {"requests": "requests", "tokens": "tokens", "running": "calls"}


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit. Amounts are in the limit's own unit (micro-units for money); `resets_at` in Unix seconds, None for
    never. `name` begins with `team.` where the limit is the team's."""

    name: str
    limit: Limit
    spent: int
    held: int
    resets_at: int | None

    @property
    def remaining(self) -> int:
        return max(0, self.limit.amount - self.spent - self.held)

    @property
    def unit(self) -> str:
        return self.limit.currency or UNITS.get(self.limit.measure, "usd")


class Scope(NamedTuple):
    """Limits that are counted together: a key's (`scope` is its id), or a team's (`TEAM`). zone: the team's."""

    team: str
    scope: str
    limits: Sequence[Limit]
    zone: tzinfo


AT_ONCE: Final = 100
"""Scopes in one round trip; calls have a turn after each."""


async def standings(store: Store, scopes: Sequence[Scope], *, rate: Rate, now: float) -> list[list[Standing]]:
    """The limits of each scope, in their order; a round trip for AT_ONCE of them. Raises what the store raises."""
    found: list[list[Standing]] = []
    windows: dict[tuple[Window, tzinfo], tuple[int, int]] = {}
    for at in range(0, len(scopes), AT_ONCE):
        some = scopes[at : at + AT_ONCE]
        answers = iter(await store.gather([command for one in some for command in _commands(one)]))
        for one in some:
            counted = iter(next(answers)) if any(limit.window != "minute" for limit in one.limits) else iter(())
            stood = []
            for limit in one.limits:
                window = limit.window, one.zone
                if window not in windows:
                    windows[window] = periods.window(limit.window, now, one.zone)
                told = next(answers) if limit.window == "minute" else [next(counted) for _ in _PARTS]
                stood.append(_read(one, limit, told, windows[window], rate, now))
            found.append(stood)
        await asyncio.sleep(0)
    return found


_PARTS: Final = "wsh"


def _commands(one: Scope) -> Iterator[Sequence[str]]:
    """What asks for a scope's counters: all that are in its hash at once, then each rate, which has a hash of its
    own."""
    totals = [limit.name for limit in one.limits if limit.window != "minute"]
    if totals:
        yield "HMGET", counters_name(one.team, one.scope), *(f"{name}:{part}" for name in totals for part in _PARTS)
    for limit in one.limits:
        if limit.window == "minute":
            yield "HGETALL", rate_name(one.team, one.scope, limit.name)


async def standing(
    store: Store,
    team: str,
    limits: Mapping[str, Sequence[Limit]],
    *,
    zone: tzinfo,
    rate: Rate,
    now: float,
) -> list[Standing]:
    """The limits of these scopes of a team, in their order. Raises what the store raises."""
    scopes = [Scope(team, scope, some, zone) for scope, some in limits.items()]
    return [one for some in await standings(store, scopes, rate=rate, now=now) for one in some]


def _read(one: Scope, limit: Limit, told: Any, window: tuple[int, int], rate: Rate, now: float) -> Standing:
    shown = f"team.{limit.name}" if one.scope == TEAM else limit.name
    if limit.window == "minute":
        spent, resets_at = _rate(told, now)
        return Standing(shown, limit, spent, 0, resets_at)
    start, end = window
    stored, spent, held = (int(value or 0) for value in told)
    if stored < start:
        spent = held = 0
    if limit.currency == "cny" and rate is not None:
        spent, held = to_cny(spent, rate), to_cny(held, rate)
    return Standing(shown, limit, spent, held, end or None)


def rate_name(account: str, scope: str, limit: str) -> str:
    """The hash of a rate."""
    return f"sy:{{{account}}}:w:{scope}:{limit}"


def _rate(fields: Mapping[bytes, bytes], now: float) -> tuple[int, int | None]:
    """What was taken in the last 60 seconds, and when all of it is free again."""
    seconds = {int(name): int(amount) for name, amount in fields.items() if name.isdigit()}
    if not seconds:
        return 0, None
    latest = max(seconds)
    present = max(int(now), latest)  # a clock that was set back changes nothing
    return (
        sum(amount for second, amount in seconds.items() if second >= present - MINUTE),
        latest + MINUTE + 1 if latest >= present - MINUTE else None,
    )


def standing_json(found: Standing) -> dict[str, Any]:
    """A limit as `/v1/usage` tells it: money as a number of `unit` (dollars or yuan), other amounts as integers."""
    as_money = found.limit.measure == "cost"

    def shown(amount: int) -> int | float:
        return amount / MICRO if as_money else amount

    return {
        "name": found.name,
        "limit": shown(found.limit.amount),
        "spent": shown(found.spent),
        "held": shown(found.held),
        "remaining": shown(found.remaining),
        "unit": found.unit,
        "resets_at": iso(found.resets_at),
    }


_LONGEST_FIRST: Final = ("total", "month", "week", "day")


def tightest(found: Sequence[Standing]) -> Standing | None:
    """The money limit that balance displays mean: of the longest window there is, the one with the least left (limits
    of single models left out). None when no money limit counts all models."""
    money_limits = [one for one in found if one.limit.measure == "cost" and not one.limit.models]
    for name in _LONGEST_FIRST:
        if some := [one for one in money_limits if one.limit.window == name]:
            return min(some, key=lambda one: one.remaining)
    return None


def in_usd(amount: int, currency: str, rate: Rate) -> Decimal:
    """Micro-units of a currency in USD."""
    usd = Decimal(amount)
    if currency == "cny" and rate is not None:
        usd /= Decimal(str(rate))
    return (usd / 1_000_000).quantize(Decimal("0.000001"), ROUND_HALF_EVEN)
