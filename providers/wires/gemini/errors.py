"""Google's errors (`google.rpc.Status`) as ours, decided by status, code and detail reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from providers.errors import (
    Broken,
    Busy,
    ContextTooLong,
    ProviderAuth,
    ProviderModelNotFound,
    ProviderQuota,
    RateLimited,
    Refused,
    TimedOut,
    Unavailable,
    UpstreamError,
)
from providers.scrub import clean
from providers.surrogates import loads

BY_STATUS: Final[dict[int, type[UpstreamError]]] = {
    400: Refused,
    401: ProviderAuth,
    402: ProviderQuota,
    403: ProviderAuth,
    404: ProviderModelNotFound,
    408: TimedOut,
    413: Refused,
    422: Refused,
    429: RateLimited,
    499: Unavailable,
    500: Unavailable,
    503: Busy,
    504: TimedOut,
}
KEY_REASONS: Final = frozenset(
    {
        "API_KEY_INVALID",
        "API_KEY_SERVICE_BLOCKED",
        "API_KEY_HTTP_REFERRER_BLOCKED",
        "API_KEY_IP_ADDRESS_BLOCKED",
        "API_KEY_ANDROID_APP_BLOCKED",
        "API_KEY_IOS_APP_BLOCKED",
        "ACCOUNT_STATE_INVALID",
        "CONSUMER_INVALID",
        "SERVICE_DISABLED",
    }
)
"""`ErrorInfo.reason` for a key that is bad or restricted: HTTP 400 or 403, and never the caller's fault."""

CODES: Final = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""For errors inside a stream that give a status name and no number."""

TOO_LONG: Final = "exceeds the maximum number of tokens allowed"
"""A prompt that is too long has no code of its own; only there the documented sentence decides."""

OWN_WORDS: Final[dict[type[UpstreamError], str]] = {
    ProviderAuth: "the provider refuses the router's credential",
    ProviderQuota: "the router's account at the provider has no quota left",
}
"""What callers are told instead of a sentence about an account that is not theirs."""

_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


def error_of(error: object, status: int | None) -> UpstreamError:
    """The `error` object of a body or a stream event. `status` is the HTTP status, None inside a stream."""
    facts = error if isinstance(error, Mapping) else {}
    name = facts.get("status") if isinstance(facts.get("status"), str) else None
    code = facts.get("code")
    if status is None or status < 400:
        status = code if isinstance(code, int) and 400 <= code <= 599 else CODES.get(name or "", 500)
    details = [item for item in _list(facts.get("details")) if isinstance(item, Mapping)]
    reasons = {item.get("reason") for item in details if isinstance(item.get("reason"), str)}
    kind = BY_STATUS.get(status, Unavailable if status >= 500 else Refused)
    if reasons & KEY_REASONS or name == "FAILED_PRECONDITION":
        kind = ProviderAuth  # a bad key, a region or a bill: 400, but our configuration
    elif kind is RateLimited and any(_spent(item) for item in details):
        kind = ProviderQuota
    message = facts.get("message") if facts else error
    text = clean(message) if isinstance(message, str) else ""
    if kind is Refused and TOO_LONG in text:
        kind = ContextTooLong
    found = kind(
        OWN_WORDS.get(kind) or text or f"the provider answered with status {status}",
        upstream_status=status,
        retry_after=_delay(details),
        param=_param(details) if kind is Refused else None,
        native_code=name if kind is Refused else None,
    )
    if kind in OWN_WORDS and text:
        found.add_note(text)  # for the operator's log; the caller never sees it
    return found


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    try:
        value = loads(body)
    except orjson.JSONDecodeError:
        if status < 400:
            return Broken("the provider's answer is not JSON", upstream_status=status)
        return error_of(body[:4000].decode("utf-8", "replace"), status)
    if isinstance(value, list):
        value = value[0] if value else {}
    found = value.get("error") if isinstance(value, dict) else None
    error = error_of(found if found is not None else {}, status)
    if error.retry_after is None:
        error.retry_after = _seconds(headers.get("retry-after"))
    return error


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _spent(detail: Mapping[str, Any]) -> bool:
    """A quota that no waiting of seconds brings back: a day's, or one of zero (not in the plan at all)."""
    return any(
        "PerDay" in str(item.get("quotaId", "")) or item.get("quotaValue") in ("0", 0)
        for item in _list(detail.get("violations"))
        if isinstance(item, Mapping)
    )


def _delay(details: list[Mapping[str, Any]]) -> float | None:
    """`RetryInfo.retryDelay`: Google sends no Retry-After."""
    for item in details:
        found = _DELAY.fullmatch(delay) if isinstance(delay := item.get("retryDelay"), str) else None
        if found:
            return float(found[1])
    return None


def _seconds(header: str | None) -> float | None:
    found = _DELAY.fullmatch(f"{header.strip()}s") if header else None
    return float(found[1]) if found else None


def _param(details: list[Mapping[str, Any]]) -> str | None:
    for item in details:
        for violation in _list(item.get("fieldViolations")):
            if isinstance(violation, Mapping) and isinstance(violation.get("field"), str):
                return clean(violation["field"]) or None
    return None
