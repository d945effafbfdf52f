"""What a key, a team or a provider may use at most: one `Limit` each, as values. Their text forms are in
`router.limit_text`, their enforcement in `router.ledger`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

Measure = Literal["requests", "tokens", "cost", "running"]
Window = Literal["minute", "day", "week", "month", "total", "now"]
Currency = Literal["", "usd", "cny"]

MICRO: Final = 1_000_000
"""Micro-units in one unit of a currency."""
LARGEST: Final = 1 << 50
"""Amounts stay exact in the store's functions, whose numbers are doubles (2^53)."""

NAMES: Final[Mapping[tuple[Measure, Window], str]] = {
    ("requests", "minute"): "rpm",
    ("tokens", "minute"): "tpm",
    ("running", "now"): "concurrency",
    ("cost", "day"): "budget_day",
    ("cost", "week"): "budget_week",
    ("cost", "month"): "budget_month",
    ("cost", "total"): "budget_total",
    ("requests", "day"): "max_requests_day",
    ("requests", "week"): "max_requests_week",
    ("requests", "month"): "max_requests_month",
    ("requests", "total"): "max_requests",
    ("tokens", "day"): "max_tokens_day",
    ("tokens", "week"): "max_tokens_week",
    ("tokens", "month"): "max_tokens_month",
    ("tokens", "total"): "max_tokens",
}
"""Every limit there is, by what it counts and over which time."""


class Limit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At most `amount` of `measure` in `window`.

    amount: calls, tokens, calls at once, or micro-units of `currency` (set for `cost` only). models: a pattern of asked
    model names that it counts; empty for all.
    """

    measure: Measure
    window: Window
    amount: int
    currency: Currency = ""
    models: str = ""

    @property
    def name(self) -> str:
        """`rpm`, `budget_day`, `tpm[gpt-4*]`: what messages, headers and `/v1/usage` call it."""
        name = NAMES[self.measure, self.window]
        return f"{name}[{self.models}]" if self.models else name
