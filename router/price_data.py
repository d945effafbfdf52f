"""litellm's bundled price list, read as data: the package itself is not imported, and need not be installed.

The list is a help for what our own does not name. Zero there means free as often as it means unknown, so a zero or
missing price is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = "model_prices_and_context_window_backup.json"
SOURCE: Final = "litellm"
STEPS: Final = (100, 128, 200, 256, 272, 512)
"""Thresholds, in thousand tokens, that the list's tiers begin at."""
KINDS: Final[Mapping[str, str]] = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "reasoning": "output_cost_per_reasoning_token",
}
MODES: Final = frozenset({"chat", "completion", "responses", "embedding"})
TO_MICRO_PER_MILLION: Final = 10**12
"""Dollars a token to micro-dollars a million tokens."""

_FIELDS = [
    "litellm_provider",
    "mode",
    "max_output_tokens",
    "input_cost_per_request",
    "tiered_pricing",
    *KINDS.values(),
    *(f"{name}_above_{step}k_tokens" for name in KINDS.values() for step in STEPS),
]
_Row: Any = msgspec.defstruct("_Row", [(name, Any, None) for name in _FIELDS], gc=False)


class Listed(msgspec.Struct, frozen=True):
    """One model of the list: micro-USD for a million tokens by kind, the tiers by the prompt they begin above."""

    rates: Mapping[str, int]
    tiers: Sequence[tuple[int, Mapping[str, int]]]
    max_output: int | None
    call: int
    """Micro-USD for each call."""


def bundled() -> Path | None:
    """Where the list is, None when litellm is not installed."""
    try:
        spec = find_spec("litellm")
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        file = Path(place) / FILE
        if file.is_file():
            return file
    return None


@lru_cache(maxsize=1)
def rows() -> Mapping[str, Any]:
    """The whole list by name, decoded once in a process (about 15 ms); empty when there is none."""
    file = bundled()
    if file is None:
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, _Row])
    except (OSError, msgspec.DecodeError):
        # A damaged file of another package: its prices are unknown, as if it were not there.
        return {}


def find(names: Sequence[str], providers: Sequence[str]) -> Listed | None:
    """The first of `names` that stands in the list under one of `providers` with a price."""
    table = rows()
    for name in names:
        row = table.get(name)
        if row is not None and _belongs(row.litellm_provider, providers):
            return _listed(row)
    return None


def _belongs(owner: Any, providers: Sequence[str]) -> bool:
    """`bedrock_converse` and `vertex_ai-anthropic_models` are parts of bedrock and vertex_ai."""
    return isinstance(owner, str) and any(owner == one or owner.startswith((f"{one}_", f"{one}-")) for one in providers)


def _listed(row: Any) -> Listed | None:
    if row.mode not in MODES:
        return None
    rates = {kind: value for kind, name in KINDS.items() if (value := _micro(getattr(row, name)))}
    tiers: list[tuple[int, Mapping[str, int]]] = []
    steps = row.tiered_pricing
    if isinstance(steps, list) and steps:
        for step in steps:
            found = _step(step)
            if found is None:
                return None
            tiers.append(found)
        tiers.sort(key=lambda tier: tier[0])
        rates = {**rates, **tiers.pop(0)[1]}
    else:
        for step in STEPS:
            above = {
                kind: value
                for kind, name in KINDS.items()
                if (value := _micro(getattr(row, f"{name}_above_{step}k_tokens")))
            }
            if above:
                tiers.append((step * 1000, {**rates, **above}))
    if "input" not in rates or ("output" not in rates and row.mode != "embedding"):
        return None
    longest = row.max_output_tokens
    return Listed(
        rates,
        tiers,
        longest if type(longest) is int and longest > 0 else None,
        (_micro(row.input_cost_per_request) or 0) // 1_000_000,
    )


def _step(step: Any) -> tuple[int, Mapping[str, int]] | None:
    if not isinstance(step, dict):
        return None
    reach = step.get("range")
    if not isinstance(reach, list) or not reach or not isinstance(reach[0], int | float):
        return None
    return int(reach[0]), {kind: value for kind, name in KINDS.items() if (value := _micro(step.get(name)))}


def _micro(value: Any) -> int | None:
    """Micro-USD for a million, None for nothing, zero or nonsense."""
    if type(value) not in (int, float) or not 0 < value < 1:
        return None
    return max(1, round(Decimal(repr(value)) * TO_MICRO_PER_MILLION))
