"""OpenMetrics, for scrapers that take nothing else, written by prometheus-client. Imported when the first one asks.

Prometheus takes both formats and gets the plain one: its text is kept ready (see router.metric_text), which is many
times cheaper. https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest

from router.metric_table import Family
from router.metric_text import Values


def text(families: Iterable[tuple[Family, Values]]) -> bytes:
    """These families in OpenMetrics 1.0."""
    collected = _Collected([_family(family, values) for family, values in families])
    written: bytes = generate_latest(collected)  # type: ignore[no-untyped-call]  # the library has no annotation there
    return written


class _Collected:
    """What the library writes: something that collects."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _family(family: Family, values: Values) -> Metric:
    labels = list(family.labels)
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.full, family.text, labels=labels)
        bounds = [*map(repr, family.buckets), "+Inf"]
        for of, numbers in values:
            *counts, total = numbers
            histogram.add_metric(of, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    metric: CounterMetricFamily | GaugeMetricFamily
    if family.kind == "counter":
        metric = CounterMetricFamily(family.full, family.text, labels=labels)
    else:
        metric = GaugeMetricFamily(family.full, family.text, labels=labels)
    for of, (value,) in values:
        metric.add_metric(of, value)
    return metric
