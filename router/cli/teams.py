"""`switchyard teams`: on this machine's store by the code of the admin API, or on a remote router with --url."""

from __future__ import annotations

from typing import Annotated

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table
from router.cli.desk import Desk, TokenOption, UrlOption
from router.cli.keys import limits_words, print_one
from router.cli.options import TEAM, Fields, fields_of, taking

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="The teams that hold keys.")

Ref = Annotated[str, typer.Argument(metavar="TEAM", help="The team's id or name.")]


@app.command()
@taking(TEAM)
def create(
    given: Fields,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What to call it.", show_default=False)] = None,
    name_option: Annotated[str | None, typer.Option("--name", help="The same.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a team. Its limits count all of its keys together."""
    called = name_option or name
    if not called:
        fail("a team needs a name: switchyard teams create NAME", 2)
    print_one(Desk(url, token, config).ask("POST", "teams", body={**fields_of(given), "name": called}), as_json)


@app.command("ls")
def listing(
    q: Annotated[str | None, typer.Option("--search", metavar="TEXT", help="Part of id, name, owner or tag.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the teams."""
    found = Desk(url, token, config).everything("teams", q=q)
    found.sort(key=lambda team: (team["name"].casefold(), team["id"]))
    if as_json:
        print_json(found)
        return
    rows = []
    for team in found:
        told = limits_words(team["limits"])
        told += [f"{name}={','.join(team[name])}" for name in ("models", "deny") if team[name]]
        rows.append([team["id"], team["name"], team["state"], team["owner"] or "-", team["timezone"], " ".join(told)])
    print_table(("id", "name", "state", "owner", "time zone", "limits"), rows)


@app.command()
def show(
    team: Ref,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one team."""
    print_one(Desk(url, token, config).ask("GET", "teams", team), as_json)


@app.command("set")
@taking(TEAM)
def change(
    given: Fields,
    team: Ref,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Switch it, with all of its keys, on or off.")
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a team; it takes effect on the next call with any of its keys. `none` lifts a limit."""
    fields = fields_of({**given, "name": name})
    if enable is not None:
        fields["state"] = "active" if enable else "disabled"
    if not fields:
        fail("nothing to change: see switchyard teams set --help", 2)
    print_one(Desk(url, token, config).ask("PATCH", "teams", team, body=fields), as_json)


@app.command()
def revoke(
    team: Ref,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a team for good, with all of its keys; their next calls are refused."""
    print_one(Desk(url, token, config).ask("DELETE", "teams", team), as_json)
