"""Where a call to a provider goes: the route as the caller says it, and the origin as connections are pooled by it."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from providers.errors import Unreachable


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call goes: scheme, host and port, how to get there, and how long connecting may take (seconds)."""

    base_url: str
    connect: float = 3.0
    proxy: str | None = None
    ca_bundle: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host, port and way: calls with the same origin share connections."""

    tls: bool
    host: str
    port: int
    prefix: str
    """Path of the base URL, without a trailing slash."""
    authority: str
    proxy: str | None
    ca_bundle: str | None
    proxy_tls: bool = False
    proxy_host: str = ""
    proxy_port: int = 0
    proxy_auth: str = ""


def origin_of(route: Route) -> Origin:
    """Raises Unreachable when the route makes no sense."""
    parts = urlsplit(route.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unreachable("the provider's base_url is not an http or https URL")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    host = parts.hostname
    named = f"[{host}]" if ":" in host else host
    authority = named if port == (443 if tls else 80) else f"{named}:{port}"
    prefix = parts.path.rstrip("/")
    if route.proxy is None:
        return Origin(tls, host, port, prefix, authority, None, route.ca_bundle)
    proxy = urlsplit(route.proxy)
    if proxy.scheme not in ("http", "https") or not proxy.hostname:
        raise Unreachable("the provider's proxy is not an http or https URL")
    auth = ""
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        auth = f"proxy-authorization: Basic {b64encode(pair.encode()).decode()}\r\n"
    return Origin(
        tls,
        host,
        port,
        prefix,
        authority,
        route.proxy,
        route.ca_bundle,
        proxy_tls=proxy.scheme == "https",
        proxy_host=proxy.hostname,
        proxy_port=proxy.port or (443 if proxy.scheme == "https" else 8080),
        proxy_auth=auth,
    )
