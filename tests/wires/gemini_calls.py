"""What the Gemini tests share: calls, stamps and chunk cutting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from providers.call import Call, Message, Part, Role, Text
from providers.events import Event
from providers.wire import EventReader, ProviderWire, Stamp


def stamp(model: str = "gemini-2.5-flash") -> Stamp:
    return Stamp(request_id="req_0123456789abcdef", created=1.0, clock=lambda: 2.0, answered_by=model)


def said(role: Role, *parts: Part | str) -> Message:
    return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))


def chat(*messages: Message, **fields: Any) -> Call:
    turns = messages or (said("user", "hi"),)
    given: dict[str, Any] = {"wire": "openai", "op": "chat", "kind": "chat", "asked_model": "m", "raw": {}}
    return Call(**(given | {"messages": turns} | fields))


def cuts(body: bytes, size: int) -> Iterator[bytes]:
    """Pieces of `size` bytes; 0 means all at once."""
    step = size or len(body) or 1
    yield from (body[at : at + step] for at in range(0, len(body), step))


def events_of(reader: EventReader, chunks: Iterator[bytes] | Sequence[bytes]) -> list[Event]:
    return [event for chunk in chunks for event in reader.feed(chunk)] + list(reader.close())


def sse(*objects: Any) -> bytes:
    return b"".join(b"data: " + orjson.dumps(item) + b"\r\n\r\n" for item in objects)


def read(wire: ProviderWire, call: Call, *objects: Any, model: str = "gemini-2.5-flash") -> list[Event]:
    return events_of(wire.reader(call, stamp(model)), [sse(*objects)])


def chunk(
    *parts: dict[str, Any], finish: str | None = None, usage: dict[str, int] | None = None, **more: Any
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}}
    if finish is not None:
        candidate["finishReason"] = finish
    found: dict[str, Any] = {"candidates": [candidate], **more}
    if usage is not None:
        found["usageMetadata"] = usage
    return found
