"""JSON of providers whose tokenizer cut a character in two: a lone surrogate escape becomes U+FFFD.

orjson and msgspec refuse such a text as a whole. An answer is worth more than half an emoji, so where a parser refused,
the escapes are looked at; nothing else of the bytes changes.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

# Every escape from left to right, so that the backslash of an escaped backslash begins none.
_ESCAPES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def whole_characters(body: bytes) -> bytes:
    """The same JSON text without lone surrogates; the same object when it has none."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    mended = _ESCAPES.sub(lambda found: rb"\ufffd" if found[1] else found[0], body)
    return body if mended == body else mended


def read(body: bytes) -> tuple[Any, bytes]:
    """The value, and the bytes that say it: `body`, or what it was mended to. Raises orjson.JSONDecodeError."""
    try:
        return orjson.loads(body), body
    except orjson.JSONDecodeError:
        mended = whole_characters(body)
        if mended is body:
            raise
        return orjson.loads(mended), mended


def loads(body: bytes) -> Any:
    """orjson's, but lone surrogates become U+FFFD. Raises orjson.JSONDecodeError."""
    return read(body)[0]
