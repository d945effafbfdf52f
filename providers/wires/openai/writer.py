"""Events to an OpenAI client: chunks as OpenAI sends them, and whole answers.

The order of docs section "streaming" is kept: the role once per choice, then deltas, then one finish chunk per choice,
then the usage chunk (only when asked for), then `[DONE]`. Reasoning goes out as `reasoning_content` and as
`reasoning`: clients read either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from providers.call import Call
from providers.events import (
    Annotation,
    Event,
    Finished,
    FinishReason,
    Logprobs,
    Media,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolArguments,
    ToolStart,
    Usage,
    UsageSeen,
    Vector,
)
from providers.framing import DONE, line_safe, sse
from providers.media import data_uri
from providers.wire import Stamp
from providers.wires.openai.usage import write_usage
from providers.wires.openai.vectors import to_base64, to_floats


def signed(signature: str) -> dict[str, Any]:
    """`extra_content` of a call: where Google's own OpenAI endpoint puts thought signatures. Clients send them back."""
    return {"google": {"thought_signature": signature}}


def answer_id(stamp: Stamp, prefix: str = "chatcmpl-") -> str:
    return prefix + stamp.request_id.removeprefix("req_")


def legacy_functions(call: Call) -> bool:
    """Whether the client speaks of `functions`, the form before tools."""
    return "functions" in call.raw and "tools" not in call.raw


class _Written:
    __slots__ = ("bare", "finished", "role", "tools")

    def __init__(self) -> None:
        self.role = False
        self.finished = False
        self.tools = 0
        self.bare: set[int] = set()
        """Calls without arguments so far."""


class ChatWriter:
    def __init__(self, call: Call, stamp: Stamp) -> None:
        self._call = call
        self._stamp = stamp
        self._model = stamp.answered_by
        self._usage: Usage | None = None
        self._choices: dict[int, _Written] = {}
        self._legacy = legacy_functions(call)
        self._head = b""
        self._tail = b',"usage":null}' if call.include_usage else b"}"
        self._closed = False

    def write(self, event: Event) -> bytes:
        if type(event) is TextDelta:
            return self._delta(event.choice, b'{"content":' + orjson.dumps(event.text) + b"}")
        if type(event) is ReasoningDelta:
            return self._reasoning(event)
        if type(event) is ToolStart or type(event) is ToolArguments:
            return self._tool(event)
        if type(event) is Finished:
            return self._finish(event)
        if type(event) is Started:
            if event.model and not self._head:
                self._model = event.model
        elif type(event) is UsageSeen:
            self._usage = event.usage
        elif type(event) is RefusalDelta:
            return self._delta(event.choice, orjson.dumps({"refusal": event.text}))
        elif type(event) is Annotation:
            return self._delta(event.choice, orjson.dumps({"annotations": [event.value]}))
        elif type(event) is Logprobs:
            logprobs = orjson.dumps({"content": event.entries, "refusal": None})
            return self._delta(event.choice, b'{"content":""}', logprobs)
        elif type(event) is Media:
            return self._delta(event.choice, orjson.dumps(_media(event, self._stamp)))
        return b""

    def close(self) -> bytes:
        if self._closed:
            return b""
        self._closed = True
        if not self._call.include_usage or self._usage is None:
            return DONE
        chunk = self._prefix() + b'],"usage":' + orjson.dumps(write_usage(self._usage)) + b"}"
        return b"data: " + line_safe(chunk) + b"\n\n" + DONE

    def _prefix(self) -> bytes:
        if not self._head:
            head = {
                "id": answer_id(self._stamp),
                "object": "chat.completion.chunk",
                "created": int(self._stamp.created),
                "model": self._model,
            }
            self._head = orjson.dumps(head)[:-1] + b',"choices":['
        return self._head

    def _chunk(self, index: int, delta: bytes, logprobs: bytes = b"null", finish: bytes = b"null") -> bytes:
        return b"data: %b%b\n\n" % (
            self._prefix(),
            line_safe(
                b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b'
                % (index, delta, logprobs, finish, self._tail)
            ),
        )

    def _state(self, index: int) -> _Written:
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _Written()
        return state

    def _delta(self, index: int, delta: bytes, logprobs: bytes = b"null") -> bytes:
        state = self._state(index)
        if state.role:
            return self._chunk(index, delta, logprobs)
        state.role = True
        return self._chunk(index, _ROLE) + self._chunk(index, delta, logprobs)

    def _reasoning(self, event: ReasoningDelta) -> bytes:
        delta: dict[str, str] = {}
        if event.text:
            delta["reasoning_content"] = delta["reasoning"] = event.text
        if event.encrypted:
            delta["encrypted_content"] = event.encrypted
        return self._delta(event.choice, orjson.dumps(delta)) if delta else b""

    def _tool(self, event: ToolStart | ToolArguments) -> bytes:
        state = self._state(event.choice)
        entry: dict[str, Any]
        if type(event) is ToolStart:
            entry = {
                "index": event.index,
                "id": event.id,
                "type": "function",
                "function": {"name": event.name, "arguments": ""},
            }
            if event.signature is not None:
                entry["extra_content"] = signed(event.signature)
            state.tools += 1
            state.bare.add(event.index)
        else:
            assert type(event) is ToolArguments
            if not event.delta:
                return b""
            entry = {"index": event.index, "function": {"arguments": event.delta}}
            state.bare.discard(event.index)
        if self._legacy:
            return self._delta(event.choice, orjson.dumps({"function_call": entry["function"]}))
        return self._delta(event.choice, orjson.dumps({"tool_calls": [entry]}))

    def _finish(self, event: Finished) -> bytes:
        state = self._state(event.choice)
        if state.finished:
            return b""
        out = b"".join(self._tool(ToolArguments(index, "{}", event.choice)) for index in sorted(state.bare))
        if not state.role:
            state.role = True
            out += self._chunk(event.choice, _ROLE)
        state.finished = True
        reason = finish_word(event.reason, state.tools > 0, self._legacy)
        return out + self._chunk(event.choice, b"{}", finish=orjson.dumps(reason))


