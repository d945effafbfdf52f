"""`switchyard check`: is this config good, and with `--connect`, are its providers there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.common import ConfigOption, JsonOption, config_path, print_json, print_table, snapshot_of

if TYPE_CHECKING:
    from router.config import Problem


def check(
    config: ConfigOption = None,
    connect: Annotated[bool, typer.Option("--connect", help="Reach every provider that is on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the config: every problem at once, as file:line:column, and which providers are on.

    Ends with 1 when there is a problem, or when with --connect a provider that is on cannot be reached.
    """
    from router.config import ConfigErrors, load_config
    from router.otel import check as telemetry
    from router.prices import load_prices

    path = config_path(config)
    try:
        loaded = load_config(path, os.environ)
        load_prices(loaded)
        telemetry(loaded, os.environ)
    except ConfigErrors as errors:
        if as_json:
            print_json({"file": str(path), "ok": False, **_listed(errors.problems, errors.warnings), "providers": []})
        else:
            for problem in errors.problems:
                typer.echo(str(problem), err=True)
            for warning in errors.warnings:
                typer.echo(f"{warning} (warning)", err=True)
            count = len(errors.problems)
            typer.echo(f"{count} problem{'s' if count != 1 else ''}", err=True)
        raise typer.Exit(1) from errors
    snapshot = snapshot_of(loaded)
    providers: list[dict[str, Any]] = [
        {"name": provider.name, "vendor": provider.vendor.name, "base_url": provider.base_url, "off": provider.off}
        for provider in snapshot.providers.values()
    ]
    fine = True
    if connect:
        from router.cli.probe import probe_all

        results = probe_all([provider for provider in snapshot.providers.values() if provider.off is None])
        for row in providers:
            if row["name"] in results:
                row["reached"], row["answer"] = results[row["name"]]
                fine = fine and row["reached"]
    if as_json:
        print_json({"file": str(path), "ok": fine, **_listed([], list(loaded.warnings)), "providers": providers})
    else:
        for warning in loaded.warnings:
            typer.echo(f"{warning} (warning)", err=True)
        print_table(("provider", "state", "about"), ([row["name"], *_state(row)] for row in providers))
        typer.echo(f"{path}: {'fine' if fine else 'the file is fine, but not every provider can be reached'}")
    if not fine:
        raise typer.Exit(1)


def _state(row: dict[str, Any]) -> tuple[str, str]:
    if row["off"]:
        return "off", row["off"]
    if "reached" in row:
        return ("on" if row["reached"] else "FAILS"), row["answer"]
    return "on", row["base_url"] or row["vendor"]


def _listed(problems: list[Problem], warnings: list[Problem]) -> dict[str, Any]:
    def rows(listed: list[Problem]) -> list[dict[str, Any]]:
        return [{"line": one.line, "column": one.column, "message": one.message} for one in listed]

    return {"problems": rows(problems), "warnings": rows(warnings)}
