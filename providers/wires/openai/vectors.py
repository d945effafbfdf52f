"""Embedding vectors in their two forms: floats, and base64 of little-endian IEEE 754 float32 without separators."""

from __future__ import annotations

import binascii
import sys
from array import array
from collections.abc import Sequence


def to_base64(values: Sequence[float]) -> str:
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return binascii.b2a_base64(packed.tobytes(), newline=False).decode("ascii")


def to_floats(text: str) -> list[float]:
    """Raises ValueError for what is no base64 of whole float32 values."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as bad:
        raise ValueError("not base64") from bad
    if not data or len(data) % 4:
        raise ValueError("not a row of float32 values")
    packed = array("f")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
