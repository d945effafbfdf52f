"""What the Ollama tests share: a clock that counts, calls, lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import orjson

from providers.call import Call, Message, Part, Role, Text
from providers.wire import Stamp
from providers.wires.ollama import WIRE

CHUNK_SIZES = (1, 7, 0)
"""Bytes a piece; 0: everything at once."""


def stamp() -> Stamp:
    """The call came at second 1000; every look at the clock is half a second later."""
    ticks = count(2001)
    return Stamp(request_id="req_1", created=1000.0, clock=lambda: next(ticks) / 2, answered_by="sent")


def ask(op: str = "chat", **body: Any) -> Call:
    """A call as an Ollama client sends it."""
    return WIRE.read_call(op, {"model": "m", **body})


def user(text: str = "hi") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def foreign(*turns: Message, **fields: Any) -> Call:
    """A call that came in on another wire."""
    given: dict[str, Any] = {"wire": "openai", "op": "chat", "kind": "chat", "asked_model": "m", "raw": {}}
    return Call(**(given | {"messages": turns or (said("user", "hi"),)} | fields))


def said(role: Role, *parts: Part | str) -> Message:
    return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))


def chunk(content: str | None = "", *, model: str = "sent", **fields: Any) -> dict[str, Any]:
    """A line of a chat stream. Fields of the message: thinking, tool_calls, images."""
    inner = {key: fields.pop(key) for key in ("thinking", "tool_calls", "images") if key in fields}
    return {
        "model": model,
        "created_at": "2026-03-02T10:11:12.1Z",
        "message": {"role": "assistant", "content": content, **inner},
        "done": False,
        **fields,
    }


def last(**fields: Any) -> dict[str, Any]:
    return chunk(done=True, **{"done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3, **fields})


def lines(*objects: Any) -> bytes:
    return b"".join(orjson.dumps(item) + b"\n" for item in objects)


def cuts(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size or max(1, len(data))):
        yield data[at : at + size] if size else data
