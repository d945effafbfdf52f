"""Answers of OpenAI-like servers to events: chat, legacy completions and embeddings, streamed and whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from providers import surrogates
from providers.call import Call
from providers.errors import Broken, Unavailable, UpstreamError
from providers.events import (
    Annotation,
    Event,
    Failed,
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
    UsageSeen,
    Vector,
)
from providers.framing import MAX_EVENT, SSEReader
from providers.media import split_data_uri
from providers.wire import Stamp
from providers.wires.openai.errors import failed, no_answer, stream_failure
from providers.wires.openai.tables import FAILED_FINISH, FINISH
from providers.wires.openai.tools import ToolCalls, call_prefix
from providers.wires.openai.traits import PLAIN, Traits
from providers.wires.openai.usage import find_usage, read_usage

MAX_WHOLE = 64 * 1024 * 1024
"""Bytes of a whole JSON body that is kept when it comes where a stream was asked for."""


class ThinkSplitter:
    """Takes `<think>...</think>` at the start of the content apart from what follows; the tags may be cut anywhere."""

    __slots__ = ("_held", "_state")

    def __init__(self, prefilled: bool) -> None:
        self._state = "opened" if prefilled else "start"
        self._held = ""

    def feed(self, text: str) -> list[tuple[bool, str]]:
        """Pieces in order: whether it is reasoning, and the text."""
        if self._state == "after":
            return [(False, text)]
        text, self._held = self._held + text, ""
        found: list[tuple[bool, str]] = []
        if self._state == "start":
            bare = text.lstrip()
            if bare.startswith("<think>"):
                self._state, text = "opened", bare[7:]
            elif "<think>".startswith(bare):
                self._held = text
                return found
            else:
                self._state = "after"
                return [(False, text)]
        if self._state == "opened":
            text = text.lstrip("\n")
            self._state = "inside" if text else "opened"
        if self._state == "inside":
            thought, tag, text = text.partition("</think>")
            if not tag:
                keep = next((size for size in range(7, 0, -1) if thought.endswith("</think>"[:size])), 0)
                self._held = thought[len(thought) - keep :]
                thought = thought[: len(thought) - keep]
            if thought:
                found.append((True, thought))
            if not tag:
                return found
            self._state = "closed"
        text = text.lstrip("\n")
        if text and self._state == "closed":
            self._state = "after"
            found.append((False, text))
        return found

    def close(self) -> list[tuple[bool, str]]:
        held, self._held = self._held, ""
        return [(self._state == "inside", held)] if held else []


class Choice:
    """What was seen of one choice."""

    __slots__ = ("content", "details", "finished", "think", "tools")

    def __init__(self, prefix: str, traits: Traits) -> None:
        self.tools = ToolCalls(prefix)
        self.finished = False
        self.content = False
        self.details = ""
        """Reasoning seen in `reasoning_details`: some servers send it cumulatively."""
        self.think = ThinkSplitter(traits.think_tags == "prefilled") if traits.think_tags != "no" else None


def finish_of(native: str, called: bool) -> FinishReason:
    """A server's finish reason as ours. A turn with tool calls that stopped has finished with them."""
    reason = FINISH.get(native, "stop")
    return "tool_calls" if called and reason == "stop" else reason


def broken_off(native: str) -> UpstreamError:
    return Unavailable(f"the provider broke the answer off ({native})")


def _entries(value: Any) -> tuple[Mapping[str, Any], ...]:
    content = value.get("content") if type(value) is dict else None
    return tuple(item for item in content if type(item) is dict) if type(content) is list else ()


def _details(delta: Mapping[str, Any]) -> str:
    value = delta.get("reasoning_details")
    if type(value) is not list:
        return ""
    texts = [item.get("text") or item.get("summary") for item in value if type(item) is dict]
    return "".join(text for text in texts if type(text) is str)


