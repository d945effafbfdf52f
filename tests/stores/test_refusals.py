"""A store that answers, but refuses: full, read-only, busy, loading, changed its password, lost its functions; or that
is far away."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from router.functions import library
from tests.router.test_serve import Connections
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import UNHURRIED
from tests.simulators.stores import Server, until
from tests.simulators.waiting import Pulse
from tests.stores.conftest import Build, Record
from tests.stores.delay import Delay
from tests.stores.paid import Paid
from tests.stores.stands import House, Stand, housed


@pytest.fixture
def home(build: Build) -> House:
    return build("redis")


@pytest.fixture
def unhurried(build: Build) -> House:
    """Its calls wait for the store as long as they must: what is refused is not refused for a busy machine."""
    return build("redis", env=UNHURRIED)


def server(home: House) -> Server:
    assert isinstance(home.stand.box, Server)
    return home.stand.box


def refused(client: Client, *words: str) -> None:
    reply = client.ask(OPENAI, "sim/even", stream=False)
    assert (reply.status, reply.json["error"]["code"]) == (503, "quota_store"), reply.body
    assert all(word in reply.json["error"]["message"] for word in words), reply.json
    assert float(reply.headers["retry-after"]) > 0


def served(client: Client) -> bool:
    return client.ask(OPENAI, "sim/even", stream=False).status == 200


@contextmanager
def running_stream(home: House, key: str, seconds: int = 3) -> Iterator[None]:
    """A call that was admitted before what happens in the block, and ends during it or after."""
    with home.load(key, model=f"sim/lasting@{seconds}", callers=4, most=1, stream=True) as load:
        until(lambda: len(home.paid.asked(f"lasting@{seconds}")) == 4, "the streams run")
        yield
        load.wait()
    assert [outcome.complete for outcome in load.outcomes] == [True] * 4


def exact(home: House, key_id: str) -> None:
    books = home.books()
    sums = home.paid.sums()
    assert {name: books.usage(key_id)[name] for name in sums} == dict(sums)
    assert max(books.ended().values()) == 1


def loading(store: Server) -> bool:
    """By a bare socket: the client library would wait until it is over."""
    try:
        with socket.create_connection(("127.0.0.1", store.port), timeout=1) as link:
            link.sendall(b"GET x\r\n")
            return link.recv(100).startswith(b"-LOADING")
    except OSError:
        return False


def out_of_memory(store: Server) -> None:
    store.run("CONFIG", "SET", "maxmemory", "1mb")


def enough_memory(store: Server) -> None:
    store.run("CONFIG", "SET", "maxmemory", "0")


def too_few_replicas(store: Server) -> None:
    store.run("CONFIG", "SET", "min-replicas-to-write", "1")


def replicas_not_needed(store: Server) -> None:
    store.run("CONFIG", "SET", "min-replicas-to-write", "0")


def unwritable(store: Server) -> None:
    """As after a snapshot that the disk did not take."""
    store.run("CONFIG", "SET", "save", "1 1")
    (store.directory / "dump.rdb").mkdir(exist_ok=True)  # what is written cannot take this name
    store.run("SET", "something", "else")
    until(lambda: store.run("INFO", "persistence")["rdb_last_bgsave_status"] == "err", "the snapshot fails")


def writable(store: Server) -> None:
    store.run("CONFIG", "SET", "save", "")
    store.run("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")


@pytest.mark.parametrize(
    ("break_it", "mend_it", "word", "settles"),
    [
        pytest.param(out_of_memory, enough_memory, "out of memory", True, id="OOM"),
        pytest.param(unwritable, writable, "cannot write its disk", False, id="MISCONF", marks=pytest.mark.slow),
        pytest.param(
            too_few_replicas, replicas_not_needed, "too few replicas", False, id="NOREPLICAS", marks=pytest.mark.slow
        ),
    ],
)
def test_writes_are_refused(
    unhurried: House, break_it: Callable[[Server], None], mend_it: Callable[[Server], None], word: str, settles: bool
) -> None:
    """Nothing is admitted; what runs ends well and is settled, at once or when the store takes it again."""
    home = unhurried
    key_id, key = home.key("writes")
    client = home.client(key)
    assert served(client)
    with running_stream(home, key):
        break_it(server(home))
        for _ in range(4):
            refused(client, word)
        until(lambda: home.ready().status == 503, "the router says that it is not ready")
        until(lambda: word in home.ready().json["store"], "and why")
    if settles:
        exact(home, key_id)  # full as it is
        refused(client, word)
    else:
        until(lambda: len(home.journal()) == 4, "the settlements are kept")
        assert len(home.paid.calls) == 5, "nobody was asked who could not be paid"
    mend_it(server(home))
    until(lambda: served(client), "calls are admitted again")
    until(lambda: all(served(client) for _ in range(8)), "by both workers")
    until(lambda: all(home.ready().status == 200 for _ in range(4)), "the router says that it is ready")
    exact(home, key_id)


def test_functions_are_flushed_under_load(unhurried: House, record_property: Record) -> None:
    key_id, key = unhurried.key("flushed")
    with unhurried.load(key, max_tokens=50) as load:
        for number in range(10):
            until(lambda number=number: len(load.answered()) > 50 * (number + 1), "load")  # type: ignore[misc]  # a default
            server(unhurried).run("FUNCTION", "FLUSH")
    print(load.told())
    record_property("figures", load.told())
    assert load.statuses.keys() == {200}
    exact(unhurried, key_id)


def test_busy_with_somebodys_script(home: House, record_property: Record) -> None:
    key_id, key = home.key("busy")
    store = server(home)
    store.run("CONFIG", "SET", "busy-reply-threshold", "50")
    script = threading.Thread(target=store.run_or_error, args=("EVAL", "while true do end", 0), daemon=True)
    with (
        Connections(home.router) as both,
        Pulse(lambda: both.statuses("GET", "/healthz", "")) as pulse,
        home.load(key, max_tokens=50) as load,
    ):
        until(lambda: len(load.answered()) > 100, "load")
        began = time.monotonic()
        script.start()
        until(lambda: len([o for o in load.refused() if o.began > began]) > 100, "calls are refused")
        until(lambda: store.run_or_error("SCRIPT", "KILL") == b"OK", "the script is ended")
        ended = time.monotonic()
        until(lambda: sum(o.status == 200 for o in load.since(ended + 1)) > 50, "service is back")
    script.join(60)
    print(load.told(), f"back after {load.gap(ended):.2f} s")
    record_property("figures", load.told())
    assert load.statuses.keys() == {200, 503}
    assert {outcome.code for outcome in load.refused()} == {"quota_store"}
    still = pulse.standstill(0.0, math.inf)
    assert load.slowest() <= 0.3 + 0.5 + 3 * load.lag + still, load.told()
    assert load.gap(ended) <= 2.0 + still
    exact(home, key_id)


@pytest.mark.slow
def test_loading_its_data(home: House) -> None:
    """A server that was restarted with much to read: it answers, and says that it is not ready."""
    key_id, key = home.key("loading")
    client = home.client(key)
    assert served(client)
    home.books()
    store = server(home)
    store.run("EVAL", "for i = 1, 20000 do redis.call('SET', 'filler' .. i, string.rep('x', 500)) end", 0)
    store.kill()
    store.launch("--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024")
    until(lambda: loading(store), "it is there")
    seen = set()
    while loading(store):
        reply = client.ask(OPENAI, "sim/even", stream=False)
        seen.add(reply.status)
        if home.ready().status == 503 and "loading" in str(home.ready().json["store"]):
            seen.add(0)
    assert seen == {503, 0}
    until(lambda: all(served(client) for _ in range(8)), "calls are admitted again")
    exact(home, key_id)


@pytest.mark.slow
def test_another_password_while_running(home: House) -> None:
    key_id, key = home.key("password")
    client = home.client(key)
    store = server(home)
    assert served(client)
    with running_stream(home, key):
        store.run("CONFIG", "SET", "requirepass", "another-p4ssword")
        store.password = "another-p4ssword"
        store.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        until(lambda: client.ask(OPENAI, "sim/even", stream=False).status == 503, "it is noticed")
        refused(client)
        until(lambda: "password" in str(home.ready().json["store"]), "what is wrong is told")
    assert "another-p4ssword" not in "\n".join(home.router.err)
    store.run("CONFIG", "SET", "requirepass", "")
    store.password = None
    until(lambda: all(served(client) for _ in range(8)), "calls are admitted again")
    exact(home, key_id)


@pytest.mark.slow
def test_a_far_store(tmp_path: Path, paid: Paid, record_property: Record) -> None:
    """50 ms away: everything works, and waits for one round trip to begin a call; 300 ms away: nothing does."""
    with Server(tmp_path / "redis", {"appendonly": "yes"}) as store, Delay(store.port, 0.05) as wire:
        near = Stand(store)
        far = _Far(store, wire)
        with housed(far, tmp_path / "router", paid) as home:
            key_id, key = home.key("far", limits={"concurrency": 500})
            with home.load(key, pace=0.1, max_tokens=50) as load:
                until(lambda: len(load.answered()) > 400, "load")
                assert home.ready().status == 200
            print(load.told())
            record_property("figures", load.told())
            assert load.statuses.keys() == {200}
            assert 0.05 <= load.slowest(0.5) < 0.12
            home.stand = near
            exact(home, key_id)
            with home.load(key, pace=0.1, max_tokens=50) as load:
                until(lambda: len(load.answered()) > 50, "load")
                wire.seconds = 0.4
                turned = time.monotonic()
                until(lambda: len([o for o in load.refused() if o.began > turned]) > 100, "calls are refused")
                wire.seconds = 0.0
                turned = time.monotonic()
                until(lambda: sum(o.status == 200 for o in load.since(turned + 2)) > 50, "service is back", 20)
            print(load.told())
            assert load.statuses.keys() == {200, 503}
            assert load.slowest() <= 0.3 + 0.5 + 3 * load.lag
            exact(home, key_id)


class _Far(Stand):
    def __init__(self, store: Server, wire: Delay) -> None:
        super().__init__(store)
        self._wire = wire

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._wire.port}/0"


def test_two_hundred_callers_at_once(unhurried: House, record_property: Record) -> None:
    """There is no pool to run dry: questions share one connection, and a queue that is bounded."""
    key_id, key = unhurried.key("many", limits={"concurrency": 1000})
    with unhurried.load(key, callers=200, most=10, pace=0, max_tokens=50) as load:
        load.wait()
    print(load.told())
    record_property("figures", load.told())
    assert load.statuses == {200: 2000}
    with server(unhurried).client() as told:
        clients = [line for line in told.client_list() if line["name"] == "switchyard"]
    assert len(clients) <= 12, "a handful for three processes"
    exact(unhurried, key_id)


def test_no_function_is_known_by_another_name(unhurried: House) -> None:
    """The library that is loaded is this version's: what a FLUSH took is what was put back."""
    _, key = unhurried.key("names")
    server(unhurried).run("FUNCTION", "FLUSH")
    assert served(unhurried.client(key))
    (found,) = server(unhurried).run("FUNCTION", "LIST")
    assert library().version in str(found)
