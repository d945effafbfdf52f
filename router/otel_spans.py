"""An ended call as spans and measurements, by the names of `otel_names`. Pure: nothing of OpenTelemetry is imported.

One span stands for the call as its caller saw it, with one child for each provider that was asked. No text of a
prompt, an answer or an error is in them, and no key: names of models (masked), codes, counts, times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from providers.call import Call
from router import otel_names as names
from router.credentials import shown_name
from router.otel_names import Measure
from router.pace import seconds_per_token
from router.routing import Provider, Target
from router.settlement import Bill, Part
from router.trace import AttemptRecord, Trace

Value = str | bool | int | float | tuple[str, ...]
Attributes = dict[str, Value]

LARGEST: Final = (1 << 63) - 1
"""The protocol's integers have 64 bits; callers may send any."""
LOCAL_MODEL: Final = "demo"
"""The vendor whose server has another port at every start."""


class Span(NamedTuple):
    """`start` and `end` are Unix nanoseconds; `parent_id` is None for the root of a trace."""

    name: str
    server: bool
    """The call itself; else an attempt."""
    span_id: str
    parent_id: str | None
    start: int
    end: int
    attributes: Attributes
    failed: bool


class Point(NamedTuple):
    """One measurement, in seconds or tokens."""

    measure: Measure
    value: float
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that is over. `now`: monotonic seconds of its end; `label`: the bounded name of its route; `bill`: None
    where nothing was reserved; `model`: the bounded name of a target's model."""

    trace: Trace
    now: float
    label: str
    bill: Bill | None
    model: Callable[[Target], str]

    def parts(self) -> list[tuple[AttemptRecord, Part | None]]:
        """The attempts, each with what it was charged."""
        left = list(self.bill.parts) if self.bill is not None else []
        found: list[tuple[AttemptRecord, Part | None]] = []
        for record in self.trace.attempts:
            part = left.pop(0) if left and left[0].target is record.target else None
            found.append((record, part))
        return found


def spans_of(ended: Ended, renamed: Mapping[str, str]) -> list[Span]:
    """The call's span, then those of its attempts. Needs a trace whose context has a span."""
    trace = ended.trace
    context = trace.context
    assert context is not None
    assert context.span_id is not None
    operation = operation_of(trace)
    began = int(trace.created * 1e9)

    def at(monotonic: float) -> int:
        return began + int((monotonic - trace.started) * 1e9)  # a Unix time in seconds is too coarse a float for spans

    call = Span(
        f"{operation} {ended.label}",
        True,
        context.span_id,
        context.parent_id,
        began,
        at(ended.now),
        _call_attributes(ended, operation),
        trace.error is not None and (trace.error.status >= 500 or trace.committed),
    )
    found = [call]
    for record, part in ended.parts():
        if record.span_id is None:
            continue
        found.append(
            Span(
                f"{operation} {ended.model(record.target)}",
                False,
                record.span_id,
                context.span_id,
                at(record.started),
                at(record.started + record.seconds),
                _attempt_attributes(trace, record, part, operation, renamed),
                record.outcome not in _NO_FAILURE,
            )
        )
    return found


def points_of(ended: Ended) -> list[Point]:
    """What metrics are made of."""
    trace = ended.trace
    operation = operation_of(trace)
    found: list[Point] = []
    embeds = operation == "embeddings"
    for record, part in ended.parts():
        if record.meter is None:
            continue  # it found no place in the queue, or the call is of a kind that the provider does not take
        provider = record.target.provider
        common: Attributes = {
            names.OPERATION: operation,
            names.PROVIDER: provider_name(provider),
            names.REQUEST_MODEL: ended.model(record.target),
        }
        _put_address(common, provider)
        timed = common
        if record.outcome != "ok":
            timed = {**common, names.ERROR_TYPE: record.outcome}
        found.append(Point("embedding" if embeds else "attempt", record.seconds, timed))
        first = _first_chunk(trace, record)
        if first is not None:
            found.append(Point("first_chunk", first, common))
        if part is not None:
            usage = part.usage
            counts: tuple[tuple[Measure, int | None], ...] = (
                ("embedded" if embeds else "input", usage.input),
                ("output", None if embeds else usage.output),
                ("cache_read", usage.cached),
                ("cache_write", usage.cache_write),
                ("reasoning", usage.reasoning),
            )
            found += [
                Point(measure, count, common) for measure, count in counts if count is not None and 0 < count <= LARGEST
            ]
    found += _served(ended, operation)
    return found


def _served(ended: Ended, operation: str) -> list[Point]:
    """What the caller saw."""
    trace, now = ended.trace, ended.now
    answered = trace.answered
    common: Attributes = {
        names.OPERATION: operation,
        names.PROVIDER: provider_name(answered.provider) if answered is not None else names.OURSELVES,
        names.REQUEST_MODEL: ended.label,
    }
    outcome = trace.outcome
    timed = common if outcome == "ok" else {**common, names.ERROR_TYPE: outcome}
    found = [Point("call", max(0.0, now - trace.started), timed)]
    call, first = trace.call, trace.content_at
    if outcome == "ok" and call is not None and call.stream and first is not None and trace.committed:
        found.append(Point("first_token", max(0.0, first - trace.started), common))
    pace = seconds_per_token(trace, ended.bill, now)
    if pace is not None:
        found.append(Point("per_token", pace, common))
    return found


