"""A real store with teams, keys and hand-written sums in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest

from router.limits import Limit
from router.periods import HOUR
from router.records import (
    TEAMS,
    Key,
    Record,
    TeamRecord,
    encode,
    key_name,
    key_of,
    keys_name,
    new_etag,
    place_name,
    team_name,
)
from router.store import Store, open_store
from router.usage import UsageReader, day_name, hour_name

NOON = datetime(2026, 11, 22, 12, 30, tzinfo=ZoneInfo("UTC")).timestamp()
"""The present of these tests, a Sunday."""


@dataclass
class Ledger:
    """Writes what the router's ledger writes, at any time."""

    store: Store
    zones: dict[str, str] = field(default_factory=dict)

    async def team(self, team: str, name: str, zone: str = "UTC", limits: Sequence[Limit] = ()) -> None:
        record = TeamRecord(id=team, name=name, created=1, timezone=zone, limits=tuple(limits), etag=new_etag(1))
        self.zones[team] = zone
        await cast("Any", self.store.redis).sadd(TEAMS, team)
        await self.store.redis.set(team_name(team), encode(record))

    async def key(self, team: str, key: str, name: str, **more: Any) -> Key:
        record = Record(id=key, name=name, created=1, team=team, etag=new_etag(1), **more)
        await self.store.redis.set(key_name(team, key), encode(record))
        await self.store.redis.set(place_name(key), team)
        await cast("Any", self.store.redis).sadd(keys_name(team), key)
        return key_of(record)

    async def use(
        self, team: str, key: str, at: float, model: str = "gpt-4o", provider: str = "openai", **amounts: int
    ) -> None:
        day = datetime.fromtimestamp(at, ZoneInfo(self.zones[team])).date().isoformat()
        async with self.store.redis.pipeline(transaction=False) as pipe:
            for metric, amount in {"calls": 1, **amounts}.items():
                metric = "in" if metric == "in_" else metric
                for name in (hour_name(team, int(at // HOUR)), day_name(team, day)):
                    pipe.hincrby(name, f"{key}\t{model}\t{provider}\t{metric}", amount)
            await pipe.execute()

    async def counted(self, team: str, scope: str, fields: Mapping[str, int]) -> None:
        await cast("Any", self.store.redis).hset(f"sy:{{{team}}}:n:{scope}", mapping=dict(fields))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store("embedded", tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(store: Store) -> Ledger:
    return Ledger(store)


@pytest.fixture
async def reader(store: Store) -> UsageReader:
    return UsageReader(store, clock=lambda: NOON)
