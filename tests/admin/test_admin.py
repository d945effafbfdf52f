"""The admin API: who gets in, what it does, and what it never tells."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from router.credentials import new_credential
from router.keys import Change, Keys, open_keys
from router.store import Store
from router.throttle import BURST, PACE, Throttle, TooManyAttempts
from tests.admin.conftest import TOKEN, Ask

ROUTES = [
    ("GET", "/admin/api/keys"),
    ("POST", "/admin/api/keys"),
    ("GET", "/admin/api/keys/x"),
    ("PATCH", "/admin/api/keys/x"),
    ("DELETE", "/admin/api/keys/x"),
    ("POST", "/admin/api/keys/x/rotate"),
    ("DELETE", "/admin/api/keys/x/overlap"),
    ("POST", "/admin/api/keys/issue"),
    ("GET", "/admin/api/teams"),
    ("POST", "/admin/api/teams"),
    ("PATCH", "/admin/api/teams/x"),
    ("DELETE", "/admin/api/teams/x"),
    ("GET", "/admin/api/audit"),
    ("GET", "/admin/api/audit/verify"),
    ("GET", "/admin/api/status"),
    ("GET", "/admin/openapi.json"),
    ("GET", "/admin/docs"),
    ("GET", "/docs"),
    ("GET", "/admin"),
    ("GET", "/admin/../admin/api/keys"),
    ("OPTIONS", "/admin/api/keys"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_nothing_answers_without_an_admin(ask: Ask, keys: Keys, method: str, path: str) -> None:
    _, boss = await keys.create(Change(name="boss", admin=True))
    await keys.revoke("boss")
    for token in (None, "", "wrong", TOKEN[:-1], boss, new_credential("0" * 12)):
        answer = await ask(method, path, token=token)
        assert answer.status == 401
        assert answer.json["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert set(answer.json) == {"error"}
    _, plain = await keys.create(Change(name="plain"))
    answer = await ask(method, path, token=plain)
    assert (answer.status, answer.json["error"]["code"]) == (403, "not_allowed")


async def test_the_token_and_a_key_with_the_right_get_in_by_header_only(ask: Ask, keys: Keys) -> None:
    _, boss = await keys.create(Change(name="boss", admin=True))
    assert (await ask("GET", "/admin/api/keys")).status == 200
    assert (await ask("GET", "/admin/api/keys", token=boss)).status == 200
    assert (await ask("GET", f"/admin/api/keys?key={TOKEN}", token=None)).status == 401


async def test_a_keys_whole_life(ask: Ask, keys: Keys) -> None:
    body = {"name": "ci", "models": ["gpt-*"], "expires": "30d", "rights": {"manage_local": True}}
    made = await ask("POST", "/admin/api/keys", body)
    assert made.status == 201
    credential = made.json["key"]
    key_id = made.json["id"]
    assert (await keys.authenticate(credential)) is not None
    shown = (await ask("GET", "/admin/api/keys/ci")).json
    assert shown == {name: value for name, value in made.json.items() if name not in ("key", "team_created")}
    assert shown["rights"] == {"allow_fallback": True, "local_only": False, "manage_local": True, "admin": False}
    listed = await ask("GET", "/admin/api/keys")
    assert listed.json == {"data": [shown], "unreadable": [], "next": None}
    assert credential[19:].encode() not in listed.body
    changed = await ask("PATCH", f"/admin/api/keys/{key_id}", {"state": "disabled", "expires": "never", "version": 1})
    assert (changed.json["state"], changed.json["expires_at"], changed.json["version"]) == ("disabled", None, 2)
    late = await ask("PATCH", f"/admin/api/keys/{key_id}", {"name": "late", "version": 1})
    assert (late.status, late.json["error"]["code"]) == (409, "conflict")
    assert (await ask("DELETE", f"/admin/api/keys/{key_id}")).json["state"] == "revoked"
    assert await keys.authenticate(credential) is None


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({}, "name", "name is missing"),
        ({"name": ""}, "name", ""),
        ({"name": 5}, "name", "name is a text"),
        ({"name": "a", "nmae": "b"}, "nmae", "there is no field 'nmae' here; did you mean 'name'?"),
        ({"name": "a", "expires": "soon"}, "expires", ""),
        (
            {"name": "a", "rights": {"root": True}},
            "rights.root",
            "there is no field 'root' here; there are admin, allow_fallback, local_only, manage_local",
        ),
        ({"name": "a", "rights": {"admin": "yes"}}, "rights.admin", "rights.admin is true or false"),
        ({"name": "a", "rights": {"admin": 1}}, "rights.admin", "rights.admin is true or false"),
        ({"name": "a", "tags": "b"}, "tags", "tags is a list"),
        (b"", None, "missing request body: send a JSON object"),
        (b'{"name": ', None, "the body is not valid JSON"),
        (b"[1]", None, "the body must be a JSON object, not an array"),
        (b'{"name": "a", "name": "b"}', None, "the key 'name' stands twice in one object"),
        (b'{"name": "a", "rights": {"admin": false, "admin": true}}', None, "the key 'admin' stands twice"),
        (b"\xff", None, ""),
    ],
)
async def test_a_bad_body_is_told_in_our_shape(ask: Ask, body: object, param: str | None, told: str) -> None:
    answer = await ask("POST", "/admin/api/keys", body)
    assert answer.status == 400
    error = answer.json["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert told in error["message"]


async def test_a_list_to_issue_is_read_as_strictly(ask: Ask) -> None:
    for body, param, told in (
        (b"", None, "missing request body"),
        (b'{"team": "a", "team": "b", "keys": ["k"]}', None, "stands twice"),
        ({"team": "a", "keys": ["k", {"nmae": "x"}]}, "keys.1.nmae", "did you mean 'name'?"),
    ):
        answer = await ask("POST", "/admin/api/keys/issue", body)
        assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body
        assert told in answer.json["error"]["message"]


async def test_a_large_body_is_refused_unread(ask: Ask) -> None:
    answer = await ask("POST", "/admin/api/keys", b"{", claim=2 << 20)
    assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")


async def test_what_is_not_there(ask: Ask) -> None:
    assert (await ask("GET", "/admin/api/keys/nobody")).json["error"]["code"] == "not_found"
    assert (await ask("GET", "/admin/api/nothing")).json["error"]["code"] == "not_found"
    answer = await ask("PUT", "/admin/api/keys")
    assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")


async def test_answers_are_private(ask: Ask) -> None:
    for token in (TOKEN, None):
        answer = await ask("GET", "/admin/api/keys", token=token, raw=b"origin: https://evil.example\r\n")
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_the_document_describes_every_route(ask: Ask) -> None:
    paths = (await ask("GET", "/admin/openapi.json")).json["paths"]
    assert {
        "/admin/api/keys",
        "/admin/api/keys/issue",
        "/admin/api/keys/{ref}",
        "/admin/api/keys/{ref}/rotate",
        "/admin/api/keys/{ref}/overlap",
        "/admin/api/teams",
        "/admin/api/teams/{ref}",
        "/admin/api/audit",
        "/admin/api/audit/verify",
        "/admin/api/status",
    } <= set(paths)
    text = (await ask("GET", "/admin/openapi.json")).body.decode()
    schemas = (await ask("GET", "/admin/openapi.json")).json["components"]["schemas"]
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert name in schemas


async def test_the_status_is_there_when_the_store_is_not(ask: Ask, store: Store) -> None:
    await store.close()
    assert (await ask("GET", "/admin/api/status")).json == {"ready": True, "store": "ok"}
    answer = await ask("GET", "/admin/api/keys")
    assert (answer.status, answer.json["error"]["code"]) == (503, "quota_store")


async def test_many_wrong_tokens_are_slowed_down(ask: Ask, keys: Keys) -> None:
    keys.throttle._clock = lambda: 100.0  # however long they take: no try is given meanwhile
    answers = [await ask("GET", "/admin/api/keys", token="wrong") for _ in range(BURST + 2)]
    assert [answer.status for answer in answers] == [401] * BURST + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= PACE


async def test_the_right_token_passes_whatever_its_neighbours_send(ask: Ask, keys: Keys) -> None:
    keys.throttle._clock = lambda: 100.0
    for _ in range(BURST + 1):
        wrong = await ask("GET", "/admin/api/keys", token="wrong")
    assert wrong.status == 429
    assert (await ask("GET", "/admin/api/keys")).status == 200
    assert (await ask("GET", "/admin/api/keys", token=None)).status == 429
    assert (await ask("GET", "/admin/api/keys", token="wrong")).status == 429


async def test_a_lost_token_is_made_anew_when_its_digest_is_gone(store: Store, tmp_path: Path) -> None:
    lost = (await (await open_keys(store, tmp_path, {})).bootstrap()).admin_token
    await store.run("DEL", "sy:admin")
    keys = await open_keys(store, tmp_path, {})
    made = await keys.bootstrap()
    assert (made.admin_token is None, made.key) == (False, None)
    assert made.admin_token is not None
    assert lost is not None
    assert [await keys.is_admin(token) for token in (made.admin_token, lost)] == [True, False]


async def test_a_throttled_token_is_judged_without_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await open_keys(store, tmp_path, {})
    token = (await made.bootstrap()).admin_token
    keys = await open_keys(store, tmp_path, {})
    assert token is not None
    assert not keys.seen_admin(token)  # not read yet
    assert await keys.admin("wrong") is None
    monkeypatch.setattr(keys.cabinet, "raw", None)
    assert keys.seen_admin(token)
    assert not keys.seen_admin("wrong")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("a:socket", "a:socket", True),
    ],
)
def test_the_throttle_counts_a_subscriber_of_ipv6_once(first: str, second: str, same: bool) -> None:
    throttle = Throttle(lambda: 0.0, burst=1)
    throttle.failed(first)
    if same:
        with pytest.raises(TooManyAttempts):
            throttle.admit(second)
    else:
        throttle.admit(second)


def test_the_throttle_lets_up_and_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    throttle = Throttle(lambda: now)
    for _ in range(BURST):
        throttle.admit("a")
        throttle.failed("a")
    with pytest.raises(TooManyAttempts):
        throttle.admit("a")
    throttle.admit("b")
    now += PACE + 0.1
    throttle.admit("a")
    monkeypatch.setattr("router.throttle.MOST_ADDRESSES", 10)
    for number in range(100):
        throttle.failed(str(number))
    assert len(throttle._empty_at) <= 10


async def test_first_callers_at_once_build_it_once(ask: Ask) -> None:
    answers = await asyncio.gather(*(ask("GET", "/admin/api/status") for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5


def test_the_web_framework_is_not_loaded_before_it_is_used() -> None:
    code = "import sys, router.admin, router.ledger; sys.exit('fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
