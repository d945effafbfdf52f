"""A client's body to a `Call`: chat, generate, embed and embeddings, with the refusals a real Ollama gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

import orjson

from providers.call import (
    NO_REASONING,
    NO_SAMPLING,
    Call,
    Image,
    Message,
    Part,
    Reasoning,
    ResponseFormat,
    Role,
    Sampling,
    Text,
    Tool,
    ToolResult,
    ToolUse,
    needs_of,
)
from providers.errors import InvalidRequest, ModelNotFound, NotFound
from providers.wires.ollama import fields

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "developer",
}
_JSON: Final = ResponseFormat(kind="json")


def read_call(op: str, body: Mapping[str, Any]) -> Call:
    """Raises InvalidRequest (or ModelNotFound for an empty name, where Ollama says 404)."""
    if op not in fields.OPS:
        raise NotFound("404 page not found")
    body = fields.known_keys(op, body)
    model = fields.string(op, body, "model")
    match op:
        case "chat":
            return _chat(model, body)
        case "generate":
            return _generate(model, body)
        case "embed":
            return _embed(model, body)
        case _:
            return _embeddings(model, body)


def _chat(model: str, body: Mapping[str, Any]) -> Call:
    messages = _messages(body.get("messages"))
    tools = _tools(body.get("tools"))
    common = _common("chat", body)
    if not model:
        raise InvalidRequest("model is required", param="model")
    return Call(
        wire="ollama",
        op="chat",
        kind="chat",
        asked_model=model,
        raw=body,
        messages=messages,
        tools=tools,
        needs=needs_of("chat", messages, tools=bool(tools), **_wants(common)),
        **common,
    )


def _generate(model: str, body: Mapping[str, Any]) -> Call:
    op = "generate"
    prompt = fields.string(op, body, "prompt")
    suffix = fields.string(op, body, "suffix") or None
    system = fields.string(op, body, "system")
    template = fields.string(op, body, "template")
    raw = bool(fields.boolean(op, body, "raw"))
    context = body.get("context")
    if context is not None:
        if not isinstance(context, list):
            fields.mistyped(op, "context", context, "[]int")
        for token in context:
            if not isinstance(token, int) or isinstance(token, bool):
                fields.mistyped(op, "context", token, "int")
    images = _images(op, "images", body.get("images"))
    common = _common(op, body)
    if not model:
        raise ModelNotFound("")
    if raw and (system or template or context is not None):
        raise InvalidRequest("raw mode does not support template, system, or context", param="raw")
    if raw or suffix is not None:
        if images:
            raise InvalidRequest("images cannot be combined with raw or suffix here: use /api/chat", param="images")
        return Call(
            wire="ollama",
            op=op,
            kind="text",
            asked_model=model,
            raw=body,
            prompt=prompt,
            suffix=suffix,
            untemplated=raw,
            needs=needs_of("text", (), prompt=prompt + (suffix or ""), **_wants(common)),
            **common,
        )
    turns: list[Message] = []
    if system:
        turns.append(Message("system", (Text(system),)))
    if prompt:
        turns.append(Message("user", (Text(prompt), *images)))
    messages = tuple(turns)
    return Call(
        wire="ollama",
        op=op,
        kind="chat",
        asked_model=model,
        raw=body,
        messages=messages,
        prompt=prompt,
        needs=needs_of("chat", messages, **_wants(common)),
        **common,
    )


def _embed(model: str, body: Mapping[str, Any]) -> Call:
    given = body.get("input")
    match given:
        case None:
            inputs: tuple[str, ...] = ()
        case str():
            inputs = (given,) if given else ()
        case list() if all(isinstance(item, str) for item in given):
            inputs = tuple(given)
        case _:
            raise InvalidRequest("invalid input type", param="input")
    dimensions = fields.integer("embed", body, "dimensions")
    return _vectors("embed", model, body, inputs, dimensions or None, fields.boolean("embed", body, "truncate"))


def _embeddings(model: str, body: Mapping[str, Any]) -> Call:
    prompt = fields.string("embeddings", body, "prompt")
    return _vectors("embeddings", model, body, (prompt,) if prompt else (), None, None)


def _vectors(
    op: str, model: str, body: Mapping[str, Any], inputs: tuple[str, ...], dimensions: int | None, truncate: bool | None
) -> Call:
    leftover = fields.options(op, body)
    fields.keep_alive(body)
    if not model:
        raise ModelNotFound("")
    return Call(
        wire="ollama",
        op=op,
        kind="embed",
        asked_model=model,
        raw=body,
        inputs=inputs,
        dimensions=dimensions,
        truncate=truncate,
        keep_alive=body.get("keep_alive"),
        include_usage=True,
        extras={"options": leftover} if leftover else {},
        needs=needs_of("embed", (), inputs=inputs),
    )


# --- what chat and generate share -----------------------------------------------------------------------------------


def _common(op: str, body: Mapping[str, Any]) -> dict[str, Any]:
    stream = fields.boolean(op, body, "stream")
    logprobs = bool(fields.boolean(op, body, "logprobs"))
    top = fields.integer(op, body, "top_logprobs")
    if top is not None and not 0 <= top <= 20:
        raise InvalidRequest("top_logprobs must be between 0 and 20", param="top_logprobs")
    fields.keep_alive(body)
    given = fields.options(op, body)
    extras: dict[str, Any] = {}
    leftover = {key: value for key, value in given.items() if key not in fields.SAMPLING}
    if leftover:
        extras["options"] = leftover
    shift = fields.boolean(op, body, "shift")
    if shift is not None:
        extras["shift"] = shift
    return {
        "stream": stream is not False,
        "include_usage": True,
        "truncate": fields.boolean(op, body, "truncate"),
        "logprobs": logprobs,
        "top_logprobs": top if logprobs else None,
        "keep_alive": body.get("keep_alive"),
        "response_format": _format(body.get("format")),
        "sampling": _sampling(given) if given else NO_SAMPLING,
        "reasoning": fields.think(body) or NO_REASONING,
        "extras": extras,
    }


class _Wants(TypedDict):
    schema: bool
    reasoning: bool
    logprobs: bool


def _wants(common: Mapping[str, Any]) -> _Wants:
    wanted: ResponseFormat | None = common["response_format"]
    return {
        "schema": wanted is not None and wanted.kind == "schema",
        "reasoning": bool(common["reasoning"].enabled),
        "logprobs": common["logprobs"],
    }


def _format(value: object) -> ResponseFormat | None:
    match value:
        case None | "":
            return None
        case "json":
            return _JSON
        case dict():
            return ResponseFormat(kind="schema", schema=value)
        case _:
            shown = orjson.dumps(value).decode()[:80]
            raise InvalidRequest(
                f'invalid format: {shown}; expected "json" or a valid JSON Schema object', param="format"
            )


def _sampling(given: Mapping[str, Any]) -> Sampling:
    most = given.get("num_predict")
    seed = given.get("seed")
    return Sampling(
        temperature=given.get("temperature"),
        top_p=given.get("top_p"),
        top_k=given.get("top_k"),
        min_p=given.get("min_p"),
        seed=None if seed is None or seed < 0 else seed,  # -1: random, the default
        stop=tuple(given.get("stop", ())),
        presence_penalty=given.get("presence_penalty"),
        frequency_penalty=given.get("frequency_penalty"),
        repeat_penalty=given.get("repeat_penalty"),
        max_tokens=most if most is not None and most > 0 else None,  # -1, -2, 0: no bound
    )


# --- messages -------------------------------------------------------------------------------------------------------


def _messages(given: object) -> tuple[Message, ...]:
    """Tool results are linked to their calls: by id, else by the function's name, else by order."""
    if given is None:
        return ()
    if not isinstance(given, list):
        fields.mistyped("chat", "messages", given, "[]api.Message")
    found: list[Message] = []
    open_calls: list[tuple[str, str]] = []
    for turn, item in enumerate(given):
        if not isinstance(item, dict):
            fields.mistyped("chat", "messages", item, "api.Message")
        role = _role(turn, item)
        content = _text(item, "content")
        images = _images("chat", "messages.images", item.get("images")) if item.get("images") is not None else ()
        if role == "tool":
            parts: tuple[Text | Image, ...] = ((Text(content),) if content else ()) + images
            call_id, name = _answered(turn, item, open_calls)
            found.append(Message("tool", (ToolResult(call_id, parts, name),)))
            continue
        held: list[Part] = []
        thinking = _text(item, "thinking")
        if thinking and role == "assistant":
            held.append(Reasoning(thinking))
        if content:
            held.append(Text(content))
        held += images
        if item.get("tool_calls"):
            uses = _tool_calls(turn, item["tool_calls"])
            held += uses
            open_calls = [(use.id, use.name) for use in uses]
        found.append(Message(role, tuple(held)))
    return tuple(found)


