"""Every name that is sent to an OpenTelemetry collector: attributes, metrics, units, buckets, vendors. Nothing else
writes one down.

Two states of the GenAI conventions are known, both of status Development:

- `published`: the last that were published with the general conventions (1.41 to 1.44), which collectors, boards and
  the Python package `opentelemetry-semantic-conventions` know:
  https://github.com/open-telemetry/semantic-conventions/blob/v1.41.1/docs/gen-ai/
- `latest`: their own repository as of November 2026, not released yet. It replaces `gen_ai.client.token.usage` by
  counters, gives inference metrics of its own and renames one attribute (its changes 374, 440 and 521):
  https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/non-normative/migration.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Names = Literal["published", "latest"]

SCOPE: Final = "switchyard"
"""The instrumentation scope of all spans and metrics."""

# -- attributes ---------------------------------------------------------------------------------------------------

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
STREAM: Final = "gen_ai.request.stream"
MAX_TOKENS: Final = "gen_ai.request.max_tokens"
TEMPERATURE: Final = "gen_ai.request.temperature"
TOP_P: Final = "gen_ai.request.top_p"
CHOICES: Final = "gen_ai.request.choice.count"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_CREATION: Final = "gen_ai.usage.cache_creation.input_tokens"
CACHE_WRITE: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - a name
TOKEN_MODALITY: Final = "gen_ai.token.modality"  # noqa: S105 - a name
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
STATUS: Final = "http.response.status_code"

REQUEST_ID: Final = "switchyard.request.id"
DIALECT: Final = "switchyard.dialect"
OWN_OPERATION: Final = "switchyard.operation"
ROUTE: Final = "switchyard.route"
OWN_PROVIDER: Final = "switchyard.provider"
ATTEMPTS: Final = "switchyard.attempts"
FALLBACK: Final = "switchyard.fallback.reason"
OUTCOME: Final = "switchyard.outcome"
OVERHEAD: Final = "switchyard.overhead"
COST: Final = "switchyard.cost.usd"
MARK: Final = "switchyard.usage.mark"
DEGRADED: Final = "switchyard.degraded"

SPAN_ATTRIBUTES: Final[Mapping[str, str]] = {
    OPERATION: "`chat`, `text_completion` or `embeddings`",
    PROVIDER: "whose service answers, see below; `switchyard` on the span of a call that nobody answered",
    REQUEST_MODEL: "the name that was asked for; on an attempt the name that was sent",
    RESPONSE_MODEL: "the model that the provider says answered",
    STREAM: "true for a streamed answer",
    MAX_TOKENS: "as the caller set it",
    TEMPERATURE: "as the caller set it",
    TOP_P: "as the caller set it",
    CHOICES: "answers asked for, where more than one",
    FINISH_REASONS: "`stop`, `length`, `tool_calls` or `content_filter`",
    FIRST_CHUNK: "seconds to the first content of a stream",
    INPUT_TOKENS: "as billed, those from a cache included",
    OUTPUT_TOKENS: "as billed, reasoning included",
    CACHE_READ: "input tokens that came from the provider's cache",
    CACHE_CREATION: "input tokens that were written to it",
    CACHE_WRITE: "the same by its latest name",
    REASONING: "output tokens spent on reasoning",
    ERROR_TYPE: "the outcome, where it is not `ok`",
    SERVER_ADDRESS: "host of the provider",
    SERVER_PORT: "its port",
    STATUS: "what the client got; on an attempt what the provider answered",
    REQUEST_ID: "the id in the log and in `x-request-id`",
    DIALECT: "`openai` or `ollama`",
    OWN_OPERATION: "the operation in the dialect's own word",
    ROUTE: "the name or pattern of the config that matched, else `other`",
    OWN_PROVIDER: "the provider's name in the config",
    ATTEMPTS: "how many providers were asked",
    FALLBACK: "why the fallback answered",
    OUTCOME: "`ok`, `aborted` or the error's code",
    OVERHEAD: "seconds spent in the router itself before the answer began",
    COST: "US dollars, where anything was used and the price is known",
    MARK: "`measured`, `estimated` or `aborted`, see [billing](billing.md); on a call that used nothing there is none",
    DEGRADED: "true for a call that was admitted while the store was away",
}
"""Every attribute of a span, with what it holds."""

METRIC_ATTRIBUTES: Final = (
    *(OPERATION, PROVIDER, REQUEST_MODEL, SERVER_ADDRESS, SERVER_PORT),
    *(ERROR_TYPE, TOKEN_TYPE, TOKEN_MODALITY),
)
"""Every attribute of a metric. The model is one that the config or a provider's list names, else `other`."""

RENAMED: Final[Mapping[Names, Mapping[str, str]]] = {"published": {CACHE_WRITE: CACHE_CREATION}, "latest": {}}
"""Attributes that are sent under another name."""

# -- metrics ------------------------------------------------------------------------------------------------------

Measure = Literal[
    "attempt",
    "embedding",
    "first_chunk",
    "input",
    "output",
    "embedded",
    "cache_read",
    "cache_write",
    "reasoning",
    "call",
    "first_token",
    "per_token",
]
"""What is measured, by our own words."""

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS: Final = tuple(4**power for power in range(14))
FIRST_TOKEN: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(15.0, 20.0, 30.0, 45.0, 60.0),
)
"""The convention's list ends at 10 s; local models that are loaded first, and those that reason, take longer."""
PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Instrument(NamedTuple):
    """One metric. Without buckets it is a counter. `adds`: attributes of its own."""

    name: str
    unit: str
    text: str
    buckets: tuple[float, ...] | None = None
    adds: tuple[tuple[str, str], ...] = ()


