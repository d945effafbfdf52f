"""What operators read on `/metrics`. Which metrics there are stands in router.metric_table; labels are bounded: models
and providers of the config or `other`, never a client's string.

Children are looked up once and kept: on the hot path a metric is a dict look-up and an addition. With several workers
the numbers are in files (see router.metrics_files), and each worker shows all of them added up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, get_args

from providers.errors import DeadlineExceeded, LimitReached, StoreUnavailable
from router.limits import NAMES
from router.metric_table import BY_NAME, NONE, Family
from router.metric_text import ABSENT, Board, Row, Values, key_of
from router.metrics_files import Entry, Shelf
from router.pace import seconds_per_token
from router.routing import Plan, Target
from router.settlement import Bill, Mark
from router.slots import ALONE, Slot
from router.trace import Trace

LAG_PACE: Final = 0.5
"""Seconds between two samples of the event loop's lag."""
PUBLISH_PACE: Final = 1.0
"""Seconds between two times that other workers are told this one's gauges."""

STORE_ERRORS: Final = ("not_sent", "unanswered", "refused")
"""What becomes of questions to the store that fail."""

Rows = Mapping[str, Sequence[Row]]
"""Rows of gauges by the family's name."""

_log = logging.getLogger("switchyard.metrics")


class Number:
    """One counter or gauge."""

    __slots__ = ("_cells", "_place")

    def __init__(self, entry: Entry) -> None:
        self._cells, self._place = entry.cells, entry.place

    def inc(self, amount: float = 1.0) -> None:
        self._cells[self._place] += amount

    def dec(self) -> None:
        self._cells[self._place] -= 1.0

    def set(self, value: float) -> None:
        self._cells[self._place] = value

    def get(self) -> float:
        return self._cells[self._place]


class Histogram:
    """One set of buckets."""

    __slots__ = ("_bounds", "_cells", "_place", "_sum")

    def __init__(self, entry: Entry, bounds: tuple[float, ...]) -> None:
        self._cells, self._place, self._bounds = entry.cells, entry.place, bounds
        self._sum = entry.place + len(bounds) + 1

    def observe(self, value: float) -> None:
        cells = self._cells
        cells[self._place + bisect_left(self._bounds, value)] += 1.0
        cells[self._sum] += value


class Numbers:
    """The children of one counter or gauge by their label values."""

    __slots__ = ("_family", "_known", "_shelf")

    def __init__(self, name: str, shelf: Shelf) -> None:
        self._family, self._shelf = BY_NAME[name], shelf
        self._known: dict[tuple[str, ...], Number] = {}

    def of(self, *values: str) -> Number:
        child = self._known.get(values)
        if child is None:
            family = self._family
            assert len(values) == len(family.labels), family.name
            child = self._known[values] = Number(self._shelf.own.entry(key_of(family, values), 1))
        return child

    def known(self) -> Mapping[tuple[str, ...], Number]:
        return self._known


class Histograms:
    """The children of one histogram by their label values."""

    __slots__ = ("_family", "_known", "_shelf")

    def __init__(self, name: str, shelf: Shelf) -> None:
        self._family, self._shelf = BY_NAME[name], shelf
        self._known: dict[tuple[str, ...], Histogram] = {}

    def of(self, *values: str) -> Histogram:
        child = self._known.get(values)
        if child is None:
            family = self._family
            assert len(values) == len(family.labels), family.name
            entry = self._shelf.own.entry(key_of(family, values), family.cells)
            child = self._known[values] = Histogram(entry, family.buckets)
        return child


