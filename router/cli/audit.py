"""`switchyard audit`: who changed what, and whether the log is whole."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from router.cli.common import ConfigOption, JsonOption, print_json, print_table
from router.cli.desk import Desk, TokenOption, UrlOption

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="The log of all changes.")


@app.command("ls")
def listing(
    q: Annotated[
        str | None,
        typer.Option(
            "--search", metavar="TEXT", help="Part of actor, action, name, id, result or a field that changed."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = 50,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest changes of keys and teams."""
    found = Desk(url, token, config).everything("audit", most=limit, q=q)
    if as_json:
        print_json(found)
        return
    rows = []
    for entry in found:
        who = entry.get("actor", "?") + (f" from {entry['address']}" if entry.get("address") else "")
        what = [str(entry.get(name, "?")) for name in ("n", "time")]
        target = entry.get("target", "?") + (f" ({entry['name']})" if entry.get("name") else "")
        rows.append([*what, who, entry.get("action", "?"), target, _told(entry)])
    print_table(("n", "time", "who", "action", "target", "what"), rows)


def _told(entry: dict[str, object]) -> str:
    if entry.get("result") != "accepted" and entry.get("of") is None:
        return str(entry.get("result", "?"))
    if entry.get("result") != "accepted":
        return f"{entry.get('result')} (entry {entry.get('of')})"
    text = json.dumps(entry.get("after") or {}, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


@app.command()
def verify(
    expect: Annotated[
        str | None, typer.Option("--expect", metavar="HEAD", help="A head that was noted earlier must still be there.")
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the whole log and say whether an entry was edited, removed or moved. Exit code 1 when one was."""
    found = Desk(url, token, config).ask("GET", "audit", "verify", expect=expect)
    if as_json:
        print_json(found)
    else:
        for problem in found["problems"]:
            typer.echo(problem)
        typer.echo(f"{found['entries']} entries, {'whole' if found['ok'] else 'NOT WHOLE'}; head {found['head']}")
    if not found["ok"]:
        raise typer.Exit(1)