class AnswerReader:
    """Deltas and messages of any OpenAI-like server to events."""

    def __init__(self, call: Call, stamp: Stamp, traits: Traits = PLAIN) -> None:
        self._call = call
        self._stamp = stamp
        self._traits = traits
        self._choices: dict[int, Choice] = {}
        self._started = False

    def choice(self, index: int) -> Choice:
        found = self._choices.get(index)
        if found is None:
            if len(self._choices) >= 128:
                raise Broken("the provider sent more choices than any call can ask for")
            found = self._choices[index] = Choice(call_prefix(self._stamp.request_id, index), self._traits)
        return found

    def body(self, body: Mapping[str, Any]) -> Iterable[Event]:
        """Events of one chunk or of a whole answer. Raises UpstreamError."""
        if failed(body):
            raise stream_failure(body, self._traits.vendor)
        choices = body.get("choices")
        if not self._started and (choices or body.get("id")):
            self._started = True
            model, ident = body.get("model"), body.get("id")
            yield Started(
                model if type(model) is str and model else None, ident if type(ident) is str and ident else None
            )
        for position, choice in enumerate(choices if type(choices) is list else ()):
            if type(choice) is dict:
                yield from self._choice(choice, position)
        raw = find_usage(body, choices)
        usage = read_usage(raw) if raw is not None else None
        if usage is not None:
            yield UsageSeen(usage)

    def _choice(self, choice: dict[str, Any], position: int) -> Iterable[Event]:
        index = choice.get("index")
        index = index if type(index) is int and index >= 0 else position
        seen = self.choice(index)
        native = choice.get("finish_reason")
        if type(choice.get("error")) is dict and choice["error"]:
            raise stream_failure({"error": choice["error"]}, self._traits.vendor)
        if type(native) is str and native in FAILED_FINISH:
            raise broken_off(native)
        if seen.finished:
            return
        delta = choice.get("delta")
        if delta is None:
            delta = choice.get("message")
        if type(delta) is dict:
            yield from self._delta(delta, seen, index)
        text = choice.get("text")
        if type(text) is str and text:
            seen.content = True
            yield TextDelta(text, index)
        entries = _entries(choice.get("logprobs"))
        if entries:
            yield Logprobs(entries, index)
        if type(native) is str and native:
            yield from self.finish(index, native)

    def finish(self, index: int, native: str) -> Iterable[Event]:
        seen = self.choice(index)
        seen.finished = True
        if seen.think is not None:
            for thought, text in seen.think.close():
                yield ReasoningDelta(text, choice=index) if thought else TextDelta(text, index)
        yield Finished(finish_of(native, bool(seen.tools)), native, index)

    def _delta(self, delta: dict[str, Any], seen: Choice, index: int) -> Iterable[Event]:
        thought = delta.get("reasoning_content")
        if not thought:
            thought = delta.get("reasoning")
        if type(thought) is str and thought:
            seen.content = True
            yield ReasoningDelta(thought, choice=index)
        elif "reasoning_details" in delta:
            text = _details(delta)
            if text.startswith(seen.details) and len(seen.details) > 16:
                seen.details, text = text, text[len(seen.details) :]
            else:
                seen.details += text
            if text:
                seen.content = True
                yield ReasoningDelta(text, choice=index)
        sealed = delta.get("encrypted_content")
        if type(sealed) is str and sealed:
            yield ReasoningDelta(encrypted=sealed, choice=index)
        content = delta.get("content")
        if content:
            seen.content = True
            yield from self._content(content, seen, index)
        refusal = delta.get("refusal")
        if type(refusal) is str and refusal:
            seen.content = True
            yield RefusalDelta(refusal, index)
        calls = delta.get("tool_calls")
        if type(calls) is list:
            for entry in calls:
                yield from self._tool(entry, seen, index)
        legacy = delta.get("function_call")
        if type(legacy) is dict:
            yield from self._tool({"index": 0, "function": legacy}, seen, index)
        notes = delta.get("annotations")
        if type(notes) is list:
            for note in notes:
                if type(note) is dict:
                    yield Annotation(note, index)
        yield from self._media(delta, index)

    def _content(self, content: Any, seen: Choice, index: int) -> Iterable[Event]:
        if type(content) is str:
            if seen.think is None:
                yield TextDelta(content, index)
                return
            for thought, text in seen.think.feed(content):
                yield ReasoningDelta(text, choice=index) if thought else TextDelta(text, index)
        elif type(content) is list:  # Mistral: chunks of thinking and text
            for part in content:
                if type(part) is not dict:
                    continue
                kind, said = part.get("type"), part.get("text")
                if kind in ("thinking", "reasoning"):
                    inner: Any = part.get("thinking", said)
                    if type(inner) is list:
                        inner = "".join(item.get("text") or "" for item in inner if type(item) is dict)
                    if type(inner) is str and inner:
                        yield ReasoningDelta(inner, choice=index)
                elif type(said) is str and said:
                    yield TextDelta(said, index)

    def _tool(self, entry: Any, seen: Choice, index: int) -> Iterable[Event]:
        piece = seen.tools.read(entry)
        if piece is None:
            return
        seen.content = True
        if piece.id is not None and piece.name is not None:
            yield ToolStart(piece.index, piece.id, piece.name, choice=index)
        if piece.arguments:
            yield ToolArguments(piece.index, piece.arguments, index)

    def _media(self, delta: dict[str, Any], index: int) -> Iterable[Event]:
        images = delta.get("images")
        if type(images) is list:  # OpenRouter's form
            for item in images:
                spec = item.get("image_url") if type(item) is dict else None
                url = spec.get("url") if type(spec) is dict else None
                pieces = split_data_uri(url) if type(url) is str else None
                if pieces is not None:
                    yield Media(pieces[1], pieces[0], index)
        audio = delta.get("audio")
        if type(audio) is dict:
            if type(audio.get("transcript")) is str and audio["transcript"]:
                yield TextDelta(audio["transcript"], index)
            if type(audio.get("data")) is str and audio["data"]:
                asked = self._call.extras.get("audio")
                form = asked.get("format") if type(asked) is dict else None
                yield Media(audio["data"], f"audio/{form if type(form) is str else 'wav'}", index)

    def settle(self, clean: bool) -> Iterable[Event]:
        """The body ended; clean: with its end mark. What never finished has stopped if the end was clean, else it was
        cut off."""
        if not self._choices or not any(seen.finished or seen.content for seen in self._choices.values()):
            raise Broken("the provider's answer ended before it began")
        for index, seen in sorted(self._choices.items()):
            if not seen.finished:
                if not clean:
                    raise Broken("the provider's answer was cut off")
                yield from self.finish(index, "stop")


