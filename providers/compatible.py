"""Providers that speak OpenAI's wire with differences. A vendor is a row: its quirks, its address, its key's usual
variable.

`openai-compatible` in the config takes one of the rows below by `options: {profile: deepseek}`, and single quirks
beside it. Sources: each vendor's API documentation, linked at its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec
import orjson
from msgspec import Struct

from providers.call import Call
from providers.errors import Broken, UnsupportedFeature
from providers.lanes import TranslateLane
from providers.quirks import Quirks, patch_embeddings, patch_fields, patch_messages, patch_reasoning
from providers.vendor import Capabilities, ModelFacts, PlainVendor, UpstreamRequest
from providers.wire import Lane, Stamp, Wire
from providers.wires.openai import OpenAIWire
from providers.wires.openai.body import bare_text, write_call
from providers.wires.openai.errors import parse
from providers.wires.openai.traits import Traits

__all__ = ["PROFILES", "VENDOR", "OpenAICompatible", "Profile", "Quirks", "compatible", "make_vendor"]


class OpenAICompatible(PlainVendor):
    """The OpenAI wire with quirks. `by_model` gives other quirks to models whose name fits a shell pattern; the first
    fits."""

    def __init__(
        self,
        name: str,
        quirks: Quirks,
        *,
        base_url: str | None = None,
        key_env: str | None = None,
        needs_key: bool = True,
        local: bool = False,
        by_model: tuple[tuple[str, Quirks], ...] = (),
    ) -> None:
        super().__init__(
            name,
            OpenAIWire(quirks.traits),
            base_url=base_url,
            key_env=key_env,
            needs_key=needs_key,
            local=local,
        )
        self.default = quirks
        self.by_model = by_model
        self._fixed_headers = {"content-type": "application/json", **quirks.extra_headers}
        self._known: dict[str, Quirks] = {}

    def quirks(self, model: str) -> Quirks:
        if not self.by_model:
            return self.default
        found = self._known.get(model)
        if found is None:
            found = next((quirks for pattern, quirks in self.by_model if fnmatchcase(model, pattern)), self.default)
            if len(self._known) < 1024:
                self._known[model] = found
        return found

    def auth(self, api_key: str | None) -> dict[str, str]:
        if not api_key or self.default.auth == "none":
            return {}
        return {"api-key": api_key} if self.default.auth == "api-key" else {"authorization": f"Bearer {api_key}"}

    def body(self, call: Call, sent_model: str) -> dict[str, Any]:
        quirks = self.quirks(sent_model)
        translated = self._translated(call, quirks)
        body = write_call(call, sent_model) if translated else {**call.raw, "model": sent_model}
        if call.kind == "embed":
            patch_embeddings(body, call, quirks)
            return body
        if not quirks.completions and bare_text(call):
            raise UnsupportedFeature("this provider continues no bare prompts: send messages", param="prompt")
        patch_fields(body, call, quirks)
        patch_reasoning(body, call, quirks, translated)
        if translated:
            for name in quirks.drop_translated & body.keys():
                del body[name]
        patch_messages(body, quirks)
        return body

    def request(self, call: Call, sent_model: str, api_key: str | None) -> UpstreamRequest:
        return UpstreamRequest(
            "POST",
            self.path(call, sent_model),
            {**self._fixed_headers, **self.auth(api_key)},
            orjson.dumps(self.body(call, sent_model)),
        )

    def path(self, call: Call, sent_model: str) -> str:
        return self.wire.path(call, sent_model)

    def lane(self, call: Call, client: Wire, stamp: Stamp) -> Lane:
        quirks = self.quirks(stamp.answered_by)
        if client.name == self.wire.name and not self._translated(call, quirks) and quirks.traits.think_tags == "no":
            return self.wire.splice(call, stamp)
        return TranslateLane(call, self.wire, client, stamp)

    def capabilities(self, model: str) -> Capabilities:
        quirks = self.quirks(model)
        for pattern, facts in quirks.facts:
            if fnmatchcase(model, pattern):
                return facts
        return Capabilities(
            text=None if quirks.completions else False,
            embeddings=None if quirks.embeddings else False,
            vision=False if quirks.images == "none" else None,
            image_urls=None if quirks.images == "url" else False,
            audio=None if quirks.audio else False,
            files=None if quirks.files else False,
            tools=None if quirks.tools else False,
            schema=None if quirks.response_format.startswith("schema") else False,
            choices=None if quirks.choices else False,
        )

    def models_request(self, api_key: str | None) -> UpstreamRequest | None:
        if not self.default.models:
            return None
        return UpstreamRequest("GET", "/models", {**self.default.extra_headers, **self.auth(api_key)}, b"")

    def read_models(self, body: bytes) -> Sequence[ModelFacts]:
        found = parse(body)
        rows = found.get("data", found.get("models")) if type(found) is dict else found
        if type(rows) is not list:
            raise Broken("the provider's model list cannot be understood")
        return [facts for row in rows if type(row) is dict and (facts := self.model_facts(row)) is not None]

    def model_facts(self, row: Mapping[str, Any]) -> ModelFacts | None:
        """One row of the list; None for what cannot be called."""
        name = row.get("id", row.get("name"))
        if type(name) is not str or not name:
            return None
        facts = self.capabilities(name)
        context = next((row[key] for key in _CONTEXT if type(row.get(key)) is int and row[key] > 0), None)
        if context is not None:
            facts = msgspec.structs.replace(facts, context=context)
        return ModelFacts(name, facts, row)

    @staticmethod
    def _translated(call: Call, quirks: Quirks) -> bool:
        """Whether the body must be written anew: another wire's call, or legacy functions where only tools are
        known."""
        return call.wire != "openai" or ("functions" in call.raw and not quirks.functions)


_CONTEXT: Final = ("context_length", "max_model_len", "context_window", "max_context_length")
"""Where servers put a model's context in their lists: OpenRouter and Kimi, vLLM, Groq, LM Studio."""


