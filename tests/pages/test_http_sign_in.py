"""Signing in to the pages: who gets a session, what the cookie is like, and what ends it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.admin.pages import sessions
from router.admin.pages.security import session_name
from router.changes import TeamChange
from router.credentials import new_credential
from router.keys import Change, Key, open_keys
from router.store import Store, open_store
from router.throttle import BURST
from tests.pages.house import TOKEN, House, names, opened_house

pytestmark = pytest.mark.asyncio(loop_scope="module")

End = Callable[[House, Key], Awaitable[None]]


async def test_a_visitor_is_asked_to_sign_in(house: House) -> None:
    answer = await asyncio.to_thread(house.site().get)
    assert answer.status == 200
    assert 'action="/admin/sign-in"' in answer.text
    assert 'name="secret"' in answer.text
    assert answer.set_cookies == ()


async def test_the_cookie_is_strict_and_only_its_digest_is_in_the_store(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    site = house.site()
    answer = await asyncio.to_thread(site.sign_in, TOKEN)
    assert (answer.status, answer.headers["location"], answer.body) == (303, "/admin", b"")
    (cookie,) = answer.set_cookies
    name = session_name(house.keys.pepper_check(), https=False)
    shape = rf"{name}=([A-Za-z0-9_-]{{43}}); Max-Age=2592000; Path=/admin; HttpOnly; SameSite=Strict"
    secret = re.fullmatch(shape, cookie)
    assert secret
    names = await house.names()
    assert [name.rpartition(":")[0] for name in names] == ["sy:session", "sy:sessions"]
    record = await house.keys.cabinet.raw(names[0])
    assert record
    for text in (*names, record.decode(), caplog.text):
        assert secret[1] not in text
        assert TOKEN not in text
    assert set(json.loads(record)) == {"key", "admin", "proof", "created"}
    ttl = await house.keys.cabinet.ask("TTL", names[0])
    assert 0 < ttl <= sessions.IDLE
    assert await house.signed_in(site)


async def test_behind_https_the_cookie_is_secure(house: House) -> None:
    site = house.site()
    https = {"x-scheme": "https"}
    answer = await asyncio.to_thread(
        site.post, "/admin/sign-in", {"secret": TOKEN}, {**https, "sec-fetch-site": "same-origin"}
    )
    assert answer.set_cookies[0].startswith(f"__Secure-{session_name(house.keys.pepper_check(), https=False)}=")
    assert answer.set_cookies[0].endswith("; Secure")
    page = await asyncio.to_thread(site.ask, "GET", "/admin/overview", None, https)
    assert page.status == 200
    assert page.headers["strict-transport-security"].startswith("max-age=")
    # What was set on a secure page does not count on a plain one.
    assert not await house.signed_in(site)
    plain = await house.sign_in(TOKEN)
    assert "strict-transport-security" not in (await asyncio.to_thread(plain.get)).headers
    assert (await asyncio.to_thread(plain.ask, "GET", "/admin/overview", None, https)).status == 401


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "wrong",
        TOKEN[:-1],
        TOKEN.upper(),
        "\x00",
        "x" * 600,
        "密钥",
        "sk-sy-0000000000000000",
        "revoked",
        "elsewhere",
    ],
)
async def test_whatever_is_wrong_gets_one_and_the_same_answer(house: House, secret: str) -> None:
    if secret == "revoked":
        made, secret = await house.key(admin=True)
        await house.keys.revoke(made.id)
    elif secret == "elsewhere":
        _, secret = await house.key(networks=("192.0.2.0/24",))
    site = house.site()
    first = await asyncio.to_thread(site.sign_in, "certainly wrong")
    answer = await asyncio.to_thread(site.sign_in, secret)
    assert (answer.status, answer.text) == (401, first.text)
    assert answer.set_cookies == ()
    assert await house.names() == []
    if secret.isalnum():
        assert secret not in answer.text


async def test_wrong_secrets_are_slowed_down_together_with_wrong_tokens_of_the_api(house: House) -> None:
    site = house.site()
    here = {"origin": site.origin}
    for turn in range(BURST):
        if turn % 2:
            token = {**here, "authorization": "Bearer wrong"}
            assert (await asyncio.to_thread(site.ask, "GET", "/admin/api/keys", None, token)).status == 401
        else:
            assert (await asyncio.to_thread(site.post, "/admin/sign-in", {"secret": "wrong"}, here)).status == 401
    _, credential = await house.key()
    for secret in ("wrong", credential):
        answer = await asyncio.to_thread(site.post, "/admin/sign-in", {"secret": secret}, here)
        assert answer.status == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 10
    await house.sign_in(credential)  # from another address
    # The admin token gets through: behind one address may be the admin and others.
    assert (await asyncio.to_thread(site.post, "/admin/sign-in", {"secret": TOKEN}, here)).status == 303


async def _at_once(port: int, request: str, times: int) -> Counter[int]:
    """The statuses of the answers to as many requests that are all there before the first is answered."""

    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request.encode())
        status = int((await reader.read()).split(b" ", 2)[1])
        writer.close()
        return status

    async with asyncio.timeout(60):
        return Counter(await asyncio.gather(*(ask() for _ in range(times))))


@pytest.mark.parametrize("where", ["page", "api"])
async def test_wrong_secrets_that_come_at_once_are_slowed_down_like_others(house: House, where: str) -> None:
    def told(secret: str) -> str:
        common = f"Host: x\r\nX-From: {address}\r\nSec-Fetch-Site: same-origin\r\nConnection: close\r\n"
        if where == "api":
            return f"GET /admin/api/status HTTP/1.1\r\n{common}Authorization: Bearer {secret}\r\n\r\n"
        body = f"secret={secret}"
        return f"POST /admin/sign-in HTTP/1.1\r\n{common}Content-Length: {len(body)}\r\n\r\n{body}"

    key, credential = await house.key(admin=True)
    address = house.site().always["x-from"]
    good = 303 if where == "page" else 200
    # Right ones are let in however many they are.
    assert await _at_once(house.port, told(credential), 3 * BURST) == {good: 3 * BURST}
    wrong = new_credential(key.id)  # so like a right one that the store is asked
    assert await _at_once(house.port, told(wrong), 6 * BURST) == {401: BURST, 429: 5 * BURST}
    assert await _at_once(house.port, told(credential), 1) == {429: 1}
    assert await _at_once(house.port, told(TOKEN), 1) == {good: 1}


async def test_routers_of_other_stores_on_one_host_leave_each_other_alone(house: House, tmp_path: Path) -> None:
    """Cookies know no ports."""
    async with opened_house(tmp_path) as neighbour:
        site = await house.sign_in(TOKEN)
        beside = site.copy(neighbour.port)
        assert not await neighbour.signed_in(beside)
        assert (await asyncio.to_thread(beside.get)).set_cookies == ()  # and it takes nothing away
        assert (await asyncio.to_thread(beside.sign_in, TOKEN)).status == 303
        assert len(beside.cookies) == 2
        assert await house.signed_in(beside.copy(house.port))
        await asyncio.to_thread(beside.post, "/admin/sign-out")
        assert beside.cookies == site.cookies


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "OWN"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "OWN"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-site": "same-origin"}, 303),
        ({"sec-fetch-site": "same-origin", "origin": "null"}, 303),
        ({"origin": "OWN"}, 303),
    ],
)
async def test_forms_of_other_sites_are_refused(house: House, headers: dict[str, str], status: int) -> None:
    site = await house.sign_in(TOKEN)
    sent = {name: site.origin if value == "OWN" else value for name, value in headers.items()}
    for path in ("/admin/sign-in", "/admin/preferences", "/admin/sign-out"):
        answer = await asyncio.to_thread(site.copy().post, path, {"secret": TOKEN, "lang": "zh"}, sent)
        assert answer.status == status, path
        assert bool(answer.set_cookies) == (status == 303)
        assert "access-control-allow-origin" not in answer.headers
    assert await house.signed_in(site) == (status == 403)


async def test_a_large_form_is_refused_unread(house: House) -> None:
    answer = await asyncio.to_thread(house.site().sign_in, "x" * 5000)
    assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_signing_in_again_makes_another_session_and_ends_the_one_before(house: House) -> None:
    site = await house.sign_in(TOKEN)
    old = site.copy()
    await asyncio.to_thread(site.sign_in, TOKEN)
    assert site.cookies != old.cookies
    assert await house.signed_in(site)
    assert not await house.signed_in(old)


async def test_signing_out_ends_it_in_the_store(house: House) -> None:
    site = await house.sign_in(TOKEN)
    stolen = site.copy()
    answer = await asyncio.to_thread(site.post, "/admin/sign-out")
    assert (answer.status, site.cookies) == (303, {})
    assert not await house.signed_in(stolen)
    assert await house.names() == []


async def test_what_was_not_made_here_is_no_session(house: House) -> None:
    site = house.site()
    for value in ("", "x", "A" * 43, "A" * 44, "../../../etc", '"quoted"'):
        site.cookies[session_name(house.keys.pepper_check(), https=False)] = value
        assert not await house.signed_in(site)
    answer = await asyncio.to_thread(site.get, "/admin/overview")
    assert (answer.status, answer.headers["hx-redirect"]) == (401, "/admin")


async def _expire(house: House, _key: Key) -> None:
    house.later = 601


async def _rotate(house: House, key: Key) -> None:
    await house.keys.rotate(key.id, 0)


async def _disable_team(house: House, key: Key) -> None:
    await house.keys.teams.change(key.team, TeamChange(state="disabled"))


def _set(**fields: Any) -> End:
    async def end(house: House, key: Key) -> None:
        await house.keys.change(key.id, Change(**fields))

    return end


@pytest.mark.parametrize("admin", [True, False])
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(_set(state="revoked"), id="revoked"),
        pytest.param(_set(state="disabled"), id="disabled"),
        pytest.param(_set(networks=("192.0.2.0/24",)), id="network"),
        pytest.param(_expire, id="expired"),
        pytest.param(_rotate, id="rotated"),
        pytest.param(_disable_team, id="team"),
    ],
)
async def test_a_session_ends_with_its_key(house: House, end: End, admin: bool) -> None:
    team = await house.keys.teams.create(TeamChange(name=f"crew {next(names)}"))
    soon = int(house.keys.clock()) + 600
    key, credential = await house.key(team=team.id, admin=admin, expires_at=soon)
    site = await house.sign_in(credential)
    assert await house.signed_in(site)
    await end(house, key)
    assert not await house.signed_in(site)
    assert not [name for name in await house.names() if name.startswith("sy:session:")]


async def test_a_session_outlives_a_rotation_for_as_long_as_the_old_secret(house: House) -> None:
    key, credential = await house.key()
    site = await house.sign_in(credential)
    await house.keys.rotate(key.id, 300)
    assert await house.signed_in(site)
    house.later = 301
    assert not await house.signed_in(site)


async def test_an_admin_who_lost_the_right_sees_nothing_more(house: House) -> None:
    key, credential = await house.key(admin=True)
    site = await house.sign_in(credential)
    await house.keys.change(key.id, Change(admin=False))
    assert not await house.signed_in(site)
    again = await house.sign_in(credential)
    assert await house.signed_in(again)  # as a holder now


async def test_a_session_ends_with_the_admin_token(tmp_path: Path) -> None:
    store = await open_store("embedded", tmp_path)
    try:
        await _change_the_admin_token(store, tmp_path)
    finally:
        await store.close()


async def _change_the_admin_token(store: Store, tmp_path: Path) -> None:
    first = await open_keys(store, tmp_path, {})
    made = await first.bootstrap()
    assert made.admin_token
    opened = sessions.Sessions(first)
    secret = await opened.open(made.admin_token, "127.0.0.1")
    assert secret
    assert await opened.find(secret, "127.0.0.1")
    await store.run("DEL", "sy:admin")
    again = await (await open_keys(store, tmp_path, {})).bootstrap()
    assert again.admin_token
    assert await opened.find(secret, "127.0.0.1") is None
    # Another token in the config, after a restart.
    one, other = [
        await open_keys(store, tmp_path, {"SWITCHYARD_ADMIN_TOKEN": token}) for token in (TOKEN, TOKEN + "-other")
    ]
    secret = await sessions.Sessions(one).open(TOKEN, "")
    assert secret
    assert await sessions.Sessions(one).find(secret, "")
    assert await sessions.Sessions(other).find(secret, "") is None


async def test_idle_and_old_sessions_end(house: House) -> None:
    site = await house.sign_in(TOKEN)
    (name,) = [name for name in await house.names() if name.startswith("sy:session:")]
    await house.keys.cabinet.ask("EXPIRE", name, 600)
    assert await house.signed_in(site)
    assert await house.keys.cabinet.ask("TTL", name) > 600  # used: it goes on
    house.later = sessions.LONGEST - 60
    assert await house.signed_in(site)
    (secret,) = site.cookies.values()
    other = sessions.Sessions(house.keys)  # a worker that has not seen it yet
    assert await other.find(secret, "")
    assert await house.keys.cabinet.ask("TTL", name) <= 60  # used, but near its end
    house.later = sessions.LONGEST + 1
    assert not await house.signed_in(site)


async def test_a_holder_has_so_many_sessions_and_the_one_unused_for_longest_makes_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST", 3)
    now = 0.0
    opened = sessions.Sessions(house.keys, clock=lambda: time.time() + now, monotonic=lambda: now)

    async def sign_in() -> str:
        secret = await opened.open(TOKEN, "")
        assert secret
        assert await opened.find(secret, "")
        return secret

    wall, idle, third = [await sign_in() for _ in range(3)]
    for _ in range(3):
        now += sessions.PROLONGED
        assert await opened.find(wall, "")  # the oldest, but used
    assert await opened.find(third, "")
    fourth = await sign_in()
    looked = sessions.Sessions(house.keys)
    found = [await looked.find(secret, "") for secret in (wall, idle, third, fourth)]
    assert [viewer is not None for viewer in found] == [True, False, True, True]


async def test_sessions_that_ended_by_themselves_make_room_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST", 3)
    wall = await house.sign_in(TOKEN)
    before = set(await house.names())
    for _ in range(2):
        await house.sign_in(TOKEN)
    for name in set(await house.names()) - before:  # as after two hours without use
        await house.keys.cabinet.ask("DEL", name)
    new = [await house.sign_in(TOKEN) for _ in range(2)]
    assert all([await house.signed_in(site) for site in (wall, *new)])
    assert await house.keys.cabinet.ask("ZCARD", "sy:sessions:admin") == 3


async def test_one_good_cookie_of_several_is_enough(house: House) -> None:
    site, other = await house.sign_in(TOKEN), await house.sign_in(TOKEN)
    name, good = next(iter(site.cookies.items()))
    both = {"cookie": f"{name}={'A' * 43}; {name}={good}; {name}={other.cookies[name]}"}
    assert (await asyncio.to_thread(house.site().ask, "GET", "/admin/overview", None, both)).status == 200
    form = {**both, "origin": site.origin}
    assert (await asyncio.to_thread(house.site().ask, "POST", "/admin/sign-out", "", form)).status == 303
    assert [await house.signed_in(one) for one in (site, other)] == [False, False]


async def test_made_up_cookies_are_looked_for_once_and_a_few_at_a_time(house: House) -> None:
    opened = sessions.Sessions(house.keys)
    asked: list[bytes | str] = []
    most = running = 0
    cabinet = house.keys.cabinet
    real = cabinet.raw

    async def raw(name: str) -> bytes | None:
        nonlocal most, running
        asked.append(name)
        running += 1
        most = max(most, running)
        try:
            return await real(name)
        finally:
            running -= 1

    known = await opened.open(TOKEN, "")
    assert known
    assert await opened.find(known, "")
    opened._cabinet = SimpleNamespace(raw=raw, store=cabinet.store)  # type: ignore[assignment]
    for _ in range(2):
        junk = [f"{number:043}" for number in range(100)]
        found = await asyncio.gather(*(opened.find(secret, "") for secret in junk))
        assert set(found) == {None}
    assert len(asked) == 100
    assert most == sessions.STRANGERS


async def test_streams_of_one_session_share_a_look_at_it(house: House) -> None:
    now = 100.0
    opened = sessions.Sessions(house.keys, monotonic=lambda: now)
    secret = await opened.open(TOKEN, "")
    assert secret
    looks = await asyncio.gather(*(opened.lately(secret, "") for _ in range(50)))
    now += sessions.SHARED / 2
    looks.append(await opened.lately(secret, ""))
    assert {at for _, at in looks} == {100.0}
    assert len({id(viewer) for viewer, _ in looks}) == 1
    await opened.close(secret)
    now += sessions.SHARED
    assert await opened.lately(secret, "") == (None, now)
