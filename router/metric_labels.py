"""Which models have a name in the metrics: those that the config, a model list or a price list names. Names come from
callers too (patterns, names written out), and each would be a series for ever."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from router.credentials import shown_name
from router.metric_table import OTHER
from router.patterns import nearest
from router.routing import Plan
from router.snapshot import MAX_MODEL_NAME, Snapshot, Target, base_name

LONGEST: Final = 100
"""Characters of a label."""


def route_label(plan: Plan | None, snapshot: Snapshot, asked: str | None = None) -> str:
    """The name that was asked for: of the config, a pattern of it, or discovered; `other` for what resolved to none of
    these. asked: the name of a call that was refused before it had a plan; None where it was not read."""
    if plan is not None:
        if plan.matched.startswith("pattern:"):
            return plan.matched.removeprefix("pattern:")
        asked = plan.asked_model
    if not asked or len(asked) > MAX_MODEL_NAME:
        return OTHER
    entry = snapshot.entry(asked)
    if plan is None and (entry is None or entry.kind != "configured"):
        found = nearest(asked, snapshot.patterns)
        if found is not None:
            return found[0].text
    return entry.id if entry is not None else OTHER


class ModelLabels:
    """The labels of a snapshot's models. Spellings that an Ollama takes for one are one."""

    def __init__(self, snapshot: Snapshot, priced: Iterable[tuple[str, str]] = ()) -> None:
        """priced: providers and models that have a price of their own."""
        self._known: dict[str, dict[str, str]] = {name: {} for name in snapshot.providers}
        for provider, model in (*snapshot.named(), *priced):
            known = self._known.get(provider)
            if known is not None and model and len(model) <= LONGEST:
                label = known.setdefault(base_name(model), shown_name(model))
                known[model] = label

    def of(self, target: Target) -> str:
        """The label of a target's model."""
        return self.named(target.provider.name, target.model)

    def named(self, provider: str, model: str) -> str:
        known = self._known.get(provider)
        if known is None:
            return OTHER
        return known.get(model) or known.get(base_name(model)) or OTHER