class Metrics:
    """The router's metrics. Raises OSError where a worker's files cannot be made."""

    def __init__(self, version: str, slot: Slot = ALONE) -> None:
        place = slot.directory, slot.number, slot.count
        self._counters, self._gauges = Shelf("counter", *place), Shelf("gauge", *place)
        self._board = Board((self._counters, self._gauges))
        self._reads: list[Callable[[], None]] = []
        self._later: list[Callable[[], Awaitable[Rows]]] = []
        self._requests = self.counter("requests_total")
        self._attempts = self.counter("upstream_attempts_total")
        self._fallbacks = self.counter("fallbacks_total")
        self._tokens = self.counter("tokens_total")
        self._cost = self.counter("cost_total")
        self._disconnects = self.counter("client_disconnects_total")
        self._rejections = self.counter("quota_rejections_total")
        self._store_refusals = self.counter("store_refusals_total").of()
        self._settlements = self.counter("settlements_total")
        self._store_errors = self.counter("redis_errors_total")
        self._duration = self.histogram("request_duration_seconds")
        self._first = self.histogram("ttft_seconds")
        self._pace = self.histogram("time_per_output_token_seconds")
        self._overhead = self.histogram("overhead_seconds")
        self._waits = self.histogram("queue_wait_seconds")
        self._lag = self.histogram("event_loop_lag_seconds").of()
        self.overshot: Callable[[], None] = self.counter("quota_overshoots_total").of().inc
        self.decided: Callable[[float], None] = self.histogram("redis_decision_seconds").of().observe
        """Takes the seconds of one decision."""
        self.in_flight = Numbers("requests_in_flight", self._gauges).of()
        Numbers("workers", self._gauges).of().set(1)
        Numbers("build_info", self._gauges).of(version).set(1)
        self.in_flight.set(0)
        # Series of counters that are rarely counted stand from the start: a rate needs a value before the first one.
        for mark in (*get_args(Mark), NONE):
            self._settlements.of(mark)
        for kind in STORE_ERRORS:
            self._store_errors.of(kind)
        for limit in NAMES.values():
            for scope in ("key", "team"):
                self._rejections.of(limit, scope)
        self.count("cpu_seconds_total", time.process_time)
        self.gauge("resident_memory_bytes", _resident)

    # --- declaring

    def counter(self, name: str) -> Numbers:
        return Numbers(name, self._counters)

    def histogram(self, name: str) -> Histograms:
        return Histograms(name, self._counters)

    def gauge(self, name: str, read: Callable[[], float | None]) -> None:
        """A gauge that is read when scraped; None for no value. What other workers show of it may be as old as the
        last `publish`."""
        child = Numbers(name, self._gauges).of()

        def publish() -> None:
            value = read()
            child.set(ABSENT if value is None else value)

        child.set(ABSENT)
        self._reads.append(publish)

    def gauges(self, name: str, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """The same for one with labels: values by the labels' values. Those that are named no longer are gone."""
        numbers = Numbers(name, self._gauges)

        def publish() -> None:
            values = read()
            for labels, child in numbers.known().items():
                if labels not in values:
                    child.set(ABSENT)
            for labels, value in values.items():
                numbers.of(*labels).set(value)

        self._reads.append(publish)

    def count(self, name: str, read: Callable[[], float]) -> None:
        """A counter that something else counts, from 0 at this process's start."""
        child = self.counter(name).of()
        before = child.get()  # of the worker that this one replaces
        self._reads.append(lambda: child.set(before + read()))

    def at_scrape(self, read: Callable[[], Awaitable[Rows]]) -> None:
        """Gauges that no worker owns: read once per scrape, by whoever is scraped. `read` raises nothing."""
        self._later.append(read)

    # --- counting

    def waited(self, provider: str, seconds: float) -> None:
        """A call waited for a place at a provider."""
        self._waits.of(provider).observe(seconds)

    def store_failed(self, kind: str) -> None:
        """A question to the store failed. kind: a value of the label."""
        self._store_errors.of(kind).inc()

    def observe(
        self,
        trace: Trace,
        route: str,
        now: float,
        bill: Bill | None = None,
        label: Callable[[Target], str] | None = None,
    ) -> None:
        """Count a finished call. `route` and `label(target)` are bounded labels; `bill` None: it was not settled."""
        answered = trace.answered
        dialect, fallback, error = trace.dialect, None, trace.error
        provider = model = NONE
        if answered is not None:
            fallback = trace.fallback  # one that was tried and answered nothing is none
            provider = answered.provider.name
            model = label(answered) if label is not None else NONE
        if trace.client_gone:
            status = "499"
            self._disconnects.of(dialect).inc()
        elif isinstance(error, DeadlineExceeded):
            status = "504"
        else:
            # A stream that broke off said 200 when it began.
            number = trace.status if error is None or trace.status >= 400 else error.status
            status = _CLASSES.get(number // 100, "5xx")
        self._requests.of(dialect, route, provider, model, status, fallback or NONE).inc()
        for attempt in trace.attempts:
            self._attempts.of(attempt.target.provider.name, attempt.outcome).inc()
        self._duration.of(dialect, provider).observe(now - trace.started)
        if bill is not None:
            self._settlements.of(bill.mark if bill.parts else NONE).inc()
            for part in bill.parts:
                where = part.target.provider.name, label(part.target) if label is not None else NONE
                usage = part.usage
                if usage.input:
                    self._tokens.of(*where, "input").inc(usage.input)
                if usage.output:
                    self._tokens.of(*where, "output").inc(usage.output)
                if usage.cached:
                    self._tokens.of(*where, "input_cached").inc(usage.cached)
                if usage.cache_write:
                    self._tokens.of(*where, "input_cache_write").inc(usage.cache_write)
                if usage.reasoning:
                    self._tokens.of(*where, "output_reasoning").inc(usage.reasoning)
                if part.cost:
                    self._cost.of("usd", *where).inc(part.cost)
        if isinstance(error, LimitReached):
            title = error.limit.partition("[")[0]  # without the pattern: admins may make any number of them
            name = title.removeprefix("team.")
            self._rejections.of(name, "key" if name == title else "team").inc()
        elif bill is None and isinstance(error, StoreUnavailable):
            self._store_refusals.inc()
        if answered is None:
            return
        if fallback is not None:
            self._fallbacks.of(_first_planned(trace.plan), provider, fallback).inc()
        if trace.first_content is not None:
            self._overhead.of(dialect).observe(trace.overhead(now))
        first = trace.content_at
        if first is not None and trace.call is not None and trace.call.stream:
            self._first.of(provider).observe(first - trace.started)
        pace = seconds_per_token(trace, bill, now)
        if pace is not None:
            self._pace.of(provider).observe(pace)

    # --- showing

    def publish(self) -> None:
        """Let the other workers see this one's gauges as they are now."""
        for read in self._reads:
            read()

    async def run(self) -> None:
        """Publish, and sample the event loop's lag, until cancelled."""
        loop = asyncio.get_running_loop()
        published = 0.0
        while True:
            due = loop.time() + LAG_PACE
            await asyncio.sleep(LAG_PACE)
            now = loop.time()
            self._lag.observe(max(0.0, now - due))
            if now - published >= PUBLISH_PACE - LAG_PACE / 2:
                published = now
                try:
                    self.publish()
                except Exception:  # noqa: BLE001 - a bug of ours in one gauge; the next time may do better
                    _log.exception("publishing metrics failed")

    def current(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a gauge or a counter by its label values, over all workers; for status pages. Gauges of other
        workers are a second old at most."""
        self.publish()
        self._board.look()
        return self._board.current(BY_NAME[name])

    async def scrape(self) -> bytes:
        """The text format, of all workers together. Streams go on between two families."""
        more = await self._look()
        texts = []
        for text in self._board.texts(more):
            texts.append(text)
            if len(text) > _LONG:
                await asyncio.sleep(0)
        return "".join(texts).encode()

    async def scrape_openmetrics(self) -> bytes:
        """The same in OpenMetrics, which costs more: in a thread."""
        families = list(self._board.values(await self._look()))
        return await asyncio.to_thread(_openmetrics, families)

    async def _look(self) -> Rows:
        """See how everything is now; what is read once per scrape."""
        more: dict[str, Sequence[Row]] = {}
        for read in self._later:
            more |= await read()
        self.publish()
        self._board.look()
        return more


def _openmetrics(families: Sequence[tuple[Family, Values]]) -> bytes:
    from router import openmetrics  # the library, for those who ask

    return openmetrics.text(families)


_LONG: Final = 20_000
"""Characters of one family's text after which others get a turn."""
_CLASSES: Final = {2: "2xx", 4: "4xx", 5: "5xx"}


def _first_planned(plan: Plan | None) -> str:
    """The provider of the target that came first, whether it was tried or left out."""
    if plan is None:
        return NONE
    for attempt in plan.attempts:
        if attempt.role == "target":
            return attempt.target.provider.name
    for skip in plan.skipped:
        if skip.role == "target":
            return skip.target.partition("/")[0]
    return NONE


def _resident() -> float | None:
    """Bytes of memory that the process occupies; None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return None


_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
