"""What the ledger is told of calls: the most that one may take before it, what it has used while it runs, and its bill
after it. Knows plans, prices and traces; the ledger knows numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import orjson

from providers.call import Call
from providers.errors import LimitReached, NotAllowed, StoreUnavailable
from router import settlement
from router.checks import Amounts
from router.config import Config
from router.credentials import shown_name
from router.estimate import bound, prompt_estimate
from router.holds import Hold
from router.known import Known
from router.ledger import NOTHING, Ask, Bill, Ledger
from router.limits import Limit
from router.networks import allowed
from router.patterns import Pattern
from router.places import NoPlace
from router.prices import Prices
from router.records import Key
from router.routing import Plan, Rights, Snapshot, Target, priced, why_priced
from router.trace import AttemptRecord, Trace

log = logging.getLogger("switchyard.accounts")


class AtLimit(NoPlace):
    """A limit that all callers of the provider share is reached: it is not asked, and its health says nothing."""

    reason = "provider_limit"


class Surroundings(Protocol):
    """What of the runtime is needed here; it changes with every reload."""

    config: Config
    snapshot: Snapshot
    prices: Prices
    ledger: Ledger


class Accounts:
    """Between calls and the ledger."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    def prices(self, trace: Trace) -> settlement.PriceOf:
        """What a target costs a call, by the price lists of when it came in; None when nobody knows."""
        if trace.prices is None:
            find, moment = self._around.prices.find, trace.created
            trace.prices = lambda target: find(target.provider, target.model, moment)
        return trace.prices

    # --- before

    def ask(self, call: Call, plan: Plan, known: Known, trace: Trace) -> Ask:
        """What a planned call asks for. Sets the trace's plan, without the targets that it may not be charged for.
        Raises Unpriced."""
        attempts = plan.attempts
        price = self.prices(trace)
        most = bound(call, attempts, price)
        if most.unpriced and (strict := self._why_priced(known.limits)) is not None:
            plan = priced(plan, lambda target: price(target) is not None, strict)
            if not plan.attempts:
                raise plan.refusal()
            most = bound(call, plan.attempts, price)
        trace.plan = plan
        open_ended = call.sampling.max_tokens is None and call.kind != "embed"
        trace.amounts = Amounts(most.tokens, most.cost, most.prompt, open_ended)
        names = (call.asked_model, *(str(attempt.target) for attempt in plan.attempts))
        allows = self._around.snapshot.allows
        row = {
            "id": trace.request_id,
            "time": trace.created,
            "key": known.key.id,
            "dialect": trace.dialect,
            "op": trace.op,
            "model": shown_name(call.asked_model),
            "stream": call.stream,
        }
        return Ask(trace.amounts, lambda pattern: any(not allows((), (pattern,), name) for name in names), _json(row))

    def _why_priced(self, limits: Iterable[Limit]) -> str | None:
        return why_priced(self._around.config.prices.unpriced == "refuse", limits)

    def rights(self, key: Key) -> Rights:
        """The rights of a key that was identified just now, for lists of models."""
        known = self._around.ledger.memory.get(key.id)
        if self._why_priced(key.limits if known is None else known.limits) is None:
            return key.rights
        find, moment = self._around.prices.find, time.time()
        return replace(key.rights, payable=lambda target: find(target.provider, target.model, moment) is not None)

    @staticmethod
    def check_network(known: Known, address: str) -> None:
        """Raises NotAllowed when the key may not be used from this address."""
        if known.key.networks and not allowed(known.key.networks, address):
            raise NotAllowed("This API key may not be used from your network address.")

    # --- while it runs

    def used(self, trace: Trace, hold: Hold) -> Callable[[], bytes]:
        """What the call has used so far, as a packed bill; asked by every heartbeat."""
        call = trace.call
        assert call is not None
        prompt: list[int] = []
        price_of = self.prices(trace)

        def so_far() -> bytes:
            if not prompt:
                prompt.append(prompt_estimate(call))
            record = trace.attempts[-1] if trace.attempts else None
            if record is None or record.meter is None:
                return self._around.ledger.bill(hold, NOTHING)
            price = price_of(record.target)
            tokens, cost = settlement.so_far(record.meter, prompt[0], price)
            where = _where(record.target)
            out = max(tokens - prompt[0], 0)
            metrics: list[str | int] = [f"{where}calls", 1, f"{where}aborted", 1]
            metrics += (f"{where}in", tokens - out, f"{where}out", out)
            metrics += (f"{where}cost", cost) if price is not None else (f"{where}unpriced", 1)
            row = _json(
                {"id": trace.request_id, "lost": True, "answered_by": shown_name(str(record.target)), "cost": cost}
            )
            return self._around.ledger.bill(hold, Bill(1, tokens, cost, metrics, row))

        return so_far

    # --- after

    def final(self, trace: Trace, hold: Hold, row: Mapping[str, Any], label: str) -> tuple[Bill, settlement.Bill]:
        """The bill of an ended call, as the ledger takes it and in detail. `row`: what the recent requests show of its
        end; `label`: the model's name where nobody answered."""
        detail = settlement.settle(trace, self.prices(trace))
        last = trace.answered or (trace.attempts[-1].target if trace.attempts else None)
        if last is None:
            whole = f"{_word(label)}\tnone\t"
        elif detail.parts or trace.committed:
            whole = _where(last)
        else:
            # A name that only the caller knows would stay in the usage for a year.
            whole = f"{_word(label)}\t{last.provider.name}\t"
        metrics: list[str | int] = []
        own = _OF_PARTS if any(part.target is not last for part in detail.parts) else frozenset()
        for name, amount in detail.metrics.items():
            if name not in own:
                metrics += (whole + name, amount)
        if own:
            for part in detail.parts:
                where, usage = _where(part.target), part.usage
                for name, count in zip(
                    ("in", "cached", "cache_write", "out", "reasoning", "media", "cost"),
                    (
                        *(usage.input, usage.cached, usage.cache_write, usage.output, usage.reasoning),
                        *(part.images, part.cost),
                    ),
                    strict=True,
                ):
                    if count:
                        metrics += (where + name, count)
        shown = {
            "id": trace.request_id,
            "time": trace.created,
            "key": trace.key_id,
            "model": shown_name(trace.call.asked_model) if trace.call is not None else None,
            **row,
            "tokens_in": detail.usage.input,
            "tokens_out": detail.usage.output,
            "cost": None if detail.unpriced else detail.cost,
            "mark": detail.mark,
        }
        return Bill(detail.requests, detail.tokens, detail.cost, metrics, _json(shown)), detail

    # --- providers' shared limits

    async def take(self, trace: Trace, record: AttemptRecord) -> Callable[[], None]:
        """A place within the limits that all callers of a provider share. Raises NoPlace."""
        ledger, target = self._around.ledger, record.target
        try:
            hold = await ledger.take(
                target.provider.name,
                target.provider.limits,
                trace.amounts,
                f"{trace.request_id}.{len(trace.attempts)}",
                lambda pattern: Pattern(pattern).match(target.model) is not None,
            )
        except LimitReached as error:
            raise AtLimit(f"{target}: {error.message}", retry_after=error.retry_after) from None
        except StoreUnavailable as error:
            raise AtLimit(f"{target}: its shared limits cannot be checked now", retry_after=error.retry_after) from None

        def used() -> Bill:
            tokens = 0
            if record.meter is not None and trace.call is not None:
                tokens, _ = settlement.so_far(record.meter, prompt_estimate(trace.call), None)
            return Bill(int(record.asked), tokens)

        hold.used = lambda: ledger.bill(hold, used())
        return lambda: ledger.settle(hold, used())


_OF_PARTS: Final = frozenset({"in", "cached", "cache_write", "out", "reasoning", "media", "cost"})
"""Usage that belongs to each provider that was asked, where it was not the last one alone."""


def _where(target: Target) -> str:
    return f"{_word(target.model)}\t{target.provider.name}\t"


def _word(text: str) -> str:
    return shown_name(text).replace("\t", " ")


def _json(value: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # half characters, or numbers beyond 64 bits: providers and callers may send any
        return orjson.dumps({name: _plain(one) for name, one in value.items()})


def _plain(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else str(value)
