"""Very many ask the store at once: they wait for each other, and nobody takes that for a store that is away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from router import store_client
from router.store import Store, explain, open_store
from router.store_client import TURNS, Crowded, Turns, care
from tests.simulators.stores import Cluster, Sentinels, Server
from tests.store.conftest import until

CROWD = 5 * TURNS


async def crowd(store: Store) -> None:
    """All are answered, whatever they ask, and the store counts as there meanwhile."""
    single = [store.run("GET", f"k{n}") for n in range(CROWD)]
    many = [store.gather([("GET", f"a{n}"), ("GET", f"b{n}")]) for n in range(CROWD)]
    waiting = asyncio.gather(*single, *many)
    problems = await asyncio.gather(*(store.ready() for _ in range(CROWD)))
    assert set(problems) == {None}
    assert len(await waiting) == 2 * CROWD


@pytest.mark.usefixtures("patience")
async def test_a_crowd_at_one_server(server: Server, tmp_path: Path) -> None:
    store = await open_store(server.url(), tmp_path)
    try:
        await crowd(store)
        before = (await cast("Any", store.redis).info("commandstats"))["cmdstat_ping"]["calls"]
        await asyncio.gather(*(store.ready() for _ in range(CROWD)))
        pings = (await cast("Any", store.redis).info("commandstats"))["cmdstat_ping"]["calls"] - before
        assert 1 <= pings <= 3  # one question for all; the watcher may have asked too
    finally:
        await store.close()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("kind", [Sentinels, Cluster])
async def test_a_crowd_at_several_servers(kind: type[Sentinels] | type[Cluster], tmp_path: Path) -> None:
    with kind(tmp_path / "servers") as servers:
        store = await open_store(servers.url, tmp_path)
        try:
            await until(lambda: store.problem is None)
            await crowd(store)
        finally:
            await store.close()


@pytest.mark.usefixtures("patience")
async def test_a_gate_that_comes_while_a_question_is_under_way_is_passed_too(server: Server, tmp_path: Path) -> None:
    store = await open_store(server.url(), tmp_path)
    passed = []

    async def gate() -> None:
        passed.append(await store.run("PING"))

    try:
        asking = asyncio.create_task(store.ready())
        await asyncio.sleep(0)
        store.add_gate(gate)
        assert await store.ready() is None
        assert passed == [True]
        await asking
    finally:
        await store.close()


@pytest.mark.usefixtures("patience")
async def test_who_asks_a_store_that_is_closed_meanwhile_is_answered(server: Server, tmp_path: Path) -> None:
    store = await open_store(server.url(), tmp_path)
    reached = asyncio.Event()

    async def gate() -> None:
        reached.set()
        await asyncio.Event().wait()

    store.add_gate(gate)
    asking = [asyncio.create_task(store.ready()) for _ in range(3)]
    await reached.wait()
    asking[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking[0]
    assert not asking[1].done(), "who leaves does not end the question"
    await store.close()
    assert await asyncio.gather(*asking[1:]) == [store.problem] * 2


async def test_who_waits_too_long_is_told_that_it_is_the_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_client, "TURN_LIMIT", 0.01)
    turns = Turns(1)
    async with turns.one():
        with pytest.raises(Crowded) as refused:
            async with turns.one():
                pass
        assert explain("redis:6379", refused.value) == "the store at redis:6379 is asked too much at once"

        async def looks_after_the_store() -> None:
            care()
            async with turns.one():
                pass

        await asyncio.create_task(looks_after_the_store())
    async with turns.one():  # given back
        pass
