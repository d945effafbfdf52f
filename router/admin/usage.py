"""The admin API's reports: usage (JSON and CSV) and recent requests."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from providers.errors import InvalidRequest
from router.reports import MOST_SHOWN, Reports

Since = Annotated[
    str | None,
    Query(
        max_length=100,
        description="`7d` (today included; the default), `24h`, `2026-11-01`, `2026-11-01T12:00Z`, `today`, `month`."
        " Days are those of each team's time zone.",
    ),
]
Until = Annotated[str | None, Query(max_length=100, description="The same; a day counts whole. Now when left out.")]
By = Annotated[
    str | None,
    Query(max_length=10, description="`day` (kept for 400 days) or `hour` (35 days); what suits when left out."),
]
GroupBy = Annotated[
    str | None,
    Query(max_length=100, description="Any of `team,key,model,provider,hour,day`; empty for the total alone."),
]
TeamRef = Annotated[str | None, Query(max_length=100, description="A team's id or name.")]
KeyRef = Annotated[str | None, Query(max_length=100, description="A key's id, or its name when only one key has it.")]
Name = Annotated[str | None, Query(max_length=200, description="A name, or a pattern of names with `*`.")]
Number = Annotated[str | None, Query(max_length=20)]


class UsageRow(BaseModel):
    """Sums of calls, tokens and money; with them the values that the row is grouped by."""

    model_config = ConfigDict(extra="allow")

    team: str | None = None
    team_id: str | None = None
    key: str | None = None
    key_id: str | None = None
    model: str | None = None
    provider: str | None = None
    hour: str | None = Field(None, description="Its beginning; in the team's time zone when all teams share one.")
    day: str | None = None
    calls: int
    errors: int
    fallbacks: int
    aborted: int
    estimated: int = Field(description="Calls whose usage was counted by the router, not told by the provider.")
    unpriced: int = Field(description="Calls whose cost is not known; it is not in `cost`.")
    tokens_in: int
    tokens_cached: int = Field(description="Part of `tokens_in`.")
    tokens_cache_write: int = Field(description="Part of `tokens_in`.")
    tokens_out: int
    tokens_reasoning: int = Field(description="Part of `tokens_out`.")
    media: int
    cost: str = Field(description="USD, as a decimal.")
    cost_micro_usd: int
    cost_cny: str | None = None


class UsageAnswer(BaseModel):
    object: str
    since: str
    until: str
    by: str
    group_by: list[str]
    data: list[UsageRow]
    total: UsageRow = Field(description="Of all rows, also those on other pages.")
    rows: int = Field(description="How many rows there are.")
    offset: int


class RequestRow(BaseModel):
    """A call, with what is known of it; no prompts. Among it are `fallback`, why a fallback answered, and `limit`,
    which one refused it."""

    model_config = ConfigDict(extra="allow")

    id: str
    time: str | None = Field(description="When it began.")
    team: str
    team_id: str
    key: str | None
    key_id: str | None
    status: int | None = Field(description="null while it runs.")
    age: float | None = Field(description="Seconds since it began, while it runs.")


class RequestsAnswer(BaseModel):
    data: list[RequestRow] = Field(description="Those that began last first.")
    cursor: int = Field(description="Give it as `after` to follow; a row may come twice.")


CSV = "text/csv; charset=utf-8"


def usage_routes(reports: Reports) -> APIRouter:
    """/admin/api/usage, /admin/api/usage.csv and /admin/api/requests."""
    router = APIRouter(prefix="/admin/api", tags=["usage"])

    @router.get(
        "/usage",
        response_model=UsageAnswer,
        responses={200: {"content": {"text/csv": {}}}},
    )
    async def usage(
        since: Since = None,
        until: Until = None,
        by: By = None,
        group_by: GroupBy = None,
        team: TeamRef = None,
        key: KeyRef = None,
        model: Name = None,
        provider: Name = None,
        limit: Annotated[str | None, Query(max_length=20, description=f"At most {MOST_SHOWN}; else 1000.")] = None,
        offset: Number = None,
        format: Annotated[str | None, Query(max_length=10, description="`json` or `csv`.")] = None,  # noqa: A002
    ) -> Any:
        """What was used, by team, key and model unless you say otherwise."""
        asked = {"since": since, "until": until, "by": by, "group_by": group_by, "team": team, "key": key}
        asked |= {"model": model, "provider": provider, "limit": limit, "offset": offset}
        if format == "csv":
            return _csv(await reports.usage_csv(asked))
        if format not in (None, "", "json"):
            raise InvalidRequest("format is json or csv", param="format")
        # Written here: checking thousands of rows against the model once more would hold calls up.
        body = await asyncio.to_thread(orjson.dumps, await reports.usage(asked))
        return Response(body, media_type="application/json")

    @router.get("/usage.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
    async def usage_csv(
        since: Since = None,
        until: Until = None,
        by: By = None,
        group_by: GroupBy = None,
        team: TeamRef = None,
        key: KeyRef = None,
        model: Name = None,
        provider: Name = None,
    ) -> Response:
        """The same as CSV, all rows. Cells that a spreadsheet would take for a formula begin with an apostrophe."""
        asked = {"since": since, "until": until, "by": by, "group_by": group_by, "team": team, "key": key}
        return _csv(await reports.usage_csv(asked | {"model": model, "provider": provider}))

    @router.get("/requests", response_model=RequestsAnswer)
    async def requests(
        team: TeamRef = None,
        key: KeyRef = None,
        status: Annotated[str | None, Query(max_length=10, description="`429`, `running` or `failed`.")] = None,
        fallback: Annotated[
            str | None, Query(max_length=10, description="`true`: only calls that a fallback answered.")
        ] = None,
        limit: Number = None,
        after: Number = None,
    ) -> Any:
        """Recent calls, running ones included; about 2000 are kept for each team. Of the calls that a limit refused
        (429) the first of a key by that limit in an hour is among them; `switchyard_quota_rejections_total` counts
        all."""
        asked = {"team": team, "key": key, "status": status, "fallback": fallback, "limit": limit, "after": after}
        found = await reports.requests(asked)
        return {"data": found.rows, "cursor": found.cursor}

    return router


def _csv(text: str) -> Response:
    return Response(text, media_type=CSV, headers={"content-disposition": 'attachment; filename="usage.csv"'})
