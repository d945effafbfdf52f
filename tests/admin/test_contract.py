"""What the admin API promises its callers: versions, parameters, errors with reasons, and a true document."""

from __future__ import annotations

import asyncio
import time

import pytest

from router.changes import TeamChange
from router.keys import Change, Keys
from router.records import AUDIT, key_name
from router.store import Store
from router.throttle import BURST
from tests.admin.conftest import Ask


async def test_no_way_around_a_version(ask: Ask, keys: Keys) -> None:
    key, _ = await keys.create(Change(name="k"))
    await keys.teams.create(TeamChange(name="web"))
    await keys.change("k", Change(owner="ann"))
    await keys.teams.change("web", TeamChange(owner="ann"))
    star, old = b"if-match: *\r\n", f'if-match: "{key.etag}"\r\n'.encode()
    for method, path, body, raw in (
        ("PATCH", "keys/k", {"owner": "x", "version": 1}, star),
        ("PATCH", "teams/web", {"owner": "x", "version": 1}, star),
        ("POST", "keys/k/rotate", {"version": 1}, star),
        ("DELETE", "keys/k/overlap", None, old),
        ("DELETE", "keys/k/overlap?version=1", None, star),
        ("DELETE", "keys/k", None, old),
        ("DELETE", "keys/k?version=1", None, b""),
        ("DELETE", "teams/web?version=1", None, b""),
    ):
        assert (await ask(method, f"/admin/api/{path}", body, raw=raw)).status == 409, path
    assert (await keys.get("k")).key.version == 2
    assert (await ask("DELETE", "/admin/api/keys/k?version=2")).json["state"] == "revoked"


@pytest.mark.parametrize(
    ("path", "param", "told"),
    [
        ("keys?limt=5", "limt", "did you mean 'limit'?"),
        ("keys?cursor=zzz", "cursor", "`next`"),
        ("teams?cursor=zzz", "cursor", "`next`"),
        ("audit?cursor=zzz", "cursor", ""),
        ("audit?search=x", "search", "there are cursor, limit, q"),
        ("audit/verify?expect=nonsense", "expect", "64 hexadecimal digits"),
        ("usage?tem=web", "tem", "did you mean 'team'?"),
        ("status?x=1", "x", "there are none"),
    ],
)
async def test_a_slip_in_a_parameter_is_refused(ask: Ask, path: str, param: str, told: str) -> None:
    answer = await ask("GET", f"/admin/api/{path}")
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert told in answer.json["error"]["message"]


async def test_two_different_teams_for_one_issue_are_refused(ask: Ask, keys: Keys) -> None:
    for query, team, status in (("a", "b", 400), ("a", "a", 201)):
        answer = await ask("POST", f"/admin/api/keys/issue?team={query}", {"team": team, "keys": [f"k{status}"]})
        assert answer.status == status
    assert len(await keys.list()) == 1


async def test_a_rotation_needs_no_body(ask: Ask, keys: Keys) -> None:
    await keys.create(Change(name="k"))
    made = await ask("POST", "/admin/api/keys/k/rotate", json_body=False)
    assert (made.status, made.json["old_key_until"] is None) == (200, False)
    assert (await ask("DELETE", "/admin/api/keys/k")).json["old_key_until"] is None


async def test_many_changes_at_once_all_succeed(ask: Ask, keys: Keys) -> None:
    await keys.create(Change(name="k"))
    limits = ("rpm", "tpm", "concurrency")
    bodies: list[dict[str, object]] = [{"limits": {name: number}} for number, name in enumerate(limits)]
    bodies += [{"limits": {"models": {f"m{number}": {"rpm": 1}}}} for number in range(14)]
    bodies += [{"owner": "ann"}, {"tags": ["t"]}, {"deny": ["d"]}]
    answers = await asyncio.gather(*(ask("PATCH", "/admin/api/keys/k", body) for body in bodies))
    assert {answer.status for answer in answers} == {200}
    key = (await keys.get("k")).key
    assert (key.version, len(key.limits), key.owner) == (21, 17, "ann")
    verdict = await keys.audit.verify()
    assert (verdict.ok, verdict.entries) == (True, 21)
    answers = await asyncio.gather(
        *(ask("PATCH", "/admin/api/teams/default", {"tags": [str(number)]}) for number in range(10))
    )
    assert {answer.status for answer in answers} == {200}


