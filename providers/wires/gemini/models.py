"""What a Gemini model's name says about it: generation, thinking, schemas, signatures.

Sources: ai.google.dev/gemini-api/docs/thinking, .../thought-signatures, .../structured-output. Names that say no
version (`gemini-flash-latest`) are taken for the newest generation in everything but thinking, where a token budget is
understood by 2.5 and later alike.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

from providers.call import Effort, ReasoningAsk

_VERSION = re.compile(r"gemini-(\d+)(?:\.(\d+))?(?![0-9])")
_SIZES = ("flash-lite", "flash", "pro")

NEWEST: Final = (3, 0)


class Family(Struct, frozen=True):
    gemini: bool
    """False for Gemma, LearnLM and whatever else hangs at the same address."""
    version: tuple[int, int]
    named: bool
    """The name said the version."""
    size: str
    """`flash-lite`, `flash`, `pro`, or nothing."""
    embeds: bool
    speaks: bool
    """Makes pictures or speech: no tools, no thinking."""

    @property
    def thinks(self) -> bool:
        return self.gemini and self.version >= (2, 5) and not self.embeds and not self.speaks

    @property
    def levels(self) -> bool:
        """Thinking is asked for by level, not by budget."""
        return self.thinks and self.named and self.version >= (3, 0)

    @property
    def json_schema(self) -> bool:
        """Takes ordinary JSON Schema (`parametersJsonSchema`); older ones only know an OpenAPI subset."""
        return self.gemini and self.version >= (2, 5)

    @property
    def signs(self) -> bool:
        """Checks that a function call comes back with the signature it was sent with, and gives calls an id."""
        return self.thinks and self.version >= (3, 0)


@lru_cache(maxsize=256)
def family(model: str) -> Family:
    name = model.rsplit("/", 1)[-1].lower()
    found = _VERSION.search(name)
    gemini = name.startswith("gemini")
    return Family(
        gemini=gemini,
        version=(int(found[1]), int(found[2] or 0)) if found else (NEWEST if gemini else (0, 0)),
        named=found is not None,
        size=next((size for size in _SIZES if size in name), ""),
        embeds="embedding" in name or name == "aqa",
        speaks="-image" in name or "-tts" in name,
    )


BUDGETS: Final[dict[Effort, int]] = {"minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "max": 32768}
"""Tokens by effort; those of Google's own OpenAI-compatible endpoint, with `minimal` below `low`."""

BOUNDS: Final[dict[str, tuple[int, int]]] = {
    # the size's smallest budget that still thinks, and its largest
    "flash-lite": (512, 24576),
    "flash": (1, 24576),
    "pro": (128, 32768),
}

LEVELS: Final[dict[str, dict[Effort, str]]] = {
    # Gemini 3 Pro began with two levels; later ones know all three.
    "gemini-3-pro": {"minimal": "LOW", "low": "LOW", "medium": "HIGH", "high": "HIGH", "max": "HIGH"},
    "pro": {"minimal": "LOW", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "max": "HIGH"},
    "": {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "max": "HIGH"},
}

SMALL_ANSWER: Final = 64
"""An answer bounded to this many tokens (titles, yes or no) would be eaten by thinking, which counts against the
bound."""


def _levels(model: str, kind: Family) -> dict[Effort, str]:
    if "gemini-3-pro" in model:
        return LEVELS["gemini-3-pro"]
    return LEVELS["pro" if kind.size == "pro" else ""]


def _effort_of(budget: int) -> Effort:
    return "minimal" if budget <= 512 else "low" if budget <= 1024 else "medium" if budget <= 8192 else "high"


def _least(model: str, kind: Family) -> dict[str, Any]:
    """As little thinking as the model allows: Pro cannot be switched off. (`includeThoughts: false` alone still
    thinks.)"""
    if kind.levels:
        return {"thinkingLevel": _levels(model, kind)["minimal"]}
    return {"thinkingBudget": 128 if kind.size == "pro" else 0}


def thinking(model: str, ask: ReasoningAsk, max_tokens: int | None) -> dict[str, Any] | None:
    """The `thinkingConfig` for a wish, None when nothing is to be said. Models that do not think refuse any."""
    kind = family(model)
    if not kind.thinks:
        return None
    wished = ask.effort is not None or ask.budget is not None
    if ask.enabled is False or (ask.budget == 0 and ask.enabled is not True):
        return _least(model, kind)
    if ask.enabled is None and not wished:
        if max_tokens is not None and max_tokens <= SMALL_ANSWER:
            return _least(model, kind)
        return None
    said: dict[str, Any] = {"includeThoughts": True}
    if kind.levels:
        effort = ask.effort or (_effort_of(ask.budget) if ask.budget is not None and ask.budget > 0 else None)
        if effort is not None:
            said["thinkingLevel"] = _levels(model, kind)[effort]
        return said
    if ask.budget is not None and ask.budget > 0:
        budget = ask.budget
    elif ask.effort is not None:
        budget = BUDGETS[ask.effort]
    else:
        return said | {"thinkingBudget": -1}
    least, most = BOUNDS.get(kind.size, BOUNDS["flash"])
    return said | {"thinkingBudget": min(max(budget, least), most)}
