"""What OpenAI-like servers do not take as OpenAI does, as data, and the patches of a body that follow from it.

A body is patched the same way whether it is a client's own or was written from another wire. What may be dropped
without a different answer is dropped; what may not raises `UnsupportedFeature`, so that another target can serve the
call or the caller learns which field it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from providers.call import NO_REASONING, Call, ReasoningAsk
from providers.errors import UnsupportedFeature
from providers.vendor import Capabilities
from providers.wires.openai.tables import REASONING_FIELDS
from providers.wires.openai.traits import PLAIN, Traits

ReasoningIn = Literal[
    "effort",
    "thinking",
    "thinking_effort",
    "enable_thinking",
    "reasoning",
    "template_enable",
    "template_thinking",
    "none",
]
"""The field by which reasoning is asked for: `reasoning_effort`; `thinking: {type}` alone or with an effort; Qwen's
`enable_thinking`; OpenRouter's `reasoning`; `chat_template_kwargs` of local servers; none at all."""


class Quirks(Struct, frozen=True, kw_only=True):
    """Every default is what OpenAI does, but for `developer`, which next to nobody else knows."""

    refuse: frozenset[str] = frozenset({"models", "fallbacks", "route", "provider", "plugins", "preset"})
    """Top-level fields that are refused: by them a gateway (OpenRouter, litellm's proxy) lets another model answer,
    or does paid work beside it, past a key's rights, prices and budget.
    https://openrouter.ai/docs/api-reference/overview, https://docs.litellm.ai/docs/proxy/reliability"""
    drop: frozenset[str] = frozenset()
    """Top-level fields never sent: the answer is the same without them."""
    drop_translated: frozenset[str] = frozenset()
    """Dropped when another wire's client asked: its defaults (Ollama's temperature) are no wish. An OpenAI client's
    stay."""
    only: frozenset[str] = frozenset()
    """When not empty: the only top-level fields that are sent."""
    rename: Mapping[str, str] = {}
    extra_body: Mapping[str, Any] = {}
    """Members added where the client did not set them."""
    extra_headers: Mapping[str, str] = {}
    auth: Literal["bearer", "api-key", "none"] = "bearer"
    max_tokens: Literal["keep", "max_tokens", "max_completion_tokens"] = "keep"
    developer: bool = False
    """Whether the role `developer` is known; else it is sent as `system`."""
    names: bool = True
    """Whether messages may carry `name`."""
    stream_usage: Literal["include", "always", "never"] = "include"
    """include: asked for with `stream_options`. always: sent unasked. never: `stream_options` is refused there."""
    reasoning_in: ReasoningIn = "effort"
    efforts: Mapping[str, str] = {}
    """Our efforts in the server's words, where it knows fewer: `{"max": "high"}`."""
    effort_off: str | None = "none"
    """The effort that turns reasoning off; None where nothing does."""
    efforts_as_asked: bool = False
    """A `reasoning_effort` in the client's own body stands; `efforts` and `effort_off` are for calls of other wires."""
    reasoning_echo: Literal["keep", "drop", "tools", "tags"] = "keep"
    """Earlier reasoning in the history: sent as `reasoning_content`; dropped; required beside tool calls (an empty one
    is added); written into the content as <think> tags."""
    response_format: Literal["schema", "object", "schema_only", "none"] = "schema"
    """object: no JSON schema. schema_only: no `json_object`, which is then sent as the schema of any object."""
    tool_choice: frozenset[str] = frozenset({"auto", "none", "required", "named"})
    tools: bool = True
    images: Literal["url", "data", "none"] = "url"
    """data: images by value only."""
    details: Mapping[str, str | None] = {}
    """`detail` of images in the server's words; None drops it. `*` stands for every word not named."""
    audio: bool = True
    files: bool = True
    choices: bool = True
    """Whether `n` above 1 is served."""
    functions: bool = False
    """Whether the legacy `functions` are known; else they are sent as tools and the answer is written back."""
    empty_text: bool = True
    """Whether empty text parts are taken."""
    tool_name_min: int = 1
    """More than 1: the shortest tool name, and that names must be of OpenAI's letters, a digit never first."""
    stops: int = 16
    """Most stop sequences."""
    completions: bool = True
    """Whether legacy `/completions` exists."""
    embeddings: bool = True
    embedding_base64: bool = False
    """Whether vectors come in base64 when asked; else floats are asked for and turned."""
    embedding_batch: int = 2048
    models: bool = True
    """Whether `/models` lists what may be called."""
    traits: Traits = PLAIN
    facts: tuple[tuple[str, Capabilities], ...] = ()
    """Shell patterns of model names and what the documentation says of them; the first that fits counts."""


