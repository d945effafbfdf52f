"""Kimi (Moonshot). Wire: chat completions. Docs: https://platform.moonshot.ai/docs

Keys of platform.moonshot.cn work at https://api.moonshot.cn/v1 only: say it as `base_url`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from providers.call import Call
from providers.compatible import OpenAICompatible, Quirks
from providers.errors import UnsupportedFeature
from providers.vendor import ModelFacts, Vendor

_SAMPLING: Final = frozenset({"temperature", "top_p", "n", "presence_penalty", "frequency_penalty"})
"""Fixed for each model since K2.5: any other value is refused with 400, so none is sent."""

_QUIRKS: Final = Quirks(
    drop=_SAMPLING
    | {"seed", "logit_bias", "store", "metadata", "service_tier", "verbosity", "modalities", "audio", "moderation"}
    | {"web_search_options", "parallel_tool_calls", "top_k", "min_p", "repetition_penalty", "prompt_cache_retention"},
    rename={"user": "safety_identifier"},
    max_tokens="max_completion_tokens",
    reasoning_in="thinking",
    reasoning_echo="tools",
    images="data",  # public URLs are not fetched
    details={"*": None},
    audio=False,
    files=False,
    empty_text=False,
    tool_name_min=3,
    stops=5,
    completions=False,
    embeddings=False,
    choices=False,
)
_THINKING_TOOLS: Final = frozenset({"auto", "none"})
_EFFORTS: Final = {"minimal": "low", "medium": "high", "xhigh": "max"}
_K3: Final = msgspec.structs.replace(
    _QUIRKS, reasoning_in="thinking_effort", efforts=_EFFORTS, tool_choice=frozenset({"auto", "none", "required"})
)
_K2_CODE: Final = msgspec.structs.replace(_QUIRKS, tool_choice=_THINKING_TOOLS, effort_off=None)
"""Thinks always: a wish to turn it off is not sent."""
_V1: Final = msgspec.structs.replace(
    _QUIRKS, drop=_QUIRKS.drop - _SAMPLING, choices=True, reasoning_in="none", reasoning_echo="drop", tool_name_min=1
)


class Kimi(OpenAICompatible):
    def body(self, call: Call, sent_model: str) -> dict[str, Any]:
        body = super().body(call, sent_model)
        choice = call.tool_choice
        if choice is None or not call.tools or choice.mode in _THINKING_TOOLS or not sent_model.startswith("kimi-k2"):
            return body
        thinking = body.get("thinking")
        if type(thinking) is dict and thinking.get("type") == "disabled":
            return body
        raise UnsupportedFeature(
            f"tool_choice '{choice.mode}' is not possible while this model thinks; turn reasoning off for the call",
            param="tool_choice",
        )

    def model_facts(self, row: Mapping[str, Any]) -> ModelFacts | None:
        facts = super().model_facts(row)
        if facts is None:
            return None
        known = {
            name: row[key]
            for key, name in (("supports_image_in", "vision"), ("supports_reasoning", "reasoning"))
            if type(row.get(key)) is bool
        }
        return msgspec.structs.replace(facts, capabilities=msgspec.structs.replace(facts.capabilities, **known))


VENDOR: Vendor = Kimi(
    "kimi",
    _QUIRKS,
    base_url="https://api.moonshot.ai/v1",
    key_env="MOONSHOT_API_KEY",
    by_model=(("kimi-k3*", _K3), ("kimi-k2.7-code*", _K2_CODE), ("moonshot-v1-*", _V1)),
)
