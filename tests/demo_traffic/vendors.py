"""Simulated providers that keep books: what each call was answered with, and how many tokens it was told to have used.

A prompt holds a number, `(#42)`, by which a provider finds the `Order` for the call: how long the answer is, and what
goes wrong. The number is also how the books of clients, providers and router are held against each other.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tests.simulators import dialects
from tests.simulators.server import Exchange, Request, Simulator

WORDS: Final = (
    *("The", "router", "asks", "one", "provider", "after", "another", "until", "somebody", "answers,"),
    *("and", "tells", "you", "who", "did.", "路由器", "会", "记录", "每次", "调用。"),
)
AT_ONCE: Final = 4
"""Words in one piece of a stream."""
COOLDOWN: Final = 2
"""Seconds that a provider with too many requests asks for."""
_NUMBER: Final = re.compile(rb"\(#(\d+)\)")
_ARGUMENTS: Final = ('{"city": ', '"Shanghai"', ', "days": 3}')
_SAYS: Final = {429: "Rate limit reached for requests", 401: "Incorrect API key provided"}


@dataclass(frozen=True, slots=True)
class Order:
    """How a call is to be answered. `trouble` is what goes wrong, by provider: a status (`503`, `429`), `silent` (no
    word until the router gives up), `garbage` (something that is no answer), `cut` (the connection ends amid the
    answer), `untold` (no usage), `endless` (words for as long as anybody listens), `more` (than was asked for).
    """

    words: int = 24
    """A word is a token."""
    pace: float = 0.01
    """Seconds before each piece of a stream; a whole answer takes the sum of it."""
    tool: bool = False
    reasoning: int = 0
    """Tokens that count as output besides the words."""
    cached: int = 0
    """Of a hundred tokens of the prompt."""
    trouble: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long an answer takes."""
        return self.pace * self.words / AT_ONCE


@dataclass(slots=True)
class Told:
    """One request as a provider answered it. Tokens are those that it reported; None where it reported none."""

    number: int
    provider: str
    model: str
    status: int | None = None
    input: int | None = None
    output: int | None = None
    cached: int = 0
    reasoning: int = 0
    ended: bool = False
    """The answer was handed over to its end."""


class Books:
    """Orders, and what became of them at all providers. Written by the providers' threads."""

    def __init__(self) -> None:
        self.orders: dict[int, Order] = {}
        self.told: list[Told] = []
        self.outages: dict[str, str] = {}
        """Trouble of whole providers, whatever the calls' orders say."""
        self._lock = threading.Lock()

    def begin(self, number: int, provider: str, model: str) -> Told:
        made = Told(number, provider, model)
        with self._lock:
            self.told.append(made)
        return made

    def of(self, number: int) -> list[Told]:
        """The requests of one call, in order."""
        with self._lock:
            return [one for one in self.told if one.number == number]

    def trouble(self, provider: str, order: Order) -> str:
        return self.outages.get(provider) or order.trouble.get(provider, "")

    def forget(self) -> None:
        with self._lock:
            self.told.clear()
            self.orders.clear()


class Provider(Simulator):
    """One provider, in whatever wire it is asked."""

    def __init__(self, name: str, books: Books, models: Sequence[str]) -> None:
        super().__init__({"answer": self._answer}, dialects.dialect_of)
        self.name = name
        self.models = tuple(models)
        self.loaded: dict[str, int] = {}
        """Of an Ollama: bytes of GPU memory by model."""
        self._books = books

    def forget(self) -> None:
        """Drop what is remembered of past requests: a run may last for days."""
        self.requests.clear()
        self.peers[:] = [peer for peer in self.peers if not peer.gone.is_set()]

    async def _answer(self, x: Exchange) -> None:
        shape = _SHAPES[x.dialect.name]
        found = _NUMBER.search(x.request.body)
        if found is None:  # lists and details of models
            await x.answer(200, _text(shape.facts(x.request, self)))
            return
        number = int(found[1])
        order = self._books.orders.get(number, Order())
        told = self._books.begin(number, self.name, x.request.model)
        trouble = self._books.trouble(self.name, order)
        if trouble == "silent":
            await x.peer.until_gone()
            return
        told.status = int(trouble) if trouble.isdigit() else 200
        if told.status != 200:
            headers = {"retry-after": str(COOLDOWN)} if told.status == 429 else {}
            text = _SAYS.get(told.status, "The server had an error while processing your request")
            await x.answer(told.status, x.dialect.error(told.status, text), headers)
        elif trouble == "garbage":
            await x.answer(200, b'{"id": "half an ans')
        elif shape.embeds(x.request):
            await x.answer(200, _text(shape.vectors(x.request, told)))
            told.ended = True
        elif x.stream:
            await _stream(x, shape, order, told, trouble)
        elif trouble == "endless":
            await x.peer.until_gone()
        else:
            words = _count(told, order, shape, x.request, trouble)
            await asyncio.sleep(order.seconds)
            body = _text(shape.whole(x.request, _said(words), order, told))
            if trouble == "cut":
                await x.head(200, {"content-type": "application/json", "content-length": str(len(body))})
                await x.send(body[:-20])
                x.peer.close()
                return
            await x.answer(200, body)
            told.ended = True


