"""The canonical request: everything that any wire can say, as frozen values.

A wire's `read_call` builds a `Call` from a client's body, another wire's `write_call` turns it into an upstream body.
The same `Call` may go to several targets one after the other, so nothing in it ever changes. What only one wire can
say rides along in `extras` under that wire's own field names; a target on another wire refuses or drops it by a
visible rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

Kind = Literal["chat", "text", "embed"]
"""chat: messages in, a message out. text: a bare prompt in, its continuation out. embed: texts in, vectors out."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
Effort = Literal["minimal", "low", "medium", "high", "max"]


class Text(Struct, frozen=True, tag="text"):
    text: str


class Image(Struct, frozen=True, tag="image"):
    """An image by value (`data`, base64 in the standard alphabet, no prefix) or by `url` (http or https), never
    both."""

    data: str | None = None
    url: str | None = None
    media_type: str | None = None
    """`image/png` and so on; None when the client's wire does not say (Ollama): sniff with `media.sniff`."""
    detail: str | None = None


class Audio(Struct, frozen=True, tag="audio"):
    data: str
    format: str
    """`wav`, `mp3`, ..."""


class File(Struct, frozen=True, tag="file"):
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    media_type: str | None = None
    name: str | None = None


class ToolUse(Struct, frozen=True, tag="tool_use"):
    """A call the model made. `arguments` is JSON text as the model wrote it: it may be invalid and is passed on as it
    is."""

    id: str
    name: str
    arguments: str
    signature: str | None = None
    """An opaque thought signature that belongs to this call (Gemini)."""


class ToolResult(Struct, frozen=True, tag="tool_result"):
    id: str
    parts: tuple[Text | Image | Audio | File, ...]
    name: str | None = None
    """The function's name, where the client's wire says it (Ollama, Gemini) or the history shows it."""
    is_error: bool = False


class Reasoning(Struct, frozen=True, tag="reasoning"):
    """Earlier reasoning of the assistant. Opaque forms (`signature`, `encrypted`) are only valid at the vendor that
    made them."""

    text: str = ""
    signature: str | None = None
    encrypted: str | None = None
    vendor: str | None = None


class Refusal(Struct, frozen=True, tag="refusal"):
    text: str


Part = Text | Image | Audio | File | ToolUse | ToolResult | Reasoning | Refusal


class Message(Struct, frozen=True):
    """One turn. A tool turn holds only `ToolResult` parts; an assistant turn holds its reasoning, text and tool uses
    in order."""

    role: Role
    parts: tuple[Part, ...]
    name: str | None = None
    extras: Mapping[str, Any] = {}
    """Fields of this message that only its wire knows (Kimi's `partial`, ...)."""


