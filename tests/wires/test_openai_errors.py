"""Error answers: when to ask again, what a caller is told, that no body does harm. Bodies by vendor are fixtures."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.errors import (
    Broken,
    ContextTooLong,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    ProviderAuth,
    RateLimited,
    Refused,
    Unauthorized,
    UpstreamError,
)
from providers.wires.openai import WIRE
from providers.wires.openai.errors import MAX_RETRY_AFTER, retry_after


def test_a_completion_where_a_stream_was_asked_for() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    error = WIRE.read_error(200, {"content-type": "application/json"}, orjson.dumps({"id": "a", "choices": [choice]}))
    assert type(error) is Broken
    assert error.message == "the provider answered without streaming"
    refused = orjson.dumps({"choices": [choice], "error": {"message": "too busy"}})
    assert WIRE.read_error(200, {}, refused).message == "too busy"


DATE = "Wed, 28 Oct 2026 16:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "0.5"}, "", 0.5),
        ({"retry-after": "0"}, "", 0.0),
        ({"retry-after-ms": "6420", "retry-after": "7"}, "", 6.42),
        ({"retry-after": "86400"}, "", MAX_RETRY_AFTER),
        ({"retry-after": "-1"}, "", None),
        ({"retry-after": "soon"}, "", None),
        ({"retry-after": "nan"}, "", None),
        ({"retry-after": "inf"}, "", None),
        ({"retry-after": "Wed, 28 Oct 2026 16:00:09 GMT", "date": DATE}, "", 9.0),
        ({"retry-after": "Sun, 01 Nov 2026 00:00:00 GMT", "date": "Sat, 31 Oct 2026 23:59:50 GMT"}, "", 10.0),
        ({"retry-after": "Mon, 01 Mar 2027 00:00:02 GMT", "date": "Sun, 28 Feb 2027 23:59:59 GMT"}, "", 3.0),
        ({"retry-after": DATE, "date": "Wed, 28 Oct 2026 16:00:09 GMT"}, "", 0.0),
        ({"retry-after": DATE}, "", None),
        ({"retry-after": "Wed, 28 Foo 2026 16:00:00 GMT", "date": DATE}, "", None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, "", MAX_RETRY_AFTER),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "12ms"}, "", 0.012),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "12ms"}, "", None),
        ({}, "Rate limit reached. Please try again in 6.42s.", 6.42),
        ({}, "Please try again in 20ms", 0.02),
        ({}, "concurrency of 1 reached, try again after 1 seconds", 1.0),
        ({}, "try again in 2 minutes", MAX_RETRY_AFTER),
        ({}, "limit 60 per minute", None),
        ({}, "", None),
    ],
)
def test_retry_after(headers: dict[str, str], message: str, seconds: float | None) -> None:
    assert retry_after(headers, message) == (None if seconds is None else pytest.approx(seconds))


def test_a_refusal_carries_no_time_to_wait() -> None:
    error = WIRE.read_error(400, {"retry-after": "7"}, b'{"error":{"message":"no"}}')
    assert type(error) is Refused
    assert error.retry_after is None


@pytest.mark.parametrize(
    "status", [400, 401, 402, 403, 404, 408, 413, 418, 422, 429, 499, 500, 502, 503, 504, 520, 529, 599]
)
def test_every_status_has_a_class(status: int) -> None:
    error = WIRE.read_error(status, {}, b"")
    assert error.upstream_status == status
    assert error.message
    assert (error.scope == "request") == (status in (400, 413, 418, 422, 499) and type(error) is Refused)
    assert error.status not in (401, 402, 403, 404, 429), "the caller's key, model and quota are not at fault"


def test_the_code_decides_before_the_status() -> None:
    body = orjson.dumps({"error": {"message": "x", "type": "y", "code": "context_length_exceeded"}})
    assert type(WIRE.read_error(500, {}, body)) is ContextTooLong
    limited = orjson.dumps({"error": {"message": "x", "code": "RateLimitExceeded.Unheard"}})
    assert type(WIRE.read_error(400, {}, limited)) is RateLimited


def test_what_is_told_of_an_account_goes_to_the_log_only() -> None:
    body = orjson.dumps(
        {
            "error": {
                "message": "Incorrect API key provided: sk-proj-abcdefghijklm, account acme",
                "code": "invalid_api_key",
            }
        }
    )
    error = WIRE.read_error(401, {}, body)
    assert type(error) is ProviderAuth
    assert "acme" not in error.message
    assert error.__notes__ == ["Incorrect API key provided: [redacted], account acme"]


NAMES = """
error message code type param detail base_resp status_code status_msg metadata raw innererror object loc msg choices
"""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES.split()),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from([200, 400, 404, 429, 500]))
def test_any_json_is_some_error(body: Any, status: int) -> None:
    error = WIRE.read_error(status, {}, json.dumps(body).encode())
    assert isinstance(error, UpstreamError)
    assert 0 < len(error.message) <= 500


@given(st.binary(max_size=60), st.sampled_from([200, 401, 500]))
def test_any_bytes_are_some_error(body: bytes, status: int) -> None:
    error = WIRE.read_error(status, {}, body)
    assert 0 < len(error.message) <= 500


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("bad", param="messages[0].role"),
        InvalidRequest("bad", native_code="invalid_type"),
        Unauthorized("no"),
        ModelNotFound("gpt-9", ["gpt-4"]),
        InternalError("request req_1 failed"),
    ],
)
def test_all_four_keys_are_always_there(error: Any) -> None:
    body = orjson.loads(WIRE.write_error(error, "req_1"))["error"]
    assert body == {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.native_code or error.code,
        "request_id": "req_1",
    }


def test_a_stream_error_is_a_chunk_and_the_end() -> None:
    call = WIRE.read_call("chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True})
    body = WIRE.write_stream_error(call, InvalidRequest("a\u2028b"), "req_1")
    assert body.endswith(b"}\n\ndata: [DONE]\n\n")
    assert body.count(b"\n\n") == 2
    assert rb"a\u2028b" in body
