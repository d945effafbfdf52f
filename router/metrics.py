"""What operators read on `/metrics`. Labels are bounded: models and providers of the config or `other`, never a
client's string.

Children are looked up once and kept: on the hot path a metric is a dict look-up and an addition. With several workers
the values are in files (see router.metrics_files), and each worker shows the sum of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from providers.errors import LimitReached
from router.metrics_files import Files
from router.slots import ALONE, Slot
from router.trace import Trace

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
OVERHEAD = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


Across = Literal["sum", "max", "min"]
"""What a gauge of several workers shows."""

_MODES: dict[Across, Literal["livesum", "livemax", "livemin"]] = {"sum": "livesum", "max": "livemax", "min": "livemin"}
"""Only `live` ones: what a worker that ended said of the present counts no longer."""


class _Children:
    """The children of one metric by their label values."""

    __slots__ = ("_collecting", "_known", "_metric")

    def __init__(self, metric: MetricWrapperBase, collecting: Callable[[], AbstractContextManager[None]]) -> None:
        self._metric = metric
        self._collecting = collecting
        self._known: dict[tuple[str, ...], Any] = {}

    def of(self, *values: str) -> Any:  # a Counter or a Histogram, by the metric it belongs to
        child = self._known.get(values)
        if child is None:
            with self._collecting():
                child = self._known[values] = self._metric.labels(*values) if values else self._metric
        return child


class Metrics:
    """The router's metrics in a registry of their own. Raises OSError where a worker's files cannot be made."""

    def __init__(self, version: str, slot: Slot = ALONE) -> None:
        # No gauge beside each counter and histogram with its birthday: that is a third more series for nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation there
        registry = self.registry = CollectorRegistry(auto_describe=False)
        self._files = Files(slot.directory, slot.number) if slot.directory is not None else None
        collecting = self._collecting = self._files.collecting if self._files is not None else nullcontext
        self._read: list[tuple[Gauge, Callable[[], float]]] = []

        def counter(name: str, text: str, *labels: str) -> _Children:
            with collecting():  # one without labels has its value from here on
                made = Counter(f"switchyard_{name}", text, labels, registry=registry)
            return _Children(made, collecting)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> _Children:
            with collecting():
                made = Histogram(f"switchyard_{name}", text, labels, buckets=buckets, registry=registry)
            return _Children(made, collecting)

        self._requests = counter("requests", "Calls by outcome.", "dialect", "model", "provider", "status", "fallback")
        self._attempts = counter("attempts", "Calls to providers by outcome.", "provider", "outcome")
        self._fallbacks = counter("fallbacks", "Answers by a fallback.", "model", "to", "reason")
        self._tokens = counter("tokens", "Tokens as providers reported them.", "provider", "model", "type")
        self._disconnects = counter("client_disconnects", "Calls whose client left before the end.", "dialect")
        self._refusals = counter("quota_refusals", "Calls refused by a limit of a key or team.", "limit", "scope")
        self._settlements = counter("settlements", "Calls settled, by what is known of their usage.", "mark")
        self.overshot: Callable[[], None] = (
            counter("quota_overshoots", "Calls that used more than they had held.").of().inc
        )
        decision = histogram(
            "store_decision_seconds", "Time until a call was admitted or refused by the store.", OVERHEAD
        )
        self.decided: Callable[[float], None] = decision.of().observe
        """Takes the seconds of one decision."""
        self._duration = histogram("request_duration_seconds", "Whole time of a call.", SECONDS, "dialect", "provider")
        self._first = histogram(
            "time_to_first_token_seconds", "Time to the first content of a stream.", SECONDS, "provider"
        )
        self._overhead = histogram(
            "overhead_seconds", "Time spent by the router itself before the answer began.", OVERHEAD, "dialect"
        )
        self.in_flight = self._gauge("requests_in_flight", "Calls that run now.", "sum")
        self._gauge("workers", "Processes that serve.", "sum").set(1)
        with collecting():
            self._gauge("build_info", "Always 1; the version is in the label.", "max", "version").labels(version).set(1)

    def gauge(self, name: str, text: str, read: Callable[[], float], across: Across = "sum") -> None:
        """A gauge that is read when scraped. Of several workers it shows the sum, or the largest or smallest value;
        those of other workers may be as old as the last `publish`."""
        gauge = self._gauge(name, text, across)
        if self._files is None:
            gauge.set_function(read)
        else:
            self._read.append((gauge, read))

    def _gauge(self, name: str, text: str, across: Across, *labels: str) -> Gauge:
        with self._collecting():
            return Gauge(f"switchyard_{name}", text, labels, multiprocess_mode=_MODES[across], registry=self.registry)

    def publish(self) -> None:
        """Let the other workers see this one's gauges as they are now."""
        for gauge, read in self._read:
            gauge.set(read())

    def observe(self, trace: Trace, model: str, now: float, mark: str | None = None) -> None:
        """Count a finished call. `model` is a bounded label; `mark` is how it was settled, None when it was not."""
        answered = trace.answered
        provider = answered.provider.name if answered is not None else "none"
        dialect = trace.dialect
        status = "499" if trace.client_gone else str(trace.status)
        self._requests.of(dialect, model, provider, status, trace.fallback or "none").inc()
        for attempt in trace.attempts:
            self._attempts.of(attempt.target.provider.name, attempt.outcome).inc()
        self._duration.of(dialect, provider).observe(now - trace.started)
        if mark is not None:
            self._settlements.of(mark).inc()
        if isinstance(trace.error, LimitReached):
            title = trace.error.limit.partition("[")[0]  # without the pattern: admins may make any number of them
            name = title.removeprefix("team.")
            self._refusals.of(name, "key" if name == title else "team").inc()
        if trace.client_gone:
            self._disconnects.of(dialect).inc()
        if answered is None:
            return
        if trace.fallback is not None:
            self._fallbacks.of(model, provider, trace.fallback).inc()
        if trace.first_content is not None:
            self._overhead.of(dialect).observe(trace.overhead(now))
            if trace.call is not None and trace.call.stream:
                self._first.of(provider).observe(trace.first_content - trace.started)
        usage = trace.meter.usage if trace.meter is not None else None
        if usage is not None:
            for kind, count in (
                ("input", usage.input),
                ("output", usage.output),
                ("cached", usage.cached),
                ("reasoning", usage.reasoning),
            ):
                if count is not None and 0 < count < 1 << 40:
                    self._tokens.of(provider, model, kind).inc(count)

    def render(self) -> bytes:
        """The text format; with several workers, of all together."""
        if self._files is None:
            return generate_latest(self.registry)
        self.publish()
        return self._files.render()

    async def scrape(self) -> bytes:
        """Like `render`. Adding up many workers takes tens of milliseconds, in which streams of this one go on."""
        if self._files is None:
            return self.render()
        self.publish()
        return await asyncio.to_thread(self._files.render)