class Profile(Struct, frozen=True):
    quirks: Quirks
    base_url: str | None = None
    key_env: str | None = None
    needs_key: bool = False
    local: bool = False
    by_model: tuple[tuple[str, Quirks], ...] = ()


_OPENAI_ONLY: Final = frozenset(
    {"store", "metadata", "service_tier", "verbosity", "prediction", "web_search_options", "safety_identifier"}
    | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "moderation"}
)
"""Fields that mean something at OpenAI and nothing elsewhere."""
_PENALTIES: Final = frozenset({"presence_penalty", "frequency_penalty"})
_CHOICE_AUTO: Final = frozenset({"auto", "none"})
_HIGH_OR_MAX: Final = {"minimal": "high", "low": "high", "medium": "high", "high": "high", "max": "max", "xhigh": "max"}
_UP_TO_HIGH: Final = {"max": "high", "xhigh": "high"}

PROFILES: Final[Mapping[str, Profile]] = {
    # https://api-docs.deepseek.com
    "deepseek": Profile(
        Quirks(
            drop=_OPENAI_ONLY | {"n", "seed", "logit_bias", "parallel_tool_calls", "user"},
            max_tokens="max_tokens",
            reasoning_in="thinking_effort",
            efforts=_HIGH_OR_MAX,
            reasoning_echo="tools",
            response_format="object",
            images="none",
            audio=False,
            files=False,
            completions=False,
            embeddings=False,
        ),
        base_url="https://api.deepseek.com",
        key_env="DEEPSEEK_API_KEY",
        needs_key=True,
        by_model=(
            # R1's API refuses earlier reasoning with 400 and cannot be switched.
            (
                "deepseek-reasoner",
                Quirks(
                    drop=_OPENAI_ONLY | {"n", "seed", "logit_bias", "parallel_tool_calls", "user"},
                    max_tokens="max_tokens",
                    reasoning_in="none",
                    reasoning_echo="drop",
                    response_format="object",
                    tool_choice=_CHOICE_AUTO,
                    images="none",
                    audio=False,
                    files=False,
                    completions=False,
                    embeddings=False,
                ),
            ),
        ),
    ),
    # https://help.aliyun.com/zh/model-studio/compatibility-of-openai-with-dashscope
    "qwen": Profile(
        Quirks(
            drop=_OPENAI_ONLY | {"logit_bias"},
            max_tokens="max_tokens",
            reasoning_in="enable_thinking",
            completions=False,
            embedding_batch=10,
            models=False,
        ),
        base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
        key_env="DASHSCOPE_API_KEY",
        needs_key=True,
    ),
    # https://docs.bigmodel.cn and https://docs.z.ai
    "zhipu": Profile(
        Quirks(
            drop=_OPENAI_ONLY
            | _PENALTIES
            | {"n", "seed", "logit_bias", "parallel_tool_calls", "logprobs", "top_logprobs"},
            rename={"user": "user_id"},
            max_tokens="max_tokens",
            stream_usage="always",
            reasoning_in="thinking",
            response_format="object",
            tool_choice=frozenset({"auto"}),
            audio=False,
            completions=False,
            models=False,
            traits=Traits(vendor="zhipu"),
        ),
        base_url="https://open.bigmodel.cn/api/paas/v4",
        key_env="ZHIPU_API_KEY",
        needs_key=True,
    ),
    # https://www.minimax.io/platform/document
    "minimax": Profile(
        Quirks(
            drop=_OPENAI_ONLY | _PENALTIES | {"n", "logit_bias", "seed", "parallel_tool_calls"},
            max_tokens="max_tokens",
            reasoning_in="none",
            reasoning_echo="tags",
            images="none",
            audio=False,
            files=False,
            completions=False,
            embeddings=False,
            models=False,
            traits=Traits(vendor="minimax", think_tags="tagged"),
        ),
        base_url="https://api.minimax.io/v1",
        key_env="MINIMAX_API_KEY",
        needs_key=True,
    ),
    # https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
    "vllm": Profile(Quirks(drop=_OPENAI_ONLY, reasoning_in="template_enable", embedding_base64=True)),
    # https://docs.sglang.ai
    "sglang": Profile(Quirks(drop=_OPENAI_ONLY, reasoning_in="template_enable")),
    # https://github.com/ggml-org/llama.cpp/tree/master/tools/server
    "llamacpp": Profile(Quirks(drop=_OPENAI_ONLY, max_tokens="max_tokens", reasoning_in="template_enable"), local=True),
    # https://lmstudio.ai/docs/api
    "lmstudio": Profile(
        Quirks(drop=_OPENAI_ONLY, max_tokens="max_tokens", response_format="schema_only", audio=False, files=False),
        base_url="http://localhost:1234/v1",
        local=True,
    ),
    # https://openrouter.ai/docs
    "openrouter": Profile(
        Quirks(
            drop=frozenset({"store", "metadata", "service_tier", "transforms", "debug", "trace"}),
            stream_usage="always",
            reasoning_in="reasoning",
            embedding_base64=True,
        ),
        base_url="https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        needs_key=True,
    ),
    # https://learn.microsoft.com/azure/ai-services/openai/reference (the v1 surface)
    "azure": Profile(
        Quirks(
            auth="api-key", developer=True, functions=True, reasoning_echo="drop", embedding_base64=True, models=False
        ),
        key_env="AZURE_OPENAI_API_KEY",
        needs_key=True,
    ),
    # https://console.groq.com/docs/openai
    "groq": Profile(
        Quirks(
            drop=_OPENAI_ONLY | {"logprobs", "top_logprobs", "logit_bias", "n"},
            names=False,
            efforts={**_UP_TO_HIGH, "minimal": "low"},
            reasoning_echo="drop",
            completions=False,
            embeddings=False,
        ),
        base_url="https://api.groq.com/openai/v1",
        key_env="GROQ_API_KEY",
        needs_key=True,
    ),
    # https://docs.x.ai
    "xai": Profile(
        Quirks(
            drop=_OPENAI_ONLY | _PENALTIES | {"logit_bias"},
            developer=True,
            efforts={**_UP_TO_HIGH, "minimal": "low", "medium": "low"},
            effort_off=None,
            reasoning_echo="drop",
            completions=False,
        ),
        base_url="https://api.x.ai/v1",
        key_env="XAI_API_KEY",
        needs_key=True,
    ),
    # https://docs.mistral.ai/api
    "mistral": Profile(
        Quirks(
            drop=_OPENAI_ONLY | {"logit_bias", "logprobs", "top_logprobs", "user"},
            rename={"seed": "random_seed"},
            max_tokens="max_tokens",
            stream_usage="always",
            reasoning_in="none",
            reasoning_echo="drop",
            completions=False,
        ),
        base_url="https://api.mistral.ai/v1",
        key_env="MISTRAL_API_KEY",
        needs_key=True,
    ),
    # https://docs.siliconflow.cn
    "siliconflow": Profile(
        Quirks(drop=_OPENAI_ONLY, max_tokens="max_tokens", reasoning_in="enable_thinking", completions=False),
        base_url="https://api.siliconflow.cn/v1",
        key_env="SILICONFLOW_API_KEY",
        needs_key=True,
    ),
}
"""Ready rows. `plain` (no profile) asks nothing special of a server."""

