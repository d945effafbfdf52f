"""What Ollama's server accepts in a request, as tables, with the words of its own refusals.

The server is Go's `encoding/json`: keys match in any case, null means absent, unknown keys are ignored, and a wrong
type is refused with Go's text, which clients search for. Source: api/types.go and server/routes.go of ollama/ollama
(0.32).

One deviation on purpose: an option of the wrong type is 500 at Ollama. It is the caller's mistake, so it is 400 here,
with the same text.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from math import inf
from typing import Any, Final, NoReturn, TypeAlias

from providers.call import Effort, ReasoningAsk
from providers.errors import InvalidRequest

Json: TypeAlias = Any
"""A value of foreign JSON."""

OPS: Final[Mapping[str, str]] = {
    "chat": "ChatRequest",
    "generate": "GenerateRequest",
    "embed": "EmbedRequest",
    "embeddings": "EmbeddingRequest",
}
"""Our operations and the Go struct that its error texts name."""

_GENERATION: Final = frozenset(
    {"model", "stream", "format", "options", "think", "keep_alive", "truncate", "shift", "logprobs", "top_logprobs"}
)
KEYS: Final[Mapping[str, frozenset[str]]] = {
    "chat": _GENERATION | {"messages", "tools"},
    "generate": _GENERATION | {"prompt", "suffix", "system", "template", "context", "raw", "images"},
    "embed": frozenset({"model", "input", "truncate", "dimensions", "options", "keep_alive"}),
    "embeddings": frozenset({"model", "prompt", "options", "keep_alive"}),
}
"""The keys that we read; any others are passed on to a real Ollama and mean nothing elsewhere."""

OPTIONS: Final[Mapping[str, str]] = {
    "temperature": "float32",
    "top_p": "float32",
    "top_k": "integer",
    "min_p": "float32",
    "typical_p": "float32",
    "seed": "integer",
    "num_predict": "integer",
    "stop": "array",
    "repeat_penalty": "float32",
    "repeat_last_n": "integer",
    "presence_penalty": "float32",
    "frequency_penalty": "float32",
    "num_keep": "integer",
    "num_ctx": "integer",
    "num_batch": "integer",
    "num_gpu": "integer",
    "main_gpu": "integer",
    "use_mmap": "boolean",
    "num_thread": "integer",
    "draft_num_predict": "integer",
}
"""Every option that means something. Anything else (`max_tokens`, `mirostat`, ...) is ignored, as Ollama does."""

SAMPLING: Final = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "num_predict", "stop"}
    | {"repeat_penalty", "presence_penalty", "frequency_penalty"}
)
"""Options that have a place in `Sampling`; the others stay in `Call.extras["options"]`."""


def go_type(value: object) -> str:
    """What Go's decoder calls a JSON value."""
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def mistyped(op: str, path: str, value: object, wanted: str) -> NoReturn:
    """Refuse with the text of Go's decoder. `path` is dotted, without indexes, as Go writes it."""
    got = go_type(value)
    if got == "number" and wanted.startswith("int"):
        got = f"number {value}"
    raise InvalidRequest(
        f"json: cannot unmarshal {got} into Go struct field {OPS[op]}.{path} of type {wanted}", param=path
    )


