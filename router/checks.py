"""Limits as the ledger's functions check them: which ones count a call, over which window, and by how much.

What a call is checked against depends on the key, its team and the model, so it is worked out once for them and kept;
per call only the amounts are filled in. See `router/ledger.lua` for the form of a check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Final, NamedTuple

import msgspec

from router.limits import Limit, Measure, Window
from router.periods import day_of, window

MEASURES: Final[dict[Measure, int]] = {"requests": 1, "tokens": 2, "cost": 3, "running": 4}
FOREVER: Final = (0, 0)
pack_value: Final = msgspec.msgpack.Encoder().encode
NO_CHECKS: Final = pack_value([])


class Amounts(NamedTuple):
    """The most that a call can take. cost: micro-USD. prompt: tokens of it, of which `tokens` is the whole.

    open_ended: the caller set no maximum for the answer, so `tokens` is the model's.
    """

    tokens: int = 0
    cost: int = 0
    prompt: int = 0
    open_ended: bool = False


NO_AMOUNTS: Final = Amounts()


@dataclass(frozen=True, slots=True)
class Check:
    """One limit that counts the calls of a key and model."""

    limit: Limit
    title: str
    """Its name towards people: `team.` in front of a team's."""
    kind: str
    suffix: str
    field: str
    amount: int
    """The limit itself, money in micro-USD."""
    measure: int
    calendar: bool
    per_dollar: float = 1.0
    """Units of the limit's own currency in a dollar."""

    def taken(self, amounts: Amounts) -> int:
        """What a call holds of it."""
        if self.measure == 2:
            tokens = amounts.tokens
            if self.kind == "w" and amounts.open_ended and tokens > self.amount >= amounts.prompt:
                # A caller that names no maximum is not refused for the model's: it gets the minute to itself.
                return self.amount
            return tokens
        return amounts.cost if self.measure == 3 else 1


def learn_windows(windows: Windows, checks: Sequence[Check], told: Sequence[int]) -> None:
    """Take the windows that the store told of (start and end for each check, 0 for none)."""
    for check, start, stop in zip(checks, told[::2], told[1::2], strict=True):
        if check.calendar and stop:
            windows[check.suffix, check.field] = (start, stop)


def checks_of(
    limits: Sequence[Limit], scope: str, title: str, counts: Callable[[str], bool], yuan_per_dollar: float
) -> tuple[Check, ...]:
    """The checks of one scope: a key's id, `team`, or `all` of a provider. `counts(pattern)`: whether a limit for these
    models counts the call."""
    return tuple(
        Check(
            limit=limit,
            title=title + limit.name,
            kind="w" if limit.window == "minute" else "b",
            suffix=f"w:{scope}:{limit.name}" if limit.window == "minute" else f"n:{scope}",
            field=limit.name,
            amount=int(limit.amount / yuan_per_dollar) if limit.currency == "cny" else limit.amount,
            measure=MEASURES[limit.measure],
            calendar=limit.window in ("day", "week", "month"),
            per_dollar=yuan_per_dollar if limit.currency == "cny" else 1.0,
        )
        for limit in limits
        if not limit.models or counts(limit.models)
    )


class Calendar:
    """Calendar windows of one time zone, each kept while it lasts."""

    __slots__ = ("_day", "_known", "_zone")

    def __init__(self, zone: tzinfo = UTC) -> None:
        self._zone = zone
        self._known: dict[Window, tuple[int, int]] = {}
        self._day: tuple[int, int, str] = (0, 0, "")

    def window(self, name: Window, moment: float) -> tuple[int, int]:
        """Start and end of the window that holds `moment`, in Unix seconds."""
        known = self._known.get(name, FOREVER)
        if not known[0] <= moment < known[1]:
            known = self._known[name] = window(name, moment, self._zone)
        return known

    def day(self, moment: float) -> str:
        """The date, as usage by day is kept under it."""
        start, end, name = self._day
        if not start <= moment < end:
            start, end = self.window("day", moment)
            name = day_of(moment, self._zone).isoformat()
            self._day = (start, end, name)
        return name


Windows = dict[tuple[str, str], tuple[int, int]]
"""Start and end, by suffix and field, of windows that counters are in although the calendar has others now: the clock
has stepped back, or the team's time zone has changed."""


def packed(checks: Sequence[Check], amounts: Amounts, calendar: Calendar, moment: float, windows: Windows) -> bytes:
    """The checks of a call at `moment` (Unix seconds of the server's clock), as `reserve` takes them."""
    if not checks:
        return NO_CHECKS
    rows: list[list[Any]] = []
    for check in checks:
        start, stop = FOREVER
        if check.calendar:
            start, stop = calendar.window(check.limit.window, moment)
            if windows and (known := windows.get((check.suffix, check.field))) is not None:
                if moment < known[1]:
                    start, stop = known
                else:
                    del windows[check.suffix, check.field]
        rows.append(
            [check.kind, check.suffix, check.field, check.amount, check.taken(amounts), start, stop, check.measure]
        )
    return pack_value(rows)
