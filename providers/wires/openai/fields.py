"""Checks of the single fields of an OpenAI body: type, bounds, and the value as we use it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

from providers.call import (
    ResponseFormat,
    Tool,
    ToolChoice,
)
from providers.errors import InvalidRequest
from providers.wires.openai.tables import (
    EFFORTS,
    MAX_BIAS,
    MAX_MODEL,
    MAX_STOPS,
    MAX_TOOLS,
)

Check = Callable[[str, Any], Any]
"""Takes a field's name and its value (never None) and gives the value as we use it, or raises InvalidRequest."""


def refuse(message: str, param: str, code: str | None = None) -> NoReturn:
    raise InvalidRequest(message, param=param, native_code=code)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[a-zA-Z0-9_.:$-]{1,64}\Z")


def kind_of(value: Any) -> str:
    return {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }.get(type(value), "null")


def model(name: str, value: Any) -> str:
    if type(value) is not str:
        refuse(f"{name} must be a string, not {kind_of(value)}", name, "invalid_type")
    if not value or len(value) > MAX_MODEL or _CONTROL.search(value):
        refuse(f"{name} must be a model's name of 1 to {MAX_MODEL} characters", name, "invalid_value")
    return value


def boolean(name: str, value: Any) -> bool:
    if type(value) is not bool:
        refuse(f"{name} must be true or false, not {kind_of(value)}", name, "invalid_type")
    return value


def text(name: str, value: Any) -> str:
    if type(value) is not str:
        refuse(f"{name} must be a string, not {kind_of(value)}", name, "invalid_type")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        refuse(f"{name} must be an object, not {kind_of(value)}", name, "invalid_type")
    return value


def number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> float:
        kind = type(value)
        if kind is not float and kind is not int:
            refuse(f"{name} must be a number, not {kind_of(value)}", name, "invalid_type")
        if not low <= value <= high:
            refuse(f"{name} must be between {low:g} and {high:g}", name, "invalid_value")
        return float(value)

    return check


