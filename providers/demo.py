"""The bundled demo model: Gemma 3 270M in llama.cpp, run by the router itself. Wire: chat completions.

Docs: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md. Its sampling, chat template and
longest answer are set where it is started (`router.local_prompt`); here is what a call must say so that they hold.

- Stops replace the server's own, without which it goes on to ask itself questions: a caller's are added to them. -
Answers are streamed upstream even to callers who want them whole: this server notices a caller that left only when it
streams, and works to the end of a whole answer for nobody. - A seed asks for the same answer again, so the prompt
cache is left out: it changes how sums are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from providers.call import Call
from providers.errors import Broken
from providers.events import Failed
from providers.lanes import TranslateLane, observe
from providers.vendor import Capabilities, ModelFacts, PlainVendor, UpstreamRequest
from providers.wire import Lane, Stamp, Wire
from providers.wires.openai import WIRE

MODEL: Final = "gemma-3-270m"
STOP: Final = ("\n\nQuestion:", "\nQuestion:", "\n\n问：", "\n问：")
"""The beginnings of a next question in the model's two frames."""

_CAPABILITIES: Final = Capabilities(
    chat=True,
    text=True,
    embeddings=False,
    vision=False,
    audio=False,
    files=False,
    tools=False,
    schema=True,  # by grammar: always valid, seldom wise
    reasoning=False,
    image_urls=False,
    choices=True,
    logprobs=True,
    context=3700,  # of 4096: the template's examples take up to 350
)
_UNSPOKEN: Final = frozenset({"reasoning_effort", "user", "metadata", "store", "service_tier", "stream_options"})


class _Gathered(TranslateLane):
    """A stream from the server, a whole answer to the client."""

    def whole(self, body: bytes) -> bytes:
        reader = self._provider.reader(self._call, self._stamp)
        events = [*reader.feed(body), *reader.close()]
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            observe(self.meter, event)
        return self._client.write_answer(self._call, events, self._stamp)


class Demo(PlainVendor):
    def body(self, call: Call, sent_model: str) -> dict[str, Any]:
        given = super().body(call, sent_model)
        body = {name: value for name, value in given.items() if value is not None and name not in _UNSPOKEN}
        if "repetition_penalty" in body:
            body["repeat_penalty"] = body.pop("repetition_penalty")
        sampling = call.sampling
        if sampling.max_tokens is not None:
            body["max_tokens"] = sampling.max_tokens
        if sampling.stop:
            body["stop"] = [*sampling.stop, *STOP]
        if sampling.seed is not None:
            body["cache_prompt"] = False
        return {**body, "stream": True, "stream_options": {"include_usage": True}}

    def lane(self, call: Call, client: Wire, stamp: Stamp) -> Lane:
        return super().lane(call, client, stamp) if call.stream else _Gathered(call, self.wire, client, stamp)

    def capabilities(self, model: str) -> Capabilities:
        return _CAPABILITIES

    def models_request(self, api_key: str | None) -> UpstreamRequest | None:
        return UpstreamRequest(method="GET", path="/models", headers=self.auth(api_key), body=b"")

    def read_models(self, body: bytes) -> Sequence[ModelFacts]:
        try:
            rows = orjson.loads(body)["data"]
            return [ModelFacts(row["id"], _CAPABILITIES, row.get("meta") or {}) for row in rows]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as bad:
            raise Broken("the model list cannot be understood") from bad


VENDOR = Demo("demo", WIRE, needs_key=False, local=True)