_ROLE = b'{"role":"assistant","content":"","refusal":null}'


def finish_word(reason: FinishReason, called: bool, legacy: bool) -> str:
    if called and reason == "stop":
        reason = "tool_calls"
    return "function_call" if legacy and reason == "tool_calls" else reason


def _media(event: Media, stamp: Stamp) -> dict[str, Any]:
    if event.media_type.startswith("audio/"):
        return {"audio": {"id": answer_id(stamp, "audio_"), "data": event.data, "transcript": ""}}
    return {"images": [{"type": "image_url", "image_url": {"url": data_uri(event.data, event.media_type)}}]}


class TextWriter:
    """Legacy completions: text instead of deltas, no role."""

    def __init__(self, call: Call, stamp: Stamp) -> None:
        self._call = call
        self._stamp = stamp
        self._model = stamp.answered_by
        self._usage: Usage | None = None
        self._finished: set[int] = set()
        self._closed = False

    def write(self, event: Event) -> bytes:
        if type(event) is TextDelta:
            return self._chunk([{"text": event.text, "index": event.choice, "logprobs": None, "finish_reason": None}])
        if type(event) is Finished and event.choice not in self._finished:
            self._finished.add(event.choice)
            reason = "stop" if event.reason == "tool_calls" else event.reason
            return self._chunk([{"text": "", "index": event.choice, "logprobs": None, "finish_reason": reason}])
        if type(event) is UsageSeen:
            self._usage = event.usage
        elif type(event) is Started and event.model:
            self._model = event.model
        return b""

    def close(self) -> bytes:
        if self._closed:
            return b""
        self._closed = True
        if not self._call.include_usage or self._usage is None:
            return DONE
        return self._chunk([], {"usage": write_usage(self._usage)}) + DONE

    def _chunk(self, choices: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        body = {
            "id": answer_id(self._stamp, "cmpl-"),
            "object": "text_completion",
            "created": int(self._stamp.created),
            "model": self._model,
            "choices": choices,
        }
        if self._call.include_usage:
            body["usage"] = None
        return sse(orjson.dumps({**body, **(more or {})}))


class _Folded:
    """One choice of a whole answer."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.encrypted = ""
        self.refusal: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.arguments: list[list[str]] = []
        self.notes: list[Mapping[str, Any]] = []
        self.logprobs: list[Mapping[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.audio: dict[str, Any] | None = None
        self.reason: FinishReason = "stop"


def _fold(events: Iterable[Event], stamp: Stamp) -> tuple[str, Usage | None, dict[int, _Folded], list[Vector]]:
    model, usage = stamp.answered_by, None
    choices: dict[int, _Folded] = {}
    vectors: list[Vector] = []
    for event in events:
        if isinstance(event, Started):
            model = event.model or model
            continue
        if isinstance(event, UsageSeen):
            usage = event.usage
            continue
        if isinstance(event, Vector):
            vectors.append(event)
            continue
        index = getattr(event, "choice", 0)
        folded = choices.get(index)
        if folded is None:
            folded = choices[index] = _Folded()
        match event:
            case TextDelta(text):
                folded.text.append(text)
            case ReasoningDelta(text, encrypted=encrypted):
                folded.reasoning.append(text)
                folded.encrypted = encrypted or folded.encrypted
            case RefusalDelta(text):
                folded.refusal.append(text)
            case ToolStart(id=ident, name=name, signature=signature):
                made_call: dict[str, Any] = {"id": ident, "type": "function", "function": {"name": name}}
                if signature is not None:
                    made_call["extra_content"] = signed(signature)
                folded.calls.append(made_call)
                folded.arguments.append([])
            case ToolArguments(position, delta):
                folded.arguments[position].append(delta)
            case Annotation(value):
                folded.notes.append(value)
            case Logprobs(entries):
                folded.logprobs.extend(entries)
            case Media():
                made = _media(event, stamp)
                folded.images.extend(made.get("images", ()))
                folded.audio = made.get("audio") or folded.audio
            case Finished(reason):
                folded.reason = reason
            case _:
                pass
    return model, usage, choices, vectors


def _message(folded: _Folded, legacy: bool) -> dict[str, Any]:
    text = "".join(folded.text)
    refusal = "".join(folded.refusal)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not (folded.calls or refusal) else None,
        "refusal": refusal or None,
        "annotations": folded.notes,
    }
    reasoning = "".join(folded.reasoning)
    if reasoning:
        message["reasoning_content"] = message["reasoning"] = reasoning
    if folded.encrypted:
        message["encrypted_content"] = folded.encrypted
    for call, pieces in zip(folded.calls, folded.arguments, strict=True):
        call["function"]["arguments"] = "".join(pieces) or "{}"
    if folded.calls and legacy:
        message["function_call"] = folded.calls[0]["function"]
    elif folded.calls:
        message["tool_calls"] = folded.calls
    if folded.images:
        message["images"] = folded.images
    if folded.audio:
        message["audio"] = folded.audio
    return message


def write_answer(call: Call, events: Iterable[Event], stamp: Stamp) -> bytes:
    model, usage, choices, vectors = _fold(events, stamp)
    body: dict[str, Any]
    if call.kind == "embed":
        body = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector_form(vector.values, call.encoding)}
                for index, vector in enumerate(sorted(vectors, key=lambda vector: vector.index))
            ],
            "model": model,
        }
        if usage is not None:
            body["usage"] = {"prompt_tokens": usage.input or 0, "total_tokens": usage.input or 0}
        return orjson.dumps(body)
    choices = choices or {0: _Folded()}
    if call.op == "completions":
        body = {
            "id": answer_id(stamp, "cmpl-"),
            "object": "text_completion",
            "created": int(stamp.created),
            "model": model,
            "choices": [
                {
                    "text": "".join(folded.text),
                    "index": index,
                    "logprobs": None,
                    "finish_reason": "stop" if folded.reason == "tool_calls" else folded.reason,
                }
                for index, folded in sorted(choices.items())
            ],
        }
    else:
        legacy = legacy_functions(call)
        body = {
            "id": answer_id(stamp),
            "object": "chat.completion",
            "created": int(stamp.created),
            "model": model,
            "choices": [
                {
                    "index": index,
                    "message": _message(folded, legacy),
                    "logprobs": {"content": folded.logprobs, "refusal": None} if folded.logprobs else None,
                    "finish_reason": finish_word(folded.reason, bool(folded.calls), legacy),
                }
                for index, folded in sorted(choices.items())
            ],
        }
    if usage is not None:
        body["usage"] = write_usage(usage)
    return orjson.dumps(body)


def vector_form(values: tuple[float, ...] | list[float] | str, encoding: str) -> str | list[float] | tuple[float, ...]:
    """A vector in the form that the client wants. Raises ValueError for base64 that holds no vector."""
    if encoding == "base64":
        return values if isinstance(values, str) else to_base64(values)
    return to_floats(values) if isinstance(values, str) else values
