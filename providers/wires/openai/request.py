"""A client's OpenAI body, checked, to a `Call`.

On the path of every call, so it is plain Python over the parsed body: one table of checks by field name, one by role
and one by part type. Fields that are null are absent. Fields we do not know ride along: OpenAI-like upstreams differ
in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from providers.call import (
    NO_REASONING,
    NO_SAMPLING,
    Call,
    ReasoningAsk,
    ResponseFormat,
    Sampling,
    Tool,
    ToolChoice,
    needs_of,
)
from providers.wires.openai import fields
from providers.wires.openai.fields import Check, refuse
from providers.wires.openai.messages import read_messages
from providers.wires.openai.tables import (
    EFFORTS,
    MAX_CHOICES,
    MAX_INPUTS,
    MAX_TOKENS,
)

# --- reasoning as the dialects ask for it ----------------------------------------------------------------------------


def reasoning_of(given: Mapping[str, Any]) -> ReasoningAsk:
    """What the body asks of reasoning, in OpenAI's words or in those of Ark, Kimi, Qwen and OpenRouter."""
    enabled: bool | None = None
    budget: int | None = None
    word = given.get("reasoning_effort")
    thinking = given.get("thinking")
    if type(thinking) is dict:
        enabled = {"enabled": True, "disabled": False}.get(thinking.get("type", ""))
        budget = thinking.get("budget_tokens") if type(thinking.get("budget_tokens")) is int else None
    switch = given.get("enable_thinking")
    if type(switch) is bool:
        enabled = switch
    if type(given.get("thinking_budget")) is int:
        budget = given["thinking_budget"]
    nested = given.get("reasoning")
    if type(nested) is dict:
        word = word or nested.get("effort")
        if type(nested.get("enabled")) is bool:
            enabled = nested["enabled"]
        if type(nested.get("max_tokens")) is int:
            budget = nested["max_tokens"]
    if word == "none":
        enabled = False
    effort = EFFORTS.get(word) if type(word) is str else None
    return ReasoningAsk(enabled, effort, budget) if enabled is not None or effort or budget else NO_REASONING


# --- whole bodies ----------------------------------------------------------------------------------------------------

_COMMON: dict[str, Check] = {
    "model": fields.model,
    "stream": fields.boolean,
    "stream_options": fields.stream_options,
    "max_tokens": fields.integer(1, MAX_TOKENS),
    "temperature": fields.number(0, 2),
    "top_p": fields.number(0, 1),
    "top_k": fields.integer(-1, 1_000_000),
    "min_p": fields.number(0, 1),
    "n": fields.integer(1, MAX_CHOICES),
    "stop": fields.stop,
    "presence_penalty": fields.number(-2, 2),
    "frequency_penalty": fields.number(-2, 2),
    "repetition_penalty": fields.number(0, 10),
    "logit_bias": fields.bias,
    "seed": fields.integer(-(2**63), 2**63 - 1),
    "user": fields.text,
}
_CHAT: dict[str, Check] = {
    **_COMMON,
    "messages": read_messages,
    "max_completion_tokens": fields.integer(1, MAX_TOKENS),
    "logprobs": fields.boolean,
    "top_logprobs": fields.integer(0, 20),
    "tools": fields.tools,
    "tool_choice": fields.tool_choice,
    "functions": fields.functions,
    "function_call": fields.function_call,
    "parallel_tool_calls": fields.boolean,
    "response_format": fields.response_format,
    "reasoning_effort": fields.effort,
    "metadata": fields.metadata,
    "modalities": fields.modalities,
}
_COMPLETIONS: dict[str, Check] = {
    **_COMMON,
    "prompt": lambda name, value: value,
    "suffix": fields.text,
    "echo": fields.boolean,
    "best_of": fields.integer(1, MAX_CHOICES),
    "logprobs": fields.integer(0, 20),
}
_EMBEDDINGS: dict[str, Check] = {
    "model": fields.model,
    "input": lambda name, value: value,
    "dimensions": fields.integer(1, 65536),
    "encoding_format": fields.text,
    "user": fields.text,
}
_SAMPLING = frozenset(_COMMON) - {"model", "stream", "stream_options", "user"} | {"max_completion_tokens"}


