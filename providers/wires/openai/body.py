"""A `Call` from any client's wire to an OpenAI body."""

from __future__ import annotations

from typing import Any

from providers.call import (
    Audio,
    Call,
    File,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    ResponseFormat,
    Sampling,
    Text,
    Tool,
    ToolResult,
    ToolUse,
)
from providers.errors import UnsupportedFeature
from providers.media import data_uri, sniff


def bare_text(call: Call) -> bool:
    """Whether the call is a bare continuation, which goes to `/completions`; a prompt with a template is a chat of one
    turn."""
    return call.kind == "text" and (call.untemplated or call.suffix is not None)


def path(call: Call) -> str:
    if call.kind == "embed":
        return "/embeddings"
    return "/completions" if bare_text(call) else "/chat/completions"


def image_url(image: Image) -> str:
    return image.url if image.url is not None else data_uri(image.data or "", image.media_type)


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Image(detail=detail):
            url = {"url": image_url(part)}
            return {"type": "image_url", "image_url": {**url, "detail": detail} if detail else url}
        case Audio(data, form):
            return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
        case File():
            return _file(part)
        case Refusal(text):
            return {"type": "refusal", "refusal": text}
        case _:
            raise UnsupportedFeature(
                "this part of a message cannot be sent to an OpenAI-like provider", param="messages"
            )


def _file(part: File) -> dict[str, Any]:
    media = part.media_type or ""
    if part.data is None and part.url is not None:
        if media.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": part.url}}
        if media.startswith("video/"):
            return {"type": "video_url", "video_url": {"url": part.url}}
        raise UnsupportedFeature("files by URL cannot be sent to an OpenAI-like provider", param="messages")
    if part.file_id is not None:
        return {"type": "file", "file": {"file_id": part.file_id}}
    data = part.data or ""
    media = media or sniff(data) or "application/pdf"
    if media.startswith("video/"):
        return {"type": "video_url", "video_url": {"url": data_uri(data, media)}}
    return {"type": "file", "file": {"filename": part.name or "file", "file_data": data_uri(data, media)}}


def _content(parts: tuple[Part, ...]) -> str | list[dict[str, Any]]:
    """A string where text is all there is (some servers take nothing else), else parts."""
    if all(type(part) is Text for part in parts):
        return "".join(part.text for part in parts if type(part) is Text)
    return [_part(part) for part in parts]


def _assistant(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": "assistant"}
    said: list[Part] = []
    calls: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Reasoning):
            body["reasoning_content"] = body.get("reasoning_content", "") + part.text
            if part.encrypted and part.vendor is None:
                body["encrypted_content"] = part.encrypted
        elif isinstance(part, ToolUse):
            function = {"name": part.name, "arguments": part.arguments or "{}"}
            calls.append({"id": part.id, "type": "function", "function": function})
        else:
            said.append(part)
    body["content"] = _content(tuple(said)) if said or not calls else None
    if calls:
        body["tool_calls"] = calls
    if message.name:
        body["name"] = message.name
    return body


def _results(message: Message) -> list[dict[str, Any]]:
    """One tool message for each result. What is not text follows as a user turn: tool messages hold text only."""
    turns: list[dict[str, Any]] = []
    shown: list[Part] = []
    for result in message.parts:
        if not isinstance(result, ToolResult):
            continue
        text = "".join(part.text for part in result.parts if isinstance(part, Text))
        others: list[Part] = [part for part in result.parts if not isinstance(part, Text)]
        turns.append(
            {"role": "tool", "tool_call_id": result.id, "content": text or ("see the next message" if others else "")}
        )
        if others:
            shown.append(Text(f"Result of {result.name or result.id}:"))
            shown.extend(others)
    if shown:
        turns.append({"role": "user", "content": _content(tuple(shown))})
    return turns


def messages(call: Call) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for message in call.messages:
        if message.role == "assistant":
            turns.append(_assistant(message))
        elif message.role == "tool":
            turns.extend(_results(message))
        else:
            turn: dict[str, Any] = {"role": message.role, "content": _content(message.parts)}
            if message.name:
                turn["name"] = message.name
            turns.append(turn)
    if call.kind == "text" and call.prompt:
        turns.append({"role": "user", "content": call.prompt})
    return turns


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.kind == "json":
        return {"type": "json_object"}
    if wanted.kind == "text":
        return {"type": "text"}
    spec: dict[str, Any] = {"name": wanted.name or "answer", "schema": wanted.schema or {}}
    if wanted.description:
        spec["description"] = wanted.description
    if wanted.strict is not None:
        spec["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": spec}


def _sampling(sampling: Sampling, body: dict[str, Any]) -> None:
    wanted = (
        ("temperature", sampling.temperature),
        ("top_p", sampling.top_p),
        ("seed", sampling.seed),
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
        ("logit_bias", sampling.logit_bias),
        ("top_k", sampling.top_k),
        ("min_p", sampling.min_p),
        ("repetition_penalty", sampling.repeat_penalty),
        ("max_tokens", sampling.max_tokens),
    )
    body.update({name: value for name, value in wanted if value is not None})
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.n != 1:
        body["n"] = sampling.n


def write_embeddings(call: Call, sent_model: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": sent_model,
        "input": [list(item) if type(item) is tuple else item for item in call.inputs],
    }
    body["encoding_format"] = call.encoding
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    if call.user is not None:
        body["user"] = call.user
    return body


def write_call(call: Call, sent_model: str) -> dict[str, Any]:
    if call.kind == "embed":
        return write_embeddings(call, sent_model)
    body: dict[str, Any] = {"model": sent_model}
    if bare_text(call):
        body["prompt"] = list(call.inputs[0]) if call.inputs else call.prompt  # token ids, or text
        if call.suffix is not None:
            body["suffix"] = call.suffix
        if call.logprobs:
            body["logprobs"] = call.top_logprobs or 0
    else:
        body["messages"] = messages(call)
        if call.tools:
            body["tools"] = [dict(tool.extras) if tool.extras else _tool(tool) for tool in call.tools]
            choice = call.tool_choice
            if choice is not None:
                named = {"type": "function", "function": {"name": choice.name}}
                body["tool_choice"] = named if choice.mode == "named" else choice.mode
            if call.parallel_tools is not None:
                body["parallel_tool_calls"] = call.parallel_tools
        if call.response_format is not None and call.response_format.kind != "text":
            body["response_format"] = _format(call.response_format)
        if call.reasoning.enabled is False:
            body["reasoning_effort"] = "none"
        elif call.reasoning.effort is not None:
            body["reasoning_effort"] = call.reasoning.effort
        if call.logprobs:
            body["logprobs"] = True
            if call.top_logprobs is not None:
                body["top_logprobs"] = call.top_logprobs
        if call.metadata is not None:
            body["metadata"] = dict(call.metadata)
    _sampling(call.sampling, body)
    if call.user is not None:
        body["user"] = call.user
    if call.stream:
        body["stream"] = True
    return body
