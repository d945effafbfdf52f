"""The messages of an OpenAI body, checked: one table by role and one by part type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from providers.call import (
    Audio,
    File,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Role,
    Text,
    ToolResult,
    ToolUse,
)
from providers.media import is_base64, split_data_uri
from providers.wires.openai.fields import kind_of, refuse
from providers.wires.openai.tables import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
)


def _text_part(part: dict[str, Any], where: str) -> Part:
    text = part.get("text")
    if type(text) is not str:
        refuse(f"{where}.text must be a string", f"{where}.text", "missing_required_parameter")
    return Text(text)


def _image_part(part: dict[str, Any], where: str) -> Part:
    spec = part.get("image_url")
    url = spec.get("url") if type(spec) is dict else spec
    detail = spec.get("detail") if type(spec) is dict else None
    where = f"{where}.image_url"
    if type(url) is not str or not url:
        if type(spec) is dict and type(spec.get("file_id")) is str:  # Ark
            return File(file_id=spec["file_id"], media_type="image/*")
        refuse(f"{where}.url must be an http(s) URL or a base64 data URL", f"{where}.url", "missing_required_parameter")
    if detail is not None and type(detail) is not str:
        refuse(f"{where}.detail must be a string", f"{where}.detail", "invalid_type")
    if url.startswith(("https://", "http://")):
        return Image(url=url, detail=detail)
    if url.startswith("ms://"):  # a file at Kimi
        return File(url=url, media_type="image/*")
    pieces = split_data_uri(url)
    if pieces is None:
        refuse(f"{where}.url must be an http(s) URL or a base64 data URL", f"{where}.url", "invalid_image_url")
    if not is_base64(pieces[1]):
        refuse(f"{where}.url is not valid base64", f"{where}.url", "invalid_image_url")
    return Image(data=pieces[1], media_type=pieces[0] or None, detail=detail)


def _audio_part(part: dict[str, Any], where: str) -> Part:
    spec = part.get("input_audio")
    where = f"{where}.input_audio"
    if type(spec) is not dict or type(spec.get("data")) is not str or not spec["data"]:
        refuse(f"{where}.data must be base64", f"{where}.data", "missing_required_parameter")
    if type(spec.get("format")) is not str:
        refuse(f"{where}.format must be 'wav' or 'mp3'", f"{where}.format", "missing_required_parameter")
    data = spec["data"]
    pieces = split_data_uri(data)
    return Audio(pieces[1] if pieces else data, spec["format"])


def _file_part(part: dict[str, Any], where: str) -> Part:
    spec = part.get("file")
    where = f"{where}.file"
    if type(spec) is not dict:
        refuse(f"{where} must be an object", where, "missing_required_parameter")
    name = spec.get("filename")
    name = name if type(name) is str else None
    if type(spec.get("file_id")) is str:
        return File(file_id=spec["file_id"], name=name)
    if type(spec.get("file_url")) is str:  # Ark
        return File(url=spec["file_url"], name=name)
    data = spec.get("file_data")
    if type(data) is not str or not data:
        refuse(f"{where} needs file_data or file_id", where, "missing_required_parameter")
    pieces = split_data_uri(data)
    return File(data=pieces[1], media_type=pieces[0] or None, name=name) if pieces else File(data=data, name=name)


def _video_part(part: dict[str, Any], where: str) -> Part:
    spec = part.get("video_url")
    url = spec.get("url") if type(spec) is dict else spec
    if type(url) is not str or not url:
        refuse(f"{where}.video_url.url must be a string", f"{where}.video_url.url", "missing_required_parameter")
    pieces = split_data_uri(url)
    return File(data=pieces[1], media_type=pieces[0]) if pieces else File(url=url, media_type="video/*")


def _refusal_part(part: dict[str, Any], where: str) -> Part:
    text = part.get("refusal")
    if type(text) is not str:
        refuse(f"{where}.refusal must be a string", f"{where}.refusal", "missing_required_parameter")
    return Refusal(text)


def _thinking_part(part: dict[str, Any], where: str) -> Part:
    text = part.get("thinking", part.get("text"))
    if type(text) is list:  # Mistral: a list of text parts
        text = "".join(item.get("text", "") for item in text if type(item) is dict)
    return Reasoning(text if type(text) is str else "")


_PARTS: dict[str, Callable[[dict[str, Any], str], Part]] = {
    "text": _text_part,
    "image_url": _image_part,
    "input_audio": _audio_part,
    "file": _file_part,
    "video_url": _video_part,
    "refusal": _refusal_part,
    "thinking": _thinking_part,
    "reasoning": _thinking_part,
}


def _content(content: Any, where: str) -> tuple[Part, ...]:
    if type(content) is str:
        return (Text(content),)
    if type(content) is not list:
        refuse(f"{where}.content must be a string or an array of parts", f"{where}.content", "invalid_type")
    if len(content) > MAX_PARTS:
        refuse(f"{where}.content may hold at most {MAX_PARTS} parts", f"{where}.content", "array_above_max_length")
    parts: list[Part] = []
    for index, part in enumerate(content):
        here = f"{where}.content[{index}]"
        kind = part.get("type") if type(part) is dict else None
        read = _PARTS.get(kind) if type(kind) is str else None
        if read is None:
            refuse(f"{here}.type must be one of {', '.join(_PARTS)}", f"{here}.type", "invalid_value")
        parts.append(read(part, here))
    return tuple(parts)


_MESSAGE_FIELDS = frozenset(
    {"role", "content", "name", "refusal", "tool_calls", "tool_call_id", "function_call", "annotations"}
    | {"reasoning_content", "reasoning", "encrypted_content", "signature"}
)
_PLAIN_FIELDS = frozenset({"role", "content"})


def _extras(message: dict[str, Any]) -> Mapping[str, Any]:
    if message.keys() <= _MESSAGE_FIELDS:
        return {}
    return {name: value for name, value in message.items() if name not in _MESSAGE_FIELDS and value is not None}


def _label(message: dict[str, Any], where: str) -> str | None:
    name = message.get("name")
    if name is not None and type(name) is not str:
        refuse(f"{where}.name must be a string", f"{where}.name", "invalid_type")
    return name


Names = dict[str, str]
"""Tool call id to function name, as far as the history says."""


def _said(role: Role) -> Callable[[dict[str, Any], str, Names], Message]:
    """Reader of system, developer and user turns."""

    def read(message: dict[str, Any], where: str, _: Names) -> Message:
        content = message.get("content")
        extras = _extras(message)
        if content is None:
            if role == "system" and "tools" in extras:  # Kimi: tools announced in the middle
                return Message(role, (), None, extras)
            refuse(f"{where}.content is missing", f"{where}.content", "missing_required_parameter")
        return Message(role, _content(content, where), _label(message, where), extras)

    return read


def _tool_uses(calls: Any, where: str, names: Names) -> list[Part]:
    if type(calls) is not list or len(calls) > MAX_TOOLS:
        refuse(f"{where}.tool_calls must be an array of at most {MAX_TOOLS}", f"{where}.tool_calls", "invalid_type")
    found: list[Part] = []
    for index, call in enumerate(calls):
        here = f"{where}.tool_calls[{index}]"
        if type(call) is not dict:
            refuse(f"{here} must be an object", here, "invalid_type")
        ident = call.get("id")
        if type(ident) is not str or not ident:
            refuse(f"{here}.id must be a string", f"{here}.id", "missing_required_parameter")
        custom = call.get("type") == "custom"
        spec = call.get("custom" if custom else "function")
        if type(spec) is not dict or type(spec.get("name")) is not str:
            refuse(f"{here}.function.name must be a string", f"{here}.function.name", "missing_required_parameter")
        arguments = spec.get("input" if custom else "arguments")
        if arguments is None:
            arguments = ""
        if type(arguments) is not str:
            refuse(f"{here}.function.arguments must be a string of JSON", f"{here}.function.arguments", "invalid_type")
        names[ident] = spec["name"]
        found.append(ToolUse(ident, spec["name"], arguments, _signature(call, ident)))
    return found


def _signature(call: dict[str, Any], ident: str) -> str | None:
    """Gemini's thought signature, where Google's endpoint, Portkey or litellm put it."""
    extra, function = call.get("extra_content"), call.get("function")
    google = extra.get("google") if type(extra) is dict else None
    for holder in (google, function, call.get("provider_specific_fields")):
        if type(holder) is dict and type(signature := holder.get("thought_signature")) is str and signature:
            return signature
    return ident.partition("__thought__")[2] or None


def _assistant(message: dict[str, Any], where: str, names: Names) -> Message:
    parts: list[Part] = []
    thought = message.get("reasoning_content")
    if thought is None:
        thought = message.get("reasoning")
    sealed = message.get("encrypted_content")
    if type(thought) is str or type(sealed) is str:
        parts.append(
            Reasoning(thought if type(thought) is str else "", encrypted=sealed if type(sealed) is str else None)
        )
    content = message.get("content")
    if content is not None:
        parts.extend(_content(content, where) if content != "" else ())
    refusal = message.get("refusal")
    if type(refusal) is str and refusal:
        parts.append(Refusal(refusal))
    calls = message.get("tool_calls")
    if calls is not None:
        parts.extend(_tool_uses(calls, where, names))
    legacy = message.get("function_call")
    if legacy is not None:
        here = f"{where}.function_call"
        if type(legacy) is not dict or type(legacy.get("name")) is not str:
            refuse(f"{here}.name must be a string", f"{here}.name", "missing_required_parameter")
        ident = f"call_{len(names)}"
        names[_LEGACY + legacy["name"]] = ident
        arguments = legacy.get("arguments")
        parts.append(ToolUse(ident, legacy["name"], arguments if type(arguments) is str else ""))
    return Message("assistant", tuple(parts), _label(message, where), _extras(message))


_LEGACY = "\0"
"""Marks entries that give the id made for the last `function_call` of a name."""


def _tool(message: dict[str, Any], where: str, names: Names) -> Message:
    ident = message.get("tool_call_id")
    if type(ident) is not str or not ident:
        refuse(f"{where}.tool_call_id must be a string", f"{where}.tool_call_id", "missing_required_parameter")
    content = message.get("content")
    parts = _content("" if content is None else content, where)
    pieces: list[Text | Image | Audio | File] = []
    for index, part in enumerate(parts):
        if not isinstance(part, (Text, Image, Audio, File)):
            here = f"{where}.content[{index}].type"
            refuse(f"{here}: a tool result takes text", here, "invalid_value")
        pieces.append(part)
    result = ToolResult(ident, tuple(pieces), _label(message, where) or names.get(ident))
    return Message("tool", (result,), None, _extras(message))


def _function_result(message: dict[str, Any], where: str, names: Names) -> Message:
    name = message.get("name")
    if type(name) is not str or not name:
        refuse(f"{where}.name must be a string", f"{where}.name", "missing_required_parameter")
    content = message.get("content")
    text = content if type(content) is str else ""
    return Message("tool", (ToolResult(names.get(_LEGACY + name, f"call_{name}"), (Text(text),), name),))


_ROLES: dict[str, Callable[[dict[str, Any], str, Names], Message]] = {
    "system": _said("system"),
    "developer": _said("developer"),
    "user": _said("user"),
    "assistant": _assistant,
    "tool": _tool,
    "function": _function_result,
}


def read_messages(name: str, value: Any) -> tuple[Message, ...]:
    if type(value) is not list:
        refuse(f"{name} must be an array, not {kind_of(value)}", name, "invalid_type")
    if not value:
        refuse(f"{name} must hold at least one message", name, "empty_array")
    if len(value) > MAX_MESSAGES:
        refuse(f"{name} may hold at most {MAX_MESSAGES} messages", name, "array_above_max_length")
    names: Names = {}
    found: list[Message] = []
    for index, item in enumerate(value):
        if type(item) is not dict:
            refuse(f"{name}[{index}] must be an object, not {kind_of(item)}", f"{name}[{index}]", "invalid_type")
        role = item.get("role")
        # The common turn: a role and a string.
        if item.keys() == _PLAIN_FIELDS and type(item["content"]) is str and role in _PLAIN_ROLES:
            found.append(Message(role, (Text(item["content"]),)))
            continue
        read = _ROLES.get(role) if type(role) is str else None
        if read is None:
            refuse(f"{name}[{index}].role must be one of {', '.join(_ROLES)}", f"{name}[{index}].role", "invalid_value")
        found.append(read(item, f"{name}[{index}]", names))
    return tuple(found)


_PLAIN_ROLES = frozenset({"system", "developer", "user"})