async def test_a_right_secret_that_may_not_is_told_why(ask: Ask, keys: Keys) -> None:
    async def told(token: str, status: int = 401) -> str:
        answer = await ask("GET", "/admin/api/keys", token=token)
        code = {401: "invalid_api_key", 403: "not_allowed"}[status]
        assert (answer.status, answer.json["error"]["code"]) == (status, code)
        return str(answer.json["error"]["message"])

    _, far = await keys.create(Change(name="far", admin=True, networks=("10.0.0.0/8",)))
    assert "network" in await told(far, 403)
    _, plain = await keys.create(Change(name="plain", team="web"))
    for _ in range(2 * BURST):
        assert "right `admin`" in await told(plain, 403), "no attempt at a secret"
    await keys.teams.change("web", TeamChange(state="disabled"))
    assert "The team of this API key is disabled" in await told(plain)
    await keys.revoke("plain")
    assert "is revoked" in await told(plain)
    wrong = plain[:-1] + ("1" if plain.endswith("0") else "0")
    assert await told(wrong) == "Incorrect admin token provided."
    _, short = await keys.create(Change(name="short", admin=True, expires_at=int(time.time()) + 100))
    keys._holders._clock = lambda: time.time() + 200
    assert "has expired" in await told(short)


async def test_a_record_that_cannot_be_read_hides_no_other(ask: Ask, keys: Keys, store: Store) -> None:
    made = [(await keys.create(Change(name=f"k{number}")))[0] for number in range(3)]
    broken = made[1]
    await store.run("SET", key_name(broken.team, broken.id), b"1.aaaaaa\n{")
    answer = (await ask("GET", "/admin/api/keys")).json
    assert sorted(key["name"] for key in answer["data"]) == ["k0", "k2"]
    assert answer["unreadable"] == [broken.id]
    assert (await ask("GET", "/admin/api/keys/k2")).status == 200
    answer = await ask("GET", f"/admin/api/keys/{broken.id}")
    assert (answer.status, broken.id in answer.json["error"]["message"]) == (503, True)
    assert (await ask("GET", "/admin/api/keys?limit=1")).json["next"] is not None


async def test_a_damaged_entry_is_shown(ask: Ask, keys: Keys, store: Store) -> None:
    await keys.create(Change(name="k"))
    await store.run("LSET", AUDIT, 0, b'{"n": "one", "actor": 5, "before": "x"}')
    answer = await ask("GET", "/admin/api/audit")
    assert answer.json["data"] == [{"n": 1, "result": "damaged: it is not as it was written"}]
    assert not (await ask("GET", "/admin/api/audit/verify")).json["ok"]


@pytest.mark.parametrize("name", ["a/b", "/", ".", ".."])
async def test_names_are_parts_of_addresses(ask: Ask, name: str) -> None:
    for kind in ("keys", "teams"):
        answer = await ask("POST", f"/admin/api/{kind}", {"name": name})
        assert (answer.status, answer.json["error"]["param"]) == (400, "name")


async def test_the_document_tells_how_to_log_in_and_what_can_go_wrong(ask: Ask) -> None:
    document = (await ask("GET", "/admin/openapi.json")).json
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["security"] == [{"bearer": []}]
    assert "ValidationError" not in str(document)
    error = {"$ref": "#/components/schemas/ErrorBody"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert {"400", "401", "403", "429"} <= set(answers), (method, path)
            assert "422" not in answers
            for status, answer in answers.items():
                if status >= "4":
                    assert answer["content"]["application/json"]["schema"] == error
    change = document["paths"]["/admin/api/keys/{ref}"]["patch"]
    assert {"400", "401", "403", "404", "409", "413", "429", "503"} <= set(change["responses"])
    assert not document["paths"]["/admin/api/keys/{ref}/rotate"]["post"]["requestBody"].get("required")
