"""Reports for administrators: usage and recent requests, asked for by texts as they stand in a query or on a command
line. The admin API and the local command line are two callers of this."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from providers.errors import InvalidRequest
from router.keys import Keys
from router.periods import DaysAgo, span
from router.recent import MOST, Recent, RecentReader, Wanted
from router.usage import Query, Report, Team, UsageReader, parse_by, parse_group_by, team_of_record
from router.usage_text import Rate, amounts_json, report_csv, row_json

Asked = Mapping[str, str | None]
"""Names of parameters and their texts; None for what was not given."""

MOST_SHOWN: Final = 10_000
"""Rows in one answer; CSV has them all."""
_LONGEST_FILTER: Final = 200


class Reports:
    """Raises InvalidRequest, NotFound, Conflict and StoreUnavailable. `rate` gives CNY for one USD, or None."""

    def __init__(self, keys: Keys, rate: Callable[[], Rate]) -> None:
        self._keys = keys
        self._rate = rate
        self._usage = UsageReader(keys.cabinet.store, clock=keys.clock)
        self._recent = RecentReader(self._usage)

    async def usage(self, asked: Asked) -> dict[str, Any]:
        """since, until, by, group_by, team, key, model, provider, limit, offset: a page of rows with their totals."""
        limit = _number(asked, "limit", 1000, 1, MOST_SHOWN)
        offset = _number(asked, "offset", 0, 0, 1_000_000)
        query, report = await self._report(asked)
        rate = self._rate()
        rows = report.rows[offset : offset + limit]
        shown = await asyncio.to_thread(lambda: [row_json(report, row, rate) for row in rows])
        return {
            "object": "usage",
            "since": asked.get("since") or "7d",
            "until": asked.get("until") or "now",
            "by": "hour" if query.hourly else "day",
            "group_by": list(report.group_by),
            "data": shown,
            "total": amounts_json(report.total, rate),
            "rows": len(report.rows),
            "offset": offset,
        }

    async def usage_csv(self, asked: Asked) -> str:
        """The same as CSV, all rows."""
        _, report = await self._report(asked)
        return await asyncio.to_thread(report_csv, report, self._rate())

    async def _report(self, asked: Asked) -> tuple[Query, Report]:
        asked_group = asked.get("group_by")
        query = Query(
            span(asked.get("since"), asked.get("until"), self._usage.clock(), default=DaysAgo(6)),
            parse_group_by("team,key,model" if asked_group is None else asked_group),
            parse_by(asked.get("by")),
            await self._key(asked),
            _filter(asked, "model"),
            _filter(asked, "provider"),
        )
        return query, await self._usage.read(query, await self._teams(asked))

    async def requests(self, asked: Asked) -> Recent:
        """team, key, status (a number, `running` or `failed`), fallback (`true` or `false`), limit, after."""
        status = asked.get("status") or ""
        if not (status in ("", "running", "failed") or (status.isascii() and status.isdigit() and len(status) == 3)):
            raise InvalidRequest("status is a number such as 429, running or failed", param="status")
        fallback = asked.get("fallback") or "false"
        if fallback not in ("true", "false"):
            raise InvalidRequest("fallback is true or false", param="fallback")
        after = None if asked.get("after") is None else _number(asked, "after", 0, 0, 10**14)
        wanted = Wanted(
            key=await self._key(asked),
            status=int(status) if status.isdigit() else None,
            running=status == "running",
            failed=status == "failed",
            fallback=fallback == "true",
            limit=_number(asked, "limit", 100, 1, MOST),
            after=after,
        )
        return await self._recent.read(wanted, await self._teams(asked))

    async def _teams(self, asked: Asked) -> list[Team]:
        ref = asked.get("team")
        if ref:
            return [team_of_record(await self._keys.teams.get(ref))]
        return [team_of_record(record) for record in await self._keys.teams.list()]

    async def _key(self, asked: Asked) -> str | None:
        # All its teams are read: it may have moved.
        ref = asked.get("key")
        return (await self._keys.get(ref)).key.id if ref else None


def _filter(asked: Asked, name: str) -> str | None:
    text = asked.get(name) or None
    if text is not None and len(text) > _LONGEST_FILTER:
        raise InvalidRequest(f"{name} has at most {_LONGEST_FILTER} characters", param=name)
    return text


def _number(asked: Asked, name: str, default: int, least: int, most: int) -> int:
    text = asked.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} is a number from {least} to {most}", param=name)
    return int(text)
