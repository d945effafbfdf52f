"""Whatever the litellm library reaches: Anthropic, Bedrock, Azure, Vertex and about a hundred more.

The library takes and gives OpenAI's shapes, so the wire is `openai`; `router.litellm_transport` makes the call. Only
fields named here reach the library: it reads dozens of others from a call (`api_base`, `api_key`, `extra_headers`,
`fallbacks`, `mock_response`, `metadata`, ...), with which a client could choose the host that our key is sent to.
Docs: https://docs.litellm.ai/docs/providers
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from providers.call import Call, File, Image, ToolResult
from providers.errors import UnsupportedFeature
from providers.vendor import Capabilities, PlainVendor, UpstreamRequest, Vendor
from providers.wires.openai import WIRE

CHAT_FIELDS: Final = frozenset(
    {
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "stream",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
    }
)
EMBED_FIELDS: Final = frozenset({"dimensions", "encoding_format", "input", "model", "user"})

RESERVED: Final = frozenset(
    {
        "api_base",
        "api_key",
        "base_url",
        "cache",
        "callbacks",
        "custom_llm_provider",
        "extra_headers",
        "fallbacks",
        "headers",
        "max_retries",
        "messages",
        "mock_response",
        "model",
        "num_retries",
        "provider",
        "stream",
        "timeout",
    }
)
"""Options that the provider's row says in its own words, or that the router does itself."""


class LiteLLM(PlainVendor):
    """One of the library's providers. `options` are what it wants besides key and address (`api_version`,
    `aws_region_name`, `vertex_project`, ...)."""

    transport = "litellm"

    def __init__(self, provider: str, options: Mapping[str, Any]) -> None:
        super().__init__("litellm", WIRE, needs_key=False)
        self.provider = provider
        self.options = dict(options)

    def request(self, call: Call, sent_model: str, api_key: str | None) -> UpstreamRequest:
        """Not an HTTP request: the body names the library's provider, its options and the call in OpenAI's shape."""
        _refuse(call)
        written = self.wire.write_call(call, sent_model)
        fields = EMBED_FIELDS if call.kind == "embed" else CHAT_FIELDS
        body = {key: value for key, value in written.items() if key in fields and value is not None}
        return UpstreamRequest(
            method="POST",
            path=self.wire.path(call, sent_model),
            headers={"content-type": "application/json", **self.auth(api_key)},
            body=orjson.dumps({"provider": self.provider, "options": self.options, "call": body}),
        )

    def capabilities(self, model: str) -> Capabilities:
        return Capabilities(image_urls=False)


def _refuse(call: Call) -> None:
    if WIRE.path(call, "") == "/completions":
        raise UnsupportedFeature("this provider takes chats, not bare prompts", param="prompt")
    for index, message in enumerate(call.messages):
        for part in message.parts:
            for piece in part.parts if isinstance(part, ToolResult) else (part,):
                # The library would fetch addresses itself, from inside our network.
                by_address = isinstance(piece, (Image, File)) and piece.data is None
                if by_address:
                    raise UnsupportedFeature(
                        "this provider takes images and files by value, not by address", param=f"messages[{index}]"
                    )
    for index, tool in enumerate(call.tools):
        if tool.extras:
            raise UnsupportedFeature("this provider takes only function tools", param=f"tools[{index}]")


def make_vendor(options: Mapping[str, Any]) -> Vendor:
    """`provider` is the library's name of the provider (`litellm_provider` in the config)."""
    provider = options.get("provider")
    if not isinstance(provider, str) or not provider:
        raise ValueError("litellm_provider is missing: for example bedrock, azure or anthropic")
    rest = {key: value for key, value in options.items() if key != "provider"}
    if taken := sorted(rest.keys() & RESERVED):
        raise ValueError(f"vendor litellm takes no option {', '.join(taken)}: the provider's row says it elsewhere")
    return LiteLLM(provider, rest)
