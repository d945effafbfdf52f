"""/admin/api/keys"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from providers.errors import InvalidRequest
from providers.jsontext import read_object
from router.admin.bodies import (
    CreateBody,
    CreatedBody,
    IssueBody,
    IssuedBody,
    KeyBody,
    KeysBody,
    RotateBody,
    RotatedBody,
    SetBody,
)
from router.admin.common import IfMatch, KeyRef, Limit, Search, Version, acting, expected, sent, told
from router.changes import change_of, parse_overlap
from router.issue import Row, issue, read_rows, write_csv
from router.keys import Keys, Listed, describe

_CSV = "text/csv"
_ISSUE_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/IssueBody"}},
        _CSV: {"schema": {"type": "string", "description": "Names, one on each line, or a CSV with a heading."}},
    },
}


def key_routes(keys: Keys) -> APIRouter:
    """Keys: make, list, show, change, rotate, revoke, and many at once."""
    routes = APIRouter(prefix="/admin/api/keys", tags=["keys"])

    @routes.post("", status_code=201, response_model=CreatedBody, response_model_exclude_unset=True)
    async def create(request: Request, response: Response, body: CreateBody) -> Any:
        """Make a key. Its credential is in this answer only."""
        made = await acting(request, keys).make(change_of(sent(body), time.time()))
        listed = Listed(made.key, None)
        return {**told(response, listed), "key": made.credential, "team_created": made.team_created}

    @routes.get("", response_model=KeysBody, response_model_exclude_unset=True)
    async def listing(
        team: Annotated[str, Query(max_length=100, description="Keys of this team only (name or id).")] = "",
        state: Literal["", "active", "disabled", "revoked", "expired"] = "",
        q: Search = "",
        limit: Limit = 100,
        cursor: Annotated[str, Query(max_length=40, description="`next` of the page before.")] = "",
    ) -> Any:
        """Keys in the order of teams and ids. `q` looks at ids, names, owners and tags. A page may hold fewer than fit
        while `next` leads on: one request looks at 5,000 keys at most."""
        page = await keys.page(team=team, state=state, q=q, limit=limit, cursor=cursor)
        now = time.time()
        return {
            "data": [describe(listed, now) for listed in page.keys],
            "unreadable": page.unreadable,
            "next": page.cursor,
        }

    @routes.post(
        "/issue",
        status_code=201,
        response_model=IssuedBody,
        openapi_extra={"requestBody": _ISSUE_BODY},
        responses={201: {"content": {_CSV: {"schema": {"type": "string"}}}}},
    )
    async def issue_many(
        request: Request,
        team: Annotated[str, Query(max_length=100, description="With a CSV: the team's name or id.")] = "",
    ) -> Any:
        """Make keys for a whole team, all or none. The credentials are in this answer only: JSON, or a CSV for those
        who accept `text/csv`. A CSV's columns: name, owner, tags, models, deny, networks, expires, rpm, tpm,
        concurrency, max_requests, max_tokens, budget_day and the other limits."""
        raw = await request.body()
        defaults: dict[str, Any] = {}
        if request.headers.get("content-type", "").startswith(_CSV):
            try:
                rows = read_rows(raw.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise InvalidRequest("the CSV is not UTF-8: save it as UTF-8") from None
        else:
            body = _issue_body(raw)
            defaults = sent(body)
            named = defaults.pop("team", team)
            if team and team != named:
                raise InvalidRequest("the address and the body name two different teams", param="team")
            team = named
            rows = [Row(row.line or number, sent(row)) for number, row in enumerate(body.keys, 1)]
        issued = await issue(acting(request, keys), team, rows, defaults)
        if _CSV in request.headers.get("accept", ""):
            return Response(write_csv(issued), 201, media_type="text/csv; charset=utf-8")
        first = issued.keys[0][0]
        data = [{**describe(Listed(key, None), time.time()), "key": credential} for key, credential in issued.keys]
        more = {"team": first.team_name, "team_id": first.team, "team_created": issued.team_created}
        return {**more, "data": data}

    @routes.get("/{ref}", response_model=KeyBody, response_model_exclude_unset=True)
    async def show(response: Response, ref: KeyRef) -> Any:
        """One key."""
        return told(response, await keys.get(ref))

    @routes.patch("/{ref}", response_model=KeyBody, response_model_exclude_unset=True)
    async def change(request: Request, response: Response, ref: KeyRef, body: SetBody, if_match: IfMatch = None) -> Any:
        """Change a key; effective on its next call."""
        change = change_of(sent(body), time.time())
        by = acting(request, keys)
        key = await by.change(ref, change, expected_version=body.version, expected_etag=expected(if_match))
        return told(response, await keys.get(key.id))

    @routes.post("/{ref}/rotate", response_model=RotatedBody, response_model_exclude_unset=True)
    async def rotate(
        request: Request, response: Response, ref: KeyRef, body: RotateBody | None = None, if_match: IfMatch = None
    ) -> Any:
        """Give a key a new secret; id, limits and spending stay. The old secret works until the overlap is over."""
        body = body or RotateBody.model_validate({})
        by = acting(request, keys)
        made = await by.rotate(
            ref, parse_overlap(body.overlap), expected_version=body.version, expected_etag=expected(if_match)
        )
        shown = told(response, await keys.get(made.key.id))
        return {**shown, "key": made.credential, "ended_earlier": made.ended}

    @routes.delete("/{ref}/overlap", response_model=KeyBody, response_model_exclude_unset=True)
    async def end_overlap(
        request: Request, response: Response, ref: KeyRef, version: Version = None, if_match: IfMatch = None
    ) -> Any:
        """End the old secret of a rotation now."""
        by = acting(request, keys)
        key = await by.end_overlap(ref, expected_version=version, expected_etag=expected(if_match))
        return told(response, await keys.get(key.id))

    @routes.delete("/{ref}", response_model=KeyBody, response_model_exclude_unset=True)
    async def revoke(
        request: Request, response: Response, ref: KeyRef, version: Version = None, if_match: IfMatch = None
    ) -> Any:
        """Revoke a key for good; its record stays."""
        key = await acting(request, keys).revoke(ref, expected_version=version, expected_etag=expected(if_match))
        return told(response, await keys.get(key.id))

    return routes


def _issue_body(raw: bytes) -> IssueBody:
    try:
        return IssueBody.model_validate(read_object(raw))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error