def _role(turn: int, item: Mapping[str, Any]) -> Role:
    given = _text(item, "role")
    role = _ROLES.get(given) or _ROLES.get(given.lower())
    if role is None:
        raise InvalidRequest(
            f"invalid role: {given[:80]}, must be one of [system, user, assistant, tool]",
            param=f"messages[{turn}].role",
        )
    return role


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        fields.mistyped("chat", f"messages.{key}", value, "string")
    return value


def _images(op: str, path: str, given: object) -> tuple[Image, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        fields.mistyped(op, path, given, "[]api.ImageData")
    return tuple(Image(data=fields.base64_image(op, path, item)) for item in given)


def _tool_calls(turn: int, given: object) -> list[ToolUse]:
    path = "messages.tool_calls"
    if not isinstance(given, list):
        fields.mistyped("chat", path, given, "[]api.ToolCall")
    found: list[ToolUse] = []
    for place, item in enumerate(given):
        if not isinstance(item, dict):
            fields.mistyped("chat", path, item, "api.ToolCall")
        function = item.get("function")
        if not isinstance(function, dict):
            if function is not None:
                fields.mistyped("chat", f"{path}.function", function, "api.ToolCallFunction")
            function = {}
        name = function.get("name")
        if name is not None and not isinstance(name, str):
            fields.mistyped("chat", f"{path}.function.name", name, "string")
        arguments = function.get("arguments")
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            fields.mistyped("chat", f"{path}.function.arguments", arguments, "api.ToolCallFunctionArguments")
        call_id = item.get("id")
        if call_id is not None and not isinstance(call_id, str):
            fields.mistyped("chat", f"{path}.id", call_id, "string")
        found.append(ToolUse(call_id or f"call_{turn}_{place}", name or "", orjson.dumps(arguments).decode()))
    return found


def _answered(turn: int, item: Mapping[str, Any], open_calls: list[tuple[str, str]]) -> tuple[str, str | None]:
    """The id and the function's name that a tool message belongs to; takes the call off the list."""
    call_id = _text(item, "tool_call_id")
    name = _text(item, "tool_name")
    if call_id:
        match = next((place for place, (known, _) in enumerate(open_calls) if known == call_id), None)
        if match is not None:
            name = name or open_calls.pop(match)[1]
        return call_id, name or None
    match = next((place for place, (_, known) in enumerate(open_calls) if known == name), None)
    if match is None:
        match = 0 if open_calls else None
    if match is None:
        return f"call_{turn}_0", name or None
    found, known = open_calls.pop(match)
    return found, name or known


def _tools(given: object) -> tuple[Tool, ...]:
    if not given:
        if given is None or given == []:
            return ()
        fields.mistyped("chat", "tools", given, "api.Tools")
    if not isinstance(given, list):
        fields.mistyped("chat", "tools", given, "api.Tools")
    found: list[Tool] = []
    for place, item in enumerate(given):
        if not isinstance(item, dict):
            fields.mistyped("chat", "tools", item, "api.Tool")
        function = item.get("function")
        if function is not None and not isinstance(function, dict):
            fields.mistyped("chat", "tools.function", function, "api.ToolFunction")
        function = function or {}
        for key in ("name", "description"):
            if function.get(key) is not None and not isinstance(function[key], str):
                fields.mistyped("chat", f"tools.function.{key}", function[key], "string")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            fields.mistyped("chat", "tools.function.parameters", parameters, "api.ToolFunctionParameters")
        if not function.get("name"):
            raise InvalidRequest("a tool needs a function with a name", param=f"tools[{place}].function.name")
        found.append(Tool(function["name"], function.get("description"), parameters))
    return tuple(found)
