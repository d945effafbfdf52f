"""The model routes: a client's request becomes a call, is planned, run, settled and written down. Plain ASGI."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from providers.call import Call
from providers.errors import InvalidRequest, Overloaded, SwitchyardError
from providers.jsontext import read_object
from providers.wire import Stamp, Wire
from router import routing
from router.allowance import headers as limit_headers
from router.engine import Job
from router.http import ClientGone, Headers, Receive, Scope, Send, header, internal_error, read_body, reply, reply_error
from router.known import Known
from router.ledger import Ask, Hold
from router.routing import Plan, Rights
from router.trace import Trace
from router.watch import Watch

if TYPE_CHECKING:
    from router.runtime import Runtime

MAX_TIMEOUT = 3600.0
"""Seconds that `x-switchyard-timeout` may ask for."""

_log = logging.getLogger("switchyard.calls")


class Answer:
    """The client's side of one call, for the engine: headers once, then bytes."""

    __slots__ = ("_monotonic", "_send", "_trace", "started", "write")

    def __init__(
        self, send: Send, write: Callable[[bytes], bool], trace: Trace, monotonic: Callable[[], float]
    ) -> None:
        self.write = write
        self._send = send
        self._trace = trace
        self._monotonic = monotonic
        self.started = False

    async def start(self, content_type: str, length: int | None) -> None:
        self.started = True
        trace = self._trace
        trace.status = 200
        headers = [(b"content-type", content_type.encode()), *answer_headers(trace, self._monotonic()), *trace.limits]
        if length is None:
            headers += _STREAM_HEADERS
        else:
            headers.append((b"content-length", b"%d" % length))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


_STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def answer_headers(trace: Trace, now: float) -> list[tuple[bytes, bytes]]:
    """Who answered and why."""
    headers = [
        (b"x-request-id", trace.request_id.encode()),
        (b"x-switchyard-attempts", b"%d" % len(trace.attempts)),
        (b"x-switchyard-overhead-ms", b"%.2f" % (trace.overhead(now) * 1000)),
    ]
    if trace.answered is not None:
        headers.append((b"x-switchyard-model", _header_text(trace.answered.model)))
        headers.append((b"x-switchyard-provider", trace.answered.provider.name.encode()))
    if trace.fallback is not None:
        headers.append((b"x-switchyard-fallback", trace.fallback.encode()))
    if trace.degraded:
        headers.append((b"x-switchyard-degraded", b"store"))
    return headers


def _header_text(text: str) -> bytes:
    """A model name as a header value: what headers cannot carry is escaped."""
    return text.encode("ascii", "backslashreplace") if text.isprintable() else repr(text).encode("ascii", "replace")


