"""The config's JSON Schema, for editors and for `check-jsonschema`. Made from the types."""

from __future__ import annotations

import json
from typing import Any, Final

from providers.registry import VENDORS
from router.config import Config

_REFERENCE: Final = {"type": "string", "pattern": r"\$\{[A-Za-z_]"}
_SCALARS: Final = frozenset({"integer", "number", "boolean"})


def config_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file as it is written, that is before `${NAME}` is expanded."""
    schema: dict[str, Any] = _with_references(Config.model_json_schema(by_alias=True))
    definitions = schema["$defs"]
    definitions["ProviderConfig"]["properties"]["vendor"]["enum"] = list(VENDORS)
    targets = definitions["ModelConfig"]["properties"]["targets"]
    targets["items"] = {"anyOf": [{"type": "string", "minLength": 1}, targets["items"]]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Switchyard config",
        "description": "See config/README.md.",
    }


def _with_references(node: Any) -> Any:  # any JSON
    """The schema in which every number and bool may also be written as text with a `${NAME}` in it."""
    if isinstance(node, list):
        return [_with_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") in _SCALARS:
        outer = {key: node[key] for key in ("description", "default", "title") if key in node}
        inner = {key: value for key, value in node.items() if key not in outer}
        return {"anyOf": [inner, _REFERENCE], **outer}
    return {key: _with_references(value) for key, value in node.items()}


def schema_text() -> str:
    """The schema as the committed file holds it."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"
