"""One program imports this name from SQLAlchemy and never uses it."""

from typing import Any


def false() -> Any:
    raise AssertionError("no program calls this")
