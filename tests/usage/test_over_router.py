"""Whole routers: what the simulator delivered is what key holders, administrators and clients are told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.conftest import Serve
from tests.simulators import router as routers
from tests.simulators.client import OLLAMA, OPENAI, Client, Reply
from tests.simulators.router import UNHURRIED, RouterProcess
from tests.simulators.server import Simulator
from tests.simulators.waiting import one_day, until

PRICES = {
    "prices": [
        {
            "provider": provider,
            "currency": "usd",
            "source": "https://example.com/prices",
            "looked_at": "2026-11-22",
            "models": {"*": {"input": 1000, "output": 2000}},
        }
        for provider in ("cloud", "hasty", "down")
    ]
}
"""7 tokens in and 3 out, as the simulator counts, cost 0.013 dollars."""
COST = 13_000


@pytest.fixture(scope="module")
def running(
    module_serve: Serve, cloud: Simulator, local: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> RouterProcess:
    prices = tmp_path_factory.mktemp("prices") / "own.yaml"
    prices.write_text(json.dumps(PRICES))
    unpriced = {"vendor": "openai-compatible", "base_url": f"{cloud.url}/v1", "api_key": "k"}
    config = routers.providers(cloud.url, local.url, unpriced=unpriced)
    config["models"]["half"] = {"targets": ["cloud/role-then-garbage@half"], "fallback": ["down/nobody"]}
    return module_serve(config | {"prices": {"file": str(prices), "usd_cny": 7}}, UNHURRIED)


@pytest.fixture(scope="module")
def admin(running: RouterProcess) -> Client:
    return Client(running.port, running.admin_token)


NewKey = Callable[..., tuple[str, Client]]


@pytest.fixture
def new_key(running: RouterProcess, admin: Client, request: pytest.FixtureRequest) -> NewKey:
    """A key's id, and a client that has it. Each test has a team of its own."""
    numbers = iter(range(100))
    team = request.node.name[:80]

    def make(*, team: str = team, **fields: Any) -> tuple[str, Client]:
        body = {"name": f"{request.node.name[:60]} {next(numbers)}", "team": team, **fields}
        made = admin.request("POST", "/admin/api/keys", body)
        assert made.status == 201, made
        return made.json["id"], Client(running.port, made.json["key"])

    return make


def told(client: Client, path: str) -> Any:
    answer = client.request("GET", path)
    assert answer.status == 200, answer
    return answer.json


def settled(admin: Client, key: str, calls: int) -> Any:
    """The key's sums once that many calls are in them."""
    report: Any = {}

    def there() -> bool:
        report.update(told(admin, f"/admin/api/usage?key={key}&group_by=model,provider&since=2d"))
        return bool(report["total"]["calls"] >= calls)

    until(there, what=lambda: report)
    assert report["total"]["calls"] == calls, report
    return report


@pytest.fixture
def today() -> None:
    """Calls and looks at today's sums lie on one day."""
    one_day()


@pytest.mark.usefixtures("today")
def test_sums_are_what_the_simulator_delivered(new_key: NewKey, admin: Client, fresh: Callable[[str], str]) -> None:
    key, client = new_key()
    model, unreachable = fresh("answer"), fresh("answer")
    for stream in (False, True, False):
        assert client.ask(OPENAI, f"cloud/{model}", stream=stream).status == 200
    assert client.ask(OLLAMA, f"cloud/{model}", stream=True).status == 200
    assert client.ask(OPENAI, f"down/{unreachable}", stream=False).status == 200  # the local one answers
    refused = client.ask(OPENAI, f"cloud/{fresh('500')}", stream=False, headers={"x-switchyard-no-fallback": "1"})
    assert refused.status >= 500
    report = settled(admin, key, 6)
    rows = {(row["provider"], row["model"].partition("@")[0]): row for row in report["data"]}
    answered = rows["cloud", "answer"]
    assert (answered["calls"], answered["tokens_in"], answered["tokens_out"]) == (4, 28, 12)
    assert (answered["cost_micro_usd"], answered["cost"], answered["cost_cny"]) == (4 * COST, "0.052", "0.364")
    assert (answered["errors"], answered["estimated"], answered["unpriced"]) == (0, 0, 0)
    stood_in = rows["local", "llama3.2"]
    assert (stood_in["calls"], stood_in["fallbacks"], stood_in["cost"]) == (1, 1, "0.00")
    assert report["total"]["errors"] == 1
    own = told(client, "/v1/usage?days=2&group_by=provider")
    assert own["total"] == own["today"] == own["month"] == report["total"]
    # Hours and days, rows and totals, JSON and CSV say the same.
    for query in ("by=hour", "by=day", "group_by=hour,model", "group_by=day", "group_by="):
        assert told(admin, f"/admin/api/usage?key={key}&since=2d&{query}")["total"] == report["total"]
    text = admin.request("GET", f"/admin/api/usage.csv?key={key}&group_by=provider").body.decode()
    assert "cloud,5," in text