def _thinking(type_: str) -> dict[str, Any]:
    return {"thinking": {"type": type_}}


def _word(ask: ReasoningAsk, quirks: Quirks) -> str | None:
    return None if ask.effort is None else quirks.efforts.get(ask.effort, ask.effort)


def _ask_effort(ask: ReasoningAsk, quirks: Quirks) -> dict[str, Any]:
    if ask.enabled is False:
        return {} if quirks.effort_off is None else {"reasoning_effort": quirks.effort_off}
    word = _word(ask, quirks)
    return {} if word is None else {"reasoning_effort": word}


def _ask_thinking(ask: ReasoningAsk, quirks: Quirks) -> dict[str, Any]:
    if ask.enabled is False or ask.effort == "minimal":
        return {} if quirks.effort_off is None else _thinking("disabled")
    return _thinking("enabled")


def _ask_thinking_effort(ask: ReasoningAsk, quirks: Quirks) -> dict[str, Any]:
    body = _ask_thinking(ask, quirks)
    word = _word(ask, quirks)
    if word is not None and body == _thinking("enabled"):
        body["reasoning_effort"] = word
    return body


def _ask_switch(ask: ReasoningAsk, quirks: Quirks) -> dict[str, Any]:
    body: dict[str, Any] = {"enable_thinking": ask.enabled is not False}
    if ask.budget is not None and body["enable_thinking"]:
        body["thinking_budget"] = ask.budget
    return body


def _ask_nested(ask: ReasoningAsk, quirks: Quirks) -> dict[str, Any]:
    if ask.enabled is False:
        return {"reasoning": {"enabled": False}}
    if ask.budget is not None:
        return {"reasoning": {"max_tokens": ask.budget}}
    word = _word(ask, quirks)
    return {"reasoning": {"enabled": True} if word is None else {"effort": word}}


def _ask_template(member: str) -> Callable[[ReasoningAsk, Quirks], dict[str, Any]]:
    def ask_template(ask: ReasoningAsk, quirks: Quirks) -> dict[str, Any]:
        if ask.enabled is None:  # gpt-oss and its like take an effort
            return _ask_effort(ask, quirks)
        return {"chat_template_kwargs": {member: ask.enabled}}

    return ask_template


_REASONING: Mapping[str, tuple[frozenset[str], Callable[[ReasoningAsk, Quirks], dict[str, Any]]]] = {
    "effort": (frozenset({"reasoning_effort"}), _ask_effort),
    "thinking": (frozenset({"thinking"}), _ask_thinking),
    "thinking_effort": (frozenset({"thinking"}), _ask_thinking_effort),
    "enable_thinking": (frozenset({"enable_thinking", "thinking_budget"}), _ask_switch),
    "reasoning": (frozenset({"reasoning"}), _ask_nested),
    "template_enable": (frozenset({"chat_template_kwargs"}), _ask_template("enable_thinking")),
    "template_thinking": (frozenset({"chat_template_kwargs"}), _ask_template("thinking")),
    "none": (frozenset(), lambda ask, quirks: {}),
}
"""The fields that are the server's own words, which stand when the client used them, and how to say a wish in them."""


def patch_reasoning(body: dict[str, Any], call: Call, quirks: Quirks, translated: bool) -> None:
    """`translated`: the body was written from another wire, so its effort is our word and not the client's own."""
    if call.reasoning is NO_REASONING and REASONING_FIELDS.isdisjoint(body):
        return
    native, write = _REASONING[quirks.reasoning_in]
    said = native & body.keys()
    if quirks.reasoning_in == "effort" and said and (translated or not quirks.efforts_as_asked):
        word = body["reasoning_effort"]
        if word in quirks.efforts:
            body["reasoning_effort"] = quirks.efforts[word]
        elif word == "none" and quirks.effort_off != "none":
            said = frozenset()
    keep = set(native)
    if quirks.reasoning_in == "thinking_effort" and said:
        thinking = body["thinking"]
        if type(thinking) is dict and thinking.get("type") != "disabled":
            keep.add("reasoning_effort")  # beside a disabled one Ark answers 400
    for name in REASONING_FIELDS & body.keys():
        if name not in keep or not said:
            del body[name]
    if not said and call.reasoning is not NO_REASONING:
        body.update(write(call.reasoning, quirks))


