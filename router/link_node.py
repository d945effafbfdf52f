"""One server's share of `router.link`: its connection, who waits for it, and the task that mends it."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol

from redis.exceptions import RedisError

from providers.errors import StoreUnavailable
from router.functions import Library, exists, not_found
from router.nodes import NotPrimary
from router.pipe import Login, Pipe, Place, Question, Refused, connect, pack
from router.store import explain

__all__ = ["Guide", "Node", "NotSent", "Unanswered", "refuse"]

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

MOST_LOADS: Final = 4
"""Loads of the library for one question."""
RETRY_AFTER: Final = 1.0


class NotSent(StoreUnavailable):
    """The command was certainly not executed."""


class Unanswered(StoreUnavailable):
    """The command was sent; whether it was executed is not known."""


_TURNED: Final = frozenset({"LOADING", "READONLY", "MASTERDOWN", "NOAUTH"})
"""Errors of a server that is starting, was demoted, or forgot our login: look for the primary and log in again."""
_MOVING: Final = frozenset({"CLUSTERDOWN", "TRYAGAIN"})
"""Errors of a Cluster that passes by themselves."""


class Guide(Protocol):
    """What a node needs of the links it belongs to."""

    name: str
    loop: asyncio.AbstractEventLoop
    login: Login
    cluster: bool
    failed: Callable[[str], object]
    """Told how a question failed: `not_sent`, `unanswered` or `refused`."""

    @property
    def library(self) -> Library: ...

    async def primary(self) -> Place:
        """Where the Sentinels say that the primary is. Raises `NotPrimary`."""

    def again(self, question: Question, pause: float) -> None:
        """Ask once more, within the question's limit."""

    def redirect(self, question: Question, error: Refused, asked: Place) -> None:
        """MOVED or ASK from the node at `asked`."""

    def denied(self, question: Question, error: Refused) -> None:
        """The server refused a question, for good."""

    def refresh(self) -> None:
        """The slot map may be out of date."""

    def changed(self) -> None:
        """Questions are refused at once from now on."""

    def back(self) -> None:
        """A connection was made."""


