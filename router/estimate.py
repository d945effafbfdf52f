"""How many tokens, and how much money, a call can take at most, before it is made; and how many its prompt probably
has, for calls that nobody counts.

The bound of a prompt is honest, not close: a byte-level vocabulary never makes more tokens than there are UTF-8 bytes
(https://platform.openai.com/tokenizer, and every vocabulary with byte fallback), and what templates and pictures add is
taken from the constants below, each with its source. What a provider adds by tools of its own (searching the web) is
known to nobody before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson

from providers.call import Call
from router.prices import Price, percent_of, vendor_of
from router.snapshot import Attempt, Target

MESSAGE_TOKENS: Final = 12
"""Markers of one turn. Llama 3 takes 5 (`<|start_header_id|>user<|end_header_id|>` newline `<|eot_id|>`), Gemma and
ChatML 5, harmony 4 to 7: their templates at https://huggingface.co. Twice that."""
CALL_TOKENS: Final = 160
"""What templates say of their own before the first turn: harmony's preamble with date and channels, some 90 tokens
(https://github.com/openai/harmony), Qwen 2.5's and Llama 3.1's some 25."""
TOOLS_TOKENS: Final = 700
"""What templates say about tools in general. Anthropic's page counts up to 530
(https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/overview), Qwen's and Llama's templates some 150."""
TOOL_TOKENS: Final = 24
"""Markers around one tool, call or result."""
IMAGE_TOKENS: Final = 16_384
"""Of one image at most: Qwen2.5-VL's limit of 12,845,056 pixels at 28 x 28 a token; 63 tiles of 258 at Gemini
(https://ai.google.dev/gemini-api/docs/tokens); 10,000 patches times 1.62 at OpenAI
(https://platform.openai.com/docs/guides/images-vision)."""
IMAGE_TOKENS_4O_MINI: Final = 48_169
"""gpt-4o-mini counts 2,833 for an image and 5,667 for each of at most 8 tiles (the same page of OpenAI)."""
UNSEEN_TOKENS: Final = 1_048_576
"""A document given by URL or id may fill the largest context there is."""
MEDIA_BYTES: Final = 4
"""Bytes of audio or document for a token, at least. Speech at 8 kbit/s and 32 tokens a second (Gemini, the same page)
has 31 bytes a token; the text of a PDF packs to about a quarter."""
OUTPUT_TOKENS: Final = 16_384
"""The longest answer of a model of which neither config nor price list nor context says it. Models on machines of
one's own get at most this much without `max_tokens`, whatever their context."""

CHARS_PER_TOKEN: Final = 4
"""English: https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them. A Chinese character is
0.6 to 1 token (https://api-docs.deepseek.com/quick_start/token_usage): 1 here."""
LIKELY_MESSAGE_TOKENS: Final = 4
LIKELY_IMAGE_TOKENS: Final = 1_100
"""1,105 for 1024 x 2048 pixels at gpt-4o, 1,120 at Gemini 3: the pages above."""
LIKELY_MEDIA_BYTES: Final = 250

_COUNTED: Final = frozenset(
    {"messages", "prompt", "suffix", "input", "system", "images", "context"}  # by `Needs`, and by name here
    | {"model", "logit_bias", "stop", "stream_options", "modalities", "options", "keep_alive", "encoding_format"}
    | {"service_tier", "reasoning_effort", "verbosity"}
)
"""Members of a body that are counted as what they are, or that say nothing to the model."""
_OF_MESSAGE: Final = {
    "openai": frozenset({"role", "content", "name", "refusal", "tool_calls", "tool_call_id", "function_call"})
    | {"reasoning_content", "reasoning", "encrypted_content"},
    "ollama": frozenset({"role", "content", "images", "tool_calls", "thinking"}),
}
_OF_PART: Final = {
    "image_url": frozenset({"url", "detail"}),
    "video_url": frozenset({"url"}),
    "input_audio": frozenset({"data", "format"}),
    "file": frozenset({"file_data", "file_id", "file_url"}),
}

APART: Final = frozenset({"doubao", "qwen"})
"""Vendors whose `max_tokens` leaves reasoning out. Ark: https://www.volcengine.com/docs/82379/1494384; Qwen:
https://help.aliyun.com/zh/model-studio/use-qwen-by-calling-api."""


