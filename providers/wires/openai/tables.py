"""Words of the OpenAI dialect and of those who speak it: fields, bounds, finish reasons, efforts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from providers.call import Effort
from providers.events import FinishReason

MAX_MESSAGES: Final = 2048
MAX_PARTS: Final = 1024
MAX_TOOLS: Final = 128
MAX_CHOICES: Final = 8
MAX_STOPS: Final = 16
"""OpenAI takes 4, Kimi and Gemini 5; the provider has the last word below this bound."""
MAX_BIAS: Final = 1024
MAX_INPUTS: Final = 2048
MAX_TOKENS: Final = 10_000_000
MAX_MODEL: Final = 256
"""Characters of a model name."""

FINISH: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "COMPLETE": "stop",
    "STOP": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "MAX_TOKENS": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
    "SAFETY": "content_filter",
    "safety": "content_filter",
}
"""Finish reasons of OpenAI-like servers. What is in neither table means `stop`."""

FAILED_FINISH: Final = frozenset({"error", "network_error", "abort", "repetition"})
"""Finish reasons that say that the answer broke off."""

EFFORTS: Final[Mapping[str, Effort | None]] = {
    "none": None,
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
    "default": None,
}
"""`reasoning_effort` to ours. `none` turns reasoning off; `default` (Groq) says nothing."""

REASONING_FIELDS: Final = frozenset(
    {"reasoning_effort", "thinking", "enable_thinking", "thinking_budget", "reasoning", "chat_template_kwargs"}
)
"""Top-level fields by which the dialects ask for reasoning."""