async def _stream(x: Exchange, shape: Shape, order: Order, told: Told, trouble: str) -> None:
    words = 1 << 40 if trouble == "endless" else _count(told, order, shape, x.request, trouble)
    await x.open_stream()
    if opening := x.dialect.opening(x.request):
        await x.chunk(opening)
    said = 0
    while said < words:
        await asyncio.sleep(order.pace)
        if trouble == "cut" and said >= words // 2:
            x.peer.close()
            return
        now = min(AT_ONCE, words - said)
        await x.chunk(x.dialect.content(x.request, _said(now, said)))
        said += now
    for frame in shape.ending(x.request, order, told):
        await x.chunk(frame)
    told.ended = True  # the router has all that matters; the last chunk only closes
    await x.end_chunks()


def _count(told: Told, order: Order, shape: Shape, request: Request, trouble: str) -> int:
    """Put down what the call uses. How many words the answer has."""
    most = shape.most(request)
    words = order.words if most is None else max(1, min(order.words, most - order.reasoning))
    if trouble != "untold":
        told.input = 20 + told.number * 37 % 400
        told.output = words + order.reasoning + (100 if trouble == "more" else 0)
        if shape.details:
            told.cached, told.reasoning = told.input * order.cached // 100, order.reasoning
    return words


def _said(words: int, since: int = 0) -> str:
    return "".join(f"{WORDS[at % len(WORDS)]} " for at in range(since, since + words))


def _text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


# --- the wires


class Shape(Protocol):
    """What a wire has beyond `tests.simulators.dialects`."""

    details: bool
    """It tells cached and reasoning tokens."""

    def facts(self, request: Request, provider: Provider) -> Mapping[str, Any]:
        """The answer to a request that asks no model anything."""
        ...

    def embeds(self, request: Request) -> bool: ...

    def vectors(self, request: Request, told: Told) -> Mapping[str, Any]:
        """The answer with embeddings; what it used is put down."""
        ...

    def most(self, request: Request) -> int | None:
        """The longest answer that the caller wants, in tokens."""
        ...

    def whole(self, request: Request, text: str, order: Order, told: Told) -> Mapping[str, Any]: ...

    def ending(self, request: Request, order: Order, told: Told) -> Iterator[bytes]:
        """The frames after the words of a stream."""
        ...


