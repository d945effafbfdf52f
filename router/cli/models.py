"""`switchyard models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.common import ConfigOption, JsonOption, print_json, print_table, read_config, snapshot_of

if TYPE_CHECKING:
    from router.snapshot import Entry

ABILITIES = ("vision", "audio", "files", "tools", "schema", "reasoning", "embeddings")


def models(
    config: ConfigOption = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those whose providers are off.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models of the config that can be asked for, and the patterns for other names.

    What a running router found at its servers besides is at GET /v1/models.
    """
    loaded = read_config(config)
    snapshot = snapshot_of(loaded)
    entries = snapshot.models if every else snapshot.listed
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
    print_table(("model", "provider", "", "", "can"), rows)


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
