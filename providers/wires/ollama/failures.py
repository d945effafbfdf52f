"""Errors: `{"error": "text"}`, nothing more. A provider's are classified by status, ours flattened to a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from providers.errors import (
    Broken,
    Busy,
    ContextTooLong,
    ModelNotFound,
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
from providers.framing import line_safe
from providers.scrub import clean
from providers.surrogates import loads

_BY_STATUS: Final[Mapping[int, type[UpstreamError]]] = {
    400: Refused,
    401: ProviderAuth,
    402: ProviderQuota,
    403: ProviderAuth,
    404: ProviderModelNotFound,
    408: TimedOut,
    413: Refused,
    422: Refused,
    429: RateLimited,
    503: Busy,
    504: TimedOut,
}

_BY_TEXT: Final[tuple[tuple[int, str, type[UpstreamError]], ...]] = (
    (400, "exceeds the context length", ContextTooLong),
    (400, "exceed_context_size", ContextTooLong),
    (500, "exceeds the context length", ContextTooLong),
    (500, "missing data required for image input", Refused),
    (500, "image input is not supported", Refused),
    (500, "does not support", Refused),
    (500, 'option "', Refused),
    (500, "invalid format: ", Refused),
)
"""Ollama has no machine-readable code and says 500 to some of the caller's mistakes: here the text has to decide."""

_OURS: Final[Mapping[type[UpstreamError], str]] = {
    ProviderAuth: "the provider refuses the router's credential",
    ProviderQuota: "the router's account at the provider has no quota left",
}
"""The caller's own key is fine: "unauthorized" would send them looking for a mistake of theirs."""


def error_text(body: object) -> str:
    """The sentence in an error body, whatever stands under `error`."""
    found = body.get("error") if isinstance(body, dict) else None
    if isinstance(found, dict):  # servers that only resemble Ollama nest it as OpenAI does
        found = found.get("message") or orjson.dumps(found).decode()
    return found if isinstance(found, str) else ""


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    try:
        text = error_text(loads(body))
    except orjson.JSONDecodeError:
        text = body[:4096].decode("utf-8", "replace")
    message = clean(text) or f"the provider answered with status {status}"
    if status < 400:
        return Broken(message, upstream_status=status)
    kind = _BY_STATUS.get(status) or (Unavailable if status >= 500 else Refused)
    for known, fragment, better in _BY_TEXT:
        if status == known and fragment in message:
            kind = better
            break
    return kind(_OURS.get(kind, message), upstream_status=status, retry_after=_seconds(headers.get("retry-after")))


def stream_error(found: object) -> UpstreamError:
    """What an error line says: the status is lost by then, so it counts as the provider's own failure."""
    return Unavailable(
        clean(error_text({"error": found})) or "the provider broke off with an error", upstream_status=200
    )


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return None  # an HTTP date: rare, and there is no clock here
    return seconds if 0 <= seconds < 1e9 else None


def sentence(error: SwitchyardError) -> str:
    """An error in Ollama's words."""
    if isinstance(error, ModelNotFound) and error.message.startswith(f"model '{error.model}' not found"):
        near = f", did you mean {', '.join(repr(name) for name in error.near)}?" if error.near else ""
        return f"model '{error.model}' not found{near}"
    return error.message


def write_error(error: SwitchyardError) -> bytes:
    return line_safe(dumps({"error": sentence(error)}))


def dumps(value: object) -> bytes:
    """orjson, but a lone surrogate in a text does not raise: it becomes U+FFFD."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_mended(value))


def _mended(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_mended(key): _mended(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mended(item) for item in value]
    return value
