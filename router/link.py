"""The hot path's way to the store: pipelined connections, bounded waiting, and an instant refusal while it is down.

A question waits `limit` seconds at most. When the store hangs (an answer is late) its connection is dropped, all who
wait are told, and from then on questions fail at once while a task of the link's own tries until the store answers
again. A connection that merely ended (the server was restarted) is remade within the callers' limits.

A Cluster has one connection per primary and the slot map is asked for anew on MOVED and when a node is lost; with
Sentinel the primary is looked for at every connection, and followed while connected.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final

from redis.exceptions import RedisError

from providers.errors import StoreUnavailable
from router.functions import Library, library, not_found
from router.nodes import NotPrimary, primary
from router.pipe import Login, Pipe, Place, Question, Refused, connect, pack
from router.store import Store, explain

__all__ = ["Links", "NotSent", "Refused", "Unanswered", "pack"]

log = logging.getLogger("switchyard.store")

MOST_WAITING: Final = 4096
"""Questions that may wait for one server; beyond, they are refused at once."""
CONNECT_LIMIT = 1.5
"""Seconds for connecting, TLS and login included. A frozen server answers the same attempt when it wakes up."""
PATIENCE = 0.2
"""Seconds that a lost connection has to come back before the store counts as down."""
RECONNECT_PAUSE = 0.02
PROBE_PACE: Final = (0.1, 0.25)
"""Seconds between two attempts while it is down."""
AGAIN_PAUSE = 0.025
"""Seconds before a command is repeated that a Cluster in motion refused."""
FOLLOW_PACE = 1.0
"""Seconds between two questions to the Sentinels while all is well."""
MOST_TRIES: Final = 16
"""Redirections and loads for one question: a bound for servers that contradict each other."""

_RETRY_AFTER: Final = 1.0


class NotSent(StoreUnavailable):
    """The command was certainly not executed."""


class Unanswered(StoreUnavailable):
    """The command was sent; whether it was executed is not known."""


_TURNED: Final = frozenset({"LOADING", "READONLY", "MASTERDOWN", "NOAUTH"})
"""Errors of a server that is starting, was demoted, or forgot our login: look for the primary and log in again."""
_MOVING: Final = frozenset({"CLUSTERDOWN", "TRYAGAIN"})
"""Errors of a Cluster that passes by themselves."""


class Node:
    """One server (or the Sentinels' current primary): its pipe, who waits for it, and the task that mends it."""

    def __init__(self, links: Links, place: Place | None) -> None:
        self._links = links
        self._loop = links.loop
        self.place = place
        self.pipe: Pipe | None = None
        self.problem: str | None = None
        """Why questions are refused at once; None while connected, and for a moment after a connection ended."""
        self._waiting: deque[Question] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._mender: asyncio.Task[None] | None = None
        self._ever = False
        self._doubtful = False
        self.closed = False
        self._mend()

    # --- asking

    def ask(self, question: Question) -> None:
        pipe = self.pipe
        if pipe is not None:
            if len(pipe.pending) < MOST_WAITING:
                pipe.send(question)
                return
            why = "too many calls wait for it"
        elif self.problem is not None or self.closed:
            why = "it does not answer"
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append(question)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(RECONNECT_PAUSE, self._sweep)
            return
        else:
            why = "too many calls wait for it"
        refuse(question, why)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        kept: deque[Question] = deque()
        for question in self._waiting:
            if question.until <= now:
                refuse(question, "it is being connected")
            elif not question.future.done():
                kept.append(question)
        self._waiting = kept
        if kept:
            self._sweeper = self._loop.call_later(RECONNECT_PAUSE, self._sweep)

    # --- Owner

    def refused(self, pipe: Pipe, question: Question, error: Refused) -> None:
        word = error.word
        if word in _TURNED:
            self._doubtful = True
            if pipe is self.pipe:
                self.pipe = None
                pipe.retire()
                self._mend()
        elif word in ("MOVED", "ASK") and self._links.cluster:
            self._links.redirect(question, error)
            return
        elif word in _MOVING and self._links.cluster:
            self._links.refresh()
            self._links.again(question, AGAIN_PAUSE)
            return
        elif not_found(error) and question.tries < MOST_TRIES:
            self._load(pipe)
        else:
            if not question.future.done():
                question.future.set_exception(error)
            return
        question.tries += 1
        self._links.again(question, 0.0)

    def late(self, pipe: Pipe) -> None:
        pipe.owner = None
        pipe.abort()
        current = pipe is self.pipe
        if current:
            self.pipe = None
            self._down(explain(self._links.name, TimeoutError()))
        for question in pipe.left():
            refuse(question, "it does not answer")
        if current:
            self._mend()

    def lost(self, pipe: Pipe) -> None:
        current = pipe is self.pipe
        if current:
            self.pipe = None
            if not self.closed:
                self._mend()
        for question in pipe.left():
            if question.sent and not question.repeat:
                refuse(question, "the connection ended")
            else:
                self._links.again(question, 0.0)

    def _load(self, pipe: Pipe) -> None:
        """The functions are gone (flushed, or a new server): send them ahead of the repeated question."""
        if pipe.loads:
            return
        pipe.loads += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        pipe.send(Question(future, self._links.library.load_command, "", inf, False))

        def loaded(_: asyncio.Future[Any]) -> None:
            pipe.loads -= 1
            future.exception()  # "already exists", or something that the repeated question meets as well

        future.add_done_callback(loaded)

    # --- mending

    def _mend(self) -> None:
        self._links.lost(self)
        if self._mender is not None or self.closed:
            return
        if self.problem is None and self._patience is None:
            limit = PATIENCE if self._ever else CONNECT_LIMIT
            self._patience = self._loop.call_later(limit, self._impatient)
        self._mender = self._loop.create_task(self._connect(), name="store link")

    def _impatient(self) -> None:
        self._patience = None
        if self.pipe is None:
            self._down(explain(self._links.name, TimeoutError()))

    def _down(self, problem: str) -> None:
        self.problem = problem
        waiting, self._waiting = self._waiting, deque()
        for question in waiting:
            refuse(question, "it does not answer")
        self._links.changed()

    async def _connect(self) -> None:
        while True:
            try:
                pipe = await self._attempt()
                break
            except (OSError, RedisError, TimeoutError, ValueError) as error:
                problem = str(error) if isinstance(error, NotPrimary) else explain(self._links.name, error)
                if self.problem is not None and self.problem != problem:
                    self._down(problem)
            pause = random.uniform(*PROBE_PACE) if self.problem is not None else RECONNECT_PAUSE  # noqa: S311 - jitter
            await asyncio.sleep(pause)
        self._mender = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        pipe.owner = self
        self.pipe = pipe
        self._ever = True
        self.problem = None
        waiting, self._waiting = self._waiting, deque()
        for question in waiting:
            if not question.future.done():
                pipe.send(question)
        self._links.back()

    async def _attempt(self) -> Pipe:
        place = self.place or await self._links.primary()
        doubtful = self._doubtful or self.place is None
        # ROLE may be forbidden by an ACL: then the command's own READONLY has the say.
        probes = [pack("PING"), pack("ROLE")] if doubtful else [pack("PING")]
        async with asyncio.timeout(CONNECT_LIMIT):
            pipe, replies = await connect(place, self._links.login, *probes)
        try:
            if isinstance(replies[0], Refused):
                raise replies[0]
            if doubtful and isinstance(replies[1], list) and replies[1][0] != b"master":
                raise Refused("READONLY")
            if self.place is None and await self._links.primary() != place:
                raise Refused("READONLY")  # it woke up, or was slow, after another was promoted
        except BaseException:
            pipe.abort()
            raise
        self._doubtful = False
        self.at = place
        return pipe

    at: Place | None = None
    """Where the pipe leads."""

    def move(self) -> None:
        """The primary is elsewhere now."""
        if self.pipe is not None:
            pipe, self.pipe = self.pipe, None
            pipe.retire()
            self._mend()

    async def close(self) -> list[Question]:
        """End all; what waits is handed back."""
        self.closed = True
        for timer in (self._sweeper, self._patience):
            if timer is not None:
                timer.cancel()
        if self._mender is not None:
            self._mender.cancel()
            await asyncio.wait([self._mender])
        waiting = list(self._waiting)
        self._waiting.clear()
        if self.pipe is not None:
            pipe, self.pipe = self.pipe, None
            pipe.owner = None
            pipe.abort()
            waiting += pipe.left()
        return waiting


def refuse(question: Question, why: str) -> None:
    if not question.future.done():
        kind = Unanswered if question.sent else NotSent
        question.future.set_exception(
            kind(f"The key store cannot be asked right now: {why}.", retry_after=_RETRY_AFTER)
        )


class Links:
    """All connections of one worker. Make it inside the running loop; `close` it before the store."""

    def __init__(self, store: Store, text: Library | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = store.name
        self.cluster = store.servers.kind == "cluster"
        self.login: Login = store.servers.login
        self.on_up: list[Callable[[], None]] = []
        """Called after every connection that was made: what could not be told to the store can be told now."""
        self._text = text
        self._store = store
        self._servers = store.servers
        self._closed = False
        self._only: Node | None = None
        self._nodes: list[Node] = []
        place = self._servers.seeds[0] if self._servers.kind == "single" else None
        self._only = Node(self, place)
        self._nodes.append(self._only)

    @property
    def library(self) -> Library:
        return self._text or library()

    @property
    def up(self) -> bool:
        return bool(self._nodes) and all(node.pipe is not None for node in self._nodes)

    @property
    def problem(self) -> str | None:
        """Why questions are refused at once, None when they are not."""
        return next((node.problem for node in self._nodes if node.problem is not None), None)

    def ask(self, tag: str, command: bytes, *, limit: float = 0.2, repeat: bool = True) -> asyncio.Future[Any]:
        """Send `command` (see `pack`) to the server of the hash tag `tag`; its answer: bytes, int, list or None.

        The future fails within `limit` seconds with `NotSent`, `Unanswered`, or the server's `Refused`. It may be
        cancelled at any time; the command is then still executed if it was sent. With `repeat` the command may be
        executed more than once, when a connection ended before the answer: leave it on for idempotent ones only.
        """
        future: asyncio.Future[Any] = self.loop.create_future()
        question = Question(future, command, tag, self.loop.time() + limit, repeat)
        node = self._only
        assert node is not None
        node.ask(question)
        return future

    def again(self, question: Question, pause: float) -> None:
        """Ask once more, within the question's limit."""
        if question.future.done():
            return
        if self._closed:
            refuse(question, "the router is stopping")
        elif self.loop.time() + pause >= question.until or question.tries >= MOST_TRIES:
            refuse(question, "it is being started or moved")
        elif pause:
            self.loop.call_later(pause, self.again, question, 0.0)
        elif self._only is not None:
            self._only.ask(question)

    async def close(self) -> None:
        """Refuse who still waits, drop the connections."""
        self._closed = True
        for node in self._nodes:
            for question in await node.close():
                refuse(question, "the router is stopping")

    def lost(self, node: Node) -> None: ...

    def changed(self) -> None: ...

    def back(self) -> None:
        for callback in self.on_up:
            callback()

    async def primary(self) -> Place:
        return await primary(self._servers, self._servers.seeds)

    def redirect(self, question: Question, error: Refused) -> None: ...

    def refresh(self) -> None: ...
