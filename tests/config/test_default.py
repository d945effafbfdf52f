"""The default config and what is made from the types: the schema and the settings page."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import yaml
from pydantic import BaseModel

from router.config import Config, Facts, load_config
from router.config_schema import config_schema, schema_text
from router.routing import compile_snapshot

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "config/switchyard.yaml"
SEEDS = ["deepseek-r1:1.5b", "deepseek-r1:7b", "llama3.2", "llama3.2:3b", "llama3.2-vision:11b", "qwen2.5:7b", "llava"]


def test_the_default_needs_no_variable() -> None:
    config = load_config(DEFAULT, {})
    assert config.warnings == ()
    assert set(SEEDS) <= set(config.models)
    assert config.fallback[-1] == "demo/gemma-3-270m"
    assert config.redis.url.get_secret_value() == "embedded"
    assert all(listen.anonymous is None for listen in config.server.listen), "the keyless door is off by default"


def test_the_rows_in_comments_are_good_when_taken_in(tmp_path: Path) -> None:
    """Every commented line that looks like a row is uncommented, and the file is still good."""
    lines = DEFAULT.read_text().splitlines()
    taken: list[str] = []
    for line in lines:
        bare = line.lstrip().removeprefix("# ")
        is_row = line.lstrip().startswith("# ") and ": {" in bare and "${NAME}" not in bare and "..." not in bare
        if is_row or bare.startswith("- {host"):
            indent = line[: len(line) - len(line.lstrip())]
            if bare.startswith("gpt-4o-mini"):  # stands instead of the line before it
                taken.pop()
            taken.append(indent + bare)
        else:
            taken.append(line)
    file = tmp_path / "all.yaml"
    file.write_text("\n".join(taken))
    config = load_config(file, {})
    compile_snapshot(config)
    assert {"qwen", "openai2", "vllm", "anthropic"} <= set(config.providers)
    assert config.server.listen[1].anonymous == "guest"
    assert "fast" in config.models


def test_the_committed_schema_is_current() -> None:
    assert (ROOT / "config/switchyard.schema.json").read_text() == schema_text(), (
        "write it again: switchyard config schema > config/switchyard.schema.json"
    )


def test_the_default_names_its_schema_and_fits_it() -> None:
    first = DEFAULT.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./switchyard.schema.json"
    jsonschema.Draft202012Validator.check_schema(config_schema())
    jsonschema.validate(yaml.safe_load(DEFAULT.read_text()), config_schema())


@pytest.mark.parametrize(
    ("tree", "fits"),
    [
        ({"server": {"listen": [{"port": "${PORT:-8080}"}]}}, True),
        ({"server": {"listen": [{"port": "8080"}]}}, False),
        ({"models": {"m": {"targets": ["p/x", {"to": "p/y", "weight": 2}]}}}, True),
        ({"models": {"m": {"targets": [{"too": "p/y"}]}}}, False),
        ({"providers": {"p": {"vendor": "nope"}}}, False),
        ({"providers": {"p": {"vendor": "kimi", "models": "discover", "capabilities": {"x": {"schema": True}}}}}, True),
    ],
)
def test_the_schema_says_what_the_loader_says(tree: dict[str, object], fits: bool) -> None:
    errors = list(jsonschema.Draft202012Validator(config_schema()).iter_errors(tree))
    assert (not errors) is fits, json.dumps(tree)


def settings_of(model: type[BaseModel], prefix: str) -> list[str]:
    """Every setting by the name under which config/README.md describes it."""
    names = {
        "providers": "providers.NAME", "models": "models.NAME",
        "server.listen": "server.listen[]", "models.NAME.targets": "models.NAME.targets[]",
        "providers.NAME.model_limits": "providers.NAME.model_limits.MODEL",
    }  # fmt: skip
    out = []
    for name, field in model.model_fields.items():
        full = f"{prefix}{field.alias or name}"
        out.append(full)
        if full.endswith(".capabilities"):
            continue
        for inner in models_in(field.annotation):
            out += settings_of(inner, f"{names.get(full, full)}.")
    return out


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]


def test_every_setting_has_a_line() -> None:
    page = (ROOT / "config/README.md").read_text()
    wanted = settings_of(Config, "") + settings_of(Facts, "capabilities.")
    assert "server.listen[].port" in wanted
    assert "models.NAME.targets[].to" in wanted
    assert [name for name in wanted if f"| `{name}` |" not in page] == []


def test_the_default_compiles_and_answers_from_the_local_end() -> None:
    snapshot = compile_snapshot(load_config(DEFAULT, {}))
    on = {name for name, provider in snapshot.providers.items() if provider.off is None}
    assert on == {"local", "demo"}
    wanted = {
        "openai": "OPENAI_API_KEY",
        "gemini": "GEMINI_API_KEY",
        "doubao": "ARK_API_KEY",
        "kimi": "MOONSHOT_API_KEY",
        "deepseek": "DEEPSEEK_API_KEY",
    }
    for name, variable in wanted.items():
        assert variable in (snapshot.providers[name].off or "")
        keyed = compile_snapshot(load_config(DEFAULT, {variable: "k"})).providers[name]
        assert keyed.off is None
        assert keyed.base_url.startswith("https://")
    for name in [*SEEDS, "gpt-4o-mini", "gemini-2.5-flash", "doubao-seed-1-6-250615", "kimi-k3", "deepseek-chat"]:
        assert snapshot.route(name).fallback[-1].name == "demo/gemma-3-270m"
    assert str(snapshot.route("deepseek-r1:14b").tiers[0][0].attempt) == "local/deepseek-r1:14b"