class Calls:
    """Handles one model call after the other on behalf of a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._active: set[Watch] = set()

    @property
    def active(self) -> int:
        return len(self._active)

    def stop_all(self) -> None:
        """End what still runs: open streams get an error event, the others 503."""
        for watch in list(self._active):
            watch.fire(Overloaded("the router is shutting down", retry_after=1.0))

    async def handle(self, scope: Scope, receive: Receive, send: Send, wire: Wire, op: str) -> None:
        runtime = self._runtime
        trace = Trace(
            request_id=secrets.token_hex(12),
            created=runtime.clock(),
            started=runtime.monotonic(),
            dialect=wire.name,
            op=op,
            context=runtime.tracer(scope["headers"]),
        )
        task = asyncio.current_task()
        assert task is not None
        connection = scope["connection"]

        def lost() -> None:
            trace.client_gone = True
            task.cancel()

        connection.on_lost = lost
        watch = Watch(task, runtime.config.server.limits.write_stall_seconds)
        self._active.add(watch)
        runtime.metrics.in_flight.inc()
        answer = Answer(send, connection.write_body, trace, runtime.monotonic)
        hold: Hold | None = None
        try:
            hold = await self._admit(scope, receive, send, wire, trace)
            if hold is not None:
                await self._run(wire, trace, hold, answer, watch)
        except ClientGone:
            trace.client_gone = True
        except asyncio.CancelledError:
            error = watch.take()
            if error is not None:
                await self._refuse(send, wire, trace, answer, error)
            elif trace.client_gone:
                task.uncancel()
            else:
                raise
        except SwitchyardError as error:
            await self._refuse(send, wire, trace, answer, error)
        except Exception as bug:  # noqa: BLE001 - a bug of ours: the caller gets a clean 500, the log the traceback, and the server goes on
            await self._refuse(send, wire, trace, answer, internal_error(_log, trace.request_id, bug))
        finally:
            connection.on_lost = None
            watch.close()
            self._active.discard(watch)
            runtime.metrics.in_flight.dec()
            runtime.finished(trace, hold, scope)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, wire: Wire, trace: Trace) -> Hold | None:
        """Read, check, plan and reserve. None when the answer has been given already (a load request of Ollama's
        clients)."""
        runtime = self._runtime
        headers: Headers = scope["headers"]
        credential, anonymous = runtime.credential(scope)
        body = await read_body(headers, receive, runtime.config.server.limits.max_body_bytes)
        call = wire.read_call(trace.op, read_object(body))
        trace.call = call
        trace.seconds = _seconds(header(headers, b"x-switchyard-timeout"))
        fallback = (header(headers, b"x-switchyard-no-fallback") or "").strip().lower() not in _YES
        address = runtime.address(scope)
        loaded = runtime.load_answer(call, Stamp(trace.request_id, trace.created, runtime.clock, call.asked_model))

        def prepare(known: Known, local_only: bool) -> Ask:
            """Plan the call by its key. The ledger asks again when the key has changed meanwhile."""
            trace.key_id = known.key.id
            trace.labels = runtime.gauges.model_labels
            runtime.accounts.check_network(known, address)
            rights = known.key.rights
            plan = self._plan(call, replace(rights, local_only=True) if local_only else rights, fallback=fallback)
            if not plan.attempts:
                raise plan.refusal()
            if loaded is not None:
                # Loading a model asks nobody; that the name resolves is all there is to check.
                trace.plan = plan
                return Ask()
            return runtime.accounts.ask(call, plan, known, trace)

        if anonymous is not None:
            hold = await runtime.ledger.reserve_anonymous(anonymous, call_id=trace.request_id, prepare=prepare)
        else:
            hold = await runtime.ledger.reserve(credential, call_id=trace.request_id, prepare=prepare, address=address)
        if loaded is None:
            trace.limits, trace.degraded = limit_headers(hold.standing), not hold.reserved
            return hold
        runtime.ledger.settle(hold)
        trace.status = 200
        await reply(send, 200, loaded, wire.whole_type.encode(), [(b"x-request-id", trace.request_id.encode())])
        return None

    async def _run(self, wire: Wire, trace: Trace, hold: Hold, answer: Answer, watch: Watch) -> None:
        call, plan = trace.call, trace.plan
        assert call is not None
        assert plan is not None
        hold.used = self._runtime.accounts.used(trace, hold)
        hold.cut = watch.fire
        await self._runtime.engine.run(Job(call, wire, plan, trace, answer, watch, trace.seconds))

    def _plan(self, call: Call, rights: Rights, *, fallback: bool) -> Plan:
        """The plan; where only ill health leaves nobody, those who are not told to pause are tried all the same."""
        runtime = self._runtime
        plan = routing.plan(
            runtime.snapshot,
            call.asked_model,
            call.needs,
            rights,
            runtime.unhealthy,
            runtime.roll,
            fallback=fallback,
        )
        if plan.attempts or not any(skip.block for skip in plan.skipped):
            return plan
        plan = routing.plan(
            runtime.snapshot, call.asked_model, call.needs, rights, runtime.cooling, runtime.roll, fallback=fallback
        )
        if not plan.attempts:
            for skip in plan.skipped:
                if skip.block is not None:
                    raise skip.block.told()
        return plan

    async def _refuse(self, send: Send, wire: Wire, trace: Trace, answer: Answer, error: SwitchyardError) -> None:
        """Tell the client, if it can still be told."""
        trace.error = error
        trace.status = error.status
        if answer.started or trace.client_gone:
            return
        headers = answer_headers(trace, self._runtime.monotonic())[1:] if trace.attempts else []
        headers += trace.limits
        await reply_error(send, wire, error, trace.request_id, headers)


_YES = frozenset({"1", "true", "yes", "on"})


def _seconds(text: str | None) -> float | None:
    """The caller's own deadline. Raises InvalidRequest."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT:
        raise InvalidRequest(f"x-switchyard-timeout must be seconds, more than 0 and at most {MAX_TIMEOUT:g}")
    return seconds
