"""The canonical answer: a sequence of events. A whole answer is the same events, folded.

Order: `Started` (at most once), then deltas in any mix, `UsageSeen` whenever the provider says something (cumulative:
set, never add), `Finished` once for each choice. A stream that ends without `Finished` is truncated: the reader
reports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from providers.errors import UpstreamError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Usage(Struct, frozen=True):
    """Tokens of one call. None means unknown; 0 means the provider said zero. `cached` is part of `input`,
    `reasoning` of `output`."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    media: int | None = None


class Started(Struct, frozen=True):
    model: str | None = None
    """The model that the provider says answers."""
    id: str | None = None


class TextDelta(Struct, frozen=True):
    text: str
    choice: int = 0


class ReasoningDelta(Struct, frozen=True):
    text: str = ""
    signature: str | None = None
    encrypted: str | None = None
    choice: int = 0


class RefusalDelta(Struct, frozen=True):
    text: str
    choice: int = 0


class ToolStart(Struct, frozen=True):
    """A tool call begins. `index` counts from 0 without gaps within a choice; `id` is never empty (readers make
    one)."""

    index: int
    id: str
    name: str
    signature: str | None = None
    choice: int = 0


class ToolArguments(Struct, frozen=True):
    """A piece of the arguments' JSON text for the call at `index`."""

    index: int
    delta: str
    choice: int = 0


class Media(Struct, frozen=True):
    """Media made by the model, by value (base64)."""

    data: str
    media_type: str
    choice: int = 0


class Annotation(Struct, frozen=True):
    """A citation or the like, in OpenAI's `annotations` shape."""

    value: Mapping[str, Any]
    choice: int = 0


class Logprobs(Struct, frozen=True):
    """Entries in OpenAI's `logprobs.content` shape: token, logprob, bytes, top_logprobs."""

    entries: tuple[Mapping[str, Any], ...]
    choice: int = 0


class Vector(Struct, frozen=True):
    """One embedding. `values` are floats, or base64 of little-endian float32 as it came."""

    index: int
    values: tuple[float, ...] | str


class UsageSeen(Struct, frozen=True):
    usage: Usage


class Finished(Struct, frozen=True):
    reason: FinishReason
    native: str | None = None
    choice: int = 0


class Failed(Struct, frozen=True):
    """The provider broke off. Nothing follows."""

    error: UpstreamError


Event = (
    Started
    | TextDelta
    | ReasoningDelta
    | RefusalDelta
    | ToolStart
    | ToolArguments
    | Media
    | Annotation
    | Logprobs
    | Vector
    | UsageSeen
    | Finished
    | Failed
)

CONTENT: tuple[type, ...] = (
    TextDelta,
    ReasoningDelta,
    RefusalDelta,
    ToolStart,
    ToolArguments,
    Media,
    Annotation,
    Logprobs,
    Vector,
)
"""Events that commit us: once one was sent to the client, the target is final."""
