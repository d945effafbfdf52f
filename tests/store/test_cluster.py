"""A Cluster: the right node for each team, moved slots, a lost primary, and what is said about a wrong address."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.functions import call, load
from router.link import Links, NotSent
from router.nodes import slot_of
from router.store import open_store
from tests.simulators.stores import Cluster, Server
from tests.store.conftest import LIBRARY, Load, Open, add, until

PASSWORD = "canary-p4ssword"
TAGS = [f"team{number:04}" for number in range(64)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), password=PASSWORD) as running:
        yield running


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster", replicas=True) as running:
        yield running


async def test_every_team_has_its_node(cluster: Cluster, connected: Open) -> None:
    store, links = await connected(cluster.url)
    assert PASSWORD not in f"{store!r} {store.servers!r} {store.name}"
    for server in cluster.servers:
        server.run("FLUSHALL")
    assert await asyncio.gather(*(links.ask(tag, add(tag), limit=10) for tag in TAGS)) == [1] * len(TAGS)
    assert {cluster.owner(slot_of(tag)).port for tag in TAGS} == {server.port for server in cluster.servers}
    # The administrative side finds the same, over all slots in one go.
    reads = [("GET", f"sy:{{{tag}}}:n") for tag in TAGS]
    assert await store.gather(reads) == [b"1"] * len(TAGS)
    assert await store.run("MGET", "sy:{x}:a", "sy:{x}:b") == [None, None]
    assert await store.gather([]) == []


async def test_functions_are_loaded_everywhere_and_again_where_they_are_missed(
    cluster: Cluster, connected: Open
) -> None:
    store, links = await connected(cluster.url)
    await load(store, LIBRARY)
    for server in cluster.servers:
        assert len(server.run("FUNCTION", "LIST")) == 1
        server.run("FUNCTION", "FLUSH")
    assert await call(store, "echo", ["sy:{t}:x"], ["a"], LIBRARY) == b"a"
    cluster.servers[1].run("FUNCTION", "FLUSH")
    await asyncio.gather(*(links.ask(tag, add(tag), limit=10) for tag in TAGS))


async def test_a_slot_moves_under_load(cluster: Cluster, connected: Open) -> None:
    """MOVED and ASK are followed; each call counts once and nothing is refused."""
    _, links = await connected(cluster.url)
    tag = TAGS[7]
    slot = slot_of(tag)
    old = cluster.owner(slot)
    new = next(server for server in cluster.servers if server is not old)
    old_id, new_id = (server.run("CLUSTER", "MYID").decode() for server in (old, new))
    await links.ask(tag, add(tag, "moves"), limit=10)
    async with Load(links, lambda number: (tag, add(tag, "moves")), limit=10) as load:
        await until(lambda: load.outcomes["answered"] > 100)
        new.run("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
        old.run("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
        await asyncio.sleep(0.05)
        for key in old.run("CLUSTER", "GETKEYSINSLOT", slot, 100):
            old.run("MIGRATE", "127.0.0.1", new.port, key, 0, 1000, "AUTH", PASSWORD)
        answered = load.outcomes["answered"]
        await until(lambda: load.outcomes["answered"] > answered + 100)  # by ASK
        for server in (new, old, *cluster.servers):
            server.run("CLUSTER", "SETSLOT", slot, "NODE", new_id)
        answered = load.outcomes["answered"]
        await until(lambda: load.outcomes["answered"] > answered + 100)  # by MOVED
    assert set(load.outcomes) == {"answered"}
    assert int(new.run("GET", f"sy:{{{tag}}}:moves")) == load.outcomes["answered"] + 1
    await until(cluster.ok)


async def test_a_lost_primary_is_replaced(failing: Cluster, connected: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="switchyard.store")
    store, links = await connected(failing.url)
    await until(lambda: all(s.run("INFO", "replication")["master_link_status"] == "up" for s in failing.servers[3:]))
    lost = failing.servers[0]
    async with Load(links, lambda number: (TAGS[number], add(TAGS[number])), callers=len(TAGS)) as load:
        await until(lambda: load.outcomes["answered"] > 500)
        lost.kill()
        await until(lambda: links.problem is not None)
        await until(lambda: links.up)
        await until(lambda: store.problem is None)
    assert load.slowest < 0.3 + 0.5 + 3 * load.lag
    counts = await asyncio.gather(*(links.ask(tag, add(tag), limit=10) for tag in TAGS))
    assert [type(count) for count in counts] == [int] * 64
    levels = [record.levelname for record in caplog.records if "cluster" in record.getMessage().lower()]
    assert levels == ["WARNING", "INFO"], caplog.text
    # The administrative side may meet the lost node once more.
    async with asyncio.timeout(60):
        while True:
            try:
                kept = await store.gather([("GET", f"sy:{{{tag}}}:n") for tag in TAGS])
                break
            except Exception:
                await asyncio.sleep(0.05)
    assert None not in kept


async def test_a_frozen_primary_is_replaced(failing: Cluster, connected: Open) -> None:
    _, links = await connected(failing.url)
    lost = failing.servers[1]
    tag = next(tag for tag in TAGS if failing.owner(slot_of(tag)) is lost)
    other = next(tag for tag in TAGS if failing.owner(slot_of(tag)) is failing.servers[0])
    lost.freeze()
    try:
        async with Load(links, lambda number: (tag, add(tag))) as load:
            await until(lambda: links.problem is not None)
            assert await links.ask(other, add(other), limit=10) == 1, "the other nodes serve on"
            await until(lambda: links.up)
            answered = load.outcomes["answered"]
            await until(lambda: load.outcomes["answered"] > answered + 20)
        assert load.slowest < 0.3 + 0.5 + 3 * load.lag
    finally:
        lost.thaw()


@pytest.mark.slow
async def test_a_cluster_that_lost_a_part_of_its_slots(tmp_path: Path, connected: Open) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        store, links = await connected(cluster.url)
        cluster.servers[2].kill()
        await until(lambda: "cluster that is down" in f"{links.problem} {store.problem}")
        lost = next(tag for tag in TAGS if slot_of(tag) >= 10923)
        with pytest.raises(NotSent):
            await links.ask(lost, add(lost))
        cluster.servers[2].start()
        await until(lambda: links.up and store.problem is None)
        await asyncio.gather(*(links.ask(tag, add(tag)) for tag in TAGS))


@pytest.mark.usefixtures("patience")
async def test_what_is_told_about_a_wrong_address(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.servers[0].address
    with Server(tmp_path / "single") as single:
        cases = {
            f"redis://:{PASSWORD}@{node}/0": f"write redis.url as redis+cluster://{node}",
            f"redis+cluster://{single.address}": f"write redis.url as redis://{single.address}/0",
            f"redis+cluster://:wrong@{node}": "refuses the user or password",
            f"redis+cluster://{node}": "wants a password",
            "redis+cluster://127.0.0.1:1,127.0.0.1:2": "cannot be reached",
        }
        for url, said in cases.items():
            store = await open_store(url, tmp_path, role="command")
            assert said in str(store.problem), url
            assert PASSWORD not in str(store.problem)
            links = Links(store, LIBRARY)
            await links.close()
            await store.close()
