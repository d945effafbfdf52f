"""What several verbs share: finding and reading the config, compiling it, and printing tables or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from router.config import Config
    from router.snapshot import Snapshot

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar="SWITCHYARD_CONFIG",
        show_envvar=False,
        help="The config file; else SWITCHYARD_CONFIG, else config/switchyard.yaml, else the built-in default.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT = Path("config/switchyard.yaml")


def tell(text: str, *, err: bool = False) -> None:
    """A line for whoever watches. Nobody has to: when the pipe is closed or the disk is full, the stream is sent
    nowhere from then on, and what was to be done goes on."""
    stream = sys.stderr if err else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # or the interpreter's last flush would make the exit code 120
        os.close(nowhere)


def config_path(option: Path | None) -> Path:
    """The config file to read: the one asked for, the one in this directory, or the default of the installation."""
    if option is not None:
        return option
    if named := os.environ.get("SWITCHYARD_CONFIG"):
        return Path(named)
    if DEFAULT.is_file():
        return DEFAULT
    package = Path(__file__).resolve().parent.parent
    built_in = package / "default" / "switchyard.yaml"  # in a wheel
    return built_in if built_in.is_file() else package.parent / DEFAULT  # in a checkout


def read_config(
    option: Path | None, copy: Path | None = None, say: Callable[[str], object] = partial(tell, err=True)
) -> Config:
    """The config, or every problem of it on standard error and exit code 1. `say` gets the warnings, except those of a
    `copy`, which somebody has read before."""
    from router.config import ConfigErrors, load_config

    try:
        config = load_config(config_path(option), os.environ, copy)
        if config.prices.file is not None:
            from router.prices import load_prices

            load_prices(config)
        if config.telemetry.otlp_endpoint is not None:
            from router.otel import check

            check(config, os.environ)
    except ConfigErrors as errors:
        for problem in errors.problems:
            tell(str(problem), err=True)
        raise typer.Exit(1) from errors
    for warning in config.warnings if copy is None else ():
        say(f"{warning} (warning)")
    return config


def snapshot_of(config: Config) -> Snapshot:
    """The config compiled, without asking any server for its list. Options that make no sense end with exit code 1."""
    from router.config import ConfigErrors
    from router.snapshot import compile_snapshot

    try:
        return compile_snapshot(config)
    except ConfigErrors as errors:
        tell(str(errors), err=True)
        raise typer.Exit(1) from errors


def fail(message: str, code: int = 1) -> NoReturn:
    """`message` on standard error, and the end."""
    tell(f"switchyard: {message}", err=True)
    raise typer.Exit(code)


def print_json(value: Any) -> None:  # any JSON
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A heading, then columns as wide as they need to be. For people: scripts read the JSON."""
    lines = [[title.upper() for title in head], *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
