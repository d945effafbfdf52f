"""What the pages show: numbers from the store, and the states of the router that runs. When the store is away the
numbers are the last known ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from providers.errors import StoreUnavailable
from router.overview import Overviews
from router.overview_rows import Board, Own
from router.records import Key

Gauge = Mapping[tuple[str, ...], float]
Current = Callable[[str], Gauge]
"""The present values of a gauge or a counter by its labels (`Metrics.current`)."""
Describe = Callable[[], Awaitable[tuple[bool, Mapping[str, Any]]]]

FRESH: Final = 1.0
"""Seconds for which the states serve all who ask."""
PATIENCE: Final = 3.0
"""Seconds that the numbers may take before the last known ones are shown."""
OWN_PATIENCE: Final = 8.0
"""The same for a holder of a key, who may have to wait for others."""
LATELY: Final = 3600.0
"""Seconds for which the page warns of calls that the store did not decide."""
OWNERS_AT_ONCE: Final = 4
"""Holders of keys whose numbers one worker reads at once; the others wait."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the config in force. loaded_at: Unix seconds; local: names of local providers; key_variables:
    those that providers' keys come from, by the providers' names."""

    config_name: str | None
    config_digest: str
    config_loaded_at: float
    config_problem: str | None
    local: frozenset[str]
    key_variables: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProviderState:
    """reason: why it is down or off, a word of the metrics' closed set or a sentence of ours. detail: what is missing
    or wrong in the config: names of variables, or a sentence of ours. open_models: models that
    are left alone for a while. models: those of this worker, each with the reason."""

    name: str
    state: Literal["up", "degraded", "down", "off"]
    reason: str | None
    detail: str | None
    open_models: int
    models: tuple[tuple[str, str], ...]
    queue: int
    local: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """The local models. loaded: (provider, model, bytes of video memory). heard: a server told what it has loaded.
    unknown: names of servers of which that is not known: they were not asked yet, or do not answer. local_models:
    (name, state, progress 0 to 1, detail) of models that we run ourselves. known: there is a local provider."""

    loaded: tuple[tuple[str, str, int], ...]
    vram_bytes: int
    heard: bool
    unknown: tuple[str, ...]
    queue: int
    in_flight: int
    local_models: tuple[tuple[str, str, float, str], ...]
    known: bool


@dataclass(frozen=True, slots=True)
class RouterState:
    """store: None when it answers, else what is wrong. refused: calls that were refused without a decision of it, since
    the router's start: the store cannot count them by days. refused_lately: this worker has seen that grow a moment
    ago. workers: (number, process id, digest of its config). journal: settlements that wait for the store."""

    status: str
    store: str | None
    refused: int
    refused_lately: bool
    warnings: tuple[str, ...]
    config_name: str | None
    config_digest: str
    config_loaded_at: float
    config_problem: str | None
    workers: tuple[tuple[int, int, str], ...]
    journal: int


@dataclass(frozen=True, slots=True)
class HolderState:
    """What a key's holder is told of the router. store: None, or `down`."""

    status: str
    store: str | None


@dataclass(frozen=True, slots=True)
class States:
    providers: tuple[ProviderState, ...]
    gpu: Gpu
    router: RouterState

    @property
    def for_holders(self) -> HolderState:
        return HolderState(self.router.status, "down" if self.router.store else None)


