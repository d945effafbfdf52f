"""Simulated providers for real clients: what a model can do beyond text (tools, thinking, JSON, embeddings), in three
providers' dialects. Which of it is said by the model's name, as in `tests.simulators.scripts`.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.simulators import dialects, scripts
from tests.simulators.dialects import Dialect
from tests.simulators.server import Exchange, Request, Script, Simulator

Call = tuple[str, Mapping[str, Any]]
"""A tool call: name, arguments."""

WEATHER: Sequence[Call] = (("get_weather", {"city": "Paris"}),)
TWICE: Sequence[Call] = (*WEATHER, ("get_weather", {"city": "Rome"}))
RESULT = "21 degrees"
"""What the tool gives. A model that is told so answers in words."""
AFTER_TOOL = "It is 21 degrees there."
THOUGHTS = ("Let me ", "think.")
THOUGHT_ANSWER = "Four."
CITY: Mapping[str, Any] = {"city": "Paris", "people": 21}
VECTORS = ((0.5, -0.25), (0.125, 1.0), (-1.0, 0.75))


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


class OpenAI(dialects.OpenAI):
    """Gives embeddings as they were asked for: base64 unless `float`."""

    def whole(self, request: Request, text: str) -> bytes:
        found = super().whole(request, text)
        if not request.path.endswith("/embeddings"):
            return found
        answer = json.loads(found)
        for row, vector in zip(answer["data"], VECTORS, strict=False):
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            row["embedding"] = packed if request.json.get("encoding_format") == "base64" else list(vector)
        return _text(answer)

    def calls(self, request: Request, calls: Sequence[Call]) -> bytes:
        tools = [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for n, (name, given) in enumerate(calls)
        ]
        return self._message(request, {"content": None, "tool_calls": tools}, "tool_calls")

    def call_frames(self, request: Request, calls: Sequence[Call]) -> Iterable[bytes]:
        yield self.opening(request)
        for n, (name, given) in enumerate(calls):
            start = {"index": n, "id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": ""}}
            yield self._frame(request, {"tool_calls": [start]}, None)
            written = json.dumps(given)
            for piece in (written[:5], written[5:]):
                yield self._frame(request, {"tool_calls": [{"index": n, "function": {"arguments": piece}}]}, None)
        yield self._frame(request, {}, "tool_calls")
        yield from self.finish(request)[1:]

    def thinking(self, request: Request) -> bytes:
        return self._message(request, {"content": THOUGHT_ANSWER, "reasoning_content": "".join(THOUGHTS)}, "stop")

    def thinking_frames(self, request: Request) -> Iterable[bytes]:
        yield self.opening(request)
        for piece in THOUGHTS:
            yield self._frame(request, {"reasoning_content": piece}, None)
        yield self.content(request, THOUGHT_ANSWER)
        yield from self.finish(request)

    def _message(self, request: Request, message: Mapping[str, Any], finish: str) -> bytes:
        answer = json.loads(super().whole(request, ""))
        answer["choices"][0] |= {"message": {"role": "assistant", **message}, "finish_reason": finish}
        return _text(answer)


class Ollama(dialects.Ollama):
    def whole(self, request: Request, text: str) -> bytes:
        answer = json.loads(super().whole(request, text))
        if "embeddings" in answer:
            answer["embeddings"] = VECTORS[: len(answer["embeddings"])]
        return _text(answer)

    def calls(self, request: Request, calls: Sequence[Call]) -> bytes:
        return _text({**self._line(request, "", last=True), "message": self._calling(calls)})

    def call_frames(self, request: Request, calls: Sequence[Call]) -> Iterable[bytes]:
        yield _text({**self._line(request, ""), "message": self._calling(calls)}) + b"\n"
        yield from self.finish(request)

    def thinking(self, request: Request) -> bytes:
        return _text(self._thought(self._line(request, THOUGHT_ANSWER, last=True), "".join(THOUGHTS)))

    def thinking_frames(self, request: Request) -> Iterable[bytes]:
        for piece in THOUGHTS:
            yield _text(self._thought(self._line(request, ""), piece)) + b"\n"
        yield self.content(request, THOUGHT_ANSWER)
        yield from self.finish(request)

    def _calling(self, calls: Sequence[Call]) -> dict[str, Any]:
        given = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
        return {"role": "assistant", "content": "", "tool_calls": given}

    def _thought(self, line: dict[str, Any], text: str) -> dict[str, Any]:
        line.get("message", line)["thinking"] = text
        return line


class Gemini(dialects.Gemini):
    def whole(self, request: Request, text: str) -> bytes:
        answer = json.loads(super().whole(request, text))
        for row, vector in zip(answer.get("embeddings", ()), VECTORS, strict=False):
            row["values"] = vector
        return _text(answer)

    def calls(self, request: Request, calls: Sequence[Call]) -> bytes:
        return _text(self._parts(request, [{"functionCall": {"name": n, "args": a}} for n, a in calls], last=True))

    def call_frames(self, request: Request, calls: Sequence[Call]) -> Iterable[bytes]:
        for name, given in calls:
            yield self._event(self._parts(request, [{"functionCall": {"name": name, "args": given}}]))
        yield from self.finish(request)

    def thinking(self, request: Request) -> bytes:
        thoughts: list[dict[str, Any]] = [{"text": "".join(THOUGHTS), "thought": True}, {"text": THOUGHT_ANSWER}]
        return _text(self._parts(request, thoughts, last=True))

    def thinking_frames(self, request: Request) -> Iterable[bytes]:
        for piece in THOUGHTS:
            yield self._event(self._parts(request, [{"text": piece, "thought": True}]))
        yield self.content(request, THOUGHT_ANSWER)
        yield from self.finish(request)

    def _parts(self, request: Request, parts: Sequence[Mapping[str, Any]], *, last: bool = False) -> dict[str, Any]:
        answer = self._answer(request, "", last=last)
        answer["candidates"][0]["content"]["parts"] = list(parts)
        return answer

    def _event(self, value: Mapping[str, Any]) -> bytes:
        return b"data: " + _text(value) + b"\r\n\r\n"


_OURS: Mapping[str, Dialect] = {"openai": OpenAI(), "ollama": Ollama(), "gemini": Gemini()}


async def _stream(x: Exchange, frames: Iterable[bytes]) -> None:
    await x.open_stream()
    for frame in frames:
        await x.chunk(frame)
    await x.end_chunks()


def _calling(calls: Sequence[Call]) -> Script:
    """Asks for tools, and answers in words once a result is there."""

    async def script(x: Exchange) -> None:
        if RESULT.encode() in x.request.body:
            await say(AFTER_TOOL)(x)
        elif x.stream:
            await _stream(x, x.dialect.call_frames(x.request, calls))
        else:
            await x.answer(200, x.dialect.calls(x.request, calls))

    return script


def say(text: str) -> Script:
    async def script(x: Exchange) -> None:
        if not x.stream:
            await x.answer(200, x.dialect.whole(x.request, text))
            return
        opening = [x.dialect.opening(x.request)] if x.dialect.opening(x.request) else []
        pieces = (x.dialect.content(x.request, text[at : at + 8]) for at in range(0, len(text), 8))
        await _stream(x, [*opening, *pieces, *x.dialect.finish(x.request)])

    return script


async def _thinker(x: Exchange) -> None:
    if x.stream:
        await _stream(x, x.dialect.thinking_frames(x.request))
    else:
        await x.answer(200, x.dialect.thinking(x.request))


def provider() -> Simulator:
    """Speaks all three dialects, each under its own paths."""
    more: Mapping[str, Script] = {
        "weather": _calling(WEATHER),
        "weather-twice": _calling(TWICE),
        "thinker": _thinker,
        "city": say(json.dumps(CITY)),
    }
    all_of_them = {**scripts.SCRIPTS, **more}
    all_of_them |= {f"gemini-{name}": script for name, script in all_of_them.items()}
    return Simulator(all_of_them, lambda request: _OURS[dialects.dialect_of(request).name])