# -- attributes ---------------------------------------------------------------------------------------------------


def _call_attributes(ended: Ended, operation: str) -> Attributes:
    trace, bill = ended.trace, ended.bill
    answered, call = trace.answered, trace.call
    found: Attributes = {
        names.OPERATION: operation,
        names.PROVIDER: provider_name(answered.provider) if answered is not None else names.OURSELVES,
        names.REQUEST_ID: trace.request_id,
        names.DIALECT: trace.dialect,
        names.OWN_OPERATION: trace.op,
        names.ROUTE: ended.label,
        names.OUTCOME: trace.outcome,
        names.ATTEMPTS: len(trace.attempts),
        names.OVERHEAD: round(trace.overhead(ended.now), 6),
    }
    if trace.status:
        found[names.STATUS] = trace.status
    if trace.outcome != "ok":
        found[names.ERROR_TYPE] = trace.outcome
    if call is not None:
        found[names.REQUEST_MODEL] = _text(call.asked_model)
        _put_request(found, call)
    if answered is not None:
        found[names.OWN_PROVIDER] = answered.provider.name
        if trace.meter is not None and trace.committed:
            _put_answer(found, trace, trace.attempts[-1])
        if call is not None and call.stream and trace.content_at is not None:
            found[names.FIRST_CHUNK] = max(0.0, trace.content_at - trace.started)
    if trace.fallback is not None:
        found[names.FALLBACK] = trace.fallback
    if trace.degraded:
        found[names.DEGRADED] = True
    if bill is not None and bill.parts:
        found[names.MARK] = bill.mark
        if not bill.unpriced:
            found[names.COST] = bill.cost / 1_000_000
    return found


def _attempt_attributes(
    trace: Trace, record: AttemptRecord, part: Part | None, operation: str, renamed: Mapping[str, str]
) -> Attributes:
    provider = record.target.provider
    found: Attributes = {
        names.OPERATION: operation,
        names.PROVIDER: provider_name(provider),
        names.REQUEST_MODEL: _text(record.target.model),
        names.OWN_PROVIDER: provider.name,
    }
    _put_address(found, provider)
    if trace.call is not None:
        _put_request(found, trace.call)
    if record.status is not None:
        found[names.STATUS] = record.status
    if record.outcome != "ok":
        found[names.ERROR_TYPE] = record.outcome
    _put_answer(found, trace, record)
    first = _first_chunk(trace, record)
    if first is not None:
        found[names.FIRST_CHUNK] = first
    if part is not None:
        usage = part.usage
        for name, count in (
            (names.INPUT_TOKENS, usage.input),
            (names.OUTPUT_TOKENS, usage.output),
            (names.CACHE_READ, usage.cached),
            (names.CACHE_WRITE, usage.cache_write),
            (names.REASONING, usage.reasoning),
        ):
            if count is not None and 0 <= count <= LARGEST:
                found[renamed.get(name, name)] = count
        found[names.MARK] = "measured" if part.exact else "estimated"
        if not part.unpriced:
            found[names.COST] = part.cost / 1_000_000
    return found


def _put_request(found: Attributes, call: Call) -> None:
    if call.stream:
        found[names.STREAM] = True
    sampling = call.sampling
    if sampling.max_tokens is not None and abs(sampling.max_tokens) <= LARGEST:
        found[names.MAX_TOKENS] = sampling.max_tokens
    if sampling.temperature is not None:
        found[names.TEMPERATURE] = float(sampling.temperature)
    if sampling.top_p is not None:
        found[names.TOP_P] = float(sampling.top_p)
    if sampling.n != 1:
        found[names.CHOICES] = sampling.n


def _put_answer(found: Attributes, trace: Trace, record: AttemptRecord) -> None:
    meter = record.meter
    if meter is None:
        return
    if meter.model:
        found[names.RESPONSE_MODEL] = _text(meter.model)
    if meter.finish is not None:
        found[names.FINISH_REASONS] = (meter.finish,)


def _put_address(found: Attributes, provider: Provider) -> None:
    if provider.vendor.name != LOCAL_MODEL:
        host, port = _address(provider.base_url)
        if host:
            found[names.SERVER_ADDRESS] = host
            found[names.SERVER_PORT] = port


def _first_chunk(trace: Trace, record: AttemptRecord) -> float | None:
    """Seconds from the request to a stream's first content."""
    first = trace.content_at
    if trace.answered is not record.target or first is None or record.outcome == "running":
        return None
    if trace.call is None or not trace.call.stream:
        return None
    return max(0.0, first - record.started)


def operation_of(trace: Trace) -> str:
    if trace.call is not None:
        return names.OPERATIONS[trace.call.kind]
    return names.EARLY_OPERATIONS.get(trace.op, "chat")


def provider_name(provider: Provider) -> str:
    settings = provider.settings
    return names.provider_name(provider.vendor.name, settings.options.get("profile"), settings.litellm_provider)


@lru_cache(256)
def _address(base_url: str) -> tuple[str, int]:
    """Host and port, the host empty where there is none."""
    try:
        parts = urlsplit(base_url)
        return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        return "", 0


def _text(name: str) -> str:
    """A name that a caller or a provider sent, fit for the protocol."""
    return shown_name(name).encode("utf-8", "replace").decode()


_NO_FAILURE: Final[Sequence[str]] = ("ok", "aborted", "unsupported")
