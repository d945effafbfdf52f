"""Events to what an Ollama client reads: one JSON object a line, or one whole object.

Lines are cut by real clients at U+2028, U+2029 and U+0085, so those are escaped. A tool call goes out once, whole,
when the answer is complete. `content_filter` has no word here: what was said before it ends as `stop`, and where
nothing was said it is an error, since an empty answer would look like the model's own. Only choice 0 exists. Counts
that the provider did not give are left out, as a real Ollama leaves out zeros: unknown is not zero.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any, Final

import orjson

from providers.call import Call
from providers.errors import Broken, ContentFiltered
from providers.events import (
    Event,
    Finished,
    FinishReason,
    Logprobs,
    Media,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolArguments,
    ToolStart,
    Usage,
    UsageSeen,
    Vector,
)
from providers.framing import line_safe
from providers.wire import Stamp
from providers.wires.ollama.failures import dumps

DONE: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "tool_calls": "stop",
    "length": "length",
    "content_filter": "stop",
}

_SECOND: Final = 1_000_000_000


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with microseconds."""
    whole, part = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{part:06d}Z"


def text_json(text: str) -> bytes:
    """A JSON string that no line splitter cuts."""
    if text.isascii():
        return encode_basestring_ascii(text).encode()
    return line_safe(dumps(text))


