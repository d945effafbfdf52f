"""Gemini (Google's Developer API), in its native wire. Docs: https://ai.google.dev/api

The key goes in the `x-goog-api-key` header, never in the URL, where logs, traces and redirects would carry it on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import orjson
from msgspec import Struct

from providers.call import Call
from providers.errors import Broken, UpstreamError
from providers.lanes import TranslateLane
from providers.vendor import Capabilities, ModelFacts, UpstreamRequest, Vendor
from providers.wire import Lane, ProviderWire, Stamp, Wire
from providers.wires.gemini import WIRE
from providers.wires.gemini.models import family

BASE_URL: Final = "https://generativelanguage.googleapis.com/v1beta"
PAGE: Final = 1000
"""Models a page of the list holds at most; there are far fewer, so one page is the list."""

_VERSION = re.compile(r"/v\d+(?:alpha|beta)?\d*(?:/|$)")


class _Model(Struct, rename="camel"):
    name: str
    input_token_limit: int | None = None
    supported_generation_methods: list[str] | None = None
    thinking: bool | None = None


class _Models(Struct, rename="camel"):
    models: list[_Model] = []


_decode = msgspec.json.Decoder(_Models, strict=False).decode


class Gemini:
    name = "gemini"
    wire: ProviderWire = WIRE
    base_url: str | None = BASE_URL
    needs_key = True
    key_env: str | None = "GEMINI_API_KEY"
    local = False
    transport = "http"

    def address(self, url: str) -> str:
        """A base URL as it was pasted, with the API version that is often left out and without Google's OpenAI path."""
        url = url.strip().rstrip("/").removesuffix("/models").removesuffix("/openai").rstrip("/")
        return url if _VERSION.search(url) else f"{url}/v1beta"

    def auth(self, api_key: str | None) -> dict[str, str]:
        return {"x-goog-api-key": api_key} if api_key else {}

    def request(self, call: Call, sent_model: str, api_key: str | None) -> UpstreamRequest:
        return UpstreamRequest(
            method="POST",
            path=self.wire.path(call, sent_model),
            headers={"content-type": "application/json", **self.auth(api_key)},
            body=orjson.dumps(self.wire.write_call(call, sent_model)),
        )

    def lane(self, call: Call, client: Wire, stamp: Stamp) -> Lane:
        return TranslateLane(call, self.wire, client, stamp)

    def classify(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return self.wire.read_error(status, headers, body)

    def capabilities(self, model: str) -> Capabilities:
        kind = family(model)
        if not kind.gemini:
            # Gemma and others behind the same address have no tools and no JSON mode; which see pictures varies.
            embeds = kind.embeds
            return Capabilities(
                chat=not embeds,
                text=not embeds,
                embeddings=embeds,
                tools=False,
                schema=False,
                reasoning=False,
                image_urls=False,
                token_inputs=False,
            )
        if kind.embeds:
            return Capabilities(
                chat=False, text=False, embeddings=True, image_urls=False, token_inputs=False, context=2048
            )
        return Capabilities(
            chat=True,
            text=True,
            embeddings=False,
            vision=True,
            audio=True,
            files=True,
            tools=not kind.speaks,
            schema=not kind.speaks,
            reasoning=kind.thinks,
            image_urls=False,
            token_inputs=False,
            context=None if kind.speaks else 1_048_576,
        )

    def models_request(self, api_key: str | None) -> UpstreamRequest | None:
        return UpstreamRequest("GET", f"/models?pageSize={PAGE}", self.auth(api_key), b"")

    def read_models(self, body: bytes) -> Sequence[ModelFacts]:
        try:
            found = _decode(body).models
        except (msgspec.DecodeError, UnicodeError) as bad:
            raise Broken("the provider's model list cannot be understood") from bad
        return [self._facts(model) for model in found if model.name]

    def _facts(self, model: _Model) -> ModelFacts:
        name = model.name.removeprefix("models/")
        known = self.capabilities(name)
        methods = model.supported_generation_methods
        if methods is not None:
            chat = "generateContent" in methods
            embeds = "embedContent" in methods or "batchEmbedContents" in methods
            known = msgspec.structs.replace(known, chat=chat, text=chat, embeddings=embeds)
        if model.input_token_limit:
            known = msgspec.structs.replace(known, context=model.input_token_limit)
        if model.thinking is not None:
            known = msgspec.structs.replace(known, reasoning=model.thinking)
        return ModelFacts(name, known)


VENDOR: Vendor = Gemini()
