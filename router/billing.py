"""What a key holder may see of their own key: `/v1/usage`, and One-API's `/dashboard/billing/*` for clients that show a
balance. Everything here is of the key that asks; no parameter names another one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from providers.errors import InvalidRequest
from router.http import Scope, Send, reply_json
from router.limits import MICRO
from router.periods import DAYS_KEPT, DaysAgo, FirstOfMonth, Span, begin, day_of, iso
from router.records import Key, TeamRecord, team_name, team_of_key
from router.standing import TEAM, Standing, in_usd, standing, standing_json, tightest
from router.usage import Dimension, Query, Team, UsageReader, parse_by, parse_group_by, team_of_record
from router.usage_text import Rate, amounts_json, row_json

if TYPE_CHECKING:
    from router.store import Store

UNLIMITED: Final = 100_000_000
"""Dollars: what One-API answers for a key without a limit, and what its clients take for one."""
OWN: Final[tuple[Dimension, ...]] = ("model", "provider", "hour", "day")
MOST_OWN_ROWS: Final = 5000
_USAGE_PARAMETERS: Final = frozenset({"days", "group_by", "by", "key"})
"""`key` is a credential, as in Gemini's addresses: no parameter names somebody else's key."""

PATHS: Final[Mapping[str, str]] = {
    f"{root}{path}": op
    for root in ("/v1", "")
    for path, op in (
        ("/usage", "usage"),
        ("/dashboard/billing/subscription", "subscription"),
        ("/dashboard/billing/usage", "billed"),
    )
}


class Billing:
    """Answers the paths of PATHS for a key. `rate` is CNY for one USD."""

    paths = PATHS

    def __init__(self, store: Store) -> None:
        self._store = store
        self._usage = UsageReader(store, clock=time.time)

    async def handle(self, path: str, key: Key, rate: Rate, scope: Scope, send: Send) -> None:
        """Answer one GET of `key`'s holder. Raises InvalidRequest, NotFound, StoreUnavailable."""
        asked = _query(scope)
        op = PATHS[path]
        if op == "usage":
            answer = await self._own(key, rate, asked)
        elif op == "subscription":
            answer = await self._subscription(key, rate)
        else:
            answer = await self._billed(key, rate, asked)
        await reply_json(send, 200, answer, [(b"cache-control", b"no-store")])

    async def _own(self, key: Key, rate: Rate, asked: Mapping[str, str]) -> dict[str, Any]:
        if unknown := sorted(set(asked) - _USAGE_PARAMETERS):
            raise InvalidRequest(
                f"there is no parameter '{unknown[0][:50]}': days, group_by and by are", param=unknown[0][:50]
            )
        days = _days(asked.get("days"))
        group_by = parse_group_by(asked.get("group_by"), OWN)
        query = Query(Span(DaysAgo(days - 1)), group_by or ("model",), parse_by(asked.get("by")), key.id)
        record = await self._team(key)
        team = team_of_record(record)
        report = None
        if "days" in asked or group_by:
            report = await self._usage.read(query, [team])
            if len(report.rows) > MOST_OWN_ROWS:
                raise InvalidRequest(f"more than {MOST_OWN_ROWS} rows: ask for fewer days", param="days")
        # A month's days hold today's as well.
        month = await self._usage.read(Query(Span(FirstOfMonth()), ("day",), None, key.id), [team])
        today = day_of(self._usage.clock(), team.zone).isoformat()
        of_today = next((row.amounts for row in month.rows if row.group == (today,)), [0] * len(month.total))
        answer: dict[str, Any] = {
            "object": "usage",
            "key": {
                "id": key.id,
                "name": key.name,
                "team": record.name,
                "state": key.condition(self._usage.clock()),
                "expires_at": iso(key.expires_at),
            },
            "time_zone": record.timezone,
            "limits": [standing_json(found) for found in await self._limits(key, record, team, rate)],
            "today": amounts_json(of_today, rate),
            "month": amounts_json(month.total, rate),
        }
        if report is not None:
            answer["days"] = days
            answer["group_by"] = list(report.group_by)
            answer["data"] = [row_json(report, row, rate) for row in report.rows]
            answer["total"] = amounts_json(report.total, rate)
        return answer

    async def _subscription(self, key: Key, rate: Rate) -> dict[str, Any]:
        found = await self._tightest(key, rate)
        limit: float = UNLIMITED if found is None else _usd(found.limit.amount, found, rate)
        return {
            "object": "billing_subscription",
            "has_payment_method": True,
            "soft_limit_usd": limit,
            "hard_limit_usd": limit,
            "system_hard_limit_usd": limit,
            "access_until": key.expires_at or 0,
        }

    async def _billed(self, key: Key, rate: Rate, asked: Mapping[str, str]) -> dict[str, Any]:
        """Cents. Where a limit is shown, what is spent of that limit, whatever the dates: clients take one from the
        other and call it the balance (One-API does the same); what running calls hold is not spent. Without a limit,
        what these days cost."""
        record = await self._team(key)
        team = team_of_record(record)
        span = _dates(asked, team, self._usage.clock())
        found = tightest(await self._limits(key, record, team, rate))
        if found is not None:
            cents = _usd(found.spent, found, rate) * 100
        else:
            report = await self._usage.read(Query(span, (), "day", key.id), [team])
            cents = report.total[-1] / MICRO * 100
        return {"object": "list", "total_usage": round(cents, 4)}

    # --- the key and its team

    async def _team(self, key: Key) -> TeamRecord:
        async with self._usage.errors():
            raw = await self._store.run("GET", team_name(key.team))
        return team_of_key(key, raw)

    async def _tightest(self, key: Key, rate: Rate) -> Standing | None:
        record = await self._team(key)
        return tightest(await self._limits(key, record, team_of_record(record), rate))

    async def _limits(self, key: Key, record: TeamRecord, team: Team, rate: Rate) -> list[Standing]:
        """The key's limits, then its team's."""
        async with self._usage.errors():
            return await standing(
                self._store,
                key.team,
                {key.id: key.limits, TEAM: record.limits},
                zone=team.zone,
                rate=rate,
                now=self._usage.clock(),
            )


