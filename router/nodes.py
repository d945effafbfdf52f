"""Which servers make up the store, from `redis.url`: one server, a primary that Sentinels watch, or a Cluster.

```
redis://[user:password@]host:port/db        rediss:// over TLS        unix:///path
redis+sentinel://[user:password@]host:port,host:port/service[/db]     rediss+sentinel://
redis+cluster://[user:password@]host:port,host:port                   rediss+cluster://
```

Docs: https://redis.io/docs/latest/develop/reference/sentinel-clients/
and https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

from router.config_hosts import store_places
from router.pipe import Login, Place, Refused, connect, pack

__all__ = ["NotPrimary", "Part", "Servers", "parts", "primary", "slot_of", "slot_of_key"]

Kind = Literal["single", "sentinel", "cluster"]

SLOTS: Final = 16384
ASK_LIMIT = 0.25
"""Seconds that one Sentinel, or one node of a Cluster, has to tell where the primary is."""


class NotPrimary(RedisError):
    """Nobody knows a primary right now. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class Part:
    """A range of slots (both ends included) and the primary that serves it."""

    first: int
    last: int
    primary: Place


@dataclass(frozen=True, slots=True)
class Servers:
    """`redis.url`, read."""

    kind: Kind
    name: str
    """For messages: without user, password and query."""
    seeds: tuple[Place, ...]
    service: str = ""
    login: Login = field(default_factory=Login, repr=False)
    sentinel_login: Login = field(default_factory=Login, repr=False)
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What redis-py's connections take, without host and port."""


def read(url: str) -> Servers:
    """Raises `ValueError`, whose text may quote the password: do not show it."""
    parsed = urlsplit(url)
    scheme, _, kind = parsed.scheme.partition("+")
    if not kind:
        arguments: dict[str, Any] = dict(parse_url(url))
        return _single(parsed.scheme, arguments)
    places, service, db = store_places(url)
    userinfo, at, _ = parsed.netloc.rpartition("@")
    query = f"?{parsed.query}" if parsed.query else ""
    arguments = dict(parse_url(f"{scheme}://{userinfo}{at}host/{db}{query}"))
    del arguments["host"]
    sentinel = {name: arguments.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    seeds = tuple(Place(host, port) for host, port in places)
    name = f"{parsed.scheme}://{','.join(map(str, seeds))}"
    tls = _tls(arguments)
    login = Login(arguments.get("username"), arguments.get("password"), db, tls)
    if kind == "cluster":
        return Servers("cluster", name, seeds, login=login, client=arguments)
    name = f"{name}/{service}/{db}"
    return Servers(
        "sentinel", name, seeds, service, login, Login(sentinel["username"], sentinel["password"], 0, tls), arguments
    )


def socket_server(path: str) -> Servers:
    """The embedded server."""
    return Servers("single", "embedded", (Place(path=path),), client=dict(parse_url("unix://")) | {"path": path})


def _single(scheme: str, arguments: dict[str, Any]) -> Servers:
    db = int(arguments.get("db") or 0)
    if "path" in arguments:
        place = Place(path=arguments["path"])
        name = f"{scheme}://{place}"
    else:
        place = Place(arguments.get("host") or "localhost", arguments.get("port") or 6379)
        name = f"{scheme}://{place}/{db}"
    login = Login(arguments.get("username"), arguments.get("password"), db, _tls(arguments))
    return Servers("single", name, (place,), login=login, client=arguments)


def _tls(arguments: Mapping[str, Any]) -> Any:
    """The context that redis-py makes of the URL's `ssl_*` options."""
    if arguments.get("connection_class") is not SSLConnection:
        return None
    told = {name: value for name, value in arguments.items() if name.startswith("ssl_")}
    try:
        return SSLConnection(**told).ssl_context.get()
    except (OSError, RedisError, TypeError) as error:
        raise ValueError("the TLS options cannot be used") from error


# --- Cluster


@lru_cache(maxsize=65536)
def slot_of(tag: str) -> int:
    """The slot of a hash tag (CRC-16/XMODEM modulo 16384)."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


def slot_of_key(key: bytes) -> int:
    """The slot of a whole key: of its tag in braces, where it has one that is not empty."""
    _, brace, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if brace and closed and tag else key, 0) % SLOTS


async def parts(place: Place, login: Login) -> list[Part]:
    """The slot map as the node at `place` sees it. Raises `OSError`, `TimeoutError` or `RedisError`."""
    async with asyncio.timeout(ASK_LIMIT * 2):
        pipe, (reply,) = await connect(place, login, pack("CLUSTER", "SLOTS"))
    pipe.abort()
    if isinstance(reply, Refused):
        raise reply
    told = []
    for first, last, (host, port, *_), *_replicas in reply:
        # A node that does not know its own name leaves it to whoever asked.
        told.append(Part(first, last, Place((host or b"").decode() or place.host, port)))
    return told


# --- Sentinel


async def primary(servers: Servers, seeds: Sequence[Place]) -> Place:
    """Where the service's primary is, from the first Sentinel that knows. Raises `NotPrimary`."""
    silent = 0
    for place in seeds:
        try:
            async with asyncio.timeout(ASK_LIMIT):
                pipe, (reply,) = await connect(
                    place, servers.sentinel_login, pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", servers.service)
                )
        except (OSError, TimeoutError, RedisError):
            silent += 1
            continue
        pipe.abort()
        if isinstance(reply, list) and len(reply) == 2:
            return Place(reply[0].decode(), int(reply[1]))
        if isinstance(reply, Refused):
            raise NotPrimary(f"the Sentinel at {place} refuses to answer ({reply.word}): {_advice(reply)}")
    if silent == len(seeds):
        raise NotPrimary("none of the Sentinels answers: check that they run and that redis.url is right")
    raise NotPrimary(
        f"the Sentinels know no service named {servers.service!r}: redis.url ends in /<service name>,"
        " as their config has it"
    )


def _advice(error: Refused) -> str:
    if error.word in ("NOAUTH", "WRONGPASS"):
        return "put its password in redis.url as ?sentinel_password="
    return "redis.url must list Sentinels, not Redis servers"
