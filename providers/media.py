"""Pictures by value: which media type their first bytes say."""

from __future__ import annotations

import base64
import binascii
from typing import Final

MAGIC: Final[tuple[tuple[bytes, int, str], ...]] = (
    # bytes, where they stand, media type
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"GIF8", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"BM", 0, "image/bmp"),
    (b"II*\x00", 0, "image/tiff"),
    (b"MM\x00*", 0, "image/tiff"),
    (b"ftypheic", 4, "image/heic"),
    (b"ftypheix", 4, "image/heic"),
    (b"ftypmif1", 4, "image/heif"),
    (b"ftypavif", 4, "image/avif"),
    (b"%PDF-", 0, "application/pdf"),
)


def sniff(data: str) -> str | None:
    """The media type of base64 `data`, None when its first bytes are none that we know."""
    try:
        head = base64.b64decode(data[:24])
    except (binascii.Error, ValueError):
        return None
    for magic, at, media_type in MAGIC:
        if head[at : at + len(magic)] == magic:
            return media_type
    return None
