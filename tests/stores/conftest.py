"""Whole routers of two workers on real stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.simulators.waiting import one_day
from tests.stores.paid import Paid
from tests.stores.stands import House, house

Record = Callable[[str, object], None]


class Build(Protocol):
    def __call__(self, kind: str, **options: Any) -> House: ...


@pytest.fixture(autouse=True)
def day() -> None:
    """What is spent of a day is looked at before the next begins."""
    one_day()


@pytest.fixture
def paid() -> Iterator[Paid]:
    with Paid() as simulator:
        yield simulator
        assert not simulator.failures, simulator.failures


@pytest.fixture
def build(tmp_path: Path, paid: Paid) -> Iterator[Build]:
    """build(kind): a house for one test."""
    with ExitStack() as standing:
        yield lambda kind, **options: standing.enter_context(house(kind, tmp_path / kind, paid, **options))
