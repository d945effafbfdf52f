"""All deadlines of one call behind one timer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from providers.errors import DeadlineExceeded, SwitchyardError, TimedOut
from router.places import NoPlace


class Watch:
    """When a deadline passes, the call's task is cancelled and `fired` says why.

    The timer is not moved with each chunk: it looks at `seen` when it rings and sleeps on. `stall` is how long one
    `send` may take (seconds).
    """

    __slots__ = (
        "_ends",
        "_loop",
        "_phase",
        "_seconds",
        "_task",
        "_timer",
        "_total",
        "fired",
        "seen",
        "sending",
        "stall",
    )

    def __init__(self, task: asyncio.Task[None], stall: float) -> None:
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._phase = ""
        self._seconds = 0.0
        self._total = math.inf
        self._ends = math.inf
        self.stall = stall
        self.seen = 0.0
        """When the phase began, or content was last seen."""
        self.sending: float | None = None
        """Since when a send has been waiting for the client; deadlines of the provider rest meanwhile."""
        self.fired: SwitchyardError | None = None

    def limit(self, seconds: float) -> None:
        """The whole call, with all its attempts, ends after `seconds` from now: the caller's own deadline."""
        self._ends = self._loop.time() + seconds

    def attempt(self, total: float) -> None:
        """An attempt begins, which ends after `total` seconds whatever it does."""
        self._total = self._loop.time() + total

    def phase(self, name: str, seconds: float) -> None:
        """Content, or the next sign of it, is due every `seconds`."""
        self._phase = name
        self._seconds = seconds
        self.seen = self._loop.time()
        self._arm(self.seen)

    def fire(self, error: SwitchyardError) -> None:
        if self.fired is None:
            self.fired = error
            self._task.cancel()

    def take(self) -> SwitchyardError | None:
        """Called where a cancellation was caught: the error when it was ours and nobody else's, else None."""
        error, self.fired = self.fired, None
        if error is None:
            return None
        return error if self._task.uncancel() == 0 else None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self.seen + self._seconds if self.sending is None else self.sending + self.stall
        due = min(due, self._total, self._ends)
        self._timer = self._loop.call_later(min(max(due - now, 0.001), self.stall), self._ring)

    def _ring(self) -> None:
        now = self._loop.time()
        if self.sending is not None and now - self.sending >= self.stall:
            self.fire(ClientStalled("the client took no bytes for too long"))
        elif now >= self._ends:
            self.fire(DeadlineExceeded("the call took longer than its x-switchyard-timeout allows"))
        elif now >= self._total:
            self.fire(TimedOut("the call took longer than it may in total"))
        elif self.sending is None and now - self.seen >= self._seconds:
            error, text = _LATE[self._phase]
            self.fire(error(text.format(self._seconds)))
        else:
            self._timer = None
            self._arm(now)


class ClientStalled(SwitchyardError):
    """The client stopped reading. Nobody is told: the connection is dropped."""

    status = 499
    code = "client_stalled"


_LATE: Mapping[str, tuple[type[SwitchyardError], str]] = {
    "queued": (NoPlace, "no place at the provider became free within {:g} seconds"),
    "first_content": (TimedOut, "the provider sent no content within {:g} seconds"),
    "whole": (TimedOut, "the provider sent no answer within {:g} seconds"),
    "idle": (TimedOut, "the provider sent nothing for {:g} seconds in the middle of its answer"),
}
