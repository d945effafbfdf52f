"""Waiting for what other processes do. The limits are for what hangs: a busy machine may take a quarter of a minute to
start a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise


def until(true: Callable[[], object], seconds: float = 60.0, what: object = "it") -> float:
    """Wait for something that another process does; how long it took. `what` is told when it does not happen: a text,
    or what gives one."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.02)
    return time.monotonic() - began


def one_day(seconds: float = 60.0) -> None:
    """What takes so long from now on lies on one day (of UTC): where that ends sooner, the next is waited for."""
    left = 86400 - time.time() % 86400
    if left < seconds:
        time.sleep(left + 0.1)


class Pulse:
    """Asks for something that needs nothing, again and again: when it took long, the machine or the one who was asked
    stood still, and whatever else was measured meanwhile took as much longer."""

    RHYTHM = 0.1
    """Seconds from one answer to the next that are no standstill."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._answers: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="pulse")

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self._ask()
            self._answers.append(time.monotonic())

    def __enter__(self) -> Pulse:
        self._answers.append(time.monotonic())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def standstill(self, since: float, until: float) -> float:
        """Seconds of all standstills that reach into this time. To be asked when the pulse has ended."""
        answers = [*self._answers, time.monotonic()]
        return sum(
            later - earlier
            for earlier, later in pairwise(answers)
            if later - earlier > self.RHYTHM and earlier < until and later > since
        )
