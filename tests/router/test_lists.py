"""The model list is one body for three kinds of clients: OpenAI's SDK reads it, and what readers of Anthropic's and
Gemini's lists look at stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import openai
import pytest
from openai.types import Model

from providers.errors import ModelNotFound
from router.lists import find_entry, model_entry, model_list
from router.routing import Rights, Snapshot, visible
from tests.routing.support import snapshot_of
from tests.simulators.router import RouterProcess

TEXT = """
providers:
  cloud: {vendor: openai-compatible, base_url: "http://cloud.test/v1", api_key: sk-cloud}
  unset: {vendor: openai, api_key: "${NOT_SET:-}"}
  box: {vendor: ollama, base_url: "http://127.0.0.1:9", local: true}
models:
  chat: {targets: [cloud/tiny]}
  "gpt-*": {targets: [cloud/*]}
  later: {targets: [unset/gpt-4o], fallback: [box/llama3.2]}
  vectors: {targets: [cloud/embed-1]}
fallback: []
"""


@pytest.fixture
def snapshot() -> Snapshot:
    return snapshot_of(TEXT, discovered={"box": ["llama3.2:latest", "Mixed:7b"]})


ALL = Rights()


def ids(snapshot: Snapshot, rights: Rights = ALL) -> list[str]:
    return [entry.id for entry in visible(snapshot, rights)]


def test_what_is_listed(snapshot: Snapshot) -> None:
    shown = ids(snapshot)
    assert {"chat", "vectors"} <= set(shown)
    assert "later" not in shown, "its target takes no calls"
    assert not any("*" in name for name in shown)
    assert len(shown) == len(set(shown))
    assert set(ids(snapshot, Rights(local_only=True))) == {
        name for name in shown if name.lower().startswith(("ll", "mi"))
    }
    assert ids(snapshot, Rights(models=("ch*",))) == ["chat"]
    assert "chat" not in ids(snapshot, Rights(deny=("chat",)))


def test_what_is_listed_where_only_known_prices_may_be_paid(snapshot: Snapshot) -> None:
    rights = Rights(payable=lambda target: target.provider.local or target.model == "embed-1")
    shown = ids(snapshot, rights)
    assert "vectors" in shown
    assert "chat" not in shown
    assert len(shown) == len(ids(snapshot)) - 1
    for hidden in ("chat", "gpt-9"):
        with pytest.raises(ModelNotFound):
            find_entry(snapshot, visible(snapshot, rights), hidden, rights)


def test_each_kind_of_reader_finds_its_fields(snapshot: Snapshot) -> None:
    body = json.loads(json.dumps(model_list(visible(snapshot, Rights()))))
    assert body["object"] == "list"
    first = body["data"][0]
    # OpenAI's SDK, strictly
    for row in body["data"]:
        model = Model.model_validate(row)
        assert (model.id, model.object) == (row["id"], "model")
        assert type(row["created"]) is int
        assert row["owned_by"]
    # Anthropic's `GET /v1/models`: https://docs.anthropic.com/en/api/models-list
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, first["id"], body["data"][-1]["id"])
    assert (first["type"], first["display_name"]) == ("model", first["id"])
    assert datetime.fromisoformat(first["created_at"]).timestamp() == first["created"]
    # Gemini's `models.list`: https://ai.google.dev/api/models
    for row, model in zip(body["data"], body["models"], strict=True):
        assert model["name"] == row["name"] == f"models/{row['id']}"
        assert model["displayName"] == row["id"]
        embeds = row["id"] == "vectors"
        assert model["supportedGenerationMethods"][0] == ("embedContent" if embeds else "generateContent")
    tiny = next(model for model in body["models"] if model["displayName"] == "chat")
    assert tiny["inputTokenLimit"] == 10


def test_capabilities_are_told_and_unknown_ones_are_null(snapshot: Snapshot) -> None:
    rows = {row["id"]: row for row in model_list(visible(snapshot, Rights()))["data"]}
    assert rows["chat"]["capabilities"] == dict.fromkeys(
        ("vision", "tools", "json_schema", "reasoning", "embeddings"), False
    )
    assert rows["chat"]["context_length"] == 10
    assert rows["vectors"]["capabilities"]["embeddings"] is True
    assert rows["vectors"]["capabilities"]["vision"] is None


def test_an_empty_list() -> None:
    body = model_list(())
    assert (body["data"], body["models"], body["first_id"], body["last_id"]) == ([], [], None, None)


@pytest.mark.parametrize(
    ("asked", "rights", "found"),
    [
        ("chat", Rights(), "cloud"),
        ("llama3.2", Rights(), "box"),
        ("LLAMA3.2:latest", Rights(), "box"),
        ("gpt-anything", Rights(), "cloud"),
        ("cloud/x", Rights(), "cloud"),
        ("later", Rights(), "box"),
        ("later", Rights(allow_fallback=False), None),
        ("cloud/x", Rights(local_only=True), None),
        ("cloud/x", Rights(models=("chat",)), None),
        ("chat", Rights(deny=("chat",)), None),
        ("nobody", Rights(), None),
    ],
)
def test_one_model_is_found_as_a_call_would_find_it(
    snapshot: Snapshot, asked: str, rights: Rights, found: str | None
) -> None:
    def find() -> object:
        return find_entry(snapshot, visible(snapshot, rights), asked, rights)

    if found is None:
        with pytest.raises(ModelNotFound) as caught:
            find()
        assert all(name in ids(snapshot, rights) for name in caught.value.near), "no name that the key may not see"
        return
    entry = find_entry(snapshot, visible(snapshot, rights), asked, rights)
    assert entry.providers[0] == found
    assert Model.model_validate(model_entry(entry)).id


def test_the_official_client_reads_it(router: RouterProcess, fresh: Callable[[str], str]) -> None:
    client = openai.OpenAI(base_url=f"{router.url}/v1", api_key=router.key, max_retries=0)
    with client:
        listed = client.models.list()
        assert "chat" in [model.id for model in listed]
        assert not listed.has_next_page()
        assert client.models.retrieve("chat").owned_by == "cloud"
        assert client.models.retrieve(f"cloud/{fresh('answer')}").id
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")
