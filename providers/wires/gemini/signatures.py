"""Thought signatures: opaque bytes that Gemini 3 puts on a function call and wants back with it, else the next turn is
a 400.

They go to the client on the call itself (`ToolStart.signature`), and the wires that have a place for them give them
back on `ToolUse.signature`. Clients that drop unknown fields are served from a small memory by call id. It is an aid,
not a store: after a restart, or in another worker, the documented dummy value stands in, with some loss of quality.
https://ai.google.dev/gemini-api/docs/thought-signatures
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

BYPASS: Final = "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="
"""`skip_thought_signature_validator` in base64: the field is bytes. For calls that never had a signature (another
provider's)."""

MEMORY: Final = 2 * 1024 * 1024
"""Bytes of signatures kept; one is some hundred to some thousand bytes."""


class Signatures:
    """Signatures by call id and model, the oldest forgotten first."""

    def __init__(self, limit: int = MEMORY) -> None:
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[tuple[str, str], str] = OrderedDict()

    def keep(self, model: str, call_id: str, signature: str) -> None:
        key = (model, call_id)
        old = self._kept.pop(key, None)
        if old is not None:
            self._size -= _weight(key, old)
        if _weight(key, signature) > self._limit:
            return
        self._kept[key] = signature
        self._size += _weight(key, signature)
        while self._size > self._limit:
            gone, value = self._kept.popitem(last=False)
            self._size -= _weight(gone, value)

    def find(self, model: str, call_id: str) -> str | None:
        """The signature that this very model gave to that call: another model refuses it as corrupt."""
        return self._kept.get((model, call_id))


def _weight(key: tuple[str, str], signature: str) -> int:
    return len(key[0]) + len(key[1]) + len(signature) + 256
