"""JSON Schema to Gemini's subset."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.errors import UnsupportedFeature
from providers.wires.gemini.schema import to_schema

ALLOWED = frozenset(
    [
        "type",
        "format",
        "title",
        "description",
        "nullable",
        "enum",
        "items",
        "minItems",
        "maxItems",
        "properties",
        "required",
        "minProperties",
        "maxProperties",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
        "example",
        "anyOf",
        "propertyOrdering",
        "default",
    ]
)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        pytest.param({"type": ["string", "null"]}, {"type": "STRING", "nullable": True}, id="nullable by type list"),
        pytest.param(
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": "d"},
            {"type": "INTEGER", "nullable": True, "description": "d"},
            id="nullable by anyOf",
        ),
        pytest.param(
            {"type": ["string", "integer"]}, {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, id="several types"
        ),
        pytest.param({"const": "a"}, {"type": "STRING", "enum": ["a"]}, id="const"),
        pytest.param(
            {"type": "integer", "enum": [1, 2]},
            {"type": "INTEGER", "description": "(one of: 1, 2)"},
            id="numbers cannot be listed",
        ),
        pytest.param(
            {"enum": ["a", None]}, {"nullable": True, "type": "STRING", "enum": ["a"]}, id="null among strings"
        ),
        pytest.param({"oneOf": [{"type": "string"}]}, {"type": "STRING"}, id="oneOf"),
        pytest.param(
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
                    {"properties": {"b": {"type": "number"}}, "required": ["b"]},
                ]
            },
            {
                "type": "OBJECT",
                "properties": {"a": {"type": "STRING"}, "b": {"type": "NUMBER"}},
                "required": ["a", "b"],
                "propertyOrdering": ["a", "b"],
            },
            id="allOf merges",
        ),
        pytest.param(
            {"$defs": {"P": {"type": "string"}}, "type": "array", "items": {"$ref": "#/$defs/P", "description": "d"}},
            {"type": "ARRAY", "items": {"type": "STRING", "description": "d"}},
            id="references are written out",
        ),
        pytest.param(
            {"type": "object", "properties": {"title": {"type": "string"}, "format": {"type": "string"}}},
            {
                "type": "OBJECT",
                "properties": {"title": {"type": "STRING"}, "format": {"type": "STRING"}},
                "propertyOrdering": ["title", "format"],
            },
            id="properties named like keywords stay",
        ),
        pytest.param(
            {"type": "string", "format": "email", "description": "Mail"},
            {"type": "STRING", "description": "Mail (format: email)"},
            id="unknown format is told in words",
        ),
        pytest.param({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}, id="known"),
        pytest.param({"type": "integer", "exclusiveMinimum": 3}, {"type": "INTEGER", "minimum": 4}, id="exclusive"),
        pytest.param({"type": "array"}, {"type": "ARRAY", "items": {"type": "STRING"}}, id="array without items"),
        pytest.param(
            {"type": "object", "properties": {"a": {}}, "required": ["a", "b", "a"], "additionalProperties": False},
            {"type": "OBJECT", "properties": {"a": {}}, "required": ["a"], "propertyOrdering": ["a"]},
            id="required names what exists",
        ),
    ],
)
def test_conversion(schema: Any, expected: Any) -> None:
    assert to_schema(schema, param="p") == expected


def test_a_cycle_is_cut() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}, "v": {"type": "integer"}}}
    found = to_schema(node, param="p")
    # The root is written out once more at the reference, then cut.
    assert found["properties"]["next"]["properties"]["next"] == {
        "type": "OBJECT",
        "description": "the same again: #",
    }


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"$ref": "#/nowhere"}, id="points nowhere"),
        pytest.param({"$ref": "https://example.com/s.json"}, id="points outside"),
        pytest.param({"$ref": 5}, id="no pointer"),
        pytest.param([], id="no object"),
        pytest.param({"type": "object", "properties": {"a": 5}}, id="a property that is no schema"),
        pytest.param(
            {
                "$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(20)},
                "$ref": "#/$defs/d0",
            },
            id="grows without end",
        ),
    ],
)
def test_refuses(schema: Any) -> None:
    with pytest.raises(UnsupportedFeature) as refused:
        to_schema(schema, param="tools[0]")
    assert refused.value.param == "tools[0]"


def keywords(schema: dict[str, Any]) -> None:
    """Only allowed keywords, at every place where a schema stands."""
    assert set(schema) <= ALLOWED
    for inner in schema.get("properties", {}).values():
        keywords(inner)
    for inner in schema.get("anyOf", ()):
        keywords(inner)
    if "items" in schema:
        keywords(schema["items"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "$ref",
        "$defs",
        "type",
        "properties",
        "items",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "const",
        "enum",
        "format",
        "required",
        "minimum",
        "exclusiveMaximum",
        "minLength",
        "multipleOf",
        "prefixItems",
        "nullable",
        "default",
        "title",
        "description",
        "additionalProperties",
        "definitions",
    ]
)
POINTERS = st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#/anyOf/0", "#/items", "x"])
TYPES = st.sampled_from(["string", "null", "integer", "array", "object", "number", "odd", ["string", "null"], []])
SCHEMAS = st.recursive(
    st.builds(dict, type=TYPES) | st.builds(lambda where: {"$ref": where}, POINTERS) | JSON,
    lambda inner: (
        st.dictionaries(NAMES, inner | POINTERS | TYPES, max_size=4)
        | st.builds(lambda a, b: {"type": "object", "properties": {"a": a}, "$defs": {"a": b}}, inner, inner)
        | st.builds(lambda items: {"anyOf": items}, st.lists(inner, max_size=3))
    ),
    max_leaves=12,
)


@given(SCHEMAS)
@settings(max_examples=300, deadline=None)
def test_gives_the_subset_or_refuses(schema: Any) -> None:
    try:
        found = to_schema(schema, param="p")
    except UnsupportedFeature:
        return
    keywords(found)