def _checked(body: Mapping[str, Any], table: dict[str, Check]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The known fields as we use them, and the others."""
    given: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    for name, value in body.items():
        if value is not None:
            check = table.get(name)
            if check is None:
                extras[name] = value
            else:
                given[name] = check(name, value)
    if "model" not in given:
        refuse("you must provide a model", "model", "missing_required_parameter")
    return given, extras


def _sampling(given: dict[str, Any]) -> Sampling:
    if _SAMPLING.isdisjoint(given):
        return NO_SAMPLING
    get = given.get
    longest = get("max_completion_tokens")
    top_k = get("top_k")
    return Sampling(
        get("temperature"),
        get("top_p"),
        top_k if top_k is not None and top_k > 0 else None,
        get("min_p"),
        get("seed"),
        get("stop", ()),
        get("presence_penalty"),
        get("frequency_penalty"),
        get("repetition_penalty"),
        get("logit_bias"),
        get("n", 1),
        get("max_tokens") if longest is None else longest,
    )


def _without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the body without null members, also of its messages (clients echo whole SDK objects). `content: null`
    stays."""
    raw = {name: value for name, value in body.items() if value is not None}
    messages = raw.get("messages")
    if messages and any(None in message.values() for message in messages):
        raw["messages"] = [
            {name: value for name, value in message.items() if value is not None or name == "content"}
            if None in message.values()
            else message
            for message in messages
        ]
    return raw


def _stream(given: dict[str, Any]) -> tuple[bool, bool]:
    stream = given.get("stream", False)
    options = given.get("stream_options")
    if options is None:
        return stream, False
    if not stream:
        refuse("stream_options is only allowed when stream is true", "stream_options", "invalid_value")
    return stream, bool(options.get("include_usage"))


def read_chat(body: Mapping[str, Any]) -> Call:
    given, extras = _checked(body, _CHAT)
    messages = given.get("messages")
    if messages is None:
        refuse("you must provide messages", "messages", "missing_required_parameter")
    raw = _without_nulls(body)
    stream, include_usage = _stream(given)
    tools: tuple[Tool, ...] = given.get("tools") or given.get("functions") or ()
    choice: ToolChoice | None = None
    if "tool_choice" in given or "function_call" in given:
        key = "tool_choice" if "tool_choice" in given else "function_call"
        choice, allowed = given[key]
        choice, tools = _chosen(choice, allowed, tools, key)
    if not tools and not {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}.isdisjoint(raw):
        # An empty list means no tools, and the fields about tools are refused without any.
        for name in ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"):
            raw.pop(name, None)
        choice = None
    logprobs = given.get("logprobs", False)
    if given.get("top_logprobs") and not logprobs:
        refuse("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
    reasoning = NO_REASONING
    if "reasoning_effort" in given or extras:
        reasoning = reasoning_of(body)
    response_format: ResponseFormat | None = given.get("response_format")
    sampling = _sampling(given)
    needs = needs_of(
        "chat",
        messages,
        tools=bool(tools),
        schema=response_format is not None and response_format.kind == "schema",
        reasoning=reasoning.enabled is True,
        choices=sampling.n,
        logprobs=logprobs,
    )
    if "audio" in given.get("modalities", ()):
        needs = replace(needs, audio=True)
    return Call(
        wire="openai",
        op="chat",
        kind="chat",
        asked_model=given["model"],
        raw=raw,
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tools=given.get("parallel_tool_calls") if tools else None,
        response_format=response_format,
        sampling=sampling,
        reasoning=reasoning,
        logprobs=logprobs,
        top_logprobs=given.get("top_logprobs"),
        stream=stream,
        include_usage=include_usage,
        user=given.get("user"),
        metadata=given.get("metadata"),
        extras=extras,
        needs=needs,
    )


def _chosen(
    choice: ToolChoice, allowed: frozenset[str] | None, tools: tuple[Tool, ...], key: str
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    if choice.mode == "named" and all(tool.name != choice.name for tool in tools):
        refuse(f"{key} names '{choice.name}', which is not among the tools", key, "invalid_value")
    if choice.mode == "required" and not tools:
        refuse(f"{key} is only allowed when tools are given", key, "invalid_value")
    return choice, tools if allowed is None else tuple(tool for tool in tools if tool.name in allowed)


def _ids(value: Any) -> bool:
    return type(value) is list and bool(value) and all(type(item) is int and 0 <= item < 2**31 for item in value)


def read_completions(body: Mapping[str, Any]) -> Call:
    """Legacy text completion. One prompt a call: what several would cost or answer cannot be told apart later."""
    given, extras = _checked(body, _COMPLETIONS)
    prompt = given.get("prompt")
    if type(prompt) is list and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]
    inputs: tuple[tuple[int, ...], ...] = ()
    if type(prompt) is list and _ids(prompt):
        inputs, prompt = (tuple(prompt),), ""
    elif type(prompt) is not str:
        problem = (
            "you must provide a prompt" if prompt is None else "prompt must be one string, or one array of token ids"
        )
        refuse(problem, "prompt", "missing_required_parameter" if prompt is None else "invalid_value")
    stream, include_usage = _stream(given)
    sampling = _sampling(given)
    asked = given.get("logprobs")
    return Call(
        wire="openai",
        op="completions",
        kind="text",
        asked_model=given["model"],
        raw=_without_nulls(body),
        prompt=prompt,
        suffix=given.get("suffix"),
        untemplated=True,
        inputs=inputs,
        sampling=sampling,
        logprobs=asked is not None,
        top_logprobs=asked,
        stream=stream,
        include_usage=include_usage,
        user=given.get("user"),
        extras=extras,
        needs=needs_of(
            "text",
            (),
            choices=sampling.n,
            logprobs=asked is not None,
            prompt=prompt + (given.get("suffix") or ""),
            inputs=inputs,
        ),
    )


def read_embeddings(body: Mapping[str, Any]) -> Call:
    given, extras = _checked(body, _EMBEDDINGS)
    wanted = given.get("input")
    if wanted is None:
        refuse("you must provide an input", "input", "missing_required_parameter")
    items: list[Any] = [wanted] if type(wanted) is str or _ids(wanted) else wanted
    if type(items) is not list:
        refuse("input must be a string, an array of strings or arrays of token ids", "input", "invalid_type")
    if not 0 < len(items) <= MAX_INPUTS:
        refuse(
            f"input must hold 1 to {MAX_INPUTS} items", "input", "array_above_max_length" if items else "empty_array"
        )
    inputs: list[str | tuple[int, ...]] = []
    for index, item in enumerate(items):
        if type(item) is str and item:
            inputs.append(item)
        elif _ids(item):
            inputs.append(tuple(item))
        else:
            where = f"input[{index}]" if items is wanted else "input"
            refuse(f"{where} must be a string that is not empty, or token ids", where, "invalid_value")
    form = given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        refuse("encoding_format must be 'float' or 'base64'", "encoding_format", "invalid_value")
    values = tuple(inputs)
    return Call(
        wire="openai",
        op="embeddings",
        kind="embed",
        asked_model=given["model"],
        raw=_without_nulls(body),
        inputs=values,
        dimensions=given.get("dimensions"),
        encoding=form,
        user=given.get("user"),
        extras=extras,
        needs=needs_of("embed", (), inputs=values),
    )


READERS: dict[str, Callable[[Mapping[str, Any]], Call]] = {
    "chat": read_chat,
    "completions": read_completions,
    "embeddings": read_embeddings,
}
