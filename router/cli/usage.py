"""`switchyard usage`: what was used, by whom, and what it cost."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table
from router.cli.reporting import KeyOption, TeamOption, TokenOption, UrlOption, local, plain, remote

MOST: Final = "10000"
"""Rows in one answer of the admin API; CSV has all."""
_ALWAYS: Final = {"calls": "calls", "errors": "errors", "tokens_in": "in", "tokens_out": "out"}
_SOMETIMES: Final = {
    "fallbacks": "fallbacks",
    "aborted": "aborted",
    "tokens_cached": "cached",
    "tokens_cache_write": "cache write",
    "tokens_reasoning": "reasoning",
    "media": "media",
    "estimated": "estimated",
    "unpriced": "unpriced",
}
"""Columns that are shown where something is in them."""


def usage(
    since: Annotated[
        str,
        typer.Option(
            "--since", metavar="WHEN", help="7d (today included), 24h, 2026-11-01, today, yesterday or month."
        ),
    ] = "7d",
    until: Annotated[str | None, typer.Option("--until", metavar="WHEN", help="The same; a day counts whole.")] = None,
    team: TeamOption = None,
    key: KeyOption = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Only this; * stands for any.")] = None,
    provider: Annotated[str | None, typer.Option("--provider", metavar="NAME", help="Only this; likewise.")] = None,
    group_by: Annotated[
        str,
        typer.Option("--group-by", metavar="A,B", help="team, key, model, provider, day, hour; '' for the sum alone."),
    ] = "team,key,model",
    by: Annotated[
        str | None, typer.Option("--by", metavar="day|hour", help="From sums by day (400 days kept) or hour (35 days).")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with all columns.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was used: calls, tokens and money. Days are those of each team's time zone."""
    if as_csv and as_json:
        fail("--csv or --json, not both", 2)
    asked = {"since": since, "until": until, "team": team, "key": key, "model": model, "provider": provider}
    asked |= {"group_by": group_by, "by": by}
    if as_csv:
        if url is not None:
            text = remote(url, token, "usage.csv", asked).decode("utf-8", "replace")
        else:
            text = local(config, lambda reports: reports.usage_csv(asked))
        typer.echo(text, nl=False)
        return
    asked["limit"] = MOST
    if url is not None:
        report = _parsed(remote(url, token, "usage", asked), url)
    else:
        report = local(config, lambda reports: reports.usage(asked))
    if as_json:
        print_json(report)
        return
    _print(report)


def _parsed(body: bytes, url: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(body)
        return {**found, "data": found["data"], "total": found["total"]}
    except (ValueError, KeyError, TypeError):
        fail(f"{url} does not answer like a Switchyard router")


def _print(report: dict[str, Any]) -> None:
    total = report["total"]
    groups: list[str] = report["group_by"]
    columns = _ALWAYS | {name: title for name, title in _SOMETIMES.items() if total.get(name)}
    columns |= {"cost": "USD"}
    if "cost_cny" in total:
        columns |= {"cost_cny": "CNY"}
    rows = [
        [*(plain(row.get(name)) for name in groups), *(_number(row[name]) for name in columns)]
        for row in report["data"]
    ]
    if groups:
        first = ["total", *[""] * (len(groups) - 1)]
        rows.append([*first, *(_number(total[name]) for name in columns)])
    elif not rows:
        rows = [[_number(total[name]) for name in columns]]
    print_table((*groups, *columns.values()), rows)
    if report["rows"] > len(report["data"]):
        typer.echo(f"Only {len(report['data'])} of {report['rows']} rows: --csv prints them all.", err=True)


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
