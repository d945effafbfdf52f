"""The splice lane's answer that is not streamed: checked, mended where it is broken, else passed on as it came."""

from __future__ import annotations

from typing import Any

import orjson

from providers.errors import Broken
from providers.wires.openai.answer import broken_off, whole_body
from providers.wires.openai.errors import stream_failure
from providers.wires.openai.mend import Mender, SplicedChoice
from providers.wires.openai.tables import FAILED_FINISH
from providers.wires.openai.tools import arguments_text
from providers.wires.openai.usage import tidy_usage
from providers.wires.openai.vectors import to_base64, to_floats
from providers.wires.openai.writer import answer_id


class WholeAnswer(Mender):
    __slots__ = ()

    def read(self, body: bytes) -> bytes:
        if self._call.kind == "embed":
            return self._vectors(body)
        parsed, text = whole_body(body, self._traits, "choices")
        choices = parsed["choices"]
        if type(choices) is not list:
            raise Broken("the provider's answer has no choices")
        self._count(parsed, choices)
        model = parsed.get("model")
        if type(model) is str and model:
            self.meter.model = model
        changed = False
        for position, choice in enumerate(choices):
            if type(choice) is not dict:
                raise Broken("the provider sent a choice that is no object")
            if type(choice.get("index")) is not int:
                choice["index"], changed = position, True
            changed = self._whole_choice(choice) or changed
        if not parsed.get("id"):
            parsed["id"], changed = answer_id(self._stamp, "cmpl-" if self._text else "chatcmpl-"), True
        kind = "text_completion" if self._text else "chat.completion"
        if parsed.get("object") != kind:
            parsed["object"], changed = kind, True
        if not parsed.get("created"):
            parsed["created"], changed = int(self._stamp.created), True
        if not parsed.get("model"):
            parsed["model"], changed = self._stamp.answered_by, True
        usage = self.meter.usage
        if usage is not None and self._usage is not None:
            tidy = tidy_usage(self._usage, usage)
            if parsed.get("usage") != tidy:
                parsed["usage"], changed = tidy, True
        elif parsed.get("usage") is not None and usage is None:
            del parsed["usage"]
            changed = True
        return orjson.dumps(parsed) if changed else text

    def _whole_choice(self, choice: dict[str, Any]) -> bool:
        if type(choice.get("error")) is dict and choice["error"]:
            raise stream_failure({"error": choice["error"]}, self._traits.vendor)
        seen = self._seen(choice, choice["index"])
        changed = choice.pop("usage", None) is not None
        if self._text:
            self._spoken(choice.get("text"), seen)
            if type(choice.get("text")) is not str:
                raise Broken("the provider's answer has a choice without text")
        else:
            message = choice.get("message")
            if type(message) is not dict:
                raise Broken("the provider's answer has a choice without a message")
            changed = self._whole_message(message, seen) or changed
        if "logprobs" not in choice:
            choice["logprobs"], changed = None, True
        native = choice.get("finish_reason")
        if type(native) is str and native in FAILED_FINISH:
            raise broken_off(native)
        word = self._finish(native if type(native) is str and native else "stop", seen)
        if word != native:
            choice["finish_reason"], changed = word, True
        return changed

    def _whole_message(self, message: dict[str, Any], seen: SplicedChoice) -> bool:
        changed = False
        if message.get("role") != "assistant":
            message["role"], changed = "assistant", True
        for name in ("content", "refusal"):  # always there at OpenAI; strict clients count on it
            if name not in message:
                message[name], changed = None, True
        calls = message.get("tool_calls")
        if calls is not None and not calls:
            del message["tool_calls"]
            changed = True
        elif calls:
            if type(calls) is not list:
                raise Broken("the provider sent tool calls that are no list")
            tidy = [self._whole_call(entry, seen) for entry in calls]
            kept = [entry for entry in tidy if entry is not None]
            if kept != calls:
                message["tool_calls"], changed = kept, True
        legacy = message.get("function_call")
        if type(legacy) is dict and legacy:
            seen.legacy = True
            self.meter.saw(arguments_text(legacy.get("arguments")))
        thought = message.get("reasoning_content")
        if not thought and type(message.get("reasoning")) is str and message["reasoning"]:
            thought = message["reasoning_content"] = message["reasoning"]
            changed = True
        self._spoken(thought, seen)
        text = message.get("content")
        if type(text) is list:
            text, changed = self._parts(text, message), True
        self._spoken(text, seen)
        self._spoken(message.get("refusal"), seen)
        self._shown(message)
        return changed

    def _whole_call(self, entry: Any, seen: SplicedChoice) -> dict[str, Any] | None:
        if type(entry) is dict and entry.get("type") == "custom":
            custom = seen.tools.read({**entry, "index": None})
            if custom is not None:
                self.meter.saw(custom.arguments)
            return entry
        piece = seen.tools.read({**entry, "index": None} if type(entry) is dict else entry)
        if piece is None or piece.id is None:
            return None
        self.meter.saw(piece.arguments)
        function = {"name": piece.name, "arguments": piece.arguments or "{}"}
        tidy: dict[str, Any] = {"id": piece.id, "type": piece.kind, "function": function}
        if "extra_content" in entry:
            tidy["extra_content"] = entry["extra_content"]
        return tidy

    def _vectors(self, body: bytes) -> bytes:
        parsed, text = whole_body(body, self._traits, "data")
        data = parsed["data"]
        changed = False
        if type(data) is dict:  # Ark's multimodal endpoint: one object
            data = parsed["data"] = [data]
            changed = True
        if type(data) is not list:
            raise Broken("the provider's vectors cannot be understood")
        wanted = self._call.encoding
        for position, item in enumerate(data):
            values = item.get("embedding") if type(item) is dict else None
            if not values or type(values) not in (list, str):
                raise Broken("the provider's vectors cannot be understood")
            if "index" not in item:
                item["index"], changed = position, True
            if item.get("object") != "embedding":
                item["object"], changed = "embedding", True
            if (type(values) is str) != (wanted == "base64"):
                try:
                    item["embedding"] = to_base64(values) if wanted == "base64" else to_floats(values)
                except (ValueError, TypeError):
                    raise Broken("the provider's vectors cannot be understood") from None
                changed = True
        self.meter.frames += len(data)
        model = parsed.get("model")
        if type(model) is str and model:
            self.meter.model = model
        else:
            parsed["model"], changed = self._stamp.answered_by, True
        if parsed.get("object") != "list":
            parsed["object"], changed = "list", True
        self._count(parsed, None)
        return orjson.dumps(parsed) if changed else text
