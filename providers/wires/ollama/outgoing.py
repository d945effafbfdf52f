"""A `Call` from another wire to an upstream body.

What Ollama cannot say: images and files by reference, tools that are no functions, token-id inputs and several choices
are refused. `logit_bias`, `user`, `metadata`, names of messages and the detail of an image are dropped. A tool choice
that forces a call becomes an instruction, and a named tool is the only one sent: the nearest thing that Ollama has.
`num_ctx` and `keep_alive` are left to the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from providers.call import (
    Audio,
    Call,
    Effort,
    File,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolResult,
    ToolUse,
)
from providers.errors import UnsupportedFeature
from providers.wires.ollama.schema import tool_parameters

_THINK: Final[Mapping[Effort, str]] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
}

_OPTIONS: Final = (
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("seed", "seed"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("repeat_penalty", "repeat_penalty"),
    ("max_tokens", "num_predict"),
)
"""Our name, Ollama's name."""


def write_call(call: Call, sent_model: str) -> dict[str, Any]:
    """The upstream body. Raises UnsupportedFeature for what may not be dropped."""
    if call.sampling.n > 1:
        raise UnsupportedFeature("Ollama gives one choice for each call", param="n")
    match call.kind:
        case "embed":
            return _embed(call, sent_model)
        case "text":
            return _text(call, sent_model)
        case _:
            return _chat(call, sent_model)


def path(call: Call) -> str:
    """The client's own route when it spoke Ollama, else the one for the kind of call."""
    if call.wire == "ollama":
        return f"/api/{call.op}"
    return _PATHS[call.kind]


_PATHS: Final = {"chat": "/api/chat", "text": "/api/generate", "embed": "/api/embed"}


def _embed(call: Call, sent_model: str) -> dict[str, Any]:
    if any(not isinstance(item, str) for item in call.inputs):
        raise UnsupportedFeature("Ollama embeds texts, not token ids: send the input as strings", param="input")
    body: dict[str, Any] = {"model": sent_model, "input": list(call.inputs)}
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    if call.truncate is not None:
        body["truncate"] = call.truncate
    if call.keep_alive is not None:
        body["keep_alive"] = call.keep_alive
    return body


def _text(call: Call, sent_model: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": sent_model, "prompt": call.prompt, "stream": call.stream}
    if call.suffix is not None:
        body["suffix"] = call.suffix
    elif call.untemplated:
        body["raw"] = True  # with a suffix the model's template must place both, and raw would leave the suffix out
    _add_settings(call, body)
    return body


def _chat(call: Call, sent_model: str) -> dict[str, Any]:
    messages = _messages(call.messages)
    body: dict[str, Any] = {"model": sent_model, "messages": messages, "stream": call.stream}
    choice = call.tool_choice
    tools = call.tools
    if choice is not None and choice.mode == "none":
        tools = ()
    if choice is not None and choice.mode == "named":
        tools = tuple(tool for tool in tools if tool.name == choice.name) or tools
    for index, tool in enumerate(tools):
        if tool.extras:
            raise UnsupportedFeature("Ollama takes only function tools", param=f"tools[{index}]")
    if tools:
        body["tools"] = [_tool(tool.name, tool.description, tool.parameters) for tool in tools]
        if choice is not None and choice.mode in ("required", "named"):
            which = f"the tool {choice.name}" if choice.mode == "named" else "at least one of the tools"
            place = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
            messages.insert(place, {"role": "system", "content": f"Answer by calling {which}, with no other text."})
    _add_settings(call, body)
    return body


def _tool(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = tool_parameters(parameters)
    return {"type": "function", "function": function}


def _add_settings(call: Call, body: dict[str, Any]) -> None:
    sampling = call.sampling
    options: dict[str, Any] = {}
    for ours, theirs in _OPTIONS:
        value = getattr(sampling, ours)
        if value is not None:
            options[theirs] = value
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    wanted = call.response_format
    if wanted is not None and wanted.kind != "text":
        body["format"] = dict(wanted.schema) if wanted.kind == "schema" and wanted.schema else "json"
    if options:
        body["options"] = options
    ask = call.reasoning
    if ask.enabled is False:
        body["think"] = False
    elif ask.effort is not None:
        body["think"] = _THINK[ask.effort]
    elif ask.enabled or ask.budget:
        body["think"] = True
    if call.logprobs:
        body["logprobs"] = True
        if call.top_logprobs:
            body["top_logprobs"] = call.top_logprobs
    if call.truncate is not None:
        body["truncate"] = call.truncate
    if call.keep_alive is not None:
        body["keep_alive"] = call.keep_alive


# --- messages -------------------------------------------------------------------------------------------------------


def _messages(turns: tuple[Message, ...]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for at, message in enumerate(turns):
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        found += [_result(part, names, at) for part in results]
        rest = [part for part in message.parts if not isinstance(part, ToolResult)]
        if rest or not results:
            found.append(_message(message, rest, names, at))
    return found


def _message(message: Message, parts: Sequence[Part], names: dict[str, str], at: int) -> dict[str, Any]:
    uses: list[dict[str, Any]] = []
    thinking: list[str] = []
    for part in parts:
        if isinstance(part, ToolUse):
            names[part.id] = part.name
            function = {"index": len(uses), "name": part.name, "arguments": arguments_object(part.arguments)}
            uses.append({"id": part.id, "function": function})
        elif isinstance(part, Reasoning) and part.text:
            thinking.append(part.text)
    text, images = _content(parts, at)
    body: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if thinking:
        body["thinking"] = "\n".join(thinking)
    if images:
        body["images"] = images
    if uses:
        body["tool_calls"] = uses
    return body


def _result(part: ToolResult, names: Mapping[str, str], at: int) -> dict[str, Any]:
    """`tool_name` is the native link, `tool_call_id` the newer one: both, so that old and new templates find it."""
    text, images = _content(part.parts, at)
    body: dict[str, Any] = {"role": "tool", "content": text}
    name = part.name or names.get(part.id)
    if name:
        body["tool_name"] = name
    body["tool_call_id"] = part.id
    if images:
        body["images"] = images
    return body


def _content(parts: Sequence[Part], at: int) -> tuple[str, list[str]]:
    """All text as one string (parts on lines of their own), and all media as bare base64."""
    texts: list[str] = []
    media: list[str] = []
    for part in parts:
        match part:
            case Text(text) | Refusal(text):
                texts.append(text)
            case Image(data=str(data)):
                media.append(data)
            case Image():
                raise UnsupportedFeature(
                    "Ollama takes images by value: send the image as a data: URL (base64), not as an http address",
                    param=f"messages[{at}].content",
                )
            case Audio(data):
                media.append(data)
            case File():
                raise UnsupportedFeature("Ollama takes no files: send the text itself", param=f"messages[{at}].content")
            case _:
                pass
    return "\n".join(texts), media


def arguments_object(text: str) -> dict[str, Any]:
    """A tool call's arguments as the object that Ollama insists on.

    The history may hold arguments that no parser takes: they came from a model. Refusing them would end the
    conversation, so they are wrapped and stay visible.
    """
    if not text.strip():
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {"invalid_arguments": text}
    return value if isinstance(value, dict) else {"invalid_arguments": value}
