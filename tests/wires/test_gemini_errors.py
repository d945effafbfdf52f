"""Google's errors classified, and the vendor's addresses, keys, capabilities and model list."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from providers.errors import (
    Broken,
    Busy,
    ProviderAuth,
    ProviderModelNotFound,
    ProviderQuota,
    RateLimited,
    Refused,
    TimedOut,
    Unavailable,
    UpstreamError,
)
from providers.gemini import VENDOR
from providers.wires.gemini import GeminiWire
from tests.wires.gemini_calls import chat


def status(code: int, name: str, *details: dict[str, Any], message: str = "said so") -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message, "status": name, "details": list(details)}})


def quota(name: str, value: str = "10") -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": name, "quotaValue": value}],
    }


RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "27.5s"}
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (400, status(400, "INVALID_ARGUMENT"), Refused),
        (400, status(400, "INVALID_ARGUMENT", BAD_KEY), ProviderAuth),
        (400, b"[" + status(400, "INVALID_ARGUMENT", BAD_KEY) + b"]", ProviderAuth),
        (400, status(400, "FAILED_PRECONDITION"), ProviderAuth),
        (401, status(401, "UNAUTHENTICATED"), ProviderAuth),
        (403, status(403, "PERMISSION_DENIED"), ProviderAuth),
        (404, status(404, "NOT_FOUND"), ProviderModelNotFound),
        (413, b"too large", Refused),
        (418, b"", Refused),
        (429, status(429, "RESOURCE_EXHAUSTED", quota("PerMinutePerProject"), RETRY), RateLimited),
        (429, status(429, "RESOURCE_EXHAUSTED", quota("GenerateRequestsPerDayPerProject"), RETRY), ProviderQuota),
        (429, status(429, "RESOURCE_EXHAUSTED", quota("PerMinute", "0"), RETRY), ProviderQuota),
        (429, b"", RateLimited),
        (499, status(499, "CANCELLED"), Unavailable),
        (500, status(500, "INTERNAL"), Unavailable),
        (502, b"<html>Bad Gateway</html>", Unavailable),
        (503, status(503, "UNAVAILABLE"), Busy),
        (504, status(504, "DEADLINE_EXCEEDED"), TimedOut),
        (200, status(503, "UNAVAILABLE"), Busy),
        (200, b"not JSON", Broken),
        (500, b"null", Unavailable),
        (500, b'{"error": "text only"}', Unavailable),
        (500, b'{"error": {"details": {"a": 1}, "message": 5}}', Unavailable),
    ],
)
def test_kinds(code: int, body: bytes, kind: type[UpstreamError]) -> None:
    error = GeminiWire().read_error(code, {}, body)
    assert type(error) is kind
    assert error.message


def test_facts() -> None:
    field = {"fieldViolations": [{"field": "tools[0].parameters", "description": "x"}]}
    error = GeminiWire().read_error(400, {}, status(400, "INVALID_ARGUMENT", field, message="Unknown name"))
    assert (error.message, error.param, error.upstream_status) == ("Unknown name", "tools[0].parameters", 400)
    limited = GeminiWire().read_error(429, {}, status(429, "RESOURCE_EXHAUSTED", RETRY))
    assert limited.retry_after == 27.5
    assert GeminiWire().read_error(503, {"retry-after": "12"}, b"{}").retry_after == 12
    assert GeminiWire().read_error(503, {"retry-after": "soon"}, b"{}").retry_after is None
    assert GeminiWire().read_error(500, {}, b'{"error": "text only"}').message == "text only"


def test_no_secret_passes() -> None:
    leak = "key AIzaSyA1234567890abcdefghijklmnopqrstu at https://x/y?key=abc123def is bad " + "x" * 900
    message = GeminiWire().read_error(400, {}, status(400, "INVALID_ARGUMENT", message=leak)).message
    assert "AIza" not in message
    assert "abc123def" not in message
    assert len(message) <= 500


# --- the vendor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pasted", "address"),
    [
        ("https://generativelanguage.googleapis.com", "https://generativelanguage.googleapis.com/v1beta"),
        ("https://generativelanguage.googleapis.com/v1beta/", "https://generativelanguage.googleapis.com/v1beta"),
        ("https://generativelanguage.googleapis.com/v1", "https://generativelanguage.googleapis.com/v1"),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "https://generativelanguage.googleapis.com/v1beta",
        ),
        ("https://generativelanguage.googleapis.com/v1beta/models", "https://generativelanguage.googleapis.com/v1beta"),
        ("http://127.0.0.1:9000/gemini", "http://127.0.0.1:9000/gemini/v1beta"),
        ("http://vendors.local:9000", "http://vendors.local:9000/v1beta"),
    ],
)
def test_pasted_addresses(pasted: str, address: str) -> None:
    assert VENDOR.address(pasted) == address


def test_the_key_is_in_a_header_only() -> None:
    requests = [VENDOR.request(chat(stream=stream), "gemini-2.5-flash", "AIzaSECRET") for stream in (True, False)]
    listing = VENDOR.models_request("AIzaSECRET")
    assert listing is not None
    assert listing.path == "/models?pageSize=1000"
    for request in (*requests, listing):
        assert request.headers["x-goog-api-key"] == "AIzaSECRET"
        assert "SECRET" not in request.path
        assert b"SECRET" not in request.body


def test_capabilities() -> None:
    flash, embedding = VENDOR.capabilities("gemini-2.5-flash"), VENDOR.capabilities("gemini-embedding-001")
    assert (flash.chat, flash.vision, flash.tools, flash.reasoning, flash.embeddings) == (True, True, True, True, False)
    assert (embedding.chat, embedding.embeddings) == (False, True)
    assert VENDOR.capabilities("gemini-2.0-flash").reasoning is False
    assert VENDOR.capabilities("gemma-3-27b-it").tools is False
    assert VENDOR.capabilities("text-embedding-004").embeddings is True
    assert flash.image_urls is False


def test_model_list() -> None:
    body = {
        "models": [
            {
                "name": "models/gemini-2.5-flash",
                "inputTokenLimit": "1048576",
                "supportedGenerationMethods": ["generateContent"],
            },
            {
                "name": "models/gemini-embedding-001",
                "inputTokenLimit": 2048,
                "supportedGenerationMethods": ["embedContent"],
            },
            {"name": "models/next-1", "supportedGenerationMethods": ["generateContent"], "thinking": True, "new": []},
        ]
    }
    flash, embedding, other = VENDOR.read_models(orjson.dumps(body))
    assert (flash.name, flash.capabilities.context, flash.capabilities.chat) == ("gemini-2.5-flash", 1048576, True)
    assert (embedding.name, embedding.capabilities.embeddings, embedding.capabilities.context) == (
        "gemini-embedding-001",
        True,
        2048,
    )
    assert other.capabilities.reasoning is True
    assert VENDOR.read_models(b"{}") == []
    for junk in (b"", b"[]", b'{"models": 5}', b"<html>"):
        with pytest.raises(Broken):
            VENDOR.read_models(junk)
