"""The admin API and the pages, under /admin. `Admin` is the plain ASGI door to them: FastAPI is imported when the first
caller of the API is let in, the templates when the first page is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from providers.errors import SwitchyardError, TooLarge, Unauthorized
from router.audit import Actor
from router.credentials import credential_of
from router.keys import Keys

if TYPE_CHECKING:
    from router.admin.pages.routes import Setup

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]
Describe = Callable[[], Awaitable[tuple[bool, Mapping[str, object]]]]
"""Whether the router is ready, and what each part of it says."""
GetRate = Callable[[], float | None]

LARGEST_BODY = 1 << 20
ACTOR = "switchyard.actor"
"""In the scope: who was let in, for the audit log."""

HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""On every answer: they hold keys once and names always."""


PAGES: Final = frozenset(
    f"/admin{name}" for name in ("", "/overview", "/live", "/sign-in", "/sign-out", "/preferences")
)
_FILES: Final = "/admin/static/"
_API: Final = ("/admin/api/", "/admin/openapi.json/")


def admin_app(
    keys: Keys, describe: Describe, rate: GetRate = lambda: None, pages: Callable[[], Setup] | None = None
) -> ASGI:
    """The door to the admin API; `describe` gives /admin/api/status its content, `rate` CNY for one USD. `pages`: what
    the pages need; without it there are none."""
    return Admin(keys, describe, rate=rate, pages=pages)


class Admin:
    """Every path under /admin, known or not, wants an admin: the admin token, or a key with the `admin` right, as
    Bearer. But for the pages, which have sessions of their own, and never serve the API.

    Paths arrive whole (`/admin/api/keys`). A credential in the URL is not taken here: addresses end up in logs.
    """

    def __init__(
        self,
        keys: Keys,
        describe: Describe,
        rate: GetRate = lambda: None,
        pages: Callable[[], Setup] | None = None,
    ) -> None:
        self._keys = keys
        self._describe = describe
        self._rate = rate
        self._setup = pages
        self._app: ASGI | None = None
        self._pages: ASGI | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        if scope["type"] != "http":
            return
        if self._setup is not None and is_page(scope):
            await (await self._loaded_pages(self._setup))(scope, receive, send)
            return
        try:
            actor = await self._authorise(scope)
            _measure(scope)
        except SwitchyardError as error:
            await _refuse(marked, error)
            return
        await (await self._loaded())({**scope, "root_path": "", ACTOR: actor}, receive, marked)

    async def _authorise(self, scope: Scope) -> Actor:
        client = scope.get("client")
        address = str(client[0]) if client else ""
        token = credential_of(scope["headers"])
        async with self._keys.turn(token or "", address):
            if token is None:
                raise Unauthorized("This is for administrators: send 'Authorization: Bearer <admin token>'.")
            actor = await self._keys.admin(token, address)
            if actor is None:
                self._keys.throttle.failed(address)
                raise Unauthorized("Incorrect admin token provided.")
            return actor

    async def _loaded(self) -> ASGI:
        async with self._loading:
            if self._app is None:
                self._app = await asyncio.to_thread(_build, self._keys, self._describe, self._rate)
        return self._app

    async def _loaded_pages(self, setup: Callable[[], Setup]) -> ASGI:
        async with self._loading:
            if self._pages is None:
                self._pages = await asyncio.to_thread(_build_pages, setup())
        return self._pages


def is_page(scope: Scope) -> bool:
    """Whether this is for the pages: one of theirs, one of their files, or what a browser asks for in vain."""
    path: str = scope["path"].rstrip("/")
    if path in PAGES or path.startswith(_FILES):
        return True
    if f"{path}/".startswith(_API):
        return False
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _build_pages(setup: Setup) -> ASGI:
    from router.admin.pages.routes import Pages  # jinja2 and the templates: 0.2 s, which no model call pays for

    return Pages(setup)


def _build(keys: Keys, describe: Describe, rate: GetRate) -> ASGI:
    from router.admin.app import routes  # FastAPI: 0.2 s, which no model call pays for

    return routes(keys, describe, rate)


def _measure(scope: Scope) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > LARGEST_BODY:  # the parser lets only digits through
            raise TooLarge(f"The body may hold at most {LARGEST_BODY} bytes.")


def error_body(error: SwitchyardError) -> bytes:
    return orjson.dumps(
        {"error": {"message": error.message, "type": error.type, "code": error.code, "param": error.param}}
    )


def error_headers(error: SwitchyardError) -> dict[str, str]:
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    return headers


async def _refuse(send: Send, error: SwitchyardError) -> None:
    body = error_body(error)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
