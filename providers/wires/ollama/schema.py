"""Tool schemas as Ollama's server can read them.

It decodes `parameters` into fixed structs and drops what it does not know: `$ref` and most constraints of a property.
So references are put in place, and the constraints that it would drop are said once more in the property's
description, where the model sees them. Nothing is taken out but `$defs`: newer servers keep more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from providers.wires.ollama.fields import Json

MAX_INLINED: Final = 256 * 1024
"""Bytes of JSON put in place of references in one schema. A few definitions that use each other twice would otherwise
fill the memory."""

_TOLD: Final = (
    "const",
    "default",
    "format",
    "pattern",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
)
"""Constraints that the server drops and that a model can follow when told."""


def tool_parameters(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema of a tool's arguments, ready to send; an empty object schema when the client gave none."""
    if not parameters:
        return {"type": "object", "properties": {}}
    found: dict[str, Any] = _Inliner(parameters).put(parameters, ())
    found.pop("$defs", None)
    found.pop("definitions", None)
    found.setdefault("type", "object")
    _tell_properties(found)
    return found


class _Inliner:
    """Puts references in place. One that leads nowhere, back to itself or beyond the bound becomes a bare object."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MAX_INLINED

    def put(self, node: Json, within: tuple[str, ...]) -> Json:
        """`within`: the references whose targets we are in."""
        if isinstance(node, list):
            return [self.put(item, within) for item in node]
        if not isinstance(node, Mapping):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            beside = self.put({key: value for key, value in node.items() if key != "$ref"}, within)
            target = _resolve(reference, self._root) if reference not in within and self._left > 0 else None
            if target is None:
                return {"type": "object", **beside}
            self._left -= len(orjson.dumps(target))
            return {**self.put(target, (*within, reference)), **beside}
        skipped = ("$defs", "definitions") if node is self._root else ()
        found = {key: self.put(value, within) for key, value in node.items() if key not in skipped}
        parts = found.get("allOf")
        if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
            del found["allOf"]
            merged: dict[str, Any] = {}
            for part in [*parts, found]:
                for key, value in part.items():
                    held = merged.get(key)
                    if key == "properties" and isinstance(held, dict) and isinstance(value, dict):
                        merged[key] = {**held, **value}
                    elif key == "required" and isinstance(held, list) and isinstance(value, list):
                        merged[key] = list(dict.fromkeys([*held, *value]))
                    else:
                        merged[key] = value
            found = merged
        if "oneOf" in found and "anyOf" not in found:
            found["anyOf"] = found.pop("oneOf")
        return found


def _resolve(reference: str, root: Mapping[str, Any]) -> Json:
    """A reference within the document, by JSON pointer; None for anything else."""
    if not reference.startswith("#"):
        return None
    node: Any = root
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node if isinstance(node, Mapping) and node is not root else None


def _tell_properties(node: Mapping[str, Any]) -> None:
    """Describe the constraints of every property below `node`, which is ours to change."""
    properties = node.get("properties")
    if isinstance(properties, dict):
        for value in properties.values():
            if isinstance(value, dict):
                _tell(value)
    for key in ("anyOf", "items"):
        inner = node.get(key)
        for item in inner if isinstance(inner, list) else (inner,):
            if isinstance(item, dict):
                _tell_properties(item)


def _tell(node: dict[str, Any]) -> None:
    facts = [f"{key}: {_shown(node[key])}" for key in _TOLD if key in node]
    if "const" in node and "enum" not in node:
        node["enum"] = [node["const"]]
    if facts:
        told = f"({'; '.join(facts)})"
        given = node.get("description")
        node["description"] = f"{given} {told}" if isinstance(given, str) and given else told
    _tell_properties(node)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
