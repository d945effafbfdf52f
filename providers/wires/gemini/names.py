"""Function names: what Gemini allows is narrower than what clients send, so names are changed on the way and changed
back."""

from __future__ import annotations

import re
from collections.abc import Mapping

from providers.call import Call, ToolUse

_ALLOWED = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}")
_FOREIGN = re.compile(r"[^A-Za-z0-9_.:-]")
LONGEST = 64
"""Characters; newer models take 128."""


def safe_names(call: Call) -> Mapping[str, str]:
    """The client's names to those we send: one to one, the same for every turn of one conversation."""
    names = [tool.name for tool in call.tools]
    names += [part.name for message in call.messages for part in message.parts if isinstance(part, ToolUse)]
    if call.tool_choice is not None and call.tool_choice.name:
        names.append(call.tool_choice.name)
    if all(_ALLOWED.fullmatch(name) for name in names):
        return {name: name for name in names}
    table = {name: name for name in names if _ALLOWED.fullmatch(name)}
    taken = set(table)
    for name in names:
        if name in table:
            continue
        base = _FOREIGN.sub("_", name)
        if not base or not (base[0].isalpha() or base[0] == "_"):
            base = "_" + base
        safe, count = base[:LONGEST], 1
        while safe in taken:
            count += 1
            tail = f"_{count}"
            safe = base[: LONGEST - len(tail)] + tail
        taken.add(safe)
        table[name] = safe
    return table
