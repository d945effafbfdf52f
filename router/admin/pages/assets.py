"""The pages' own files: read once, named by their content, so that browsers may keep them for ever."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent / "static"
BELOW: Final = "/admin/static/"
_TYPES: Final[Mapping[str, bytes]] = {
    ".css": b"text/css; charset=utf-8",
    ".ico": b"image/x-icon",
    ".js": b"text/javascript; charset=utf-8",
    ".png": b"image/png",
    ".svg": b"image/svg+xml",
    ".woff2": b"font/woff2",
}
_TEXT: Final = frozenset({".css", ".js", ".svg"})


class Asset(NamedTuple):
    """packed: the same by gzip, None where that gains nothing."""

    content_type: bytes
    data: bytes
    packed: bytes | None


class Assets:
    """All of them, in memory."""

    def __init__(self, root: Path = ROOT) -> None:
        self._by_url: dict[str, Asset] = {}
        self._urls: dict[str, str] = {}
        for path in sorted(root.rglob("*")):
            content_type = _TYPES.get(path.suffix)
            if content_type is None or not path.is_file():
                continue
            data = path.read_bytes()
            name = path.relative_to(root).as_posix()
            mark = hashlib.sha256(data).hexdigest()[:12]
            url = f"{BELOW}{name.removesuffix(path.suffix)}.{mark}{path.suffix}"
            packed = gzip.compress(data, 9, mtime=0) if path.suffix in _TEXT else None
            self._by_url[url] = Asset(content_type, data, packed)
            self._urls[name] = url

    def url(self, name: str) -> str:
        """Where a file (`app.css`, `vendor/x.js`) is. Raises KeyError."""
        return self._urls[name]

    def find(self, url: str) -> Asset | None:
        return self._by_url.get(url)
