"""Where those values of the metrics come from that calls do not count: what is read of the running router when it is
scraped, and what is asked for in the background."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.loaded import LoadedModels
from router.metric_labels import Admitted, ModelLabels
from router.metrics import Rows
from router.prices import Prices
from router.provider_state import down
from router.snapshot import Snapshot
from router.team_gauges import TeamGauges

if TYPE_CHECKING:
    from router.runtime import Runtime

Values = dict[tuple[str, ...], float]
"""A gauge's values by its label values."""


class Gauges:
    """Of one worker. `run` once the runtime has started."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._admitted = Admitted()
        self._labels: tuple[Snapshot, Prices, ModelLabels] | None = None
        self._away: dict[str, str] = {}
        """Why providers are down, as `_up` saw it last: both are told of one moment."""
        self._ended: int | None = None
        self._loaded = LoadedModels(
            runtime.http, lambda: tuple(runtime.snapshot.providers.values()), lambda: self.model_labels
        )
        metrics = runtime.metrics
        metrics.count("log_lines_dropped_total", lambda: runtime.log.dropped)
        metrics.count(
            "telemetry_spans_lost_total", lambda: runtime.telemetry.lost if runtime.telemetry is not None else 0
        )
        metrics.gauge("upstream_connections", lambda: runtime.http.open_sockets)
        metrics.gauge("config_reload_success", lambda: 0.0 if runtime.config_problem else 1.0)
        metrics.gauge("config_reload_timestamp_seconds", lambda: runtime.config_loaded_at)
        metrics.gauge("start_time_seconds", lambda: runtime.started_at)
        metrics.gauge("usd_cny", lambda: runtime.config.prices.usd_cny)

        metrics.at_scrape(self._restarts)

    async def run(self) -> None:
        """Keep the values current until cancelled."""
        runtime = self._runtime
        metrics, ledger = runtime.metrics, runtime.ledger
        ledger.links.failed = metrics.store_failed
        metrics.count("journal_lost_total", lambda: ledger.journal.lost)
        metrics.gauge("redis_up", lambda: 1.0 if ledger.links.up else 0.0)
        metrics.gauge("journal_entries", lambda: len(ledger.journal))
        metrics.gauge("holds", lambda: len(ledger.live))
        metrics.gauges("queue_depth", self._queued)
        metrics.gauges("provider_up", self._up)
        metrics.gauges("provider_down", self._why)
        metrics.gauges("provider_info", self._info)
        metrics.gauges("circuit_open", self._open_circuits)
        background = []
        if runtime.slot.number == 0:
            # One worker asks for all of them: two that look at different times would tell of two models after a swap.
            metrics.gauges("ollama_loaded_models", self._loaded.models)
            metrics.gauges("ollama_vram_bytes", self._loaded.vram)
            background.append(self._loaded.run())
        teams = TeamGauges(runtime.store, lambda: runtime.config.prices.usd_cny, runtime.clock, runtime.monotonic)
        metrics.at_scrape(teams.read)
        try:
            await asyncio.gather(metrics.run(), *background)
        finally:
            await teams.close()

    @property
    def model_labels(self) -> ModelLabels:
        """How the metrics name models while the config in force is."""
        snapshot, prices, known = self._runtime.snapshot, self._runtime.prices, self._labels
        if known is None or known[0] is not snapshot or known[1] is not prices:
            priced = [(name, model) for name, row in snapshot.providers.items() for model in prices.names(row)]
            known = self._labels = (snapshot, prices, ModelLabels(snapshot, priced, self._admitted))
        return known[2]

    async def _restarts(self) -> Rows:
        """What the process that keeps the workers has counted, the same for each of them."""
        ended = self._runtime.slot.ended()
        if ended is not None:
            self._ended = ended
        return {"worker_restarts_total": [((), self._ended)]} if self._ended is not None else {}

    def _up(self) -> Values:
        runtime = self._runtime
        away, unknown = down(runtime.snapshot, runtime.health, runtime.discovery.away()), runtime.discovery.unheard()
        self._away = away
        return {
            (name,): float(name not in away)
            for name, row in runtime.snapshot.providers.items()
            if name in away or not (row.local and name in unknown)
        }

    def _why(self) -> Values:
        return dict.fromkeys(self._away.items(), 1.0)

    def _info(self) -> Values:
        rows = self._runtime.snapshot.providers.values()
        return {(row.name, row.vendor.name, "yes" if row.local else "no"): 1.0 for row in rows}

    def _open_circuits(self) -> Values:
        found = self._runtime.health.open()
        return {(name,): float(found[name]) for name in self._runtime.snapshot.providers}

    def _queued(self) -> Values:
        queued = self._runtime.engine.queued()
        limited = (row for row in self._runtime.snapshot.providers.values() if row.max_concurrency is not None)
        return {(row.name,): float(queued.get(row.name, 0)) for row in limited}
