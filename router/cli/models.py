"""`switchyard models`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.common import ConfigOption, JsonOption, print_json, print_table, read_config, snapshot_of

if TYPE_CHECKING:
    from router.config import Config
    from router.routing import Rights
    from router.snapshot import Entry

ABILITIES = ("vision", "audio", "files", "tools", "schema", "reasoning", "embeddings")


def models(
    config: ConfigOption = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that cannot be asked for now.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models of the config that can be asked for, and the patterns for other names.

    What a running router found at its servers besides is at GET /v1/models.
    """
    from router.routing import visible

    loaded = read_config(config)
    snapshot = snapshot_of(loaded)
    entries = snapshot.models if every else visible(snapshot, _rights(loaded))
    patterns = {name: [target.to for target in row.targets] for name, row in loaded.models.items() if "*" in name}
    if as_json:
        print_json({"models": [_plain(entry) for entry in entries], "patterns": patterns})
        return
    rows = [
        [entry.id, ", ".join(entry.providers), "local" if entry.local else "", "" if entry.on else "off", _able(entry)]
        for entry in entries
    ]
    for name, targets in patterns.items():
        off = all(snapshot.providers[target.partition("/")[0]].off is not None for target in targets)
        if every or not off:
            rows.append([name, ", ".join(targets), "", "off" if off else "", "pattern"])
    print_table(("model", "provider", "where", "state", "can"), rows)


def _rights(config: Config) -> Rights:
    """What any key may use: nothing without a price, where the config refuses that."""
    from router.prices import load_prices
    from router.routing import Rights

    if config.prices.unpriced != "refuse":
        return Rights()
    prices, now = load_prices(config), time.time()
    return Rights(payable=lambda target: prices.find(target.provider, target.model, now) is not None)


def _able(entry: Entry) -> str:
    return " ".join(name for name in ABILITIES if getattr(entry.capabilities, name))


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "providers": list(entry.providers),
        "local": entry.local,
        "on": entry.on,
        "context_length": entry.context_length,
        "capabilities": {name: able for name in ABILITIES if (able := getattr(entry.capabilities, name)) is not None},
    }
