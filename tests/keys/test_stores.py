"""Keys, teams and the log on other stores than the embedded one, and moved from one to the next: no command names two
slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from router.changes import TeamChange
from router.issue import Row, issue
from router.keys import Change, Keys
from router.limit_text import parse_limits
from router.migration import migrate
from router.records import counters_name
from router.store import open_store
from router.transfer import bring, export, read_export
from tests.keys.test_migration import old_key
from tests.simulators.stores import Cluster, Server

PEPPER = b"the pepper of these tests, all of them"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def keys_at(url: str, directory: Path, opened: AsyncExitStack) -> Keys:
    store = await open_store(url, directory)
    opened.push_async_callback(store.close)
    keys = Keys(store, PEPPER)
    assert await keys.check_pepper() is None
    return keys


async def test_a_second_examination_of_a_cluster_ends_nobodys_command(
    cluster: Cluster, tmp_path: Path, opened: AsyncExitStack
) -> None:
    """One answer to the watcher came late: that is no reason for others to lose theirs."""
    keys = await keys_at(cluster.url, tmp_path, opened)
    store = keys.cabinet.store
    waiting = asyncio.create_task(store.run("BLPOP", "sy:{x}:list", 0))
    async with asyncio.timeout(60):
        while not any(server.run("INFO", "clients")["blocked_clients"] for server in cluster.servers):  # noqa: ASYNC110 - told by the servers
            await asyncio.sleep(0.02)
    store.told("it does not answer")
    assert await store.ready() is None
    await store.run("RPUSH", "sy:{x}:list", "v")
    assert (await waiting)[1] == b"v"


async def test_a_whole_life_on_a_cluster_with_what_was_moved_there(
    cluster: Cluster, tmp_path: Path, opened: AsyncExitStack
) -> None:
    embedded = await keys_at("embedded", tmp_path / "embedded", opened)
    first = await embedded.bootstrap()
    limits = parse_limits({"rpm": 5, "budget": {"day": "5usd"}})
    made = await embedded.make(Change(name="moved", team="web", limits=limits))
    await embedded.cabinet.ask("HSET", counters_name(made.key.team, made.key.id), "budget_day:s", "77")
    with Server(tmp_path / "single") as server:
        single = await keys_at(server.url(), tmp_path / "single-data", opened)
        for source, target in ((embedded, single), (single, await keys_at(cluster.url, tmp_path / "c", opened))):
            text = [line async for line in export(source, usage=True)]
            assert (await bring(target, read_export(text))).keys == 2
            keys = target
        assert first.admin_token is not None
        assert await keys.is_admin(first.admin_token)
        assert (await keys.authenticate(made.credential)) == made.key
        assert await keys.cabinet.ask("HGETALL", counters_name(made.key.team, made.key.id)) == {b"budget_day:s": b"77"}

    # On the cluster now: everything that may be done.
    issued = await issue(keys, "lab", [Row(number, {"name": f"k{number}"}) for number in range(30)], {})
    for number in range(20):
        await keys.create(Change(name=f"t{number}", team=f"t{number}"))
    assert len(await keys.list()) == 52
    assert len(await keys.teams.list()) == 23
    assert (await keys.page(q="k1", limit=5)).keys
    assert (await keys.change("moved", Change(team="lab"))).team_name == "lab"
    rotated = await keys.rotate("moved", 60)
    for secret in (made.credential, rotated.credential, issued.keys[7][1]):
        assert await keys.authenticate(secret) is not None
    await keys.teams.change("lab", TeamChange(name="Laboratory", state="disabled"))
    assert await keys.authenticate(rotated.credential) is None
    await keys.revoke("t3")
    await keys.ensure_anonymous("guest")
    assert (await keys.bootstrap()).key is None
    _, old = await old_key(keys, keys.cabinet.store, name="older", team="web")
    assert await migrate(keys) == 1
    assert await keys.authenticate(old) is not None
    entries, _ = await keys.audit.entries(limit=3)
    assert entries[0]["action"] == "key.migrate"
    verdict = await keys.audit.verify()
    assert (verdict.ok, verdict.entries > 25) == (True, True)
