"""Which deployments take no traffic right now, and why: a breaker and a cooldown for each `provider/model`.

In process, with an injected clock. A breaker opens after FAILURES failures in a row, for OPEN_SECONDS doubling up to
MAX_OPEN_SECONDS; when the time is over one probe at a time is let through. A rate limit is no failure: it cools the
deployment down for the provider's own retry time, at most MAX_COOLDOWN seconds. The last error is kept: a caller who
may not fall back is told what the provider said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

from providers.errors import RateLimited, UpstreamError

FAILURES = 5
OPEN_SECONDS = 10.0
MAX_OPEN_SECONDS = 120.0
MAX_COOLDOWN = 60.0
PROBE_SECONDS = 30.0
"""A probe that has not reported by then counts as lost, and another one is let through."""
MAX_STATES = 10_000
"""Deployments that are remembered. Model names come from callers, so their number must be bounded; the oldest go."""


@dataclass(slots=True)
class _State:
    failures: int = 0
    opened: int = 0
    until: float = 0.0
    probing_until: float = 0.0
    rate_limits: int = 0
    cooldown: bool = False
    error: UpstreamError | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Why a deployment is skipped. `reason` is the error's stable word; `seconds` until it is tried again."""

    reason: str
    seconds: float
    error: UpstreamError | None
    cooldown: bool
    """The provider itself asked for a pause (rate limit): not to be tried even when nothing else is left."""

    def __str__(self) -> str:
        return f"{self.reason}; it is tried again in {self.seconds:.0f} s"


class Health:
    """`clock` is monotonic seconds; `jitter` gives a number in [0, 1)."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._states: dict[str, _State] = {}
        self._failing: set[str] = set()
        """Providers that were last heard to fail. Successes are noticed only while there are states."""
        self._answers: dict[str, int] = {}

    def block(self, deployment: str) -> Block | None:
        """None when the deployment may be tried. Asking changes nothing: see `begin`."""
        if not self._states:
            return None
        state = self._states.get(deployment)
        if state is None or state.until == 0.0:
            return None
        now = self._clock()
        until = state.until if now < state.until else state.probing_until
        if now >= until:
            return None
        reason = state.error.reason if state.error is not None else "unhealthy"
        return Block(reason, until - now, state.error, state.cooldown)

    def begin(self, deployment: str) -> None:
        """A call goes out. On a deployment whose pause is over it is the probe: others wait for its outcome."""
        state = self._states.get(deployment) if self._states else None
        if state is not None and state.until and self._clock() >= state.until and not state.cooldown:
            state.probing_until = self._clock() + PROBE_SECONDS

    def success(self, deployment: str) -> None:
        provider = deployment.partition("/")[0]
        self._answers[provider] = self._answers.get(provider, 0) + 1
        if self._states:
            self._states.pop(deployment, None)
            self._failing.discard(provider)

    def answers(self, provider: str) -> int:
        """How many calls the provider has answered so far."""
        return self._answers.get(provider, 0)

    def recovered(self, provider: str) -> None:
        """The server answers again after it had been unreachable: no need to sit out the pauses, rate limits apart."""
        for name, state in list(self._states.items()):
            if name.startswith(f"{provider}/") and not state.cooldown:
                del self._states[name]
        self._failing.discard(provider)

    def abandoned(self, deployment: str) -> None:
        """The call ended without a verdict (the client left): a probe makes room for the next one."""
        state = self._states.get(deployment) if self._states else None
        if state is not None:
            state.probing_until = 0.0

    def failure(self, deployment: str, error: UpstreamError) -> None:
        """Count a failure. Errors of scope `request` say nothing about the deployment and must not come here."""
        state = self._states.setdefault(deployment, _State())
        if len(self._states) > MAX_STATES:
            del self._states[next(iter(self._states))]
        self._failing.add(deployment.partition("/")[0])
        state.probing_until = 0.0
        now = self._clock()
        # Calls that were under way when the provider asked for a pause may still fail; its word holds.
        cooling = state.cooldown and now < state.until
        if not cooling or isinstance(error, RateLimited):
            state.error = _without_words(error)
        if isinstance(error, RateLimited):
            state.rate_limits += 1
            told = error.retry_after
            pause = told if told is not None and told > 0 else 0.5 * 2 ** min(state.rate_limits - 1, 4) * self._jitter()
            state.until = now + min(pause, MAX_COOLDOWN)
            state.cooldown = True
            return
        state.failures += 1
        if cooling:
            return
        state.cooldown = False
        if state.failures >= FAILURES:
            state.until = now + min(OPEN_SECONDS * 2**state.opened, MAX_OPEN_SECONDS)
            state.opened = min(state.opened + 1, 8)

    def snapshot(self) -> dict[str, Block]:
        """Every deployment that is blocked now, for status pages."""
        return {name: block for name in list(self._states) if (block := self.block(name)) is not None}

    def open(self) -> Counter[str]:
        """How many deployments of each provider have an open breaker."""
        return Counter(name.partition("/")[0] for name, block in self.snapshot().items() if not block.cooldown)

    def down(self) -> dict[str, str]:
        """Providers that take no calls as far as we know, and the error's stable word: a breaker of theirs is open, or
        was a moment ago and nothing was heard since, or they asked for a pause; and no other model of theirs has
        answered since the last failure."""
        now = self._clock()
        found = {}
        for name, state in self._states.items():
            if state.until and now < state.until + (0.0 if state.cooldown else MAX_OPEN_SECONDS):
                provider = name.partition("/")[0]
                if provider in self._failing:
                    found[provider] = state.error.reason if state.error is not None else "unhealthy"
        return found


def _without_words(error: UpstreamError) -> UpstreamError:
    """The error as later callers may see it. A copy, since the error itself holds by its traceback all that the failed
    call had in its hands; and with a sentence of ours, since the provider's may quote that call."""
    kept = copy(error)
    kept.__dict__.pop("__notes__", None)
    kept.message = f"the provider failed a moment ago ({error.reason})"
    return kept
