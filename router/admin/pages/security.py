"""What keeps the pages apart from other sites: the headers of every answer, the cookie, and who may post a form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from router.http import Headers, header

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_ALWAYS: Final = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # Not `no-referrer`: browsers then say `Origin: null` of our own forms.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
)
_PRIVATE: Final = (b"cache-control", b"no-store")
_ONLY_HTTPS: Final = (b"strict-transport-security", b"max-age=31536000")

SESSION: Final = "switchyard_session"
PREFERENCES: Final = "switchyard_preferences"
PATH: Final = "/admin"
MOST_COOKIES: Final = 4
"""Sessions that one browser may show at once."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
"""32 random bytes in base64url."""

_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}

Pairs = list[tuple[bytes, bytes]]


def page_headers(*, https: bool, private: bool = True) -> Pairs:
    """Of every answer of the pages; `private` ones are stored nowhere."""
    found = [*_ALWAYS]
    if private:
        found.append(_PRIVATE)
    if https:
        found.append(_ONLY_HTTPS)
    return found


def cookies(headers: Headers, name: str) -> Sequence[str]:
    """The values of the cookies of that name."""
    pairs = (
        pair.strip().partition("=")
        for key, value in headers
        if key == b"cookie"
        for pair in value.decode("latin-1").split(";")
    )
    return [value for found, _, value in pairs if found == name]


def session_name(store: str, *, https: bool) -> str:
    """Of the cookie. Routers of other stores may be on other ports of this host, where cookies are the same: `store` is
    a text that tells theirs apart. With a prefix that browsers take from secure pages only. (`__Host-` would not allow
    a path.)"""
    return f"{'__Secure-' if https else ''}{SESSION}_{store[:8]}"


def sessions_of(headers: Headers, name: str) -> tuple[str, ...]:
    """Secrets of sessions in cookies of this name: those that have the shape of one. There may be several: other ports
    of the same host can set cookies of this name for paths of their own."""
    found = (value for value in cookies(headers, name) if _TOKEN.fullmatch(value))
    return tuple(islice(dict.fromkeys(found), MOST_COOKIES))


def session_cookie(name: str, secret: str, seconds: int, *, https: bool) -> tuple[bytes, bytes]:
    """`seconds` 0 takes it away."""
    return _cookie([f"{name}={secret}", f"Max-Age={seconds}"], "Strict", https=https)


def preferences_cookie(text: str, *, https: bool) -> tuple[bytes, bytes]:
    return _cookie([f"{PREFERENCES}={text}", "Max-Age=31536000"], "Lax", https=https)


def _cookie(parts: Iterable[str], same_site: str, *, https: bool) -> tuple[bytes, bytes]:
    secure = ["Secure"] if https else []
    return b"set-cookie", "; ".join([*parts, f"Path={PATH}", "HttpOnly", f"SameSite={same_site}", *secure]).encode()


def ours(headers: Headers) -> bool:
    """Whether a form comes from one of our own pages. Browsers say so in Sec-Fetch-Site (where the page is secure) or
    in Origin; who says neither is no browser of today."""
    site = header(headers, b"sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = header(headers, b"origin")
    host = header(headers, b"host")
    if not origin or not host:
        return False
    scheme, mark, place = origin.partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    # Some proxies write the port where browsers leave it out.
    return bool(mark) and port is not None and place.lower().removesuffix(port) == host.lower().removesuffix(port)


def takes_gzip(headers: Headers) -> bool:
    """Whether a browser takes answers packed by gzip (`gzip;q=0` says no)."""
    told = header(headers, b"accept-encoding") or ""
    return any(one.replace(" ", "").lower() in ("gzip", "gzip;q=1", "gzip;q=1.0") for one in told.split(","))
