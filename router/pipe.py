"""One connection to a Redis server, for many questions at once: what the ledger's speed rests on.

All that is asked in one tick of the loop leaves in one write; answers come in the order of the questions (RESP2, parsed
by hiredis). There is one timer per connection, not one per question, and no task: a reply completes its future from
`data_received`. Who owns the pipe (`Owner`) decides what becomes of refused, late and lost questions.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Protocol, cast

import hiredis
from redis.exceptions import ResponseError

__all__ = ["Hung", "Login", "Owner", "Pipe", "Place", "Question", "Refused", "connect", "pack", "query"]

LATE_GRACE: Final = 0.01
"""Seconds after a deadline for answers that already lie in the socket while the loop itself was busy."""


class Refused(ResponseError):
    """The server's error reply; `str` is its text."""

    @property
    def word(self) -> str:
        """The first word: Redis's error code (`OOM`, `READONLY`, `MOVED`, `ERR`, ...)."""
        return str(self).partition(" ")[0]


class Hung(ConnectionError):
    """The connection ended before the answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one server listens: a host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, repr=False)
class Login:
    """How a connection introduces itself. Never shown: it holds the password."""

    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: ssl.SSLContext | None = None

    def commands(self) -> list[bytes]:
        """What is sent before anything else; the name may be refused by an ACL, the rest may not."""
        told = [pack("CLIENT", "SETNAME", "switchyard")]
        if self.password is not None or self.username is not None:
            who = [self.username] if self.username else []
            told.insert(0, pack("AUTH", *who, self.password or ""))
        if self.db:
            told.append(pack("SELECT", self.db))
        return told


class Question:
    """One command on its way. `until` is in the loop's time; `sent` once it may have been executed."""

    __slots__ = ("command", "future", "repeat", "sent", "tag", "tries", "until")

    def __init__(self, future: asyncio.Future[Any], command: bytes, tag: str, until: float, repeat: bool) -> None:
        self.future = future
        self.command = command
        self.tag = tag
        self.until = until
        self.repeat = repeat
        self.sent = False
        self.tries = 0


class Owner(Protocol):
    def refused(self, pipe: Pipe, question: Question, error: Refused) -> None:
        """The server answered `question` with an error."""

    def late(self, pipe: Pipe) -> None:
        """A question's time is over: the server or the way to it hangs."""

    def lost(self, pipe: Pipe) -> None:
        """The connection ended. What was asked and not answered is in `pipe.pending`."""


_pack: Final = cast("Callable[[Sequence[bytes | str | int]], bytes]", hiredis.pack_command)  # its stub takes one part


def pack(*parts: bytes | str | int) -> bytes:
    """A command as the bytes that `Links.ask` takes."""
    return _pack(parts)


class Pipe(asyncio.Protocol):
    """An open connection. Use `send`; `retire` lets it end after the last answer; `abort` ends it now."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner | None = None) -> None:
        self._loop = loop
        self.owner = owner
        self.pending: deque[Question] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=Refused)
        self._flushing = False
        self._due = inf
        self._timer: asyncio.TimerHandle | None = None
        self._retired = False
        self.loads = 0
        """Libraries on their way to the server: what follows them in this pipe finds them."""
        self.load_refused: Refused | None = None
        """Why the server did not take the library a moment ago."""

    # --- asking

    def send(self, question: Question) -> None:
        self.pending.append(question)
        self._unsent.append(question.command)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        if question.until < self._due:
            self._arm(question.until)

    def retire(self) -> None:
        """Take no more questions; end after the last answer."""
        self._retired = True
        if not self.pending:
            self.abort()

    def abort(self) -> None:
        """End now; `Owner.lost` follows in the next tick unless the owner was taken off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def left(self) -> list[Question]:
        """What was not answered, in order, with `sent` set on what the server may have received. Empties the pipe."""
        questions = list(self.pending)
        for question in questions[: len(questions) - len(self._unsent)]:
            question.sent = True
        self.pending.clear()
        self._unsent.clear()
        return questions

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and self._unsent:
            data = b"".join(self._unsent)
            self._unsent.clear()
            self._transport.write(data)

    # --- the timer

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._look, False)

    def _look(self, graced: bool) -> None:
        """Whether the earliest deadline has passed. Deadlines differ, so the first in line need not be the earliest."""
        self._timer = None
        self._due = inf
        if not self.pending:
            return
        earliest = min(question.until for question in self.pending)
        now = self._loop.time()
        if earliest > now:
            self._arm(earliest)
        elif graced and earliest + LATE_GRACE <= now:
            if self.owner is not None:
                self.owner.late(self)
        else:
            self._due = earliest
            self._timer = self._loop.call_later(LATE_GRACE, self._look, True)

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of asyncio's
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        pending = self.pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                question = pending.popleft()
                if isinstance(reply, Refused):
                    if self.owner is not None:
                        self.owner.refused(self, question, reply)
                    elif not question.future.done():
                        question.future.set_exception(reply)
                elif not question.future.done():
                    question.future.set_result(reply)
        except (hiredis.HiredisError, IndexError):
            self.abort()  # not Redis's protocol, or an answer to no question
        if self._retired and not pending:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.owner is not None:
            self.owner.lost(self)
            return
        for question in self.left():
            if not question.future.done():
                question.future.set_exception(Hung("the connection ended"))


async def query(pipe: Pipe, commands: Sequence[bytes]) -> list[Any]:
    """Ask on a pipe that has no owner yet; an error reply is an item of the answer. The caller sets the deadline.
    Raises `Hung`.
    """
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[Any]] = []
    for command in commands:
        future: asyncio.Future[Any] = loop.create_future()
        futures.append(future)
        pipe.send(Question(future, command, "", inf, False))
    replies = await asyncio.gather(*futures, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException) and not isinstance(reply, Refused):
            raise reply
    return replies


async def connect(place: Place, login: Login, *probes: bytes) -> tuple[Pipe, list[Any]]:
    """A pipe to `place`, logged in, and the answers to `probes`. The caller sets the deadline and the owner.

    Raises `OSError` (and `ssl.SSLError`, which is one), `Hung`, or `Refused` when the login is refused.
    """
    loop = asyncio.get_running_loop()
    pipe = Pipe(loop)
    if place.path:
        await loop.create_unix_connection(lambda: pipe, place.path)
    else:
        name = place.host if login.tls is not None else None
        await loop.create_connection(lambda: pipe, place.host, place.port, ssl=login.tls, server_hostname=name)
    try:
        greeting = login.commands()
        replies = await query(pipe, [*greeting, *probes])
        for command, reply in zip(greeting, replies, strict=False):
            if isinstance(reply, Refused) and b"SETNAME" not in command:
                raise reply
    except BaseException:
        pipe.abort()
        raise
    return pipe, replies[len(greeting) :]