_PLAIN: Final = Profile(Quirks())


def compatible(profile: str | None, overrides: Mapping[str, Any] | None = None) -> OpenAICompatible:
    """The vendor of one row, single quirks overridden. Raises ValueError with a sentence for what is unknown or of a
    wrong type."""
    row = _PLAIN if profile is None else PROFILES.get(profile)
    if row is None:
        raise ValueError(f"there is no profile '{profile}': take one of {', '.join(sorted(PROFILES))}")
    quirks, by_model = row.quirks, row.by_model
    if overrides:
        given = _read_overrides(overrides)
        quirks = msgspec.structs.replace(quirks, **given)
        by_model = tuple((pattern, msgspec.structs.replace(other, **given)) for pattern, other in by_model)
    return OpenAICompatible(
        "openai-compatible",
        quirks,
        base_url=row.base_url,
        key_env=row.key_env,
        needs_key=row.needs_key,
        local=row.local,
        by_model=by_model,
    )


def _read_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(overrides) - set(Quirks.__struct_fields__) - {"think_tags"})
    if unknown:
        raise ValueError(f"there is no quirk '{unknown[0]}': take one of {', '.join(Quirks.__struct_fields__)}")
    plain = dict(overrides)
    if "think_tags" in plain:
        plain["traits"] = {"think_tags": plain.pop("think_tags")}
    try:
        read = msgspec.convert(plain, Quirks)
    except msgspec.ValidationError as bad:
        raise ValueError(str(bad)) from None
    return {name: getattr(read, name) for name in plain}


def make_vendor(options: Mapping[str, Any]) -> OpenAICompatible:
    """The vendor for a config row's `options`. Raises ValueError with a sentence."""
    profile = options.get("profile")
    if profile is not None and not isinstance(profile, str):
        raise ValueError("profile must be a name")
    return compatible(profile, {name: value for name, value in options.items() if name != "profile"})


VENDOR: Final = compatible(None)
