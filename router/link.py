"""The hot path's way to the store: pipelined connections, bounded waiting, and an instant refusal while it is down.

A question waits `limit` seconds at most. When the store hangs (an answer is late) its connection is dropped, all who
wait are told, and from then on questions fail at once while a task of the link's own tries until the store answers
again. A connection that merely ended (the server was restarted) is remade within the callers' limits.

A Cluster has one connection per primary and the slot map is asked for anew on MOVED and when a node is lost; with
Sentinel the primary is looked for at every connection, and followed while connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from math import inf
from typing import Any, Final

from redis.exceptions import RedisError

from providers.errors import StoreUnavailable
from router.functions import Library, library
from router.link_node import AGAIN_PAUSE, CONNECT_LIMIT, PROBE_PACE, Node, NotSent, Unanswered, refuse
from router.nodes import SLOTS, NotPrimary, View, primary, slot_of, target, view
from router.pipe import Login, Place, Question, Refused, pack
from router.store import Store, explain, where

__all__ = ["Links", "NotSent", "Refused", "Unanswered", "pack"]

FOLLOW_PACE = 0.5
"""Seconds between two questions to the Sentinels while all is well."""
WRITE_PACE: Final = 0.5
"""Seconds between two attempts to write, at a store that answers and refuses all writes."""
UNWRITABLE: Final = frozenset({"OOM", "MISCONF", "NOREPLICAS", "READONLY"})
MOST_TRIES: Final = 16
"""Redirections and loads for one question: a bound for servers that contradict each other."""


class Links:
    """All connections of one worker. Make it inside the running loop; `close` it before the store."""

    def __init__(self, store: Store, text: Library | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = store.name
        self.on_up: list[Callable[[], None]] = []
        """Called after every connection that was made: what could not be told to the store can be told now."""
        self.failed: Callable[[str], object] = bool
        """Told how a question failed: `not_sent`, `unanswered` or `refused`."""
        self._text = text
        self._store = store
        self._servers = store.servers
        self.login: Login = self._servers.login
        self.cluster = self._servers.kind == "cluster"
        self._seeds = list(self._servers.seeds)
        self._closed = False
        self._only: Node | None = None
        self._nodes: dict[Place | None, Node] = {}
        self._slots: list[Node | None] = [None] * SLOTS if self.cluster else []
        self._halted: str | None = None
        """Cluster: why all questions are refused at once."""
        self._mapped = False
        self._stale = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._denied: str | None = None
        """Why the server, which answers, takes no writes: no call can be admitted."""
        self._writer: asyncio.Task[None] | None = None
        store.add_witness(lambda: self.problem or self._denied)
        if self.cluster:
            self._follower = self.loop.create_task(self._map(), name="store map")
            return
        place = self._seeds[0] if self._servers.kind == "single" else None
        self._only = self._nodes[place] = Node(self, place)
        if place is None:
            self._follower = self.loop.create_task(self._follow(), name="store primary")

    @property
    def library(self) -> Library:
        return self._text or library()

    @property
    def up(self) -> bool:
        return bool(self._nodes) and self._halted is None and all(node.pipe for node in self._nodes.values())

    @property
    def problem(self) -> str | None:
        """Why questions (some, in a Cluster) are refused at once; None when they are not."""
        return self._halted or next((node.problem for node in self._nodes.values() if node.problem), None)

    def ask(self, tag: str, command: bytes, *, limit: float = 0.2, repeat: bool = True) -> asyncio.Future[Any]:
        """Send `command` (see `pack`) to the server of the hash tag `tag`; its answer: bytes, int, list or None.

        The future fails within `limit` seconds with `NotSent`, `Unanswered`, or the server's `Refused`. It may be
        cancelled at any time; the command is then still executed if it was sent. With `repeat` the command may be
        executed more than once, when a connection ended before the answer: leave it on for idempotent ones only.
        """
        future: asyncio.Future[Any] = self.loop.create_future()
        question = Question(future, command, tag, self.loop.time() + limit, repeat)
        if self._only is not None:
            self._only.ask(question)
        else:
            self._route(question)
        return future

    def _route(self, question: Question) -> None:
        if self._closed:
            refuse(self, question, "the router is stopping")
        elif self._only is not None:
            self._only.ask(question)
        elif self._halted is not None:
            refuse(self, question, "it does not answer")
        elif (node := self._slots[slot_of(question.tag)]) is not None:
            node.ask(question)
        else:
            self.refresh()
            self.again(question, AGAIN_PAUSE)

    def again(self, question: Question, pause: float) -> None:
        """Ask once more, within the question's limit."""
        if question.future.done():
            return
        if self.loop.time() + pause >= question.until or question.tries >= MOST_TRIES:
            refuse(self, question, "it is being started or moved")
        elif pause:
            self.loop.call_later(pause, self.again, question, 0.0)
        else:
            self._route(question)

    async def close(self) -> None:
        """Refuse who still waits, drop the connections."""
        self._closed = True
        for task in (self._follower, self._writer):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        for node in self._nodes.values():
            await node.close()

    # --- what nodes tell

    def changed(self) -> None:
        """Questions are refused at once from now on."""
        if (problem := self.problem) is not None:
            self._store.told(problem)
        self.refresh()

    def back(self) -> None:
        """A connection was made."""
        for callback in self.on_up:
            callback()

    def denied(self, question: Question, error: Refused) -> None:
        """The server refused a question. Where it takes no writes from anybody, that is a problem until it does."""
        if error.word not in UNWRITABLE or self._closed:
            return
        self._denied = explain(self.name, error)
        if self._writer is None:
            self._store.told(self._denied)
            self._writer = self.loop.create_task(self._write(question.tag), name="store writes")

    async def _write(self, tag: str) -> None:
        """Try until a write is taken, where one was refused."""
        command = pack("SET", f"sy:{{{tag}}}:probe", b"", "PX", 1000)
        while True:
            await asyncio.sleep(WRITE_PACE)
            try:
                await self.ask(tag, command)
            except Refused as error:
                if error.word in UNWRITABLE:
                    continue
            except StoreUnavailable:
                continue  # `problem` tells of it
            self._denied = self._writer = None
            return

    # --- Sentinel

    async def primary(self) -> Place:
        return await primary(self._servers, self._seeds)

    async def _follow(self) -> None:
        """A failover need not end the connection to the old primary: look now and then where the new one is."""
        node = self._only
        assert node is not None
        while True:
            await asyncio.sleep(FOLLOW_PACE)
            if node.pipe is None:
                continue
            try:
                place = await self.primary()
            except NotPrimary:
                continue  # the primary itself may be well, and the next question to it tells
            if place != node.at:
                node.move()

    # --- Cluster

    def refresh(self) -> None:
        """The slot map may be out of date."""
        self._stale.set()

    def redirect(self, question: Question, error: Refused, asked: Place) -> None:
        """MOVED or ASK from the node at `asked`."""
        slot, place = target(error, asked)
        node = self._node(place)
        self.refresh()
        if question.tries >= MOST_TRIES:
            refuse(self, question, "it is being started or moved")
        elif error.word == "MOVED":
            self._slots[slot] = node
            node.ask(question)
        elif node.pipe is None:
            self.again(question, AGAIN_PAUSE)
        else:
            node.pipe.send(Question(self.loop.create_future(), pack("ASKING"), "", inf, False))
            node.pipe.send(question)

    def _node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = Node(self, place)
        return node

    async def _map(self) -> None:
        """Keep the slot map: read it at the start, when a node doubts it, and again and again while one is down."""
        began = self.loop.time()
        while True:
            self._stale.clear()
            problem = await self._read_map()
            if problem is None:
                self._halted = None
            elif self._mapped or self.loop.time() - began > CONNECT_LIMIT:
                told, self._halted = self._halted, problem
                if told is None:
                    self._store.told(problem)
            await asyncio.sleep(AGAIN_PAUSE if problem is None else random.uniform(*PROBE_PACE))  # noqa: S311 - jitter
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self.up else PROBE_PACE[1]):
                    await self._stale.wait()

    async def _read_map(self) -> str | None:
        """Ask one node after the other, those first that answer now; a problem, or None."""
        known = [place for place in self._nodes if place is not None]
        known.sort(key=lambda place: self._nodes[place].pipe is None)
        problem = None
        for place in dict.fromkeys([*known, *self._seeds]):
            try:
                told = await view(place, self.login)
            except (OSError, RedisError, TimeoutError, ValueError) as error:
                problem = problem or explain(self.name, error)
                continue
            if not told.ok:
                problem = f"{where(self.name)} is a cluster that is down"
                if not told.parts:
                    continue
            self._use(told)
            return None if told.ok else problem
        return problem or explain(self.name, OSError())

    def _use(self, told: View) -> None:
        self._mapped = True
        slots: list[Node | None] = [None] * SLOTS
        for part in told.parts:
            slots[part.first : part.last + 1] = [self._node(part.primary)] * (part.last - part.first + 1)
        self._slots = slots
        wanted = {part.primary for part in told.parts}
        for place in [place for place in self._nodes if place not in wanted]:
            self._nodes.pop(place).remove()
