"""The door over real sockets: an Ollama client in front, an Ollama behind, and management in between."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ollama
import pytest

from tests.simulators.router import ROOT, UNHURRIED, RouterProcess
from tests.simulators.server import Exchange, Simulator
from tests.simulators.waiting import until

TAGS: dict[str, list[dict[str, Any]]] = {
    "models": [
        {
            "name": "qwen3:latest",
            "model": "qwen3:latest",
            "modified_at": "2026-11-02T10:11:12.123456789Z",
            "size": 5,
            "digest": "b" * 64,
            "details": {"family": "qwen3", "context_length": 40960},
            "capabilities": ["completion", "tools"],
        }
    ]
}
PROGRESS: list[dict[str, Any]] = [
    {"status": "pulling manifest"},
    {"status": "pulling aaaa", "total": 9, "completed": 9},
    {"status": "success"},
]


async def behave(exchange: Exchange) -> None:
    """An Ollama with one model."""
    request = exchange.request
    path = request.path
    if path == "/api/tags":
        await exchange.answer(200, json.dumps(TAGS).encode())
    elif path == "/api/ps":
        running = {**TAGS["models"][0], "expires_at": "2026-11-22T10:00:00Z", "size_vram": 4}
        await exchange.answer(200, json.dumps({"models": [running]}).encode())
    elif path == "/api/pull":
        await exchange.head(200, {"content-type": "application/x-ndjson", "transfer-encoding": "chunked"})
        for item in PROGRESS:
            await exchange.chunk(json.dumps(item).encode() + b"\n")
        await exchange.end_chunks()
    elif path == "/api/delete":
        missing = request.json["model"] == "nope"
        await exchange.answer(404 if missing else 200, b'{"error":"model \'nope\' not found"}' if missing else b"")
    elif path.startswith("/api/blobs/") and request.method == "HEAD":
        await exchange.head(404, {"content-length": "0"})
    elif path.startswith("/api/blobs/"):
        right = path.endswith(hashlib.sha256(request.body).hexdigest())
        await exchange.answer(201 if right else 400, b"")
    else:
        await exchange.answer(200, b"")


@pytest.fixture(scope="module")
def box() -> Iterator[Simulator]:
    with Simulator({"behave": behave}, lambda _: None, default="behave") as simulator:
        yield simulator
        assert not simulator.failures, simulator.failures


@pytest.fixture(scope="module")
def door(box: Simulator, module_serve: Callable[..., RouterProcess]) -> RouterProcess:
    providers: dict[str, Any] = {
        "local": {"vendor": "ollama", "base_url": box.url},
        "cloud": {"vendor": "openai-compatible", "base_url": "http://127.0.0.1:9/v1", "api_key": "k"},
    }
    router = module_serve({"providers": providers, "models": {"gpt": {"targets": ["cloud/gpt"]}}}, UNHURRIED)
    with client_of(router, router.key) as client:
        # The list of the Ollama behind is asked for in the background.
        until(lambda: any(model.model == "qwen3:latest" for model in client.list().models), 60, router.tail)
    return router


def client_of(router: RouterProcess, key: str) -> ollama.Client:
    return ollama.Client(router.url, headers=bearer(key))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def manager(door: RouterProcess) -> str:
    """A key with the right manage_local."""
    command = ["keys", "create", "--name", "manager", "--right", "manage_local", "--json"]
    made = subprocess.run(
        [sys.executable, "-m", "router.cli.main", *command, "--config", str(door.config_path)],
        cwd=ROOT,
        env={**os.environ, **UNHURRIED},
        capture_output=True,
        timeout=120,
        check=True,
    )
    key: str = json.loads(made.stdout)["key"]
    return key


@pytest.fixture
def client(door: RouterProcess) -> Iterator[ollama.Client]:
    with client_of(door, door.key) as client:
        yield client


def ask(
    router: RouterProcess, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_probes_need_no_key(door: RouterProcess) -> None:
    assert ask(door, "GET", "/")[::2] == (200, b"Ollama is running")
    status, headers, body = ask(door, "HEAD", "/")
    assert (status, headers["content-length"], body) == (200, "17", b"")
    assert ask(door, "GET", "/api/version")[0] == 200
    status, headers, body = ask(door, "GET", "/api/tags")
    assert status == 401
    assert list(json.loads(body)) == ["error"]


def test_lists(client: ollama.Client) -> None:
    assert {"gpt", "qwen3:latest"} <= {model.model for model in client.list().models}
    assert client.show("qwen3").capabilities == ["completion", "tools"]
    info: dict[str, Any] = dict(client.show("qwen3").modelinfo or {})
    assert info["qwen3.context_length"] == 40960
    assert [(model.model, model.size_vram) for model in client.ps().models] == [("qwen3:latest", 4)]
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as missing:
        client.show("nope")
    assert missing.value.status_code == 404


def test_load_and_unload_call_nobody(client: ollama.Client, box: Simulator) -> None:
    before = len([request for request in box.requests if request.path == "/api/generate"])
    assert client.generate("qwen3").done_reason == "load"
    assert client.generate("qwen3", keep_alive=0).done_reason == "unload"
    assert client.chat("gpt").done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        client.generate("nope")
    assert len([request for request in box.requests if request.path == "/api/generate"]) == before


def test_management_without_the_right(client: ollama.Client, box: Simulator) -> None:
    with pytest.raises(ollama.ResponseError, match="manage_local") as refused:
        client.delete("qwen3")
    assert refused.value.status_code == 403
    assert [step.status for step in client.pull("gpt", stream=True)][-1] == "success"
    assert client.pull("qwen3:latest").status == "success"
    with pytest.raises(ollama.ResponseError, match="manage_local"):
        client.pull("new-model")
    assert not [request for request in box.requests if request.path in ("/api/pull", "/api/delete")]


def test_management_with_the_right(door: RouterProcess, box: Simulator, manager: str) -> None:
    with client_of(door, manager) as client:
        manage(client, box)


def manage(client: ollama.Client, box: Simulator) -> None:
    assert [step.status for step in client.pull("new-model", stream=True)] == [item["status"] for item in PROGRESS]
    assert client.delete("qwen3").status == "success"
    (sent,) = (request for request in box.requests if request.path == "/api/delete")
    assert (sent.method, sent.json) == ("DELETE", {"model": "qwen3"})
    assert "authorization" not in sent.headers
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as missing:
        client.delete("nope")
    assert missing.value.status_code == 404


def test_blobs_are_passed_on_as_they_come(door: RouterProcess, box: Simulator, manager: str) -> None:
    blob = bytes(range(256)) * 8192
    digest = hashlib.sha256(blob).hexdigest()
    path = f"/api/blobs/sha256:{digest}"
    assert ask(door, "HEAD", path, headers=bearer(manager))[0] == 404
    assert ask(door, "POST", path, blob, bearer(manager))[0] == 201
    (sent,) = (request for request in box.requests if (request.method, request.path) == ("POST", path))
    assert sent.body == blob
    assert ask(door, "POST", path, b"other", bearer(manager))[0] == 400
    assert ask(door, "POST", "/api/blobs/sha256:no", b"x", bearer(manager))[0] == 400
    assert ask(door, "POST", path, blob, bearer(door.key))[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/api/chat", 405, b"405 method not allowed"),
        ("POST", "/api/tags", 405, b"405 method not allowed"),
        ("GET", "/api/nothing", 404, b"404 page not found"),
    ],
)
def test_what_is_not_there(door: RouterProcess, method: str, path: str, status: int, text: bytes) -> None:
    found, headers, body = ask(door, method, path, headers=bearer(door.key))
    assert (found, body, headers["content-type"].split(";")[0]) == (status, text, "text/plain")
    assert ("allow" in headers) is (status == 405)
