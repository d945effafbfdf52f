"""The admin API's routes. Who gets here is an admin already: see `router.admin.Admin`, the only door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from providers.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, SwitchyardError, TooLarge
from router.admin import ASGI, LARGEST_BODY, Describe, GetRate, error_body, error_headers
from router.admin.audit import audit_routes
from router.admin.bodies import UNKNOWN, ErrorBody, IssueBody
from router.admin.common import known_only
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
        app.include_router(part, dependencies=[Depends(known_only)])

    @app.get("/admin/api/status", tags=["router"], dependencies=[Depends(known_only)])
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
        unknown = first["ctx"]["name"] if first["type"] == UNKNOWN else None
        parts = [part for part in (*first["loc"], unknown) if part not in ("body", "path", "query", "header", None)]
        place = ".".join(map(str, parts)) if first["type"] != "json_invalid" else ""
        # Only the place and the rule: the value may be something secret in the wrong field.
        rule = _RULES.get(first["type"], f": {first['msg']}")
        told = first["msg"] if unknown is not None else f"{place or 'the body'}{rule}"
        return _answer(InvalidRequest(told, param=place or None))

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


_RULES: Final = {
    "json_invalid": " is not valid JSON",
    "missing": " is missing",
    "model_attributes_type": " is a JSON object, with content-type application/json",
    "string_type": " is a text",
    "bool_type": " is true or false",
    "list_type": " is a list",
}


def _document(app: FastAPI) -> dict[str, Any]:
    found = app.openapi()
    # The body of this route is read by hand, since it may be a CSV.
    schema = IssueBody.model_json_schema(ref_template="#/components/schemas/{model}")
    error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = found["components"]["schemas"]
    schemas |= {**schema.pop("$defs", {}), "IssueBody": schema, **error.pop("$defs", {}), "ErrorBody": error}
    for name in ("HTTPValidationError", "ValidationError"):  # our errors have a shape of their own
        schemas.pop(name, None)
    found["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "The admin token, or a key with the right admin."}
    }
    found["security"] = [{"bearer": []}]
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"] |= {
                str(status): _ERROR | {"description": _WHY[status]} for status in _errors(method, path)
            }
    return found


_WHY: Final = {
    400: "Something is written wrongly: `param` names it.",
    401: "Not the admin token, nor a key that may be used now.",
    403: "A key without the right `admin`, or not from one of its networks.",
    404: "There is no such key or team.",
    409: "It was changed meanwhile, or its state or name does not allow this.",
    413: "The body is too large.",
    429: "Too many wrong tokens from this address: `retry-after` says when to go on.",
    503: "The store cannot be asked: nothing was changed, or it is not known.",
}
_ERROR: Final = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}}


def _errors(method: str, path: str) -> Iterable[int]:
    if path.endswith("/status"):
        return (400, 401, 403, 429)
    about = "{" in path or not path.endswith(("/audit", "/verify", "/teams"))
    return (400, 401, 403, *((404,) if about else ()), *((409, 413) if method != "get" else ()), 429, 503)


def _answer(error: SwitchyardError, more: Mapping[str, str] | None = None) -> Response:
    headers = {**error_headers(error), **(more or {})}
    return Response(error_body(error), error.status, headers=headers, media_type="application/json")
