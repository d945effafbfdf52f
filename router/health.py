"""Which deployments take no traffic right now, and why: a breaker and a cooldown for each `provider/model`.

In process, with an injected clock. A breaker opens after FAILURES failures in a row, for OPEN_SECONDS; when the time is
over one call is let through as a probe, the next one when that has ended, and each probe that fails doubles the time,
up to MAX_OPEN_SECONDS. Other calls that fail meanwhile (under way since before, or made because nobody else was left)
change nothing. A rate limit is no failure: it cools the deployment down for the provider's own retry time, at most
MAX_COOLDOWN seconds, whatever the calls meet that were under way. The last error is kept: a caller who may not fall
back is told what the provider said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

from providers.errors import RateLimited, UpstreamError

FAILURES = 5
OPEN_SECONDS = 10.0
MAX_OPEN_SECONDS = 120.0
MAX_COOLDOWN = 60.0
MAX_STATES = 10_000
"""Deployments that are remembered. Model names come from callers, so their number must be bounded; the oldest go."""

_Error = TypeVar("_Error", bound=UpstreamError)


class Probe:
    """A call by which a breaker is tried; told again with its outcome."""

    __slots__ = ()


@dataclass(slots=True)
class _State:
    failures: int = 0
    openings: int = 0
    open_until: float = 0.0
    """0 while the breaker is closed. Once passed: its time is over, and the next call is its probe."""
    probe: Probe | None = None
    """Under way. Every attempt has a deadline, so it ends."""
    error: UpstreamError | None = None
    """The last failure."""
    rate_limits: int = 0
    cooling_until: float = 0.0
    limit: RateLimited | None = None
    """The last rate limit."""


@dataclass(frozen=True, slots=True)
class Block:
    """Why a deployment is skipped, and the seconds until it is tried again: 1 while a probe is trying it."""

    error: UpstreamError
    seconds: float
    cooldown: bool
    """The provider itself asked for a pause (rate limit): not to be tried even when nothing else is left."""

    @property
    def reason(self) -> str:
        """The error's stable word."""
        return self.error.reason

    def told(self) -> UpstreamError:
        """The error for a caller whom nobody answers because of this."""
        error = copy(self.error)
        error.retry_after = self.seconds
        return error

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
        state = self._states.get(deployment) if self._states else None
        if state is None:
            return None
        now = self._clock()
        if now < state.cooling_until and state.limit is not None:
            return Block(state.limit, state.cooling_until - now, cooldown=True)
        seconds = state.open_until - now if now < state.open_until else float(state.probe is not None)
        if seconds > 0 and state.error is not None:
            return Block(state.error, seconds, cooldown=False)
        return None

    def begin(self, deployment: str) -> Probe | None:
        """A call begins. What it has to tell of its end with when it is the probe of a breaker whose time is over:
        others wait for its outcome, which must be told by `success`, by `failure`, or as `abandoned`."""
        state = self._states.get(deployment) if self._states else None
        if state is None or not state.open_until or state.probe is not None:
            return None
        if self._clock() < max(state.open_until, state.cooling_until):
            return None
        state.probe = Probe()
        return state.probe

    def success(self, deployment: str) -> None:
        provider = deployment.partition("/")[0]
        self._answers[provider] = self._answers.get(provider, 0) + 1
        if self._states:
            self._forget(deployment)
            self._failing.discard(provider)

    def _forget(self, deployment: str) -> None:
        """All but a pause that the provider asked for: a call that was under way says nothing about that."""
        state = self._states.pop(deployment, None)
        if state is not None and self._clock() < state.cooling_until:
            self._states[deployment] = _State(
                rate_limits=state.rate_limits, cooling_until=state.cooling_until, limit=state.limit
            )

    def answers(self, provider: str) -> int:
        """How many calls the provider has answered so far."""
        return self._answers.get(provider, 0)

    def recovered(self, provider: str) -> None:
        """The server answers again after it had been unreachable: no need to sit out the pauses, rate limits apart."""
        for name in [name for name in self._states if name.startswith(f"{provider}/")]:
            self._forget(name)
        self._failing.discard(provider)

    def abandoned(self, deployment: str, probe: Probe | None) -> None:
        """A call ended without a verdict (the client left). If it was the probe, the next one may be it."""
        state = self._states.get(deployment) if probe is not None else None
        if state is not None and state.probe is probe:
            state.probe = None

    def failure(self, deployment: str, error: UpstreamError, probe: Probe | None = None) -> None:
        """Count a failure. Errors of scope `request` say nothing about the deployment and must not come here."""
        state = self._states.setdefault(deployment, _State())
        if len(self._states) > MAX_STATES:
            del self._states[next(iter(self._states))]
        self._failing.add(deployment.partition("/")[0])
        decides = probe is not None and state.probe is probe
        if decides:
            state.probe = None
        now = self._clock()
        if isinstance(error, RateLimited):
            told = error.retry_after if error.retry_after is not None and error.retry_after > 0 else None
            if told is None and now < state.cooling_until:
                return  # it was under way when the pause began
            pause = told if told is not None else 0.5 * 2 ** min(state.rate_limits, 4) * self._jitter()
            state.rate_limits += 1
            state.cooling_until = max(state.cooling_until, now + min(pause, MAX_COOLDOWN))
            state.limit = _without_words(error)
            return
        state.failures += 1
        state.error = _without_words(error)
        if decides if state.open_until else state.failures >= FAILURES:
            state.open_until = now + min(OPEN_SECONDS * 2**state.openings, MAX_OPEN_SECONDS)
            state.openings = min(state.openings + 1, 8)

    def snapshot(self) -> dict[str, Block]:
        """Every deployment that is blocked now, for status pages."""
        return {name: block for name in list(self._states) if (block := self.block(name)) is not None}

    def open(self) -> Counter[str]:
        """How many deployments of each provider have an open breaker. Not those whose time is over and that no call has
        tried since."""
        now = self._clock()
        return Counter(
            name.partition("/")[0]
            for name, state in self._states.items()
            if now < state.open_until or state.probe is not None
        )

    def down(self) -> dict[str, str]:
        """Providers that take no calls as far as we know, and the error's stable word: a breaker of theirs is open, or
        was a moment ago and nothing was heard since, or they asked for a pause; and no other model of theirs has
        answered since the last failure."""
        now = self._clock()
        found = {}
        for name, state in self._states.items():
            error: UpstreamError | None = None
            if now < state.cooling_until:
                error = state.limit
            elif state.open_until and (now < state.open_until + MAX_OPEN_SECONDS or state.probe is not None):
                error = state.error
            provider = name.partition("/")[0]
            if error is not None and provider in self._failing:
                found[provider] = error.reason
        return found


def _without_words(error: _Error) -> _Error:
    """The error as later callers may see it. A copy, since the error itself holds by its traceback all that the failed
    call had in its hands; and with a sentence of ours, since the provider's may quote that call."""
    kept = copy(error)
    kept.__dict__.pop("__notes__", None)
    kept.message = f"the provider failed a moment ago ({error.reason})"
    return kept
