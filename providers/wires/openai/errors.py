"""Error answers: every shape that OpenAI-like servers send to one tree, and our own to OpenAI's shape.

Decided by the provider's code or type first, by status second. Some servers give neither a code nor a telling status
for a prompt that is too long; only there a documented phrase of the message decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from providers import surrogates
from providers.errors import (
    Broken,
    Busy,
    ContentFiltered,
    ContextTooLong,
    ProviderAuth,
    ProviderModelNotFound,
    ProviderQuota,
    RateLimited,
    Refused,
    SwitchyardError,
    TimedOut,
    Unavailable,
    UpstreamError,
)
from providers.scrub import clean

MAX_RETRY_AFTER: Final = 60.0
"""Seconds. A provider that asks for more is asked again after this; a bad header must not switch it off for a day."""

_CODES: Final[Mapping[str, type[UpstreamError]]] = {
    # OpenAI: https://platform.openai.com/docs/guides/error-codes
    "context_length_exceeded": ContextTooLong,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "model_not_found": ProviderModelNotFound,
    "invalid_api_key": ProviderAuth,
    "invalid_authentication": ProviderAuth,
    "authentication_error": ProviderAuth,
    "insufficient_quota": ProviderQuota,
    "credit_balance_exhausted": ProviderQuota,
    "billing_hard_limit_reached": ProviderQuota,
    "organization_spend_limit_exceeded": ProviderQuota,
    "project_spend_limit_exceeded": ProviderQuota,
    "organization_usage_limit_exceeded": ProviderQuota,
    "rate_limit_exceeded": RateLimited,
    "rate_limit_error": RateLimited,
    "slow_down": Busy,
    "server_is_overloaded": Busy,
    "overloaded_error": Busy,
    # Azure
    "DeploymentNotFound": ProviderModelNotFound,
    "ResponsibleAIPolicyViolation": ContentFiltered,
    # Kimi
    "engine_overloaded_error": Busy,
    "rate_limit_reached_error": RateLimited,
    "exceeded_current_quota_error": ProviderQuota,
    "invalid_authentication_error": ProviderAuth,
    "incorrect_api_key_error": ProviderAuth,
    "permission_denied_error": ProviderAuth,
    "resource_not_found_error": ProviderModelNotFound,
    "server_unavailable": Busy,
    "unexpected_output": Unavailable,
    # Ark (Doubao); the part before the first dot decides where the whole is not listed
    "AuthenticationError": ProviderAuth,
    "InvalidAccountStatus": ProviderAuth,
    "AccessDenied": ProviderAuth,
    "OperationDenied": ProviderAuth,
    "OperationDenied.ServiceOverdue": ProviderQuota,
    "AccountOverdueError": ProviderQuota,
    "InvalidSubscription": ProviderQuota,
    "QuotaExceeded": ProviderQuota,
    "SetLimitExceeded": ProviderQuota,
    "InvalidEndpointOrModel": ProviderModelNotFound,
    "InvalidEndpoint": ProviderModelNotFound,
    "ModelNotOpen": ProviderModelNotFound,
    "UnsupportedModel": ProviderModelNotFound,
    "OutofContextError": ContextTooLong,
    "RateLimitExceeded": RateLimited,
    "ModelAccountRpmRateLimitExceeded": RateLimited,
    "ModelAccountTpmRateLimitExceeded": RateLimited,
    "ModelAccountIpmRateLimitExceeded": RateLimited,
    "APIAccountRpmRateLimitExceeded": RateLimited,
    "AccountRateLimitExceeded": RateLimited,
    "RequestBurstTooFast": RateLimited,
    "InflightBatchsizeExceeded": RateLimited,
    "ServerOverloaded": Busy,
    "InternalServiceError": Unavailable,
    # Qwen
    "data_inspection_failed": ContentFiltered,
    "DataInspectionFailed": ContentFiltered,
    "Arrearage": ProviderQuota,
    "AllocationQuota": ProviderQuota,
    "Throttling": RateLimited,
    "limit_requests": RateLimited,
    # llama-server, vLLM, Groq
    "exceed_context_size_error": ContextTooLong,
    "unavailable_error": Busy,
    "NotFoundError": ProviderModelNotFound,
}

_NUMERIC: Final[Mapping[str, Mapping[str, type[UpstreamError]]]] = {
    "zhipu": {
        **dict.fromkeys(("1000", "1001", "1002", "1003", "1004"), ProviderAuth),
        **dict.fromkeys(("1110", "1111", "1112", "1120", "1121", "1220", "1221", "1222", "1311"), ProviderAuth),
        **dict.fromkeys(("1113", "1304", "1308", "1309", "1310"), ProviderQuota),
        "1211": ProviderModelNotFound,
        "1212": ProviderModelNotFound,
        "1261": ContextTooLong,
        "1300": ContentFiltered,
        "1301": ContentFiltered,
        "1302": RateLimited,
        "1303": RateLimited,
        "1313": RateLimited,
        "1305": Busy,
        "1312": Busy,
        "1234": Unavailable,
    },
    "minimax": {
        "1000": Unavailable,
        "1001": TimedOut,
        "1002": RateLimited,
        "1004": ProviderAuth,
        "1008": ProviderQuota,
        "1013": Unavailable,
        "1026": ContentFiltered,
        "1027": ContentFiltered,
        "1039": ContextTooLong,
        "2013": Refused,
        "2049": ProviderAuth,
        "2056": ProviderQuota,
    },
}
"""Codes that are bare numbers mean something at one vendor only."""

_STATUSES: Final[Mapping[int, type[UpstreamError]]] = {
    400: Refused,
    401: ProviderAuth,
    402: ProviderQuota,
    403: ProviderAuth,
    404: ProviderModelNotFound,
    405: Refused,
    408: TimedOut,
    409: Unavailable,
    413: Refused,
    415: Refused,
    422: Refused,
    424: Unavailable,
    429: RateLimited,
    434: ProviderAuth,
    435: Refused,
    498: Busy,
    499: Unavailable,
    503: Busy,
    504: TimedOut,
    529: Busy,
}

_TOO_LONG: Final = (
    "maximum context length",
    "context length exceeded",
    "available context size",
    "input token length too long",
    "prompt is too long",
    "exceeds the context window",
)
"""vLLM, Kimi and llama-server send a bare 400 with one of these. Lower case."""

_OWN_WORDS: Final[Mapping[type[UpstreamError], str]] = {
    ProviderAuth: "the provider refuses the router's credential",
    ProviderQuota: "the router's account at the provider has no quota left",
}
"""What callers are told instead of a sentence about an account that is not theirs."""


class _Facts:
    """What a body says, whatever its shape."""

    __slots__ = ("code", "message", "param", "status", "type")

    def __init__(self) -> None:
        self.message = ""
        self.type = ""
        self.code = ""
        self.param: str | None = None
        self.status: int | None = None


def _word(value: Any) -> str:
    if type(value) is str:
        return value
    return str(value) if type(value) is int else ""


def _flat(facts: _Facts, source: Mapping[str, Any]) -> None:
    message = source.get("message", source.get("msg"))
    facts.message = message if type(message) is str else ""
    facts.type = _word(source.get("type"))
    facts.code = _word(source.get("code"))
    param = source.get("param")
    facts.param = param if type(param) is str and param else None
    status = source.get("status_code", source.get("status"))
    facts.status = status if type(status) is int else None
    metadata = source.get("metadata")
    if type(metadata) is dict and type(metadata.get("raw")) is str:
        facts.message = f"{facts.message}: {metadata['raw']}"
    inner = source.get("innererror")
    if type(inner) is dict and _word(inner.get("code")) in _CODES and facts.code not in _CODES:
        facts.code = _word(inner.get("code"))


def _list(value: Any) -> list[Any]:
    return value if type(value) is list else []


def _facts(body: Any) -> _Facts:
    facts = _Facts()
    if type(body) is list and body:
        body = body[0]
    if type(body) is not dict:
        return facts
    error = body.get("error")
    base = body.get("base_resp")
    detail = body.get("detail")
    if type(base) is dict and base.get("status_code"):
        facts.message = _word(base.get("status_msg"))
        facts.code = _word(base.get("status_code"))
        facts.type = "base_resp"
    elif type(error) is dict:
        _flat(facts, error)
    elif type(error) is str and error:
        _flat(facts, body)
        facts.message = error
    elif body.get("object") == "error" or type(body.get("message")) is str:
        _flat(facts, body)
    elif type(detail) is str:
        facts.message = detail
    elif type(detail) is list:
        facts.message = "; ".join(
            f"{'.'.join(map(str, _list(item.get('loc'))))}: {item.get('msg', '')}" if type(item) is dict else str(item)
            for item in detail[:5]
        )
    else:
        for choice in _list(body.get("choices")):
            if type(choice) is dict and type(choice.get("error")) is dict:
                _flat(facts, choice["error"])
                break
    return facts


def parse(body: bytes) -> Any:
    """The JSON of a body, None when it is none. Content types lie, so the bytes decide; blank lines may come first."""
    try:
        return surrogates.loads(body.strip())
    except orjson.JSONDecodeError:
        return None


def failed(body: Any) -> bool:
    """Whether a body that came with 200 is an error in truth."""
    if type(body) is not dict:
        return True
    if body.get("error"):
        return True
    base = body.get("base_resp")
    return type(base) is dict and bool(base.get("status_code"))


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?\Z")
_HINT = re.compile(
    r"(?:again|retry|wait)[^\d.]{0,24}(\d{1,6}(?:\.\d{1,6})?)\s*(ms|milliseconds?|m\b|min|s|sec)?", re.IGNORECASE
)
_UNITS: Final = {"ms": 0.001, "millisecond": 0.001, "milliseconds": 0.001, "m": 60.0, "min": 60.0}
_DATE = re.compile(r"\w{3}, (\d\d) (\w{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT\Z")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _date(text: str) -> float | None:
    """An HTTP date (RFC 9110, IMF-fixdate) as seconds on a day count; only differences mean anything."""
    found = _DATE.match(text)
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, month = int(found[1]), int(found[3]), _MONTHS.index(found[2]) + 1
    if month < 3:
        year, month = year - 1, month + 12
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month - 457) // 5 + day
    return days * 86400.0 + int(found[4]) * 3600 + int(found[5]) * 60 + int(found[6])


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def retry_after(headers: Mapping[str, str], message: str = "") -> float | None:
    """Seconds to wait, from headers (milliseconds, seconds, a date beside the answer's own date, a reset duration) or
    the message."""
    value = _seconds(headers.get("retry-after-ms"))
    if value is not None:
        return min(value / 1000, MAX_RETRY_AFTER)
    given = headers.get("retry-after", "").strip()
    value = _seconds(given)
    if value is None and given:
        then, now = _date(given), _date(headers.get("date", ""))
        value = max(then - now, 0.0) if then is not None and now is not None else None
    if value is None:
        for kind in ("requests", "tokens"):
            text = headers.get(f"x-ratelimit-reset-{kind}", "")
            if headers.get(f"x-ratelimit-remaining-{kind}") == "0" and (found := _DURATION.match(text)) and text:
                hours, minutes, seconds, millis = (float(part or 0) for part in found.groups())
                value = hours * 3600 + minutes * 60 + seconds + millis / 1000
    if value is None and (hint := _HINT.search(message[:1000])):
        value = float(hint[1]) * _UNITS.get((hint[2] or "s").lower(), 1.0)
    return None if value is None else min(value, MAX_RETRY_AFTER)


def _class(status: int, facts: _Facts, vendor: str) -> type[UpstreamError]:
    numeric = _NUMERIC.get("minimax" if facts.type == "base_resp" else vendor, {})
    for word in (facts.code, facts.type):
        if not word:
            continue
        if (
            "SensitiveContent" in word
            or "PolicyViolation" in word
            or "RiskDetection" in word
            or "PrivacyInformation" in word
        ):
            return ContentFiltered  # Ark's families: Input/Output x Text/Image/Video/Audio
        found = numeric.get(word) or _CODES.get(word) or _CODES.get(word.partition(".")[0])
        if found is not None and not (found is ProviderModelNotFound and status not in (400, 403, 404)):
            return found
    given = facts.status or (int(facts.code) if facts.code.isdigit() and 400 <= int(facts.code) < 600 else None)
    if status < 400:
        status = given or 502
    found = _STATUSES.get(status)
    if found is None:
        found = Unavailable if status >= 500 else Refused
    if found is Refused:
        lower = facts.message.lower()
        if any(phrase in lower for phrase in _TOO_LONG):
            return ContextTooLong
    return found


_TITLE = re.compile(rb"<title[^>]{0,80}>([^<]{1,200})</title>", re.IGNORECASE)


def _page(text: bytes) -> str:
    """What a body that is no JSON says: the title of an HTML page, else its first 200 characters."""
    if text.lstrip()[:1] == b"<":
        title = _TITLE.search(text[:4000])
        return clean(title[1].decode("utf-8", "replace")) if title else ""
    return clean(text[:2000].decode("utf-8", "replace"))[:200]


def classify(status: int, headers: Mapping[str, str], body: Any, text: bytes = b"", vendor: str = "") -> UpstreamError:
    """An error answer whose JSON is already read (None: it was none; `text` is what it was)."""
    if status < 300 and type(body) is dict and body.get("choices") and not failed(body):
        return Broken("the provider answered without streaming", upstream_status=status)
    facts = _facts(body)
    kind = _class(status, facts, vendor)
    told = clean(facts.message) or _page(text)
    plain = _OWN_WORDS.get(kind)
    message = plain or told or f"the provider answered {status}"
    native = None
    if kind is Refused and facts.code and facts.code != str(status) and facts.type != "base_resp":
        native = facts.code[:80]
    error = kind(
        message,
        upstream_status=status,
        param=clean(facts.param)[:120] if facts.param and issubclass(kind, Refused) else None,
        retry_after=retry_after(headers, facts.message) if not issubclass(kind, Refused) else None,
        native_code=native,
    )
    if plain is not None and told:
        error.add_note(told)  # for the operator's log; the caller never sees it
    return error


def read_error(status: int, headers: Mapping[str, str], body: bytes, vendor: str = "") -> UpstreamError:
    parsed = parse(body)
    return classify(status, headers, parsed, b"" if parsed is not None else body, vendor)


def stream_failure(body: Any, vendor: str = "") -> UpstreamError:
    """An error object that came inside a stream or with status 200."""
    error = classify(200, {}, body, b"", vendor)
    error.upstream_status = None
    return error


def no_answer(body: bytes) -> Broken:
    """A 200 that is no answer."""
    start = body.lstrip()[:1]
    what = "an HTML page" if start == b"<" else "an empty body" if not start else "something that is no complete answer"
    return Broken(f"the provider sent {what}")


def error_object(error: SwitchyardError, request_id: str) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.native_code or error.code,
            "request_id": request_id,
        }
    }
