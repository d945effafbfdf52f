"""The splice lane: client and provider both speak this wire, so chunks go on as they came and only what is broken is
mended.

A clean chunk is parsed once, looked at and passed on as bytes. Mended: repeated roles, changing ids, missing members,
tool calls (see `tools`), finish reasons, usage (one chunk at the end when asked for, none otherwise), `reasoning`
without `reasoning_content`, errors inside the stream, a missing or early end. Exactly one `[DONE]` goes out and
nothing after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from providers import surrogates
from providers.call import Call
from providers.errors import Broken, UpstreamError
from providers.framing import DONE, MAX_EVENT, SSEReader, line_safe
from providers.lanes import kind_of, observe
from providers.wire import Frame, FrameKind, Meter, Stamp, wide_bytes
from providers.wires.openai.answer import AnswerReader, broken_off, read_whole
from providers.wires.openai.errors import failed, stream_failure
from providers.wires.openai.mend import Mender, SplicedChoice
from providers.wires.openai.tables import FAILED_FINISH
from providers.wires.openai.tools import arguments_text
from providers.wires.openai.traits import PLAIN, Traits
from providers.wires.openai.usage import tidy_usage
from providers.wires.openai.whole import WholeAnswer
from providers.wires.openai.writer import ChatWriter, TextWriter, answer_id


class SpliceLane(Mender):
    __slots__ = (
        "_ended",
        "_fresh",
        "_head",
        "_id",
        "_size",
        "_sse",
        "_usage_sent",
        "_whole",
        "done",
    )

    def __init__(self, call: Call, stamp: Stamp, traits: Traits = PLAIN) -> None:
        super().__init__(call, stamp, traits, Meter())
        self._sse = SSEReader()
        self._id: str | None = None
        self._head: dict[str, Any] = {}
        """id, created and model of the first chunk: every other carries the same."""
        self._usage_sent = False
        self._ended = False
        self._fresh = True
        self._whole: list[bytes] | None = None
        self._size = 0
        self.done = False

    # --- stream ---------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> Sequence[Frame]:
        if self._ended or not data:
            return ()
        frames: list[Frame] = []
        try:
            if self._fresh and self._looks_whole(data):
                self._whole = []
            if self._whole is not None:
                self._keep(self._whole, data)
                return frames
            for event in self._sse.feed(data):
                if self._event(event.event, event.data, frames):
                    break
        except UpstreamError as error:
            self._fail(error, frames)
        return frames

    def close(self) -> Sequence[Frame]:
        if self._ended:
            return ()
        frames: list[Frame] = []
        try:
            if self._whole is not None:
                self._replay(b"".join(self._whole), frames)
            else:
                for event in self._sse.close():
                    if self._event(event.event, event.data, frames):
                        return frames
                self._settle(False, frames)
            self._ended = True
        except UpstreamError as error:
            self._fail(error, frames)
        return frames

    def _fail(self, error: UpstreamError, frames: list[Frame]) -> None:
        self._ended = self.done = True
        frames.append(Frame("error", b"", error))

    def _looks_whole(self, data: bytes) -> bool:
        start = data.lstrip(b"\xef\xbb\xbf\r\n\t ")[:1]
        self._fresh = not start
        return start == b"{"

    def _keep(self, kept: list[bytes], data: bytes) -> None:
        """A whole answer came where a stream was asked for: kept, and told as a stream at its end."""
        self._size += len(data)
        if self._size > MAX_EVENT:
            raise Broken("the provider sent a whole answer of unreasonable size where a stream was asked for")
        kept.append(data)

    def _replay(self, body: bytes, frames: list[Frame]) -> None:
        writer = (TextWriter if self._text else ChatWriter)(self._call, self._stamp)
        for event in read_whole(AnswerReader(self._call, self._stamp, self._traits), body, self._traits):
            observe(self.meter, event)
            frames.append(Frame(kind_of(event), writer.write(event)))
        frames.append(Frame("terminal", writer.close()))
        self.done = True

    def _event(self, name: bytes, data: bytes, frames: list[Frame]) -> bool:
        """Takes one event; True when it was the last one."""
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            text = data.strip()
            if text == b"[DONE]":
                self._settle(True, frames)
                self._ended = self.done = True
                return True
            if not text:
                return False
            try:
                chunk, data = surrogates.read(data)
            except orjson.JSONDecodeError:
                raise Broken("the provider sent a chunk that is not JSON") from None
        # The clean chunk of a running answer: nothing to mend, and the bytes go on as they came.
        first = self._first
        if first is not None and first.role and not first.finished and not name:
            try:
                (choice,) = chunk["choices"]
                delta = choice["delta"]
                if (
                    chunk["id"] == self._id
                    and choice["finish_reason"] is None
                    and choice["index"] == 0
                    and len(delta) == 1
                    and chunk.get("usage") is None
                    and "error" not in chunk
                    and "base_resp" not in chunk
                    and "x_groq" not in chunk
                    and b"\n" not in data  # several data lines make one event
                ):
                    text = delta.get("content")
                    meter = self.meter
                    if text is None:
                        text = delta.get("reasoning_content")
                        meter.thought = meter.thought or bool(text)
                    if type(text) is str and text:
                        first.content = True
                        meter.chars += len(text)
                        meter.frames += 1
                        if not text.isascii():
                            meter.wide += wide_bytes(text)
                        frames.append(Frame("content", b"data: " + line_safe(data) + b"\n\n"))
                        return False
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                pass  # not of the clean shape: the careful way below says what it is
        if type(chunk) is not dict:
            raise Broken("the provider sent a chunk that is no object")
        if name == b"error":
            raise stream_failure(chunk if "error" in chunk else {"error": chunk}, self._traits.vendor)
        if failed(chunk):
            raise stream_failure(chunk, self._traits.vendor)
        self._chunk(chunk, data, frames)
        return False

    def _chunk(self, chunk: dict[str, Any], data: bytes, frames: list[Frame]) -> None:
        choices = chunk.get("choices")
        self._count(chunk, choices)
        if type(choices) is not list or not choices:
            self._without_choices(chunk, frames)
            return
        changed = self._pin(chunk)
        kind: FrameKind = "opening"
        kept: list[dict[str, Any]] = []
        late: list[dict[str, Any]] = []
        for position, choice in enumerate(choices):
            if type(choice) is not dict:
                raise Broken("the provider sent a choice that is no object")
            changed = changed or type(choice.get("index")) is not int
            seen = self._seen(choice, position)
            if seen.finished:
                changed = True
                continue
            found, mended = self._choice(choice, seen, late)
            changed = changed or mended
            kept.append(choice)
            if found == "content" or (found == "terminal" and kind == "opening"):
                kind = found
        if chunk.get("usage") is not None:
            changed = True
            if self._call.include_usage:
                chunk["usage"] = None
            else:
                del chunk["usage"]
        if not kept:
            frames.append(Frame("usage" if self._usage is not None else "opening", b""))
            return
        if late:
            # Arguments that never came must be told before the finish reason.
            frames.append(Frame("content", _chunk_bytes({**self._head, "choices": late})))
        if changed or b"\n" in data:
            chunk["choices"] = kept
            data = orjson.dumps(chunk)
        frames.append(Frame(kind, b"data: " + line_safe(data) + b"\n\n"))

    def _pin(self, chunk: dict[str, Any]) -> bool:
        """Every chunk of an answer has the id, time and model of the first one."""
        if self._id is None:
            ident, model, created = chunk.get("id"), chunk.get("model"), chunk.get("created")
            prefix = "cmpl-" if self._text else "chatcmpl-"
            self._id = ident if type(ident) is str and ident else answer_id(self._stamp, prefix)
            self._head = {
                "id": self._id,
                "object": "text_completion" if self._text else "chat.completion.chunk",
                "created": created if type(created) is int and created else int(self._stamp.created),
                "model": model if type(model) is str and model else self._stamp.answered_by,
            }
            if type(model) is str and model:
                self.meter.model = model
        changed = False
        for name, value in self._head.items():
            if chunk.get(name) != value:
                chunk[name] = value
                changed = True
        return changed

    def _choice(
        self, choice: dict[str, Any], seen: SplicedChoice, late: list[dict[str, Any]]
    ) -> tuple[FrameKind, bool]:
        """What one choice of a chunk is, and whether it had to be mended."""
        if type(choice.get("error")) is dict and choice["error"]:
            raise stream_failure({"error": choice["error"]}, self._traits.vendor)
        changed = choice.pop("usage", None) is not None
        if self._text:
            found = self._spoken(choice.get("text"), seen)
            if type(choice.get("text")) is not str:
                choice["text"], changed = "", True
        else:
            delta = choice.get("delta")
            if type(delta) is not dict:
                delta = choice["delta"] = {}
                changed = True
            mended, found = self._delta(delta, seen)
            changed = changed or mended
        native = choice.get("finish_reason")
        if not native or type(native) is not str:
            if native is not None or "finish_reason" not in choice:
                choice["finish_reason"], changed = None, True
            return ("content" if found else "opening"), changed
        if native in FAILED_FINISH:
            raise broken_off(native)
        reason = self._finish(native, seen)
        if reason != native:
            choice["finish_reason"], changed = reason, True
        missing = seen.tools.empty()
        if missing:
            calls = [{"index": position, "function": {"arguments": "{}"}} for position in missing]
            late.append(
                {"index": choice["index"], "delta": {"tool_calls": calls}, "logprobs": None, "finish_reason": None}
            )
        return ("content" if found else "terminal"), changed

    def _delta(self, delta: dict[str, Any], seen: SplicedChoice) -> tuple[bool, bool]:
        """Whether the delta was mended, and whether it holds content."""
        changed = False
        if seen.role:
            if "role" in delta:
                del delta["role"]
                changed = True
        else:
            seen.role = True
            if delta.get("role") != "assistant":
                delta["role"] = "assistant"
                changed = True
        thought = delta.get("reasoning_content")
        if not thought and type(delta.get("reasoning")) is str and delta["reasoning"]:
            thought = delta["reasoning_content"] = delta["reasoning"]
            changed = True
        found = self._spoken(thought, seen)
        text = delta.get("content")
        if type(text) is list:  # Mistral: thinking and text parts
            changed = True
            text = self._parts(text, delta)
        if delta.get("reasoning_content"):
            self.meter.thought = True
        found = self._spoken(text, seen) or found
        found = self._spoken(delta.get("refusal"), seen) or found
        calls = delta.get("tool_calls")
        if calls is not None:
            mended, said = self._tools(calls, delta, seen)
            changed, found = changed or mended, found or said
        legacy = delta.get("function_call")
        if type(legacy) is dict and legacy:
            seen.legacy = found = seen.content = True
            self.meter.saw(arguments_text(legacy.get("arguments")))
        self._shown(delta)
        if not found and any(delta.get(name) for name in ("audio", "images", "annotations", "encrypted_content")):
            self.meter.frames += 1
            seen.content = found = True
        return changed, found

    def _tools(self, calls: Any, delta: dict[str, Any], seen: SplicedChoice) -> tuple[bool, bool]:
        if type(calls) is not list:
            raise Broken("the provider sent tool calls that are no list")
        tidy: list[dict[str, Any]] = []
        for entry in calls:
            piece = seen.tools.read(entry)
            if piece is None:
                continue
            self.meter.saw(piece.arguments)
            if piece.id is None:
                tidy.append({"index": piece.index, "function": {"arguments": piece.arguments}})
                continue
            function: dict[str, Any] = {"name": piece.name, "arguments": piece.arguments}
            fresh: dict[str, Any] = {"index": piece.index, "id": piece.id, "type": piece.kind, "function": function}
            if piece.kind == "custom":
                fresh["custom"] = {"name": piece.name, "input": piece.arguments}
                del fresh["function"]
            if "extra_content" in entry:  # Gemini's thought signature must come back
                fresh["extra_content"] = entry["extra_content"]
            tidy.append(fresh)
        if tidy == calls:
            seen.content = True
            return False, True
        if tidy:
            seen.content = True
            delta["tool_calls"] = tidy
        else:
            del delta["tool_calls"]
        return True, bool(tidy)

    # --- usage and ends -------------------------------------------------------------------------------------------

    def _without_choices(self, chunk: dict[str, Any], frames: list[Frame]) -> None:
        """Usage chunks wait for the end; a moderation verdict goes on; Azure's empty first chunk is dropped."""
        if self._usage is not None and type(chunk.get("usage")) is dict:
            frames.append(Frame("usage", b""))
        elif type(chunk.get("moderation")) is dict:
            self._pin(chunk)
            frames.append(Frame("opening", _chunk_bytes(chunk)))
        else:
            frames.append(Frame("opening", b""))

    def _usage_chunk(self) -> bytes:
        usage = self.meter.usage
        if not self._call.include_usage or self._usage_sent or usage is None or self._usage is None:
            return b""
        self._usage_sent = True
        return _chunk_bytes({**self._head, "choices": [], "usage": tidy_usage(self._usage, usage)})

    def _settle(self, clean: bool, frames: list[Frame]) -> None:
        """The end; clean: with its mark. Choices that never finished have stopped after a clean end, else they were
        cut off."""
        if not any(seen.finished or seen.content for seen in self._choices.values()):
            raise Broken("the provider's answer ended before it began")
        open_choices = [(index, seen) for index, seen in sorted(self._choices.items()) if not seen.finished]
        if open_choices and not clean:
            raise Broken("the provider's answer was cut off")
        for index, seen in open_choices:
            late: list[dict[str, Any]] = []
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": "stop"}
            choice["text" if self._text else "delta"] = "" if self._text else {}
            self._choice(choice, seen, late)
            if late:
                frames.append(Frame("content", _chunk_bytes({**self._head, "choices": late})))
            frames.append(Frame("terminal", _chunk_bytes({**self._head, "choices": [choice]})))
        tail = self._usage_chunk()
        if tail:
            frames.append(Frame("usage", tail))
        frames.append(Frame("terminal", DONE))

    def whole(self, body: bytes) -> bytes:
        return WholeAnswer(self._call, self._stamp, self._traits, self.meter).read(body)


def _chunk_bytes(chunk: dict[str, Any]) -> bytes:
    return b"data: " + line_safe(orjson.dumps(chunk)) + b"\n\n"
