"""What the routes share: who asks, optimistic versions, and descriptions in answers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any

from fastapi import Header, Path, Query, Request, Response
from pydantic import BaseModel

from providers.errors import InvalidRequest
from providers.jsontext import read_object
from router.admin import ACTOR
from router.audit import Actor
from router.changes import quoted
from router.keys import Keys, Listed, describe

LONGEST_PAGE = 1000

KeyRef = Annotated[str, Path(description="A key's id, or its name when only one key has it.", max_length=100)]
TeamRef = Annotated[str, Path(description="A team's id or name.", max_length=100)]
Limit = Annotated[int, Query(ge=1, le=LONGEST_PAGE, description="Entries on the page.")]
Search = Annotated[str, Query(max_length=100, description="A part of the text; every character stands for itself.")]
IfMatch = Annotated[str | None, Header(description="An ETag: refuse with 409 when it is not the present one.")]


Version = Annotated[int | None, Query(description="Refuse with 409 when it is not at this version any more.")]


async def known_only(request: Request) -> None:
    """Refuses query parameters that the route does not have: a slip would change what is done or told. A body is read
    as strictly as those of model calls."""
    route = request.scope["route"]
    names = {field.alias for field in route.dependant.query_params}
    for name in request.query_params:
        if name not in names:
            raise InvalidRequest(no_such("parameter", name, names), param=name[:50])
    body = await request.body()
    if route.body_field is not None and (body or route.body_field.field_info.is_required()):
        read_object(body)


def no_such(kind: str, name: str, names: Iterable[str]) -> str:
    """That there is no parameter or field of that name, and what there is."""
    likely = get_close_matches(name[:50], names := sorted(names), 1)
    what = f"did you mean '{likely[0]}'?" if likely else f"there are {', '.join(names) or 'none'}"
    return f"there is no {kind} {quoted(name[:50])} here; {what}"


def acting(request: Request, keys: Keys) -> Keys:
    """The keys as changed by who asks."""
    return keys.acting(request.scope.get(ACTOR, Actor("admin token")))


def sent(body: BaseModel) -> dict[str, Any]:
    """The fields that were sent. Null counts as left out, but for what is inside `limits`."""
    found = body.model_dump(exclude_unset=True, exclude={"version", "keys", "line"})
    return {name: value for name, value in found.items() if value is not None}


def expected(if_match: str | None) -> str | None:
    """The etag of an If-Match header."""
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip()
    if len(text) < 3 or text[0] != '"' or text[-1] != '"' or '"' in text[1:-1]:
        raise InvalidRequest('If-Match holds one ETag in quotes: "3.k2J9xQ"', param="if-match")
    return text[1:-1]


def told(response: Response, listed: Listed) -> dict[str, Any]:
    response.headers["etag"] = f'"{listed.key.etag}"'
    return describe(listed, time.time())
