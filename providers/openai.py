"""OpenAI. Wire: its own. Docs: https://platform.openai.com/docs/api-reference and .../docs/models"""

from __future__ import annotations

from typing import Final

import msgspec

from providers.compatible import OpenAICompatible, Quirks
from providers.vendor import Capabilities, Vendor

_CHAT: Final = Capabilities(chat=True, text=False, embeddings=False, tools=True, token_inputs=False)
_SEES: Final = Capabilities(
    chat=True, text=False, embeddings=False, vision=True, image_urls=True, tools=True, schema=True, token_inputs=False
)
_THINKS: Final = Capabilities(
    chat=True,
    text=False,
    embeddings=False,
    vision=True,
    image_urls=True,
    tools=True,
    schema=True,
    reasoning=True,
    token_inputs=False,
)
_VECTORS: Final = Capabilities(
    chat=False, text=False, embeddings=True, vision=False, tools=False, schema=False, reasoning=False, token_inputs=True
)
_TEXT: Final = Capabilities(
    chat=False, text=True, embeddings=False, vision=False, tools=False, schema=False, token_inputs=True
)
_OTHER: Final = Capabilities(chat=False, text=False, embeddings=False)

_FACTS: Final = (
    ("text-embedding-*", _VECTORS),
    ("gpt-3.5-turbo-instruct*", _TEXT),
    ("davinci-002", _TEXT),
    ("babbage-002", _TEXT),
    ("whisper-*", _OTHER),
    ("tts-*", _OTHER),
    ("dall-e-*", _OTHER),
    ("gpt-image-*", _OTHER),
    ("*-transcribe*", _OTHER),
    ("*-tts*", _OTHER),
    ("*-realtime*", _OTHER),
    ("omni-moderation-*", _OTHER),
    ("text-moderation-*", _OTHER),
    ("gpt-3.5-*", _CHAT),
    ("gpt-4-turbo*", _SEES),
    ("gpt-4o*", _SEES),
    ("gpt-4.1*", _SEES),
    ("gpt-4*", _CHAT),
    ("chatgpt-4o*", _SEES),
    ("o1-mini*", Capabilities(chat=True, text=False, embeddings=False, vision=False, tools=False, reasoning=True)),
    ("o3-mini*", Capabilities(chat=True, text=False, embeddings=False, vision=False, tools=True, reasoning=True)),
    ("o[134]*", _THINKS),
    ("gpt-5*", _THINKS),
)

_BASE: Final = Quirks(
    developer=True,
    functions=True,
    reasoning_echo="drop",
    # These models refuse an effort; other wires' clients say "do not think" to models that never do.
    drop_translated=frozenset({"top_k", "min_p", "repetition_penalty", "reasoning_effort"}),
    efforts_as_asked=True,
    embedding_base64=True,
    facts=_FACTS,
)
_REASONING: Final = msgspec.structs.replace(
    _BASE,
    max_tokens="max_completion_tokens",
    # Reasoning models refuse any but the default; other wires' clients send these without a wish behind them.
    drop_translated=frozenset(
        {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
    ),
    efforts={"max": "high"},  # what is above differs from model to model
)
_O_MINI: Final = msgspec.structs.replace(_REASONING, drop_translated=_REASONING.drop_translated | {"reasoning_effort"})
_O: Final = msgspec.structs.replace(_REASONING, efforts={"minimal": "low", "max": "high"}, effort_off=None)
_GPT_5: Final = msgspec.structs.replace(_REASONING, effort_off="minimal")
"""The first of the family think always; `none` came with 5.1, which has no `minimal`."""
_GPT_5_LATER: Final = msgspec.structs.replace(_REASONING, efforts={"minimal": "low", "max": "high"})

VENDOR: Vendor = OpenAICompatible(
    "openai",
    _BASE,
    base_url="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    by_model=(
        ("o1-mini*", _O_MINI),
        ("o[134]*", _O),
        ("gpt-5.*", _GPT_5_LATER),
        ("gpt-5*", _GPT_5),
    ),
)
