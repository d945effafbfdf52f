"""What is known of one call while it runs: the request log, the metrics and the response headers are written from
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from providers.call import Call
from providers.errors import SwitchyardError
from providers.wire import Meter
from router.checks import NO_AMOUNTS, Amounts
from router.metric_labels import ModelLabels
from router.otel_context import TraceContext
from router.prices import Price
from router.routing import Plan, Target


@dataclass(slots=True)
class AttemptRecord:
    """One call to a provider: `outcome` is `ok`, `aborted`, or the error's stable word."""

    target: Target
    outcome: str = "running"
    status: int | None = None
    """What the provider answered; None when it did not."""
    seconds: float = 0.0
    meter: Meter | None = None
    """What it has delivered so far."""
    asked: bool = True
    """The provider may have got the request; False where connecting failed or no place was free."""
    started: float = 0.0
    """Monotonic seconds."""
    span_id: str | None = None
    """What the provider was told as its parent; None where no spans are made."""


@dataclass(slots=True)
class Trace:
    """Times are monotonic seconds; `created` is Unix seconds."""

    request_id: str
    created: float
    started: float
    dialect: str
    op: str
    call: Call | None = None
    plan: Plan | None = None
    key_id: str | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    answered: Target | None = None
    fallback: str | None = None
    """Why a fallback answered (a stable word); None when the asked model did."""
    status: int = 0
    error: SwitchyardError | None = None
    client_gone: bool = False
    upstream_seconds: float = 0.0
    """Time spent waiting for providers before the answer began: the rest of the wait is our own."""
    first_content: float | None = None
    """When the answer began: with content, or with its end where it has none."""
    committed: bool = False
    """The client has been sent content: the target is final."""
    meter: Meter | None = None
    """Of the last attempt."""
    amounts: Amounts = NO_AMOUNTS
    """The most that the call can take, as it was reserved."""
    limits: tuple[tuple[bytes, bytes], ...] = ()
    """The `x-ratelimit-*` headers of its answer."""
    seconds: float | None = None
    """The caller's own deadline."""
    prices: Callable[[Target], Price | None] | None = None
    """What targets cost this call, whatever is reloaded meanwhile."""
    labels: ModelLabels | None = None
    """What the metrics call its models, likewise. None where its key was not found."""
    degraded: bool = False
    """Admitted while the store was away: local models only."""
    context: TraceContext | None = None
    """The trace that the caller says it belongs to, or one of our own; None for neither."""

    def overhead(self, now: float) -> float:
        """Seconds of our own between the request's arrival and the answer's beginning."""
        return max(0.0, (self.first_content or now) - self.started - self.upstream_seconds)

    @property
    def content_at(self) -> float | None:
        """When the answer's first content came; None where none did."""
        return self.first_content if self.meter is not None and self.meter.frames else None

    @property
    def outcome(self) -> str:
        """`ok`, `aborted` (the client left), or the error's code."""
        if self.error is not None:
            return self.error.code
        return "aborted" if self.client_gone else "ok"
