"""What may happen in a day of operation: limits, moments, jumps of the clock, calls and the clients that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.ledger.books import Command
from tests.ledger.model import BUDGET, NOTHING, PLACES, WINDOW, Account, Bill, Check

LEASE = 30_000
REQUESTS, TOKENS, COST = 1, 2, 3
CALENDAR = ("day", "week", "month")
PATTERNS = ("", "[gpt-4*]")
MODELS = ("gpt-4.1", "qwen3")
KEYS = ("k1", "k2")


class Kind(NamedTuple):
    """What a limit's name means."""

    kind: str
    measure: int
    window: str
    most: int
    """Amounts from 0 to this are tried: small enough to be met."""


KINDS: Mapping[str, Kind] = {
    "rpm": Kind(WINDOW, REQUESTS, "minute", 6),
    "tpm": Kind(WINDOW, TOKENS, "minute", 400),
    "concurrency": Kind(BUDGET, PLACES, "now", 4),
    **{f"budget_{window}": Kind(BUDGET, COST, window, 2000) for window in (*CALENDAR, "total")},
    "max_requests": Kind(BUDGET, REQUESTS, "total", 9),
    "max_tokens": Kind(BUDGET, TOKENS, "total", 900),
    **{f"max_requests_{window}": Kind(BUDGET, REQUESTS, window, 6) for window in CALENDAR},
    **{f"max_tokens_{window}": Kind(BUDGET, TOKENS, window, 600) for window in CALENDAR},
}
Limits = Mapping[tuple[str, str], int]
LIMITS = st.dictionaries(
    st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(PATTERNS)),
    st.sampled_from([100, 70, 50, 30, 100, 70, 50, 30, 100, 100, 0]),  # per cent of the most
    min_size=2,
    max_size=5,
)
MOMENTS = {
    "an hour": datetime(2026, 11, 22, 10, 59, 58, tzinfo=UTC),
    "a month": datetime(2026, 10, 31, 23, 59, 55, tzinfo=UTC),
    "New York's clocks go back": datetime(2026, 11, 1, 3, 59, 50, tzinfo=UTC),
    "a week in Kolkata": datetime(2026, 11, 22, 18, 29, 30, tzinfo=UTC),
}
SECOND, HOUR, DAY = 1000, 3_600_000, 86_400_000
ZONES = ["UTC", "America/New_York", "Asia/Kolkata"]
JUMPS = (
    *(1, 400, 999, SECOND, 5 * SECOND, 29_999, LEASE, LEASE + 1, 59_999, 60 * SECOND, 60_999, 61 * SECOND),
    *(HOUR, DAY, 7 * DAY, 31 * DAY),
    *(-1, -SECOND, -20 * SECOND, -61 * SECOND, -HOUR, -DAY, -31 * DAY),
)
SMALL_JUMPS = (1, 400, SECOND, SECOND, 5 * SECOND, 12 * SECOND, -SECOND)


@dataclass(frozen=True, slots=True)
class Act:
    """A command, and what the model makes of it."""

    command: Command
    apply: Callable[[Account, int], Any]
    call: str = ""
    checks: tuple[Check, ...] = ()
    bill: Bill = NOTHING


@dataclass(slots=True)
class Call:
    """A call as its client knows it."""

    id: str
    client: int
    key: str
    model: str
    hour: str
    day: str
    tokens: int
    cost: int
    ends: int = 0
    checks: tuple[Check, ...] = ()
    state: str = "asked"  # then live, then over; or lost with its client


@dataclass(slots=True)
class Client:
    """One worker: what it knows of the records, and how wrong its clock is (ms)."""

    skew: int = 0
    beat: Act | None = None
    known: dict[str, bytes] = field(default_factory=dict)
