"""A store at an address: what is checked, what is told, and that no password is."""

# ruff: noqa: ASYNC110 - waits for other processes

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from os import environ
from pathlib import Path

import pytest

from router.embedded import find_binary
from router.store import Store, StoreError, open_store
from tests.simulators.ports import free_port
from tests.simulators.stores import Server, until

PASSWORD = "canary-p4ssword"


def start(port: int, directory: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            find_binary(environ),
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(directory),
            "--save",
            "",
            *options,
        ],
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(port: int, tmp_path: Path) -> Iterator[int]:
    with start(port, tmp_path, "--requirepass", PASSWORD, "--maxmemory-policy", "allkeys-lru") as process:
        yield port
        process.terminate()


async def until_ready(store: Store) -> None:
    async with asyncio.timeout(60):
        while await store.ready() is not None:
            await asyncio.sleep(0.02)


async def test_eviction_and_missing_persistence_are_warned_about(server: int, tmp_path: Path) -> None:
    store = await open_store(f"redis://:{PASSWORD}@127.0.0.1:{server}/0", tmp_path)
    await until_ready(store)
    assert len(store.warnings) == 2
    assert "maxmemory-policy noeviction" in store.warnings[0]
    assert "appendonly yes" in store.warnings[1]
    assert PASSWORD not in f"{store!r} {store.name} {store.warnings} {store.redis!r}"
    await store.close()


@pytest.mark.usefixtures("patience")
async def test_a_server_that_reads_its_append_only_file_is_not_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path / "server", {"appendonly": "yes"}, valkey=True).start()
    try:
        with server.client() as client, client.pipeline(transaction=False) as many:
            for number in range(30_000):  # it answers after each 1024
                many.set(str(number), "x")
            many.execute()
        server.kill()
        # So slow that it reads until it is told to go on.
        server.launch("--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024")
        with server.client() as client:
            until(lambda: "'loading': 1" in str(server.run_or_error("INFO", "persistence")), "it reads its file")
            store = await open_store(server.url(), tmp_path)
            assert client.info()["aof_enabled"] == 0, "what the store has just been told"
            client.config_set("key-load-delay", 0)
        await until_ready(store)
        assert store.warnings == ()
        assert "append-only" not in caplog.text
        await store.close()
    finally:
        server.kill()


async def test_a_wrong_password_is_said_and_not_shown(server: int, tmp_path: Path) -> None:
    store = await open_store(f"redis://:{PASSWORD}x@127.0.0.1:{server}/0", tmp_path)
    async with asyncio.timeout(60):
        while "refuses the user or password" not in str(await store.ready()):
            await asyncio.sleep(0.02)
    assert PASSWORD not in str(store.problem)
    await store.close()


async def test_a_store_that_is_down_at_the_start_is_found_when_it_comes(port: int, tmp_path: Path) -> None:
    store = await open_store(f"redis://127.0.0.1:{port}/0", tmp_path)
    assert "cannot be reached" in str(store.problem)
    gates: list[int] = []

    async def gate() -> str | None:
        gates.append(1)
        return None

    store.add_gate(gate)
    with start(port, tmp_path) as process:
        async with asyncio.timeout(60):
            while store.problem is not None:
                await asyncio.sleep(0.02)
        assert gates
        await store.close()
        process.terminate()


async def test_options_in_the_url_do_not_turn_retries_on(port: int, tmp_path: Path) -> None:
    store = await open_store(f"redis://127.0.0.1:{port}/0?socket_timeout=60&retry_on_timeout=true", tmp_path)
    settings = store.redis.connection_pool.connection_kwargs
    assert settings["socket_timeout"] <= 0.5
    assert settings["retry_on_timeout"] is False
    assert settings["retry"].get_retries() == 0
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        f"http://u:{PASSWORD}@h/0",
        f"redis://u:{PASSWORD}/@host:6379/0",
        f"redis://u:{PASSWORD}@host:{PASSWORD}/0",
        PASSWORD,
    ],
)
async def test_a_url_that_is_none_is_refused_without_repeating_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="percent-encoded") as caught:
        await open_store(url, tmp_path)
    assert PASSWORD not in f"{caught.value} {caught.value.__cause__}"
