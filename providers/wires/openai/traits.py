"""How a server's answers differ from OpenAI's where that cannot be seen from the answer itself."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Traits(Struct, frozen=True):
    vendor: str = ""
    """Whose bare-number error codes these are: `zhipu`, `minimax`."""
    think_tags: Literal["no", "tagged", "prefilled"] = "no"
    """Reasoning stands inside the content, between <think> and </think>; prefilled: the template wrote the opening
    tag."""


PLAIN = Traits()
