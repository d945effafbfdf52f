"""One suite for every kind of store: keys, limits, usage, revocation, the audit log, and the move to another store."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.router.test_serve import Connections
from tests.simulators.client import OPENAI, Client, Reply
from tests.simulators.router import UNHURRIED
from tests.simulators.stores import until
from tests.simulators.waiting import Pulse
from tests.stores.paid import COST_OF_ONE, Paid
from tests.stores.stands import KINDS, House, house

PARALLEL = 100
CUT = 5.0
"""Seconds in which the streams of a revoked key end."""
ELSEWHERE = {"embedded": "cluster", "cluster": "embedded", "redis": "sentinel", "sentinel": "redis"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.slow) if kind != "cluster" else kind for kind in KINDS],
)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with Paid() as paid, house(request.param, tmp_path_factory.mktemp(request.param), paid, env=UNHURRIED) as made:
        yield made
        assert not paid.failures, paid.failures


def parallel(home: House, key: str, number: int = PARALLEL, **more: Any) -> list[tuple[int, str]]:
    """Status and code of each of `number` calls made at once."""
    load = home.load(key, callers=number, most=1, pace=0, **more)
    with load:
        load.wait()
    assert {outcome.complete for outcome in load.answered()} <= {True}
    return [(outcome.status, outcome.code) for outcome in load.outcomes]


def test_keys_and_teams_of_the_command_line(home: House) -> None:
    team = home.told("teams", "create", "lab", "--max-requests", "5", "--timezone", "Asia/Shanghai")
    made = home.told("keys", "create", "ada", "--team", "lab", "--models", "sim/*")
    client = home.client(made["key"])
    for _ in range(5):
        assert client.ask(OPENAI, "sim/paid", stream=False).status == 200
    home.books()  # until the last call is settled it holds what it may take
    refused = client.ask(OPENAI, "sim/paid", stream=False)
    assert (refused.status, refused.json["error"]["code"]) == (429, "insufficient_quota")
    home.told("teams", "set", "lab", "--max-requests", "6")
    assert client.ask(OPENAI, "sim/paid", stream=True).status == 200
    assert client.ask(OPENAI, "chat", stream=False).status == 403, "a model that the key does not have"
    books = home.books()
    assert books.usage(made["id"])["calls"] == 6
    (row,) = home.told("usage", "--team", "lab", "--group-by", "key")["data"]
    assert (row["calls"], row["cost_micro_usd"]) == (6, books.usage(made["id"])["cost"])
    assert [entry["id"] for entry in home.told("keys", "ls", "--team", "lab")] == [made["id"]]
    assert home.told("teams", "show", "lab")["id"] == team["id"]


@pytest.mark.parametrize(
    ("limits", "most", "code"),
    [
        pytest.param({"max_requests": 37}, 37, "insufficient_quota", id="calls in total"),
        pytest.param({"rpm": 23}, 23, "rate_limit_exceeded", id="calls in a minute"),
        pytest.param({"max_requests": {"day": 41}}, 41, "insufficient_quota", id="calls in a day"),
    ],
)
def test_parallel_calls_within_limits(home: House, limits: Any, most: int, code: str) -> None:
    key_id, key = home.key(f"parallel {limits}", limits=limits)
    found = Counter(parallel(home, key, max_tokens=50))
    assert found[200, ""] == most, found
    assert set(found) <= {(200, ""), (429, code), (429, "rate_limit_exceeded")}, found
    assert home.books().usage(key_id)["calls"] == most


def test_parallel_calls_at_once(home: House) -> None:
    key_id, key = home.key("at once", limits={"concurrency": 7})
    before = len(home.paid.asked("gate"))
    with home.load(key, model="sim/gate", callers=PARALLEL, most=1, pace=0) as load:
        until(lambda: len(load.outcomes) == PARALLEL - 7, "the others are refused")
        until(lambda: len(home.paid.asked("gate")) == before + 7, "seven are at the provider")
        home.paid.open.set()
        load.wait()
    home.paid.open.clear()
    assert load.statuses == {200: 7, 429: PARALLEL - 7}
    assert home.books().usage(key_id)["calls"] == 7
    assert set(Counter(parallel(home, key, 7))) <= {(200, ""), (429, "rate_limit_exceeded")}, "places are free again"


def test_a_budget_in_money_is_spent_to_its_end(home: House) -> None:
    """Together the calls hold more than there is, so some are refused; one after the other all of it can be spent."""
    key_id, key = home.key("money", limits={"budget": {"total": f"{30 * COST_OF_ONE / 1e6:.6f}usd"}})
    first = Counter(status for status, _ in parallel(home, key, model="sim/even", max_tokens=10))
    assert set(first) == {200, 429}
    client = home.client(key)
    answered = first[200]
    while client.ask(OPENAI, "sim/even", stream=False, max_tokens=10).status == 200:
        answered += 1
    books = home.books()
    assert books.spent("budget_total", key_id) == answered * COST_OF_ONE == books.usage(key_id)["cost"]
    assert 27 <= answered <= 30, "what is left is less than one call may take"


def test_usage_is_what_was_delivered(home: House) -> None:
    key_id, key = home.key("usage")
    before = dict(home.paid.sums("paid"))
    with home.load(key, callers=20, most=10, pace=0, max_tokens=60) as load:
        load.wait()
    assert load.statuses == {200: 200}
    after = home.paid.sums("paid")
    delivered = {name: after[name] - before[name] for name in after}
    usage = home.books().usage(key_id)
    assert {name: usage[name] for name in delivered} == delivered
    report = home.admin.request("GET", f"/admin/api/usage?key={key_id}&group_by=key").json["total"]
    assert (report["calls"], report["tokens_in"], report["tokens_out"], report["cost_micro_usd"]) == tuple(
        delivered.values()
    )


def test_a_revoked_key_is_refused_on_its_next_call_and_its_streams_end(home: House) -> None:
    key_id, key = home.key("revoked")
    client = home.client(key)
    many = [Client(home.router.port, key) for _ in range(8)]
    assert client.ask(OPENAI, "sim/paid", stream=False).status == 200
    with (
        Connections(home.router) as both,
        Pulse(lambda: both.statuses("GET", "/healthz", "")) as pulse,
        home.load(key, model="sim/lasting@30", callers=6, most=1, stream=True) as load,
    ):
        until(lambda: len(home.paid.asked("lasting@30")) == 6, "the streams run")
        assert home.admin.request("DELETE", f"/admin/api/keys/{key_id}").status == 200
        revoked = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            replies: list[Reply] = list(pool.map(lambda one: one.ask(OPENAI, "sim/paid", stream=False), many))
        assert {reply.status for reply in replies} == {401}
        load.wait()
    ended = max(outcome.ended for outcome in load.outcomes)
    assert ended - revoked <= CUT + pulse.standstill(revoked, ended)
    assert [b"This API key is revoked" in outcome.body and not outcome.complete for outcome in load.outcomes] == [
        True
    ] * 6
    books = home.books()
    assert books.usage(key_id)["calls"] == 7
    assert max(books.ended().values()) == 1
    home.paid.requests.clear()


def test_every_change_is_in_the_audit_log(home: House) -> None:
    home.told("keys", "create", "noted")
    verified = home.told("audit", "verify")
    assert verified["ok"]
    assert verified["entries"] > 5
    names = [entry["action"] for entry in home.told("audit", "ls")]
    assert any("create" in name for name in names), names


def test_the_move_to_another_store(home: House, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    kind = request.node.callspec.params["home"]
    key_id, key = home.key("moves", team="movers", limits={"max_requests": 3, "budget": {"total": "1usd"}})
    plain_id, plain = home.key("moves too", limits={"rpm": 1000})
    for _ in range(2):
        assert home.client(key).ask(OPENAI, "sim/even", stream=False).status == 200
    before = home.books()
    done = home.run("keys", "export", "--usage")
    assert done.returncode == 0, done.stderr
    assert key not in done.stdout
    with house(ELSEWHERE[kind], tmp_path, home.paid, env=UNHURRIED) as other:
        for _ in range(2):  # again does no harm
            brought = other.run("keys", "import", "-", given=done.stdout)
            assert brought.returncode == 0, brought.stderr
        after = other.books()
        assert after.spent("budget_total", key_id) == before.spent("budget_total", key_id) == 2 * COST_OF_ONE
        assert after.usage(key_id) == before.usage(key_id)
        client = other.client(key)
        assert client.ask(OPENAI, "sim/even", stream=False).status == 200
        other.books()
        refused = client.ask(OPENAI, "sim/even", stream=False)
        assert (refused.status, refused.json["error"]["code"]) == (429, "insufficient_quota"), "two of three were spent"
        assert other.client(plain).ask(OPENAI, "sim/paid", stream=True).status == 200
        assert other.books().spent("budget_total", key_id) == 3 * COST_OF_ONE
        assert other.told("audit", "verify")["ok"]
        lines = [json.loads(line) for line in other.run("keys", "export").stdout.splitlines()]
        assert {plain_id, key_id} <= {line.get("key") for line in lines}