def _usage(kind: str) -> Instrument:
    text = "Number of input and output tokens used."
    return Instrument("gen_ai.client.token.usage", "{token}", text, TOKENS, ((TOKEN_TYPE, kind),))


def _spent(name: str, text: str) -> Instrument:
    name = f"gen_ai.client.inference.usage.{name}"
    return Instrument(name, "{token}", text, None, ((TOKEN_MODALITY, "unknown"),))  # of a mixed prompt nobody says more


def _each(name: str, text: str) -> Instrument:
    return Instrument(f"gen_ai.client.inference.operation.{name}", "{token}", text, TOKENS)


_ATTEMPT: Final = Instrument("gen_ai.client.operation.duration", "s", "Duration of one call to a provider.", SECONDS)
_SERVED: Final[Mapping[Measure, tuple[Instrument, ...]]] = {
    "call": (Instrument("gen_ai.server.request.duration", "s", "Duration of a call, for its caller.", SECONDS),),
    "first_token": (
        Instrument("gen_ai.server.time_to_first_token", "s", "Time to the first content of a stream.", FIRST_TOKEN),
    ),
    "per_token": (
        Instrument(
            "gen_ai.server.time_per_output_token", "s", "Time per output token after the first of a stream.", PER_TOKEN
        ),
    ),
}
_FIRST_CHUNK_TEXT: Final = "Time to the first chunk of a stream, from the request to the provider."

METRICS: Final[Mapping[Names, Mapping[Measure, tuple[Instrument, ...]]]] = {
    "published": {
        "attempt": (_ATTEMPT,),
        "embedding": (_ATTEMPT,),
        "first_chunk": (Instrument("gen_ai.client.operation.time_to_first_chunk", "s", _FIRST_CHUNK_TEXT, SECONDS),),
        "input": (_usage("input"),),
        "output": (_usage("output"),),
        "embedded": (_usage("input"),),
        **_SERVED,
    },
    "latest": {
        "attempt": (Instrument("gen_ai.client.inference.duration", "s", _ATTEMPT.text, SECONDS),),
        "embedding": (_ATTEMPT,),
        "first_chunk": (Instrument("gen_ai.client.inference.time_to_first_chunk", "s", _FIRST_CHUNK_TEXT, SECONDS),),
        "input": (
            _spent("input_tokens", "Input tokens used, those from a cache included."),
            _each("input_tokens", "Input tokens of each call to a provider."),
        ),
        "output": (
            _spent("output_tokens", "Output tokens used, reasoning included."),
            _each("output_tokens", "Output tokens of each call to a provider."),
        ),
        "cache_read": (_spent("cache_read.input_tokens", "Input tokens that came from a provider's cache."),),
        "cache_write": (_spent("cache_write.input_tokens", "Input tokens that were written to a provider's cache."),),
        "reasoning": (_spent("reasoning.output_tokens", "Output tokens used for reasoning."),),
        **_SERVED,
    },
}
"""What is recorded for a measure. The latest conventions have no token metric for embeddings yet."""

# -- values -------------------------------------------------------------------------------------------------------

OPERATIONS: Final[Mapping[str, str]] = {"chat": "chat", "text": "text_completion", "embed": "embeddings"}
"""By a call's kind."""
EARLY_OPERATIONS: Final[Mapping[str, str]] = {
    "completions": "text_completion",
    "generate": "text_completion",
    "embeddings": "embeddings",
    "embed": "embeddings",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
}
"""By the dialect's word, for a call that was refused before it was understood; any other word is chat."""

OURSELVES: Final = "switchyard"

VENDORS: Final[Mapping[str, str]] = {
    "openai": "openai",
    "gemini": "gcp.gemini",
    "kimi": "moonshot_ai",
    "doubao": "volcengine",  # ours: the conventions know no value
    "ollama": "ollama",  # ours
    "demo": "llama_cpp",  # ours
    "openai-compatible": "openai_compatible",  # ours: a server of which the config says no more
}
"""`gen_ai.provider.name` by our vendor."""
PROFILES: Final[Mapping[str, str]] = {
    "deepseek": "deepseek",
    "groq": "groq",
    "xai": "x_ai",
    "mistral": "mistral_ai",
    "azure": "azure.ai.openai",
}
"""`gen_ai.provider.name` by the profile of an OpenAI-compatible row; another profile stands for itself."""
LITELLM: Final[Mapping[str, str]] = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "gemini": "gcp.gemini",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "volcengine": "volcengine",
}
"""`gen_ai.provider.name` by litellm's name of the provider; another one stands for itself."""


def provider_name(vendor: str, profile: object = None, litellm: str | None = None) -> str:
    """`gen_ai.provider.name` of a provider's row: its vendor, the `profile` of its options, litellm's name of it."""
    if vendor == "litellm":
        return LITELLM.get(litellm or "", litellm or vendor)
    if isinstance(profile, str) and profile:
        return PROFILES.get(profile, profile)
    return VENDORS.get(vendor, vendor)