class _OpenAI:
    details = True

    def facts(self, request: Request, provider: Provider) -> Mapping[str, Any]:
        rows = [{"id": name, "object": "model", "owned_by": provider.name} for name in provider.models]
        return {"object": "list", "data": rows}

    def embeds(self, request: Request) -> bool:
        return request.path.endswith("/embeddings")

    def vectors(self, request: Request, told: Told) -> Mapping[str, Any]:
        given = request.json["input"]
        told.input, told.output = 5 + told.number % 40, 0
        count = len(given) if isinstance(given, list) else 1
        rows = [{"object": "embedding", "index": at, "embedding": [0.5, -0.25, 0.125]} for at in range(count)]
        usage = {"prompt_tokens": told.input, "total_tokens": told.input}
        return {"object": "list", "data": rows, "model": request.model, "usage": usage}

    def most(self, request: Request) -> int | None:
        found = request.json.get("max_completion_tokens", request.json.get("max_tokens"))
        return found if isinstance(found, int) else None

    def whole(self, request: Request, text: str, order: Order, told: Told) -> Mapping[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "tool_calls" if order.tool else "stop"}
        if "/chat/" not in request.path:
            choice["text"] = text
        else:
            choice["message"] = {"role": "assistant", "content": None if order.tool else text}
            if order.tool:
                function = {"name": "forecast", "arguments": "".join(_ARGUMENTS)}
                choice["message"]["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        kind = "chat.completion" if "/chat/" in request.path else "text_completion"
        return {**self._head(request, kind), "choices": [choice], **self._usage(told)}

    def ending(self, request: Request, order: Order, told: Told) -> Iterator[bytes]:
        head = self._head(request, "chat.completion.chunk")

        def frame(**members: Any) -> bytes:
            return b"data: " + _text({**head, **members}) + b"\n\n"

        def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
            inner: Mapping[str, Any] = {"delta": delta} if "/chat/" in request.path else {"text": ""}
            return frame(choices=[{"index": 0, "finish_reason": finish, **inner}])

        if order.tool:
            function = {"name": "forecast", "arguments": ""}
            yield chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]})
            for part in _ARGUMENTS:
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
        yield chunk({}, "tool_calls" if order.tool else "stop")
        if (request.json.get("stream_options") or {}).get("include_usage") and told.input is not None:
            yield frame(choices=[], **self._usage(told))
        yield b"data: [DONE]\n\n"

    def _head(self, request: Request, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-demo", "object": kind, "created": 1760000000, "model": request.model}

    def _usage(self, told: Told) -> Mapping[str, Any]:
        if told.input is None or told.output is None:
            return {}
        return {
            "usage": {
                "prompt_tokens": told.input,
                "completion_tokens": told.output,
                "total_tokens": told.input + told.output,
                "prompt_tokens_details": {"cached_tokens": told.cached},
                "completion_tokens_details": {"reasoning_tokens": told.reasoning},
            }
        }


class _Gemini:
    details = True

    def facts(self, request: Request, provider: Provider) -> Mapping[str, Any]:
        methods = ["generateContent", "streamGenerateContent"]
        rows = [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in provider.models]
        return {"models": rows}

    def embeds(self, request: Request) -> bool:
        return "mbedContent" in request.path

    def vectors(self, request: Request, told: Told) -> Mapping[str, Any]:
        return {"embeddings": [{"values": [0.5, -0.25]} for _ in request.json.get("requests", [])]}

    def most(self, request: Request) -> int | None:
        found = request.json.get("generationConfig", {}).get("maxOutputTokens")
        return found if isinstance(found, int) else None

    def whole(self, request: Request, text: str, order: Order, told: Told) -> Mapping[str, Any]:
        parts: list[Mapping[str, Any]] = [{"text": text}] if text else []
        if order.tool:
            parts = [{"functionCall": {"name": "forecast", "args": json.loads("".join(_ARGUMENTS))}}]
        candidate = {"content": {"role": "model", "parts": parts}, "index": 0, "finishReason": "STOP"}
        return {"candidates": [candidate], "modelVersion": request.model, **self._usage(told)}

    def ending(self, request: Request, order: Order, told: Told) -> Iterator[bytes]:
        yield b"data: " + _text(self.whole(request, "", order, told)) + b"\r\n\r\n"

    def _usage(self, told: Told) -> Mapping[str, Any]:
        if told.input is None or told.output is None:
            return {}
        return {
            "usageMetadata": {
                "promptTokenCount": told.input,
                "candidatesTokenCount": told.output - told.reasoning,
                "thoughtsTokenCount": told.reasoning,
                "cachedContentTokenCount": told.cached,
                "totalTokenCount": told.input + told.output,
            }
        }


class _Ollama:
    details = False

    def facts(self, request: Request, provider: Provider) -> Mapping[str, Any]:
        if request.path == "/api/version":
            return {"version": "0.12.6"}
        if request.path == "/api/ps":
            until = "2099-01-01T00:00:00Z"
            return {
                "models": [
                    {**self._row(name), "size": size, "size_vram": size, "expires_at": until, "context_length": 8192}
                    for name, size in provider.loaded.items()
                ]
            }
        if request.path == "/api/show":
            return {**self._row(request.model), "model_info": {}}
        return {"models": [self._row(name) for name in provider.models]}

    def _row(self, name: str) -> dict[str, Any]:
        size = {"parameter_size": "8.2B", "quantization_level": "Q4_K_M", "format": "gguf", "family": "qwen3"}
        can = ["embedding"] if name.startswith("bge") else ["completion", "tools", "vision"]
        return {
            "name": name,
            "model": name,
            "modified_at": "2026-03-02T10:11:12Z",
            "size": 5_225_388_164,
            "digest": "0" * 63 + "1",
            "details": size,
            "capabilities": can,
        }

    def embeds(self, request: Request) -> bool:
        return request.path == "/api/embed"

    def vectors(self, request: Request, told: Told) -> Mapping[str, Any]:
        given = request.json["input"]
        told.input, told.output = 5 + told.number % 40, 0
        rows = [[0.5, -0.25, 0.125] for _ in (given if isinstance(given, list) else [given])]
        return {"model": request.model, "embeddings": rows, "prompt_eval_count": told.input}

    def most(self, request: Request) -> int | None:
        found = request.json.get("options", {}).get("num_predict")
        return found if isinstance(found, int) else None

    def whole(self, request: Request, text: str, order: Order, told: Told) -> Mapping[str, Any]:
        line: dict[str, Any] = {"model": request.model, "created_at": "2026-03-02T10:11:12.123456Z", "done": True}
        if request.path == "/api/chat":
            line["message"] = {"role": "assistant", "content": text}
            if order.tool:
                function = {"name": "forecast", "arguments": json.loads("".join(_ARGUMENTS))}
                line["message"] = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
        else:
            line["response"] = text
        line |= {"done_reason": "stop", "total_duration": 5_000_000}
        if told.input is not None:
            line |= {"prompt_eval_count": told.input, "eval_count": told.output}
        return line

    def ending(self, request: Request, order: Order, told: Told) -> Iterator[bytes]:
        yield _text(self.whole(request, "", order, told)) + b"\n"


_SHAPES: Final[Mapping[str, Shape]] = {"openai": _OpenAI(), "gemini": _Gemini(), "ollama": _Ollama()}
