"""The command line. A verb is imported when it is used, so that `switchyard --help` costs a fraction of a second.

Exit codes: 0 fine, 1 the thing checked is not fine, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Verb(NamedTuple):
    """Where a verb lives (`module:name`, a function or a `typer.Typer`) and its line in the help."""

    place: str
    help: str


VERBS: Final[Mapping[str, Verb]] = {
    "serve": Verb("router.cli.serve:serve", "Run the router."),
    "doctor": Verb("router.cli.doctor:doctor", "Say what on this machine will not work, and why."),
    "chat": Verb("router.cli.chat:chat", "Talk to a model through the router."),
    "env": Verb("router.cli.env:env", "Print the settings that point a client at the router."),
    "check": Verb("router.cli.check:check", "Check the config: every problem at once, with its place."),
    "config": Verb("router.cli.config:app", "Show the config in force, or its JSON Schema."),
    "models": Verb("router.cli.models:models", "List the models that can be asked for."),
    "providers": Verb("router.cli.providers:app", "List the providers and why one is off; try one."),
    "route": Verb("router.cli.route:route", "Show where a model name leads, and why not elsewhere."),
    "prices": Verb("router.cli.prices:prices", "Show what models cost, and who says so."),
    "keys": Verb("router.cli.keys:app", "Create, issue, list, change, rotate, revoke and move API keys."),
    "teams": Verb("router.cli.teams:app", "Create, list and change the teams that hold keys."),
    "audit": Verb("router.cli.audit:app", "Show who changed keys and teams; examine that log."),
    "usage": Verb("router.cli.usage:usage", "Show what was used, by whom, and what it cost."),
    "logs": Verb("router.cli.logs:logs", "Show recent calls, or follow them."),
    "init": Verb("router.cli.init:app", "Make the secrets of a deployment."),
    "version": Verb("router.cli.version:version", "Print the version."),
}


class LazyGroup(TyperGroup):
    """The verbs of `VERBS`. The list of them is made from the table alone; only a verb that runs is imported."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:  # typer's context, whose class is private
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # as the base class
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=verb.help)
        return _load(cmd_name, verb)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"there is no verb {args[0]}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # as the base class
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def _load(name: str, verb: Verb) -> Any:  # typer's command classes are private
    module_name, _, attribute = verb.place.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        typer.echo(f"switchyard: {name} is not part of this installation", err=True)
        raise typer.Exit(2) from error
    found = getattr(module, attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name=name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from router.cli.version import version

        version()
        raise typer.Exit


@app.callback()
def switchyard(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The config file; else SWITCHYARD_CONFIG, else config/switchyard.yaml, else the built-in default.",
        ),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """One address in front of every language model a team uses.

    Start with `switchyard serve`; it prints an address, a key and a line to try. `switchyard check` reads the config,
    `switchyard route MODEL` shows where a model name leads. Exit codes: 0 fine, 1 not fine, 2 wrong usage.
    """
    if config is not None:
        os.environ["SWITCHYARD_CONFIG"] = str(config)  # the verbs read it, and so do processes that they start


def main() -> None:
    """The `switchyard` command."""
    try:
        app(prog_name="switchyard")
    except BrokenPipeError:
        # `switchyard models | head`: the reader has gone, and nobody is left to be told. Python would still try to
        # flush at exit, so standard output is pointed elsewhere first.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
