"""The rest of the Ollama API as values: routes, lists, management, and who may come in."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from ollama import ListResponse, ProcessResponse, ShowResponse

from providers.errors import InvalidRequest, ModelNotFound, NotAllowed
from providers.vendor import Capabilities, ModelFacts
from router import ollama_door as door
from router.routing import Rights, visible
from router.snapshot import Snapshot
from tests.routing.support import snapshot_of

CONFIG = """
providers:
  openai: {vendor: openai, api_key: k}
  local: {vendor: ollama, base_url: "http://127.0.0.1:11999"}
models:
  gpt-4o-mini: {targets: [openai/gpt-4o-mini], capabilities: {vision: true, context: 128000}}
  "gpt-*": {targets: ["openai/*"]}
  house: {targets: [local/qwen3]}
  vectors: {targets: [openai/embed-1]}
"""
DIGEST = "a" * 64
QWEN = ModelFacts(
    "qwen3:latest",
    Capabilities(chat=True, tools=True, vision=False, reasoning=True, context=40960),
    {
        "name": "qwen3:latest",
        "modified_at": "2026-11-02T10:11:12.123456789+01:00",
        "size": 5_200_000_000,
        "digest": DIGEST,
        "details": {
            "format": "gguf",
            "family": "qwen3",
            "families": ["qwen3"],
            "parameter_size": "8.2B",
            "quantization_level": "Q4_K_M",
        },
    },
)
SINCE = 1_793_000_000.0
ALL = Rights()


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return snapshot_of(CONFIG, discovered={"local": [QWEN]})


def shown(answer: door.Answer) -> Any:
    assert answer.status == 200
    return orjson.loads(answer.body)


# --- routes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "op"),
    [
        ("GET", "/", "root"),
        ("HEAD", "/", "root"),
        ("HEAD", "/api/version", "version"),
        ("GET", "/api/tags/", "tags"),
        ("POST", "/api/show", "show"),
        ("DELETE", "/api/delete", "delete"),
        ("HEAD", f"/api/blobs/sha256:{DIGEST}", "blob"),
        ("POST", f"/api/blobs/sha256:{DIGEST}", "blob"),
    ],
)
def test_routes(method: str, path: str, op: str) -> None:
    found = door.find(method, path)
    assert isinstance(found, door.Found)
    assert found.op == op


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/show", "POST"),
        ("POST", "/api/tags", "GET, HEAD"),
        ("POST", "/api/delete", "DELETE"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_wrong_methods(method: str, path: str, allow: str) -> None:
    answer = door.find(method, path)
    assert isinstance(answer, door.Answer)
    assert (answer.status, answer.content_type, answer.headers["allow"]) == (405, door.TEXT, allow)


@pytest.mark.parametrize("path", ["/api", "/api/nothing", "/api/blobs/", "/api/chat/x"])
def test_unknown_paths(path: str) -> None:
    answer = door.find("GET", path)
    assert isinstance(answer, door.Answer)
    assert (answer.status, answer.body) == (404, b"404 page not found")


def test_the_paths_of_others_are_left_alone() -> None:
    assert door.is_ours("/api/chat")
    assert not door.is_ours("/api/v3/chat/completions")
    assert not door.is_ours("/v1/models")


def test_clients_can_tell_that_an_ollama_is_here() -> None:
    assert door.root().body == b"Ollama is running"
    assert re.fullmatch(r"\d+\.\d+\.\d+", shown(door.version())["version"])
    head = door.headless(door.Found("root", "HEAD"), door.root())
    assert (head.body, head.length) == (b"", 17)


# --- lists -----------------------------------------------------------------------------------------------------------


def test_the_list(snapshot: Snapshot) -> None:
    found = shown(door.tags(snapshot.listed, SINCE))["models"]
    names = {model["name"]: model for model in found}
    assert {"gpt-4o-mini", "house", "vectors", "qwen3:latest"} <= names.keys()
    assert found[0]["modified_at"] >= found[-1]["modified_at"]
    own = names["qwen3:latest"]
    assert (own["size"], own["digest"], own["details"]["quantization_level"]) == (5_200_000_000, DIGEST, "Q4_K_M")
    assert own["capabilities"] == ["completion", "tools", "thinking"]
    cloud = names["gpt-4o-mini"]
    assert (cloud["model"], cloud["size"], cloud["capabilities"]) == (
        "gpt-4o-mini",
        0,
        ["completion", "tools", "vision"],
    )
    assert all(isinstance(value, (str, int, list)) for value in cloud["details"].values())
    assert names["vectors"]["capabilities"] == ["embedding"]
    digests = [model["digest"] for model in found]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert ListResponse.model_validate_json(door.tags(snapshot.listed, SINCE).body).models


def test_an_empty_list_is_no_null() -> None:
    assert door.tags((), SINCE).body == b'{"models":[]}'
    assert door.ps((), ()).body == b'{"models":[]}'


def test_a_shared_digest_is_shown_once(snapshot: Snapshot) -> None:
    entry = snapshot.entry("qwen3")
    assert entry is not None
    found = shown(door.tags((entry, entry), SINCE))["models"]
    assert len({model["digest"] for model in found}) == 2


@pytest.mark.parametrize(
    ("asked", "context", "words"),
    [
        ("gpt-4o-mini", 128000, ["completion", "tools", "vision"]),
        ("GPT-4o-mini:latest", 128000, ["completion", "tools", "vision"]),
        ("qwen3", 40960, ["completion", "tools", "thinking"]),
        ("gpt-new", door.ASSUMED_CONTEXT, ["completion", "tools"]),
        ("local/other", door.ASSUMED_LOCAL_CONTEXT, ["completion", "tools"]),
    ],
)
def test_show(snapshot: Snapshot, asked: str, context: int, words: list[str]) -> None:
    answer = door.show(snapshot, snapshot.listed, {"model": asked}, SINCE, ALL)
    found = shown(answer)
    info = found["model_info"]
    assert found["capabilities"] == words
    assert info[f"{info['general.architecture']}.context_length"] == context
    assert ShowResponse.model_validate_json(answer.body).modelinfo


@pytest.mark.parametrize("key", ["model", "name", "Model"])
def test_show_takes_both_spellings(snapshot: Snapshot, key: str) -> None:
    assert shown(door.show(snapshot, snapshot.listed, {key: "house"}, SINCE, ALL))["details"]["family"]


def test_show_of_what_is_not_there(snapshot: Snapshot) -> None:
    with pytest.raises(ModelNotFound) as missing:
        door.show(snapshot, snapshot.listed, {"model": "nope"}, SINCE, ALL)
    assert door.failure(missing.value).body == b'{"error":"model \'nope\' not found"}'
    assert door.failure(missing.value).status == 404
    with pytest.raises(InvalidRequest, match="model is required"):
        door.show(snapshot, snapshot.listed, {}, SINCE, ALL)
    with pytest.raises(InvalidRequest, match="cannot unmarshal number"):
        door.show(snapshot, snapshot.listed, {"model": 5}, SINCE, ALL)


def test_what_a_key_may_not_see_is_not_there(snapshot: Snapshot) -> None:
    seen = visible(snapshot, Rights(models=("house",)))
    with pytest.raises(ModelNotFound):
        door.show(snapshot, seen, {"model": "gpt-4o-mini"}, SINCE, Rights(models=("house",)))
    assert [model["name"] for model in shown(door.tags(seen, SINCE))["models"]] == ["house"]


@pytest.mark.parametrize("asked", ["gpt-new", "local/other"])
def test_a_pattern_does_not_open_what_a_key_may_not_see(snapshot: Snapshot, asked: str) -> None:
    rights = Rights(models=("house",))
    with pytest.raises(ModelNotFound):
        door.show(snapshot, visible(snapshot, rights), {"model": asked}, SINCE, rights)
    with pytest.raises(NotAllowed):
        door.manage(door.Found("pull", "POST"), {"model": asked}, snapshot, visible(snapshot, rights), rights)


def test_loaded_models(snapshot: Snapshot) -> None:
    upstream = {
        "models": [
            {
                "name": "qwen3:latest",
                "size": 5,
                "size_vram": 4,
                "expires_at": "2026-11-22T10:00:00Z",
                "context_length": 8192,
            },
            {"name": "secret", "size": 1, "expires_at": "2026-11-22T10:00:00Z"},
            {"size": 1},
        ]
    }
    loaded = (*door.read_ps(orjson.dumps(upstream)), door.Loaded("house"))
    answer = door.ps(snapshot.listed, loaded)
    found = shown(answer)["models"]
    assert [model["name"] for model in found] == ["house", "qwen3:latest"]
    assert (found[1]["size_vram"], found[1]["context_length"], found[1]["expires_at"]) == (
        4,
        8192,
        "2026-11-22T10:00:00Z",
    )
    assert len(ProcessResponse.model_validate_json(answer.body).models) == 2


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"models":5}', b'{"models":[1]}', b"<html>"])
def test_a_broken_list_of_loaded_models_is_empty(raw: bytes) -> None:
    assert door.read_ps(raw) == ()


# --- management ------------------------------------------------------------------------------------------------------


def managed(snapshot: Snapshot, op: door.Op, body: dict[str, Any], *, may: bool) -> door.Answer | door.Forward:
    found = door.Found(op, "DELETE" if op == "delete" else "POST", "sha256:" + DIGEST if op == "blob" else "")
    return door.manage(found, body, snapshot, snapshot.listed, Rights(manage_local=may))


@pytest.mark.parametrize("op", ["pull", "push", "create", "copy", "delete", "blob"])
def test_management_needs_the_right(snapshot: Snapshot, op: door.Op) -> None:
    body = {"model": "new", "source": "a", "destination": "b"}
    with pytest.raises(NotAllowed, match="manage_local") as refused:
        managed(snapshot, op, body, may=False)
    assert door.failure(refused.value).status == 403
    assert list(orjson.loads(door.failure(refused.value).body)) == ["error"]
    forward = managed(snapshot, op, body, may=True)
    assert isinstance(forward, door.Forward)
    assert forward.provider.name == "local"
    if op == "blob":
        assert (forward.request.path, forward.stream_body) == (f"/api/blobs/sha256:{DIGEST}", True)
    else:
        assert (forward.request.path, orjson.loads(forward.request.body)) == (f"/api/{op}", body)
        assert not forward.stream_body
    assert forward.request.method == ("DELETE" if op == "delete" else "POST")


@pytest.mark.parametrize("name", ["gpt-4o-mini", "house:latest", "qwen3"])
def test_pulling_what_is_served_succeeds_for_everyone(snapshot: Snapshot, name: str) -> None:
    streamed = managed(snapshot, "pull", {"model": name}, may=False)
    assert isinstance(streamed, door.Answer)
    assert streamed.content_type == door.NDJSON
    assert streamed.body.splitlines()[-1] == b'{"status":"success"}'
    whole = managed(snapshot, "pull", {"name": name, "stream": False}, may=False)
    assert isinstance(whole, door.Answer)
    assert whole.body == b'{"status":"success"}'


def test_those_who_may_pull_pull_local_models_for_real(snapshot: Snapshot) -> None:
    assert isinstance(managed(snapshot, "pull", {"model": "qwen3"}, may=True), door.Forward)
    assert isinstance(managed(snapshot, "pull", {"model": "gpt-4o-mini"}, may=True), door.Answer)


def test_bad_blobs_and_no_ollama(snapshot: Snapshot) -> None:
    with pytest.raises(InvalidRequest, match="invalid digest format"):
        door.manage(door.Found("blob", "POST", "sha256:../../x"), {}, snapshot, (), Rights(manage_local=True))
    alone = snapshot_of("providers: {openai: {vendor: openai, api_key: k}}")
    with pytest.raises(door.NotSupported) as nothing:
        door.manage(door.Found("delete", "DELETE"), {"model": "x"}, alone, (), Rights(manage_local=True))
    assert door.failure(nothing.value).status == 501
