"""Stores that are real servers, a small function library, and links to them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from providers.errors import StoreUnavailable
from router import nodes, store_client
from router import store as stores
from router.functions import Library, load
from router.link import Links, pack
from router.store import Store, open_store
from tests.simulators.stores import Server

KEPT = {"appendonly": "yes"}
"""A server that is killed comes back with all it answered."""
PATIENT = 30.0
"""Seconds for what takes a moment, but on a busy machine."""
TEXT = b"""#!lua name=switchyard_@VERSION@
redis.register_function('add_@VERSION@', function(keys, arguments)
  return redis.call('INCRBY', keys[1], arguments[1])
end)
redis.register_function('echo_@VERSION@', function(keys, arguments) return arguments[1] end)
"""
LIBRARY = Library.of(TEXT)

Open = Callable[[str], Awaitable[tuple[Store, Links]]]


def add(tag: str, name: str = "n") -> bytes:
    """Counts one; not idempotent, so that a repetition shows."""
    return pack("FCALL", LIBRARY.name("add"), 1, f"sy:{{{tag}}}:{name}", 1)


def echo(tag: str, text: object) -> bytes:
    return pack("FCALL", LIBRARY.name("echo"), 1, f"sy:{{{tag}}}:n", str(text))


async def until(true: Callable[[], object], seconds: float = 60.0) -> float:
    """Wait; how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - waits for other processes
            await asyncio.sleep(0.005)
    return time.monotonic() - began


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than a store has to answer. Not for tests of servers that fall silent."""
    monkeypatch.setattr(store_client, "TURN_LIMIT", PATIENT)
    monkeypatch.setattr(stores, "ANSWER_LIMIT", PATIENT)
    monkeypatch.setattr(stores, "CONNECT_LIMIT", PATIENT)
    monkeypatch.setattr(nodes, "ASK_LIMIT", PATIENT)
    monkeypatch.setitem(store_client._CLIENT, "socket_timeout", PATIENT)


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server", KEPT, valkey=request.param == "valkey") as running:
        yield running


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server", KEPT) as running:
        yield running


@pytest.fixture
async def connected(tmp_path: Path) -> AsyncIterator[Open]:
    """connected(url): the watched store and links that are up."""
    async with AsyncExitStack() as opened:

        async def connect(url: str) -> tuple[Store, Links]:
            with pytest.MonkeyPatch.context() as patch:
                if "sentinel" not in url:  # its client waits as long for a Sentinel that says nothing
                    patch.setitem(store_client._CLIENT, "socket_timeout", PATIENT)
                store = await open_store(url, tmp_path / "data")
            opened.push_async_callback(store.close)
            links = Links(store, LIBRARY)
            opened.push_async_callback(links.close)
            await until(lambda: links.up and store.problem is None)
            await load(store, LIBRARY)
            return store, links

        yield connect


class Load:
    """Callers that ask without a pause, and what became of it."""

    def __init__(
        self, links: Links, command: Callable[[int], tuple[str, bytes]], callers: int = 16, limit: float = 0.2
    ) -> None:
        """limit: seconds that an answer may take."""
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.lag = 0.0
        """The longest that this loop itself was kept waiting: a busy machine's share of the times."""
        self.answered_at = 0.0
        """When the last answer came (monotonic)."""
        self.refused: list[tuple[float, float]] = []
        """(when, after how many seconds)"""
        self._links = links
        self._command = command
        self._callers = callers
        self._limit = limit
        self._ends = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(self._callers)]
        self._tasks.append(asyncio.create_task(self._watch()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ends = True
        await asyncio.gather(*self._tasks)

    async def _watch(self) -> None:
        while not self._ends:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            self.lag = max(self.lag, time.monotonic() - began - 0.01)

    async def _ask(self, number: int) -> None:
        while not self._ends:
            began = time.monotonic()
            try:
                await self._links.ask(*self._command(number), limit=self._limit)
                outcome = "answered"
                self.answered_at = time.monotonic()
            except StoreUnavailable as error:
                outcome = type(error).__name__
                self.refused.append((began, time.monotonic() - began))
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.outcomes[outcome] += 1
            await asyncio.sleep(0.001)
