"""`switchyard keys`: on this machine's store by the code of the admin API, or on a remote router with --url."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table, read_config

if TYPE_CHECKING:
    from router.keys import Change, Keys

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="The team's API keys.")

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
Ref = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, or its name when only one key has it.")]
ModelsOption = Annotated[
    str | None, typer.Option("--models", metavar="A,B*", help="Only these models; '' allows all again.")
]
DenyOption = Annotated[str | None, typer.Option("--deny", metavar="A,B*", help="Not these models; '' lifts it.")]
ExpiresOption = Annotated[str | None, typer.Option("--expires", metavar="WHEN", help="30d, 12h, 2027-01-31 or never.")]
TagsOption = Annotated[str | None, typer.Option("--tags", metavar="A,B", help="Words to group keys by.")]
OwnerOption = Annotated[str | None, typer.Option("--owner", help="Who answers for it.")]
TeamOption = Annotated[str | None, typer.Option("--team", help="Whose it is.")]

RIGHTS: Final = ("manage_local", "admin")
REMOTE_LIMIT: Final = 15.0
Fields = dict[str, Any]


@app.command()
def create(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What to call it.", show_default=False)] = None,
    name_option: Annotated[str | None, typer.Option("--name", help="The same.")] = None,
    owner: OwnerOption = None,
    team: TeamOption = None,
    models: ModelsOption = None,
    deny: DenyOption = None,
    expires: ExpiresOption = None,
    tags: TagsOption = None,
    right: Annotated[list[str] | None, typer.Option("--right", help="manage_local or admin; repeatable.")] = None,
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="The local model never stands in.")] = False,
    local_only: Annotated[bool, typer.Option("--local-only", help="Only local providers.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once."""
    called = name_option or name
    if not called:
        fail("a key needs a name: switchyard keys create NAME", 2)
    rights: Fields = dict.fromkeys(_known(right or []), True)
    rights |= {"allow_fallback": False} if no_fallback else {}
    rights |= {"local_only": True} if local_only else {}
    fields = _fields(called, owner, team, models, deny, expires, tags, rights)
    made = _run(url, token, config, "POST", "", fields)
    if as_json:
        print_json(made)
        return
    typer.echo(made["key"])
    typer.echo(
        f"Key '{made['name']}' ({made['id']}). It is not shown again. Use it as OPENAI_API_KEY with base URL"
        f" {url or 'http://127.0.0.1:8080'}/v1",
        err=True,
    )


