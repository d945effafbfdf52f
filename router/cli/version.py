"""`switchyard version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import typer


def router_version() -> str:
    """The installed version; `0+unknown` where the code runs without being installed."""
    try:
        return installed("switchyard-router")
    except PackageNotFoundError:
        return "0+unknown"


def version() -> None:
    """Print the version of the router and of Python."""
    typer.echo(f"switchyard {router_version()} (Python {platform.python_version()})")