class Node:
    """One server (or the Sentinels' current primary): its pipe, who waits for it, and the task that mends it."""

    def __init__(self, guide: Guide, place: Place | None) -> None:
        """`place` None: wherever the Sentinels say."""
        self._guide = guide
        self._loop = guide.loop
        self._name = f"{place} (of the Cluster)" if guide.cluster else guide.name
        self.place = place
        self.at: Place | None = None
        """Where the pipe leads: `place`, or what the Sentinels told."""
        self.pipe: Pipe | None = None
        self.problem: str | None = None
        """Why questions are refused at once; None while connected, and for a moment after a connection ended."""
        self._waiting: deque[Question] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._mender: asyncio.Task[None] | None = None
        self._ever = False
        self._doubtful = False
        self._met: str | None = None
        """What the last attempt met."""
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
        refuse(self._guide, question, why)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        kept: deque[Question] = deque()
        for question in self._waiting:
            if question.until <= now:
                refuse(self._guide, question, "it is being connected")
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
        elif word in ("MOVED", "ASK") and self.place is not None and self._guide.cluster:
            question.tries += 1
            self._guide.redirect(question, error, self.place)
            return
        elif word in _MOVING and self._guide.cluster:
            self._guide.refresh()
            self._guide.again(question, AGAIN_PAUSE)
            return
        elif not_found(error) and question.tries < MOST_LOADS and pipe.load_refused is None:
            self._load(pipe)
        else:
            if not_found(error) and pipe.load_refused is not None:
                error = pipe.load_refused
            self._guide.denied(question, error)
            if not question.future.done():
                self._guide.failed("refused")
                question.future.set_exception(error)
            return
        question.tries += 1
        self._guide.again(question, 0.0)

    def late(self, pipe: Pipe) -> None:
        pipe.owner = None
        pipe.abort()
        current = pipe is self.pipe
        if current:
            self.pipe = None
            self._down(explain(self._name, TimeoutError()))
        for question in pipe.left():
            refuse(self._guide, question, "it does not answer")
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
                refuse(self._guide, question, "the connection ended")
            else:
                self._guide.again(question, 0.0)

    def _load(self, pipe: Pipe) -> None:
        """The functions are gone (flushed, or a new server): send them ahead of the repeated question."""
        if pipe.loads:
            return
        pipe.loads += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        pipe.send(Question(future, self._guide.library.load_command, "", inf, False))

        def loaded(_: asyncio.Future[Any]) -> None:
            pipe.loads -= 1
            refused = future.exception()
            if isinstance(refused, Refused) and not exists(refused):
                pipe.load_refused = refused  # the repeated question, which comes next, is told
                self._loop.call_later(AGAIN_PAUSE, self._forgive, pipe)

        future.add_done_callback(loaded)

    @staticmethod
    def _forgive(pipe: Pipe) -> None:
        pipe.load_refused = None

    # --- mending

    def _mend(self) -> None:
        self._guide.refresh()
        if self._mender is not None or self.closed:
            return
        if self.problem is None and self._patience is None:
            limit = PATIENCE if self._ever else CONNECT_LIMIT
            self._patience = self._loop.call_later(limit, self._impatient)
        self._mender = self._loop.create_task(self._connect(), name="store link")

    def _impatient(self) -> None:
        self._patience = None
        if self.pipe is None:
            self._down(self._met or explain(self._name, TimeoutError()))

    def _down(self, problem: str) -> None:
        self.problem = problem
        waiting, self._waiting = self._waiting, deque()
        for question in waiting:
            refuse(self._guide, question, "it does not answer")
        self._guide.changed()

    async def _connect(self) -> None:
        while True:
            try:
                pipe = await self._attempt()
                break
            except (OSError, RedisError, TimeoutError, ValueError) as error:
                problem = str(error) if isinstance(error, NotPrimary) else explain(self._name, error)
                self._met = problem
                if self.problem is not None and self.problem != problem:
                    self._down(problem)
            pause = random.uniform(*PROBE_PACE) if self.problem is not None else RECONNECT_PAUSE  # noqa: S311 - jitter
            await asyncio.sleep(pause)
        self._mender = self._met = None
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
        self._guide.back()

    async def _attempt(self) -> Pipe:
        place = self.place or await self._guide.primary()
        doubtful = self._doubtful or self.place is None
        # ROLE may be forbidden by an ACL: then the command's own READONLY has the say.
        probes = [pack("PING"), pack("ROLE")] if doubtful else [pack("PING")]
        async with asyncio.timeout(CONNECT_LIMIT):
            pipe, replies = await connect(place, self._guide.login, *probes)
        try:
            if isinstance(replies[0], Refused):
                raise replies[0]
            if doubtful and isinstance(replies[1], list) and replies[1][0] != b"master":
                raise Refused("READONLY")
            if self.place is None and await self._guide.primary() != place:
                raise Refused("READONLY")  # it woke up, or was slow, after another was promoted
        except BaseException:
            pipe.abort()
            raise
        self._doubtful = False
        self.at = place
        return pipe

    def move(self) -> None:
        """The primary is elsewhere now."""
        if self.pipe is not None:
            pipe, self.pipe = self.pipe, None
            pipe.retire()
            self._mend()

    def remove(self) -> None:
        """It is no primary any more: what waits for it goes where its slot is now, what was sent gets its answer."""
        self._end()
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            pipe.retire()
        waiting, self._waiting = self._waiting, deque()
        for question in waiting:
            self._guide.again(question, 0.0)

    async def close(self) -> None:
        """End all, refuse what waits."""
        self._end()
        waiting = list(self._waiting)
        self._waiting.clear()
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            pipe.owner = None
            pipe.abort()
            waiting += pipe.left()
        for question in waiting:
            refuse(self._guide, question, "the router is stopping")
        if self._mender is not None:
            await asyncio.wait([self._mender])

    def _end(self) -> None:
        self.closed = True
        for timer in (self._sweeper, self._patience):
            if timer is not None:
                timer.cancel()
        if self._mender is not None:
            self._mender.cancel()


def refuse(guide: Guide, question: Question, why: str) -> None:
    if not question.future.done():
        guide.failed("unanswered" if question.sent else "not_sent")
        kind = Unanswered if question.sent else NotSent
        question.future.set_exception(kind(f"The key store cannot be asked right now: {why}.", retry_after=RETRY_AFTER))
