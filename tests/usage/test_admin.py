"""Reports of the admin API, over its own door and a real socket."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from router.changes import Change
from router.keys import Key, Keys
from tests.usage.conftest import TOKEN

Get = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]


@pytest.fixture
def get(port: int) -> Get:
    def fetch(path: str, token: str) -> tuple[int, Any]:
        request = Request(f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {token}"})
        try:
            with urlopen(request, timeout=60) as answer:
                status, body, kind = answer.status, answer.read(), answer.headers["content-type"]
        except HTTPError as refused:
            with refused:
                status, body, kind = refused.code, refused.read(), refused.headers["content-type"]
        return status, json.loads(body) if kind == "application/json" else body.decode()

    async def ask(path: str, token: str = TOKEN, **query: str) -> tuple[int, Any]:
        return await asyncio.to_thread(fetch, path + ("?" + urlencode(query) if query else ""), token)

    return ask


async def test_usage(get: Get, used: tuple[Key, Key]) -> None:
    status, answer = await get("/admin/api/usage")
    assert status == 200
    assert answer["group_by"] == ["team", "key", "model"]
    assert answer["rows"] == 4
    assert answer["total"]["calls"] == 4
    assert answer["total"]["cost"] == "0.00001"
    assert answer["total"]["cost_cny"] == "0.00007"
    assert answer["data"][0] | {"key": "", "key_id": "", "team": "", "team_id": ""} == {
        "team": "", "team_id": "", "key": "", "key_id": "", "model": "gpt-4o", "calls": 1, "errors": 0,
        "fallbacks": 0, "aborted": 0, "estimated": 0, "unpriced": 0, "tokens_in": 100, "tokens_cached": 0,
        "tokens_cache_write": 0, "tokens_out": 10, "tokens_reasoning": 0, "media": 0, "cost": "0.000005",
        "cost_micro_usd": 5, "cost_cny": "0.000035",
    }  # fmt: skip
    _, one = await get("/admin/api/usage", key="ann", group_by="provider,day")
    assert [row["provider"] for row in one["data"]] == ["openai", "kimi"]
    _, team = await get("/admin/api/usage", team="research", group_by="", by="hour", since="2h")
    assert team["by"] == "hour"
    assert [row["calls"] for row in team["data"]] == [2]
    _, page = await get("/admin/api/usage", limit="1", offset="3")
    assert (len(page["data"]), page["rows"], page["total"]["calls"]) == (1, 4, 4)
    assert page["data"][0] == answer["data"][3]
    _, beyond = await get("/admin/api/usage", offset="9")
    assert beyond["data"] == []
    _, one_model = await get("/admin/api/usage", model="kimi*", provider="kimi")
    assert one_model["total"]["errors"] == 2


async def test_csv_holds_no_formula(get: Get, used: tuple[Key, Key]) -> None:
    for path, query in (("/admin/api/usage.csv", {}), ("/admin/api/usage", {"format": "csv"})):
        status, text = await get(path, **query)
        assert status == 200
        rows = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == 4
        assert {row["key"] for row in rows} == {"ann", "'=cmd()"}
        assert {row["team"] for row in rows} == {"research", "'-ops"}
        assert sum(int(row["calls"]) for row in rows) == 4


YESTERDAY, THE_DAY_BEFORE = (datetime.now(UTC).date() - timedelta(days) for days in (1, 2))
REFUSED = (
    ({"since": "99999d"}, "since"),
    ({"since": "garbage"}, "since"),
    ({"since": "2020-01-01"}, "since"),
    ({"until": "2026-99-99"}, "until"),
    ({"since": str(YESTERDAY), "until": str(THE_DAY_BEFORE)}, "until"),
    ({"by": "week"}, "by"),
    ({"by": "day", "group_by": "hour"}, "by"),
    ({"by": "hour", "since": "400d"}, "since"),
    ({"group_by": "owner"}, "group_by"),
    ({"limit": "0"}, "limit"),
    ({"limit": "1e9"}, "limit"),
    ({"limit": "10001"}, "limit"),
    ({"offset": "-1"}, "offset"),
    ({"format": "xml"}, "format"),
)


async def test_what_makes_no_sense_is_refused(get: Get, used: object) -> None:
    for query, param in REFUSED:
        status, answer = await get("/admin/api/usage", **query)
        assert (status, answer["error"]["param"]) == (400, param), (query, answer)


async def test_unknown_teams_and_keys(get: Get, used: object) -> None:
    for path in ("/admin/api/usage", "/admin/api/requests"):
        assert (await get(path, team="nobody"))[0] == 404
        assert (await get(path, key="nobody"))[0] == 404
        assert (await get(path, key="0" * 12))[0] == 404
        assert (await get(path, key="x" * 5000))[0] == 400


async def test_recent_requests(get: Get, used: tuple[Key, Key]) -> None:
    status, answer = await get("/admin/api/requests")
    assert status == 200
    assert [(row["key"], row["team"], row["status"]) for row in answer["data"]] == [
        ("=cmd()", "-ops", None),
        ("ann", "research", None),
    ]
    assert answer["data"][0]["age"] < 60
    assert answer["data"][0]["model"] == "gpt-4o"
    for query in ({"key": used[0].id}, {"team": "research"}, {"key": "ann", "status": "running"}):
        _, some = await get("/admin/api/requests", **query)
        assert [row["key"] for row in some["data"]] == ["ann"]
    _, none = await get("/admin/api/requests", status="failed")
    assert none["data"] == []
    _, more = await get("/admin/api/requests", after=str(answer["cursor"]))
    assert len(more["data"]) == 2
    for query in ({"status": "bad"}, {"status": "４２９"}, {"after": "x"}, {"limit": "1001"}):
        assert (await get("/admin/api/requests", **query))[0] == 400


async def test_only_administrators_read_reports(get: Get, keys: Keys, used: object) -> None:
    _, plain = await keys.create(Change(name="plain"))
    for path in ("/admin/api/usage", "/admin/api/usage.csv", "/admin/api/requests"):
        assert (await get(path, plain))[0] == 403


async def test_the_document_names_everything(get: Get) -> None:
    _, document = await get("/admin/openapi.json")
    assert {"/admin/api/usage", "/admin/api/usage.csv", "/admin/api/requests"} <= set(document["paths"])
    named = {one["name"] for one in document["paths"]["/admin/api/usage"]["get"]["parameters"]}
    assert {"since", "until", "by", "group_by", "team", "key", "model", "provider", "limit", "offset"} <= named
