"""Ollama, native API. Wire: ollama. Docs: https://github.com/ollama/ollama/tree/main/docs

Local by default; with a key it is a hosted one (ollama.com: `Authorization: Bearer`). A name without a tag means
`:latest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson

from providers.errors import Broken
from providers.vendor import Capabilities, ModelFacts, PlainVendor, UpstreamRequest
from providers.wires.ollama import WIRE

_WORDS: Final[Mapping[str, str]] = {
    "completion": "chat",
    "tools": "tools",
    "vision": "vision",
    "audio": "audio",
    "embedding": "embeddings",
    "thinking": "reasoning",
}
"""Ollama's capability words and ours. `insert` has none; JSON Schema works with every model that completes."""

ALWAYS: Final = Capabilities(files=False, image_urls=False, token_inputs=False, choices=False)
"""What the API itself cannot carry, whatever the model."""


def canonical_name(name: str) -> str:
    """The form in which two names of one model are equal: lower case, without `:latest`."""
    return name.lower().removesuffix(":latest")


class Ollama(PlainVendor):
    """One local or hosted Ollama. `capabilities` says nothing of a name alone: the server's own list and `/api/show`
    know.
    """

    def capabilities(self, model: str) -> Capabilities:
        return ALWAYS

    def models_request(self, api_key: str | None) -> UpstreamRequest | None:
        return UpstreamRequest(method="GET", path="/api/tags", headers=self.auth(api_key), body=b"")

    def read_models(self, body: bytes) -> Sequence[ModelFacts]:
        """Newer servers say capabilities and context in the list; of older ones they are unknown until `/api/show` is
        asked.
        """
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError as bad:
            raise Broken(f"the model list is not JSON: {bad.msg}") from None
        models = given.get("models") if isinstance(given, dict) else None
        if models is None and isinstance(given, dict) and "models" in given:
            models = []
        if not isinstance(models, list):
            raise Broken('the model list has no "models"')
        found: list[ModelFacts] = []
        for entry in models:
            name = (entry.get("model") or entry.get("name")) if isinstance(entry, dict) else None
            if isinstance(name, str) and name:
                found.append(ModelFacts(name, _facts(entry, entry.get("details")), entry))
        return found

    def show_request(self, model: str, api_key: str | None) -> UpstreamRequest:
        """How to ask one model's capabilities and context of a server whose list does not say them."""
        headers = {"content-type": "application/json", **self.auth(api_key)}
        return UpstreamRequest(method="POST", path="/api/show", headers=headers, body=orjson.dumps({"model": model}))

    def read_show(self, facts: ModelFacts, body: bytes) -> ModelFacts:
        """The facts, completed by the answer to `show_request`. Raises Broken."""
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError as bad:
            raise Broken(f"the model's details are not JSON: {bad.msg}") from None
        if not isinstance(given, dict):
            raise Broken("the model's details are not an object")
        info = given.get("model_info")
        told = {"details": given.get("details"), "model_info": info if isinstance(info, dict) else {}}
        return ModelFacts(facts.name, _facts(given, given.get("details")), {**facts.details, **told})


def _facts(given: Mapping[str, Any], details: object) -> Capabilities:
    """Capabilities from a list entry or a `/api/show` answer: both spell them the same way."""
    known: dict[str, Any] = {}
    words = given.get("capabilities")
    if isinstance(words, list):
        known = {ours: word in words for word, ours in _WORDS.items()}
        known["text"] = known["schema"] = known["chat"]
        known["embeddings"] = known["embeddings"] or None  # /api/embed takes models that are made for chat, too
    context = details.get("context_length") if isinstance(details, dict) else None
    info = given.get("model_info")
    if isinstance(info, dict):
        context = next((value for key, value in info.items() if key.endswith(".context_length")), context)
    if isinstance(context, int) and context > 0:
        known["context"] = context
    return msgspec.structs.replace(ALWAYS, **known)


VENDOR = Ollama(
    "ollama", WIRE, base_url="http://127.0.0.1:11434", key_env="OLLAMA_API_KEY", needs_key=False, local=True
)
