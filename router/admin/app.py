"""The admin API's routes. Who gets here is an admin already: see `router.admin.Admin`, the only door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from providers.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, SwitchyardError, TooLarge
from router.admin import ASGI, LARGEST_BODY, Describe, GetRate, error_body, error_headers
from router.admin.audit import audit_routes
from router.admin.bodies import IssueBody
from router.admin.keys import key_routes
from router.admin.teams import team_routes
from router.admin.usage import usage_routes
from router.keys import Keys
from router.reports import Reports


def routes(keys: Keys, describe: Describe, rate: GetRate = lambda: None) -> ASGI:
    """The admin API over these keys; `describe` gives /admin/api/status its content."""
    app = FastAPI(
        title="Switchyard admin API",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        max_body_size=LARGEST_BODY,
    )

    for part in (key_routes(keys), team_routes(keys), audit_routes(keys), usage_routes(Reports(keys, rate))):
        app.include_router(part)

    @app.get("/admin/api/status", tags=["router"])
    async def status() -> dict[str, Any]:
        """How the router is."""
        ready, state = await describe()
        return {"ready": ready, **state}

    @app.get("/admin/openapi.json", include_in_schema=False)
    async def document() -> JSONResponse:
        return JSONResponse(_document(app))

    @app.exception_handler(SwitchyardError)
    async def known(_request: Request, error: SwitchyardError) -> Response:
        return _answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first: Mapping[str, Any] = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "path", "query", "header")) or None
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


def _document(app: FastAPI) -> dict[str, Any]:
    found = app.openapi()
    # The body of this route is read by hand, since it may be a CSV.
    schema = IssueBody.model_json_schema(ref_template="#/components/schemas/{model}")
    found["components"]["schemas"] |= {**schema.pop("$defs", {}), "IssueBody": schema}
    return found


def _answer(error: SwitchyardError, more: Mapping[str, str] | None = None) -> Response:
    headers = {**error_headers(error), **(more or {})}
    return Response(error_body(error), error.status, headers=headers, media_type="application/json")
