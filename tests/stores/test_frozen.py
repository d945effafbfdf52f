"""A store that stands still under load: every call is decided in time, and in the end every sum is exact."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from itertools import pairwise

import pytest

from tests.simulators.stores import until
from tests.stores.conftest import Build, Record
from tests.stores.stands import House

DECIDED = 0.3
"""Seconds within which a call is answered or refused."""
BACK = 2.0
"""Seconds from the store's awakening until all calls are served again."""


def processes(house: House) -> int:
    box = house.stand.box
    return int(house.stand.embedded["pid"]) if box is None else box.pid  # type: ignore[union-attr]  # a single server


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        pytest.param("redis", 6, marks=pytest.mark.slow),
        pytest.param("embedded", 6, marks=pytest.mark.slow),
        pytest.param("redis", 30, marks=pytest.mark.slow),
        pytest.param("embedded", 30, marks=pytest.mark.slow),
    ],
)
def test_a_frozen_store(build: Build, kind: str, seconds: int, record_property: Record) -> None:
    house = build(kind)
    key_id, key = house.key("loaded", limits={"concurrency": 500, "tpm": 100_000_000, "budget": {"day": "1000usd"}})
    streams = house.load(key, model=f"sim/lasting@{seconds + 4}", callers=6, most=1, stream=True, max_tokens=2000)
    decided: list[int] = []
    with streams, house.load(key, max_tokens=50) as load:
        until(lambda: len(load.answered()) > 200 and len(house.paid.asked(f"lasting@{seconds + 4}")) == 6, "load")
        pid = processes(house)
        lines = len(house.state_lines())
        os.kill(pid, signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            until(lambda: house.ready().status == 503, "the router says that it is not ready", 15)
            until(lambda: house.metric("switchyard_redis_up") == 0, "the metric says so", 15)
            while time.monotonic() < frozen + seconds:
                decided.append(len(load.outcomes))
                time.sleep(0.25)
            assert (house.metric("switchyard_journal_entries") or 0) > 0
        finally:
            os.kill(pid, signal.SIGCONT)
        thawed = time.monotonic()
        until(lambda: sum(outcome.status == 200 for outcome in load.since(thawed + BACK)) > 100, "service is back", 20)
        until(lambda: house.ready().status == 200, "the router says that it is ready", 15)
    while_frozen = [outcome for outcome in load.since(frozen) if outcome.ended < thawed]
    told = f"{load.told()}; back {load.gap(thawed):.2f} s after it woke up"
    record_property("figures", told)
    print(told)

    # Decided, in time, and refused only as what will pass.
    assert all(after > before for before, after in pairwise(decided[2:])), "calls were decided"
    assert set(load.statuses) == {200, 503}
    assert {outcome.code for outcome in load.refused()} == {"quota_store"}
    assert Counter(outcome.status for outcome in while_frozen)[503] > 100
    assert load.slowest() <= DECIDED + 3 * load.lag, told
    assert load.gap(thawed) <= BACK, told
    assert all(outcome.complete for outcome in load.answered())

    # Streams went on, and were settled once.
    assert [outcome.complete for outcome in streams.outcomes] == [True] * 6

    # Sums.
    books = house.books(15)
    assert len(load.answered()) + 6 == house.paid.sums()["calls"], "nobody was served without an answer"
    sums = house.paid.sums()
    assert {name: books.usage(key_id)[name] for name in sums} == dict(sums)
    assert books.spent("budget_day", key_id) == sums["cost"]
    assert books.usage()["aborted"] == books.usage()["estimated"] == 0
    assert max(books.ended().values()) == 1
    assert books.unended() == set()

    # The journal is gone, but for what each worker keeps open.
    folder = house.router.directory / "data" / "journal"
    assert {path.stat().st_size for path in folder.glob("*")} == {0}
    until(lambda: house.metric("switchyard_journal_entries") == 0, "the metric says so", 15)
    assert house.metric("switchyard_redis_up") == 1
    assert (house.metric("switchyard_redis_decision_seconds_count") or 0) > len(load.outcomes) / 2

    # One line for each change of state, in each worker.
    told_lines = house.state_lines()[lines:]
    assert len(told_lines) in (2 * 2, 2 * 3), told_lines
    assert house.router.stop() == 0
    assert list(folder.glob("*")) == []
