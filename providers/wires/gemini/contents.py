"""Messages to `contents`: turns of `user` and `model` that alternate, each call answered in the turn after it.

Rules of the other side: the system prompt stands apart; `parts` is never empty; all answers to the calls of one turn
stand in one `user` turn, one for each call, in their order, by function name; nothing else stands in that turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from providers.call import Audio, Call, File, Image, Message, Part, Reasoning, Refusal, Text, ToolResult, ToolUse
from providers.errors import UnsupportedFeature
from providers.media import sniff
from providers.wires.gemini.models import Family
from providers.wires.gemini.signatures import BYPASS, Signatures

FILES_HOST: Final = "generativelanguage.googleapis.com"
FALLBACK_TYPE: Final = {"image": "image/png", "file": "application/pdf"}
BLANK: Final[dict[str, Any]] = {"text": " "}
"""Where a turn must stand and there is nothing to say."""


class Contents:
    """Collects the turns of one call."""

    def __init__(self, model: str, family: Family, names: Mapping[str, str], signatures: Signatures) -> None:
        self._model = model
        self._family = family
        self._names = names
        self._signatures = signatures
        self._turns: list[dict[str, Any]] = []
        self._system: list[dict[str, Any]] = []
        self._open: list[ToolUse] = []
        """Calls of the last model turn that wait for their answers."""
        self._given: list[ToolResult] = []
        self._sealed = False
        """The last turn holds answers to calls: nothing may join it."""

    def system(self) -> dict[str, Any] | None:
        return {"parts": self._system} if self._system else None

    def turns(self) -> list[dict[str, Any]]:
        self._settle()
        if not self._turns or self._turns[0]["role"] == "model":
            self._turns.insert(0, {"role": "user", "parts": [BLANK]})
        return self._turns

    def add(self, message: Message, param: str) -> None:
        if message.role in ("system", "developer"):
            for part in message.parts:
                if not isinstance(part, (Text, Refusal)):
                    raise UnsupportedFeature("Gemini takes only text in a system message", param=param)
                if part.text:
                    self._system.append({"text": part.text})
            return
        if message.role == "assistant":
            self._settle()
            self._assistant(message)
            return
        rest: list[Part] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                self._given.append(part)
            else:
                rest.append(part)
        parts = [said for part in rest if (said := self._part(part, param)) is not None]
        if parts:
            self._settle()
            self._push("user", parts)

    def _assistant(self, message: Message) -> None:
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        for part in message.parts:
            match part:
                case Text(text) | Refusal(text) if text:
                    parts.append({"text": text})
                case ToolUse():
                    calls.append(self._call(part, first=not self._open))
                    self._open.append(part)
                case Image() | Audio() | File():
                    said = self._part(part, "messages")
                    if said is not None:
                        parts.append(said)
                case _:
                    # Earlier thoughts are not asked back; what must come back is the signature on a call.
                    pass
        if parts or calls:
            self._push("model", [*parts, *calls])

    def _call(self, use: ToolUse, *, first: bool) -> dict[str, Any]:
        try:
            args = orjson.loads(use.arguments) if use.arguments.strip() else {}
        except orjson.JSONDecodeError:
            args = None
        if not isinstance(args, dict):
            # The field takes objects only; the model may see what it once wrote.
            args = {"arguments": use.arguments}
        call: dict[str, Any] = {"name": self._names[use.name], "args": args}
        if use.id and self._family.signs:
            call["id"] = use.id
        part: dict[str, Any] = {"functionCall": call}
        signature = use.signature or self._signatures.find(self._model, use.id)
        if signature is None and first and self._family.signs:
            signature = BYPASS
        if signature is not None:
            part["thoughtSignature"] = signature
        return part

    def _settle(self) -> None:
        """Answer the open calls with what was given, in their order."""
        left, self._given = self._given, []
        calls, self._open = self._open, []
        answers: dict[int, ToolResult] = {}
        for fits in (_same_id, _same_name, _unnamed):
            for at, use in enumerate(calls):
                if at not in answers:
                    found = next((result for result in left if fits(use, result)), None)
                    if found is not None:
                        answers[at] = found
                        left = [result for result in left if result is not found]
        parts: list[dict[str, Any]] = []
        media: list[dict[str, Any]] = []
        for at, use in enumerate(calls):
            parts.append(self._answer(use, answers.get(at), media))
        if parts:
            self._push("user", parts, sealed=True)
        if media:
            self._push("user", media)
        for result in left:
            # The call it answers is not in the history any more; the text may still matter.
            text = _joined(result)
            if text:
                self._push("user", [{"text": f"Result of the tool {result.name or result.id or 'call'}: {text}"}])

    def _answer(self, use: ToolUse, result: ToolResult | None, media: list[dict[str, Any]]) -> dict[str, Any]:
        said: dict[str, Any] = {"name": self._names[use.name]}
        if use.id and self._family.signs:
            said["id"] = use.id
        if result is None:
            said["response"] = {"error": "no result"}
            return {"functionResponse": said}
        said["response"] = _response(result)
        pieces = [
            piece
            for part in result.parts
            if not isinstance(part, Text) and (piece := self._part(part, "messages")) is not None
        ]
        if pieces and self._family.signs:
            said["parts"] = pieces
        else:
            media += pieces  # beside the answer they would break the count of answers on older models
        return {"functionResponse": said}

    def _push(self, role: str, parts: list[dict[str, Any]], *, sealed: bool = False) -> None:
        last = self._turns[-1] if self._turns else None
        if last is not None and last["role"] == role and not sealed and not self._sealed:
            last["parts"] += parts
        else:
            self._turns.append({"role": role, "parts": parts})
        self._sealed = sealed

    def _part(self, part: Part, param: str) -> dict[str, Any] | None:
        match part:
            case Text(text) | Refusal(text):
                return {"text": text} if text else None
            case Image(data=data, url=url, media_type=media_type):
                if data is not None:
                    return _inline(media_type or sniff(data) or FALLBACK_TYPE["image"], data)
                return _by_url(url, media_type, param)
            case Audio(data=data, format=form):
                return _inline(form if "/" in form else f"audio/{form}", data)
            case File(data=data, url=url, media_type=media_type):
                if data is not None:
                    return _inline(media_type or sniff(data) or FALLBACK_TYPE["file"], data)
                return _by_url(url, media_type, param)
            case Reasoning() | ToolUse() | ToolResult():
                return None


def _same_id(use: ToolUse, result: ToolResult) -> bool:
    return bool(result.id) and result.id == use.id


def _same_name(use: ToolUse, result: ToolResult) -> bool:
    return result.name is not None and result.name == use.name


def _unnamed(use: ToolUse, result: ToolResult) -> bool:
    return not result.id and result.name is None


def _inline(media_type: str, data: str) -> dict[str, Any]:
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _by_url(url: str | None, media_type: str | None, param: str) -> dict[str, Any]:
    """Only what Google itself holds: it does not fetch from elsewhere on all models, and nor do we."""
    host = _host(url) if url else None
    if url is None or host != FILES_HOST:
        raise UnsupportedFeature(
            "Gemini takes files by value or by its own Files API address, not by other addresses or ids: send the data",
            param=param,
        )
    said: dict[str, Any] = {"fileUri": url}
    if media_type is not None:
        said["mimeType"] = media_type
    return {"fileData": said}


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _joined(result: ToolResult) -> str:
    return "".join(part.text for part in result.parts if isinstance(part, Text))


def _response(result: ToolResult) -> dict[str, Any]:
    text = _joined(result)
    if result.is_error:
        return {"error": text}
    if text.lstrip()[:1] == "{":
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            return value
    return {"output": text}


def contents_of(
    call: Call, model: str, family: Family, names: Mapping[str, str], signatures: Signatures
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The turns and the system instruction. Raises UnsupportedFeature naming the message."""
    found = Contents(model, family, names, signatures)
    if call.kind == "text":
        found.add(Message("user", (Text(call.prompt),)), "prompt")
    for index, message in enumerate(call.messages):
        found.add(message, f"messages[{index}]")
    return found.turns(), found.system()
