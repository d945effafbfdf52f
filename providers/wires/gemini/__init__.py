"""The Gemini API's wire, towards the provider: generateContent, streamGenerateContent, embedContent,
batchEmbedContents.

Source: ai.google.dev/api and the `google-genai` SDK. The model and the verb stand in the path, never in the body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from providers.call import Call
from providers.errors import ModelNotFound, UpstreamError
from providers.events import Event
from providers.wire import EventReader, ProviderWire, Stamp
from providers.wires.gemini.answer import Reader, read_chat, read_vectors
from providers.wires.gemini.errors import read_error
from providers.wires.gemini.request import plain, write_chat, write_embed
from providers.wires.gemini.signatures import Signatures


class GeminiWire:
    name = "gemini"
    stream_type = "application/json"
    """What `alt=sse` asks for is SSE; a proxy that loses the query sends a JSON array. The reader takes both."""

    def __init__(self) -> None:
        self._signatures = Signatures()

    def write_call(self, call: Call, sent_model: str) -> dict[str, Any]:
        if call.kind == "embed":
            return write_embed(call, sent_model)
        return write_chat(call, sent_model, self._signatures)

    def path(self, call: Call, sent_model: str) -> str:
        name = plain(sent_model)
        if any(step in ("", ".", "..") for step in name.split("/")):
            raise ModelNotFound(sent_model)
        where = name if name.startswith("tunedModels/") else f"models/{name}"
        return f"/{quote(where, safe='/')}:{_verb(call)}"

    def reader(self, call: Call, stamp: Stamp) -> EventReader:
        return Reader(call, stamp, self._signatures)

    def read_answer(self, call: Call, body: bytes, stamp: Stamp) -> Sequence[Event]:
        if call.kind == "embed":
            return read_vectors(call, body)
        return read_chat(call, body, stamp, self._signatures)

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return read_error(status, headers, body)


def _verb(call: Call) -> str:
    if call.kind == "embed":
        return "embedContent" if len(call.inputs) == 1 else "batchEmbedContents"
    return "streamGenerateContent?alt=sse" if call.stream else "generateContent"


WIRE: ProviderWire = GeminiWire()
