"""`switchyard logs`: the recent requests of all workers, from the store. No prompts are in it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from router.cli.common import ConfigOption, fail, print_table
from router.cli.reporting import KeyOption, TeamOption, TokenOption, UrlOption, local, plain, remote

if TYPE_CHECKING:
    from router.reports import Reports

PACE: Final = 0.5
"""Seconds between two looks of a follower."""
MOST: Final = 1000
REMEMBERED: Final = 20_000
Row = dict[str, Any]


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    team: TeamOption = None,
    key: KeyOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only calls that failed or were refused.")] = False,
    fallback: Annotated[bool, typer.Option("--fallback", help="Only calls that a fallback answered.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=MOST, help="How many to begin with.")] = 50,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Show recent calls, those that began last at the end; running ones have no status yet. About 2000 are kept for
    each team. Of the calls that a limit refuses, the first of a key by that limit in an hour is shown."""
    asked: dict[str, str | None] = {"team": team, "key": key}
    asked |= {"status": "failed" if failed else None, "fallback": "true" if fallback else None}
    show = _Shown(as_json, follow)
    try:
        if url is not None:
            _follow_remote(url, token, asked, number, follow, show)
        else:
            local(config, lambda reports: _follow_local(reports, asked, number, follow, show))
    except KeyboardInterrupt:
        pass  # how following ends


def _follow_remote(
    url: str,
    token: str | None,
    asked: dict[str, str | None],
    number: int,
    follow: bool,
    show: Callable[[list[Row]], None],
) -> None:
    query = asked | {"limit": str(number)}
    while True:
        body = remote(url, token, "requests", query)
        try:
            answer = json.loads(body)
            rows, cursor = list(answer["data"]), int(answer["cursor"])
        except (ValueError, KeyError, TypeError):
            fail(f"{url} does not answer like a Switchyard router")
        show(rows)
        if not follow:
            return
        query = asked | {"limit": str(MOST), "after": str(cursor)}
        time.sleep(PACE)


async def _follow_local(
    reports: Reports, asked: dict[str, str | None], number: int, follow: bool, show: Callable[[list[Row]], None]
) -> None:
    query = asked | {"limit": str(number)}
    while True:
        found = await reports.requests(query)
        show(found.rows)
        if not follow:
            return
        query = asked | {"limit": str(MOST), "after": str(found.cursor)}
        await asyncio.sleep(PACE)


class _Shown:
    """Prints rows that were not printed yet; a call once while it runs and once when it is over."""

    def __init__(self, as_json: bool, follow: bool) -> None:
        self._as_json = as_json
        self._follow = follow
        self._begun = False
        self._seen: dict[tuple[str, bool], None] = {}

    def __call__(self, rows: list[Row]) -> None:
        fresh = []
        for row in reversed(rows):
            what = (str(row.get("id")), row.get("status") is None)
            if what not in self._seen:
                self._seen[what] = None
                fresh.append(row)
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        if self._as_json:
            for row in fresh:
                typer.echo(json.dumps(row, ensure_ascii=False))
        elif self._follow:
            lines = [_cells(row) for row in fresh]
            if not self._begun:
                lines.insert(0, [title.upper() for title in _HEAD])
            self._begun = True
            for line in lines:
                typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, _WIDTHS, strict=True)).rstrip())
        else:
            print_table(_HEAD, [_cells(row) for row in fresh])


_HEAD: Final = ("time", "status", "team", "key", "model", "by", "fallback", "in", "out", "usd", "ms", "outcome")
_WIDTHS: Final = (20, 7, 12, 16, 24, 28, 17, 7, 7, 10, 8, 10)


def _cells(row: Row) -> list[str]:
    status = row.get("status")
    if status is None:
        status = "lost" if row.get("lost") else "running"
    names = ("team", "key", "model", "answered_by", "fallback", "tokens_in", "tokens_out", "cost", "ms")
    outcome = " ".join(str(row[name]) for name in ("outcome", "limit") if row.get(name))
    return [plain(row.get("time")), plain(status), *(plain(row.get(name)) for name in names), plain(outcome)]
