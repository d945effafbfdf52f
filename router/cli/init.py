"""`switchyard init`: what a deployment needs before its first start, made at random and kept in files.

The files lie below one directory with a part for each program that reads them, so that a program is given its own part
and nothing else. What is there stays: running it again changes nothing. Files are 0640, directories 0750.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Make the secrets of a deployment."
)

STORE_USER: Final = "switchyard"
STORE_RULES: Final = (
    "~sy:* resetchannels +@read +@write +@connection -@dangerous -@scripting +fcall +function|load +info +role +time"
)
"""What the router may do in its store; docs/quotas.md."""


def _random() -> str:
    return secrets.token_hex(24)


def _pepper() -> str:
    return secrets.token_hex(32)


def _admin_token() -> str:
    from router.credentials import new_admin_token

    return new_admin_token()


class Secret(NamedTuple):
    about: str
    make: Callable[[], str]
    shown: bool = False
    """Whether a person needs it."""


MADE: Final[Mapping[str, Secret]] = {
    "router/admin_token": Secret("the router's admin token (/admin, switchyard keys --url)", _admin_token, True),
    "router/pepper": Secret("what stored keys are digested with: back it up", _pepper),
    "router/metrics_token": Secret("opens /metrics", _random),
    "router/store_password": Secret("the router's password in its store", _random),
    "grafana/admin_password": Secret("Grafana's first user, admin", _random, True),
    "webui/admin_password": Secret("Open WebUI's first user", _random, True),
    "webui/secret_key": Secret("what Open WebUI signs its sessions with", _random),
}
"""By file. A new one is made where the file is missing or empty."""


def derived(values: Mapping[str, str], store: str) -> dict[str, str]:
    """What follows from the made ones: the same secret in the form, or in the part, of another program.

    values: content by file; store: host:port of the Redis or Valkey server.
    """
    password = values["router/store_password"]
    digest = hashlib.sha256(password.encode()).hexdigest()
    # Without a password a health check may ask whether the server is there, and nobody may do anything else.
    users = (
        "user default on nopass resetkeys resetchannels -@all +ping",
        f"user {STORE_USER} on #{digest} {STORE_RULES}",
    )
    return {
        "router/redis_url": f"redis://{STORE_USER}:{password}@{store}/0",
        "store/users.acl": "\n".join(users),
        "metrics/switchyard_metrics_token": values["router/metrics_token"],
    }


DirOption = Annotated[
    Path,
    typer.Option("--dir", metavar="DIR", envvar="SWITCHYARD_SECRETS", help="Where the files are; else /secrets."),
]
DIRECTORY: Final = Path("/secrets")


@app.command("secrets")
def make(
    directory: DirOption = DIRECTORY,
    store: Annotated[
        str, typer.Option("--store", metavar="HOST:PORT", help="Where the store will be reached.")
    ] = "valkey:6379",
    renew: Annotated[
        list[str] | None,
        typer.Option("--renew", metavar="FILE", help="Make this one anew, such as router/admin_token."),
    ] = None,
) -> None:
    """Make every secret that is missing. Programs that run read a new one when they are started again."""
    for name in renew or ():
        if name not in MADE:
            fail(f"there is no {name}: {', '.join(MADE)}", 2)
        if name == "router/pepper":
            fail("the pepper is not renewed: no stored key would be recognised any more", 2)
    try:
        values, new = {}, []
        for name, secret in MADE.items():
            found = "" if name in (renew or ()) else _read(directory / name)
            if not found:
                new.append(name)
            values[name] = found or secret.make()
            _write(directory / name, values[name])
        for name, value in derived(values, store).items():
            _write(directory / name, value)
    except OSError as bad:
        fail(f"{bad.filename or directory} cannot be used: {bad.strerror}")
    typer.echo(f"made {', '.join(new)}" if new else "nothing to do: all secrets are there")


@app.command()
def show(directory: DirOption = DIRECTORY, as_json: JsonOption = False) -> None:
    """Print the secrets that a person signs in with."""
    try:
        found = {name: _read(directory / name) for name, secret in MADE.items() if secret.shown}
    except OSError as bad:
        fail(f"{bad.filename or directory} cannot be read: {bad.strerror}")
    if not any(found.values()):
        fail(f"there are no secrets in {directory} yet: switchyard init secrets")
    if as_json:
        print_json(found)
    else:
        print_table(("secret", "value", "about"), ((name, text, MADE[name].about) for name, text in found.items()))


@app.command()
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the key.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    right: Annotated[list[str] | None, typer.Option("--right", help="As for `switchyard keys create`.")] = None,
    config: ConfigOption = None,
) -> None:
    """Make an API key for another program and write it to a file. Nothing happens when the file has one."""
    from router.cli.desk import Desk
    from router.cli.options import known

    rights = dict.fromkeys(known(right or []), True)
    try:
        if _read(file):
            typer.echo(f"nothing to do: {file} is there")
            return
        _write(file, "")  # a directory that cannot be written is told before there is a key
        made = Desk(None, None, config).ask(
            "POST", "keys", body={"name": name, **({"rights": rights} if rights else {})}
        )
        _write(file, made["key"])
    except OSError as bad:
        fail(f"{bad.filename or file} cannot be used: {bad.strerror}")
    typer.echo(f"made key {made['id']} ({name}) and wrote it to {file}")


def _read(path: Path) -> str:
    """The text without the newline at its end; empty where there is no file."""
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and only what differs."""
    if text and _read(path) == text:
        return
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o640)  # whatever the umask says: other containers read it by their group
            file.write(f"{text}\n" if text else "")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