def test_a_failure_is_charged_to_who_took_the_call(new_key: NewKey, admin: Client) -> None:
    key, client = new_key()
    refused = client.ask(OPENAI, "half", stream=False)
    assert refused.status == 502, refused
    report = settled(admin, key, 1)
    rows = {row["provider"]: row for row in report["data"]}
    assert rows["cloud"]["tokens_in"] > 0
    assert rows["cloud"]["cost_micro_usd"] == report["total"]["cost_micro_usd"] > 0
    # The fallback was tried last, and never reached.
    assert (rows["down"]["calls"], rows["down"]["tokens_in"], rows["down"]["cost_micro_usd"]) == (1, 0, 0)


def test_recent_requests_from_beginning_to_end(new_key: NewKey, admin: Client, fresh: Callable[[str], str]) -> None:
    key, client = new_key()
    path = f"/admin/api/requests?key={key}"
    assert told(admin, path)["data"] == []
    model = f"cloud/{fresh('endless-slow')}"
    with client.open("POST", OPENAI.path, OPENAI.body(model, stream=True)) as answer:
        request_id = answer.headers["x-request-id"]
        (row,) = told(admin, path)["data"]
        assert (row["id"], row["status"], row["model"], row["key_id"]) == (request_id, None, model, key)
        assert 0 <= row["age"] < 60
        assert told(admin, f"{path}&status=running")["data"] == [row | {"age": pytest.approx(row["age"], abs=60)}]
    settled(admin, key, 1)
    (row,) = told(admin, path)["data"]
    assert (row["status"], row["outcome"], row["age"], row["answered_by"]) == (499, "aborted", None, model)
    assert row["cost_micro_usd"] > 0
    refused = client.ask(OPENAI, f"cloud/{fresh('500')}", stream=False, headers={"x-switchyard-no-fallback": "1"})
    settled(admin, key, 2)
    failed = told(admin, f"{path}&status=failed")["data"]
    assert [row["status"] for row in failed] == [refused.status, 499]
    assert told(admin, f"{path}&status=running")["data"] == []
    assert told(admin, f"{path}&limit=1")["data"] == failed[:1]
    assert "Hello" not in json.dumps(failed)  # the prompt


def test_a_refusal_by_a_limit_is_among_the_calls_that_failed(
    new_key: NewKey, admin: Client, fresh: Callable[[str], str]
) -> None:
    key, client = new_key(limits={"max_requests": 1})
    other, _ = new_key()
    model = f"cloud/{fresh('answer')}"
    assert [client.ask(OPENAI, model, stream=False).status for _ in range(4)] == [200, 429, 429, 429]
    settled(admin, key, 1)
    path = f"/admin/api/requests?key={key}"
    failed = told(admin, f"{path}&status=failed")["data"]
    assert 1 <= len(failed) <= 2  # the first of an hour
    assert {(row["status"], row["outcome"], row["limit"]) for row in failed} == {(429, "limit", "max_requests")}
    assert told(admin, f"{path}&status=429")["data"] == failed
    assert [row["status"] for row in told(admin, path)["data"]] == [429] * len(failed) + [200]
    assert told(admin, f"/admin/api/requests?key={other}&status=429")["data"] == []


def test_calls_that_a_fallback_answered(new_key: NewKey, admin: Client, fresh: Callable[[str], str]) -> None:
    key, client = new_key()
    for model in (f"cloud/{fresh('answer')}", f"down/{fresh('answer')}"):
        assert client.ask(OPENAI, model, stream=False).status == 200
    settled(admin, key, 2)
    path = f"/admin/api/requests?key={key}"
    (row,) = told(admin, f"{path}&fallback=true")["data"]
    assert row["model"].startswith("down/")
    assert row["answered_by"].startswith("local/")
    assert row["fallback"] == "unreachable"
    assert len(told(admin, f"{path}&fallback=false")["data"]) == 2
    assert admin.request("GET", f"{path}&fallback=perhaps").status == 400


