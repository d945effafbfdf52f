"""The same reports from a single Redis and from a Cluster of three, where teams lie on different nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from router.limits import Limit
from router.periods import DaysAgo, Span
from router.recent import RecentReader, Wanted, recent_name
from router.standing import rate_name, standing
from router.store import open_store
from router.usage import METRICS, PIECE, Query, UsageReader, day_name
from tests.simulators.stores import Cluster, Server
from tests.usage.conftest import NOON, Ledger, teams_of


@pytest.fixture(params=["redis", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "redis":
        with Server(tmp_path / "server") as server:
            yield server.url()
    else:
        with Cluster(tmp_path / "cluster") as cluster:
            yield cluster.url


async def test_reports(url: str, tmp_path: Path) -> None:
    store = await open_store(url, tmp_path / "data")
    try:
        assert store.problem is None
        ledger, reader = Ledger(store), UsageReader(store, clock=lambda: NOON)
        redis = cast("Any", store.redis)
        for number in range(12):
            team, key = f"team{number:04d}", f"{number:012d}"
            await ledger.team(team, f"team {number}")
            await ledger.key(team, key, f"key {number}")
            for day in range(3):
                await ledger.use(team, key, NOON - day * 86400, cost=10, in_=number)
            row = {"id": f"call {number}", "key": key, "status": 200}
            await redis.xadd(recent_name(team), {"r": json.dumps(row)}, id=f"{int(NOON) * 1000 + number}-0")
        large = {f"{number:012d}\tm\tp\tcalls": 1 for number in range(PIECE + 500)}
        await redis.hset(day_name("team0003", "2026-11-19"), mapping=large)
        teams = await teams_of(reader)

        report = await reader.read(Query(Span(DaysAgo(29)), ("team", "key")), teams)
        assert report.total[0] == 36 + PIECE + 500
        assert report.total[METRICS.index("in")] == sum(range(12)) * 3
        assert report.names["000000000007"] == "key 7"
        hours = await reader.read(Query(Span(DaysAgo(6)), ("hour",)), teams)
        assert hours.total[0] == 36
        rows = (await RecentReader(reader).read(Wanted(limit=5), teams)).rows
        assert [row["id"] for row in rows] == [f"call {number}" for number in (11, 10, 9, 8, 7)]
        assert rows[0]["key"] == "key 11"

        await ledger.counted("team0005", "k" * 12, {"budget_total:w": 0, "budget_total:s": 5, "budget_total:h": 1})
        await redis.hset(rate_name("team0005", "team", "rpm"), mapping={str(int(NOON) - 5): 3, "s": 3})
        limits = {
            "k" * 12: [Limit(measure="cost", window="total", amount=100, currency="usd")],
            "team": [Limit(measure="requests", window="minute", amount=10)],
        }
        found = await standing(store, "team0005", limits, zone=teams[0].zone, rate=7.1, now=NOON)
        assert [(one.name, one.spent, one.held, one.remaining) for one in found] == [
            ("budget_total", 5, 1, 94),
            ("team.rpm", 3, 0, 7),
        ]
    finally:
        await store.close()
