"""Runs a plan: attempts, deadlines, hold-back, commit, failover, cancellation. Knows frames and outcomes, no vendor
names.

Nothing is sent to the client before the first content (or a complete empty answer); until then a failure moves on to
the next target. After it the target is final and a failure is told inside the stream. A call has one watch for all
its deadlines; it and a client that leaves both cancel the call's task, which closes the upstream socket on its way
out.
"""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from providers.call import Call
from providers.errors import (
    Broken,
    ConnectTimedOut,
    InvalidRequest,
    NoTarget,
    SwitchyardError,
    Unreachable,
    UnsupportedFeature,
    UpstreamError,
)
from providers.vendor import UpstreamRequest
from providers.wire import Frame, Lane, Stamp, Wire
from router.health import Health, Probe
from router.places import NoPlace, Places
from router.routing import Attempt, Plan, Provider, Skipped, Target
from router.trace import AttemptRecord, Trace
from router.transport import Response, Route
from router.watch import ClientStalled, Watch

WHOLE_FACTOR = 6
"""An answer that is not streamed gives no sign of life until it is complete, so it gets this many times
`first_content`, at most `total`."""
MAX_WHOLE = 32 * 1024 * 1024
"""Bytes of an answer that is not streamed (embeddings of large batches, images by value)."""
MAX_ERROR = 256 * 1024
"""Bytes of an error answer that are read."""
MAX_HELD = 1024 * 1024
"""Bytes that are held back before the first content."""


_Result = TypeVar("_Result")

NOT_ASKED = (Unreachable, ConnectTimedOut, NoPlace)
"""Errors that mean that the provider has not got the request."""


class Transport(Protocol):
    async def open(
        self, route: Route, request: UpstreamRequest, *, body: AsyncIterator[bytes] | None = None
    ) -> Response: ...


class Endpoint(Protocol):
    """A server that we run ourselves: where it is now."""

    async def wait(self) -> tuple[str, str | None]:
        """Base URL and key, once it is ready. Raises UpstreamError when it will not be."""
        ...


class Shared(Protocol):
    """The limits that all callers of a provider share."""

    async def take(self, trace: Trace, record: AttemptRecord) -> Callable[[], None]:
        """A place for the trace's last attempt; what gives it back. Raises NoPlace when there is none."""
        ...


class Responder(Protocol):
    """The client's side of a call."""

    async def start(self, content_type: str, length: int | None) -> None:
        """Send status 200 and headers. `length` None: a stream."""
        ...

    async def send(self, data: bytes, *, more: bool) -> None:
        """Returns when the client has taken enough to take more."""
        ...

    def write(self, data: bytes) -> bool:
        """A piece of a stream, at once. False, and nothing sent, when the client has to take what waits first."""
        ...


@dataclass(slots=True)
class Job:
    """One call to run. `seconds` is the caller's own deadline, None for none."""

    call: Call
    client: Wire
    plan: Plan
    trace: Trace
    responder: Responder
    watch: Watch
    seconds: float | None = None