class StreamReader:
    """Server-sent events of chat or legacy completions to events."""

    def __init__(self, call: Call, stamp: Stamp, traits: Traits = PLAIN) -> None:
        self._sse = SSEReader()
        self._answer = AnswerReader(call, stamp, traits)
        self._traits = traits
        self._ended = False
        self._whole: list[bytes] | None = None
        self._fresh = True
        self._size = 0
        self.done = False

    def feed(self, data: bytes) -> Iterable[Event]:
        if self._ended or not data:
            return []
        return self._gather(self._feed(data))

    def close(self) -> Iterable[Event]:
        if self._ended:
            return []
        events = self._gather(self._close())
        self._ended = True
        return events

    def _gather(self, events: Iterable[Event]) -> list[Event]:
        """What came before a failure counts too: it may have committed the call."""
        found: list[Event] = []
        try:
            found.extend(events)
        except UpstreamError as error:
            self._ended = self.done = True
            found.append(Failed(error))
        return found

    def _feed(self, data: bytes) -> Iterable[Event]:
        if self._fresh:
            start = data.lstrip(b"\xef\xbb\xbf\r\n\t ")
            if start:
                self._fresh = False
                if start[:1] == b"{":  # a whole answer where a stream was asked for
                    self._whole = []
        if self._whole is not None:
            self._size += len(data)
            if self._size > MAX_EVENT:
                raise Broken("the provider sent a whole answer of unreasonable size where a stream was asked for")
            self._whole.append(data)
            return
        for event in self._sse.feed(data):
            yield from self._event(event.event, event.data)
            if self._ended:
                return

    def _event(self, name: bytes, data: bytes) -> Iterable[Event]:
        text = data.strip()
        if not text:
            return
        if text == b"[DONE]":
            yield from self._answer.settle(clean=True)
            self._ended = self.done = True
            return
        try:
            chunk = surrogates.loads(text)
        except orjson.JSONDecodeError:
            raise Broken("the provider sent a chunk that is not JSON") from None
        if type(chunk) is not dict:
            raise Broken("the provider sent a chunk that is no object")
        if name == b"error":
            raise stream_failure(chunk if "error" in chunk else {"error": chunk}, self._traits.vendor)
        yield from self._answer.body(chunk)

    def _close(self) -> Iterable[Event]:
        if self._whole is not None:
            yield from read_whole(self._answer, b"".join(self._whole), self._traits)
            self.done = True
            return
        for event in self._sse.close():
            yield from self._event(event.event, event.data)
            if self._ended:
                return
        yield from self._answer.settle(clean=False)


