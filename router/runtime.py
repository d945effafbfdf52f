"""Everything with a lifetime, made in order and ended in reverse: store, keys, transports, local model, discovery,
engine."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from providers.call import Call
from providers.errors import (
    InvalidRequest,
    LimitReached,
    NotAllowed,
    StoreUnavailable,
    SwitchyardError,
    TimedOut,
    Unreachable,
    UpstreamError,
)
from providers.events import Usage
from providers.vendor import ModelFacts
from providers.wire import Stamp
from providers.wires.ollama.loading import load_answer
from router import functions, settlement
from router.accounts import Accounts
from router.browsers import host_allowed, origin_allowed
from router.calls import Calls
from router.config import Config, ConfigErrors, load_config
from router.credentials import credential_of, key_id_of, masked, missing, shown_name
from router.discovery import Discovery
from router.engine import Engine, Transport
from router.gauges import Gauges
from router.health import Block, Health
from router.http import Headers, Scope, header
from router.keys import Bootstrap, Keys, open_keys
from router.ledger import Hold, Ledger
from router.litellm_transport import LitellmTransport
from router.litellm_transport import missing as litellm_missing
from router.local_model import LocalModel, ModelState
from router.metrics import Metrics
from router.networks import client_address
from router.otel import Sender, open_telemetry
from router.otel import check as check_telemetry
from router.otel_context import TraceContext, incoming
from router.otel_spans import Ended
from router.output import Output
from router.prices import load_prices
from router.provider import Running
from router.routing import Provider, Snapshot, compile_snapshot
from router.slots import ALONE, Slot, Told, disagreement
from router.store import Store, explain, open_store
from router.trace import Trace
from router.transport import HttpTransport

_log = logging.getLogger("switchyard")


def package_version() -> str:
    try:
        return version("switchyard-router")
    except PackageNotFoundError:
        return "0+unknown"


class Runtime:
    """One worker. `start` before serving, `stop` after the last call."""

    def __init__(
        self,
        config: Config,
        *,
        config_path: Path | None = None,
        log: Output | None = None,
        slot: Slot = ALONE,
    ) -> None:
        self.slot = slot
        self.config = config
        self.config_path = config_path
        self._refused: str | None = None
        now = time.time()
        self.started_at = slot.router_since() or now
        self.config_loaded_at = slot.config_since() or now
        self.clock: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = time.monotonic
        self.roll: Callable[[], float] = random.random
        self.version = package_version()
        self.data_dir = Path(config.data_dir)
        self.metrics = Metrics(self.version, slot)
        self.log = log or Output(2, requests=False)
        self.health = Health(self.monotonic, random.random)
        self.http = HttpTransport()
        self.litellm = LitellmTransport()
        self.transports: Mapping[str, Transport] = {"http": self.http, "litellm": self.litellm}
        self.local_models: dict[str, LocalModel] = {}
        self.listeners: dict[tuple[str, int], str | None] = {}
        """(address, port) that we listen on, with the name of the anonymous key if it has one."""
        self.draining = False
        self.telemetry: Sender | None = None
        self.tracer: Callable[[Headers], TraceContext | None] = incoming
        """The trace that a call belongs to, by its headers."""
        self.store: Store
        self.keys: Keys
        self.ledger: Ledger
        self.snapshot: Snapshot
        self._discovered: Mapping[str, Sequence[ModelFacts]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = AsyncExitStack()
        self._own_name = socket.gethostname()
        self.engine = Engine(
            self.transports,
            self.health,
            self.local_models,
            clock=self.clock,
            monotonic=self.monotonic,
            waited=self.metrics.waited,
        )
        self.prices = load_prices(config)
        self.accounts = Accounts(self)
        self.engine.shared = self.accounts
        self.calls = Calls(self)
        self.discovery = Discovery(
            self.transports,
            lambda: tuple(self.snapshot.providers.values()),
            self._learned,
            self.health.recovered,
            self.health.answers,
        )
        self.gauges = Gauges(self)

    # --- life

    async def start(
        self,
        listeners: Mapping[tuple[str, int], str | None],
        *,
        on_model: Callable[[ModelState], None] | None = None,
        on_made: Callable[[Bootstrap], None] | None = None,
        worker: bool = False,
        serves: bool = True,
    ) -> None:
        """Open the store, make what a first start makes, and begin the background work. Raises StoreError.

        `worker`: another process owns the store and has made the keys. `serves`: False for that process, which takes
        no calls: what an earlier run left in the journal is the workers' to send, and to count, and so is what is
        measured. `on_made` gets what was made, which may be later when a remote store is down now.
        """
        self.listeners = dict(listeners)
        undo = self._started
        if serves:
            self.telemetry = open_telemetry(self.config.telemetry, os.environ, version=self.version)
        if self.telemetry is not None:
            undo.push_async_callback(self.telemetry.close)
            self.tracer = self.telemetry.begin
        url = self.config.redis.url.get_secret_value()
        self.store = await open_store(url, self.data_dir, role="command" if worker else "serve")
        undo.push_async_callback(self.store.close)
        self.store.add_gate(self._load_functions)
        if worker:
            self.store.watch()
        token = self.config.server.admin_token  # the file's, else SWITCHYARD_ADMIN_TOKEN: the config has read both
        environ = {**os.environ, "SWITCHYARD_ADMIN_TOKEN": token.get_secret_value() if token else ""}
        self.keys = await open_keys(self.store, self.data_dir, environ)
        self.ledger = Ledger(
            self.store,
            self.keys,
            data_dir=self.data_dir if serves else None,
            yuan_per_dollar=lambda: self.config.prices.usd_cny,
            providers=lambda: [name for name, row in self.snapshot.providers.items() if row.limits],
            decided=self.metrics.decided,
            overshot=self.metrics.overshot,
        )
        undo.push_async_callback(self.ledger.close)
        undo.push_async_callback(self.http.close)
        undo.push_async_callback(self.litellm.close)
        undo.push_async_callback(self._finish_tasks)
        self._use(self._compile(self.config))
        for provider in self.snapshot.providers.values():
            if provider.vendor.name == "demo" and provider.off is None:
                model = LocalModel(self.data_dir, on_state=on_model)
                self.local_models[provider.name] = model
                undo.push_async_callback(model.stop)
                await model.start()
        self._use(self._compile(self.config))
        self.prices.prepare(tuple(self.snapshot.providers.values()))
        if not worker and not await self._make(on_made):
            undo.callback(self.spawn(self._make_later(on_made)).cancel)
        undo.push_async_callback(self.discovery.stop)
        await self.discovery.start()
        if serves:
            undo.callback(self.spawn(self.gauges.run()).cancel)

    async def _load_functions(self) -> str | None:
        """Why the store cannot take the ledger's functions, None when it has them."""
        try:
            await functions.load(self.store)
        except (RedisError, OSError) as error:
            return explain(self.store.name, error)
        return None

    async def _make(self, on_made: Callable[[Bootstrap], None] | None) -> bool:
        """The first admin token and key, and the keys of keyless listeners. False when the store is down."""
        try:
            made = await self.keys.bootstrap()
            for name in sorted({name for name in self.listeners.values() if name is not None}):
                await self.keys.ensure_anonymous(name)
        except StoreUnavailable:
            return False
        if on_made is not None:
            on_made(made)
        return True

    async def _make_later(self, on_made: Callable[[Bootstrap], None] | None) -> None:
        while not await self._make(on_made):  # noqa: ASYNC110 - what is waited for is another machine
            await asyncio.sleep(1)

    async def stop(self) -> None:
        """End everything that was started, in reverse order: the store last."""
        await self._started.aclose()

    async def _finish_tasks(self) -> None:
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=2)
            for task in late:
                task.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in a task that the application owns: a client that leaves does not cancel it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- config

    def reload(self, copy: Path | None = None) -> str | None:
        """Read the config file again, or a copy of it, and swap it in. Gives why not; the old config then serves on."""
        if self.config_path is None:
            return "there is no config file"
        try:
            config = load_config(self.config_path, os.environ, copy)
            snapshot = self._compile(config)
            prices = load_prices(config)
            check_telemetry(config, os.environ)
            prices.prepare(tuple(snapshot.providers.values()))
        except ConfigErrors as errors:
            self._refused = "; ".join(str(problem) for problem in errors.problems[:5])
        else:
            for name in _RESTART:
                if _part(config, name) != _part(self.config, name):
                    _log.warning("%s has changed in the config file: that takes effect at the next start", name)
            self.config, self.prices = config, prices
            self._use(snapshot)
            self._refused = None
            self.config_loaded_at = self.clock()
            self.announce()
            _log.info("config %s is in force", config.origin.digest)
            return None
        _log.error("config not reloaded, the old one serves on: %s", self._refused)
        return self._refused

    @property
    def config_problem(self) -> str | None:
        """Why the last reload was refused; the config before it serves on. A worker that was not there yet knows it
        from its parent."""
        return self._refused or self.slot.refused()

    def announce(self) -> None:
        """Tell the other workers that this one serves, and with which config."""
        self.slot.tell(Told(os.getpid(), self.config.origin.digest))

    def _compile(self, config: Config) -> Snapshot:
        own = tuple(self.listeners) or None
        running = {
            name: Running(
                base_url="http://127.0.0.1",  # where it is, is asked anew for each call: see LocalModel.wait
                off=model.state.detail if model.state.state == "off" else None,
            )
            for name, model in self.local_models.items()
        }
        if (reason := litellm_missing()) is not None:
            running |= {name: Running(off=reason) for name, row in config.providers.items() if row.vendor == "litellm"}
        return compile_snapshot(config, discovered=self._discovered, own_listeners=own, running=running, slot=self.slot)

    def _use(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.engine.resize(snapshot.providers)

    def _learned(self, lists: Mapping[str, Sequence[ModelFacts]]) -> None:
        self._discovered = lists
        self._use(self._compile(self.config))

    # --- for calls

    def unhealthy(self, provider: Provider, model: str) -> Block | None:
        return self.health.block(f"{provider.name}/{model}")

    def cooling(self, provider: Provider, model: str) -> Block | None:
        """Like `unhealthy`, but only where the provider itself asked for a pause."""
        block = self.unhealthy(provider, model)
        return block if block is not None and block.cooldown else None

    def anonymous(self, scope: Scope) -> str | None:
        """The anonymous key's name of the listener that a request came in by."""
        host, port = scope["server"]
        found = self.listeners.get((host, port))
        if found is None:
            for (own, own_port), name in self.listeners.items():
                if (
                    own_port == port and name is not None and own in ("0.0.0.0", "::", "localhost")
                ):  # compared, not bound
                    return name
        return found

    def credential(self, scope: Scope) -> tuple[str, None] | tuple[None, str]:
        """The caller's credential, or the anonymous key's name of the listener. Raises Unauthorized.

        On an anonymous listener what is no key of ours is ignored, as an Ollama does: clients send dummies such as
        `ollama`.
        """
        anonymous = self.anonymous(scope)
        credential = None
        try:
            credential = credential_of(scope["headers"], scope["query_string"])
        except SwitchyardError:
            if anonymous is None:
                raise
        if credential is not None and (anonymous is None or key_id_of(credential) is not None):
            return credential, None
        if anonymous is None:
            raise missing()
        if self.refuses_page(scope):
            raise NotAllowed("pages of other sites may not use a listener that asks for no key")
        return None, anonymous

    def refuses_page(self, scope: Scope, origins: Sequence[str] | None = None) -> bool:
        """Whether a page of another site sends this through somebody's browser. Where no key is asked for, what the
        browser says of the page is all there is to tell it by (Host: DNS rebinding; Origin: a plain cross-site POST).
        origins: pages that may; None for those of the config.
        """
        headers = scope["headers"]
        extra = self.config.server.cors_origins if origins is None else origins
        return not (
            host_allowed(header(headers, b"host") or "", self._own_name)
            and origin_allowed(header(headers, b"origin"), extra)
        )

    def address(self, scope: Scope) -> str:
        """Where a request comes from, behind the proxies that the config trusts."""
        return client_address(scope, self.config.server.trusted_proxies)

    def load_answer(self, call: Call, stamp: Stamp) -> bytes | None:
        return load_answer(call, stamp) if call.wire == "ollama" else None

    def finished(self, trace: Trace, hold: Hold | None, scope: Scope) -> None:
        """A call is over: settle it, count it, log it."""
        now = self.monotonic()
        call = trace.call
        asked = call.asked_model if call is not None else None
        labels = trace.labels or self.gauges.model_labels
        label = labels.route(trace.plan, asked)
        answered = trace.answered
        told = {
            "status": 499 if trace.client_gone else trace.status,
            "outcome": trace.outcome,
            "answered_by": shown_name(str(answered)) if answered is not None else None,
            "fallback": trace.fallback,
            "ms": round((now - trace.started) * 1000, 1),
            "first_content_ms": _ms(trace.content_at, trace.started),
        }
        if hold is not None:
            try:
                bill, detail = self.accounts.final(trace, hold, told, label)
            except BaseException:
                # A bug of ours must not keep the hold alive for ever.
                self.ledger.settle(hold)
                raise
            self.ledger.settle(hold, bill)
            charged: settlement.Bill | None = detail
            usage: Usage | None = detail.usage
            told |= {"cost": None if detail.unpriced else detail.cost, "mark": detail.mark}
        else:
            charged = usage = None
            told |= {"cost": None, "mark": None}
        self.metrics.observe(trace, label, now, charged, labels.of)
        if self.telemetry is not None:
            self.telemetry.ended(Ended(trace, now, label, charged, labels.of))
        self.log.write(
            {
                "time": trace.created,
                "event": "request",
                "request_id": trace.request_id,
                "trace_id": trace.context.trace_id if trace.context is not None else None,
                "dialect": trace.dialect,
                "op": trace.op,
                "model": shown_name(call.asked_model) if call is not None else None,
                **told,
                "key": trace.key_id,
                "stream": call.stream if call is not None else None,
                "attempts": [
                    {
                        "target": shown_name(str(attempt.target)),
                        "outcome": attempt.outcome,
                        "status": attempt.status,
                        "ms": round(attempt.seconds * 1000, 1),
                    }
                    for attempt in trace.attempts
                ],
                "param": trace.error.param if trace.error is not None else None,
                "error": _said(trace.error),
                "provider_code": _code(trace.error.native_code) if trace.error is not None else None,
                "limit": trace.error.limit if isinstance(trace.error, LimitReached) else None,
                "overhead_ms": round(trace.overhead(now) * 1000, 2),
                "tokens_in": usage.input if usage is not None else None,
                "tokens_out": usage.output if usage is not None else None,
                "client": self.address(scope) or None,
                "tags": _tags(header(scope["headers"], b"x-switchyard-tags")),
            }
        )

    # --- state

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether calls can be answered, and what each part says."""
        store = await self.store.asked()
        models = {name: model.state for name, model in self.local_models.items()}
        ready = store is None and not self.draining
        workers = self.slot.told()
        return ready, {
            "status": "draining" if self.draining else "ready" if ready else "not ready",
            "store": store or "ok",
            "store_warnings": list(self.store.warnings),
            "config": self.config_problem or disagreement(workers) or "ok",
            "config_digest": self.config.origin.digest,
            "workers": {str(number): {"pid": told.pid, "config": told.config} for number, told in workers.items()},
            "local_models": {
                name: {"state": state.state, "progress": round(state.progress, 3), "detail": state.detail}
                for name, state in models.items()
            },
            "providers": {provider.name: provider.off or "on" for provider in self.snapshot.providers.values()},
            "unhealthy": {name: block.reason for name, block in self.health.snapshot().items()},
        }


_RESTART = ("server.listen", "server.metrics.listen", "server.workers", "redis", "data_dir", "telemetry")
"""Settings that a reload does not change."""


def _part(config: Config, name: str) -> object:
    value: object = config
    for step in name.split("."):
        value = getattr(value, step)
    return value


def _said(error: SwitchyardError | None) -> str | None:
    """An error's sentence for the log, where it is our own. Refusals of the call and providers' sentences may quote
    what stands in the call, from the prompt to a misplaced key: there codes, field and status have to do."""
    if isinstance(error, InvalidRequest) or (
        isinstance(error, UpstreamError) and not isinstance(error, Unreachable | TimedOut)
    ):
        return None
    return masked(error.message) if error is not None else None


def _code(text: str | None) -> str | None:
    """A provider's own error code for the log, if it is a word."""
    return text if text is not None and len(text) <= 64 and text.replace("_", "").replace(".", "").isalnum() else None


def _tags(text: str | None) -> str | None:
    """The caller's own words for a call, for the log alone: printable, at most 200 characters."""
    return "".join(char for char in text[:200] if char.isprintable()) if text else None


def _ms(moment: float | None, since: float) -> float | None:
    return round((moment - since) * 1000, 1) if moment is not None else None