def _refuse(body: dict[str, Any], quirks: Quirks) -> None:
    if not quirks.refuse.isdisjoint(body):
        name = min(quirks.refuse & body.keys())
        raise UnsupportedFeature(f"{name} is not passed on: it decides what answers and what it costs", param=name)


def patch_fields(body: dict[str, Any], call: Call, quirks: Quirks) -> None:
    """Top-level members: names, bounds and what is dropped."""
    _refuse(body, quirks)
    for name in quirks.drop & body.keys():
        if name == "n" and body["n"] != 1:
            raise UnsupportedFeature("this provider gives one choice a call", param="n")
        del body[name]
    if not quirks.choices and body.get("n", 1) != 1:
        raise UnsupportedFeature("this provider gives one choice a call", param="n")
    if quirks.max_tokens != "keep" or ("max_tokens" in body and "max_completion_tokens" in body):
        longest = body.pop("max_completion_tokens", None)
        given = body.pop("max_tokens", None)
        if longest is not None or given is not None:
            name = "max_completion_tokens" if quirks.max_tokens == "keep" else quirks.max_tokens
            body[name] = given if longest is None else longest
    for name, other in quirks.rename.items():
        if name in body:
            body.setdefault(other, body.pop(name))
    stop = body.get("stop")
    if type(stop) is list and len(stop) > quirks.stops:
        raise UnsupportedFeature(f"this provider takes at most {quirks.stops} stop sequences", param="stop")
    _patch_format(body, quirks)
    _patch_tools(body, call, quirks)
    if call.stream:
        if quirks.stream_usage == "include":
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        else:
            body.pop("stream_options", None)
    for name, value in quirks.extra_body.items():
        body.setdefault(name, value)
    if quirks.only:
        for name in body.keys() - quirks.only:
            del body[name]


_STRICT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_ANY_OBJECT = {"type": "json_schema", "json_schema": {"name": "object", "schema": {"type": "object"}}}


def _patch_format(body: dict[str, Any], quirks: Quirks) -> None:
    wanted = body.get("response_format")
    if quirks.response_format == "schema" or type(wanted) is not dict:
        return
    kind = wanted.get("type")
    if kind == "json_schema" and quirks.response_format != "schema_only":
        raise UnsupportedFeature("this provider cannot answer by a JSON schema", param="response_format")
    if kind == "json_object":
        if quirks.response_format == "none":
            raise UnsupportedFeature("this provider has no JSON mode", param="response_format")
        if quirks.response_format == "schema_only":
            body["response_format"] = _ANY_OBJECT


def _patch_tools(body: dict[str, Any], call: Call, quirks: Quirks) -> None:
    if not call.tools:
        return
    if not quirks.tools:
        raise UnsupportedFeature("this provider's model takes no tools", param="tools")
    choice = call.tool_choice
    if choice is not None and choice.mode not in quirks.tool_choice:
        raise UnsupportedFeature(f"this provider's model cannot take tool_choice '{choice.mode}'", param="tool_choice")
    if quirks.tool_name_min > 1:
        for index, tool in enumerate(call.tools):
            if not tool.extras and (len(tool.name) < quirks.tool_name_min or not _STRICT_NAME.fullmatch(tool.name)):
                problem = (
                    f"this provider takes tool names of {quirks.tool_name_min} to 64 letters, digits, _ and -, "
                    "a letter or _ first"
                )
                raise UnsupportedFeature(problem, param=f"tools[{index}].function.name")