class Tool(Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the arguments; None when the client gave none."""
    strict: bool | None = None
    extras: Mapping[str, Any] = {}
    """For tools that are not functions (Kimi's `builtin_function`): the client's object as it is."""


class ToolChoice(Struct, frozen=True):
    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


class ResponseFormat(Struct, frozen=True):
    kind: Literal["text", "json", "schema"]
    schema: Mapping[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Sampling(Struct, frozen=True):
    """None always means that the client did not say: the provider's default holds."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    n: int = 1
    max_tokens: int | None = None
    """Most tokens of the answer, reasoning included. None: no bound given (Ollama's -1 is None too)."""


class ReasoningAsk(Struct, frozen=True):
    """How much the model is asked to think. `enabled` None: the provider's default."""

    enabled: bool | None = None
    effort: Effort | None = None
    budget: int | None = None
    """Tokens."""
    summary: str | None = None


NO_SAMPLING = Sampling()
NO_REASONING = ReasoningAsk()


class Needs(Struct, frozen=True):
    """What a call requires of a target; `routing.plan` compares it with `Capabilities`."""

    kind: Kind = "chat"
    vision: bool = False
    audio: bool = False
    files: bool = False
    tools: bool = False
    schema: bool = False
    reasoning: bool = False
    """True only when the client insisted on reasoning; an unset or off wish needs nothing."""
    image_urls: bool = False
    token_inputs: bool = False
    """Embedding inputs given as token ids: only wires that take ids can serve them."""
    choices: int = 1
    logprobs: bool = False
    prompt_bytes: int = 0
    """UTF-8 bytes of all text in the prompt: a hard upper bound of its tokens for byte-level vocabularies."""
    prompt_chars: int = 0
    """Characters of that text; a token id counts as one."""
    hidden_bytes: int = 0
    """UTF-8 bytes that a provider may or may not show the model: names and ids of tool calls, names of speakers,
    earlier reasoning and refusals."""
    images: int = 0
    media_bytes: int = 0
    """Bytes of audio and documents given by value."""
    unseen: int = 0
    """Documents given by URL or id: how long they are is known to the provider alone."""


class Call(Struct, frozen=True, kw_only=True):
    wire: str
    """The client's wire: openai, ollama, gemini, anthropic, responses."""
    op: str
    """The operation in that wire's own words: chat, completions, embeddings, generate, embed, ... The writer needs
    it."""
    kind: Kind
    asked_model: str
    raw: Mapping[str, Any]
    """The client's body, parsed and checked. The splice lane patches a shallow copy of it; nobody edits it."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    """kind text: what to continue."""
    suffix: str | None = None
    untemplated: bool = False
    """kind text: the prompt goes to the model as it is, without a chat template (Ollama's `raw`)."""
    inputs: tuple[str | tuple[int, ...], ...] = ()
    """kind embed: texts, or token ids."""
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    """kind embed: the form in which the client wants vectors."""
    truncate: bool | None = None

    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tools: bool | None = None
    response_format: ResponseFormat | None = None
    sampling: Sampling = NO_SAMPLING
    reasoning: ReasoningAsk = NO_REASONING
    logprobs: bool = False
    top_logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    """The client asked for usage in its stream. Wires that always carry it (Ollama, Gemini) set it True."""
    user: str | None = None
    metadata: Mapping[str, Any] | None = None
    keep_alive: Any = None
    """Ollama's keep_alive as given: seconds, or a duration string; None when absent."""
    extras: Mapping[str, Any] = {}
    """Top-level fields that only the client's wire knows, under their own names (Ollama: its leftover `options`)."""
    needs: Needs = Needs()


def needs_of(
    kind: Kind,
    messages: tuple[Message, ...],
    *,
    tools: bool = False,
    schema: bool = False,
    reasoning: bool = False,
    choices: int = 1,
    logprobs: bool = False,
    prompt: str = "",
    inputs: tuple[str | tuple[int, ...], ...] = (),
) -> Needs:
    """Walk the parts once and say what a target must be able to do."""
    audio = files = urls = False
    images = media = unseen = hidden = 0
    chars = len(prompt)
    size = _size(prompt)
    for message in messages:
        if message.name:
            hidden += _size(message.name)
        for part in message.parts:
            if type(part) is Text:
                text = part.text
                chars += len(text)
                size += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
                continue
            inner: tuple[Part, ...] = (part,)
            if type(part) is ToolResult:
                inner = part.parts
                hidden += _size(part.id) + _size(part.name)
            for piece in inner:
                match piece:
                    case Text(text):
                        chars += len(text)
                        size += _size(text)
                    case Image(url=url):
                        images += 1
                        urls = urls or url is not None
                    case Audio(data):
                        audio = True
                        media += len(data) * 3 // 4
                    case File(data):
                        files = True
                        media += len(data or "") * 3 // 4
                        unseen += data is None
                    case ToolUse(id, name, arguments):
                        chars += len(arguments)
                        size += _size(arguments)
                        hidden += _size(id) + _size(name)
                    case Reasoning(text, _, encrypted):
                        hidden += _size(text) + _size(encrypted)
                    case Refusal(text):
                        hidden += _size(text)
                    case _:
                        pass
    ids = False
    for item in inputs:
        if isinstance(item, str):
            chars += len(item)
            size += _size(item)
        else:
            ids = True
            chars += len(item)
            size += len(item)
    return Needs(
        kind=kind,
        vision=images > 0,
        audio=audio,
        files=files,
        tools=tools,
        schema=schema,
        reasoning=reasoning,
        image_urls=urls,
        token_inputs=ids,
        choices=choices,
        logprobs=logprobs,
        prompt_bytes=size,
        prompt_chars=chars,
        hidden_bytes=hidden,
        images=images,
        media_bytes=media,
        unseen=unseen,
    )


def _size(text: str | None) -> int:
    """UTF-8 bytes."""
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