def _usd(amount: int, found: Standing, rate: Rate) -> float:
    return float(in_usd(amount, found.limit.currency, rate))


def _query(scope: Scope) -> dict[str, str]:
    """The query's parameters; of a repeated one the last, as most servers have it."""
    raw: bytes = scope["query_string"]
    try:
        asked = parse_qs(raw.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except (ValueError, UnicodeDecodeError):
        raise InvalidRequest("the query cannot be read") from None
    return {name: values[-1] for name, values in asked.items()}


def _days(text: str | None) -> int:
    if text is None:
        return 30
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= DAYS_KEPT):
        raise InvalidRequest(f"days is a number from 1 to {DAYS_KEPT}", param="days")
    return int(text)


def _dates(asked: Mapping[str, str], team: Team, now: float) -> Span:
    """`start_date` and `end_date` (exclusive, as OpenAI had it). Days before those that are kept are left out: clients
    ask for all time by a date long past."""
    today = day_of(now, team.zone)
    oldest = day_of(begin(today, team.zone) - (DAYS_KEPT - 2) * 86400, team.zone)
    dates: dict[str, date] = {}
    for name in ("start_date", "end_date"):
        text = asked.get(name)
        if text:
            try:
                dates[name] = date.fromisoformat(text[:10])
            except ValueError:
                raise InvalidRequest(f"{name} is a date such as 2026-11-01", param=name) from None
    first = max(dates.get("start_date", today.replace(day=1)), oldest)
    if "end_date" not in dates:
        return Span(first)
    return Span(first, max(date.fromordinal(max(dates["end_date"].toordinal() - 1, 1)), first))