def integer(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        kind = type(value)
        if kind is float and value.is_integer():
            value = int(value)
        elif kind is not int:
            refuse(f"{name} must be an integer, not {kind_of(value)}", name, "invalid_type")
        if not low <= value <= high:
            refuse(f"{name} must be between {low} and {high}", name, "invalid_value")
        return int(value)

    return check


def stop(name: str, value: Any) -> tuple[str, ...]:
    if type(value) is str:
        return (value,) if value else ()
    if type(value) is not list:
        refuse(f"{name} must be a string or an array of strings", name, "invalid_type")
    if len(value) > MAX_STOPS:
        refuse(f"{name} may hold at most {MAX_STOPS} strings", name, "array_above_max_length")
    for index, item in enumerate(value):
        if type(item) is not str or not item:
            refuse(f"{name}[{index}] must be a string that is not empty", f"{name}[{index}]", "invalid_type")
    return tuple(value)


def bias(name: str, value: Any) -> dict[str, float]:
    found = _object(name, value)
    if len(value) > MAX_BIAS:
        refuse(f"{name} may hold at most {MAX_BIAS} entries", name, "object_above_max_length")
    for token, weight in value.items():
        if type(weight) not in (int, float) or not -100 <= weight <= 100:
            refuse(
                f"{name} must map token ids to numbers between -100 and 100", f"{name}.{token[:40]}", "invalid_value"
            )
    return found


def metadata(name: str, value: Any) -> dict[str, Any]:
    found = _object(name, value)
    if len(found) > 64:
        refuse(f"{name} may hold at most 64 pairs", name, "object_above_max_length")
    return found


def effort(name: str, value: Any) -> str:
    if type(value) is not str or value not in EFFORTS:
        refuse(f"{name} must be one of {', '.join(EFFORTS)}", name, "invalid_value")
    return value


def stream_options(name: str, value: Any) -> dict[str, Any]:
    found = _object(name, value)
    usage = found.get("include_usage")
    if usage is not None and type(usage) is not bool:
        refuse(f"{name}.include_usage must be true or false", f"{name}.include_usage", "invalid_type")
    return found


def modalities(name: str, value: Any) -> list[str]:
    if type(value) is not list or not all(type(item) is str for item in value):
        refuse(f"{name} must be an array of strings", name, "invalid_type")
    return value


# --- tools and formats -----------------------------------------------------------------------------------------------


def _function(spec: Any, where: str) -> Tool:
    if type(spec) is not dict:
        refuse(f"{where} must be an object", where, "missing_required_parameter" if spec is None else "invalid_type")
    name = spec.get("name")
    if type(name) is not str or not _NAME.match(name):
        refuse(f"{where}.name must be 1 to 64 of the characters a-z A-Z 0-9 _ -", f"{where}.name", "invalid_value")
    description, parameters, strict = spec.get("description"), spec.get("parameters"), spec.get("strict")
    if description is not None and type(description) is not str:
        refuse(f"{where}.description must be a string", f"{where}.description", "invalid_type")
    if parameters is not None and type(parameters) is not dict:
        refuse(f"{where}.parameters must be an object (JSON Schema)", f"{where}.parameters", "invalid_type")
    if strict is not None and type(strict) is not bool:
        refuse(f"{where}.strict must be true or false", f"{where}.strict", "invalid_type")
    return Tool(name, description, parameters, strict)


def tools(name: str, value: Any) -> tuple[Tool, ...]:
    if type(value) is not list:
        refuse(f"{name} must be an array", name, "invalid_type")
    if len(value) > MAX_TOOLS:
        refuse(f"{name} may hold at most {MAX_TOOLS} tools", name, "array_above_max_length")
    found: list[Tool] = []
    for index, item in enumerate(value):
        where = f"{name}[{index}]"
        if type(item) is not dict:
            refuse(f"{where} must be an object", where, "invalid_type")
        kind = item.get("type")
        if kind == "function":
            found.append(_function(item.get("function"), f"{where}.function"))
        elif type(kind) is str and kind:
            inner = item.get(kind) or item.get("function")
            named = inner.get("name") if type(inner) is dict else None
            found.append(Tool(named if type(named) is str else kind, extras=item))
        else:
            refuse(f"{where}.type is missing: send 'function'", f"{where}.type", "missing_required_parameter")
    return tuple(found)


def functions(name: str, value: Any) -> tuple[Tool, ...]:
    if type(value) is not list:
        refuse(f"{name} must be an array", name, "invalid_type")
    if len(value) > MAX_TOOLS:
        refuse(f"{name} may hold at most {MAX_TOOLS} functions", name, "array_above_max_length")
    return tuple(_function(item, f"{name}[{index}]") for index, item in enumerate(value))


def _named(spec: Any, where: str) -> str:
    name = spec.get("name") if type(spec) is dict else None
    if type(name) is not str or not name:
        refuse(f"{where}.name must name a tool", f"{where}.name", "missing_required_parameter")
    return name


def tool_choice(name: str, value: Any) -> tuple[ToolChoice, frozenset[str] | None]:
    """The choice, and the names it allows (None: all)."""
    if type(value) is str:
        if value in ("auto", "none", "required"):
            return ToolChoice(value), None  # type: ignore[arg-type]  # the line above narrows to the three words
        if value == "any":  # Mistral's word
            return ToolChoice("required"), None
    elif type(value) is dict:
        kind = value.get("type")
        if kind == "allowed_tools":
            allowed = value.get("allowed_tools")
            if type(allowed) is not dict:
                refuse(f"{name}.allowed_tools must be an object", f"{name}.allowed_tools", "invalid_value")
            tools = allowed.get("tools")
            if type(tools) is not list or allowed.get("mode") not in ("auto", "required"):
                refuse(f"{name}.allowed_tools needs mode and tools", f"{name}.allowed_tools", "invalid_value")
            names = frozenset(
                _named(
                    item.get(item.get("type")) if type(item) is dict else None, f"{name}.allowed_tools.tools[{index}]"
                )
                for index, item in enumerate(tools)
            )
            return ToolChoice(allowed["mode"]), names
        if type(kind) is str and kind:
            return ToolChoice("named", _named(value.get(kind) or value.get("function"), f"{name}.{kind}")), None
    refuse(f"{name} must be 'none', 'auto', 'required' or name a tool", name, "invalid_value")


def function_call(name: str, value: Any) -> tuple[ToolChoice, frozenset[str] | None]:
    if value in ("auto", "none"):
        return ToolChoice(value), None
    if type(value) is dict:
        return ToolChoice("named", _named(value, name)), None
    refuse(f"{name} must be 'none', 'auto' or name a function", name, "invalid_value")


def response_format(name: str, value: Any) -> ResponseFormat:
    kind = value.get("type") if type(value) is dict else None
    if kind == "text":
        return ResponseFormat("text")
    if kind == "json_object":
        return ResponseFormat("json")
    if kind != "json_schema":
        refuse(f"{name}.type must be 'text', 'json_object' or 'json_schema'", f"{name}.type", "invalid_value")
    spec = value.get("json_schema")
    where = f"{name}.json_schema"
    if type(spec) is not dict:
        refuse(f"{where} must be an object", where, "missing_required_parameter")
    schema, label, strict = spec.get("schema"), spec.get("name"), spec.get("strict")
    if type(schema) is not dict:
        refuse(f"{where}.schema must be an object", f"{where}.schema", "missing_required_parameter")
    if type(label) is not str or not _NAME.match(label):
        refuse(f"{where}.name must be 1 to 64 of the characters a-z A-Z 0-9 _ -", f"{where}.name", "invalid_value")
    if strict is not None and type(strict) is not bool:
        refuse(f"{where}.strict must be true or false", f"{where}.strict", "invalid_type")
    described = spec.get("description")
    return ResponseFormat("schema", schema, label, described if type(described) is str else None, strict)