class Bound(msgspec.Struct, frozen=True):
    """The most that a call can take over all attempts of its plan."""

    prompt: int
    """Tokens of the largest prompt."""
    output: int
    """Tokens of the longest answer."""
    tokens: int
    """Tokens of both, and of the prompts of attempts that failed before."""
    cost: int
    """Micro-USD; attempts without a known price add nothing."""
    unpriced: bool
    """An attempt has no known price."""
    costs: tuple[int | None, ...] = ()
    """Micro-USD of each attempt by itself; None without a known price."""


def bound(call: Call, attempts: Sequence[Attempt], price: Callable[[Target], Price | None]) -> Bound:
    """What `attempts`, tried in this order until one answers, can take: an attempt that failed after the provider
    took it may be billed for its prompt, so those before the one that answers count with theirs."""
    text = _text_bound(call)
    percent = percent_of(call.raw.get("service_tier"))
    answers = 0 if call.kind == "embed" else _answers(call)
    most = longest = tokens = cost = before_tokens = before_cost = 0
    unpriced = False
    costs: list[int | None] = []
    for attempt in attempts:
        known = price(attempt.target)
        prompt = _prompt_of(text, call, attempt)
        output = output_bound(call, attempt, known)
        most, longest = max(most, prompt), max(longest, output)
        tokens = max(tokens, before_tokens + prompt + output)
        before_tokens += prompt
        if known is None:
            unpriced = True
            costs.append(None)
            cost = max(cost, before_cost)
            continue
        own = -(-known.bound(prompt, output, answers) * percent // 100)
        costs.append(own)
        cost = max(cost, before_cost + own)
        before_cost += -(-known.bound(prompt, 0) * percent // 100)
    return Bound(most, longest, tokens, cost, unpriced, tuple(costs))


def prompt_bound(call: Call, attempt: Attempt | None = None) -> int:
    """Tokens that the prompt can have at most; with `attempt` by its model's images and context."""
    return _prompt_of(_text_bound(call), call, attempt)


def _prompt_of(text: int, call: Call, attempt: Attempt | None) -> int:
    needs = call.needs
    if needs.images:
        mini = attempt is not None and "4o-mini" in attempt.target.model
        text += needs.images * (IMAGE_TOKENS_4O_MINI if mini else IMAGE_TOKENS)
    if attempt is not None and attempt.context is not None and text > attempt.context:
        return attempt.context  # a longer prompt is refused, or cut, before anybody pays for it
    return text


def _text_bound(call: Call) -> int:
    needs = call.needs
    total = (
        _beyond(call)
        + needs.prompt_bytes
        + needs.hidden_bytes
        + CALL_TOKENS
        + MESSAGE_TOKENS * (len(call.messages) + 1)
    )
    if call.kind == "embed":
        return total + MESSAGE_TOKENS * len(call.inputs)
    if needs.media_bytes:
        total += needs.media_bytes // MEDIA_BYTES + IMAGE_TOKENS
    if needs.unseen:
        total += needs.unseen * UNSEEN_TOKENS
    if call.tools:
        total += TOOLS_TOKENS + TOOL_TOKENS * len(call.tools)
        total += 0 if "tools" in call.raw or "functions" in call.raw else _tool_bytes(call)
    if needs.hidden_bytes:
        total += TOOL_TOKENS * sum(len(message.parts) for message in call.messages)
    if call.response_format is not None and "response_format" not in call.raw and "format" not in call.raw:
        total += _json_bytes(call.response_format.schema) + len(call.response_format.description or "") * 4
    if call.op == "generate":
        earlier = call.raw.get("context")
        total += len(earlier) if isinstance(earlier, list) else 0
    return total


def _beyond(call: Call) -> int:
    """JSON bytes of what else goes upstream in a client's body: tools and schemas as they came (a tool that
    `allowed_tools` leaves out is sent all the same), metadata, fields that only some servers know, and such fields
    inside messages and their parts."""
    raw = call.raw
    total = 0
    for name, value in raw.items():
        if type(value) in _LONG and name not in _COUNTED:
            total += _json_bytes(value)
    messages = raw.get("messages")
    known = _OF_MESSAGE.get(call.wire)
    if known is None or type(messages) is not list:
        return total
    for message in messages:
        if type(message) is not dict:
            continue
        if not message.keys() <= known:
            total += _rest(message, known)
        content = message.get("content")
        if type(content) is list:
            total += sum(_part_beyond(part) for part in content)
        calls = message.get("tool_calls")
        if type(calls) is list:
            total += sum(_call_beyond(one) for one in calls)
        for name in ("reasoning_content", "reasoning"):
            if type(message.get(name)) in (dict, list):
                total += _json_bytes(message[name])
    return total


_LONG: Final = frozenset({str, dict, list})


def _rest(value: Mapping[str, Any], known: frozenset[str]) -> int:
    return _json_bytes({name: item for name, item in value.items() if name not in known})


def _part_beyond(part: Any) -> int:
    if type(part) is not dict:
        return 0
    kind = part.get("type")
    spec = part.get(kind) if type(kind) is str else None
    if kind in _OF_PART:
        total = _rest(spec, _OF_PART[kind]) if type(spec) is dict and not spec.keys() <= _OF_PART[kind] else 0
    else:
        total = 0 if type(spec) is str else _json_bytes(spec)
    if len(part) > 2:
        total += _rest(part, frozenset({"type", str(kind)}))
    return total


def _call_beyond(call: Any) -> int:
    """Of one tool call in the history."""
    if type(call) is not dict:
        return 0
    spec = call.get("function", call.get("custom"))
    total = 0 if call.keys() <= _OF_CALL else _rest(call, _OF_CALL)
    if type(spec) is dict and not spec.keys() <= _OF_FUNCTION:
        total += _rest(spec, _OF_FUNCTION)
    return total


_OF_CALL: Final = frozenset({"id", "type", "index", "function", "custom"})
_OF_FUNCTION: Final = frozenset({"name", "arguments", "input"})


def _tool_bytes(call: Call) -> int:
    size = 0
    for tool in call.tools:
        size += len(tool.name.encode("utf-8", "surrogatepass"))
        size += len((tool.description or "").encode("utf-8", "surrogatepass"))
        size += _json_bytes(tool.parameters) + _json_bytes(tool.extras)
    return size


def _json_bytes(value: Any) -> int:
    if not value:
        return 0
    try:
        return len(orjson.dumps(value))
    except TypeError:
        return len(str(value)) * 4  # numbers beyond 64 bits, half characters: rare, and no size is too large for them


def output_bound(call: Call, attempt: Attempt, price: Price | None) -> int:
    """Tokens of all answers together, at most: `max_tokens`, else the model's longest answer (config, price list,
    context, OUTPUT_TOKENS: the first that is known), times the number of answers."""
    if call.kind == "embed":
        return 0
    longest = attempt.max_output or (price.max_output if price is not None else None)
    provider = attempt.target.provider
    if longest is None and provider.local:
        limit = min(attempt.context or OUTPUT_TOKENS, OUTPUT_TOKENS)
    else:
        limit = longest or attempt.context or OUTPUT_TOKENS
    asked = call.sampling.max_tokens
    if asked is None:
        each = limit
    elif call.wire == "openai" and "max_tokens" in call.raw and vendor_of(provider) in APART:
        each = asked + limit
    else:
        each = asked if longest is None else min(asked, longest)
    prediction = call.raw.get("prediction")
    if prediction is not None:
        each += _json_bytes(prediction)  # what of it is not accepted is billed as output all the same
    return each * _answers(call)


def _answers(call: Call) -> int:
    """How many answers are made."""
    answers = call.sampling.n
    if call.kind == "text":
        best_of = call.raw.get("best_of")
        if type(best_of) is int and best_of > answers:
            return best_of
    return answers


def text_tokens(chars: int, wide: int) -> int:
    """Tokens that text probably has: a quarter of its ASCII characters, one for each Chinese character, between one
    and two for an emoji. `wide`: its UTF-8 bytes beyond one for each character."""
    return (2 * chars + 3 * wide + 7) >> 3


def prompt_estimate(call: Call) -> int:
    """Tokens that the prompt probably has, for calls whose provider does not say."""
    needs = call.needs
    chars = needs.prompt_chars + needs.hidden_bytes
    wide = needs.prompt_bytes - needs.prompt_chars
    if call.tools:
        chars += _tool_bytes(call)
    if call.response_format is not None:
        chars += _json_bytes(call.response_format.schema)
    total = text_tokens(chars, wide) + LIKELY_MESSAGE_TOKENS * len(call.messages)
    if needs.token_inputs:
        total = max(total, sum(len(item) for item in call.inputs if not isinstance(item, str)))
    if needs.images:
        total += needs.images * LIKELY_IMAGE_TOKENS
    return total + needs.media_bytes // LIKELY_MEDIA_BYTES
