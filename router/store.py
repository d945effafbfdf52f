"""The store: a Redis-protocol server, embedded or remote, behind one code path.

`open_store("embedded", data_dir)` starts (or joins) the server of `router.embedded`; any other URL is read by
`router.nodes`: one server, a primary that Sentinels watch, or a Cluster. An unreachable remote store is no reason to
exit: the router lives, `problem` says why it is not ready, and a watcher keeps looking.

The client's own retry is off (a repeated script counts twice) and its timeouts are short. `Store` never shows a
password: not in `repr`, not in `name`, not in an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisClusterException, RedisError

from router.embedded import Embedded, InUse, Role, StoreError, ping
from router.nodes import NotPrimary, Servers, primary, read, socket_server, view
from router.pipe import Place, Refused, connect, pack
from router.store_client import CONNECT_LIMIT, Turns, care, explain, open_client, where

__all__ = ["InUse", "Store", "StoreError", "explain", "open_store", "where"]

log = logging.getLogger("switchyard.store")

OLDEST: Final = (7, 0)
"""Functions, multi-part append-only files and `maxmemory-policy` semantics that the ledger relies on."""
ANSWER_LIMIT = 0.25
"""Seconds that the store has for one answer to the watcher."""
JOIN_LIMIT = 10.0
"""Seconds that a command waits for another command, or for a serve that is just starting."""
SILENCE_LIMIT = 1.5
"""Seconds for which a running router's store may say nothing to a command that joins it."""
WATCH_PACE = 1.0
"""Seconds between two looks at a healthy store; half of that, with jitter, at an unhealthy one."""

UNASKED: Final = "the store has not been asked yet"


