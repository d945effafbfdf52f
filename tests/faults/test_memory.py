"""Answers without measure: what the router holds stays bounded, and goes back when the call is over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulators.client import OPENAI, Client
from tests.simulators.router import RouterProcess

ALLOWED = 48.0
"""MB that may stay after the calls: what the allocator keeps. One endless body is read up to 64 MB."""


@pytest.mark.parametrize(
    ("script", "stream", "calls"),
    [
        ("endless-body", False, 6),
        ("endless-headers", True, 6),
        ("huge-headers", False, 20),
        ("bomb", False, 6),
        ("huge-line", True, 4),
        ("content-then-huge-line", True, 4),
        ("500", False, 100),
    ],
)
def test_memory_stays_flat(
    router: RouterProcess, client: Client, script: str, stream: bool, calls: int, fresh: Callable[[str], str]
) -> None:
    """Each call is of a deployment of its own, so that each leaves what a first failure leaves."""
    client.ask(OPENAI, f"cloud/{fresh(script)}", stream=stream)
    before = router.rss()
    for _ in range(calls):
        client.ask(OPENAI, f"cloud/{fresh(script)}", stream=stream)
    assert router.rss() - before < ALLOWED