class Sights:
    """All that pages show, for one worker."""

    def __init__(
        self,
        overviews: Overviews,
        describe: Describe,
        current: Current,
        facts: Callable[[], Facts],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._overviews = overviews
        self._describe = describe
        self._current = current
        self._facts = facts
        self._monotonic = monotonic
        self._states: tuple[float, States] | None = None
        self._refused: tuple[int, float] = (0, -LATELY)
        """How many calls the store did not decide, and when that was seen to grow."""
        self._turns = asyncio.Semaphore(OWNERS_AT_ONCE)

    async def board(self, *, away: bool = False) -> tuple[Board | None, bool]:
        """The numbers, and whether they are old ones. None: there never were any. away: the store is known not to
        answer, and is not asked."""
        if not away:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    return await self._overviews.board(), False
        return self._overviews.last_board, True

    def warm(self) -> None:
        """Begin to read the numbers, where there never were any: somebody is about to sign in."""
        self._overviews.warm()

    async def own(self, key: Key, *, away: bool = False) -> tuple[Own | None, bool]:
        """The same for a key's holder."""
        if not away:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(OWN_PATIENCE), self._turns, asyncio.timeout(PATIENCE):
                    return await self._overviews.own(key), False
        return self._overviews.last_own(key.id), True

    def last(self, key: Key | None) -> Board | Own | None:
        """The numbers that were read last, for a key's holder or for all."""
        return self._overviews.last_board if key is None else self._overviews.last_own(key.id)

    async def states(self) -> States:
        """How the router is."""
        if self._states is not None and self._monotonic() < self._states[0]:
            return self._states[1]
        _, told = await self._describe()
        states = self._read(told, self._facts())
        self._states = (self._monotonic() + FRESH, states)
        return states

    def _read(self, told: Mapping[str, Any], facts: Facts) -> States:
        queue = self._current("queue_depth")
        loaded = self._current("ollama_vram_bytes")
        heard = self._current("ollama_loaded_models")
        local_models = told["local_models"]
        refused = int(sum(self._current("store_refusals_total").values()))
        if refused != self._refused[0]:
            self._refused = refused, self._monotonic()
        return States(
            self._providers(told, facts, queue),
            Gpu(
                loaded=tuple(sorted((at[0], at[1], int(size)) for at, size in loaded.items())),
                vram_bytes=int(sum(loaded.values())),
                heard=bool(heard),
                unknown=tuple(
                    name
                    for name, vendor, local in sorted(self._current("provider_info"))
                    if vendor == "ollama" and local == "yes" and told["providers"].get(name) == "on"
                    if (name,) not in heard
                ),
                queue=int(sum(depth for (name, *_), depth in queue.items() if name in facts.local)),
                in_flight=int(sum(self._current("requests_in_flight").values())),
                local_models=tuple(
                    (name, str(one["state"]), float(one["progress"]), str(one["detail"] or ""))
                    for name, one in local_models.items()
                ),
                known=bool(facts.local or local_models),
            ),
            RouterState(
                status=told["status"],
                store=None if told["store"] == "ok" else told["store"],
                refused=refused,
                refused_lately=bool(refused) and self._monotonic() < self._refused[1] + LATELY,
                warnings=tuple(told["store_warnings"]),
                config_name=facts.config_name,
                config_digest=facts.config_digest,
                config_loaded_at=facts.config_loaded_at,
                config_problem=None if told["config"] == "ok" else told["config"],
                workers=tuple((int(number), one["pid"], one["config"]) for number, one in told["workers"].items()),
                journal=int(sum(self._current("journal_entries").values())),
            ),
        )

    def _providers(self, told: Mapping[str, Any], facts: Facts, queue: Gauge) -> tuple[ProviderState, ...]:
        up = self._current("provider_up")
        down = {labels[0]: labels[1] for labels, value in self._current("provider_down").items() if value}
        open_models = self._current("circuit_open")
        resting: dict[str, list[tuple[str, str]]] = {}
        for target, reason in told["unhealthy"].items():
            provider, _, model = target.partition("/")
            resting.setdefault(provider, []).append((model, str(reason)))
        return tuple(
            _provider(
                name,
                off=None if off == "on" else str(off),
                key_variables=facts.key_variables.get(name, ()),
                up=up.get((name,)),
                down=down.get(name),
                open_models=int(open_models.get((name,), 0)),
                models=resting.get(name, ()),
                queue=int(queue.get((name,), 0)),
                local=name in facts.local,
            )
            for name, off in told["providers"].items()
        )


def _provider(
    name: str,
    *,
    off: str | None,
    key_variables: Sequence[str],
    up: float | None,
    down: str | None,
    open_models: int,
    models: Sequence[tuple[str, str]],
    queue: int,
    local: bool,
) -> ProviderState:
    state: Literal["up", "degraded", "down", "off"] = "up"
    reason: str | None = None
    detail: str | None = None
    if off is not None:
        state, reason = "off", down or off
        if down == "no_key":
            detail = ", ".join(key_variables) or None
        elif down == "misconfigured":
            detail = off
    elif up == 0:
        state, reason = "down", down
    elif open_models or models:
        state = "degraded"
    return ProviderState(
        name, state, reason, detail, max(open_models, len(models)), tuple(sorted(models)), queue, local
    )
