"""Load and unload requests: no messages, no prompt, no input. The router answers them itself and calls nobody, once it
knows the name.
"""

from __future__ import annotations

from providers.call import Call
from providers.framing import line_safe
from providers.wire import Stamp
from providers.wires.ollama import fields
from providers.wires.ollama.failures import dumps
from providers.wires.ollama.writer import timestamp


def load_answer(call: Call, stamp: Stamp) -> bytes | None:
    """The one JSON object that answers a load or unload, whatever `stream` says (200, `application/json`); None for
    any other call.
    """
    if call.wire != "ollama":
        return None
    if call.op == "embed":
        return None if call.inputs else line_safe(dumps({"model": call.asked_model, "embeddings": []}))
    if call.op == "embeddings":
        return None if call.inputs else b'{"embedding":[]}'
    if call.messages if call.op == "chat" else call.prompt:
        return None
    answer = {"model": call.asked_model, "created_at": timestamp(stamp.clock())}
    empty = {"message": {"role": "assistant", "content": ""}} if call.op == "chat" else {"response": ""}
    reason = "unload" if fields.keep_alive(call.raw) == 0 else "load"
    return line_safe(dumps({**answer, **empty, "done": True, "done_reason": reason}))
