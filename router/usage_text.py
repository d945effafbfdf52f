"""Usage for people and programs: JSON objects, CSV and sums of money."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from router.limits import MICRO
from router.usage import METRICS, Amounts, Dimension, Metric, Report, Row

SHOWN: Final[Mapping[Metric, str]] = {
    "calls": "calls",
    "errors": "errors",
    "fallbacks": "fallbacks",
    "aborted": "aborted",
    "estimated": "estimated",
    "unpriced": "unpriced",
    "in": "tokens_in",
    "cached": "tokens_cached",
    "cache_write": "tokens_cache_write",
    "out": "tokens_out",
    "reasoning": "tokens_reasoning",
    "media": "media",
}
"""What the metrics are called outside; the cost comes in several forms."""

Rate = Decimal | float | int | str | None
"""CNY for one USD, None where the config names none."""


def money(micro: int) -> str:
    """Micro-units as a decimal: `12.50`, `0.001234`."""
    sign = "-" if micro < 0 else ""
    whole, part = divmod(abs(micro), MICRO)
    digits = f"{part:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits}"


def to_cny(micro_usd: int, rate: Rate) -> int:
    """Micro-CNY for micro-USD, rounded to the nearest."""
    return int((Decimal(micro_usd) * Decimal(str(rate))).to_integral_value(ROUND_HALF_EVEN))


def amounts_json(amounts: Amounts, rate: Rate = None) -> dict[str, Any]:
    """The sums of a row. `cost` is in USD, `cost_micro_usd` the same as an integer."""
    shown: dict[str, Any] = {
        SHOWN[metric]: amount for metric, amount in zip(METRICS, amounts, strict=True) if metric != "cost"
    }
    cost = amounts[-1]
    shown |= {"cost": money(cost), "cost_micro_usd": cost}
    if rate is not None:
        shown["cost_cny"] = money(to_cny(cost, rate))
    return shown


def row_json(report: Report, row: Row, rate: Rate = None) -> dict[str, Any]:
    """A row: its group (teams and keys by name, with their ids), then its sums."""
    shown: dict[str, Any] = {}
    for dimension, value in zip(report.group_by, row.group, strict=True):
        if dimension in ("team", "key"):
            shown[dimension] = report.names.get(value, value)
            shown[f"{dimension}_id"] = value
        else:
            shown[dimension] = value
    return shown | amounts_json(row.amounts, rate)


def columns(group_by: Sequence[Dimension], rate: Rate = None) -> list[str]:
    """The names of a row's values, in their order."""
    names: list[str] = []
    for dimension in group_by:
        names += [dimension, f"{dimension}_id"] if dimension in ("team", "key") else [dimension]
    return names + list(amounts_json([0] * len(METRICS), rate))


def report_csv(report: Report, rate: Rate = None) -> str:
    """All rows, with a heading; no line of totals, which would be summed up once more."""
    return table_csv(columns(report.group_by, rate), (row_json(report, row, rate) for row in report.rows))


def table_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV by RFC 4180 of these columns."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        writer.writerow([harmless(row.get(name)) for name in names])
    return text.getvalue()


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Also in the wide forms, which some spreadsheets read alike."""


def harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (names are chosen by people): an apostrophe stands in
    front, as OWASP has it. Numbers stay as they are."""
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
