"""Kimi (Moonshot). Wire: chat completions. Docs: https://platform.moonshot.ai/docs

Keys of platform.moonshot.ai work at https://api.moonshot.ai/v1 only: say it as `base_url`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from providers.call import Call
from providers.compatible import OpenAICompatible, Quirks
from providers.errors import UnsupportedFeature
from providers.vendor import ModelFacts, Vendor

_SAMPLING: Final = frozenset({"temperature", "top_p", "n", "presence_penalty", "frequency_penalty"})
"""Fixed for each model since K2.5: any other value is refused with 400, so none is sent."""

_QUIRKS: Final = Quirks(
    drop=_SAMPLING
    | {"seed", "logit_bias", "store", "metadata", "service_tier", "verbosity", "modalities", "audio", "moderation"}
    | {"web_search_options", "parallel_tool_calls", "top_k", "min_p", "repetition_penalty", "prompt_cache_retention"},
    rename={"user": "safety_identifier"},
    max_tokens="max_completion_tokens",
    reasoning_in="thinking",
    reasoning_echo="tools",
    images="data",  # public URLs are not fetched
    details={"*": None},
    audio=False,
    files=False,
    empty_text=False,
    tool_name_min=3,
    stops=5,
    completions=False,
    embeddings=False,
    choices=False,
)
_THINKING_TOOLS: Final = frozenset({"auto", "none"})
_EFFORTS: Final = {"minimal": "low", "medium": "high", "xhigh": "max"}
_K3: Final = msgspec.structs.replace(
    _QUIRKS, reasoning_in="thinking_effort", efforts=_EFFORTS, tool_choice=frozenset({"auto", "none", "required"})
)
_K2_CODE: Final = msgspec.structs.replace(_QUIRKS, tool_choice=_THINKING_TOOLS, effort_off=None)
"""Thinks always: a wish to turn it off is not sent."""
_V1: Final = msgspec.structs.replace(
    _QUIRKS, drop=_QUIRKS.drop - _SAMPLING, choices=True, reasoning_in="none", reasoning_echo="drop", tool_name_min=1
)


_UNTYPED: Final = frozenset({"type", "$ref", "anyOf", "oneOf", "allOf", "not"})
"""With one of these a schema needs no `type` of its own, or has it."""
_SHAPES: Final = (
    ("object", frozenset({"properties", "required", "additionalProperties"})),
    ("array", frozenset({"items", "minItems", "maxItems", "prefixItems"})),
    ("number", frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})),
)
"""What a schema without `type` must be, by what it says; a string when it says nothing."""
_TYPES: Final[Mapping[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def typed(schema: Any) -> Any:
    """A JSON schema as Kimi takes it: every schema in it has a type, and none has one beside `anyOf`."""
    if type(schema) is not dict:
        return schema
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("properties", "$defs", "definitions") and type(value) is dict:
            found[name] = {key: typed(inner) for key, inner in value.items()}
        elif name in ("items", "additionalProperties"):
            found[name] = typed(value)
        elif name in ("anyOf", "oneOf", "allOf") and type(value) is list:
            found[name] = [
                typed({"type": schema["type"], **inner} if _lacks_type(schema, inner) else inner) for inner in value
            ]
        else:
            found[name] = value
    if "anyOf" in found or "oneOf" in found:
        found.pop("type", None)
    elif _UNTYPED.isdisjoint(found):
        found["type"] = _type_of(found)
    return found


def _lacks_type(schema: Mapping[str, Any], branch: Any) -> bool:
    return "type" in schema and type(branch) is dict and _UNTYPED.isdisjoint(branch)


def _type_of(schema: Mapping[str, Any]) -> str | list[str]:
    values = schema["enum"] if type(schema.get("enum")) is list else [schema["const"]] if "const" in schema else []
    kinds = list(dict.fromkeys(_TYPES.get(type(value), "string") for value in values))
    if kinds:
        return kinds[0] if len(kinds) == 1 else kinds
    return next((kind for kind, words in _SHAPES if not words.isdisjoint(schema)), "string")


def _rooted(schema: Any) -> Any:
    """A whole schema: its root is an object."""
    return {"type": "object", **typed({"type": "object", **schema})} if type(schema) is dict else schema


def _patch_schemas(body: dict[str, Any]) -> None:
    tools = body.get("tools")
    if tools:
        body["tools"] = [_typed_tool(tool) for tool in tools]
    wanted = body.get("response_format")
    spec = wanted.get("json_schema") if type(wanted) is dict else None
    if type(wanted) is dict and type(spec) is dict and "schema" in spec:
        body["response_format"] = {**wanted, "json_schema": {**spec, "schema": _rooted(spec["schema"])}}


def _typed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if type(function) is not dict or "parameters" not in function:
        return tool
    return {**tool, "function": {**function, "parameters": _rooted(function["parameters"])}}


class Kimi(OpenAICompatible):
    def body(self, call: Call, sent_model: str) -> dict[str, Any]:
        body = super().body(call, sent_model)
        _patch_schemas(body)
        choice = call.tool_choice
        if choice is None or not call.tools or choice.mode in _THINKING_TOOLS or not sent_model.startswith("kimi-k2"):
            return body
        thinking = body.get("thinking")
        if type(thinking) is dict and thinking.get("type") == "disabled":
            return body
        raise UnsupportedFeature(
            f"tool_choice '{choice.mode}' is not possible while this model thinks; turn reasoning off for the call",
            param="tool_choice",
        )

    def model_facts(self, row: Mapping[str, Any]) -> ModelFacts | None:
        facts = super().model_facts(row)
        if facts is None:
            return None
        known = {
            name: row[key]
            for key, name in (("supports_image_in", "vision"), ("supports_reasoning", "reasoning"))
            if type(row.get(key)) is bool
        }
        return msgspec.structs.replace(facts, capabilities=msgspec.structs.replace(facts.capabilities, **known))


VENDOR: Vendor = Kimi(
    "kimi",
    _QUIRKS,
    base_url="https://api.moonshot.cn/v1",
    key_env="MOONSHOT_API_KEY",
    by_model=(("kimi-k3*", _K3), ("kimi-k2.7-code*", _K2_CODE), ("moonshot-v1-*", _V1)),
)
