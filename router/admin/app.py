"""The admin API's routes. Who gets here is an admin already: see `router.admin.Admin`, the only door."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from providers.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, SwitchyardError, TooLarge
from router.admin import ASGI, LARGEST_BODY, Describe, error_body, error_headers
from router.keys import Change, Keys, Listed, parse_expiry
from router.keys import describe as describe_key

Reference = Annotated[str, Path(description="A key's id, or its name when only one key has it.", max_length=100)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RightsBody(_Body):
    """What the key may do beyond calling models."""

    allow_fallback: bool | None = Field(None, description="May the local model answer when the chosen one cannot?")
    local_only: bool | None = Field(None, description="Only local providers.")
    manage_local: bool | None = Field(None, description="Pull and delete models of the local Ollama.")
    admin: bool | None = Field(None, description="Use this API.")


class ChangeBody(_Body):
    """What to set; what is left out stays."""

    name: str | None = None
    owner: str | None = None
    team: str | None = None
    tags: list[str] | None = None
    models: list[str] | None = Field(None, description="Patterns of model names; empty allows all.")
    deny: list[str] | None = Field(None, description="Patterns of model names that are refused.")
    expires: str | None = Field(None, description="`30d`, `12h`, `2027-01-31` or `never`.")
    rights: RightsBody | None = None


class CreateBody(ChangeBody):
    name: str


class SetBody(ChangeBody):
    state: Literal["active", "disabled"] | None = None
    version: int | None = Field(None, description="Refuse with 409 when the key is not at this version any more.")


class KeyBody(BaseModel):
    """A key, without its secret."""

    id: str
    name: str
    owner: str
    team: str
    tags: list[str]
    state: str
    created: str
    expires_at: str | None
    last_used: str | None
    models: list[str]
    deny: list[str]
    rights: dict[str, bool]
    anonymous: bool
    version: int


class CreatedBody(KeyBody):
    key: str = Field(description="The credential. It is shown in this answer only.")


class ListBody(BaseModel):
    data: list[KeyBody]


def routes(keys: Keys, describe: Describe) -> ASGI:
    """The admin API over these keys; `describe` gives /admin/api/status its content."""
    app = FastAPI(
        title="Switchyard admin API",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        max_body_size=LARGEST_BODY,
    )

    @app.post("/admin/api/keys", status_code=201, response_model=CreatedBody, tags=["keys"])
    async def create(body: CreateBody) -> Any:
        """Make a key. Its credential is in this answer only."""
        key, credential = await keys.create(_change(body))
        return {**describe_key(Listed(key, None), time.time()), "key": credential}

    @app.get("/admin/api/keys", response_model=ListBody, tags=["keys"])
    async def listing() -> Any:
        """All keys, oldest first."""
        return {"data": [describe_key(listed, time.time()) for listed in await keys.list()]}

    @app.get("/admin/api/keys/{ref}", response_model=KeyBody, tags=["keys"])
    async def show(ref: Reference) -> Any:
        """One key."""
        return describe_key(await keys.get(ref), time.time())

    @app.patch("/admin/api/keys/{ref}", response_model=KeyBody, tags=["keys"])
    async def change(ref: Reference, body: SetBody) -> Any:
        """Change a key; effective on its next call."""
        key = await keys.change(ref, _change(body), expected_version=body.version)
        return describe_key(await keys.get(key.id), time.time())

    @app.delete("/admin/api/keys/{ref}", response_model=KeyBody, tags=["keys"])
    async def revoke(ref: Reference) -> Any:
        """Revoke a key for good; its record stays."""
        key = await keys.revoke(ref)
        return describe_key(await keys.get(key.id), time.time())

    @app.get("/admin/api/status", tags=["router"])
    async def status() -> dict[str, Any]:
        """How the router is."""
        ready, state = await describe()
        return {"ready": ready, **state}

    @app.get("/admin/openapi.json", include_in_schema=False)
    async def document() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.exception_handler(SwitchyardError)
    async def known(_request: Request, error: SwitchyardError) -> Response:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first: Mapping[str, Any] = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "path")) or None
        # Only the place and the rule: the value may be something secret in the wrong field.
        told = "the body is not valid JSON" if first["type"] == "json_invalid" else str(first["msg"])
        return _answer(InvalidRequest(f"{place}: {told}" if place and told != str(place) else told, param=place))

    @app.exception_handler(HTTPException)
    async def routed(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            allow = (error.headers or {}).get("allow", "")
            return _answer(MethodNotAllowed(f"{request.method} is not possible here", allow), {"allow": allow})
        if error.status_code == 413:
            return _answer(TooLarge(f"the body may hold at most {LARGEST_BODY} bytes"))
        if error.status_code == 404:
            return _answer(NotFound("there is nothing here: see /admin/openapi.json for what there is"))
        return _answer(InvalidRequest("the request cannot be read"))

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, _error: Exception) -> Response:
        return _answer(InternalError("the router failed; its log says why"))

    return app


def _answer(error: SwitchyardError, more: Mapping[str, str] | None = None) -> Response:
    headers = {**error_headers(error), **(more or {})}
    return Response(error_body(error), error.status, headers=headers, media_type="application/json")


def _change(body: ChangeBody) -> Change:
    """A field that is null counts as left out."""
    sent = body.model_dump(exclude_none=True, exclude={"expires", "rights", "version"})
    rights = body.rights.model_dump(exclude_none=True) if body.rights else {}
    lists = {name: tuple(value) for name, value in sent.items() if isinstance(value, list)}
    expires: int | UnsetType | None = UNSET if body.expires is None else parse_expiry(body.expires, time.time())
    return Change(**{**sent, **lists, **rights}, expires_at=expires)
