"""Media by value: which type some base64 holds, and data URIs in both directions."""

from __future__ import annotations

import binascii
import re

_HEAD = 64
"""Characters of base64 looked at: 48 bytes, enough for every signature below."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (4, b"ftypheic", "image/heic"),
    (4, b"ftypheix", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (4, b"ftypavif", "image/avif"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"OggS", "audio/ogg"),
    (0, b"fLaC", "audio/flac"),
)
"""Offset, bytes and type. Sources: the formats' own specifications."""


def head(data: str) -> bytes:
    """The first bytes of some base64, b"" when it is not base64 at all."""
    text = data[:_HEAD].replace("\n", "").replace("\r", "")
    text = text[: len(text) // 4 * 4]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return b""


def sniff(data: str) -> str | None:
    """The media type that the first bytes of some base64 show; None when they show none that we know."""
    first = head(data)
    for offset, signature, media_type in _SIGNATURES:
        if first.startswith(signature, offset):
            return media_type
    return None


def data_uri(data: str, media_type: str | None = None) -> str:
    """`data:image/png;base64,...`. An unknown type is called image/jpeg, the form that vision endpoints guess best
    with."""
    return f"data:{media_type or sniff(data) or 'image/jpeg'};base64,{data}"


_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]*+={0,2}[\r\n]*")


def is_base64(data: str) -> bool:
    """Whether it looks like base64 to its end: alphabet, padding and length. Nothing is decoded."""
    return _BASE64.fullmatch(data) is not None and (len(data) - data.count("\n") - data.count("\r")) % 4 == 0


def split_data_uri(uri: str) -> tuple[str, str] | None:
    """Media type and base64 of a data URI; None when it is no base64 data URI or is empty. The type is '' when left
    out."""
    if uri[:5].lower() != "data:":
        return None
    comma = uri.find(",", 5, 256)
    if comma < 0:
        return None
    media_type, *parameters = uri[5:comma].split(";")
    if not parameters or parameters[-1].strip().lower() != "base64":
        return None
    data = uri[comma + 1 :]
    if not data or not data.isascii() or (len(data) >= 4 and not head(data)):
        return None
    return media_type.strip().lower(), data
