"""Streamed tool calls, made canonical: indexes from 0 without gaps, id and name once, arguments as text.

Servers disagree about everything here: `index` missing, constant or counted from 1; ids missing, repeated or
duplicate; names repeated or empty; arguments null, an object, or the whole text at once. A fragment belongs to the
call with its id, else with its index, else to the latest; it opens a new one when a new id comes with a name, or a
name comes after complete arguments.
"""

from __future__ import annotations

from typing import Any

import orjson
from msgspec import Struct

from providers.errors import Broken

MAX_CALLS = 256


class Piece(Struct, frozen=True):
    """What one fragment means. `id` and `name` are set on the first piece of a call only."""

    index: int
    id: str | None
    name: str | None
    arguments: str
    kind: str = "function"


class _Call:
    __slots__ = ("arguments", "given", "id", "index", "name", "opened")

    def __init__(self, index: int, ident: str, name: str, given: Any) -> None:
        self.index = index
        self.id = ident
        self.name = name
        self.given = given
        """The server's own index."""
        self.arguments: list[str] = []
        self.opened = False

    def complete(self) -> bool:
        """Whether the arguments so far are a whole JSON text."""
        if not self.arguments:
            return False
        try:
            orjson.loads("".join(self.arguments))
        except orjson.JSONDecodeError:
            return False
        return True


def arguments_text(value: Any) -> str:
    """Arguments as the text they should have been."""
    if value is None:
        return ""
    return value if type(value) is str else orjson.dumps(value).decode()


class ToolCalls:
    """The calls of one choice. `prefix` makes the ids that a server forgot."""

    __slots__ = ("_by_given", "_by_id", "_calls", "_prefix")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._calls: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._by_given: dict[Any, _Call] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def read(self, entry: Any) -> Piece | None:
        """One member of `delta.tool_calls`. None when it says nothing new. Raises Broken for what is no tool call."""
        if type(entry) is not dict:
            raise Broken("the provider sent a tool call that is no object")
        function = entry.get("function") or entry.get("custom") or {}
        if type(function) is not dict:
            raise Broken("the provider sent a tool call without a function")
        ident = entry.get("id")
        ident = ident if type(ident) is str else ""
        name = function.get("name")
        name = name if type(name) is str else ""
        text = arguments_text(function.get("arguments", function.get("input")))
        given = entry.get("index")
        given = given if type(given) is int else None
        call = self._find(ident, given, name, text)
        if call is None:
            if not (ident or name):
                return None
            call = self._open(ident, given, name)
        elif name and not call.name:
            call.name = name
        if text:
            call.arguments.append(text)
        if call.opened:
            return Piece(call.index, None, None, text) if text else None
        if not call.name:
            return None  # held back until the name comes
        call.opened = True
        kind = entry.get("type")
        kind = kind if type(kind) is str and kind else "function"
        return Piece(call.index, call.id, call.name, "".join(call.arguments), kind)

    def empty(self) -> list[int]:
        """Calls that ended without any arguments; `{}` is what they mean."""
        return [call.index for call in self._calls if call.opened and not call.arguments]

    def _find(self, ident: str, given: int | None, name: str, text: str) -> _Call | None:
        if ident:
            call = self._by_id.get(ident)
            if call is not None:
                # One id for two calls: another index and a name of its own.
                other = given is not None and call.given is not None and given != call.given and bool(name)
                return None if other else call
            if name:
                return None
            return self._by_given.get(given) if given is not None and given in self._by_given else self._nameless()
        call = self._by_given.get(given) if given is not None else self._latest()
        if call is None:
            return self._latest() if not name else None
        if name and call.opened and (name != call.name or text) and call.complete():
            return None  # a whole call after a whole call, without ids
        return call

    def _latest(self) -> _Call | None:
        return self._calls[-1] if self._calls else None

    def _nameless(self) -> _Call | None:
        """An unknown id without name or index opens a call, unless none of the calls has ended yet."""
        latest = self._latest()
        return latest if latest is not None and latest.arguments and not latest.complete() else None

    def _open(self, ident: str, given: int | None, name: str) -> _Call:
        index = len(self._calls)
        if index >= MAX_CALLS:
            raise Broken(f"the provider sent more than {MAX_CALLS} tool calls")
        if not ident or ident in self._by_id:
            ident = f"{self._prefix}{index}"
        call = _Call(index, ident, name, given)
        self._calls.append(call)
        self._by_id[ident] = call
        if given is not None:
            self._by_given[given] = call
        return call


def call_prefix(request_id: str, choice: int = 0) -> str:
    """What made-up tool call ids begin with; OpenAI takes ids of at most 40 characters."""
    tail = "".join(letter for letter in request_id if letter.isalnum())[-24:]
    return f"call_{tail}_{choice}_" if choice else f"call_{tail}_"
