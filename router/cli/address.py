"""Where the router is and with which key, for verbs that talk to a running one; and in which language to explain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

KEY_VARIABLES: Final = ("SWITCHYARD_API_KEY", "SWITCHYARD_KEY")
DEFAULT_URL: Final = "http://127.0.0.1:8080"

UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The router's address; else SWITCHYARD_URL, else the config's listener."),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", metavar="KEY", help="An API key of the router; else SWITCHYARD_API_KEY.")
]


def router_url(option: str | None, config: Path | None, env: Mapping[str, str] = os.environ) -> str:
    """The address without `/v1` or a slash at its end."""
    url = (option or env.get("SWITCHYARD_URL") or listener_url(config)).strip().rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    return url.removesuffix("/v1")


def listener_url(config: Path | None) -> str:
    """The first listener of the config, as a client on this machine reaches it. A config that is not good does not
    stop a client: then it is the default."""
    from router.cli.common import config_path
    from router.config import ConfigErrors, load_config

    try:
        listen = load_config(config_path(config), os.environ).server.listen[0]
    except ConfigErrors:
        return DEFAULT_URL
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(listen.host, listen.host)
    return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{listen.port or 8080}"


def router_key(option: str | None, env: Mapping[str, str] = os.environ) -> str | None:
    return option or next((env[name] for name in KEY_VARIABLES if env.get(name)), None)


def speaks_chinese(env: Mapping[str, str] = os.environ) -> bool:
    """As the C library picks the language of messages: LC_ALL before LC_MESSAGES before LANG."""
    chosen = env.get("LC_ALL") or env.get("LC_MESSAGES") or env.get("LANG") or ""
    return chosen.lower().startswith("zh")
