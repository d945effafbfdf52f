"""Teams, rotation, issuing, pages and the audit log through the admin API."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from router.keys import Change, Keys
from router.records import AUDIT
from router.store import Store
from tests.admin.conftest import TOKEN, Ask

LIMITS = {"rpm": 60, "budget": {"day": "5usd"}, "models": {"gpt-4*": {"max_requests": {"total": 5}}}}


async def test_a_teams_whole_life(ask: Ask) -> None:
    made = await ask("POST", "/admin/api/teams", {"name": "web", "timezone": "Asia/Shanghai", "limits": LIMITS})
    assert made.status == 201
    team = made.json
    assert (team["name"], team["limits"], team["timezone"], team["version"]) == ("web", LIMITS, "Asia/Shanghai", 1)
    assert made.headers["etag"] == f'"{team["etag"]}"'
    assert (await ask("GET", "/admin/api/teams/web")).json == (await ask("GET", f"/admin/api/teams/{team['id']}")).json
    listed = await ask("GET", "/admin/api/teams")
    assert {one["name"] for one in listed.json["data"]} == {"default", "web"}
    changed = await ask("PATCH", "/admin/api/teams/web", {"limits": {"rpm": None, "tpm": "100k"}, "version": 1})
    assert changed.json["limits"] == {"tpm": 100_000, **{name: LIMITS[name] for name in ("budget", "models")}}
    assert (await ask("PATCH", "/admin/api/teams/web", {"owner": "x", "version": 1})).status == 409
    assert (await ask("POST", "/admin/api/teams", {"name": "WEB"})).status == 409
    assert (await ask("DELETE", "/admin/api/teams/web")).json["state"] == "revoked"
    assert (await ask("GET", "/admin/api/teams?state=revoked")).json["data"][0]["name"] == "web"


async def test_a_keys_limits_and_networks(ask: Ask) -> None:
    body = {"name": "k", "team": "web", "limits": LIMITS, "networks": ["10.0.0.0/8", "::1"]}
    made = (await ask("POST", "/admin/api/keys", body)).json
    assert (made["team"], made["team_created"], made["limits"]) == ("web", True, LIMITS)
    assert made["networks"] == ["10.0.0.0/8", "::1/128"]
    changed = await ask("PATCH", "/admin/api/keys/k", {"limits": None})
    assert changed.json["limits"] == LIMITS  # null is left out; what is inside lifts
    changed = await ask(
        "PATCH", "/admin/api/keys/k", {"limits": {"rpm": None, "budget": None, "models": {"gpt-4*": None}}}
    )
    assert changed.json["limits"] == {}


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "/admin/api/keys", {"name": "k", "limits": {"rpm": True}}, "limits.rpm"),
        ("POST", "/admin/api/keys", {"name": "k", "limits": {"budget": {"day": "5eur"}}}, "limits.budget.day"),
        ("POST", "/admin/api/keys", {"name": "k", "limits": {"qps": 5}}, "limits.qps"),
        ("POST", "/admin/api/keys", {"name": "k", "limits": {"rpm": 10**30}}, "limits.rpm"),
        ("POST", "/admin/api/keys", {"name": "k", "limits": []}, "limits"),
        ("POST", "/admin/api/keys", {"name": "k", "networks": ["x"]}, "networks"),
        ("POST", "/admin/api/teams", {"name": "t", "timezone": "Nowhere"}, "timezone"),
        ("POST", "/admin/api/teams", {"name": "t", "limitz": {}}, "limitz"),
        ("POST", "/admin/api/keys/k/rotate", {"overlap": "soon"}, "overlap"),
        ("GET", "/admin/api/keys?limit=1000000000", None, "limit"),
        ("GET", "/admin/api/keys?limit=-1", None, "limit"),
        ("GET", "/admin/api/keys?state=%25", None, "state"),
        ("GET", "/admin/api/audit?cursor=-1", None, "cursor"),
    ],
)
async def test_what_is_wrong_is_named(ask: Ask, keys: Keys, method: str, path: str, body: Any, param: str) -> None:
    await keys.create(Change(name="k"))
    answer = await ask(method, path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


async def test_two_admins_do_not_undo_each_other(ask: Ask, keys: Keys) -> None:
    await keys.create(Change(name="k"))
    seen = (await ask("GET", "/admin/api/keys/k")).headers["etag"]
    header = f"if-match: {seen}\r\n".encode()
    answers = await asyncio.gather(
        *(ask("PATCH", "/admin/api/keys/k", {"owner": owner}, raw=header) for owner in ("ann", "bob"))
    )
    assert sorted(answer.status for answer in answers) == [200, 409]
    (winner,) = [answer.json["owner"] for answer in answers if answer.status == 200]
    assert (await keys.get("k")).key.owner == winner
    for method, path in (("DELETE", "/admin/api/keys/k"), ("POST", "/admin/api/keys/k/rotate")):
        late = await ask(method, path, {}, raw=header)
        assert (late.status, late.json["error"]["code"]) == (409, "conflict")
    for bad in (b"if-match: 1\r\n", b'if-match: W/"1"\r\n', b'if-match: ""\r\n'):
        assert (await ask("PATCH", "/admin/api/keys/k", {"owner": "x"}, raw=bad)).status == 400
    assert (await ask("PATCH", "/admin/api/keys/k", {"owner": "x"}, raw=b"if-match: *\r\n")).status == 200


async def test_rotation(ask: Ask, keys: Keys) -> None:
    _, first = await keys.create(Change(name="k"))
    made = (await ask("POST", "/admin/api/keys/k/rotate", {})).json
    assert made["ended_earlier"] is False
    assert made["old_key_until"] > made["created"]
    assert await keys.authenticate(first) is not None
    assert await keys.authenticate(made["key"]) is not None
    ended = await ask("DELETE", "/admin/api/keys/k/overlap")
    assert ended.json["old_key_until"] is None
    assert await keys.authenticate(first) is None
    assert "key" not in ended.json


async def test_issuing_as_json_and_as_csv(ask: Ask, keys: Keys) -> None:
    body = {"team": "web", "limits": {"rpm": 9}, "keys": ["ann", {"name": "bob", "owner": "B", "limits": {"rpm": 5}}]}
    made = await ask("POST", "/admin/api/keys/issue", body)
    assert made.status == 201
    assert (made.json["team"], made.json["team_created"], len(made.json["data"])) == ("web", True, 2)
    assert await keys.authenticate(made.json["data"][0]["key"]) is not None
    assert (await ask("GET", "/admin/api/keys/bob")).json["limits"] == {"rpm": 5}
    raw = b"content-type: text/csv\r\naccept: text/csv\r\n"
    as_csv = await ask("POST", "/admin/api/keys/issue?team=web", b"name,rpm\n=eve,5\n", raw=raw, json_body=False)
    assert as_csv.status == 201
    assert as_csv.headers["content-type"].startswith("text/csv")
    head, line = as_csv.body.decode().splitlines()
    assert head.startswith("id,name,key,")
    assert line.split(",")[1] == "'=eve"
    for bad, told in (
        ({"keys": []}, "no name"),
        ({"keys": ["a", "a"]}, "line 2"),
        ({"keys": [{"name": "a", "rpm": 5}]}, "rpm"),
        ({"keys": [5]}, "keys"),
        ({"keys": ["a"], "limits": {"rpm": "x"}}, "limits.rpm"),
        ({"keys": ["a"] * 1001}, "at most 1000"),
        (b"junk", "not valid JSON"),
    ):
        answer = await ask("POST", "/admin/api/keys/issue", bad)
        assert answer.status == 400, bad
        assert told in answer.json["error"]["message"]
    assert len(await keys.list(team="web")) == 3


async def test_pages_hold_every_key_once(ask: Ask, keys: Keys) -> None:
    for number in range(7):
        await keys.create(Change(name=f"k{number}", team=f"t{number % 3}", owner="Ann" if number else ""))
    found: list[str] = []
    cursor = ""
    while True:
        page = (await ask("GET", f"/admin/api/keys?limit=2&cursor={cursor}")).json
        found += [key["name"] for key in page["data"]]
        assert len(page["data"]) <= 2
        if page["next"] is None:
            break
        cursor = page["next"]
    assert sorted(found) == [f"k{number}" for number in range(7)]
    assert {key["name"] for key in (await ask("GET", "/admin/api/keys?team=t0")).json["data"]} == {"k0", "k3", "k6"}
    assert len((await ask("GET", "/admin/api/keys?q=ANN")).json["data"]) == 6
    await keys.revoke("k0")
    assert [key["name"] for key in (await ask("GET", "/admin/api/keys?state=revoked")).json["data"]] == ["k0"]
    assert (await ask("GET", "/admin/api/keys?team=nobody")).status == 404


@pytest.mark.parametrize("q", ["%25", "_", ".*", "(a%2B)%2B%24", "%5C", "k%00", "'", "*"])
async def test_a_search_takes_every_character_for_itself(ask: Ask, keys: Keys, q: str) -> None:
    await keys.create(Change(name="k" * 100, tags=("a" * 200,)))
    for path in ("keys", "teams", "audit"):
        start = time.monotonic()
        answer = await ask("GET", f"/admin/api/{path}?q={q}&limit=1000")
        assert (answer.status, answer.json["data"]) == (200, [])
        assert time.monotonic() - start < 30


async def test_the_log_names_who_and_from_where(ask: Ask, keys: Keys, store: Store) -> None:
    boss_key, boss = await keys.create(Change(name="boss", admin=True))
    await ask("POST", "/admin/api/teams", {"name": "web"})
    await ask("PATCH", "/admin/api/teams/web", {"owner": "ann"}, token=boss)
    page = (await ask("GET", "/admin/api/audit?limit=2")).json
    assert [(entry["actor"], entry["address"]) for entry in page["data"]] == [
        (f"key {boss_key.id}", "127.0.0.1"),
        ("admin token", "127.0.0.1"),
    ]
    assert page["next"] == 1
    assert (await ask("GET", "/admin/api/audit?cursor=1")).json["next"] is None
    verdict = (await ask("GET", "/admin/api/audit/verify")).json
    assert (verdict["ok"], verdict["entries"]) == (True, 3)
    assert (await ask("GET", f"/admin/api/audit/verify?expect={verdict['head']}")).json["ok"]
    await store.run("LSET", AUDIT, 1, b"{}")
    assert (await ask("GET", "/admin/api/audit/verify")).json["problems"]


async def test_an_admin_keys_networks_hold_here_too(ask: Ask, keys: Keys) -> None:
    _, far = await keys.create(Change(name="far", admin=True, networks=("192.0.2.0/24",)))
    _, here = await keys.create(Change(name="here", admin=True, networks=("127.0.0.0/8",)))
    assert (await ask("GET", "/admin/api/keys", token=far)).status == 403
    assert (await ask("GET", "/admin/api/keys", token=here)).status == 200


async def test_no_answer_holds_a_secret(ask: Ask, keys: Keys) -> None:
    """Every GET there is, and every refusal: neither a credential, nor a digest."""
    secrets = []
    for name in ("a", "b"):
        _, credential = await keys.create(Change(name=name, team="web"))
        secrets.append(credential)
    rotated = await keys.rotate("a", 3600)
    secrets.append(rotated.credential)
    records = [await keys.cabinet.find(listed.key.id) for listed in await keys.list()]
    hidden = [secret[19:] for secret in secrets] + [TOKEN, keys.pepper.hex()]
    for record in records:
        assert record is not None
        hidden += [digest for digest in (record.digest, record.old_digest) if digest]
    assert len(hidden) == 8
    paths = (await ask("GET", "/admin/openapi.json")).json["paths"]
    looked = 0
    for path, verbs in paths.items():
        if "get" in verbs:
            where = path.replace("{ref}", "web" if "/teams/" in path else "a")
            body = (await ask("GET", where)).body.decode()
            looked += 1
            assert not [one for one in hidden if one in body], where
    assert looked >= 8
    for method, wrong in (("POST", {"name": secrets[0], "state": secrets[1]}), ("PATCH", {"nmae": secrets[0]})):
        refused = (await ask(method, "/admin/api/keys" + ("/a" if method == "PATCH" else ""), wrong)).body.decode()
        assert not [one for one in hidden if one in refused]