@app.command("ls")
def listing(
    url: UrlOption = None, token: TokenOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """List the keys, without their secrets."""
    found = _run(url, token, config, "GET", "", None)["data"]
    if as_json:
        print_json(found)
        return
    head = ("id", "name", "state", "owner", "team", "expires", "last used", "rights")
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
    _print_key(_run(url, token, config, "GET", key, None), as_json)


@app.command("set")
def change(
    key: Ref,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    owner: OwnerOption = None,
    team: TeamOption = None,
    models: ModelsOption = None,
    deny: DenyOption = None,
    expires: ExpiresOption = None,
    tags: TagsOption = None,
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
    """Change a key; it takes effect on the key's next call."""
    rights: Fields = dict.fromkeys(_known(right or []), True) | dict.fromkeys(_known(no_right or []), False)
    rights |= {} if fallback is None else {"allow_fallback": fallback}
    rights |= {} if local_only is None else {"local_only": local_only}
    fields = _fields(name, owner, team, models, deny, expires, tags, rights)
    if enable is not None:
        fields["state"] = "active" if enable else "disabled"
    if not fields:
        fail("nothing to change: see switchyard keys set --help", 2)
    _print_key(_run(url, token, config, "PATCH", key, fields), as_json)


@app.command()
def revoke(
    key: Ref, url: UrlOption = None, token: TokenOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """End a key for good; its next call is refused."""
    _print_key(_run(url, token, config, "DELETE", key, None), as_json)


# --- input and output


def _known(rights: list[str]) -> list[str]:
    named = [right.replace("-", "_") for right in rights]
    for right in named:
        if right not in RIGHTS:
            fail(f"there is no right {right}: {' or '.join(RIGHTS)}", 2)
    return named


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _fields(
    name: str | None,
    owner: str | None,
    team: str | None,
    models: str | None,
    deny: str | None,
    expires: str | None,
    tags: str | None,
    rights: Fields,
) -> Fields:
    texts = {"name": name, "owner": owner, "team": team, "expires": expires}
    lists = {"models": models, "deny": deny, "tags": tags}
    fields: Fields = {field: text for field, text in texts.items() if text is not None}
    fields |= {field: _words(text) for field, text in lists.items() if text is not None}
    return fields | ({"rights": rights} if rights else {})


def _short(key: Fields) -> str:
    rights = key["rights"]
    words = [name for name in ("admin", "manage_local", "local_only") if rights[name]]
    words += [] if rights["allow_fallback"] else ["no_fallback"]
    words += ["anonymous"] if key["anonymous"] else []
    words += [f"models={','.join(key['models'])}"] if key["models"] else []
    words += [f"deny={','.join(key['deny'])}"] if key["deny"] else []
    return " ".join(words) or "-"


def _print_key(key: Fields, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    for field, value in key.items():
        if isinstance(value, dict):
            value = ", ".join(name for name, given in value.items() if given)
        elif isinstance(value, list):
            value = ", ".join(value)
        typer.echo(f"{field:<12}{'-' if value in (None, '') else value}")


# --- where the keys are


def _run(url: str | None, token: str | None, config: Path | None, method: str, ref: str, fields: Fields | None) -> Any:
    """One request of the admin API: sent to a remote router, or done here on the store."""
    if url is not None:
        return _remote(url, token, method, ref, fields)
    return asyncio.run(_local(config, method, ref, fields))


async def _local(config: Path | None, method: str, ref: str, fields: Fields | None) -> Any:
    from providers.errors import StoreUnavailable, SwitchyardError
    from router.keys import open_keys
    from router.store import StoreError, open_store

    loaded = read_config(config)
    data_dir = Path(loaded.data_dir)
    try:
        store = await open_store(loaded.redis.url.get_secret_value(), data_dir, role="command")
        try:
            # A command has no use for an admin token, and must not fail for a bad one.
            environ = {name: value for name, value in os.environ.items() if name != "SWITCHYARD_ADMIN_TOKEN"}
            keys = await open_keys(store, data_dir, environ)
            if store.problem is not None:
                fail(store.problem)
            return await _VERBS[method](keys, ref, fields or {})
        finally:
            await store.close()
    except StoreError as error:
        fail(str(error))
    except SwitchyardError as error:
        fail(error.message, 1 if isinstance(error, StoreUnavailable) or error.status in (404, 409) else 2)


async def _create(keys: Keys, _ref: str, fields: Fields) -> Any:
    from router.keys import Listed, describe

    key, credential = await keys.create(_change(fields))
    return {**describe(Listed(key, None), time.time()), "key": credential}


async def _get(keys: Keys, ref: str, _fields: Fields) -> Any:
    from router.keys import describe

    if ref:
        return describe(await keys.get(ref), time.time())
    return {"data": [describe(listed, time.time()) for listed in await keys.list()]}


async def _set(keys: Keys, ref: str, fields: Fields) -> Any:
    return await _get(keys, (await keys.change(ref, _change(fields))).id, {})


async def _revoke(keys: Keys, ref: str, _fields: Fields) -> Any:
    return await _get(keys, (await keys.revoke(ref)).id, {})


_VERBS: Final[dict[str, Callable[[Keys, str, Fields], Awaitable[Any]]]] = {
    "POST": _create,
    "GET": _get,
    "PATCH": _set,
    "DELETE": _revoke,
}


def _change(fields: Fields) -> Change:
    from router.keys import Change, parse_expiry

    plain: Fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    expires = plain.pop("expires", None)
    rights = plain.pop("rights", {})
    if expires is not None:
        plain["expires_at"] = parse_expiry(expires, time.time())
    return Change(**plain, **rights)


def _remote(url: str, token: str | None, method: str, ref: str, fields: Fields | None) -> Any:
    if urlsplit(url).scheme not in ("http", "https"):
        fail("--url is the router's address, such as http://gpu:8080", 2)
    if not token:
        fail("set SWITCHYARD_ADMIN_TOKEN to the router's admin token (or a key with the admin right)", 2)
    path = f"/admin/api/keys/{quote(ref, safe='')}" if ref else "/admin/api/keys"
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    body = None if fields is None else json.dumps(fields).encode()
    request = Request(base + path, body, headers, method=method)  # noqa: S310 - the scheme is checked above
    try:
        with urlopen(request, timeout=REMOTE_LIMIT) as answer:  # noqa: S310 - likewise
            return json.loads(answer.read())
    except HTTPError as error:
        with error:
            fail(_told(error))
    except (URLError, TimeoutError, ConnectionError) as error:
        fail(f"{base} cannot be reached: {getattr(error, 'reason', error)}")
    except ValueError:
        fail(f"{base} does not answer like a Switchyard router")


def _told(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the router answers {error.code}"
