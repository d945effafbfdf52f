"""`switchyard keys export` and `import`: from one store to another, on the machine of the router."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json
from router.cli.desk import local_actor, opened


def export(
    usage: Annotated[bool, typer.Option("--usage", help="Also the usage by hour and day.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print all teams and keys, with limits and what was spent: JSON lines, for `keys import` elsewhere.

    No secret is in it, but digests are: keep it as private as the store. Stop the routers first: what running calls
    will cost, and what changes while it is written, is not in it; standard error says when there may be such.
    """
    asyncio.run(_export(config, usage))


async def _export(config: Path | None, usage: bool) -> None:
    from router.transfer import export as lines
    from router.transfer import missing

    async with opened(config) as keys:
        for warning in await missing(keys):
            typer.echo(f"warning: {warning}", err=True)
        async for line in lines(keys, usage=usage):
            sys.stdout.write(line)
        sys.stdout.flush()


def bring(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `keys export` printed; - for standard input.")],
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite what has the same ids.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write teams and keys of an export into this store. All is checked first; running it again does no harm."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}", 2)
    except UnicodeDecodeError:
        fail(f"{file} is no file of `switchyard keys export`", 2)
    asyncio.run(_bring(text.split("\n"), replace, config, as_json))


async def _bring(lines: list[str], replace: bool, config: Path | None, as_json: bool) -> None:
    from router.transfer import bring as write
    from router.transfer import read_export

    async with opened(config) as keys:
        done = await write(keys.acting(local_actor()), read_export(lines), replace=replace)
        for warning in done.warnings:
            typer.echo(f"warning: {warning}", err=True)
        if as_json:
            print_json({"teams": done.teams, "keys": done.keys, "present": done.present, "warnings": done.warnings})
        else:
            typer.echo(f"{done.keys} keys and {done.teams} teams written; {done.present} keys were there already.")
