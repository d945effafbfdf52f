"""The pages while the store is away: what who is signed in still sees, what ends, and what comes back by itself."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from providers.errors import StoreUnavailable
from router.admin.pages import routes, sessions
from router.keys import Change, open_keys
from router.store import Store, open_store
from tests.pages.house import TOKEN, House, opened_house
from tests.pages.site import SECONDS, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_without_the_store_who_was_just_seen_still_sees_the_last_numbers(tmp_path: Path) -> None:
    async with opened_house(tmp_path) as house:
        _, credential = await house.key()
        site, mine, unseen = [await house.sign_in(secret) for secret in (TOKEN, credential, TOKEN)]
        assert await house.signed_in(site)
        assert await house.signed_in(mine)
        await house.keys.cabinet.store.close()
        for one in (site, mine):
            for path in ("/admin", "/admin/overview"):
                answer = await asyncio.to_thread(one.get, path)
                assert answer.status == 200
        answer = await asyncio.to_thread(unseen.get)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "Traceback" not in answer.text
        refused = await asyncio.to_thread(house.site().sign_in, credential)
        assert (refused.status, refused.set_cookies) == (503, ())
        assert (await asyncio.to_thread(house.site().get)).status == 200


async def test_a_key_is_remembered_for_a_minute_only(tmp_path: Path) -> None:
    store = await open_store("embedded", tmp_path)
    keys = await open_keys(store, tmp_path, {"SWITCHYARD_ADMIN_TOKEN": TOKEN})
    now = 100.0
    opened = sessions.Sessions(keys, monotonic=lambda: now)
    _, credential = await keys.create(Change(name="holder"))
    key, admin = await opened.open(credential, "127.0.0.1"), await opened.open(TOKEN, "127.0.0.1")
    assert key
    assert admin
    for secret in (key, admin):
        assert await opened.find(secret, "127.0.0.1")
    await store.close()
    for _ in range(3):
        now += sessions.REMEMBERED / 2
        assert await opened.find(admin, "127.0.0.1")  # who watches goes on watching
    with pytest.raises(StoreUnavailable):
        await opened.find(key, "127.0.0.1")


async def test_what_is_remembered_of_a_key_still_counts(tmp_path: Path) -> None:
    store = await open_store("embedded", tmp_path)
    keys = await open_keys(store, tmp_path, {"SWITCHYARD_ADMIN_TOKEN": TOKEN})
    wall = time.time()
    opened = sessions.Sessions(keys, clock=lambda: wall, monotonic=lambda: 100.0)
    change = Change(name="holder", networks=("127.0.0.0/8",), expires_at=int(time.time()) + 600)
    _, credential = await keys.create(change)
    secret = await opened.open(credential, "127.0.0.1")
    assert secret
    assert await opened.find(secret, "127.0.0.1")
    await store.close()
    assert await opened.find(secret, "127.0.0.1")
    assert await opened.find(secret, "192.0.2.1") is None
    wall += 601
    assert await opened.find(secret, "127.0.0.1") is None


class Away:
    """A store that can be away: for who asks by this the server does not answer."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = store
        self._patch = monkeypatch

    def go(self) -> None:
        async def run(*_: object) -> Any:
            raise OSError("away")

        self._patch.setattr(self._store, "run", run)
        self._patch.setattr(self._store, "gather", run)

    def come(self) -> None:
        self._patch.undo()


async def test_who_signs_out_while_the_store_is_away_is_out(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    site, other = await house.sign_in(TOKEN), await house.sign_in(TOKEN)
    assert await house.signed_in(site)
    assert await house.signed_in(other)
    stolen = site.copy()
    away = Away(house.keys.cabinet.store, monkeypatch)
    away.go()
    answer = await asyncio.to_thread(site.post, "/admin/sign-out")
    assert (answer.status, site.cookies) == (503, {})
    assert "You are signed out in this browser" in answer.text
    assert not await house.signed_in(stolen)
    assert await house.signed_in(other)
    away.come()
    assert not await house.signed_in(stolen)
    async with asyncio.timeout(20):
        while len([name for name in await house.names() if name.startswith("sy:session:")]) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await house.keys.cabinet.ask("ZCARD", "sy:sessions:admin") == 1
    assert await house.signed_in(other)


async def test_what_is_remembered_does_not_outlive_the_admin_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store("embedded", tmp_path)
    try:
        keys = await open_keys(store, tmp_path, {})
        made = await keys.bootstrap()
        assert made.admin_token
        opened = sessions.Sessions(keys)
        secret = await opened.open(made.admin_token, "")
        assert secret
        assert await opened.find(secret, "")
        await store.run("DEL", "sy:admin")
        again = await (await open_keys(store, tmp_path, {})).bootstrap()
        assert again.admin_token
        away = Away(store, monkeypatch)
        away.go()
        assert await opened.find(secret, "")  # nobody has told this worker yet
        away.come()
        assert await keys.admin(again.admin_token, None)
        away.go()
        assert await opened.find(secret, "") is None
    finally:
        monkeypatch.undo()
        await store.close()


async def _heard(site: Site, times: int = 1) -> list[str]:
    """What the stream says when all is well, so many times."""

    def listen() -> list[str]:
        with site.watch() as tail:
            assert tail.status == 200
            return [tail.until("state", "false")[-1].data for _ in range(times)]

    return await asyncio.to_thread(listen)


async def test_an_open_stream_says_again_and_again_how_it_stands(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "HEARTBEAT", 0.05)
    assert await _heard(await house.sign_in(TOKEN), 3) == ['{"stale": false}'] * 3


async def test_a_screen_on_a_wall_stays_where_it_is_and_comes_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed in by a key, as docs/admin-page.md has it: after a minute nobody knows any more whether it may look."""
    _, credential = await house.key(admin=True)
    site = await house.sign_in(credential)
    assert await house.signed_in(site)
    monkeypatch.setattr(sessions, "REMEMBERED", 0.0)
    watching = threading.Event()

    def watch() -> str:
        with site.watch() as tail:
            tail.until("state")
            watching.set()
            return tail.until("end")[-1].data

    ended = asyncio.create_task(asyncio.to_thread(watch))
    assert await asyncio.to_thread(watching.wait, SECONDS)
    away = Away(house.keys.cabinet.store, monkeypatch)
    away.go()
    assert await ended == "away"
    page = await asyncio.to_thread(site.get)
    assert (page.status, page.headers["refresh"], page.set_cookies) == (503, "5", ())
    for path in ("/admin/overview", "/admin/live"):
        answer = await asyncio.to_thread(site.get, path)
        assert (answer.status, answer.headers.get("hx-redirect"), answer.headers.get("refresh")) == (503, None, None)
    away.come()
    assert (await asyncio.to_thread(site.get)).status == 200
    assert await _heard(site) == ['{"stale": false}']
