"""The pipelined link to one server: order, deadlines, and a server that freezes, dies, forgets or refuses."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.exceptions import ResponseError

from providers.errors import StoreUnavailable
from router import link_node, pipe
from router.functions import load
from router.link import Links, NotSent, Refused, Unanswered, pack
from router.pipe import Pipe, Question
from router.store import Store, open_store
from tests.simulators.stores import Server
from tests.store.conftest import LIBRARY, Load, Open, add, echo, until


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        pass


async def test_what_is_asked_in_one_tick_leaves_in_one_write_and_is_answered_in_order() -> None:
    loop = asyncio.get_running_loop()
    wire, made = Wire(), Pipe(loop)
    made.connection_made(wire)
    futures = [loop.create_future() for _ in range(3)]
    for number, future in enumerate(futures):
        made.send(Question(future, pack("ECHO", number), "", loop.time() + 9, True))
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"".join(pack("ECHO", number) for number in range(3))]
    for byte in b"$1\r\n0\r\n:1\r\n*1\r\n$1\r\n2\r\n":
        made.data_received(bytes([byte]))
    assert [await future for future in futures] == [b"0", 1, [b"2"]]
    made.abort()


async def test_answers_go_to_their_questions_whoever_gave_up(server: Server, connected: Open) -> None:
    _, links = await connected(server.url())
    ups: list[None] = []
    links.on_up.append(lambda: ups.append(None))
    chance = random.Random(3)
    for _ in range(20):
        futures = [links.ask("t", echo("t", number), limit=5) for number in range(200)]
        gone = set(chance.sample(range(200), 70))
        for number in sorted(gone)[::2]:
            futures[number].cancel()  # before it was written
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number in gone:
            futures[number].cancel()
        for number in set(range(200)) - gone:
            assert await futures[number] == str(number).encode()
    assert not ups, "the connection was lost"


@pytest.mark.parametrize("command", [("FUNCTION", "FLUSH"), ("SCRIPT", "FLUSH")], ids=" ".join)
async def test_a_flush_of_the_functions_is_not_noticed(
    server: Server, connected: Open, command: tuple[str, str]
) -> None:
    store, links = await connected(server.url())
    async with Load(links, lambda number: (str(number), add(str(number))), limit=10) as load:
        for _ in range(20):
            await store.run(*command)
            await asyncio.sleep(0.01)
    assert set(load.outcomes) == {"answered"}
    counted = sum(int(count) for count in await store.gather([("GET", f"sy:{{{number}}}:n") for number in range(16)]))
    assert counted == load.outcomes["answered"]


async def test_a_frozen_server(server: Server, connected: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Every question ends within 300 ms, later ones at once; two seconds after it runs again all is well."""
    caplog.set_level(logging.INFO, logger="switchyard.store")
    store, links = await connected(server.url())
    ups: list[float] = []
    links.on_up.append(lambda: ups.append(time.monotonic()))
    async with Load(links, lambda number: ("t", add("t"))) as load:
        await until(lambda: load.outcomes["answered"] > 100)
        server.freeze()
        try:
            frozen = time.monotonic()
            await until(lambda: links.problem is not None)
            told = time.monotonic()
            assert not links.up
            assert store.problem is not None
            assert "does not answer" in store.problem
            await asyncio.sleep(2.5)  # longer than one attempt to connect lasts
            assert load.answered_at < told
        finally:
            server.thaw()
        thawed = time.monotonic()
        await until(lambda: load.answered_at > thawed)
        await until(lambda: store.problem is None)
        assert len(ups) == 1
    assert told - frozen < 0.5 + 3 * load.lag
    assert load.slowest < 0.3 + 0.5 + 3 * load.lag  # the machine's own share
    later = [seconds for when, seconds in load.refused if when > told]
    assert len(later) > 100
    assert sorted(later)[len(later) * 9 // 10] < 0.01 + load.lag
    assert load.outcomes["Unanswered"] == 16
    assert [record.getMessage().rpartition("/0 ")[2] for record in caplog.records] == ["does not answer", "answers"]


async def test_a_server_that_is_started_again_is_waited_for(
    server: Server, connected: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.link_node.PATIENCE", 30.0)  # a start takes its time on a busy machine
    _, links = await connected(server.url())
    before = await links.ask("t", add("t"), limit=10)
    server.kill()
    asked = links.ask("t", add("t"), limit=30)
    await asyncio.sleep(0.05)
    server.start()
    assert await asked == before + 1
    assert await links.ask("t", add("t"), limit=10) == before + 2


async def test_a_server_that_stays_away_is_not_waited_for(server: Server, connected: Open) -> None:
    store, links = await connected(server.url())
    server.kill()
    with pytest.raises(StoreUnavailable):  # Unanswered when it was written before the end was seen
        await links.ask("t", add("t"))
    await until(lambda: links.problem is not None and store.problem is not None)
    await until(lambda: "cannot be reached" in str(store.problem))
    async with asyncio.timeout(60):
        for _ in range(100):
            with pytest.raises(NotSent):
                await links.ask("t", add("t"), limit=9)
    server.start()
    await until(lambda: links.up)
    assert await links.ask("t", add("t"), limit=10) == 1


async def test_what_may_not_be_repeated_is_told_as_unanswered(
    server: Server, connected: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.link_node.PATIENCE", 30.0)  # likewise
    _, links = await connected(server.url())
    server.freeze()
    once = links.ask("t", add("t"), limit=30, repeat=False)
    again = links.ask("t", add("t"), limit=30)
    await asyncio.sleep(0.05)
    server.kill()
    with pytest.raises(Unanswered):
        await once
    server.start()
    assert await again == 1


async def test_deadlines_may_differ_and_the_shortest_counts(server: Server, connected: Open) -> None:
    _, links = await connected(server.url())
    server.freeze()
    try:
        long = links.ask("t", echo("t", 1), limit=30)
        short = links.ask("t", echo("t", 2), limit=0.1)
        async with asyncio.timeout(25):
            for future in (short, long):
                with pytest.raises(Unanswered):
                    await future
    finally:
        server.thaw()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_busy_loop_is_no_outage(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    """The answers came in time; the router was late to read them."""
    monkeypatch.setattr(pipe, "LATE_GRACE", 1.0)  # what the server needs to send the rest, on a busy machine

    async def ask() -> None:
        store = await open_store(server.url(), tmp_path, role="command")
        await load(store, LIBRARY)
        links = Links(store, LIBRARY)
        await until(lambda: links.up)
        for _ in range(5):
            # More than one turn of the loop reads.
            texts = [f"{number} " + 8000 * "x" for number in range(200)]
            futures = [links.ask("t", echo("t", text), limit=0.05) for text in texts]
            for _ in range(3):
                await asyncio.sleep(0)
            time.sleep(0.2)
            assert await asyncio.gather(*futures) == [text.encode() for text in texts]
        await links.close()
        await store.close()

    run(ask())


async def test_too_many_are_refused_at_once(server: Server, connected: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_node, "MOST_WAITING", 10)
    _, links = await connected(server.url())
    asked = await asyncio.gather(*(links.ask("t", echo("t", 1), limit=10) for _ in range(15)), return_exceptions=True)
    assert [type(answer) for answer in asked] == [bytes] * 10 + [NotSent] * 5
    server.kill()
    await until(lambda: not links.up)
    asked = await asyncio.gather(*(links.ask("t", echo("t", 1)) for _ in range(15)), return_exceptions=True)
    assert {type(answer) for answer in asked} == {NotSent}


async def test_closing_refuses_who_still_waits(server: Server, connected: Open) -> None:
    _, links = await connected(server.url())
    server.freeze()
    try:
        sent = links.ask("t", echo("t", 1))
        await asyncio.sleep(0.01)
        unsent = links.ask("t", echo("t", 1))
        await links.close()
        with pytest.raises(Unanswered):
            await sent
        with pytest.raises(NotSent):
            await unsent
        with pytest.raises(NotSent):
            await links.ask("t", echo("t", 1))
    finally:
        server.thaw()


# --- what a server may refuse


async def test_out_of_memory(server: Server, connected: Open) -> None:
    store, links = await connected(server.url())
    await store.run("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Refused) as caught:
        await links.ask("t", add("t"), limit=10)
    assert caught.value.word == "OOM"
    assert isinstance(caught.value, ResponseError)
    await store.run("CONFIG", "SET", "maxmemory", "0")
    assert await links.ask("t", add("t"), limit=10) == 1


async def test_too_few_replicas(server: Server, connected: Open) -> None:
    store, links = await connected(server.url())
    await store.run("CONFIG", "SET", "min-replicas-to-write", "1")
    with pytest.raises(Refused) as caught:
        await links.ask("t", add("t"), limit=10)
    assert caught.value.word == "NOREPLICAS"


async def test_a_full_disk(tmp_path: Path, connected: Open) -> None:
    with Server(tmp_path / "server", {"dbfilename": "dump.rdb"}) as server:
        store, links = await connected(server.url())
        (tmp_path / "server" / "dump.rdb").mkdir()  # a snapshot cannot replace it
        await store.run("CONFIG", "SET", "save", "3600 1")
        await store.run("SET", "k", "v")
        await store.run("BGSAVE")
        await until(lambda: server.run("INFO", "persistence")["rdb_last_bgsave_status"] == "err")
        with pytest.raises(Refused) as caught:
            await links.ask("t", add("t"), limit=10)
        assert caught.value.word == "MISCONF"


async def test_busy_with_a_script_of_somebody(server: Server, connected: Open) -> None:
    store, links = await connected(server.url())
    await store.run("CONFIG", "SET", "busy-reply-threshold", "20")
    script = asyncio.create_task(asyncio.to_thread(server.run, "EVAL", "while true do end", 0))
    await until(lambda: "BUSY" in str(server.run_or_error("PING")))
    with pytest.raises(Refused) as caught:
        await links.ask("t", add("t"), limit=10)
    assert caught.value.word == "BUSY"
    server.run("SCRIPT", "KILL")
    with pytest.raises(ResponseError):
        await script
    assert await links.ask("t", add("t"), limit=5) > 0


async def test_a_server_that_became_a_replica(server: Server, connected: Open) -> None:
    store, links = await connected(server.url())
    server.run("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(NotSent):
        await links.ask("t", add("t"), limit=10)
    await until(lambda: "read-only replica" in str(links.problem) and "read-only replica" in str(store.problem))
    server.run("REPLICAOF", "NO", "ONE")
    await until(lambda: links.up and store.problem is None)
    assert await links.ask("t", add("t"), limit=10) == 1


async def test_a_server_that_is_still_loading(tmp_path: Path, connected: Open) -> None:
    with Server(tmp_path / "server") as server:
        store, links = await connected(server.url())
        await store.gather([("SET", f"k{number}", "v" * 1000) for number in range(600)])
        await store.run("SAVE")
    slow = {"loading-process-events-interval-bytes": 1024, "key-load-delay": 10_000}  # until it is told to go on
    again = Server(tmp_path / "server", slow, port=server.port)
    try:
        again.launch()
        await until(lambda: "loading" in f"{store.problem} {links.problem}")
        with pytest.raises(NotSent):
            await links.ask("t", add("t"))
        again.run("CONFIG", "SET", "key-load-delay", 0)
        await until(lambda: links.up and store.problem is None)
        assert await links.ask("t", add("t"), limit=10) == 1
    finally:
        again.kill()


async def test_a_full_memory_takes_no_library(server: Server, connected: Open) -> None:
    store, links = await connected(server.url())
    await store.run("FUNCTION", "FLUSH")
    await store.run("CONFIG", "SET", "maxmemory", "1")
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            await links.ask("t", add("t"), limit=10)
        assert caught.value.word == "OOM"
    await store.run("CONFIG", "SET", "maxmemory", "0")
    await asyncio.sleep(2 * link_node.AGAIN_PAUSE)
    assert await links.ask("t", add("t"), limit=10) == 1


async def test_a_password_that_changed(tmp_path: Path, connected: Open) -> None:
    with Server(tmp_path / "server", password="canary-old") as server:
        store, links = await connected(server.url())
        assert await links.ask("t", add("t"), limit=10) == 1
        await store.run("CONFIG", "SET", "requirepass", "canary-new")
        server.password = "canary-new"
        server.run("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(StoreUnavailable) as caught:
            await links.ask("t", add("t"))
        await until(lambda: "refuses the user or password" in f"{links.problem} {store.problem}")
        assert "canary" not in f"{caught.value} {links.problem} {store.problem} {links!r} {links.login!r}"
        assert "canary" not in f"{store.servers!r}"
        server.run("CONFIG", "SET", "requirepass", "canary-old")
        server.password = "canary-old"
        await until(lambda: links.up and store.problem is None)
        assert await links.ask("t", add("t"), limit=10) == 2


async def test_a_database_and_a_user_of_ones_own(server: Server, connected: Open) -> None:
    server.run("ACL", "SETUSER", "switchyard", "on", ">p%w", "~sy:*", "+@all")
    store, links = await connected(server.url(3).replace("redis://", "redis://switchyard:p%25w@"))
    assert await links.ask("t", add("t"), limit=10) == 1
    assert list(await store.run("INFO", "keyspace")) == ["db3"]
    with pytest.raises(Refused) as caught:
        await links.ask("t", pack("GET", "other"), limit=10)
    assert caught.value.word == "NOPERM"


async def test_something_that_is_no_redis(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read(1000)
        writer.close()

    other = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    store: Store = await open_store(f"redis://127.0.0.1:{port}/0", tmp_path)
    links = Links(store, LIBRARY)
    with pytest.raises(NotSent):
        await links.ask("t", add("t"))
    await until(lambda: "cannot be reached" in str(links.problem))
    await links.close()
    await store.close()
    other.close()
    await other.wait_closed()
