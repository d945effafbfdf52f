"""The translate lane: a provider's body, through events, into the client's dialect. Splice lanes live with their
wire."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from providers.call import Call
from providers.errors import Broken, UpstreamError
from providers.events import (
    CONTENT,
    Event,
    Failed,
    Finished,
    Media,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolArguments,
    UsageSeen,
)
from providers.wire import EventReader, EventWriter, Frame, FrameKind, Meter, ProviderWire, Stamp, Wire


def observe(meter: Meter, event: Event) -> None:
    """Let the meter see one event."""
    match event:
        case TextDelta(text) | RefusalDelta(text):
            meter.saw(text)
        case ReasoningDelta(text):
            meter.saw(text)
            meter.thought = meter.thought or bool(text)  # a sealed one shows nothing
        case ToolArguments(delta=delta):
            meter.saw(delta)
        case Media():
            meter.images += 1
            meter.frames += 1
        case UsageSeen(usage):
            meter.usage = usage
        case Finished(reason):
            meter.finish = meter.finish or reason
        case Started(model):
            meter.model = model or meter.model
        case _:
            meter.frames += 1


def kind_of(event: Event) -> FrameKind:
    if isinstance(event, CONTENT):
        return "content"
    if isinstance(event, Finished):
        return "terminal"
    return "usage" if isinstance(event, UsageSeen) else "opening"


class TranslateLane:
    """Reader of the provider's wire in front of the writer of the client's."""

    __slots__ = ("_call", "_client", "_closed", "_provider", "_reader", "_stamp", "_writer", "done", "meter")

    def __init__(self, call: Call, provider: ProviderWire, client: Wire, stamp: Stamp) -> None:
        self._call = call
        self._provider = provider
        self._client = client
        self._stamp = stamp
        self._reader: EventReader | None = None
        self._writer: EventWriter | None = None
        self._closed = False
        self.meter = Meter()
        self.done = False

    def feed(self, data: bytes) -> Sequence[Frame]:
        if self._closed:
            return ()
        if self._reader is None:
            self._reader = self._provider.reader(self._call, self._stamp)
        frames = self._frames(self._reader.feed(data))
        self.done = self.done or self._reader.done
        return frames

    def close(self) -> Sequence[Frame]:
        if self._closed:
            return ()
        if self._reader is None:
            self._reader = self._provider.reader(self._call, self._stamp)
        frames = self._frames(self._reader.close())
        if not self._closed:
            self._closed = True
            if self.meter.finish is None and not self.meter.frames:
                frames.append(Frame("error", b"", Broken("the provider's answer ended before it began")))
            elif self._writer is not None:
                frames.append(Frame("terminal", self._writer.close()))
        return frames

    def whole(self, body: bytes) -> bytes:
        events = self._provider.read_answer(self._call, body, self._stamp)
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            observe(self.meter, event)
        return self._client.write_answer(self._call, events, self._stamp)

    def _frames(self, events: Iterable[Event]) -> list[Frame]:
        if self._writer is None:
            self._writer = self._client.writer(self._call, self._stamp)
        frames: list[Frame] = []
        for event in events:
            if isinstance(event, Failed):
                self._closed = self.done = True
                frames.append(Frame("error", b"", event.error))
                break
            observe(self.meter, event)
            try:
                data = self._writer.write(event)
            except UpstreamError as error:
                # What the provider said cannot be said in the client's dialect.
                self._closed = self.done = True
                frames.append(Frame("error", b"", error))
                break
            frames.append(Frame(kind_of(event), data))
        return frames
