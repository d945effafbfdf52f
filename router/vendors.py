"""The vendors by the name that the config file uses. A module is imported when a provider first asks for its vendor."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, cast

from providers.vendor import Vendor

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


def get_vendor(name: str, options: Mapping[str, Any]) -> Vendor:
    """The vendor of that name, set up with a provider's `options`.

    A vendor module offers `VENDOR`; one whose providers differ among themselves offers `make_vendor(options)` too, and
    that raises ValueError with a sentence when the options make no sense.
    """
    module = import_module(VENDORS[name])
    make = getattr(module, "make_vendor", None)
    if make is not None:
        return cast("Vendor", make(options))
    if options:
        raise ValueError(f"vendor {name} takes no options: {', '.join(sorted(options))}")
    return cast("Vendor", module.VENDOR)
