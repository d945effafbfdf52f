"""The splice lane: an Ollama client in front of an Ollama server. Lines go on as bytes.

Each line is read once by a typed decoder that skips what it does not know: that is the tap for content, usage, the
end and errors. A line is written anew only when its `model` is not the name that the client asked for and does not
stand first, and when it holds tool calls without an id or out of order: older servers give no ids, and some number
every parallel call 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from providers.call import Call
from providers.errors import Broken, UpstreamError
from providers.framing import LineReader, line_safe
from providers.wire import Frame, FrameKind, Meter, Stamp, wide_bytes
from providers.wires.ollama.answers import (
    NOT_DONE,
    Line,
    Use,
    check_whole,
    finish_of,
    read_line,
    tool_id,
    whole_lines,
)
from providers.wires.ollama.failures import dumps


class SpliceLane:
    __slots__ = ("_asked", "_call", "_lines", "_new", "_old", "_request_id", "_seen", "_tools", "done", "meter")

    def __init__(self, call: Call, stamp: Stamp) -> None:
        self._call = call
        self._request_id = stamp.request_id
        self._asked = call.asked_model
        self._lines = LineReader()
        self._seen: str | None = call.asked_model
        self._old = b""
        self._new = b""
        self._tools = 0
        self.meter = Meter()
        self.done = False

    def feed(self, data: bytes) -> Sequence[Frame]:
        if self.done:
            return ()
        try:
            lines = self._lines.feed(data)
        except Broken as bad:
            self.done = True
            return (Frame("error", b"", bad),)
        return self._frames(lines)

    def close(self) -> Sequence[Frame]:
        if self.done:
            return ()
        frames = self._frames(whole_lines(self._lines.close()))
        if not self.done:
            self.done = True
            frames.append(Frame("error", b"", Broken(NOT_DONE)))
        return frames

    def whole(self, body: bytes) -> bytes:
        line, body = read_line(body)
        check_whole(self._call, line)
        body = self._numbered(body.strip(), line)
        self._tap(line)
        return line_safe(self._renamed(body, line.model))

    def _frames(self, lines: Sequence[bytes]) -> list[Frame]:
        frames: list[Frame] = []
        for data in lines:
            try:
                line, data = read_line(data)
                data = self._numbered(data, line)
                kind = self._tap(line)
            except UpstreamError as error:
                self.done = True
                frames.append(Frame("error", b"", error))
                break
            frames.append(Frame(kind, line_safe(self._renamed(data.rstrip(b"\r"), line.model)) + b"\n"))
            if self.done:
                break
        return frames

    def _tap(self, line: Line) -> FrameKind:
        """Let the meter see a line. Raises Broken for an end without a reason and without any content."""
        meter = self.meter
        wide = 0
        message = line.message
        if message is not None:
            said, thought, uses = message.content or "", message.thinking or "", message.tool_calls
        else:
            said, thought, uses = line.response or "", line.thinking or "", line.tool_calls
        size = len(said) + len(thought)
        if not said.isascii():
            wide = wide_bytes(said)
        if not thought.isascii():
            wide += wide_bytes(thought)
        if uses:
            self._tools += len(uses)
            size += sum(len(bytes(use.function.arguments)) for use in uses)
        media = message is not None and bool(message.images)
        says = bool(size or uses or line.logprobs or media)
        if says:
            meter.chars += size
            meter.wide += wide
            meter.frames += 1
            meter.thought = meter.thought or bool(thought)
            if media:
                meter.images += len(message.images or ()) if message is not None else 0
        if line.model and meter.model is None:
            meter.model = line.model
        if self._call.kind == "embed":
            meter.frames += 1
            meter.usage = line.usage() or meter.usage
            meter.finish = "stop"
            self.done = True
            return "terminal"
        if line.done:
            if not line.done_reason and not meter.frames:
                raise Broken("the provider's run was aborted without an answer")
            meter.usage = line.usage() or meter.usage
            meter.finish = finish_of(line.done_reason, tools=self._tools > 0)
            self.done = True
            return "terminal"
        return "content" if says else "opening"

    def _numbered(self, data: bytes, line: Line) -> bytes:
        """The object with an id in each tool call and `index` counted over the whole answer."""
        uses = line.message.tool_calls if line.message is not None else line.tool_calls
        if not uses or all(use.id and use.function.index == self._tools + place for place, use in enumerate(uses)):
            return data
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise Broken("the provider sent something that is not JSON") from None
        holder = body["message"] if line.message is not None else body
        holder["tool_calls"] = [
            self._call_of(given, use, self._tools + place)
            for place, (given, use) in enumerate(zip(holder["tool_calls"], uses, strict=True))
        ]
        return msgspec.json.encode(body)

    def _call_of(self, given: dict[str, Any], use: Use, index: int) -> dict[str, Any]:
        # The arguments stay the server's own bytes: reading numbers and writing them again may change them.
        function = {**given["function"], "index": index, "arguments": use.function.arguments}
        return {**given, "id": use.id or tool_id(self._request_id, index), "function": function}

    def _renamed(self, data: bytes, model: str | None) -> bytes:
        """The object with the asked name in `model`."""
        if model is None or model == self._asked:
            return data
        if model != self._seen:
            self._seen = model
            self._old = b'{"model":' + dumps(model)
            self._new = b'{"model":' + dumps(self._asked)
        if data.startswith(self._old):
            return self._new + data[len(self._old) :]
        try:
            return dumps({**orjson.loads(data), "model": self._asked})
        except orjson.JSONDecodeError:
            raise Broken("the provider sent something that is not JSON") from None
