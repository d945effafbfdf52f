"""Wires and vendors by name. A module is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Final, cast

from providers.vendor import Vendor
from providers.wire import Wire

WIRES: Final[Mapping[str, str]] = {
    "openai": "providers.wires.openai",
    "ollama": "providers.wires.ollama",
    "gemini": "providers.wires.gemini",
}
VENDORS: Final[Mapping[str, str]] = {
    "openai": "providers.openai",
    "ollama": "providers.ollama",
    "gemini": "providers.gemini",
    "doubao": "providers.doubao",
    "kimi": "providers.kimi",
    "openai-compatible": "providers.compatible",
    "litellm": "providers.litellm",
    "demo": "providers.demo",
}


@cache
def wire(name: str) -> Wire:
    """Raises KeyError for a name that is not in the table."""
    return cast("Wire", import_module(WIRES[name]).WIRE)


def vendor(name: str, options: Mapping[str, Any] | None = None) -> Vendor:
    """The vendor of that name, set up with a provider's `options`.

    A vendor module offers `VENDOR`; one whose providers differ among themselves offers `make_vendor(options)` too.
    Raises KeyError for an unknown name and ValueError, with a sentence, for options that make no sense.
    """
    module = import_module(VENDORS[name])
    make = getattr(module, "make_vendor", None)
    if make is not None:
        return cast("Vendor", make(options or {}))
    if options:
        raise ValueError(f"vendor {name} takes no options: {', '.join(sorted(options))}")
    return cast("Vendor", module.VENDOR)
