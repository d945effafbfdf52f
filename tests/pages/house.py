"""The pages over keys in a real store, on a real socket, with a clock that can be turned on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import uvicorn

from router.admin import admin_app
from router.admin.pages.overview_page import Facts
from router.admin.pages.routes import Setup
from router.credentials import load_peppers
from router.keys import Change, Key, Keys
from router.pepper import Pepper
from router.store import Store, open_store
from router.throttle import Throttle
from tests.pages.site import Site

TOKEN = "an-admin-token-for-tests"
STATE: dict[str, Any] = {
    "status": "ready",
    "store": "ok",
    "store_warnings": [],
    "config": "ok",
    "workers": {},
    "local_models": {},
    "providers": {"cloud": "on"},
    "unhealthy": {},
}
GAUGES: dict[str, Mapping[tuple[str, ...], float]] = {}


names = count(1)


class House:
    """Keys in a real store, and the pages over them on a real socket. `later` turns the clock on; the one that counts
    wrong secrets stands still but for that."""

    def __init__(self, store: Store, tmp_path: Path) -> None:
        self.later = 0.0
        self.keys = Keys(
            store,
            Pepper(*load_peppers(tmp_path, {})),
            admin_token=TOKEN,
            clock=lambda: time.time() + self.later,
        )
        self.keys.throttle = Throttle(lambda: self.later)
        self.port = 0

    def site(self) -> Site:
        """A visitor from an address of his own."""
        number = next(names)
        return Site(self.port, always={"x-from": f"127.0.{number // 250}.{number % 250 + 1}"})

    async def key(self, **fields: Any) -> tuple[Key, str]:
        """A key with a name of its own, and its credential."""
        return await self.keys.create(Change(name=f"key {next(names)}", **fields))

    async def sign_in(self, secret: str) -> Site:
        site = self.site()
        answer = await asyncio.to_thread(site.sign_in, secret)
        assert answer.status == 303, answer
        return site

    async def signed_in(self, site: Site) -> bool:
        return await asyncio.to_thread(site.signed_in)

    async def names(self) -> list[str]:
        return sorted(name.decode() for name in await self.keys.cabinet.ask("KEYS", "sy:session*"))


@asynccontextmanager
async def opened_house(path: Path) -> AsyncIterator[House]:
    async def describe() -> tuple[bool, Mapping[str, Any]]:
        return True, STATE

    store = await open_store("embedded", path)
    house = House(store, path)
    facts = Facts("switchyard.yaml", "0123456789ab", 0.0, None, frozenset(), {"cloud": ["CLOUD_API_KEY"]})
    setup = Setup(
        house.keys, describe, lambda name: GAUGES.get(name, {}), lambda: facts, lambda: 7.0, lambda: False, "1.2.3"
    )
    inner = admin_app(house.keys, describe, lambda: 7.0, lambda: setup)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        # As router.app does behind a trusted proxy.
        told = dict(scope["headers"])
        address = told.get(b"x-from", b"127.0.0.1").decode()
        scheme = told.get(b"x-scheme", b"http").decode()
        answering = asyncio.ensure_future(inner({**scope, "client": (address, 1), "scheme": scheme}, receive, send))
        if scope["path"] == "/admin/live":
            while (await receive())["type"] != "http.disconnect":
                pass
            answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering

    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error", ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    house.port = server.servers[0].sockets[0].getsockname()[1]
    yield house
    server.should_exit = True
    await serving
    await store.close()
