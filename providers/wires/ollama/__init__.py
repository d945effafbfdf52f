"""The Ollama wire: /api/chat, /api/generate, /api/embed and /api/embeddings, both directions.

Source of its rules: the server's own code (ollama/ollama, 0.32) where documentation and code differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from providers.call import Call
from providers.errors import SwitchyardError, UpstreamError
from providers.events import Event
from providers.wire import EventReader, EventWriter, Lane, Stamp, Wire
from providers.wires.ollama import answers, failures, incoming, outgoing, writer
from providers.wires.ollama.loading import load_answer
from providers.wires.ollama.splice import SpliceLane

__all__ = ["WIRE", "OllamaWire", "load_answer"]


class OllamaWire:
    name = "ollama"
    stream_type = "application/x-ndjson"
    whole_type = "application/json; charset=utf-8"

    def read_call(self, op: str, body: Mapping[str, Any], *, path_model: str | None = None) -> Call:
        return incoming.read_call(op, body)

    def write_call(self, call: Call, sent_model: str) -> dict[str, Any]:
        return outgoing.write_call(call, sent_model)

    def path(self, call: Call, sent_model: str) -> str:
        return outgoing.path(call)

    def reader(self, call: Call, stamp: Stamp) -> EventReader:
        return answers.Reader(call, stamp)

    def read_answer(self, call: Call, body: bytes, stamp: Stamp) -> Sequence[Event]:
        return answers.read_answer(call, body, stamp)

    def writer(self, call: Call, stamp: Stamp) -> EventWriter:
        return writer.Writer(call, stamp)

    def write_answer(self, call: Call, events: Iterable[Event], stamp: Stamp) -> bytes:
        return writer.write_answer(call, events, stamp)

    def splice(self, call: Call, stamp: Stamp) -> Lane:
        return SpliceLane(call, stamp)

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return failures.read_error(status, headers, body)

    def write_error(self, error: SwitchyardError, request_id: str) -> bytes:
        return failures.write_error(error)

    def write_stream_error(self, call: Call, error: SwitchyardError, request_id: str) -> bytes:
        return failures.write_error(error) + b"\n"


WIRE: Wire = OllamaWire()
