"""Where `switchyard usage` and `switchyard logs` get their reports: this machine's store, or a remote router."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import typer

from router.cli.common import config_path, fail
from router.cli.desk import TokenOption, UrlOption, opened

if TYPE_CHECKING:
    from router.reports import Reports

TeamOption = Annotated[str | None, typer.Option("--team", metavar="TEAM", help="Only this team (name or id).")]
KeyOption = Annotated[str | None, typer.Option("--key", metavar="KEY", help="Only this key (id, or a name of one).")]

__all__ = ["KeyOption", "TeamOption", "TokenOption", "UrlOption", "local", "plain", "remote"]

REMOTE_LIMIT: Final = 30.0
"""Seconds for a remote report."""
Asked = Mapping[str, str | None]
_Result = TypeVar("_Result")


def local(config: Path | None, work: Callable[[Reports], Awaitable[_Result]]) -> _Result:
    """Do `work` on the reports of this machine's store. Failures end the command with their sentence."""
    return asyncio.run(_local(config, work))


async def _local(config: Path | None, work: Callable[[Reports], Awaitable[_Result]]) -> _Result:
    from router.config import load_config
    from router.reports import Reports

    async with opened(config) as keys:
        # Its problems and warnings have been told by then.
        rate = load_config(config_path(config), os.environ).prices.usd_cny
        return await work(Reports(keys, lambda: rate))


def remote(url: str, token: str | None, path: str, asked: Asked) -> bytes:
    """The body of a GET below /admin/api. Failures end the command with the router's own sentence."""
    if not _is_address(url):
        fail("--url is the router's address, such as http://gpu:8080", 2)
    if not token:
        fail("set SWITCHYARD_ADMIN_TOKEN to the router's admin token (or a key with the admin right)", 2)
    base = url.rstrip("/").removesuffix("/v1")
    query = urlencode({name: text for name, text in asked.items() if text is not None})
    address = f"{base}/admin/api/{path}" + (f"?{query}" if query else "")
    request = Request(address, headers={"authorization": f"Bearer {token}"})  # noqa: S310 - the scheme is checked above
    try:
        with urlopen(request, timeout=REMOTE_LIMIT) as answer:  # noqa: S310 - likewise
            body: bytes = answer.read()
            return body
    except HTTPError as error:
        with error:
            fail(_told(error), 2 if error.code == 400 else 1)
    except (OSError, ValueError) as error:  # URLError, time-outs, broken connections; an address that is none
        reason = error.reason if isinstance(error, URLError) else error
        fail(f"{base} cannot be reached: {reason}")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _told(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"the router answers {error.code}"


def plain(value: object) -> str:
    """A cell of a table: nothing in it moves the cursor or changes the terminal."""
    text = "-" if value is None or value == "" else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)
