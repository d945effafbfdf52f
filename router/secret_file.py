"""Secrets that a setting or a variable names as `file:/run/secrets/x`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MAX_SECRET_BYTES: Final = 64 * 1024
_MARK: Final = "file:"


def named(text: str) -> Path | None:
    """The file that a text names, None when it is the secret itself."""
    return Path(text.removeprefix(_MARK)) if text.startswith(_MARK) else None


def resolve(text: str) -> str:
    """The secret itself, where the text names its file. Raises ValueError, with how that cannot be read."""
    path = named(text)
    if path is None:
        return text
    try:
        return read_secret(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it {error}"
        raise ValueError(f"cannot be read from {path}: {why}") from error


def read_secret(path: Path) -> str:
    """What the file holds, without the newline that editors leave at its end. Raises OSError, and ValueError with what
    it is: too large, or not text."""
    with path.open("rb") as file:
        data = file.read(MAX_SECRET_BYTES + 1)
    if len(data) > MAX_SECRET_BYTES:
        raise ValueError("is too large for a secret")
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("is not text") from None
