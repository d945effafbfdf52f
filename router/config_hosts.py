"""Addresses as people write them: Ollama's OLLAMA_HOST, pasted base URLs, and whether one is our own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

OLLAMA_PORT: Final = 11434
_SCHEME_PORTS: Final = {"http": 80, "https": 443}
# What people paste from a curl example: the endpoint, where the base is meant.
_ENDPOINTS: Final = ("/chat/completions", "/completions", "/embeddings", "/models")

_MANY_SERVERS: Final = ("redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://")

_HOLDS_USER: Final = "must not hold a user or password: use api_key or headers"
_HOLDS_QUERY: Final = "must not hold a query or a fragment"


class Address(NamedTuple):
    """A host in lower case, without brackets, and a port."""

    host: str
    port: int


def ollama_url(text: str) -> str:
    """A base URL from a value in the form of OLLAMA_HOST, read as Ollama reads it (its `envconfig.Host`).

    The scheme is optional (http); the port defaults to 11434, or to the scheme's own port where a scheme was written;
    a port that is no port is replaced by that default; a path stays. An address to bind to (`0.0.0.0`, `::`) is
    where a server listens, so calls go to the loopback address beside it.
    """
    text = text.strip().strip("\"'").strip()
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest, default = "http", text, OLLAMA_PORT
    else:
        scheme = scheme.lower()
        default = _SCHEME_PORTS.get(scheme, OLLAMA_PORT)
    hostport, _, path = rest.partition("/")
    host, port_text = _split_port(hostport)
    port = int(port_text) if _is_port(port_text) else default
    host = _dialable(host)
    path = path.strip("/")
    return f"{scheme}://{host}:{port}" + (f"/{path}" if path else "")


def ollama_problem(text: str) -> str | None:
    """What is wrong with a value that `ollama_url` is to read, or None.

    Looks at the text as it was written: reading it replaces a port that is none and takes a user for a host. Without a
    scheme such a port is let pass, as Ollama does in OLLAMA_HOST.
    """
    written = text.strip().strip("\"'").strip()
    _, sep, rest = written.partition("://")
    authority = re.split(r"[/?#]", rest if sep else written, maxsplit=1)[0]
    if "@" in authority:
        return _HOLDS_USER
    if "?" in written or "#" in written:
        return _HOLDS_QUERY
    _, port = _split_port(authority)
    if sep and port and not _is_port(port):
        return "has a port that is not a number from 1 to 65535"
    return url_problem(ollama_url(text))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= 65535


def _split_port(hostport: str) -> tuple[str, str]:
    if hostport.startswith("["):
        host, _, rest = hostport[1:].partition("]")
        return host, rest.removeprefix(":")
    if hostport.count(":") == 1:
        host, _, port = hostport.partition(":")
        return host, port
    return hostport, ""  # a bare name, or a bare IPv6 address


def _dialable(host: str) -> str:
    if host in ("", "0.0.0.0"):
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower()
    if address.version == 4:
        return host
    return "[::1]" if address.is_unspecified else f"[{address.compressed}]"


def clean_url(text: str) -> str:
    """A base URL without a trailing slash and without an endpoint pasted behind it."""
    url = text.strip().rstrip("/")
    for endpoint in _ENDPOINTS:
        url = url.removesuffix(endpoint).rstrip("/")
    return url


def url_problem(url: str) -> str | None:
    """What is wrong with a base URL, or None."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in _SCHEME_PORTS or not parts.hostname:
        return "must be a URL such as https://api.example.com/v1"
    if port == 0:
        return "names port 0"
    if parts.username or parts.password:
        return _HOLDS_USER
    if parts.query or parts.fragment:
        return _HOLDS_QUERY
    if any(char.isspace() or ord(char) < 32 for char in url):
        return "must not hold spaces"
    return None


def proxy_problem(url: str) -> str | None:
    """What is wrong with the URL of a proxy, or None. No message repeats it: it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in _SCHEME_PORTS or not parts.hostname or port == 0:
        return "must be an http or https URL such as http://proxy.example.com:3128"
    return None


def redis_problem(url: str) -> str | None:
    """What is wrong with the address of the store, or None. No message repeats it: it may hold a password."""
    if url == "embedded":
        return None
    if url.startswith(_MANY_SERVERS):
        try:
            store_places(url)
        except ValueError as error:
            return str(error)
        return None
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return (
            "must be embedded, or start with redis://, rediss:// or unix://"
            " (several servers: redis+sentinel:// or redis+cluster://)"
        )
    try:
        parts = urlsplit(url)
        port = parts.port if parts.scheme != "unix" else None
    except ValueError:
        return "is not a URL (special characters in a password are percent-encoded)"
    if port == 0:
        return "names port 0"
    if parts.scheme == "unix" and not parts.path:
        return "lacks the path of the socket, as in unix:///run/redis.sock"
    return None


def store_places(url: str) -> tuple[tuple[Address, ...], str, int]:
    """Servers, service name and database of a `redis+sentinel://` or `redis+cluster://` URL (also `rediss+...`).

    Ports default to 26379 (Sentinel) and 6379. A Cluster has no service name, and only database 0. Raises `ValueError`
    with what is wrong, which repeats nothing of the URL: it may hold a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a URL (special characters in a password are percent-encoded)") from None
    sentinel = parts.scheme.endswith("+sentinel")
    places = []
    for text in parts.netloc.rpartition("@")[2].split(","):
        host, port = _split_port(text.strip())
        if not host or any(char.isspace() for char in host):
            raise ValueError("must name its servers as host:port,host:port")
        if port and (not _is_port(port) or int(port) == 0):
            raise ValueError("has a port that is not a number from 1 to 65535")
        places.append(Address(host.lower(), int(port) if port else 26379 if sentinel else 6379))
    if parts.fragment:
        raise ValueError("must not hold a fragment (special characters in a password are percent-encoded)")
    service, _, db = parts.path.strip("/").partition("/")
    if sentinel:
        if not service:
            raise ValueError("lacks the service's name, as in redis+sentinel://host:26379,host:26379/mymaster")
        if db and not (db.isascii() and db.isdigit() and len(db) < 6):
            raise ValueError("must end in /<service name> or /<service name>/<database number>")
        return tuple(places), unquote(service), int(db or 0)
    if service not in ("", "0") or db:
        raise ValueError("names a database: a Cluster has only number 0, so leave it out")
    return tuple(places), "", 0


def address_of(url: str) -> Address | None:
    """Host and port of a URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or _SCHEME_PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    return Address(parts.hostname or "", port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`. A name that is not `localhost` counts as remote."""
    if host.lower() in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def is_own(url: str, listeners: Sequence[tuple[str, int]]) -> bool:
    """Whether `url` leads back to one of our listeners, as far as the text of both can tell."""
    address = address_of(url)
    if address is None:
        return False
    for host, port in listeners:
        if port != address.port:
            continue
        if host.lower().strip("[]") == address.host:
            return True
        here = is_loopback(address.host) or _is_wildcard(address.host)
        if here and (_is_wildcard(host) or _same_loopback(host, address.host)):
            return True
    return False


def _same_loopback(host: str, other: str) -> bool:
    """127.0.0.1, ::1 and localhost name one place for us; 127.0.0.2 is another unless one of them is a name."""
    if not is_loopback(host):
        return False
    fixed = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::"}
    return host.lower() in fixed and other in fixed
