"""Where `switchyard usage` and `switchyard logs` get their reports: this machine's store, or a remote router."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.parse import urlencode

import typer

from router.cli import desk
from router.cli.common import config_path
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
    query = urlencode({name: text for name, text in asked.items() if text is not None})  # an empty one says something
    return desk.remote(url, token, "GET", f"/admin/api/{path}" + (f"?{query}" if query else ""), seconds=REMOTE_LIMIT)


def plain(value: object) -> str:
    """A cell of a table: nothing in it moves the cursor or changes the terminal."""
    text = "-" if value is None or value == "" else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)
