"""The function library: names with a version, loading, and a server that lost it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from router import functions
from router.functions import Library, call, load
from router.store import open_store
from tests.simulators.stores import Server
from tests.store.conftest import LIBRARY, TEXT, Open

pytestmark = pytest.mark.usefixtures("patience")


def test_a_version_is_in_every_name() -> None:
    other = Library.of(TEXT + b"-- changed\n")
    assert other.version != LIBRARY.version
    assert LIBRARY.name("add") == f"add_{LIBRARY.version}".encode()
    assert b"@VERSION@" not in LIBRARY.code
    assert functions.library().name("put") == functions.name("put")
    assert functions.fcall("put", ["k"], ["", 1]).startswith(b"*6\r\n$5\r\nFCALL\r\n")


async def test_loading_is_for_all_versions_of_routers_at_any_time(server: Server, connected: Open) -> None:
    store, _ = await connected(server.url())
    other = Library.of(TEXT.replace(b"INCRBY", b"DECRBY"))
    await asyncio.gather(*(load(store, text) for text in (LIBRARY, other, functions.library()) for _ in range(3)))
    assert len(server.run("FUNCTION", "LIST")) == 3
    assert await call(store, "add", ["k"], [5], LIBRARY) == 5
    with pytest.raises(ResponseError, match="not found"):
        await store.run("FCALL", "add_00000000", 1, "k", 5)


async def test_the_routers_own_library_loads_on_both_kinds_of_server(server: Server, tmp_path: Path) -> None:
    store = await open_store(server.url(), tmp_path, role="command")
    await load(store)
    listed = server.run("FUNCTION", "LIST")
    assert functions.library().version in repr(listed)
    await store.close()


async def test_a_call_loads_what_is_missing_once(server: Server, connected: Open) -> None:
    store, _ = await connected(server.url())
    server.run("FUNCTION", "FLUSH")
    assert await call(store, "add", ["k"], [1], LIBRARY) == 1
    assert await call(store, "add", ["k"], [1], LIBRARY) == 2


async def test_a_text_that_the_server_refuses(server: Server, connected: Open) -> None:
    store, _ = await connected(server.url())
    with pytest.raises(ResponseError, match="Error compiling"):
        await load(store, Library.of(b"#!lua name=broken_@VERSION@\nnonsense("))