def read_whole(answer: AnswerReader, body: bytes, traits: Traits) -> Iterable[Event]:
    """Events of a whole chat or completions answer. Raises UpstreamError."""
    parsed, _ = whole_body(body, traits, "choices")
    yield from answer.body(parsed)
    yield from answer.settle(clean=True)


def whole_body(body: bytes, traits: Traits, member: str) -> tuple[dict[str, Any], bytes]:
    """A complete answer's JSON with `member` in it and the bytes that say it, else the error that it is."""
    try:
        parsed, text = surrogates.read(body.strip())
    except orjson.JSONDecodeError:
        raise no_answer(body) from None
    if type(parsed) is list and parsed and type(parsed[0]) is dict and "error" in parsed[0]:
        parsed = parsed[0]
    if type(parsed) is not dict:
        raise no_answer(body)
    if failed(parsed):
        raise stream_failure(parsed, traits.vendor)
    if not parsed.get(member):
        if "choices" not in parsed and "data" not in parsed and ("message" in parsed or "detail" in parsed):
            raise stream_failure(parsed, traits.vendor)
        raise Broken(f"the provider's answer has no {member}")
    return parsed, text


def read_vectors(parsed: Mapping[str, Any]) -> list[Vector]:
    """Vectors in order. Raises Broken."""
    data = parsed["data"]
    if type(data) is dict:  # Ark's multimodal endpoint: one object
        data = [data]
    if type(data) is not list:
        raise Broken("the provider's vectors cannot be understood")
    found: list[Vector] = []
    for position, item in enumerate(data):
        values = item.get("embedding") if type(item) is dict else None
        index = item.get("index", position) if type(item) is dict else position
        if type(values) is list and values:
            found.append(Vector(index if type(index) is int else position, tuple(values)))
        elif type(values) is str and values:
            found.append(Vector(index if type(index) is int else position, values))
        else:
            raise Broken("the provider's vectors cannot be understood")
    found.sort(key=lambda vector: vector.index)
    return found


def read_answer(call: Call, body: bytes, stamp: Stamp, traits: Traits = PLAIN) -> list[Event]:
    if call.kind == "embed":
        parsed, _ = whole_body(body, traits, "data")
        model = parsed.get("model")
        events: list[Event] = [Started(model if type(model) is str else None), *read_vectors(parsed)]
        usage = read_usage(parsed.get("usage"))
        if usage is not None:
            events.append(UsageSeen(usage))
        return events
    return list(read_whole(AnswerReader(call, stamp, traits), body, traits))
