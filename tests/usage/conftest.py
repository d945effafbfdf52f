"""A real store with teams, keys and hand-written sums in it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
import uvicorn

from router.admin import admin_app
from router.cabinet import Cabinet
from router.changes import Change
from router.keys import Keys, open_keys
from router.limits import Limit
from router.periods import HOUR
from router.recent import recent_name
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
from router.store import Store
from router.usage import Team, UsageReader, day_name, hour_name, team_of_record

TOKEN = "an-admin-token-for-tests"
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


async def teams_of(reader: UsageReader) -> list[Team]:
    """All teams, by name."""
    return [team_of_record(record) for record in await Cabinet(reader.store).teams()]


@pytest.fixture
async def ledger(store: Store) -> Ledger:
    return Ledger(store)


@pytest.fixture
async def reader(store: Store) -> UsageReader:
    return UsageReader(store, clock=lambda: NOON)


@pytest.fixture
async def keys(store: Store, tmp_path: Path) -> Keys:
    return await open_keys(store, tmp_path, {"SWITCHYARD_ADMIN_TOKEN": TOKEN})


@pytest.fixture
async def port(keys: Keys) -> AsyncIterator[int]:
    """The admin API by its own door, on a real socket."""

    async def describe() -> tuple[bool, dict[str, object]]:
        return True, {}

    app = admin_app(keys, describe, lambda: 7.0)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


@pytest.fixture
async def used(store: Store, keys: Keys) -> tuple[Key, Key]:
    """Two keys of two teams, used just now."""
    ledger = Ledger(store)
    found = []
    now = time.time()  # one hour and one day for all of it
    for name, team in (("ann", "research"), ("=cmd()", "-ops")):
        key, _ = await keys.create(Change(name=name, team=team))
        ledger.zones[key.team] = "UTC"
        await ledger.use(key.team, key.id, now, in_=100, out=10, cost=5)
        await ledger.use(key.team, key.id, now, "kimi-k2", "kimi", in_=1, out=1, errors=1)
        row = {"id": f"call of {name}", "time": time.time(), "key": key.id, "model": "gpt-4o"}
        await cast("Any", store.redis).xadd(recent_name(key.team), {"r": json.dumps(row)})
        found.append(key)
    return found[0], found[1]
