"""`switchyard init`: what a deployment needs before its first start, made at random and kept in files.

The files lie below one directory with a part for each program that reads them, so that a program is given its own part
and nothing else. What is there stays: running it again changes nothing, but for the copies that other programs have.
Files are 0640, directories 0750, whatever the umask. Of several that run at once, one waits for the other.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table
from router.config_hosts import redis_problem

if TYPE_CHECKING:
    from router.keys import Keys
    from router.records import Key

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Make the secrets of a deployment."
)

STORE_USER: Final = "switchyard"
STORE_RULES: Final = (
    "~sy:* resetchannels +@read +@write +@connection -@dangerous -@scripting +fcall +function|load +info +role +time"
)
"""What the router may do in its store; docs/quotas.md."""
STORE: Final = "valkey:6379"
PEPPER: Final = "router/pepper"
STORE_PASSWORD: Final = "router/store_password"  # noqa: S105 - a file's name


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
    kept: str = ""
    """What to do after a renewal, for a program that reads it at its first start alone."""


MADE: Final[Mapping[str, Secret]] = {
    "router/admin_token": Secret("the router's admin token (/admin, switchyard keys --url)", _admin_token, True),
    PEPPER: Secret("what stored keys are digested with: back it up", _pepper),
    "router/metrics_token": Secret("opens /metrics", _random),
    STORE_PASSWORD: Secret("the router's password in its store", _random),
    "grafana/admin_password": Secret(
        "Grafana's first user, admin",
        _random,
        True,
        "Grafana keeps the password that it has: set this one with `grafana cli admin reset-admin-password`",
    ),
    "webui/admin_password": Secret(
        "Open WebUI's first user", _random, True, "Open WebUI keeps the password that it has: change it there"
    ),
    "webui/secret_key": Secret("what Open WebUI signs its sessions with", _random),
}
"""By file. A new one is made where the file is missing, or empty and not the pepper."""
RENEWED: Final = tuple(name for name in MADE if name != PEPPER)
_ANY: Final = dict.fromkeys(MADE, "")


def derived(values: Mapping[str, str], url: str) -> dict[str, str]:
    """What follows from the made ones: the same secret in the form, or in the part, of another program.

    values: content by file; url: the store's, with whatever login.
    """
    password = values[STORE_PASSWORD]
    digest = hashlib.sha256(password.encode()).hexdigest()
    # Without a password a health check may ask whether the server is there, and nobody may do anything else.
    users = (
        "user default on nopass resetkeys resetchannels -@all +ping",
        f"user {STORE_USER} on #{digest} {STORE_RULES}",
    )
    return {
        "router/redis_url": url,
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
        str | None,
        typer.Option(
            "--store",
            metavar="HOST:PORT|URL",
            help="Where the store is reached: host and port, or a URL as for redis.url without a login, such as"
            f" rediss://HOST:PORT/0. Else as in router/redis_url, else {STORE}.",
        ),
    ] = None,
    renew: Annotated[
        list[str] | None,
        typer.Option("--renew", metavar="FILE", help=f"Make this one anew, of {', '.join(RENEWED)}."),
    ] = None,
) -> None:
    """Make every secret that is missing. Programs that run read a new one when they are started again."""
    for name in renew or ():
        if name == PEPPER:
            fail("the pepper is not renewed: no stored key would be recognised any more", 2)
        if name not in RENEWED:
            fail(f"there is no {name}: {', '.join(RENEWED)}", 2)
    address = None if store is None else _address(store)
    try:
        with _alone(directory / "router"):
            made, wrote = _make_missing(directory, address, renew or ())
            too_open = [name for name in (*MADE, *derived(_ANY, "")) if (directory / name).stat().st_mode & 0o007]
    except OSError as bad:
        fail(f"{bad.filename or directory} cannot be used: {bad.strerror}")
    done = [f"{verb} {', '.join(names)}" for verb, names in (("made", made), ("wrote", wrote)) if names]
    typer.echo("; ".join(done) or "nothing to do: all secrets are there")
    for name in too_open:
        typer.echo(f"warning: everybody on this machine can read {directory / name}: chmod 640 it", err=True)
    for name in renew or ():
        if MADE[name].kept:
            typer.echo(f"{name}: {MADE[name].kept}", err=True)


def _address(store: str) -> str:
    """The URL of a store without a login; ends the command where it is none."""
    url = store if "://" in store else f"redis://{store}/0"
    try:
        whole = "://" in store or "/" not in store
        whole = whole and bool(urlsplit(url).netloc) and not re.search(r"[\s@]", url) and redis_problem(url) is None
    except ValueError:
        whole = False
    if not whole:
        fail(
            "--store is HOST:PORT, or a URL without a login: redis://, rediss://, redis+sentinel:// or redis+cluster://"
            " as for redis.url",
            2,
        )
    return url


def _make_missing(directory: Path, address: str | None, renew: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of those that were made, and of other files that changed. Raises OSError."""
    url = _read(directory / "router/redis_url")
    # Nothing is written before everything that is there could be read.
    found = {name: _read(directory / name) for name in MADE}
    found[STORE_PASSWORD] = found[STORE_PASSWORD] or _password_in(url)
    if not found[PEPPER] and (directory / PEPPER).exists():
        why = "it is empty. Put the pepper of the stored keys back, or delete the file where there are none yet"
        raise OSError(errno.ENODATA, why, str(directory / PEPPER))
    made = [name for name in MADE if name in renew or not found[name]]
    values = found | {name: MADE[name].make() for name in made}
    if address is not None or not url:
        url = _with_login(address or f"redis://{STORE}/0", values[STORE_PASSWORD])
    elif STORE_PASSWORD in renew:
        url = _with_login(url, values[STORE_PASSWORD])
    wrote = [name for name, text in (values | derived(values, url)).items() if _write(directory / name, text)]
    return made, [name for name in wrote if name not in made]


