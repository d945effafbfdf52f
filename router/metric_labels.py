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
MOST_LISTED: Final = 256
"""Names of a provider's model list that may be labels, for as long as the process lives. Workers each have their own,
and so does one that replaces another: `/metrics` may show more."""


class Admitted:
    """Names that come from outside, in the model lists of servers: the first MOST_LISTED of each place that are used
    become labels. A server that tells other names at every look makes no more series."""

    def __init__(self, most: int = MOST_LISTED) -> None:
        self._most = most
        self._names: dict[str, set[str]] = {}

    def take(self, place: str, name: str) -> bool:
        """Whether the name is a label; place: a provider, or `` for names that are asked for."""
        names = self._names.setdefault(place, set())
        if name not in names and len(names) < self._most:
            names.add(name)
        return name in names


class ModelLabels:
    """The labels of a snapshot's models, and of the names that are asked for. Spellings that an Ollama takes for one
    are one."""

    def __init__(
        self, snapshot: Snapshot, priced: Iterable[tuple[str, str]] = (), admitted: Admitted | None = None
    ) -> None:
        """priced: providers and models that have a price of their own; admitted: which names of model lists are
        labels, kept from one snapshot to the next."""
        self._snapshot = snapshot
        self._admitted = admitted or Admitted()
        self._known: dict[str, dict[str, str]] = {name: {} for name in snapshot.providers}
        self._listed: dict[str, dict[str, str]] = {name: {} for name in snapshot.providers}
        for names, rows in ((self._known, (*snapshot.named(), *priced)), (self._listed, snapshot.told())):
            for provider, model in rows:
                known = names.get(provider)
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
        name = base_name(model)
        if (found := known.get(model) or known.get(name)) is not None:
            return found
        listed = self._listed[provider]
        found = listed.get(model) or listed.get(name)
        return found if found is not None and self._admitted.take(provider, name) else OTHER

    def route(self, plan: Plan | None, asked: str | None = None) -> str:
        """The name that was asked for: of the config, a pattern of it, discovered, or `provider/model` where that model
        has a label; `other` for what is none of these. asked: the name of a call that was refused before it had a plan;
        None where it was not read."""
        snapshot = self._snapshot
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
        if entry is not None:
            return entry.id if entry.kind == "configured" or self._admitted.take("", entry.id) else OTHER
        provider, _, model = asked.partition("/")
        label = self.named(provider, model)
        return f"{provider}/{label}" if label != OTHER else OTHER
