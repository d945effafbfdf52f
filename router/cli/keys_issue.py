"""`switchyard keys issue`: keys for a whole team at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from providers.errors import InvalidRequest
from router.cli.common import ConfigOption, JsonOption, fail, print_json
from router.cli.desk import Desk, TokenOption, UrlOption
from router.cli.options import KEY, NEW_RIGHTS, Fields, fields_of, taking

LARGEST_FILE = 1 << 20


@taking(KEY, NEW_RIGHTS)
def issue(
    given: Fields,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="What to call them.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--names", metavar="FILE", help="Names, one on each line, or a CSV with a heading; - for standard input."
        ),
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key for each name, at most 1000, and print a CSV with all of them, this once.

    A CSV may have the columns name, owner, tags, models, deny, networks, expires, rpm, tpm, concurrency, max_requests,
    max_tokens, budget_day and the other limits; a cell that is filled wins over the option. All is checked before the
    first key is made.
    """
    from router.issue import csv_of, read_rows

    if not given.get("team"):
        fail("whose keys? switchyard keys issue --team TEAM", 2)
    fields = fields_of(given)
    try:
        rows = read_rows(_read(file)) if file is not None else []
    except InvalidRequest as error:
        fail(error.message, 2)
    bodies = [{**row.fields, "line": row.line} for row in rows] + [{"name": name} for name in names or []]
    if not bodies:
        fail("no names: give them as arguments or with --names FILE", 2)
    made = Desk(url, token, config).ask("POST", "keys", "issue", body={**fields, "keys": bodies})
    if made["team_created"]:
        typer.echo(f"The team '{made['team']}' is new: it was made without limits.", err=True)
    if as_json:
        print_json(made)
    else:
        sys.stdout.write(csv_of({**key, "team": made["team"]} for key in made["data"]))
    typer.echo(f"{len(made['data'])} keys for team '{made['team']}'. They are not shown again.", err=True)


def _read(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read(LARGEST_FILE + 1) if file == "-" else Path(file).read_bytes()
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}", 2)
    if len(raw) > LARGEST_FILE:
        fail(f"the list may hold at most {LARGEST_FILE} bytes", 2)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        fail("the list is not UTF-8: save it as UTF-8", 2)
