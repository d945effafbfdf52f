"""`switchyard providers` and `switchyard providers test NAME`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table, read_config, snapshot_of

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List the providers and why one is off, or try one.",
)


@app.callback()
def providers(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the providers, and for each that is off why."""
    if ctx.invoked_subcommand is not None:
        return
    rows = snapshot_of(read_config(config)).providers.values()
    if as_json:
        print_json(
            [
                {
                    "name": row.name,
                    "vendor": row.vendor.name,
                    "base_url": row.base_url,
                    "local": row.local,
                    "on": row.off is None,
                    "off": row.off,
                }
                for row in rows
            ]
        )
        return
    print_table(
        ("provider", "vendor", "state", "about"),
        (
            [row.name, row.vendor.name, "off" if row.off else "on", row.off or row.base_url or "runs by itself"]
            for row in rows
        ),
    )


@app.command("test")
def try_one(
    name: Annotated[str, typer.Argument(help="The provider's name in the config.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reach one provider: ask for its model list, or connect where it has none. Ends with 1 when it does not answer."""
    from router.cli.probe import probe_all

    found = snapshot_of(read_config(config)).providers
    provider = found.get(name)
    if provider is None:
        near = get_close_matches(name, found, n=1)
        fail(f"there is no provider {name}" + (f"; did you mean {near[0]}?" if near else ""), 2)
    if provider.off is not None:
        reached, answer = False, f"is off: {provider.off}"
    else:
        reached, answer = probe_all([provider])[name]
    if as_json:
        print_json({"name": name, "reached": reached, "answer": answer})
    else:
        typer.echo(f"{name}: {answer}")
    if not reached:
        raise typer.Exit(1)
