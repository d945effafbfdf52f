"""How the three providers' answers look: whole, as stream frames, as errors. Enough to be understood, and exact where a
client looks.

A frame is the bytes of one stream event. `ECHO` stands in error texts for what a provider should never repeat.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from tests.simulators.server import Request

SECRET = "sk-simulated-0123456789abcdefSECRET"
"""The provider key that tests configure. No answer, header or log line may ever hold it."""
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def _text(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


class Dialect(Protocol):
    name: str
    stream_type: str

    def is_stream(self, request: Request) -> bool: ...

    def whole(self, request: Request, text: str) -> bytes: ...

    def opening(self, request: Request) -> bytes:
        """A frame that commits nothing (a role); b"" where the dialect has none."""
        ...

    def content(self, request: Request, text: str) -> bytes: ...

    def finish(self, request: Request) -> Sequence[bytes]:
        """The closing frames, the end mark last."""
        ...

    def error(self, status: int, message: str) -> bytes:
        """The body of an error answer."""
        ...

    def stream_error(self, message: str) -> bytes: ...

    def garbage(self) -> bytes:
        """A frame that no reader understands."""
        ...


class OpenAI:
    name = "openai"
    stream_type = "text/event-stream"

    def is_stream(self, request: Request) -> bool:
        return bool(request.json.get("stream"))

    def whole(self, request: Request, text: str) -> bytes:
        if request.path.endswith("/models"):
            return _text({"object": "list", "data": [{"id": "sim-chat", "object": "model", "owned_by": "sim"}]})
        if request.path.endswith("/embeddings"):
            given = request.json.get("input")
            count = len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
            rows = [{"object": "embedding", "index": index, "embedding": [0.5, -0.25]} for index in range(count)]
            usage = {"prompt_tokens": 7, "total_tokens": 7}
            return _text({"object": "list", "data": rows, "model": request.model, "usage": usage})
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if "/chat/" in request.path:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return _text({**self._base(request, chunk=False), "choices": [choice], "usage": USAGE})

    def opening(self, request: Request) -> bytes:
        return self._frame(request, {"role": "assistant", "content": ""}, None)

    def content(self, request: Request, text: str) -> bytes:
        return self._frame(request, {"content": text}, None)

    def finish(self, request: Request) -> Sequence[bytes]:
        usage = {**self._base(request, chunk=True), "choices": [], "usage": USAGE}
        frames = [self._frame(request, {}, "stop")]
        if (request.json.get("stream_options") or {}).get("include_usage"):
            frames.append(b"data: " + _text(usage) + b"\n\n")
        return [*frames, b"data: [DONE]\n\n"]

    def error(self, status: int, message: str) -> bytes:
        code = {401: "invalid_api_key", 429: "rate_limit_exceeded", 404: "model_not_found"}.get(status)
        return _text({"error": {"message": message, "type": "simulated_error", "param": None, "code": code}})

    def stream_error(self, message: str) -> bytes:
        return b"data: " + self.error(500, message) + b"\n\n"

    def garbage(self) -> bytes:
        return b'data: {"id": "half a chu\n\n'

    def _base(self, request: Request, *, chunk: bool) -> dict[str, Any]:
        chat = "/chat/" in request.path
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        return {"id": "chatcmpl-sim", "object": kind, "created": 1760000000, "model": request.model}

    def _frame(self, request: Request, delta: dict[str, Any], finish: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if "/chat/" in request.path:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return b"data: " + _text({**self._base(request, chunk=True), "choices": [choice]}) + b"\n\n"


class Ollama:
    name = "ollama"
    stream_type = "application/x-ndjson"

    def is_stream(self, request: Request) -> bool:
        return bool(request.json.get("stream", True)) and request.path in ("/api/chat", "/api/generate")

    def whole(self, request: Request, text: str) -> bytes:
        match request.path:
            case "/api/tags":
                return _text({"models": [_model(name) for name in LOCAL_MODELS]})
            case "/api/ps":
                return _text({"models": [{**_model(LOCAL_MODELS[0]), "size_vram": 1719393189}]})
            case "/api/version":
                return _text({"version": "0.12.0"})
            case "/api/show":
                details = _model(request.model)["details"]
                return _text({"details": details, "model_info": {}, "capabilities": ["completion", "tools"]})
            case "/api/embed":
                given = request.json.get("input")
                count = len(given) if isinstance(given, list) else 1
                rows = [[0.5, -0.25] for _ in range(count)]
                return _text({"model": request.model, "embeddings": rows, "prompt_eval_count": 7})
            case "/api/embeddings":
                return _text({"embedding": [0.5, -0.25]})
        return _text(self._line(request, text, last=True))

    def opening(self, request: Request) -> bytes:
        return _text(self._line(request, "")) + b"\n"

    def content(self, request: Request, text: str) -> bytes:
        return _text(self._line(request, text)) + b"\n"

    def finish(self, request: Request) -> Sequence[bytes]:
        return [_text(self._line(request, "", last=True)) + b"\n"]

    def error(self, status: int, message: str) -> bytes:
        return _text({"error": message})

    def stream_error(self, message: str) -> bytes:
        return _text({"error": message}) + b"\n"

    def garbage(self) -> bytes:
        return b'{"model": "half a li\n'

    def _line(self, request: Request, text: str, *, last: bool = False) -> dict[str, Any]:
        line: dict[str, Any] = {"model": request.model, "created_at": "2026-03-02T10:11:12.123456Z", "done": last}
        if request.path == "/api/chat":
            line["message"] = {"role": "assistant", "content": text}
        else:
            line["response"] = text
        if last:
            line |= {"done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3, "total_duration": 5000000}
        return line


LOCAL_MODELS = ("llama3.2:latest", "embed:latest")


def _model(name: str) -> dict[str, Any]:
    details = {"format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "3B"}
    details |= {"parent_model": "", "quantization_level": "Q4_K_M"}
    digest = "0" * 63 + "1"
    return {
        "name": name,
        "model": name,
        "modified_at": "2026-03-02T10:11:12Z",
        "size": 2019393189,
        "digest": digest,
        "details": details,
    }


class Gemini:
    name = "gemini"
    stream_type = "text/event-stream"

    def is_stream(self, request: Request) -> bool:
        return ":streamGenerateContent" in request.path

    def whole(self, request: Request, text: str) -> bytes:
        if ":batchEmbedContents" in request.path:
            return _text({"embeddings": [{"values": [0.5, -0.25]} for _ in request.json.get("requests", [])]})
        if ":embedContent" in request.path:
            return _text({"embedding": {"values": [0.5, -0.25]}})
        if ":" not in request.path.rpartition("/")[2]:
            methods = ["generateContent", "streamGenerateContent"]
            return _text({"models": [{"name": "models/sim-chat", "supportedGenerationMethods": methods}]})
        return _text(self._answer(request, text, last=True))

    def opening(self, request: Request) -> bytes:
        return (
            b"data: " + _text({"usageMetadata": {"promptTokenCount": 7}, "modelVersion": request.model}) + b"\r\n\r\n"
        )

    def content(self, request: Request, text: str) -> bytes:
        return b"data: " + _text(self._answer(request, text)) + b"\r\n\r\n"

    def finish(self, request: Request) -> Sequence[bytes]:
        return [b"data: " + _text(self._answer(request, "", last=True)) + b"\r\n\r\n"]

    def error(self, status: int, message: str) -> bytes:
        words = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
        return _text({"error": {"code": status, "message": message, "status": words.get(status, "INTERNAL")}})

    def stream_error(self, message: str) -> bytes:
        return b"data: " + self.error(500, message) + b"\r\n\r\n"

    def garbage(self) -> bytes:
        return b'data: {"candidates": [{"cont\r\n\r\n'

    def _answer(self, request: Request, text: str, *, last: bool = False) -> dict[str, Any]:
        candidate: dict[str, Any] = {
            "content": {"role": "model", "parts": [{"text": text}] if text else []},
            "index": 0,
        }
        if last:
            candidate["finishReason"] = "STOP"
        usage = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": request.model}


OPENAI, OLLAMA, GEMINI = OpenAI(), Ollama(), Gemini()


def dialect_of(request: Request) -> Dialect:
    """The dialect that a request's path belongs to."""
    path = request.path.partition("?")[0]
    if path.startswith("/api/") and not path.startswith("/api/v3"):
        return OLLAMA
    if path.startswith("/v1beta"):
        return GEMINI
    return OPENAI