def limits_of(answer: Any) -> dict[str, Any]:
    return {limit["name"]: limit for limit in answer["limits"]}


@pytest.mark.usefixtures("today")
def test_limits_show_what_is_spent(new_key: NewKey, admin: Client, fresh: Callable[[str], str]) -> None:
    limits = {"rpm": 60, "concurrency": 4, "budget": {"total": "2usd", "month": "100cny"}, "max_requests": 50}
    team = admin.request("POST", "/admin/api/teams", {"name": "limits show", "limits": {"budget": {"day": "1usd"}}})
    assert team.status == 201, team
    key, client = new_key(team="limits show", limits=limits, expires="30d")
    for _ in range(2):
        assert client.ask(OPENAI, f"cloud/{fresh('answer')}", stream=False, max_tokens=5).status == 200
    settled(admin, key, 2)
    answer = told(client, "/usage")
    assert answer["key"]["team"] == "limits show"
    found = limits_of(answer)
    assert set(found) == {
        "rpm", "concurrency", "budget_total", "budget_month", "max_requests", "team.budget_day",
    }  # fmt: skip
    assert (found["rpm"]["spent"], found["max_requests"]["spent"], found["concurrency"]["held"]) == (2, 2, 0)
    assert (found["budget_total"]["spent"], found["budget_total"]["remaining"]) == (0.026, 1.974)
    assert (found["budget_month"]["spent"], found["budget_month"]["unit"]) == (0.182, "cny")
    assert (found["team.budget_day"]["spent"], found["team.budget_day"]["held"]) == (0.026, 0)
    assert found["team.budget_day"]["resets_at"].endswith("T00:00:00Z")

    subscription = told(client, "/dashboard/billing/subscription")
    until = subscription.pop("access_until")
    assert abs(until - time.time() - 30 * 86400) < 600
    assert subscription == {
        "object": "billing_subscription", "has_payment_method": True, "soft_limit_usd": 2.0, "hard_limit_usd": 2.0,
        "system_hard_limit_usd": 2.0,
    }  # fmt: skip
    for path in ("/dashboard/billing/usage", "/v1/dashboard/billing/usage?start_date=2026-01-01&end_date=2026-01-02"):
        assert told(client, path) == {"object": "list", "total_usage": 2.6}


@pytest.mark.usefixtures("today")
def test_balance_without_limits(new_key: NewKey, admin: Client, fresh: Callable[[str], str]) -> None:
    key, client = new_key()
    assert client.ask(OPENAI, f"cloud/{fresh('answer')}", stream=False).status == 200
    settled(admin, key, 1)
    subscription = told(client, "/v1/dashboard/billing/subscription")
    assert (subscription["hard_limit_usd"], subscription["access_until"]) == (100_000_000, 0)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400))
    for query, cents in (
        ("", 1.3),
        (f"?start_date={today[:8]}01&end_date={tomorrow}", 1.3),  # as NextChat asks
        ("?start_date=1999-01-01", 1.3),
        ("?start_date=2020-01-01&end_date=2020-02-01", 0),
    ):
        answer = told(client, f"/dashboard/billing/usage{query}")
        assert answer == {"object": "list", "total_usage": cents}, query


def test_a_key_with_a_budget_sees_no_model_without_a_price(new_key: NewKey, admin: Client) -> None:
    paying, plain = (new_key(rights={"allow_fallback": False}) for _ in range(2))
    admin.request("PATCH", f"/admin/api/keys/{paying[0]}", {"limits": {"budget": {"day": "1usd"}}})
    assert plain[1].request("GET", "/v1/models/unpriced/anything").status == 200
    assert paying[1].request("GET", "/v1/models/unpriced/anything").status == 404
    assert paying[1].request("POST", "/api/show", {"model": "unpriced/anything"}).status == 404
    assert paying[1].request("GET", "/v1/models/cloud/anything").status == 200
    refused = paying[1].ask(OPENAI, "unpriced/anything", stream=False)
    assert (refused.status, refused.json["error"]["code"]) == (403, "model_unpriced")


