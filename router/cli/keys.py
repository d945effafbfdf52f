"""`switchyard keys`: on this machine's store by the code of the admin API, or on a remote router with --url."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from router.cli import keys_issue, keys_transfer
from router.cli.address import router_url
from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table
from router.cli.desk import Desk, TokenOption, UrlOption
from router.cli.options import KEY, NEW_RIGHTS, Fields, fields_of, known, taking

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="The teams' API keys.")

Ref = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, or its name when only one key has it.")]


@app.command()
@taking(KEY, NEW_RIGHTS)
def create(
    given: Fields,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What to call it.", show_default=False)] = None,
    name_option: Annotated[str | None, typer.Option("--name", help="The same.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once."""
    called = name_option or name
    if not called:
        fail("a key needs a name: switchyard keys create NAME", 2)
    desk = Desk(url, token, config)
    made = desk.ask("POST", "keys", body={**fields_of(given), "name": called})
    if made["team_created"]:
        typer.echo(f"The team '{made['team']}' is new: it was made without limits.", err=True)
    if as_json:
        print_json(made)
        return
    typer.echo(made["key"])
    typer.echo(
        f"Key '{made['name']}' ({made['id']}). It is not shown again. Use it as OPENAI_API_KEY with base URL"
        f" {router_url(url, config)}/v1",
        err=True,
    )


@app.command("ls")
def listing(
    team: Annotated[str | None, typer.Option("--team", metavar="TEAM", help="Of this team only.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="active, disabled, revoked or expired.")
    ] = None,
    q: Annotated[str | None, typer.Option("--search", metavar="TEXT", help="Part of id, name, owner or tag.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the keys, without their secrets."""
    found = Desk(url, token, config).everything("keys", most=limit, team=team, state=state, q=q)
    found.sort(key=lambda key: (key["created"], key["id"]))
    if as_json:
        print_json(found)
        return
    head = ("id", "name", "state", "owner", "team", "expires", "last used", "limits and rights")
    rows = []
    for key in found:
        whose = (key["owner"] or "-", key["team"] or "-")
        when = (key["expires_at"] or "never", key["last_used"] or "never")
        rows.append([key["id"], key["name"], key["state"], *whose, *when, _short(key)])
    print_table(head, rows)


@app.command()
def show(
    key: Ref, url: UrlOption = None, token: TokenOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show one key, without its secret."""
    print_one(Desk(url, token, config).ask("GET", "keys", key), as_json)


@app.command("set")
@taking(KEY)
def change(
    given: Fields,
    key: Ref,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    right: Annotated[list[str] | None, typer.Option("--right", help="Give manage_local or admin.")] = None,
    no_right: Annotated[list[str] | None, typer.Option("--no-right", help="Take it away.")] = None,
    fallback: Annotated[
        bool | None, typer.Option("--fallback/--no-fallback", help="May the local model stand in?")
    ] = None,
    local_only: Annotated[
        bool | None, typer.Option("--local-only/--all-providers", help="Only local providers?")
    ] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Switch it on or off.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a key; it takes effect on the key's next call. Limits change one by one; `none` lifts one.

    With another --team the key moves there: what it spent stays with the old team, and it starts from nothing.
    """
    rights: Fields = dict.fromkeys(known(right or []), True) | dict.fromkeys(known(no_right or []), False)
    rights |= {} if fallback is None else {"allow_fallback": fallback}
    rights |= {} if local_only is None else {"local_only": local_only}
    fields = fields_of({**given, "name": name})
    fields |= {"rights": rights} if rights else {}
    if enable is not None:
        fields["state"] = "active" if enable else "disabled"
    if not fields:
        fail("nothing to change: see switchyard keys set --help", 2)
    desk = Desk(url, token, config)

    async def work(ask: Any) -> tuple[Any, Any]:
        before = await ask("GET", "keys", key) if "team" in fields else None
        return before, await ask("PATCH", "keys", key, body=fields)

    before, after = desk.pages(work)
    if before is not None and before["team_id"] != after["team_id"]:
        typer.echo(
            f"The key moved from team '{before['team']}' to '{after['team']}'. What it spent stays with"
            f" '{before['team']}'; its own limits start from nothing.",
            err=True,
        )
    print_one(after, as_json)


@app.command()
def rotate(
    key: Ref,
    overlap: Annotated[
        str | None, typer.Option("--overlap", metavar="TIME", help="How long the old secret works: 24h, 7d or 0.")
    ] = None,
    end_overlap: Annotated[bool, typer.Option("--end-overlap", help="No new secret: end the old one now.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and show it, this once. Id, limits and spending stay; the old secret works for a day."""
    desk = Desk(url, token, config)
    if end_overlap:
        if overlap is not None:
            fail("--overlap and --end-overlap exclude each other", 2)
        print_one(desk.ask("DELETE", "keys", key, "overlap"), as_json)
        return
    made = desk.ask("POST", "keys", key, "rotate", body={"overlap": overlap or "24h"})
    if made["ended_earlier"]:
        typer.echo("The rotation before this one was not over: its old secret ended now.", err=True)
    if as_json:
        print_json(made)
        return
    typer.echo(made["key"])
    until = f"works until {made['old_key_until']}" if made["old_key_until"] else "has ended"
    if made["state"] != "active":
        until += f", but the key is {made['state']}: no secret of it works now"
    typer.echo(f"The new secret of key '{made['name']}' ({made['id']}); the old one {until}.", err=True)


@app.command()
def revoke(
    key: Ref, url: UrlOption = None, token: TokenOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """End a key for good; its next call is refused."""
    print_one(Desk(url, token, config).ask("DELETE", "keys", key), as_json)


app.command()(keys_issue.issue)
app.command("export")(keys_transfer.export)
app.command("import")(keys_transfer.bring)


# --- output


def _short(key: Fields) -> str:
    rights = key["rights"]
    found = limits_words(key["limits"])
    found += [name for name in ("admin", "manage_local", "local_only") if rights[name]]
    found += [] if rights["allow_fallback"] else ["no_fallback"]
    found += ["anonymous"] if key["anonymous"] else []
    found += [f"models={','.join(key['models'])}"] if key["models"] else []
    found += [f"deny={','.join(key['deny'])}"] if key["deny"] else []
    found += [f"networks={','.join(key['networks'])}"] if key["networks"] else []
    return " ".join(found) or "-"


def limits_words(limits: Fields) -> list[str]:
    """`rpm=60`, `budget_day=5usd`, `tpm[gpt-4*]=1000`, from the admin API's JSON."""
    from router import limit_text

    return limit_text.limits_words(limit_text.merge((), limit_text.parse_limits(limits)))


def print_one(found: Fields, as_json: bool) -> None:
    """A key or a team, one field on each line."""
    if as_json:
        print_json(found)
        return
    for field, value in found.items():
        if field == "limits":
            value = " ".join(limits_words(value))
        elif isinstance(value, dict):
            value = ", ".join(name for name, has in value.items() if has)
        elif isinstance(value, list):
            value = ", ".join(value)
        if field != "etag":
            typer.echo(f"{field:<14}{'-' if value in (None, '') else value}")
