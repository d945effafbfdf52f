"""PromQL for the boards. Every selector keeps to the chosen jobs and instances, and to the other choices of the board
where the family has such a label. Counters are summed over routers; what all routers read from the one store is the
same on each, so its greatest value is taken (`shared`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from router.metric_table import BY_NAME

PREFIX: Final = "switchyard_"
RATE: Final = "$__rate_interval"
RANGE: Final = "$__range"
FAILED: Final = 'outcome!~"ok|aborted|deadline|unsupported|refused|context_length|content_filter|provider_limit"'
"""Of attempts: without the outcomes that say nothing of the provider. As in recording.yml."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries for a board that offers these choices besides job and instance."""

    choices: frozenset[str]

    def of(self, family: str, *matchers: str, suffix: str = "") -> str:
        """A selector, e.g. `switchyard_tokens_total{job=~"$job", instance=~"$instance", type="input"}`."""
        chosen = [name for name in BY_NAME[family].labels if name in self.choices]
        every = [f'{name}=~"${name}"' for name in ("job", "instance", *chosen)]
        return f"{PREFIX}{family}{suffix}{{{', '.join([*every, *matchers])}}}"

    def rate(self, family: str, *matchers: str, by: str = "", suffix: str = "") -> str:
        return f"{_sum(by)} (rate({self.of(family, *matchers, suffix=suffix)}[{RATE}]))"

    def increase(self, family: str, *matchers: str, by: str = "") -> str:
        """Over the time that the board shows."""
        return f"{_sum(by)} (increase({self.of(family, *matchers)}[{RANGE}]))"

    def quantile(self, quantile: float, family: str, *matchers: str, by: str = "") -> str:
        labels = ", ".join(("le", by)) if by else "le"
        rates = f"sum by ({labels}) (rate({self.of(family, *matchers, suffix='_bucket')}[{RATE}]))"
        return f"histogram_quantile({quantile}, {rates})"

    def share(self, family: str, part: str, *matchers: str, by: str = "") -> str:
        """The part of a counter that the matcher `part` picks; 0 where there is none, nothing where nothing counts."""
        some, all_ = self.rate(family, *matchers, part, by=by), self.rate(family, *matchers, by=by)
        return f"({some} or {all_} * 0) / ({all_} > 0)"

    def total(self, family: str, *matchers: str, by: str = "") -> str:
        """A gauge of which each router tells its own part."""
        return f"{_sum(by)} ({self.of(family, *matchers)})"

    def least(self, family: str, *matchers: str, by: str = "") -> str:
        return f"min{_by(by)} ({self.of(family, *matchers)})"

    def shared(self, family: str, *matchers: str, by: str = "") -> str:
        """A gauge that every router reads from the same store."""
        return f"max{_by(by)} ({self.of(family, *matchers)})"


def zero(expr: str) -> str:
    """0 where nothing of the kind has happened yet."""
    return f"{expr} or vector(0)"


def _by(by: str) -> str:
    return f" by ({by})" if by else ""


def _sum(by: str) -> str:
    return f"sum{_by(by)}"