class Store:
    """The open store. `redis`, `run`, `gather` and `everywhere` are for administrative commands; the hot path has
    connections of its own (`router.link`).
    """

    def __init__(self, servers: Servers, embedded: Embedded | None, owned: bool) -> None:
        self.servers = servers
        self.name = servers.name
        """Where the store is, without credentials: for status pages and messages."""
        self.redis: Redis = open_client(servers)
        """For a Cluster this is redis-py's `RedisCluster`: commands of one slot only, no transactions."""
        self.problem: str | None = UNASKED
        """Why the router is not ready, None when it is."""
        self.warnings: tuple[str, ...] = ()
        """What an operator should change although it works."""
        self.version = ""
        self._embedded = embedded
        self._owned = owned
        self._witnesses: list[Callable[[], str | None]] = []
        self._known: tuple[Place, ...] = ()
        """A Cluster's nodes: whom to ask first."""
        self._gates: list[Callable[[], Awaitable[str | None]]] = []
        self._examined = False
        self._turns = Turns()
        self._question: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Store({self.name!r}, problem={self.problem!r})"

    @property
    def embedded(self) -> bool:
        return self._embedded is not None

    @property
    def server_pid(self) -> int | None:
        """The embedded server's process, when this process started it."""
        return self._embedded.pid if self._embedded and self._owned else None

    # --- administrative commands, the same for all kinds of store

    async def run(self, *command: bytes | str | int) -> Any:
        """One command; all its keys are in one slot. Raises the client's `RedisError` or `OSError`."""
        execute = cast("Callable[..., Awaitable[Any]]", self.redis.execute_command)
        async with self._turns.one():
            return await execute(*command)

    async def gather(self, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
        """Many commands in one round trip (one per node of a Cluster), in any slots; the answers in their order.

        Not a transaction. Raises the client's `RedisError` or `OSError` for the first that failed.
        """
        if not commands:
            return []
        pipeline = self.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        async with self._turns.one():
            return list(await pipeline.execute())

    async def everywhere(self, *command: bytes | str | int) -> list[Any]:
        """One command at every primary: each one's answer (as it came) or `Refused`. Raises `RedisError`, `OSError`."""
        login = self.servers.login

        async def ask(place: Place) -> Any:
            async with asyncio.timeout(CONNECT_LIMIT):
                pipe, (reply,) = await connect(place, login, pack(*command))
            pipe.abort()
            return reply

        return list(await asyncio.gather(*(ask(place) for place in await self._primaries())))

    async def _primaries(self) -> tuple[Place, ...]:
        seeds = self.servers.seeds
        if self.servers.kind == "single":
            return seeds
        if self.servers.kind == "sentinel":
            return (await primary(self.servers, list(seeds)),)
        met: Exception | None = None
        for place in self._known or seeds:
            try:
                told = await view(place, self.servers.login)
            except (OSError, TimeoutError, RedisError) as error:
                met = met if isinstance(met, Refused) else error
                continue
            if not told.ok:
                raise Refused("CLUSTERDOWN")
            found = tuple(dict.fromkeys(part.primary for part in told.parts))
            # Asked next time where the answer came from: an address in redis.url may have left the Cluster.
            self._known = tuple(dict.fromkeys([place, *found, *seeds]))
            return found
        raise met or OSError()

    def add_gate(self, gate: Callable[[], Awaitable[str | None]]) -> None:
        """A check that runs whenever the store comes (back) up, before it counts as ready; it returns a problem or
        None.
        """
        self._gates.append(gate)
        self._examined = False

    def add_witness(self, look: Callable[[], str | None]) -> None:
        """Who uses the store by connections of his own tells whether they work: `look` returns a problem or None."""
        self._witnesses.append(look)

    def told(self, problem: str) -> None:
        """A witness met a problem just now."""
        if not self._closed:
            self._lost(problem)

    async def ready(self) -> str | None:
        """Ask the store now: None when it can be used, else what is wrong. Bounded; never raises. Who asks while a
        question is under way waits for its answer."""
        for _ in range(2):
            if self._question is None or self._question.done():
                self._question = asyncio.create_task(self._ask(), name="store question")
            question = self._question
            await asyncio.wait([question])  # who leaves does not end it
            if question.cancelled():
                break  # by `close`
            question.result()
            if self._examined or self.problem is not None:
                break  # else a gate came meanwhile
        return self.problem

    async def _ask(self) -> None:
        care()
        gates = len(self._gates)
        try:
            async with asyncio.timeout(ANSWER_LIMIT if self._examined else CONNECT_LIMIT):
                problem = None
                if self._examined:
                    await self._look()
                else:
                    problem = await self._examine()
                self._examined = problem is None and gates == len(self._gates)
            problem = problem or next((told for look in self._witnesses if (told := look())), None)
        except TimeoutError:
            problem, self._examined = f"{where(self.name)} does not answer", False
        except NotPrimary as error:
            problem, self._examined = str(error), False
        except (RedisError, OSError) as error:
            problem, self._examined = self._explain(error), False
        self._say(problem)

    async def asked(self) -> str | None:
        """`ready`, within ANSWER_LIMIT also while the store is away: the watcher, who asks it at length, knows then."""
        if self._watcher is not None and not self._examined and self.problem is not None:
            return self.problem
        return await self.ready()

    def watch(self) -> None:
        """Keep `problem` current and our embedded server alive until `close`. Serving does this by itself."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name="store watcher")

    async def close(self) -> None:
        """Close connections and, when it is ours, stop the server after its last fsync. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._question is not None and not self._question.done():
            self._question.cancel()
            await asyncio.wait([self._question])
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self.redis.aclose()
            if self.servers.kind != "cluster":  # a Cluster has a pool per node, and has closed them
                await self.redis.connection_pool.disconnect()
        if self.servers.kind == "sentinel":
            for watching in cast("Any", self.redis.connection_pool).sentinel_manager.sentinels:
                with contextlib.suppress(RedisError, OSError, TimeoutError):
                    await watching.aclose()
        if self._embedded is not None and self._owned:
            await self._embedded.stop()

    # --- looking after it

    async def _look(self) -> None:
        """Whether it answers. Raises what `ready` tells."""
        if self.servers.kind == "cluster":
            await self._primaries()
        else:
            await cast("Awaitable[object]", self.redis.ping())

    def _explain(self, error: Exception) -> str:
        if self.servers.kind == "cluster" and isinstance(error, Refused) and error.word == "ERR":
            place = self.servers.seeds[0]
            return f"{place} is no Cluster: write redis.url as {self._scheme}://{place}/0"
        return explain(self.name, error)

    @property
    def _scheme(self) -> str:
        return "rediss" if self.servers.login.tls else "redis"

    def _say(self, problem: str | None) -> None:
        """Set `problem`, with one line in the log when it comes and one when it goes."""
        if problem is not None and self.problem is None:
            log.warning("%s", problem)
        elif problem is None and self.problem not in (None, UNASKED):
            log.info("%s answers", where(self.name))
        self.problem = problem

    def _lost(self, problem: str) -> None:
        self._say(problem)
        self._examined = False

    async def _watch(self) -> None:
        looked = -WATCH_PACE
        wait = 0.0
        me = asyncio.current_task()
        assert me is not None
        # Asked for too: on Python 3.11 the client's wait_for may swallow the cancellation.
        while not self._closed and not me.cancelling():
            if self._embedded is not None and self._owned and self._embedded.exited():
                self._lost("the embedded store ended and is being started again")
                log.error("the embedded store ended unexpectedly; starting it again")
                try:
                    self._embedded.launch()
                    await self._embedded.until_ready()
                    looked = -WATCH_PACE
                except StoreError as error:
                    self._lost(str(error))
                    await asyncio.sleep(1.0)
            if time.monotonic() - looked >= (wait if self.problem is not None else WATCH_PACE):
                await self.ready()
                looked = time.monotonic()
                wait = WATCH_PACE * random.uniform(0.25, 0.5)  # noqa: S311 - jitter
            await asyncio.sleep(0.1)

    async def _examine(self) -> str | None:
        """First contact: the kind of server, version and settings, then the gates."""
        if self.servers.kind == "cluster":
            # The client learns who is a primary now. It is not closed for that: others have commands under way.
            nodes = cast("Any", self.redis).nodes_manager
            with contextlib.suppress(RedisClusterException):  # what is wrong is told below
                if nodes.slots_cache:
                    await nodes.initialize()
        warnings: list[str] = []
        for text in await self.everywhere("INFO", "everything"):
            if isinstance(text, Refused):
                raise text
            facts = _facts(text)
            if problem := self._unfit(facts):
                return problem
            warnings += [warning for warning in self._settings(facts) if warning not in warnings]
        if tuple(warnings) != self.warnings:
            self.warnings = tuple(warnings)
            for warning in warnings:
                log.warning("%s", warning)
        for gate in self._gates:
            if problem := await gate():
                return problem
        return None

    def _unfit(self, facts: Mapping[str, str]) -> str | None:
        mode = facts.get("server_mode") or facts.get("redis_mode")
        place = self.servers.seeds[0]
        scheme = self._scheme
        if self.servers.kind == "single" and mode == "cluster":
            return f"{where(self.name)} is a node of a Cluster: write redis.url as {scheme}+cluster://{place}"
        if self.servers.kind == "single" and mode == "sentinel":
            return (
                f"{where(self.name)} is a Sentinel: write redis.url as {scheme}+sentinel://{place}/<the service's name>"
            )
        self.version = version = facts.get("valkey_version") or facts.get("redis_version") or "0.0"
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
            return f"{where(self.name)} is version {version}: Redis or Valkey 7.0 or newer is needed"
        return None

    def _settings(self, facts: Mapping[str, str]) -> list[str]:
        warnings = []
        policy = facts.get("maxmemory_policy", "unknown")
        if policy != "noeviction":
            warnings.append(
                f"{where(self.name)} evicts data when memory is short (maxmemory-policy {policy}): keys and"
                " limits would be lost; run CONFIG SET maxmemory-policy noeviction and put it in the server's config"
            )
        # While it reads the file it says that it keeps none.
        if facts.get("aof_enabled", "0") == "0" and facts.get("loading", "0") == "0":
            warnings.append(
                f"{where(self.name)} keeps no append-only file: keys and spending since its last snapshot"
                " are lost when it restarts; run CONFIG SET appendonly yes and put it in the server's config"
            )
        return warnings


def _facts(text: bytes) -> dict[str, str]:  # INFO's lines
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}