class Engine:
    """`transports` by the vendor's `transport` name; `endpoints` by provider name, for servers that we run
    ourselves."""

    def __init__(
        self,
        transports: Mapping[str, Transport],
        health: Health,
        endpoints: Mapping[str, Endpoint],
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        shared: Shared | None = None,
        waited: Callable[[str, float], object] = lambda *_: None,
    ) -> None:
        """`waited` is told the provider and the seconds of every wait for a place."""
        self.shared = shared
        self._waited = waited
        self._transports = transports
        self._health = health
        self._endpoints = endpoints
        self._clock = clock
        self._monotonic = monotonic
        self._places: dict[str, Places] = {}

    async def run(self, job: Job) -> None:
        """Answer the call. Raises the error to tell the client when nothing has been sent; otherwise the answer is
        complete or its stream has ended with an error event (`trace.error`)."""
        trace, plan = job.trace, job.plan
        first: SwitchyardError | None = None
        if job.seconds is not None:
            job.watch.limit(job.seconds)
        for position, attempt in enumerate(job.plan.attempts, 1):
            name = str(attempt.target)
            block = self._health.block(name)
            if block is not None and (block.cooldown or self._any_well(job.plan.attempts[position:])):
                # It fell ill after the plan was made, or another call is its probe by now.
                late = Skipped(name, "unhealthy", str(block), attempt.role, block)
                plan = replace(plan, skipped=(*plan.skipped, late))
                continue
            record = AttemptRecord(attempt.target)
            trace.attempts.append(record)
            probe = self._health.begin(name)
            began = record.started = self._monotonic()
            try:
                if attempt.role == "fallback":
                    trace.fallback = _reason(plan, first)
                await self._attempt(job, attempt, record)
                return
            except UpstreamError as error:
                if trace.committed:
                    # The provider did its part: a deadline passed while the client took a whole answer.
                    raise
                record.outcome = error.reason
                record.status = error.upstream_status or record.status
                record.asked = not isinstance(error, NOT_ASKED)
                self._count(name, error, probe)
                if error.scope == "request":
                    raise
                if first is None or isinstance(first, UnsupportedFeature):
                    # Its traceback would keep the failed attempt's buffers, and this frame, alive.
                    first = error.with_traceback(None)
            except UnsupportedFeature as error:
                record.outcome = "unsupported"
                self._health.abandoned(name, probe)
                first = first or error
            except BaseException:
                # The client left, the key was revoked, we stop, a fault of ours: nothing that the provider did.
                record.outcome = "aborted"
                self._health.abandoned(name, probe)
                raise
            finally:
                record.seconds = self._monotonic() - began
                if not trace.committed:
                    trace.fallback = None
        raise _last_word(plan, first, trace.attempts)

    def _any_well(self, attempts: Sequence[Attempt]) -> bool:
        return any(self._health.block(str(attempt.target)) is None for attempt in attempts)

    def _count(self, deployment: str, error: UpstreamError, probe: Probe | None = None) -> None:
        if isinstance(error, NoPlace) or error.scope == "request":
            self._health.abandoned(deployment, probe)  # it says nothing of the deployment
        else:
            self._health.failure(deployment, error, probe)

    async def _attempt(self, job: Job, attempt: Attempt, record: AttemptRecord) -> None:
        provider = attempt.target.provider
        timeouts = provider.timeouts
        watch = job.watch
        watch.attempt(timeouts.total)
        phase, seconds = "first_content", timeouts.first_content
        if not job.call.stream:
            phase, seconds = "whole", min(timeouts.first_content * WHOLE_FACTOR, timeouts.total)
        try:
            places = self._places.get(provider.name)
            if places is None:
                watch.phase(phase, seconds)
                await self._exchange(job, attempt.target, record)
            else:
                began = self._monotonic()

                def waited() -> None:
                    seconds = self._monotonic() - began
                    job.trace.upstream_seconds += seconds
                    self._waited(provider.name, seconds)

                watch.phase("queued", seconds)
                async with places.one(waited):
                    watch.phase(phase, seconds)
                    await self._exchange(job, attempt.target, record)
        except asyncio.CancelledError:
            error = watch.take()
            if error is None:
                raise
            raise error from None

    async def _exchange(self, job: Job, target: Target, record: AttemptRecord) -> None:
        if not target.provider.limits or self.shared is None:
            await self._ask(job, target, record)
            return
        give = await self.shared.take(job.trace, record)
        try:
            await self._ask(job, target, record)
        finally:
            give()

    async def _ask(self, job: Job, target: Target, record: AttemptRecord) -> None:
        provider, call, trace = target.provider, job.call, job.trace
        vendor = provider.vendor
        base_url, api_key = provider.base_url, provider.api_key
        endpoint = self._endpoints.get(provider.name) if self._endpoints else None
        if endpoint is not None:
            base_url, api_key = await self._upstream(trace, endpoint.wait())
        request = vendor.request(call, target.model, api_key)
        told: Mapping[str, str] = {}
        if trace.context is not None:
            record.span_id, told = trace.context.attempt()
        if told or provider.headers:
            headers = {**request.headers, **told, **provider.headers}
            request = UpstreamRequest(request.method, request.path, headers, request.body)
        lane = vendor.lane(call, job.client, Stamp(trace.request_id, trace.created, self._clock, target.model))
        trace.meter = record.meter = lane.meter
        route = Route(base_url, provider.timeouts.connect, provider.proxy, provider.ca_bundle)
        response = await self._upstream(trace, self._transports[vendor.transport].open(route, request))
        try:
            record.status = response.status
            if not 200 <= response.status < 300:
                raise await self._upstream(trace, self._refusal(provider, response))
            if not call.stream:
                await self._whole(job, target, record, response, lane)
            elif _is_json(response) and vendor.wire.stream_type.startswith("text/event-stream"):
                body = await self._upstream(trace, response.read_all(MAX_ERROR))
                raise vendor.classify(response.status, response.headers, body)
            else:
                await self._stream(job, target, record, response, lane)
        finally:
            response.abort()

    async def _upstream(self, trace: Trace, work: Awaitable[_Result]) -> _Result:
        """Wait for the provider: its time, not ours."""
        began = self._monotonic()
        try:
            return await work
        finally:
            trace.upstream_seconds += self._monotonic() - began

    async def _refusal(self, provider: Provider, response: Response) -> UpstreamError:
        status = response.status
        if 300 <= status < 400:
            return Broken("the provider answered with a redirect, which is not followed", upstream_status=status)
        try:
            body = await response.read_all(MAX_ERROR)
        except UpstreamError:
            # The status says enough.
            body = b""
        return provider.vendor.classify(status, response.headers, body)

    async def _whole(self, job: Job, target: Target, record: AttemptRecord, response: Response, lane: Lane) -> None:
        body = lane.whole(await self._upstream(job.trace, response.read_all(MAX_WHOLE)))
        response.finish()
        self._won(job, target, record)
        job.watch.sending = self._monotonic()
        await job.responder.start(job.client.whole_type, len(body))
        await job.responder.send(body, more=False)

    async def _stream(self, job: Job, target: Target, record: AttemptRecord, response: Response, lane: Lane) -> None:
        trace, watch, monotonic = job.trace, job.watch, self._monotonic
        held: list[bytes] = []
        ended = False
        left: list[Sequence[Frame]] = []

        def pass_on(data: bytes) -> bool:
            """Content on its way, where nothing has to be waited for and nothing ends."""
            frames = lane.feed(data)
            out, moved, failure = _gather(frames)
            if lane.done or failure is not None or (out and not job.responder.write(_joined(out))):
                left.append(frames)
                return False
            if moved:
                watch.seen = monotonic()
            return True

        while not ended:
            failure: SwitchyardError | None = None
            out: list[bytes] = []
            began = monotonic()
            try:
                if trace.committed:
                    await response.relay(pass_on)
                if left:
                    frames, ended = left.pop(), lane.done
                elif data := await response.read():
                    frames, ended = lane.feed(data), lane.done
                else:
                    frames, ended = lane.close(), True
                if lane.done:
                    frames = [*frames, *lane.close()]
                    ended = True
                out, moved, failure = _gather(frames)
                if failure is not None:
                    response.abort()
                elif ended:
                    response.finish()
            except UpstreamError as cut:
                # The connection broke. After the finish reason that costs the client nothing.
                ended, moved = True, False
                if lane.meter.finish is None:
                    failure = cut
                else:
                    out, moved, failure = _gather(lane.close())
            except asyncio.CancelledError:
                failure = watch.take()
                if failure is None:
                    raise
                moved = False
            finally:
                if not trace.committed:
                    trace.upstream_seconds += monotonic() - began
            if moved:
                watch.seen = monotonic()
            if not trace.committed:
                if failure is not None:
                    raise failure
                held += out
                if not moved and not ended:
                    if sum(map(len, held)) > MAX_HELD:
                        raise Broken("the provider sent too much before its first content")
                    continue
                out = held
                self._won(job, target, record)
                watch.phase("idle", target.provider.timeouts.idle)
                await job.responder.start(job.client.stream_type, None)
            if failure is not None:
                ended = True
                self._broke(target, record, trace, failure)
                if isinstance(failure, ClientStalled):
                    return
                out.append(job.client.write_stream_error(job.call, failure, trace.request_id))
            if out or ended:
                watch.sending = monotonic()
                try:
                    await job.responder.send(_joined(out), more=not ended)
                except asyncio.CancelledError:
                    failure = watch.take()
                    if failure is None:
                        raise
                    # The client was slow to take what the provider had sent: no failure of the provider's.
                    trace.error = failure
                    trace.client_gone = trace.client_gone or isinstance(failure, ClientStalled)
                    return
                watch.sending = None

    def _won(self, job: Job, target: Target, record: AttemptRecord) -> None:
        """The target answers: nothing else will."""
        trace = job.trace
        trace.committed = True
        trace.answered = target
        trace.first_content = self._monotonic()
        record.outcome = "ok"
        self._health.success(str(target))

    def _broke(self, target: Target, record: AttemptRecord, trace: Trace, failure: SwitchyardError) -> None:
        """The answer broke off after it began."""
        trace.error = failure
        if isinstance(failure, ClientStalled):
            trace.client_gone = True
        if isinstance(failure, UpstreamError):
            record.outcome = failure.reason
            self._count(str(target), failure)

    def resize(self, providers: Mapping[str, Provider]) -> None:
        """The places at each provider as the config in force has them, also for the calls that run and wait."""
        self._places = {name: places for name, places in self._places.items() if places.busy}
        for name, provider in providers.items():
            known = self._places.get(name)
            limit = provider.max_concurrency
            if known is not None:
                known.resize(sys.maxsize if limit is None else limit, provider.queue)
            elif limit is not None:
                self._places[name] = Places(limit, provider.queue)

    def queued(self) -> dict[str, int]:
        """Calls that wait for a place, by provider."""
        return {name: places.waiting for name, places in self._places.items()}