def _with_login(url: str, password: str) -> str:
    return re.sub(r"(?<=://)([^/]*@)?", f"{STORE_USER}:{quote(password, safe='')}@", url, count=1)


def _password_in(url: str) -> str:
    with suppress(ValueError):
        return unquote(urlsplit(url).password or "")
    return ""


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
    renew: Annotated[bool, typer.Option("--renew", help="A new secret, although the old one works: it ends.")] = False,
    config: ConfigOption = None,
) -> None:
    """Make an API key for another program and write it to a file. Nothing happens when the one in the file works."""
    from router.cli.options import known

    rights = dict.fromkeys(known(right or []), True)
    try:
        with _alone(file.parent):
            typer.echo(asyncio.run(_give(name, file, rights, renew=renew, config=config)))
    except OSError as bad:
        fail(f"{bad.filename or file} cannot be used: {bad.strerror}")


MADE_HERE: Final = "switchyard-init"
"""The tag of keys that `init key` has made, and may give a new secret."""


async def _give(name: str, file: Path, rights: Mapping[str, bool], *, renew: bool, config: Path | None) -> str:
    """What was done. Raises OSError."""
    from router.changes import change_of
    from router.cli.desk import local_actor, opened
    from router.credentials import key_id_of

    text = _read(file)
    async with opened(config) as keys:
        by = keys.acting(local_actor())
        mine = await by.authenticate(text) if text else None
        if mine is not None and not renew:
            return f"nothing to do: {file} has the key {mine.id} ({mine.name})"
        if mine is None:
            mine = await _made_before(by, name)
        if mine is not None and mine.state == "disabled":
            if mine.id == key_id_of(text) and not renew:
                return f"nothing to do: {file} has the key {mine.id} ({name}), which is disabled"
            fail(f"key {mine.id} ({name}) is disabled: switchyard keys set {mine.id} --enable, or revoke it")
        if not text:
            _write(file, "")  # a directory that cannot be written is told before there is a key
        if mine is not None:
            _write(file, (await by.rotate(mine.id, 0)).credential)
            return f"made a new secret for key {mine.id} ({mine.name}) and wrote it to {file}; the one before has ended"
        made = await by.make(change_of({"name": name, "rights": rights, "tags": [MADE_HERE]}, by.clock()))
        _write(file, made.credential)
        return f"made key {made.key.id} ({name}) and wrote it to {file}"


async def _made_before(keys: Keys, name: str) -> Key | None:
    """The key that was made here under this name, and whose secret is lost."""
    now = keys.clock()
    async for listed in keys.scan():
        one = listed.key
        if one.name == name and MADE_HERE in one.tags and one.condition(now) in ("active", "disabled"):
            return one
    return None


def _read(path: Path) -> str:
    """The text without the newline at its end; empty where there is no file. Raises OSError, or for no text."""
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as bad:
        raise OSError(errno.EILSEQ, "it is not text", str(path)) from bad


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else of us works here meanwhile. The directory itself is locked, so that nothing is left behind."""
    _make_directory(directory)
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _make_directory(directory: Path) -> None:
    """With those above it. What is there already keeps its mode."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        with suppress(FileExistsError):  # another was faster
            one.mkdir()
            one.chmod(0o750)  # whatever the umask says: other programs read it by their group


def _write(path: Path, text: str) -> bool:
    """Whole or not at all, and only what differs: whether it did. Only one of us writes this file now."""
    new = path.with_name(f".{path.name}.new")
    if new.exists():  # of one that was killed
        new.unlink()
    if text and _read(path) == text:
        return False
    _make_directory(path.parent)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o640)
            file.write(f"{text}\n" if text else "")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    return True
