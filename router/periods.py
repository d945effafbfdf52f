"""Calendar windows and spans of time in a team's time zone. Pure: the present is an argument (Unix seconds).

A day runs from its first instant in the zone to that of the next day, so it has 23 or 25 hours when the clocks change;
a week begins on Monday.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from providers.errors import InvalidRequest
from router.limits import Window

DAYS_KEPT: Final = 400
"""Days for which usage by day is kept."""
HOURS_KEPT: Final = 35 * 24
"""Hours for which usage by hour is kept."""
HOUR: Final = 3600


def zone_of(name: str) -> tzinfo:
    """The time zone of that IANA name; UTC where this machine does not know it."""
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def day_of(moment: float, zone: tzinfo) -> date:
    return datetime.fromtimestamp(int(moment), zone).date()  # whole: fractions are rounded, here never up


def begin(day: date, zone: tzinfo) -> int:
    """The first instant of a day, in Unix seconds."""
    # Where clocks change at midnight, `fold=0` gives the first of two midnights, and the change itself for none.
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def window(name: Window, moment: float, zone: tzinfo) -> tuple[int, int]:
    """Start and end of the window that holds `moment`, in Unix seconds; (0, 0) where there is none."""
    if name not in ("day", "week", "month"):
        return 0, 0
    today = day_of(moment, zone)
    if name == "day":
        first, after = today, today + timedelta(days=1)
    elif name == "week":
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    else:
        first = today.replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
    return begin(first, zone), begin(after, zone)


def iso(moment: float | None) -> str | None:
    """UTC to the second, as JSON and tables show instants."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- spans that people ask for


@dataclass(frozen=True, slots=True)
class DaysAgo:
    """The day so many days before today, in each team's time zone."""

    days: int


@dataclass(frozen=True, slots=True)
class FirstOfMonth:
    """The first day of this month, in each team's time zone."""


Edge = DaysAgo | FirstOfMonth | date | float
"""A day in each team's time zone, or an instant (Unix seconds) the same for all."""


@dataclass(frozen=True, slots=True)
class Span:
    """From `since` to `until`: days count whole (the last one included), instants to the hour."""

    since: Edge
    until: Edge = DaysAgo(0)

    @property
    def exact(self) -> bool:
        """Whether days are not enough to tell it."""
        return isinstance(self.since, float) or isinstance(self.until, float)

    def days(self, now: float, zone: tzinfo) -> Sequence[date]:
        """Its days, oldest first, without those to come. Raises InvalidRequest beyond what is kept."""
        today = day_of(now, zone)
        first = _day(self.since, today, zone)
        last = min(_day(self.until, today, zone), today)
        # A day of grace: east of here it may be tomorrow already.
        if (today - first).days > DAYS_KEPT:
            raise InvalidRequest(f"usage by day is kept for {DAYS_KEPT} days: ask for a later start", param="since")
        return [first + timedelta(days=number) for number in range((last - first).days + 1)]

    def hours(self, now: float, zone: tzinfo) -> range:
        """Its hours (Unix seconds // 3600), without those to come. Raises InvalidRequest beyond what is kept.

        Hours are those of UTC; in a zone that is off by half an hour, one belongs to the day in which it ends.
        """
        today = day_of(now, zone)
        if isinstance(self.since, float):
            first = int(self.since // HOUR)
        else:
            first = begin(_day(self.since, today, zone), zone) // HOUR
        if isinstance(self.until, float):
            after = -int(-self.until // HOUR)
        else:
            after = begin(_day(self.until, today, zone) + timedelta(days=1), zone) // HOUR
        present = int(now // HOUR)
        if present - first > HOURS_KEPT:
            raise InvalidRequest(
                f"usage by hour is kept for {HOURS_KEPT // 24} days: ask for a later start, or by day", param="since"
            )
        return range(first, max(first, min(after, present + 1)))


def hour_day(hour: int, zone: tzinfo) -> date:
    """The day to which `Span.hours` counts an hour."""
    return day_of((hour + 1) * HOUR - 1, zone)


def _day(edge: Edge, today: date, zone: tzinfo) -> date:
    if isinstance(edge, DaysAgo):
        return today - timedelta(days=edge.days)
    if isinstance(edge, FirstOfMonth):
        return today.replace(day=1)
    if isinstance(edge, float):
        return day_of(edge, zone)
    return edge


_WORDS: Final[dict[str, Edge]] = {
    "now": DaysAgo(0),
    "today": DaysAgo(0),
    "yesterday": DaysAgo(1),
    "month": FirstOfMonth(),
}
_RELATIVE: Final = re.compile(r"([0-9]{1,6})([hdw])")
_LONGEST: Final = 40


def parse_edge(text: str, now: float, param: str) -> Edge:
    """`7d` (seven days, today included), `2w`, `24h`, `2026-11-01`, `2026-11-01T12:00+08:00`, `today`, `yesterday`,
    `month`. Raises InvalidRequest naming `param`."""
    text = text.strip()
    known = _WORDS.get(text.lower())
    if known is not None:
        return known
    if match := _RELATIVE.fullmatch(text.lower()):
        number = int(match[1])
        if match[2] == "h":
            if not 1 <= number <= HOURS_KEPT:
                raise InvalidRequest(f"{param} reaches 1 to {HOURS_KEPT} hours back", param=param)
            return float(now - number * HOUR)
        days = number * (7 if match[2] == "w" else 1)
        if not 1 <= days <= DAYS_KEPT:
            raise InvalidRequest(f"{param} reaches 1 to {DAYS_KEPT} days back", param=param)
        return DaysAgo(days - 1)
    if len(text) <= _LONGEST:
        try:
            if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
                return _within(date.fromisoformat(text), param)
            when = datetime.fromisoformat(text)
            _within(when.date(), param)
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            pass
    raise InvalidRequest(
        f"{param} is 7d, 24h, a date (2026-11-01), a time (2026-11-01T12:00Z), today, yesterday or month", param=param
    )


def _within(day: date, param: str) -> date:
    # Zones reach a day beyond UTC, and the calendar of the library ends with the year 9999.
    if not 1971 <= day.year <= 9000:
        raise InvalidRequest(f"{param} lies outside of what is kept", param=param)
    return day


def span(since: str | None, until: str | None, now: float, *, default: Edge) -> Span:
    """The span of two texts, as `parse_edge` reads them. Raises InvalidRequest."""
    first = default if since is None else parse_edge(since, now, "since")
    if isinstance(first, date) and first > day_of(now + 86400, UTC):
        raise InvalidRequest("since lies in the future", param="since")
    last: Edge = DaysAgo(0) if until is None else parse_edge(until, now, "until")
    if until is None and isinstance(first, float):
        last = float(now)
    if until is not None and _before(last, first, now):
        raise InvalidRequest("until lies before since", param="until")
    return Span(first, last)


def _before(last: Edge, first: Edge, now: float) -> bool:
    """Whether it is earlier in every time zone."""
    if isinstance(last, float) and isinstance(first, float):
        return last < first
    today = day_of(now, UTC)
    slack = timedelta(days=type(last) is not type(first))  # a day of one kind may be another one's neighbour elsewhere
    return _day(last, today, UTC) + slack < _day(first, today, UTC)
