"""Where the verbs of keys, teams and the audit log are served: by the admin API of a remote router (--url), or by the
very same code in this process, on the store of the config."""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlencode, urlsplit
from urllib.request import Request, urlopen

import typer

from router.cli.common import fail, read_config
from router.secret_file import resolve

if TYPE_CHECKING:
    from router.config import Config
    from router.keys import Keys

UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A remote router, such as http://gpu:8080.")
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="SWITCHYARD_ADMIN_TOKEN",
        show_envvar=False,
        help="Its admin token; better in SWITCHYARD_ADMIN_TOKEN, where others on this machine do not see it.",
    ),
]
REMOTE_LIMIT: Final = 60.0
"""Seconds for one answer. Issuing a thousand keys on a distant store takes a few."""
LARGEST_PAGE: Final = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Desk:
    """The admin API somewhere. Errors end the process: 1 for what is not there, not now or not any more, 2 for what was
    written wrongly."""

    url: str | None
    token: str | None
    config: Path | None

    def ask(self, method: str, *path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """One question; query values that are None or empty are left out."""
        return self.pages(lambda ask: ask(method, *path, body=body, **query))

    def pages(self, work: Callable[[Callable[..., Awaitable[Any]]], Awaitable[T]]) -> T:
        """Several questions, for which a local store is opened once."""
        return asyncio.run(self._remotely(work) if self.url is not None else self._locally(work))

    def everything(self, *path: str, most: int | None = None, **query: Any) -> list[Any]:
        """All entries of a list (at most `most`), page by page. Records that cannot be read are named on standard
        error."""

        async def work(ask: Callable[..., Awaitable[Any]]) -> list[Any]:
            found: list[Any] = []
            cursor: Any = None
            while True:
                limit = LARGEST_PAGE if most is None else min(LARGEST_PAGE, most - len(found))
                page = await ask("GET", *path, limit=limit, cursor=cursor, **query)
                found += page["data"]
                for key_id in page.get("unreadable", ()):
                    typer.echo(f"warning: the record of key {key_id} cannot be read; it is left out here", err=True)
                cursor = page["next"]
                if cursor is None or (most is not None and len(found) >= most):
                    return found

        return self.pages(work)

    async def _remotely(self, work: Callable[[Callable[..., Awaitable[Any]]], Awaitable[T]]) -> T:
        async def ask(method: str, *path: str, body: Any = None, **query: Any) -> Any:
            return await asyncio.to_thread(self._send, method, address(path, query), body)

        return await work(ask)

    def _send(self, method: str, path: str, body: Any) -> Any:
        content = None if body is None else json.dumps(body).encode()
        answer = remote(self.url or "", self.token, method, path, content)
        try:
            return fitting(method, path, answer)
        except ValueError:
            fail(f"{base_of(self.url or '')} does not answer like a Switchyard router")

    async def _locally(self, work: Callable[[Callable[..., Awaitable[Any]]], Awaitable[T]]) -> T:
        async with opened(self.config) as keys:
            from router.admin import ACTOR
            from router.admin.app import routes

            app = routes(keys, _nobody)
            actor = local_actor()

            async def ask(method: str, *path: str, body: Any = None, **query: Any) -> Any:
                content = b"" if body is None else json.dumps(body).encode()
                where, _, question = address(path, query).partition("?")
                status, answer = await _served(app, method, where, question, content, {ACTOR: actor})
                return json.loads(answer) if status < 400 else _refused(status, answer)

            return await work(ask)


def base_of(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def remote(
    url: str,
    token: str | None,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    seconds: float = REMOTE_LIMIT,
) -> bytes:
    """The body of a remote router's answer. Failures end the command, with the router's own sentence where it has
    one."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        named = False
    if not named:
        fail("--url is the router's address, such as http://gpu:8080", 2)
    try:
        token = resolve(token or "")  # it may be told as the router is told it
    except ValueError as error:
        fail(f"the admin token {error}", 2)
    if not token:
        fail("set SWITCHYARD_ADMIN_TOKEN to the router's admin token (or a key with the admin right)", 2)
    base = base_of(url)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    try:
        request = Request(base + path, body, headers, method=method)  # noqa: S310 - the scheme is checked above
        with urlopen(request, timeout=seconds) as answer:  # noqa: S310 - likewise
            content: bytes = answer.read()
            return content
    except HTTPError as error:
        with error:
            return bytes(_refused(error.code, error.read()))
    except (OSError, ValueError) as error:  # URLError, time-outs, broken connections; an address that is none
        fail(f"{base} cannot be reached: {getattr(error, 'reason', error)}")
    except HTTPException:
        fail(f"{base} does not answer like a Switchyard router")


async def _nobody() -> tuple[bool, Mapping[str, object]]:
    return False, {}


def local_actor() -> Any:  # router.audit.Actor: imported when it is needed
    from router.audit import Actor

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user in this container
        user = str(os.getuid())
    return Actor(f"command line {user}")


def fitting(method: str, path: str, answer: bytes) -> Any:
    """The JSON of an answer, if it is what the admin API answers there. Raises ValueError."""
    from router.admin import bodies

    kind, *rest = path.partition("?")[0].removeprefix("/admin/api/").split("/")
    table: dict[tuple[str, str], Any] = {
        ("keys", "GET"): bodies.KeyBody if rest else bodies.KeysBody,
        ("keys", "POST"): bodies.IssuedBody
        if rest == ["issue"]
        else bodies.RotatedBody
        if rest
        else bodies.CreatedBody,
        ("teams", "GET"): bodies.TeamBody if rest else bodies.TeamsBody,
        ("audit", "GET"): bodies.VerdictBody if rest else bodies.AuditBody,
    }
    model = table.get((kind, method), bodies.TeamBody if kind == "teams" else bodies.KeyBody)
    found = json.loads(answer)
    model.model_validate(found)
    return found


def address(path: tuple[str, ...], query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return "/admin/api/" + "/".join(quote(part, safe="") for part in path) + (f"?{urlencode(given)}" if given else "")


async def _served(
    app: Any, method: str, path: str, query: str, body: bytes, more: Mapping[str, Any]
) -> tuple[int, bytes]:
    """One request, by ASGI."""
    status, answer = 500, bytearray()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
    }
    scope |= {"path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": ""}
    scope |= {"headers": headers, "client": None, "server": ("local", 80), **more}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            answer.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, bytes(answer)


def _refused(status: int, body: bytes) -> Any:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the router answers {status}"
    return fail(message, 2 if status == 400 else 1)


@asynccontextmanager
async def opened(config: Path | None) -> AsyncIterator[Keys]:
    """The keys of the config's store. What is wrong with it ends the process."""
    from providers.errors import StoreUnavailable, SwitchyardError
    from router.keys import open_keys
    from router.migration import migrate
    from router.store import StoreError, open_store

    loaded = read_config(config)
    data_dir = Path(loaded.data_dir)
    new = _place_without_store(loaded)
    said = logging.getLogger("switchyard.store")
    said.addFilter(_told_here)
    try:
        store = await open_store(loaded.redis.url.get_secret_value(), data_dir, role="command")
        try:
            # A command has no use for an admin token, and must not fail for a bad one.
            environ = {name: value for name, value in os.environ.items() if name != "SWITCHYARD_ADMIN_TOKEN"}
            keys = await open_keys(store, data_dir, environ)
            if store.problem is not None:
                fail(store.problem)
            for warning in store.warnings:
                typer.echo(f"warning: {warning}", err=True)
            await migrate(keys)
            if new is not None:
                typer.echo(f"warning: made a new store in {new}; routers with another data_dir have another", err=True)
            yield keys
        finally:
            await store.close()
    except StoreError as error:
        fail(str(error))
    except SwitchyardError as error:
        fail(error.message, 1 if isinstance(error, StoreUnavailable) or error.status in (404, 409) else 2)
    finally:
        said.removeFilter(_told_here)


def _place_without_store(config: Config) -> Path | None:
    """The data directory, where the config's store is to be in it and is not there yet."""
    place = Path(config.data_dir).absolute()
    return place if config.redis.url.get_secret_value() == "embedded" and not (place / "store").exists() else None


def _told_here(_record: logging.LogRecord) -> bool:
    """What a router's log has of its store, a command says itself, once."""
    return False
