"""What a wire is: one wire format with both directions for both sides; `ProviderWire` is the half that no client
speaks.

Towards the client: `read_call`, `writer`, `write_answer`, `write_error`. Towards the provider: `write_call`, `path`,
`reader`, `read_answer`, `read_error`. Where client and provider speak the same wire, `splice` passes frames on as
they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from msgspec import Struct

from providers.call import Call
from providers.errors import SwitchyardError, UpstreamError
from providers.events import Event, FinishReason, Usage

FrameKind = Literal["opening", "content", "usage", "terminal", "error"]
"""opening: commits nothing (role frame, keep-alive). content: commits us. usage: numbers only. terminal: the answer
is complete (a finish reason or the end mark). error: the provider failed; nothing follows."""


class Frame(NamedTuple):
    """Bytes for the client, tagged. `data` may be empty (a hidden usage frame). kind `error` carries `error` and no
    data."""

    kind: FrameKind
    data: bytes
    error: UpstreamError | None = None


class Stamp(Struct, frozen=True):
    """What a writer may not invent itself: identity and time."""

    request_id: str
    """Unique; writers derive `chatcmpl-...` and tool call ids from it."""
    created: float
    """Unix seconds when the call came in."""
    clock: Callable[[], float]
    """Unix seconds now."""
    answered_by: str
    """The sent model of the target, for wires that name the answering model when the provider does not."""


class Meter:
    """What a lane has seen so far. Settlement reads it, also after a disconnect."""

    __slots__ = ("chars", "finish", "frames", "images", "model", "thought", "usage", "wide")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        """The provider's latest word, cumulative."""
        self.chars = 0
        """Characters of content that went by: text, reasoning, tool arguments."""
        self.wide = 0
        """UTF-8 bytes of that content beyond one for each character: 0 for ASCII, 2 for a Chinese character."""
        self.images = 0
        """Images, and other media, that the model made."""
        self.frames = 0
        """Content frames that went by."""
        self.thought = False
        """Some of them held reasoning: it is streamed, not hidden."""
        self.finish: FinishReason | None = None
        self.model: str | None = None
        """The model that the provider says answers."""

    def saw(self, text: str) -> None:
        """A content frame with this text went by."""
        self.frames += 1
        self.chars += len(text)
        if not text.isascii():
            self.wide += wide_bytes(text)


def wide_bytes(text: str) -> int:
    """UTF-8 bytes of `text` beyond one for each character."""
    return len(text.encode("utf-8", "surrogatepass")) - len(text)


class Lane(Protocol):
    """Turns a provider's body into the client's bytes; splice and translate look the same to the engine."""

    meter: Meter
    done: bool
    """The provider has said its last word (`[DONE]`, `done: true`): read no further."""

    def feed(self, data: bytes) -> Sequence[Frame]:
        """Take bytes cut anywhere. Never raises: what cannot be understood becomes an error frame, the last one."""
        ...

    def close(self) -> Sequence[Frame]:
        """The body ended. Gives the closing frames, or an error frame when no terminal was seen."""
        ...

    def whole(self, body: bytes) -> bytes:
        """An answer that is not streamed: the client's body. Raises UpstreamError when it is no complete answer (200
        with an error in it, half JSON, HTML)."""
        ...


class EventReader(Protocol):
    """Provider's stream bytes to events."""

    done: bool

    def feed(self, data: bytes) -> Iterable[Event]:
        """Bytes cut anywhere. A stream error is `Failed`; garbage too. Never raises."""
        ...

    def close(self) -> Iterable[Event]:
        """The body ended: the held-back rest, or `Failed(Broken)` when no `Finished` was seen."""
        ...


class EventWriter(Protocol):
    """Events to the client's stream bytes."""

    def write(self, event: Event) -> bytes:
        """The bytes of one event, b"" for what the wire does not say or holds back. `Failed` is not given here.

        Raises UpstreamError for what this wire cannot carry (tool arguments that are no object, towards Ollama).
        """
        ...

    def close(self) -> bytes:
        """After the last event: usage chunk if asked for, end mark."""
        ...


class ProviderWire(Protocol):
    """The half of a wire that talks to providers: enough for a vendor."""

    name: str
    stream_type: str
    """Content type of a streamed answer: `text/event-stream; charset=utf-8`, `application/x-ndjson`."""

    def write_call(self, call: Call, sent_model: str) -> dict[str, Any]:
        """The upstream body for a call that came in on any wire. Raises UnsupportedFeature for what this wire cannot
        say and that may not be dropped (images by URL to Ollama, token-id inputs, ...)."""
        ...

    def path(self, call: Call, sent_model: str) -> str:
        """Below the provider's base URL, with a leading slash and any query."""
        ...

    def reader(self, call: Call, stamp: Stamp) -> EventReader: ...

    def read_answer(self, call: Call, body: bytes, stamp: Stamp) -> Sequence[Event]:
        """Events of a whole answer. Raises UpstreamError (see Lane.whole)."""
        ...

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """Classify a provider's error answer (status >= 400, or 200 with an error in it). Header names are lower case.
        Never raises; the message is cleaned and at most 500 characters."""
        ...


class Wire(ProviderWire, Protocol):
    """A wire that clients speak too."""

    whole_type: str

    def read_call(self, op: str, body: Mapping[str, Any], *, path_model: str | None = None) -> Call:
        """Check a client's body and give its `Call`. `path_model` is the model in the URL (Gemini). Explicit nulls mean
        absent.

        Raises InvalidRequest with `param` naming the field (`messages[0].role`).
        """
        ...

    def writer(self, call: Call, stamp: Stamp) -> EventWriter: ...

    def write_answer(self, call: Call, events: Iterable[Event], stamp: Stamp) -> bytes:
        """The client's whole answer: the events, folded."""
        ...

    def splice(self, call: Call, stamp: Stamp) -> Lane:
        """Client and provider speak this wire: frames go on as bytes, a tap looks for content, usage, error and end."""
        ...

    def write_error(self, error: SwitchyardError, request_id: str) -> bytes:
        """The body of an error answer in this dialect."""
        ...

    def write_stream_error(self, call: Call, error: SwitchyardError, request_id: str) -> bytes:
        """The last bytes of a stream that failed after it began."""
        ...
