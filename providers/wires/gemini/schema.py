"""JSON Schema to Gemini's `Schema`, an OpenAPI subset: for models older than `parametersJsonSchema`.

Any other keyword makes Google refuse the whole request, so everything is either said in the subset, or noted in the
description, or (references that point nowhere, endless nesting) refused as UnsupportedFeature. Keys inside
`properties` are the user's names and are never touched. Sources: ai.google.dev/api/caching#Schema and the converters
of Google's own SDK.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from providers.errors import UnsupportedFeature

MAX_DEPTH: Final = 48
MAX_NODES: Final = 5000
"""References are written out in place; a small schema can grow without end that way."""

TYPES: Final = frozenset({"string", "number", "integer", "boolean", "array", "object"})
FORMATS: Final = {
    "string": frozenset({"enum", "date-time"}),
    "number": frozenset({"float", "double"}),
    "integer": frozenset({"int32", "int64"}),
}
COUNTS: Final = ("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength")
BOUNDS: Final = ("minimum", "maximum")
NOTED: Final = ("multipleOf", "uniqueItems", "contentEncoding", "contentMediaType")
"""What the subset cannot say and a model can read: put into the description. All other unknown keywords are dropped."""


def to_schema(schema: object, *, param: str) -> dict[str, Any]:
    """Raises UnsupportedFeature naming `param` and nothing else."""
    return _Converter(schema, param).convert(schema, (), 0)


def is_empty_object(schema: object) -> bool:
    """An object without properties: older models refuse to hear of it."""
    return isinstance(schema, Mapping) and schema.get("type") == "object" and not schema.get("properties")


def _number(value: object) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


class _Converter:
    def __init__(self, root: object, param: str) -> None:
        self._root = root
        self._param = param
        self._nodes = 0

    def _refuse(self, why: str) -> UnsupportedFeature:
        return UnsupportedFeature(f"a JSON schema cannot be said to Gemini: {why}", param=self._param)

    def convert(self, node: object, seen: tuple[str, ...], depth: int) -> dict[str, Any]:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise self._refuse("it nests too deep or grows too large with its references written out")
        if isinstance(node, bool):
            return {}
        if not isinstance(node, Mapping):
            raise self._refuse("a schema must be an object")
        if "$ref" in node:
            return self._reference(node, seen, depth)
        if isinstance(node.get("allOf"), list):
            return self._all_of(node, seen, depth)
        for keyword in ("anyOf", "oneOf"):
            if isinstance(node.get(keyword), list):
                return self._any_of(node, keyword, seen, depth)
        kinds = node.get("type")
        if isinstance(kinds, list):
            rest = {key: value for key, value in node.items() if key not in ("type", "description", "title")}
            options = [{**rest, "type": kind} for kind in kinds]
            about = {key: node[key] for key in ("description", "title") if key in node}
            return self._any_of({**about, "anyOf": options}, "anyOf", seen, depth)
        return self._plain(node, seen, depth)

    def _reference(self, node: Mapping[str, Any], seen: tuple[str, ...], depth: int) -> dict[str, Any]:
        name = node["$ref"]
        if not isinstance(name, str):
            raise self._refuse("$ref must be a string")
        if name in seen:
            return {"type": "OBJECT", "description": f"the same again: {name.rsplit('/', 1)[-1]}"}
        target = self._root
        if not name.startswith("#"):
            raise self._refuse(f"$ref {name[:80]!r} points outside of it")
        for step in filter(None, name[1:].split("/")):
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise self._refuse(f"$ref {name[:80]!r} points nowhere")
        found = self.convert(target, (*seen, name), depth + 1)
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return _merge(self.convert(rest, seen, depth + 1), found) if rest else found

    def _all_of(self, node: Mapping[str, Any], seen: tuple[str, ...], depth: int) -> dict[str, Any]:
        merged = self.convert({key: value for key, value in node.items() if key != "allOf"}, seen, depth + 1)
        for part in node["allOf"]:
            merged = _merge(merged, self.convert(part, seen, depth + 1))
        return merged

    def _any_of(self, node: Mapping[str, Any], keyword: str, seen: tuple[str, ...], depth: int) -> dict[str, Any]:
        options = [item for item in node[keyword] if not (isinstance(item, Mapping) and item.get("type") == "null")]
        rest = {key: value for key, value in node.items() if key != keyword}
        said = self.convert(rest, seen, depth + 1) if rest else {}
        if len(options) < len(node[keyword]):
            said["nullable"] = True
        converted = [self.convert(item, seen, depth + 1) for item in options]
        if len(converted) == 1:
            return _merge(said, converted[0])
        if converted:
            said["anyOf"] = converted
        return said

    def _plain(self, node: Mapping[str, Any], seen: tuple[str, ...], depth: int) -> dict[str, Any]:
        said: dict[str, Any] = {}
        notes: list[str] = []
        raw = node.get("type")
        kind = raw.lower() if isinstance(raw, str) else ("object" if "properties" in node else "")
        if kind == "null":
            return {"nullable": True}
        if kind in TYPES:
            said["type"] = kind.upper()
        for key in ("title", "pattern"):
            if isinstance(node.get(key), str):
                said[key] = node[key]
        if isinstance(node.get("nullable"), bool):
            said["nullable"] = node["nullable"]
        if node.get("default") is not None:
            said["default"] = node["default"]
        self._enum(node, kind, said, notes)
        form = node.get("format")
        if isinstance(form, str) and form in FORMATS.get(kind, ()):
            said["format"] = form
        elif isinstance(form, str):
            notes.append(f"format: {form}")
        self._limits(node, kind, said)
        notes += [f"{key}: {_text(node[key])}" for key in NOTED if key in node]
        if kind == "array":
            items = node.get("items")
            said["items"] = self.convert(items, seen, depth + 1) if items is not None else {}
            said["items"] = said["items"] or {"type": "STRING"}
            if "prefixItems" in node:
                notes.append(f"prefixItems: {_text(node['prefixItems'])}")
        if kind == "object":
            self._properties(node, said, seen, depth)
        description = node.get("description")
        words = [description] if isinstance(description, str) and description else []
        if notes:
            words.append("(" + "; ".join(notes) + ")")
        if words:
            said["description"] = " ".join(words)
        return said

    def _enum(self, node: Mapping[str, Any], kind: str, said: dict[str, Any], notes: list[str]) -> None:
        values = node.get("enum")
        if "const" in node:
            values = [node["const"]]
        if not isinstance(values, list):
            return
        if None in values:
            said["nullable"] = True
            values = [value for value in values if value is not None]
        if values and kind in ("string", "") and all(isinstance(value, str) for value in values):
            said["type"] = "STRING"
            said["enum"] = values
        elif values:
            # Only strings may be listed; a number turned into a string would come back as a string.
            notes.append("one of: " + ", ".join(_text(value) for value in values))

    def _limits(self, node: Mapping[str, Any], kind: str, said: dict[str, Any]) -> None:
        for key in COUNTS:
            count = _number(node.get(key))
            if count is not None and count >= 0:
                said[key] = int(count)
        for key in BOUNDS:
            bound = _number(node.get(key))
            if bound is not None:
                said[key] = bound
        for key, into, step in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
            bound = _number(node.get(key))
            if bound is not None and into not in said:
                said[into] = bound + step if kind == "integer" else bound

    def _properties(self, node: Mapping[str, Any], said: dict[str, Any], seen: tuple[str, ...], depth: int) -> None:
        properties = node.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            return
        said["properties"] = {str(key): self.convert(value, seen, depth + 1) for key, value in properties.items()}
        required = node.get("required")
        if isinstance(required, list):
            kept = list(dict.fromkeys(name for name in required if isinstance(name, str) and name in properties))
            if kept:
                said["required"] = kept
        said["propertyOrdering"] = list(said["properties"])


def _text(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()[:200]
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        # A value that is no JSON cannot come from a client's body; it is only shown to the model.
        return "?"


def _merge(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Both hold: properties together, required together, else the first one's word."""
    merged = {**two, **one}
    if "properties" in one and "properties" in two:
        merged["properties"] = two["properties"] | one["properties"]
        merged["properties"] = {key: merged["properties"][key] for key in (*one["properties"], *two["properties"])}
        merged["propertyOrdering"] = list(merged["properties"])
    required = [*one.get("required", ()), *two.get("required", ())]
    if required:
        merged["required"] = list(dict.fromkeys(required))
    return merged
