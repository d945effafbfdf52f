"""Paths and methods: what is served, what is not, and how each dialect is told."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.simulators.client import OLLAMA, OPENAI, Client, replies
from tests.simulators.dialects import SECRET
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.scripts import ANSWER
from tests.simulators.server import Simulator

BODY = OPENAI.body("chat", stream=False)


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/chat/completions/", "/chat/completions", "/api/v3/chat/completions", "/api/chat",
     "/api/chat/"],
)  # fmt: skip
def test_a_call_by_every_spelling(client: Client, path: str) -> None:
    reply = client.request("POST", path, BODY)
    assert reply.status == 200, reply
    assert ANSWER in json.dumps(reply.json, ensure_ascii=False)
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/models", "/api/v3/models"])
def test_the_model_list(client: Client, path: str) -> None:
    reply = client.request("GET", path)
    assert reply.status == 200
    assert "chat" in [entry["id"] for entry in reply.json["data"]]
    assert client.request("GET", path, key="").status == 401


def test_one_model(client: Client) -> None:
    assert client.request("GET", "/v1/models/chat").json["id"] == "chat"
    reply = client.request("GET", "/v1/models/chatt")
    assert reply.status == 404
    assert reply.json["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/chat/completions", "base URL already ends in /v1"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/v1/responses", "/v1/responses is not served yet: there are /v1/chat/completions"),
        ("/v1/audio/speech", "/v1/audio/speech is not served yet"),
        ("/images/generations", "is not served yet"),
        ("/v1/messages", "is not served yet"),
        ("/nothing/of/the/kind", "there is no /nothing/of/the/kind"),
        ("/../../etc/passwd", "there is no"),
        ("/v1/" + "x" * 4000, "there is no"),
    ],
)
def test_an_unknown_path(client: Client, path: str, hint: str) -> None:
    for method in ("GET", "POST"):
        reply = client.request(method, path, BODY if method == "POST" else None)
        assert reply.status == 404
        assert hint in OPENAI.error_of(reply)
        assert len(reply.body) < 1000


def test_an_unknown_path_of_ollamas_api(client: Client) -> None:
    reply = client.request("POST", "/api/chatter", BODY)
    assert reply.status == 404
    assert client.request("GET", "/api/chat").status in (404, 405), "as Ollama has it"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_method_that_is_not_taken(client: Client, method: str) -> None:
    reply = client.request(method, OPENAI.path)
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert OPENAI.error_of(reply)
    assert client.request("POST", "/v1/models", BODY).headers["allow"] == "GET, HEAD"


def test_the_root_is_ollamas(client: Client) -> None:
    assert client.request("GET", "/", key="").body == b"Ollama is running"
    reply = client.request("HEAD", "/", key="")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-length"] == str(len("Ollama is running"))
    assert client.request("HEAD", "/api/tags").status == 200


def test_every_model_route_needs_a_key(client: Client) -> None:
    public = {"/", "/api/version", "/healthz", "/readyz", "/metrics"}
    assert all(client.request("GET", path, key="").status == 200 for path in public)
    for method, path in [
        *(("POST", f"/v1/{name}") for name in ("chat/completions", "completions", "embeddings")),
        *(("POST", f"/api/{name}") for name in ("chat", "generate", "embed", "embeddings", "show", "pull", "push")),
        *(("POST", f"/api/{name}") for name in ("create", "copy")),
        *(("DELETE", f"/api/{name}") for name in ("delete",)),
        *(("GET", f"/api/{name}") for name in ("tags", "ps")),
        *(("GET", path) for path in ("/v1/models", "/v1/models/chat", "/models")),
        *(("GET", path) for path in ("/admin/api/keys",)),
    ]:
        reply = client.request(method, path, BODY if method == "POST" else None, key="")
        assert reply.status == 401, (method, path, reply)


def test_the_operators_pages(client: Client, router: RouterProcess, fresh: Callable[[str], str]) -> None:
    model = f"cloud/{fresh('500')}"
    client.ask(OPENAI, model, stream=False)
    assert client.request("GET", "/healthz", key="").json["status"] == "ok"
    ready = client.request("GET", "/readyz", key="")
    assert ready.json["status"] == "ready"
    assert ready.json["config"] == "ok"
    text = client.request("GET", "/metrics", key="").body.decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    wanted = (
        "requests",
        "attempts",
        "fallbacks",
        "tokens",
        "ttft",
        "overhead",
        "in_flight",
        "build_info",
        "config_reload_success",
    )
    for word in wanted:
        assert any(word in name for name in names), (word, names)
    for secret in (SECRET, router.key, router.admin_token):
        assert secret not in text + ready.body.decode()
    assert model not in text, "names that callers make up are no labels"


def test_names_make_no_metric_series(client: Client) -> None:
    def series() -> int:
        return len(client.request("GET", "/metrics").body.splitlines())

    client.ask(OPENAI, "no-such-model", stream=False)
    client.ask(OPENAI, "cloud/made-up-0", stream=False)
    before = series()
    for number in range(1, 40):
        client.ask(OPENAI, f"no-such-model-{number}", stream=False)
        client.ask(OPENAI, f"cloud/made-up-{number}", stream=False)
    assert series() <= before + 1


def test_the_log_holds_no_prompt_and_no_key(router: RouterProcess, client: Client, fresh: Callable[[str], str]) -> None:
    model = f"cloud/{fresh('answer')}"
    words = "a very private prompt"
    body = {**OPENAI.body(model, stream=True), "messages": [{"role": "user", "content": words}]}
    reply = client.request("POST", OPENAI.path, body)
    log = router.log_of(model)
    assert log["request_id"] == reply.headers["x-request-id"]
    assert (log["tokens_in"], log["tokens_out"]) == (7, 3)
    everything = "\n".join(router.err)
    for secret in (words, ANSWER, router.key, router.admin_token, SECRET):
        assert secret not in everything


# --- browsers


@pytest.fixture(scope="module")
def open_to_a_site(module_serve: Callable[..., RouterProcess], cloud: Simulator, local: Simulator) -> Client:
    config = providers(cloud.url, local.url)
    router = module_serve({**config, "server": {"cors_origins": ["https://chat.example.com"]}}, UNHURRIED)
    return Client(router.port, router.key)


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


@pytest.mark.parametrize("path", [OPENAI.path, OLLAMA.path, "/v1/models"])
def test_a_site_that_may(open_to_a_site: Client, path: str) -> None:
    origin = {"origin": "https://chat.example.com"}
    reply = open_to_a_site.request("OPTIONS", path, None, {**origin, **PREFLIGHT}, key="")
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == origin["origin"]
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "x-stainless-os" in reply.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in reply.headers
    method = "GET" if path == "/v1/models" else "POST"
    reply = open_to_a_site.request(method, path, BODY if method == "POST" else None, origin)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == origin["origin"]
    refused = open_to_a_site.request(method, path, BODY if method == "POST" else None, origin, key="")
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == origin["origin"], "a page can read the error"


def test_strangers_may_not(open_to_a_site: Client, client: Client) -> None:
    origin = {"origin": "https://evil.example"}
    for one in (open_to_a_site, client):
        reply = one.request("OPTIONS", OPENAI.path, None, {**origin, **PREFLIGHT}, key="")
        assert "access-control-allow-origin" not in reply.headers
        reply = one.request("POST", OPENAI.path, BODY, origin)
        assert "access-control-allow-origin" not in reply.headers


# --- the keyless door


@pytest.fixture(scope="module")
def door(module_serve: Callable[..., RouterProcess], cloud: Simulator, local: Simulator) -> Client:
    from tests.simulators.server import free_port

    config = providers(cloud.url, local.url)
    port = free_port()
    listen = [{"host": "127.0.0.1", "port": free_port()}, {"host": "127.0.0.1", "port": port, "anonymous": "guest"}]
    config["models"]["own"] = {"targets": ["local/llama3.2"]}
    module_serve({**config, "server": {"listen": listen}}, UNHURRIED)
    return Client(port, "")


def test_no_key_is_needed_for_local_models_only(door: Client) -> None:
    assert door.ask(OLLAMA, "own", stream=False).status == 200
    assert door.request("POST", OPENAI.path, OPENAI.body("own", stream=False), key="ollama").status == 200
    asked = door.ask(OLLAMA, "cloud/answer", stream=False)
    assert asked.headers["x-switchyard-provider"] == "local", "a cloud account answered somebody without a key"
    assert asked.headers["x-switchyard-fallback"]
    assert door.request("POST", "/api/pull", {"model": "x"}).status == 403


def test_a_page_of_another_site_cannot_use_it(door: Client) -> None:
    """DNS rebinding: the browser sends the other site's name as Host."""
    data = b"GET /api/tags HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    (reply,) = replies(door.raw(data))
    assert reply.status == 403


@pytest.mark.parametrize("said", ["application/x-www-form-urlencoded", "text/plain", None])
def test_the_admin_api_reads_json_whatever_it_is_called(
    router: RouterProcess, client: Client, said: str | None
) -> None:
    """`curl -d` calls every body a form."""
    headers = {} if said is None else {"content-type": said}
    made = client.request("POST", "/admin/api/keys", b'{"name": "curl"}', key=router.admin_token, headers=headers)
    assert made.status in (200, 201), made.body
    assert json.loads(made.body)["key"].startswith("sk-")
    broken = client.request("POST", "/admin/api/keys", b'{"name": ', key=router.admin_token, headers=headers)
    assert broken.status == 400
    assert "JSON" in json.loads(broken.body)["error"]["message"]
