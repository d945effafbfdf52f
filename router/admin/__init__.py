"""The admin API, under /admin. `Admin` is the plain ASGI door to it: FastAPI is imported when the first caller is let
in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from providers.errors import SwitchyardError, TooLarge, Unauthorized
from router.audit import Actor
from router.credentials import credential_of
from router.keys import Keys
from router.throttle import Throttle

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


def admin_app(keys: Keys, describe: Describe, rate: GetRate = lambda: None) -> ASGI:
    """The door to the admin API; `describe` gives /admin/api/status its content, `rate` CNY for one USD."""
    return Admin(keys, describe, rate=rate)


class Admin:
    """Every path under /admin, known or not, wants an admin: the admin token, or a key with the `admin` right, as
    Bearer.

    Paths arrive whole (`/admin/api/keys`). A credential in the URL is not taken here: addresses end up in logs.
    """

    def __init__(
        self, keys: Keys, describe: Describe, throttle: Throttle | None = None, rate: GetRate = lambda: None
    ) -> None:
        self._keys = keys
        self._describe = describe
        self._rate = rate
        self._throttle = throttle or Throttle()
        self._app: ASGI | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        if scope["type"] != "http":
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
        if token is None or not self._keys.seen_admin(token):  # behind one address may be the admin and others
            self._throttle.admit(address)
        if token is None:
            raise Unauthorized("This is for administrators: send 'Authorization: Bearer <admin token>'.")
        actor = await self._keys.admin(token, address)
        if actor is None:
            self._throttle.failed(address)
            raise Unauthorized("Incorrect admin token provided.")
        return actor

    async def _loaded(self) -> ASGI:
        async with self._loading:
            if self._app is None:
                self._app = await asyncio.to_thread(_build, self._keys, self._describe, self._rate)
        return self._app


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