class ToolGatherer:
    """Collects the pieces of tool calls until they are whole."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, str, list[str]]] = {}

    def start(self, event: ToolStart) -> None:
        self._calls[event.index] = (event.id, event.name, [])

    def add(self, event: ToolArguments) -> None:
        held = self._calls.get(event.index)
        if held is not None:
            held[2].append(event.delta)

    def take(self, reason: FinishReason) -> list[dict[str, Any]]:
        """The calls in Ollama's shape. One that the token limit cut is left out: `done_reason` says `length`.

        Raises Broken for arguments that are no JSON object: Ollama can only carry objects, and an empty one would be
        a lie.
        """
        found: list[dict[str, Any]] = []
        for call_id, name, pieces in self._calls.values():
            text = "".join(pieces)
            try:
                arguments = orjson.loads(text) if text.strip() else {}
            except orjson.JSONDecodeError:
                arguments = None
            if not isinstance(arguments, dict):
                if reason == "length":
                    continue
                raise Broken(f"the model's arguments for the tool {name[:80]} are not a JSON object")
            found.append({"id": call_id, "function": {"index": len(found), "name": name, "arguments": arguments}})
        self._calls = {}
        return found


class Writer:
    """A stream for one client. The last line waits for `close`, since usage may come after the finish reason."""

    __slots__ = (
        "_chat",
        "_clock",
        "_created",
        "_first",
        "_reason",
        "_second",
        "_show_thinking",
        "_stem",
        "_tools",
        "_usage",
    )

    def __init__(self, call: Call, stamp: Stamp) -> None:
        self._chat = call.op == "chat"
        self._clock = stamp.clock
        self._created = stamp.created
        self._stem = b'{"model":' + text_json(call.asked_model) + b',"created_at":"'
        self._second = (-1, b"")
        self._show_thinking = call.reasoning.enabled is not False
        self._tools = ToolGatherer()
        self._first: float | None = None
        self._usage: Usage | None = None
        self._reason: FinishReason = "stop"

    def write(self, event: Event) -> bytes:
        kind = type(event)
        if kind is TextDelta or kind is RefusalDelta:
            assert isinstance(event, (TextDelta, RefusalDelta))
            if event.choice or not event.text:
                return b""
            text = text_json(event.text)
            return self._line(
                b'"message":{"role":"assistant","content":' + text + b"}" if self._chat else b'"response":' + text
            )
        match event:
            case ReasoningDelta(text=thought, choice=0):
                if not thought or not self._show_thinking:
                    return b""
                shown = b'"thinking":' + text_json(thought)
                return self._line(self._message(shown) if self._chat else b'"response":"",' + shown)
            case ToolStart(choice=0):
                self._tools.start(event)
            case ToolArguments(choice=0):
                self._tools.add(event)
            case Logprobs(entries=entries, choice=0):
                shown = b'"logprobs":' + line_safe(dumps(entries))
                return self._line((self._message() if self._chat else b'"response":""') + b"," + shown)
            case Media(data=data, choice=0) if self._chat:
                return self._line(self._message(b'"images":[' + text_json(data) + b"]"))
            case UsageSeen(usage):
                self._usage = usage
            case Finished(reason=reason, native=native, choice=0):
                self._reason = reason
                out = self._finish(reason)
                if reason == "content_filter" and self._first is None:
                    raise filtered(native)
                return out
            case _:
                pass
        return b""

    def close(self) -> bytes:
        now = self._clock()
        first = self._created if self._first is None else self._first
        body = self._message() if self._chat else b'"response":""'
        last = dumps(final_fields(self._reason, self._usage, self._created, first, now))
        return self._stem + self._now(now) + b'Z",' + body + b"," + last[1:] + b"\n"

    def _finish(self, reason: FinishReason) -> bytes:
        calls = self._tools.take(reason)
        if not calls:
            return b""
        shown = b'"tool_calls":' + line_safe(dumps(calls))
        return self._line(self._message(shown) if self._chat else b'"response":"",' + shown)

    @staticmethod
    def _message(more: bytes = b"") -> bytes:
        return b'"message":{"role":"assistant","content":""' + (b"," + more if more else b"") + b"}"

    def _line(self, body: bytes) -> bytes:
        now = self._clock()
        if self._first is None:
            self._first = now
        return self._stem + self._now(now) + b'Z",' + body + b',"done":false}\n'

    def _now(self, now: float) -> bytes:
        """The time up to the microsecond; the part down to the second is formatted once a second."""
        whole, part = divmod(int(now * 1_000_000), 1_000_000)
        if self._second[0] != whole:
            self._second = (whole, f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.".encode())
        return self._second[1] + b"%06d" % part


def filtered(native: str | None) -> ContentFiltered:
    why = f" ({native})" if native and native != "content_filter" else ""
    return ContentFiltered(f"the provider's content filter let no answer through{why}")


def final_fields(reason: FinishReason, usage: Usage | None, created: float, first: float, now: float) -> dict[str, Any]:
    """The fields that only the last object has. Durations are nanoseconds; the answer's own one is at least 1, since
    front ends divide by it. `first` is when the first content came: until then the prompt was read.
    """
    found: dict[str, Any] = {
        "done": True,
        "done_reason": DONE[reason],
        "total_duration": max(1, round((now - created) * _SECOND)),
    }
    if usage is not None and usage.input is not None:
        found["prompt_eval_count"] = usage.input
    prompt = round((first - created) * _SECOND)
    if prompt > 0:
        found["prompt_eval_duration"] = prompt
    if usage is not None and usage.output is not None:
        found["eval_count"] = usage.output
    found["eval_duration"] = max(1, round((now - first) * _SECOND))
    return found


def write_answer(call: Call, events: Iterable[Event], stamp: Stamp) -> bytes:
    """The whole answer. Raises Broken when a tool call cannot be said, ContentFiltered when a filter left nothing."""
    if call.kind == "embed":
        return _vectors(call, events, stamp)
    text: list[str] = []
    thinking: list[str] = []
    images: list[str] = []
    logprobs: list[Any] = []
    tools = ToolGatherer()
    usage: Usage | None = None
    reason: FinishReason = "stop"
    native: str | None = None
    for event in events:
        match event:
            case TextDelta(text=piece, choice=0) | RefusalDelta(text=piece, choice=0):
                text.append(piece)
            case ReasoningDelta(text=piece, choice=0):
                thinking.append(piece)
            case ToolStart(choice=0):
                tools.start(event)
            case ToolArguments(choice=0):
                tools.add(event)
            case Logprobs(entries=entries, choice=0):
                logprobs += entries
            case Media(data=data, choice=0):
                images.append(data)
            case UsageSeen(seen):
                usage = seen
            case Finished(reason=found, native=native, choice=0):
                reason = found
            case _:
                pass
    said: dict[str, Any] = {"thinking": "".join(thinking)} if call.reasoning.enabled is not False else {}
    said["tool_calls"] = tools.take(reason)
    said = {key: value for key, value in said.items() if value}
    content = "".join(text)
    if reason == "content_filter" and not (content or said or images):
        raise filtered(native)
    now = stamp.clock()
    answer: dict[str, Any] = {"model": call.asked_model, "created_at": timestamp(now)}
    if call.op == "chat":
        if images:
            said["images"] = images
        answer["message"] = {"role": "assistant", "content": content, **said}
    else:
        answer |= {"response": content, **said}
    if logprobs:
        answer["logprobs"] = logprobs
    answer |= final_fields(reason, usage, stamp.created, stamp.created, now)
    return line_safe(dumps(answer))


def _vectors(call: Call, events: Iterable[Event], stamp: Stamp) -> bytes:
    found: dict[int, tuple[float, ...]] = {}
    usage: Usage | None = None
    for event in events:
        if isinstance(event, Vector):
            found[event.index] = event.values if isinstance(event.values, tuple) else _unpacked(event.values)
        elif isinstance(event, UsageSeen):
            usage = event.usage
    vectors = [found[index] for index in sorted(found)]
    if call.op == "embeddings":
        return dumps({"embedding": vectors[0] if vectors else []})
    answer: dict[str, Any] = {
        "model": call.asked_model,
        "embeddings": vectors,
        "total_duration": max(1, round((stamp.clock() - stamp.created) * _SECOND)),
    }
    if usage is not None and usage.input is not None:
        answer["prompt_eval_count"] = usage.input
    return line_safe(dumps(answer))


def _unpacked(text: str) -> tuple[float, ...]:
    """base64 of little-endian float32 to numbers."""
    try:
        data = base64.b64decode(text, validate=True)
        return struct.unpack(f"<{len(data) // 4}f", data)
    except (ValueError, struct.error) as bad:
        raise Broken(f"the provider's embedding is not base64 of float32 values: {bad}") from None