def known_keys(op: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body with its keys as the server spells them; the same object when they are so already."""
    keys = KEYS[op]
    if keys.issuperset(body):
        return body
    return {(low if key not in keys and (low := key.lower()) in keys else key): value for key, value in body.items()}


def string(op: str, body: Mapping[str, Any], key: str) -> str:
    """A string field; absent and null are the empty string."""
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        mistyped(op, key, value, "string")
    return value


def boolean(op: str, body: Mapping[str, Any], key: str) -> bool | None:
    value = body.get(key)
    if value is None or value is True or value is False:
        return value
    return mistyped(op, key, value, "bool")


def integer(op: str, body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return mistyped(op, key, value, "int")


def options(op: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The options that mean something, checked. Integers may be written as floats; they are cut, as Ollama does."""
    given = body.get("options")
    if given is None:
        return {}
    if not isinstance(given, dict):
        mistyped(op, "options", given, "map[string]interface {}")
    found: dict[str, Any] = {}
    for key, value in given.items():
        wanted = OPTIONS.get(key)
        if wanted is None or value is None:
            continue
        found[key] = _option(key, wanted, value)
    return found


def _option(key: str, wanted: str, value: Json) -> Json:
    match wanted:
        case "boolean":
            fits = isinstance(value, bool)
        case "array":
            fits = isinstance(value, list)
            if fits and not all(isinstance(item, str) for item in value):
                raise InvalidRequest(f'option "{key}" must be of an array of strings', param=f"options.{key}")
        case _:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits:
        raise InvalidRequest(f'option "{key}" must be of type {wanted}', param=f"options.{key}")
    return int(value) if wanted == "integer" else value


_EFFORTS: Final[Mapping[str, Effort]] = {"low": "low", "medium": "medium", "high": "high", "max": "max"}
_THINK_WORDS = '"high", "medium", "low", "max", true, or false'


def think(body: Mapping[str, Any]) -> ReasoningAsk | None:
    """None when the client did not say."""
    value = body.get("think")
    if value is None:
        return None
    if isinstance(value, bool):
        return ReasoningAsk(enabled=value)
    if isinstance(value, str):
        if value not in _EFFORTS:
            raise InvalidRequest(f'invalid think value: "{value[:80]}" (must be {_THINK_WORDS})', param="think")
        return ReasoningAsk(enabled=True, effort=_EFFORTS[value])
    raise InvalidRequest(f"think must be a boolean or string ({_THINK_WORDS})", param="think")


# --- durations ------------------------------------------------------------------------------------------------------

_UNITS: Final[Mapping[str, float]] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PIECE = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)", re.ASCII)


def duration(text: str) -> float:
    """Go's `time.ParseDuration`, in seconds, with Go's refusals: `5m`, `1h30m`, `-1s`, `0`."""
    quoted = f'"{text[:80]}"'
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest):
        piece = _DURATION_PIECE.match(rest, at)
        if piece is None:
            break
        number, unit = piece.groups()
        if not unit:
            raise InvalidRequest(f"time: missing unit in duration {quoted}", param="keep_alive")
        if unit not in _UNITS:
            raise InvalidRequest(f'time: unknown unit "{unit[:20]}" in duration {quoted}', param="keep_alive")
        total += float(number) * _UNITS[unit]
        at = piece.end()
    if not rest or at < len(rest):
        raise InvalidRequest(f"time: invalid duration {quoted}", param="keep_alive")
    return -total if text.startswith("-") else total


def keep_alive(body: Mapping[str, Any]) -> float | None:
    """Seconds to keep the model loaded: `inf` for any negative value, None when the client did not say."""
    value = body.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, str):
        seconds = duration(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        names = {bool: "bool", list: "[]interface {}"}
        raise InvalidRequest(
            f"Unsupported type: '{names.get(type(value), 'map[string]interface {}')}'", param="keep_alive"
        )
    return inf if seconds < 0 else seconds


# --- images ---------------------------------------------------------------------------------------------------------

_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")


def base64_image(op: str, path: str, value: object) -> str:
    """Bare base64 in the standard alphabet; line ends are tolerated and taken out, a `data:` prefix is refused."""
    if not isinstance(value, str):
        mistyped(op, path, value, "[]uint8")
    for text in (value, value.replace("\r", "").replace("\n", "")):
        try:
            binascii.a2b_base64(text, strict_mode=True)
        except (binascii.Error, ValueError):
            continue
        return text
    wrong = _NOT_BASE64.search(text)
    offset = wrong.start() if wrong else len(text) // 4 * 4
    raise InvalidRequest(f"illegal base64 data at input byte {offset}", param=path)
