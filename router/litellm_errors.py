"""The litellm library's exceptions as HTTP answers in OpenAI's shape, without secrets, tracebacks and local paths.

Knows them by name and attribute, so that the library need not be imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import orjson

from providers.scrub import clean

STATUSES: Final[Mapping[str, tuple[int, str | None]]] = {
    # the library's exception: HTTP status and OpenAI's code
    "ContextWindowExceededError": (400, "context_length_exceeded"),
    "ContentPolicyViolationError": (400, "content_filter"),
    "PaymentRequiredError": (402, "insufficient_quota"),
    "AuthenticationError": (401, "invalid_api_key"),
    "PermissionDeniedError": (403, None),
    "NotFoundError": (404, "model_not_found"),
    "LiteLLMUnknownProvider": (404, "model_not_found"),
    "RateLimitError": (429, "rate_limit_exceeded"),
    "Timeout": (504, None),
    "ServiceUnavailableError": (503, None),
    "BadGatewayError": (502, None),
    "APIConnectionError": (502, None),
    "InternalServerError": (500, None),
    "UnprocessableEntityError": (422, None),
    "BadRequestError": (400, None),
}


def unwrap(error: BaseException) -> BaseException:
    """The error inside the library's `MidStreamFallbackError`."""
    inner = getattr(error, "original_exception", None)
    return inner if isinstance(inner, BaseException) else error


def is_refused_connection(error: BaseException) -> bool:
    """Whether the connection itself failed: nothing was sent."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        if isinstance(step, (ConnectionRefusedError, OSError)) and not isinstance(step, TimeoutError):
            return not isinstance(step, (ConnectionResetError, BrokenPipeError))
        seen.add(id(step))
        step = step.__cause__ or step.__context__
    return False


def answer_of(error: BaseException, secrets: list[str]) -> tuple[int, bytes, dict[str, str]]:
    """Status, OpenAI-shaped body and headers of a failure, without secrets."""
    found = next((STATUSES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in STATUSES), None)
    status, code = found or (_status(error), None)
    text = str(getattr(error, "message", None) or error)
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    message, kind = _said(text, status)
    given = getattr(error, "litellm_response_headers", None) or {}
    headers = {str(name).lower(): str(given[name]) for name in given if str(name).lower() in _RETRY_HEADERS}
    body = {"message": clean(message), "type": kind, "code": code, "status": status}
    return status, orjson.dumps({"error": {key: value for key, value in body.items() if value is not None}}), headers


_RETRY_HEADERS: Final = frozenset({"retry-after", "retry-after-ms"})


def _status(error: BaseException) -> int:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and 400 <= status <= 599 else 502


def _said(text: str, status: int) -> tuple[str, str | None]:
    """The provider's own message and type, which the library wraps: `litellm.X: YException - {json}`.

    A failure without such words is the library's own: half of the answer, a traceback, paths of this machine. Only what
    says why a request was refused (4xx) is of use to a caller.
    """
    start = text.find("{")
    if start >= 0:
        try:
            value = orjson.loads(text[start : text.rfind("}") + 1])
        except orjson.JSONDecodeError:
            value = None
        inner = value.get("error", value) if isinstance(value, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            kind = inner.get("type")
            return inner["message"], kind if isinstance(kind, str) else None
    plain = _WRAPPING.sub("", text).partition("\n")[0].partition("Traceback (most recent")[0].strip()
    if (
        plain
        and len(plain) <= 300
        and (status < 500 or _PROVIDER_SAID.match(text))
        and "Original Response" not in plain
    ):
        return plain, None
    return f"the provider failed or gave no usable answer ({status})", None


_WRAPPING: Final = re.compile(r"^(?:litellm\.\w+: )?(?:\w+(?:Exception|Error)(?: - |: ))*")
_PROVIDER_SAID: Final = re.compile(r"^(?:litellm\.\w+: )?\w+Error - ")
"""How errors inside a stream begin."""
