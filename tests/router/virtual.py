"""An event loop whose clock jumps to the next timer instead of waiting for it: hours of deadlines in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

BEGIN = 1000.0


class _Leaping(selectors.DefaultSelector):
    """Waits for nothing: where the loop would sleep, the clock moves on."""

    now = BEGIN
    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("the test waits for something that never comes")
            self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual seconds."""

    def __init__(self) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(test)


def now() -> float:
    """Virtual seconds since the test began."""
    return asyncio.get_running_loop().time() - BEGIN


def timers() -> int:
    """Timers that still wait in the running loop."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]  # no public way to ask
    return sum(not handle.cancelled() for handle in scheduled)


def turns() -> int:
    """How often the running loop has turned."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop._leaping.turns
