"""Who may read `/metrics`, and the listener that it may have to itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from router.throttle import BURST
from tests.router.test_serve import failed
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator, free_port
from tests.simulators.waiting import until

Serve = Callable[..., RouterProcess]
FROM_ELSEWHERE = {"X-Forwarded-For": "10.1.2.3"}
TOKEN = "a-token-for-scrapes"


def status(port: int, path: str, headers: dict[str, str] | None = None) -> int:
    return Client(port, "").request("GET", path, headers=headers).status


def bearer(token: str | None, more: dict[str, str] | None = None) -> dict[str, str]:
    return {**(more or {}), "Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def config(cloud: Simulator, local: Simulator) -> dict[str, Any]:
    return providers(cloud.url, local.url)


def test_a_token_is_asked_for_where_one_is_set(serve: Serve, config: dict[str, Any]) -> None:
    router = serve({**config, "server": {"metrics": {"token": TOKEN}}}, UNHURRIED)
    assert status(router.port, "/metrics") == 401
    assert status(router.port, "/metrics", bearer("another")) == 401
    assert status(router.port, "/metrics", bearer("clé")) == 401
    assert status(router.port, "/metrics", bearer(router.key)) == 401, "a key of calls"
    for more in ({}, FROM_ELSEWHERE):
        assert status(router.port, "/metrics", bearer(TOKEN, more)) == 200
        assert status(router.port, "/metrics", bearer(router.admin_token, more)) == 200
    reply = Client(router.port, "").request("GET", "/admin/api/keys", headers=bearer(TOKEN))
    assert reply.status == 401, "it reads metrics and nothing else"
    router.write_config({**config, "server": {"metrics": {"token": f"{TOKEN}-2"}}})
    router.process.send_signal(1)
    until(lambda: status(router.port, "/metrics", bearer(f"{TOKEN}-2")) == 200)
    assert status(router.port, "/metrics", bearer(TOKEN)) == 401
    assert TOKEN not in "\n".join([*router.out, *router.err])


def test_wrong_tokens_are_counted_together_with_those_of_the_admin_api(serve: Serve, config: dict[str, Any]) -> None:
    server = {"trusted_proxies": ["127.0.0.0/8"], "metrics": {"token": TOKEN}}
    router = serve({**config, "server": server}, UNHURRIED)

    def ask(path: str, token: str | None, address: str) -> int:
        told = {"X-Forwarded-For": address}
        return status(router.port, path, told if token is None else bearer(token, told))

    stranger, neighbour = "203.0.113.9", "203.0.113.10"
    assert {ask("/metrics", None, stranger) for _ in range(3 * BURST)} == {401}, "that is no guess"
    guesses = [ask("/metrics", f"wrong-{number}", stranger) for number in range(3 * BURST)]
    assert guesses[:BURST] == [401] * BURST
    assert guesses.count(429) > BURST
    # Of three, since a guess may be given back meanwhile.
    assert 429 in {ask("/admin/api/keys", "wrong", stranger) for _ in range(3)}
    assert ask("/metrics", "wrong", neighbour) == 401
    for address in (stranger, neighbour):
        assert ask("/metrics", TOKEN, address) == ask("/metrics", router.admin_token, address) == 200
    headers = bearer("wrong", {"X-Forwarded-For": stranger})
    replies = [Client(router.port, "").request("GET", "/metrics", headers=headers) for _ in range(3)]
    refused = [reply for reply in replies if reply.json["error"]["code"] == "too_many_attempts"]
    assert refused
    assert all(int(reply.headers["retry-after"]) > 0 for reply in refused)


def test_the_scheme_has_no_case(serve: Serve, config: dict[str, Any]) -> None:
    router = serve({**config, "server": {"metrics": {"token": TOKEN}}}, UNHURRIED)
    for scheme in ("bearer", "BEARER", "Bearer "):
        assert status(router.port, "/metrics", {"Authorization": f"{scheme} {TOKEN}"}) == 200
    assert status(router.port, "/metrics", {"Authorization": f"Basic {TOKEN}"}) == 401


def test_pages_in_a_browser_read_nothing(serve: Serve, config: dict[str, Any]) -> None:
    """Neither under another name of this address (DNS rebinding), nor as a page that may make calls."""
    router = serve({**config, "server": {"cors_origins": ["*"]}}, UNHURRIED)
    page = "https://evil.example"
    for headers in ({"Host": "evil.example"}, {"Host": f"evil.example:{router.port}"}, {"Origin": page}):
        assert status(router.port, "/metrics", headers) == 401, headers
        assert status(router.port, "/metrics", bearer(router.admin_token, headers)) == 200
        reply = Client(router.port, "").request("GET", "/readyz", headers=headers)
        assert json.loads(reply.body) == {"status": "ready"}
    for path in ("/metrics", "/metrics/", "/readyz", "/healthz"):
        asked = {"Origin": page, "Access-Control-Request-Method": "GET"}
        for method, headers in (("GET", {"Origin": page}), ("OPTIONS", asked)):
            reply = Client(router.port, "").request(method, path, headers=headers)
            assert not [name for name in reply.headers if name.startswith("access-control")], (method, path)
    calls = Client(router.port, router.key).request("GET", "/v1/models", headers={"Origin": page})
    assert calls.headers["access-control-allow-origin"] == page
    for host in (f"localhost:{router.port}", f"127.0.0.1:{router.port}", f"[::1]:{router.port}"):
        assert status(router.port, "/metrics", {"Host": host}) == 200
        assert "providers" in Client(router.port, "").request("GET", "/readyz", headers={"Host": host}).json


def test_without_a_token_only_this_machine_reads(serve: Serve, config: dict[str, Any]) -> None:
    router = serve(config, UNHURRIED)
    assert status(router.port, "/metrics") == 200
    assert status(router.port, "/metrics", FROM_ELSEWHERE) == 401
    assert status(router.port, "/metrics", bearer(router.admin_token, FROM_ELSEWHERE)) == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_listener_of_its_own(serve: Serve, config: dict[str, Any], workers: int) -> None:
    port = free_port()
    server = {"metrics": {"listen": {"host": "127.0.0.1", "port": port}}}
    router = serve({**config, "server": server}, UNHURRIED, ["--workers", str(workers), "--no-log"])
    assert f"  metrics      http://127.0.0.1:{port}/metrics" in router.out
    Client(router.port, router.key).ask(OPENAI, "chat", stream=False)
    counted = b'switchyard_requests_total{dialect="openai",route="chat"'
    until(lambda: counted in Client(port, "").request("GET", "/metrics").body)
    assert status(port, "/healthz") == 200
    assert status(port, "/readyz") == 200
    assert status(port, "/metrics", FROM_ELSEWHERE) == 401
    refused = Client(port, router.key).request("POST", OPENAI.path, OPENAI.body("chat", stream=False))
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (404, "not_found")
    assert status(port, "/admin/api/keys", bearer(router.admin_token)) == 404
    assert Client(port, "").request("POST", "/metrics", {}).status == 405
    for path, wanted in (("/metrics", 404), ("/metrics/", 404), ("/healthz", 200), ("/readyz", 200)):
        assert status(router.port, path) == wanted, path
    missed = Client(router.port, "").request("GET", "/metrics").json["error"]["message"]
    assert "server.metrics.listen" in missed
    assert "did you mean" not in missed
    assert router.stop() == 0


def test_a_listener_that_is_open_to_all(serve: Serve, config: dict[str, Any]) -> None:
    port = free_port()
    router = serve({**config, "server": {"metrics": {"listen": {"port": port, "allow_remote": True}}}})
    assert status(port, "/metrics", FROM_ELSEWHERE) == 200
    assert json.loads(Client(port, "").request("GET", "/readyz", headers=FROM_ELSEWHERE).body) == {"status": "ready"}
    router.stop()


def test_a_listener_whose_port_is_taken(serve: Serve, config: dict[str, Any], tmp_path: Any) -> None:
    router = serve(config, UNHURRIED)
    rows = {"server": {"listen": [{"port": free_port()}], "metrics": {"listen": {"port": router.port}}}}
    code, said = failed(tmp_path, {**rows, "data_dir": str(tmp_path / "data"), "providers": {}})
    assert code != 0
    assert f"cannot listen on 127.0.0.1:{router.port}: address already in use (set server.metrics.listen)" in said
