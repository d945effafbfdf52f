"""The store's client for administrative commands, how many of them are under way at once, and what its errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, cast

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as NoAnswer

from router.nodes import Servers

COMMAND_LIMIT = 0.5
"""Seconds for an administrative command."""
CONNECT_LIMIT = 2.0
"""Seconds for connecting, TLS and login included."""
TURNS: Final = 32
"""Commands (or pipelines) that one process has under way at once; the others wait."""
TURN_LIMIT = 1.0
"""Seconds that a command waits for its turn."""
_SPARE: Final = 8
"""Connections beyond the turns: looking after the store waits for nobody."""

_CLIENT: Final[Mapping[str, object]] = {
    "socket_timeout": COMMAND_LIMIT,
    "socket_connect_timeout": CONNECT_LIMIT,
    "retry_on_timeout": False,
    "retry_on_error": [],
    "decode_responses": False,
    "protocol": 2,
    "client_name": "switchyard",
    "driver_info": None,
    "maint_notifications_config": None,
    "health_check_interval": 0,
}
"""Set over whatever the URL's query says."""


class Crowded(RedisError):
    """A command's turn did not come: too many others want the store. The store itself may be well."""


_caring: ContextVar[bool] = ContextVar("caring for the store", default=False)


def care() -> None:
    """What this task asks from now on looks after the store, and waits for no turn."""
    _caring.set(True)


class Turns:
    """Who may ask. The clients themselves do not wait: past their bound they fail, as if the store were gone."""

    def __init__(self, most: int = TURNS) -> None:
        self._free = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Raises Crowded."""
        if _caring.get():
            yield
            return
        try:
            async with asyncio.timeout(TURN_LIMIT):
                await self._free.acquire()
        except TimeoutError:
            raise Crowded("no turn") from None
        try:
            yield
        finally:
            self._free.release()


def open_client(servers: Servers) -> Redis:
    """Connects with the first command."""
    settings = {**servers.client, **_CLIENT, "retry": Retry(NoBackoff(), 0)}
    settings["max_connections"] = TURNS + _SPARE  # of a Cluster: for each node
    if servers.kind == "single":
        return Redis(connection_pool=ConnectionPool(**settings))
    tls = settings.pop("connection_class", None) is SSLConnection
    for name in ("retry_on_timeout", "retry_on_error"):  # no retries here, and it warns of the words
        settings.pop(name)
    if servers.kind == "sentinel":
        settings["ssl"] = tls
        login = servers.sentinel_login
        ours = {name: value for name, value in settings.items() if name not in ("db", "username", "password")}
        watching = {**ours, "username": login.username, "password": login.password}
        places = [(place.host, place.port) for place in servers.seeds]
        sentinel = cast("Callable[..., Any]", Sentinel)(places, sentinel_kwargs=watching, **settings)
        return cast("Redis", sentinel.master_for(servers.service))
    settings.pop("db", None)
    settings["reinitialize_steps"] = 0  # else every fifth MOVED closes the connections that others are using
    nodes = [ClusterNode(place.host, place.port) for place in servers.seeds]
    return cast("Redis", RedisCluster(startup_nodes=nodes, ssl=tls, **settings))


_TOLD: Final[Mapping[str, str]] = {
    "LOADING": "is still loading its data",
    "READONLY": "is a read-only replica: point redis.url at the primary",
    "MISCONF": "cannot write its disk: free space there",
    "OOM": "is out of memory: raise its maxmemory",
    "MASTERDOWN": "has lost its primary",
    "NOREPLICAS": "has too few replicas for a write",
    "CLUSTERDOWN": "is a cluster that is down",
    "NOAUTH": "wants a password: put it in redis.url",
    "WRONGPASS": "refuses the user or password in redis.url",
    "NOPERM": "does not allow this user the commands we need: check its ACL",
    "BUSY": "is busy with a script",
    "MOVED": "is a node of a Cluster: write redis.url as redis+cluster://host:port",
}
"""First word of a server's error, and what it means for an operator."""

_CLASSES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (AuthenticationError, "WRONGPASS"),
    (NoPermissionError, "NOPERM"),
    (OutOfMemoryError, "OOM"),
    (ReadOnlyError, "READONLY"),
    (BusyLoadingError, "LOADING"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
)
"""The client cuts the first word off for the errors it has a class for."""


def where(name: str) -> str:
    return "the embedded store" if name == "embedded" else f"the store at {name}"


def explain(name: str, error: BaseException) -> str:
    """What is wrong with the store at `name`, without anything secret."""
    if isinstance(error, Crowded):
        return f"{where(name)} is asked too much at once"
    word = str(error).partition(" ")[0].upper()
    for kind, known in _CLASSES:
        if isinstance(error, kind):
            word = known
            break
    if told := _TOLD.get(word):
        return f"{where(name)} {told}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{where(name)} shows a certificate that is not trusted ({error.verify_message}):"
            " name its authority's file in redis.url as ?ssl_ca_certs="
        )
    if isinstance(error, ssl.SSLError):
        return f"{where(name)} does not speak TLS as it should ({error.reason}): rediss:// is for a TLS port"
    if isinstance(error, TimeoutError | NoAnswer):
        return f"{where(name)} does not answer"
    if isinstance(error, ResponseError):
        return f"{where(name)} refuses a command ({word})"
    if name == "embedded":
        return "the embedded store does not answer: it is stuck, or starts again (see store/server.log in data_dir)"
    return f"{where(name)} cannot be reached: check that it runs and that redis.url is right"
