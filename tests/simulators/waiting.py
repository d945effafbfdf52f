"""Waiting for what other processes do. The limits are for what hangs: a busy machine may take a quarter of a minute to
start a process."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], seconds: float = 60.0, what: object = "it") -> float:
    """Wait for something that another process does; how long it took. `what` is told when it does not happen: a text,
    or what gives one."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.02)
    return time.monotonic() - began
