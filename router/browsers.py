"""Who may reach a keyless listener through a browser: what an Ollama checks of the `Host` and `Origin` headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")


def host_allowed(host: str, own_name: str) -> bool:
    """Whether a `Host` header may reach a keyless listener on loopback.

    A page of another site can make a browser send its own name here (DNS rebinding); an Ollama answers that with an
    empty 403. `own_name` is this machine's host name.
    """
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.rstrip(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost", own_name.lower()) or name.endswith(_LOCAL_SUFFIXES)
    return address.is_loopback or address.is_private or address.is_unspecified


_LOCAL_ORIGINS: Final = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1"})
_APP_SCHEMES: Final = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")


def origin_allowed(origin: str | None, extra: Iterable[str] = ()) -> bool:
    """Whether a page of this `Origin` may use a keyless listener, by an Ollama's own defaults (`OLLAMA_ORIGINS`).

    Browsers send simple POSTs to any address without asking first, so where no key is needed the origin has to be
    looked at on the request itself. Programs send none. `extra` are the origins that the config allows, `*` for all.
    """
    if not origin:
        return True
    if origin.startswith(_APP_SCHEMES) or any(allowed in ("*", origin) for allowed in extra):
        return True
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.hostname in _LOCAL_ORIGINS
    except ValueError:
        return False
