"""A primary that Sentinels watch: found, followed over a failover, and what is said when it is not found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.functions import call
from router.store import open_store
from tests.simulators.stores import Sentinels, Server
from tests.store.conftest import LIBRARY, Load, Open, add, until

PASSWORD = "canary-p4ssword"


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    with Sentinels(tmp_path / "sentinels", password=PASSWORD) as running:
        yield running


async def test_a_failover_is_followed(sentinels: Sentinels, connected: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="switchyard.store")
    store, links = await connected(sentinels.url)
    assert PASSWORD not in f"{store!r} {store.redis!r} {store.servers!r}"
    old = sentinels.primary
    async with Load(links, lambda number: (str(number), add(str(number)))) as load:
        await until(lambda: load.outcomes["answered"] > 100)
        await until(lambda: int(sentinels.servers[1].run("INFO", "replication")["master_repl_offset"]) > 0)
        old.kill()
        await until(lambda: store.problem is not None)
        await until(lambda: links.up and sentinels.primary is not old)
        await until(lambda: store.problem is None)
        answered = load.outcomes["answered"]
        await until(lambda: load.outcomes["answered"] > answered + 100)
    assert load.slowest < 0.3 + 0.5 + 3 * load.lag
    # The functions came with the replication, or were loaded when they were missed.
    assert await call(store, "echo", ["k"], ["hello"], LIBRARY) == b"hello"
    words = [record.levelname for record in caplog.records if "sentinel" in record.getMessage()]
    assert words == ["WARNING", "INFO"], caplog.text


async def test_a_primary_that_wakes_up_too_late_is_not_returned_to(sentinels: Sentinels, connected: Open) -> None:
    """It wakes up while it is being tried, and still believes that it is the primary."""
    _, links = await connected(sentinels.url)
    old = sentinels.primary
    old.freeze()
    try:
        async with Load(links, lambda number: ("t", add("t"))) as load:
            await until(lambda: links.problem is not None)
            await until(lambda: sentinels.primary is not old)
    finally:
        old.thaw()
    assert load.slowest < 0.3 + 0.5 + 3 * load.lag
    await until(lambda: links.up)
    assert await links.ask("t", add("t", "after"), limit=10) == 1
    assert sentinels.primary.run("GET", "sy:{t}:after") == b"1"
    for count in range(2, 20):
        assert await links.ask("t", add("t", "after"), limit=10) == count
        await asyncio.sleep(0.05)


def switched(sentinels: Sentinels) -> bool:
    """Ask for a switch; whether it begins. A Sentinel takes a replica only once it has heard that it follows well, and
    may have begun one by itself when the primary was slow."""
    answer = sentinels.sentinels[0].run_or_error("SENTINEL", "FAILOVER", "main")
    assert answer in (b"OK", True) or "NOGOODSLAVE" in answer or "INPROG" in answer, answer
    return answer in (b"OK", True) or "INPROG" in answer


async def test_a_switch_by_hand_is_followed(sentinels: Sentinels, connected: Open) -> None:
    _, links = await connected(sentinels.url)
    old = sentinels.primary
    async with Load(links, lambda number: ("t", add("t"))) as load:
        await until(lambda: load.outcomes["answered"] > 10)
        await until(lambda: switched(sentinels))
        await until(lambda: sentinels.primary is not old)
        new = sentinels.primary
        promoted_with = int(new.run("GET", "sy:{t}:n") or 0)
        await until(lambda: int(new.run("GET", "sy:{t}:n") or 0) > promoted_with + 100)
    assert load.slowest < 0.3 + 0.5 + 3 * load.lag
    assert await links.ask("t", add("t"), limit=10) == int(new.run("GET", "sy:{t}:n") or 0)


async def test_sentinels_may_be_down_while_one_answers(sentinels: Sentinels, connected: Open) -> None:
    sentinels.sentinels[0].freeze()
    sentinels.sentinels[1].kill()
    try:
        store, links = await connected(sentinels.url)
        assert await links.ask("t", add("t"), limit=10) == 1
        assert await store.gather([("GET", "sy:{t}:n"), ("GET", "other")]) == [b"1", None]
    finally:
        sentinels.sentinels[0].thaw()


@pytest.mark.usefixtures("patience")
async def test_what_is_told_when_no_primary_is_found(sentinels: Sentinels, tmp_path: Path) -> None:
    cases = {
        sentinels.url.replace("/main", "/other"): "know no service named 'other'",
        f"redis+sentinel://:{PASSWORD}@{sentinels.servers[0].address}/main": "must list Sentinels",
        "redis+sentinel://127.0.0.1:1,127.0.0.1:2/main": "none of the Sentinels answers",
        sentinels.url.replace(PASSWORD, "wrong"): "refuses the user or password",
        f"redis://{sentinels.sentinels[0].address}/0": f"redis+sentinel://{sentinels.sentinels[0].address}/<",
    }
    for url, said in cases.items():
        store = await open_store(url, tmp_path, role="command")
        assert said in str(store.problem), url
        assert PASSWORD not in str(store.problem)
        await store.close()


@pytest.mark.usefixtures("patience")
async def test_sentinels_with_a_password_of_their_own(tmp_path: Path, connected: Open) -> None:
    with Server(tmp_path / "primary") as primary:
        config = tmp_path / "sentinel.conf"
        config.write_text(f"bind 127.0.0.1\nrequirepass of-its-own\nsentinel monitor main 127.0.0.1 {primary.port} 1\n")
        with Server(tmp_path / "sentinel", sentinel=config, password="of-its-own") as sentinel:
            url = f"redis+sentinel://{sentinel.address}/main"
            store = await open_store(url, tmp_path, role="command")
            assert "?sentinel_password=" in str(store.problem)
            await store.close()
            _, links = await connected(f"{url}?sentinel_password=of-its-own")
            assert await links.ask("t", add("t"), limit=10) == 1
