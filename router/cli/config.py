"""`switchyard config show` and `switchyard config schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.common import ConfigOption, JsonOption, print_json, read_config

if TYPE_CHECKING:
    from router.config import Config

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Show the config in force, or its JSON Schema.",
)

MASK = "**********"
_SECRET_WORDS = ("key", "secret", "token", "password", "credential")


@app.command()
def show(
    config: ConfigOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say which variables a setting comes from.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the config in force: defaults filled in, references expanded, secrets masked."""
    loaded = read_config(config)
    if as_json:
        print_json(shown(loaded))
        return
    import yaml

    text = yaml.safe_dump(shown(loaded), sort_keys=False, allow_unicode=True, width=120)
    typer.echo(f"# {loaded.origin.file}")
    typer.echo(text.rstrip())
    if origin:
        from router.config_check import dotted

        for path, names in sorted(loaded.origin.references.items(), key=lambda item: dotted(item[0])):
            typer.echo(f"# {dotted(path)}: from {', '.join(names)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the config file, for editors."""
    from router.config_schema import schema_text

    typer.echo(schema_text().rstrip())


def shown(config: Config) -> dict[str, Any]:
    """The config as plain values without its secrets."""
    plain: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    if config.redis.url.get_secret_value() == "embedded":
        plain["redis"]["url"] = "embedded"
    for provider in plain["providers"].values():
        provider["options"] = {name: _masked(name, value) for name, value in provider["options"].items()}
    return plain


def _masked(name: str, value: Any) -> Any:  # any YAML value
    """Options are the vendor's own, so a secret among them is known by its name only."""
    if any(word in name.lower() for word in _SECRET_WORDS):
        return MASK
    if isinstance(value, dict):
        return {inner: _masked(inner, below) for inner, below in value.items()}
    return value
