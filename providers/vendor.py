"""What a vendor is: a wire plus differences. Base URL, auth, quirks, capabilities, model list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
from msgspec import Struct

from providers.call import Call
from providers.errors import UpstreamError
from providers.lanes import TranslateLane
from providers.wire import Lane, ProviderWire, Stamp, Wire


class Capabilities(Struct, frozen=True):
    """What a model can do. None means unknown, and unknown is allowed: the provider decides. Only False keeps a call
    away."""

    chat: bool | None = None
    text: bool | None = None
    embeddings: bool | None = None
    vision: bool | None = None
    audio: bool | None = None
    files: bool | None = None
    tools: bool | None = None
    schema: bool | None = None
    reasoning: bool | None = None
    image_urls: bool | None = None
    token_inputs: bool | None = None
    choices: bool | None = None
    """More than one choice (`n`)."""
    logprobs: bool | None = None
    context: int | None = None
    """Tokens of prompt and answer together."""
    max_output: int | None = None
    """Most tokens of one answer, reasoning included."""


class ModelFacts(Struct, frozen=True):
    """One entry of a provider's model list."""

    name: str
    capabilities: Capabilities = Capabilities()
    details: Mapping[str, object] = {}
    """What the provider's list said (Ollama: size, digest, details, modified_at), for lists of ours in the same
    dialect."""


class UpstreamRequest(Struct, frozen=True):
    """One HTTP request below a provider's base URL. Header names are lower case; auth is in them, so it is never
    logged."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Vendor(Protocol):
    name: str

    @property
    def wire(self) -> ProviderWire: ...

    base_url: str | None
    """Default base URL without a trailing slash; None: the config must say it."""
    needs_key: bool
    key_env: str | None
    """The variable that usually holds the key, for messages."""
    local: bool
    """Runs on the team's own machine: costs no money, may load a model first."""
    transport: str
    """How it is reached: `http`, or `litellm` (through the library)."""

    def address(self, url: str) -> str:
        """A base URL as an operator pasted it, completed with what this vendor's always has (a version)."""
        ...

    def request(self, call: Call, sent_model: str, api_key: str | None) -> UpstreamRequest:
        """The upstream request: the client's own body, patched, where both speak this wire, else the call written out.

        Raises UnsupportedFeature when this vendor cannot say what the call needs.
        """
        ...

    def lane(self, call: Call, client: Wire, stamp: Stamp) -> Lane:
        """The way back: splice where client and vendor speak one wire, else translate."""
        ...

    def classify(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError: ...

    def capabilities(self, model: str) -> Capabilities:
        """What the vendor's documentation says of a model name."""
        ...

    def models_request(self, api_key: str | None) -> UpstreamRequest | None:
        """How to ask for the model list; None when the vendor has none."""
        ...

    def read_models(self, body: bytes) -> Sequence[ModelFacts]:
        """Raises Broken when the list cannot be understood."""
        ...


class PlainVendor:
    """A vendor that is nothing but its wire: the base of most others. Bearer auth; no model list unless overridden."""

    wire: Wire
    transport = "http"

    def __init__(
        self,
        name: str,
        wire: Wire,
        *,
        base_url: str | None = None,
        key_env: str | None = None,
        needs_key: bool = True,
        local: bool = False,
    ) -> None:
        self.name = name
        self.wire = wire
        self.base_url = base_url
        self.key_env = key_env
        self.needs_key = needs_key
        self.local = local

    def address(self, url: str) -> str:
        return url

    def auth(self, api_key: str | None) -> dict[str, str]:
        """The headers that carry the credential."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def body(self, call: Call, sent_model: str) -> dict[str, Any]:
        """The upstream body: patched raw body on the same wire, else the call written out. Vendors override to apply
        quirks."""
        if call.wire == self.wire.name:
            return {**call.raw, "model": sent_model}
        return self.wire.write_call(call, sent_model)

    def request(self, call: Call, sent_model: str, api_key: str | None) -> UpstreamRequest:
        return UpstreamRequest(
            method="POST",
            path=self.wire.path(call, sent_model),
            headers={"content-type": "application/json", **self.auth(api_key)},
            body=orjson.dumps(self.body(call, sent_model)),
        )

    def lane(self, call: Call, client: Wire, stamp: Stamp) -> Lane:
        if client.name == self.wire.name:
            return self.wire.splice(call, stamp)
        return TranslateLane(call, self.wire, client, stamp)

    def classify(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return self.wire.read_error(status, headers, body)

    def capabilities(self, model: str) -> Capabilities:
        return Capabilities()

    def models_request(self, api_key: str | None) -> UpstreamRequest | None:
        return None

    def read_models(self, body: bytes) -> Sequence[ModelFacts]:
        return ()
