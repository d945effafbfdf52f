"""Whether providers take calls, and why not, in a closed set of words: for the metrics and for status pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.health import Health
from router.metric_table import DOWN, OTHER
from router.snapshot import Snapshot

OFF: Final = frozenset({"disabled", "no_key"})
"""Nobody meant these providers to be up."""


def down(snapshot: Snapshot, health: Health, away: Mapping[str, str]) -> dict[str, str]:
    """Providers that take no calls, and the reason. away: those that did not tell their models several times, by name
    (`Discovery.away`); it counts of local servers, clouds are asked too seldom."""
    failing = health.down()
    found: dict[str, str] = {}
    for name, provider in snapshot.providers.items():
        if provider.off_word is not None:
            found[name] = provider.off_word
        elif (
            reason := failing.get(name) or (away.get(name) if provider.local and provider.discover else None)
        ) is not None:
            found[name] = reason if reason in DOWN else OTHER
    return found
