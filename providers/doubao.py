"""Doubao (Volcengine Ark). Wire: chat completions under /api/v3. Docs: https://www.volcengine.com/docs/82379

Model names are opaque: model ids, endpoint ids (`ep-...`) and bots (`bot-...`). What only newer models take is sent
only when the client asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from providers.call import Call
from providers.compatible import OpenAICompatible, Quirks
from providers.errors import UnsupportedFeature
from providers.vendor import Capabilities, ModelFacts, Vendor

MAX_COMPLETION_TOKENS: Final = 65536
"""Ark's bound of `max_completion_tokens`; more is refused."""

_VECTORS: Final = Capabilities(
    chat=False, text=False, embeddings=True, tools=False, schema=False, reasoning=False, token_inputs=False
)
_MEDIA: Final = Capabilities(chat=False, text=False, embeddings=False)
_MULTIMODAL: Final = "doubao-embedding-vision*"
"""Embedding models behind `/embeddings/multimodal`, which fuses all its parts into one vector."""

_QUIRKS: Final = Quirks(
    drop=frozenset(
        {"seed", "modalities", "audio", "prediction", "web_search_options", "store", "metadata", "verbosity", "n"}
        | {"prompt_cache_key", "prompt_cache_retention", "safety_identifier", "top_k", "min_p", "moderation"}
    ),
    reasoning_in="thinking_effort",
    efforts={"max": "high", "xhigh": "high"},
    details={"auto": None, "original": "xhigh"},
    choices=False,
    completions=False,
    facts=(
        ("doubao-embedding*", _VECTORS),
        ("doubao-seedream*", _MEDIA),
        ("doubao-seedance*", _MEDIA),
    ),
)


class Doubao(OpenAICompatible):
    def body(self, call: Call, sent_model: str) -> dict[str, Any]:
        if call.kind == "embed" and fnmatchcase(sent_model, _MULTIMODAL):
            return self._multimodal(call, sent_model)
        body = super().body(call, sent_model)
        if call.kind == "embed":
            if any(type(item) is not str for item in call.inputs):
                raise UnsupportedFeature("this provider takes embedding inputs as text, not token ids", param="input")
            body["input"] = list(call.inputs)  # a list always
            return body
        if call.wire != "openai" and "max_tokens" in body:
            # `max_tokens` leaves reasoning out at Ark; the other wires' bound holds for both.
            body["max_completion_tokens"] = body.pop("max_tokens")
        longest = body.get("max_completion_tokens")
        if longest is not None and longest > MAX_COMPLETION_TOKENS:
            body["max_completion_tokens"] = MAX_COMPLETION_TOKENS
        if body.get("service_tier") in ("flex", "priority", "scale"):
            body["service_tier"] = "auto"
        return body

    def path(self, call: Call, sent_model: str) -> str:
        if call.kind == "embed" and fnmatchcase(sent_model, _MULTIMODAL):
            return "/embeddings/multimodal"
        if sent_model.startswith("bot-") and call.kind == "chat":
            return "/bots/chat/completions"
        return super().path(call, sent_model)

    def model_facts(self, row: Mapping[str, Any]) -> ModelFacts | None:
        """The list holds models that are shut down, and says what the others take."""
        facts = super().model_facts(row)
        if facts is None or row.get("status") in ("Shutdown", "Retiring"):
            return None
        known: dict[str, Any] = {}
        domain = row.get("domain")
        if domain in ("ImageGeneration", "VideoGeneration", "Embedding"):
            known.update(chat=False, embeddings=domain == "Embedding")
        modalities = row.get("modalities")
        taken = modalities.get("input_modalities") if type(modalities) is dict else None
        if type(taken) is list:
            known["vision"] = "image" in taken
        limits = row.get("token_limits")
        if type(limits) is dict and type(limits.get("context_window")) is int:
            known["context"] = limits["context_window"]
        features = row.get("features")
        tools = features.get("tools") if type(features) is dict else None
        if type(tools) is dict and type(tools.get("function_calling")) is bool:
            known["tools"] = tools["function_calling"]
        return msgspec.structs.replace(facts, capabilities=msgspec.structs.replace(facts.capabilities, **known))

    @staticmethod
    def _multimodal(call: Call, sent_model: str) -> dict[str, Any]:
        (text, *more) = call.inputs
        if more or type(text) is not str:
            raise UnsupportedFeature(f"{sent_model} takes one text a call", param="input")
        body: dict[str, Any] = {
            "model": sent_model,
            "input": [{"type": "text", "text": text}],
            "encoding_format": "float",
        }
        if call.dimensions is not None:
            body["dimensions"] = call.dimensions
        return body


VENDOR: Vendor = Doubao("doubao", _QUIRKS, base_url="https://ark.cn-beijing.volces.com/api/v3", key_env="ARK_API_KEY")