def patch_messages(body: dict[str, Any], quirks: Quirks) -> None:
    """Roles, names, reasoning and parts of the messages. Messages that need no change stay the client's own objects."""
    messages = body.get("messages")
    if messages is None:
        return
    tools_on = not (type(body.get("thinking")) is dict and body["thinking"].get("type") == "disabled")
    fresh: list[Any] | None = None
    for index, message in enumerate(messages):
        patched = message
        role = message["role"]
        if role == "developer" and not quirks.developer:
            patched = {**message, "role": "system"}
        if role == "assistant":
            patched = _patch_assistant(patched, quirks, tools_on)
        if not quirks.names and "name" in patched and role != "tool":
            patched = {name: value for name, value in patched.items() if name != "name"}
        content = patched.get("content")
        if type(content) is list:
            parts = _patch_parts(content, f"messages[{index}].content", quirks)
            if parts is not content:
                patched = {**patched, "content": parts}
        if patched is not message:
            if fresh is None:
                fresh = list(messages)
            fresh[index] = patched
    if fresh is not None:
        body["messages"] = fresh


_REASONING_ECHO = frozenset({"reasoning_content", "reasoning", "reasoning_details", "encrypted_content"})


def _patch_assistant(message: dict[str, Any], quirks: Quirks, thinking: bool) -> dict[str, Any]:
    echo = quirks.reasoning_echo
    carried = _REASONING_ECHO & message.keys()
    if echo == "drop":
        return {name: value for name, value in message.items() if name not in carried} if carried else message
    if not carried:
        if echo == "tools" and thinking and message.get("tool_calls"):
            return {**message, "reasoning_content": ""}
        return message
    said = message.get("reasoning_content")
    if said is None:
        said = message.get("reasoning")
    if echo == "tags" and type(said) is str and "reasoning_details" not in message:
        rest = {name: value for name, value in message.items() if name not in carried}
        content = rest.get("content")
        if said and (content is None or type(content) is str):
            rest["content"] = f"<think>{said}</think>{content or ''}"
        return rest
    if "reasoning_content" not in message and type(said) is str:
        return {**{name: value for name, value in message.items() if name != "reasoning"}, "reasoning_content": said}
    if "reasoning" in message:
        return {name: value for name, value in message.items() if name != "reasoning"}
    return message


def _patch_parts(parts: list[Any], where: str, quirks: Quirks) -> list[Any]:
    fresh: list[Any] = []
    changed = False
    for index, part in enumerate(parts):
        kind = part.get("type")
        if kind == "text":
            if not part.get("text") and not quirks.empty_text:
                changed = True
                continue
        elif kind == "image_url":
            patched = _patch_image(part, f"{where}[{index}]", quirks)
            changed = changed or patched is not part
            fresh.append(patched)
            continue
        elif (kind == "input_audio" and not quirks.audio) or (kind == "file" and not quirks.files):
            raise UnsupportedFeature(f"this provider takes no parts of type {kind}", param=f"{where}[{index}]")
        fresh.append(part)
    return fresh if changed else parts


def _patch_image(part: dict[str, Any], where: str, quirks: Quirks) -> dict[str, Any]:
    if quirks.images == "none":
        raise UnsupportedFeature("this provider takes no images", param=where)
    spec = part["image_url"]
    url = spec if type(spec) is str else spec.get("url")
    if quirks.images == "data" and type(url) is str and url.startswith(("http://", "https://")):
        raise UnsupportedFeature(
            "this provider takes images by value only: send a data URL", param=f"{where}.image_url.url"
        )
    if quirks.details and type(spec) is dict and "detail" in spec:
        word = quirks.details.get(spec["detail"], quirks.details.get("*", spec["detail"]))
        if word != spec["detail"]:
            rest = {name: value for name, value in spec.items() if name != "detail"}
            return {**part, "image_url": rest if word is None else {**rest, "detail": word}}
    return part


def patch_embeddings(body: dict[str, Any], call: Call, quirks: Quirks) -> None:
    if not quirks.embeddings:
        raise UnsupportedFeature("this provider makes no embeddings", param="model")
    if len(call.inputs) > quirks.embedding_batch:
        limit = quirks.embedding_batch
        raise UnsupportedFeature(
            f"this provider takes at most {limit} input{'s' if limit > 1 else ''} a call", param="input"
        )
    _refuse(body, quirks)
    if not quirks.embedding_base64:
        body["encoding_format"] = "float"
    for name in quirks.drop & body.keys():
        del body[name]