async def open_store(
    url: str, data_dir: Path, *, role: Role = "serve", environ: Mapping[str, str] | None = None
) -> Store:
    """Open the store and ask it once.

    `embedded`: with role "serve" this process owns the server (`InUse` when another one does); with role "command" it
    joins a running
    one, or starts one for as long as it is open. Remote: never fails for an unreachable server, see `Store.problem`.
    Raises `StoreError`.
    """
    if url == "embedded":
        store = await _open_embedded(data_dir, role, os.environ if environ is None else environ)
    else:
        store = Store(_remote(url), None, owned=False)
        await store.ready()
    if role == "serve":
        store.watch()
    return store


async def _open_embedded(data_dir: Path, role: Role, environ: Mapping[str, str]) -> Store:
    server = Embedded(data_dir, environ)
    server.prepare()
    heard = time.monotonic()
    limit = heard + JOIN_LIMIT
    while not server.acquire(role):
        holder = server.holder()
        if holder is not None and holder.role == "serve":
            if role == "serve":
                raise server.in_use(holder)
            running = server.running()
            answer = "away" if running is None else await ping(running.socket)
            if running is not None and answer == "ready":
                server.socket = running.socket
                return await _embedded_store(server, owned=False)
            if running is None or answer != "silent":
                heard = time.monotonic()
            elif time.monotonic() > heard + SILENCE_LIMIT:
                raise server.silent(holder, running)
        if time.monotonic() > limit:
            if holder is not None and holder.role == "serve":
                raise server.not_joined(holder)
            raise server.in_use(holder)
        await asyncio.sleep(0.02)
    try:
        await server.clear()
        server.launch()
        await server.until_ready()
        return await _embedded_store(server, owned=True)
    except BaseException:
        await server.stop()
        raise


async def _embedded_store(server: Embedded, *, owned: bool) -> Store:
    store = Store(socket_server(server.socket), server, owned)
    if problem := await store.ready():
        await store.redis.aclose()
        raise StoreError(problem)
    return store


def _remote(url: str) -> Servers:
    try:
        return read(url)
    except ValueError:
        # Not chained: the parser's message may quote the part with the password.
        raise StoreError(
            "redis.url is not understood: write `embedded`, redis://[user:password@]host:port/db, rediss://...,"
            " unix:///path, redis+sentinel://[user:password@]host:port,host:port/service or"
            " redis+cluster://[user:password@]host:port,host:port"
            " (special characters in a password are percent-encoded)"
        ) from None
