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
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

from router.config_hosts import store_places
from router.embedded import StoreError
from router.pipe import Login, Place, Refused, connect, pack

__all__ = ["NotPrimary", "Part", "Servers", "View", "primary", "read", "slot_of", "socket_server", "target", "view"]

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
    """Raises `StoreError`, or `ValueError`, whose text may quote the password: do not show it."""
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
        why = error.strerror if isinstance(error, OSError) else None
        raise StoreError(
            f"the TLS options of redis.url cannot be used ({why or type(error).__name__}): check ssl_ca_certs,"
            " ssl_certfile and ssl_keyfile"
        ) from error


# --- Cluster


@lru_cache(maxsize=65536)
def slot_of(tag: str) -> int:
    """The slot of a hash tag (CRC-16/XMODEM modulo 16384)."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


@dataclass(frozen=True, slots=True)
class View:
    """The Cluster as one node sees it."""

    parts: tuple[Part, ...]
    ok: bool
    """Whether it takes commands (`cluster_state`)."""


async def view(place: Place, login: Login) -> View:
    """Ask the node at `place` for the slot map. Raises `OSError`, `TimeoutError` or `RedisError`."""
    async with asyncio.timeout(2 * ASK_LIMIT):
        pipe, replies = await connect(place, login, pack("CLUSTER", "SLOTS"), pack("CLUSTER", "INFO"))
    pipe.abort()
    for reply in replies:
        if isinstance(reply, Refused):
            raise reply
    told = []
    for first, last, (host, port, *_), *_replicas in replies[0]:
        # A node that does not know its own name leaves it to whoever asked.
        told.append(Part(first, last, Place((host or b"").decode() or place.host, port)))
    return View(tuple(told), b"cluster_state:ok" in replies[1])


def target(error: Refused, asked: Place) -> tuple[int, Place]:
    """Slot and place of `MOVED 3999 host:port` or `ASK ...`; an empty host means the node that was asked."""
    _, slot, place = str(error).split(" ")[:3]
    host, _, port = place.rpartition(":")
    return int(slot), Place(host if host not in ("", "?") else asked.host, int(port))


# --- Sentinel


async def primary(servers: Servers, sentinels: list[Place]) -> Place:
    """Where the service's primary is, from the first Sentinel that knows, which goes to the front of the list.

    Raises `NotPrimary`.
    """
    question = pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", servers.service)
    silent = 0
    for place in list(sentinels):
        try:
            async with asyncio.timeout(ASK_LIMIT):
                pipe, (reply,) = await connect(place, servers.sentinel_login, question)
        except Refused as error:
            reply = error
        except (OSError, TimeoutError, RedisError):
            silent += 1
            continue
        else:
            pipe.abort()
        if isinstance(reply, Refused):
            raise NotPrimary(f"the Sentinel at {place} refuses to answer ({reply.word}): {_advice(reply)}")
        if isinstance(reply, list) and len(reply) == 2:
            sentinels.remove(place)
            sentinels.insert(0, place)
            return Place(reply[0].decode(), int(reply[1]))
    if silent == len(sentinels):
        raise NotPrimary("none of the Sentinels answers: check that they run and that redis.url is right")
    raise NotPrimary(
        f"the Sentinels know no service named {servers.service!r}: redis.url ends in /<service name>,"
        " as their config has it"
    )


def _advice(error: Refused) -> str:
    if error.word in ("NOAUTH", "WRONGPASS"):
        return "put its password in redis.url as ?sentinel_password="
    return "redis.url must list Sentinels, not Redis servers"
