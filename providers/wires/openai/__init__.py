"""The OpenAI wire: chat completions, legacy completions and embeddings, both ways.

Reference: https://platform.openai.com/docs/api-reference (API 2.3.0). What other servers do to it is in `tools`,
`usage`, `errors` and `answer`, each as a table or a rule that names who needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from providers.call import Call
from providers.errors import NotFound, SwitchyardError, UpstreamError
from providers.events import Event
from providers.framing import DONE, sse
from providers.wire import EventReader, EventWriter, Lane, Stamp
from providers.wires.openai import answer, body, errors, request, writer
from providers.wires.openai.splice import SpliceLane
from providers.wires.openai.traits import PLAIN, Traits


class OpenAIWire:
    name = "openai"
    stream_type = "text/event-stream; charset=utf-8"
    whole_type = "application/json"

    def __init__(self, traits: Traits = PLAIN) -> None:
        self.traits = traits

    def read_call(self, op: str, body: Mapping[str, Any], *, path_model: str | None = None) -> Call:
        read = request.READERS.get(op)
        if read is None:
            raise NotFound(f"there is no operation '{op}' here")
        return read(body)

    def write_call(self, call: Call, sent_model: str) -> dict[str, Any]:
        return body.write_call(call, sent_model)

    def path(self, call: Call, sent_model: str) -> str:
        return body.path(call)

    def reader(self, call: Call, stamp: Stamp) -> EventReader:
        return answer.StreamReader(call, stamp, self.traits)

    def read_answer(self, call: Call, body: bytes, stamp: Stamp) -> Sequence[Event]:
        return answer.read_answer(call, body, stamp, self.traits)

    def writer(self, call: Call, stamp: Stamp) -> EventWriter:
        return (writer.TextWriter if call.op == "completions" else writer.ChatWriter)(call, stamp)

    def write_answer(self, call: Call, events: Iterable[Event], stamp: Stamp) -> bytes:
        return writer.write_answer(call, events, stamp)

    def splice(self, call: Call, stamp: Stamp) -> Lane:
        return SpliceLane(call, stamp, self.traits)

    def read_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return errors.read_error(status, headers, body, self.traits.vendor)

    def write_error(self, error: SwitchyardError, request_id: str) -> bytes:
        return orjson.dumps(errors.error_object(error, request_id))

    def write_stream_error(self, call: Call, error: SwitchyardError, request_id: str) -> bytes:
        return sse(orjson.dumps(errors.error_object(error, request_id))) + DONE


WIRE = OpenAIWire()