def _reason(plan: Plan, first: SwitchyardError | None) -> str:
    """Why the fallback answers: the first failure, else why the first target was left out."""
    if isinstance(first, UpstreamError):
        return first.reason
    if first is not None:
        return "unsupported"
    if not plan.skipped:
        return "no_target"
    skipped = next((skip for skip in plan.skipped if skip.role == "target"), plan.skipped[0])
    return skipped.block.reason if skipped.block is not None else skipped.reason


def _last_word(plan: Plan, first: SwitchyardError | None, tried: Sequence[AttemptRecord]) -> SwitchyardError:
    """What to tell when every attempt failed: the call's own fault where none of the asked model's targets could take
    it; the whole plan where none of them was even tried; else the first failure, with what else was left out."""
    if all(attempt.role == "fallback" for attempt in plan.attempts):
        refusal = plan.refusal()
        if isinstance(refusal, InvalidRequest):
            return refusal
        why = [f"{skip.target}: {skip.detail}" for skip in plan.skipped[:8]]
        why += [f"{record.target}: {record.outcome}" for record in tried]
        return NoTarget(f"model '{plan.asked_model}' cannot be answered now ({'; '.join(why)}).")
    if first is None:
        block = next((skip.block for skip in plan.skipped if skip.block is not None), None)
        return NoTarget("no target is left to try") if block is None else block.told()
    left_out = [
        f"{skip.target} was left out: {skip.detail}"
        for skip in plan.skipped
        if skip.reason.startswith("no_") or skip.reason in ("context_too_small", "provider_off")
    ]
    if not left_out:
        return first
    told = copy.copy(first)  # the first failure is also what the deployment's health remembers
    told.message = "; ".join([first.message, *left_out])
    return told


def _gather(frames: Sequence[Frame]) -> tuple[list[bytes], bool, UpstreamError | None]:
    """The bytes to send, whether the answer moved on (content or its end), and the failure that ends it."""
    out: list[bytes] = []
    moved = False
    for kind, data, error in frames:
        if error is not None:
            return out, moved, error
        if data:
            out.append(data)
        if kind == "content" or kind == "terminal":
            moved = True
    return out, moved, None


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_json(response: Response) -> bool:
    return response.headers.get("content-type", "").startswith("application/json")
