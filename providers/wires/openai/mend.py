"""What streamed and whole answers share when they are mended: the state of a choice, counts, ends."""

from __future__ import annotations

from typing import Any

from providers.call import Call
from providers.errors import Broken
from providers.events import FinishReason
from providers.wire import Meter, Stamp
from providers.wires.openai.answer import finish_of
from providers.wires.openai.tools import ToolCalls, call_prefix
from providers.wires.openai.traits import Traits
from providers.wires.openai.usage import find_usage, read_usage


class SplicedChoice:
    __slots__ = ("content", "finished", "legacy", "role", "tools")

    def __init__(self, prefix: str) -> None:
        self.tools = ToolCalls(prefix)
        self.role = False
        self.content = False
        self.finished = False
        self.legacy = False
        """The model answers with `function_call`, the form before tools."""


class Mender:
    __slots__ = ("_call", "_choices", "_first", "_stamp", "_text", "_traits", "_usage", "meter")

    def __init__(self, call: Call, stamp: Stamp, traits: Traits, meter: Meter) -> None:
        self._call = call
        self._stamp = stamp
        self._traits = traits
        self._text = call.kind == "text"
        self._choices: dict[int, SplicedChoice] = {}
        self._first: SplicedChoice | None = None
        self._usage: dict[str, Any] | None = None
        self.meter = meter

    def _seen(self, choice: dict[str, Any], position: int) -> SplicedChoice:
        index = choice.get("index")
        if type(index) is not int or index < 0:
            index = choice["index"] = position
        seen = self._choices.get(index)
        if seen is None:
            if len(self._choices) >= 128:
                raise Broken("the provider sent more choices than any call can ask for")
            seen = self._choices[index] = SplicedChoice(call_prefix(self._stamp.request_id, index))
            if index == 0:
                self._first = seen
        return seen

    def _finish(self, native: str, seen: SplicedChoice) -> str:
        seen.finished = True
        reason: FinishReason = finish_of(native, bool(seen.tools))
        self.meter.finish = self.meter.finish or reason
        if self._text and reason == "tool_calls":
            return "stop"
        return "function_call" if seen.legacy and reason == "tool_calls" else reason

    def _spoken(self, text: Any, seen: SplicedChoice) -> bool:
        if type(text) is not str or not text:
            return False
        seen.content = True
        self.meter.saw(text)
        return True

    def _shown(self, message: dict[str, Any]) -> None:
        """Images in a message or a delta (OpenRouter and others)."""
        images = message.get("images")
        if type(images) is list:
            self.meter.images += len(images)

    @staticmethod
    def _parts(parts: list[Any], delta: dict[str, Any]) -> str:
        said: list[str] = []
        thought: list[str] = []
        for part in parts:
            if type(part) is dict and type(part.get("text")) is str:
                said.append(part["text"])
            elif type(part) is dict:
                inner = part.get("thinking")
                thought.extend(
                    item.get("text") or "" for item in (inner if type(inner) is list else ()) if type(item) is dict
                )
        delta["content"] = "".join(said)
        if thought:
            delta["reasoning_content"] = "".join(thought)
        return "".join(said) or "".join(thought)

    def _count(self, body: dict[str, Any], choices: Any) -> None:
        raw = find_usage(body, choices)
        usage = read_usage(raw) if raw is not None else None
        if raw is not None and usage is not None:
            self.meter.usage = usage
            self._usage = raw