def test_running_calls_are_held(new_key: NewKey, fresh: Callable[[str], str]) -> None:
    _, client = new_key(limits={"concurrency": 3, "budget": {"total": "50usd"}})
    body = OPENAI.body(f"cloud/{fresh('endless-slow')}", stream=True, max_tokens=10)
    with client.open("POST", OPENAI.path, body) as answer:
        assert answer.status == 200
        answer.read1(1)
        found = limits_of(told(client, "/v1/usage"))
        assert found["concurrency"]["held"] == 1
        assert float(found["budget_total"]["held"]) > 0
        # What is held may come back: a balance that counted it would jump.
        assert told(client, "/dashboard/billing/usage")["total_usage"] == 0


REFUSED: Mapping[str, str] = {
    "/v1/usage?days=99999": "days",
    "/v1/usage?days=0": "days",
    "/v1/usage?days=-1": "days",
    "/v1/usage?days=": "days",
    "/v1/usage?days=1e3": "days",
    "/v1/usage?days=%D9%A3": "days",
    "/v1/usage?group_by=key": "group_by",
    "/v1/usage?group_by=hour&days=60": "since",
    "/v1/usage?by=year": "by",
    "/v1/usage?team=other": "team",
    "/v1/usage?" + "&".join(f"x{n}=1" for n in range(50)): "",
    "/dashboard/billing/usage?start_date=garbage": "start_date",
    "/dashboard/billing/usage?end_date=2026-99-01": "end_date",
}


def test_what_makes_no_sense_is_refused(new_key: NewKey) -> None:
    _, client = new_key()
    for path, param in REFUSED.items():
        answer = client.request("GET", path)
        assert answer.status == 400, (path, answer)
        OPENAI.error_of(answer)
        assert answer.json["error"]["param"] == (param or None), path
    # Dates that are possible, though nothing is kept of them.
    for query in ("start_date=0001-01-01&end_date=0001-01-01", "start_date=9999-12-31", "end_date=9999-12-31"):
        assert client.request("GET", f"/dashboard/billing/usage?{query}").status == 200, query


PATHS = ("/v1/usage", "/usage", "/dashboard/billing/subscription", "/v1/dashboard/billing/usage")


def test_nobody_sees_what_others_used(new_key: NewKey, admin: Client, fresh: Callable[[str], str]) -> None:
    key, client = new_key(team="shared")
    other, neighbour = new_key(team="shared")
    assert client.ask(OPENAI, f"cloud/{fresh('answer')}", stream=False).status == 200
    settled(admin, key, 1)
    seen = told(neighbour, "/v1/usage?days=30&group_by=model,provider,day")
    assert (seen["key"]["id"], seen["today"]["calls"], seen["data"]) == (other, 0, [])
    assert key not in json.dumps(seen)
    assert told(neighbour, "/dashboard/billing/usage")["total_usage"] == 0
    # A parameter that names another key is a credential, and no good one.
    assert neighbour.request("GET", f"/v1/usage?key={key}").status == 401
    for path in PATHS:
        for wrong in ("", "sk-nonsense", f"sk-sy-{key}-" + "A" * 49):
            answer = neighbour.request("GET", path, key=wrong)
            assert answer.status == 401, answer
            OPENAI.error_of(answer)
    assert admin.request("PATCH", f"/admin/api/keys/{key}", {"state": "disabled"}).status == 200
    assert client.request("GET", "/v1/usage").status == 401
    for path in ("/admin/api/usage", "/admin/api/requests", "/admin/api/usage.csv"):
        assert neighbour.request("GET", path).status == 403


def test_a_key_of_other_networks_is_told_nothing(new_key: NewKey) -> None:
    _, client = new_key(networks=["203.0.113.0/24"])
    for path in (*PATHS, "/v1/models", "/api/tags"):
        answer = client.request("GET", path)
        assert answer.status == 403, (path, answer)
        assert b"network address" in answer.body


def test_methods(new_key: NewKey) -> None:
    _, client = new_key()
    for path in (*PATHS, "/v1/usage/"):
        head: Reply = client.request("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > 20
        assert head.headers["cache-control"] == "no-store"
        assert client.request("POST", path, {}).status == 405
    assert client.request("GET", "/v1/usages").json["error"]["message"].endswith("did you mean /v1/usage?")
