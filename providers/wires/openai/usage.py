"""Token counts as OpenAI-like servers write them, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.events import Usage

MAX_COUNT = 2**40
"""Counts beyond this, and negative ones, are nonsense and count as unknown."""


def _count(value: Any) -> int | None:
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def read_usage(raw: Any) -> Usage | None:
    """The `usage` object of a chunk or an answer; None when it holds no count.

    `cached` hides in `prompt_tokens_details`, at the top (Kimi) or under DeepSeek's own name. `reasoning` is part of
    `output`, also where the server counts it apart: then the total is prompt, completion and reasoning (xAI).
    """
    if type(raw) is not dict:
        return None
    prompt = _count(raw.get("prompt_tokens", raw.get("input_tokens")))
    output = _count(raw.get("completion_tokens", raw.get("output_tokens")))
    total = _count(raw.get("total_tokens"))
    inner = raw.get("prompt_tokens_details")
    before: Mapping[str, Any] = inner if type(inner) is dict else {}
    inner = raw.get("completion_tokens_details")
    after: Mapping[str, Any] = inner if type(inner) is dict else {}
    cached = _count(before.get("cached_tokens"))
    if cached is None:
        cached = _count(raw.get("cached_tokens", raw.get("prompt_cache_hit_tokens")))
    reasoning = _count(after.get("reasoning_tokens", raw.get("reasoning_tokens")))
    if reasoning and output is not None and prompt is not None and total == prompt + output + reasoning:
        output += reasoning
    if prompt is None and output is None:
        return None
    return Usage(
        input=prompt,
        output=output,
        cached=cached,
        cache_write=_count(before.get("cache_write_tokens")),
        reasoning=reasoning,
        media=_count(before.get("image_tokens")),
    )


def write_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's object. Unknown details are left out; an unknown total is not made up from one half."""
    prompt, output = usage.input, usage.output
    body: dict[str, Any] = {
        "prompt_tokens": prompt or 0,
        "completion_tokens": output or 0,
        "total_tokens": (prompt or 0) + (output or 0),
    }
    if usage.cached is not None or usage.cache_write is not None:
        details: dict[str, int] = {"cached_tokens": usage.cached or 0}
        if usage.cache_write is not None:
            details["cache_write_tokens"] = usage.cache_write
        body["prompt_tokens_details"] = details
    if usage.reasoning is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return body


def tidy_usage(raw: dict[str, Any], usage: Usage) -> dict[str, Any]:
    """A server's own object with the standard members put right: all three counts, Kimi's cached tokens in their
    place."""
    tidy = write_usage(usage)
    merged = {**raw, **tidy}
    for name in ("prompt_tokens_details", "completion_tokens_details"):
        if type(raw.get(name)) is dict and name in tidy:
            merged[name] = {**raw[name], **tidy[name]}
    merged.pop("cached_tokens", None)
    return merged


def find_usage(body: Mapping[str, Any], choices: Any) -> dict[str, Any] | None:
    """Wherever the server put it: top level, Groq's `x_groq`, or inside a choice (Kimi). One place wins; nothing is
    added up."""
    raw = body.get("usage")
    if type(raw) is dict and raw:
        return raw
    if "x_groq" in body:
        groq = body["x_groq"]
        if type(groq) is dict and type(groq.get("usage")) is dict:
            found: dict[str, Any] = groq["usage"]
            return found
    if type(choices) is list:
        for choice in choices:
            if type(choice) is dict and type(choice.get("usage")) is dict:
                inside: dict[str, Any] = choice["usage"]
                return inside
    return None
