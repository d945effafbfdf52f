"""The ledger: who may call, and what a call took. Nothing else touches quota keys.

`reserve` before a call, `settle` once after it. A reservation costs one round trip, shared with all calls that ask
while the
previous one is on its way: the key's record is read on every call, so a revoked key is refused on the very next one
and there
is no cache to be stale. (Records are decoded once and kept beside their exact bytes.)

Every decision falls within `DECISION_LIMIT`; when the store cannot answer, callers are refused (`StoreUnavailable`),
never let
through. A caller that is cancelled leaves the others and the shared round trip alone: that runs in a task of the
ledger's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError
from redis.exceptions import ConnectionError as LostConnection

from providers.errors import StoreUnavailable, Unauthorized
from providers.events import Usage
from router.credentials import credential_of, digest, key_id_of, missing
from router.keys import Key, Keys, anonymous_id, decode, key_of, record_name, used_name
from router.store import CONNECT_LIMIT, Store, explain

__all__ = ["Hold", "Ledger", "credential_of"]

log = logging.getLogger("switchyard.ledger")

DECISION_LIMIT = 0.2
"""Seconds from asking to an answer or a refusal."""
MOST_WAITING = 4096
"""Calls that may wait for the store; beyond, they are refused at once."""
MOST_AT_ONCE = 512
"""Keys in one round trip: bounds the time that one batch occupies the store."""
MOST_KEPT = 10_000
"""Decoded records that are kept."""
RECONNECT_PAUSE = 0.02
USED_PACE: Final = 60
"""Seconds: how exact `last used` is, and how often it is written per key."""

_NOBODY: Final = b"\0" * 32


@dataclass(slots=True)
class Hold:
    """One admitted call, until it is settled."""

    key: Key
    call_id: str
    listener: str = ""
    settled: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True)
class _Kept:
    raw: bytes
    key: Key
    digest: bytes


@dataclass(slots=True)
class _Question:
    since: float
    name: bytes
    answer: asyncio.Future[bytes | None]


class Ledger:
    """Check keys and account for calls. Make it inside the running loop; `close` it before the store."""

    def __init__(self, store: Store, keys: Keys, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._pepper = keys.pepper
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Question] = []
        self._drainer: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._connecting: asyncio.Task[AbstractConnection] | None = None
        self._kept: dict[str, _Kept] = {}
        self._used: dict[str, int] = {}
        self._touched: dict[str, int] = {}
        self._noter: asyncio.Task[None] | None = None
        self._anonymous: dict[str, str] = {}
        self._closed = False
        self.round_trips = 0
        self.settled_twice = 0
        """Calls that were settled more than once: a bug of the caller's, without effect here."""

    # --- the calls' side

    async def reserve(self, credential: str | None, *, call_id: str, listener: str = "") -> Hold:
        """Admit a call by its credential. Raises `Unauthorized` or `StoreUnavailable`."""
        return Hold(await self.identify(credential), call_id, listener)

    async def reserve_anonymous(self, name: str, *, call_id: str, listener: str = "") -> Hold:
        """Admit a keyless call of a listener that is open to `name` (see `Keys.ensure_anonymous`)."""
        return Hold(await self.identify_anonymous(name), call_id, listener)

    async def identify(self, credential: str | None) -> Key:
        """The active key of a credential, as `reserve` finds it, without a call."""
        if credential is None:
            raise missing()
        key_id = key_id_of(credential)
        if key_id is None:
            raise _unknown()
        shown = digest(self._pepper, credential)
        kept = await self._look_up(key_id)
        # The same work and the same words for an unknown id and a wrong secret.
        right = hmac.compare_digest(shown, kept.digest if kept is not None else _NOBODY)
        if kept is None or not right:
            raise _unknown()
        return self._admitted(kept.key)

    async def identify_anonymous(self, name: str) -> Key:
        """The active key of a keyless listener, as `reserve_anonymous` finds it, without a call."""
        key_id = self._anonymous.get(name) or self._anonymous.setdefault(name, anonymous_id(name))
        kept = await self._look_up(key_id)
        if kept is None or not kept.key.anonymous:
            raise missing()
        return self._admitted(kept.key)

    def settle(self, hold: Hold, *, usage: Usage | None = None, outcome: str = "") -> None:
        """End a call, whatever became of it. Exactly once per hold: a second time does nothing and is counted.

        Returns at once and cannot be cancelled: what is to be written goes out in a task of the ledger's own.
        """
        if hold.settled:
            self.settled_twice += 1
            log.error("a call was settled twice", extra={"call_id": hold.call_id})
            return
        hold.settled = True
        self._note_use(hold.key.id)

    async def close(self) -> None:
        """Write what is left, refuse who still waits, drop the connection."""
        self._closed = True
        for task in (self._drainer, self._connecting):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._noter is not None:
            await asyncio.wait([self._noter], timeout=1.0)
        self._refuse(self._waiting, "the router is stopping")
        self._waiting = []
        await self._disconnect()

    def _admitted(self, key: Key) -> Key:
        # Told only to who showed the right secret.
        if key.state != "active":
            raise Unauthorized(f"This API key is {key.state}.")
        if key.expired(self._clock()):
            raise Unauthorized("This API key has expired.")
        return key

    # --- one round trip for many

    async def _look_up(self, key_id: str) -> _Kept | None:
        waiting = self._waiting
        if self._closed or len(waiting) >= MOST_WAITING:
            raise StoreUnavailable("Too many calls wait for the key store; try again.", retry_after=1)
        answer: asyncio.Future[bytes | None] = self._loop.create_future()
        waiting.append(_Question(self._loop.time(), record_name(key_id).encode(), answer))
        if self._drainer is None:
            self._drainer = self._loop.create_task(self._drain(), name="ledger")
        raw = await answer
        if raw is None:
            return None
        kept = self._kept.get(key_id)
        if kept is None or kept.raw != raw:
            record = decode(raw)
            kept = _Kept(raw, key_of(record), bytes.fromhex(record.digest) if record.digest else _NOBODY)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key_id] = kept
        return kept

    async def _drain(self) -> None:
        """Ask for all who wait, until nobody does. Starts in the tick after the first question, so it takes that
        tick's others along.
        """
        batch: list[_Question] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                questions: dict[bytes, list[_Question]] = {}
                for question in batch:
                    if not question.answer.done():  # else its caller went away
                        questions.setdefault(question.name, []).append(question)
                if not questions:
                    continue
                try:
                    async with asyncio.timeout_at(batch[0].since + DECISION_LIMIT):
                        values = await self._ask(list(questions))
                except (RedisError, OSError, TimeoutError) as error:
                    await self._disconnect()
                    # Who queued behind a store that does not answer has waited as well: one refusal for all.
                    log.warning("%s", explain(self._store.name, error))
                    self._refuse([*batch, *self._waiting], "it does not answer as it should")
                    self._waiting = []
                    continue
                for asked, value in zip(questions.values(), values, strict=True):
                    for question in asked:
                        if not question.answer.done():
                            question.answer.set_result(value)
        finally:
            self._drainer = None
            self._refuse(batch, "the router is stopping")
            if self._waiting and not self._closed:
                self._drainer = self._loop.create_task(self._drain(), name="ledger")

    async def _ask(self, names: list[bytes]) -> list[bytes | None]:
        command = b"*%d\r\n$4\r\nMGET\r\n" % (len(names) + 1) + b"".join(b"$%d\r\n%b\r\n" % (len(n), n) for n in names)
        while True:
            connection = self._connection
            try:
                if connection is None:
                    connection = await self._connected()
                await connection.send_packed_command(command, check_health=False)
                self.round_trips += 1
                return cast("list[bytes | None]", await connection.read_response())
            except (OSError, RedisError) as error:
                if not _lost(error):
                    raise
                # The server went away under us, perhaps just to be started again. Reading may be repeated; the caller's
                # deadline ends it.
                await self._disconnect()
                await asyncio.sleep(RECONNECT_PAUSE)

    async def _connected(self) -> AbstractConnection:
        # In a task of its own: logging in at a distant store may take longer than one decision.
        if self._connecting is None:
            self._connecting = self._loop.create_task(self._connect(), name="ledger connects")
        connecting = self._connecting
        try:
            self._connection = await asyncio.shield(connecting)
        finally:
            if connecting.done() and self._connecting is connecting:
                self._connecting = None
        return self._connection

    async def _connect(self) -> AbstractConnection:
        connection = self._store.connection()
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                await cast("Callable[[], Awaitable[None]]", connection.connect)()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    def _refuse(self, questions: list[_Question], why: str) -> None:
        for question in questions:
            if not question.answer.done():
                question.answer.set_exception(
                    StoreUnavailable(f"The key store cannot be asked right now: {why}.", retry_after=1)
                )

    # --- last used

    def _note_use(self, key_id: str) -> None:
        now = int(self._clock())
        if now - self._used.get(key_id, 0) < USED_PACE or self._closed:
            return
        if len(self._used) >= MOST_KEPT:
            self._used.clear()
        self._used[key_id] = self._touched[key_id] = now
        if self._noter is None:
            self._noter = self._loop.create_task(self._write_uses(), name="ledger notes uses")

    async def _write_uses(self) -> None:
        touched: dict[str, int] = {}
        try:
            while self._touched:
                touched, self._touched = self._touched, {}
                values = {used_name(key_id): when for key_id, when in touched.items()}
                await cast("Awaitable[object]", self._store.redis.mset(values))
        except (RedisError, OSError, TimeoutError) as error:
            # A courtesy to the operator; the next use of the key writes it again.
            log.debug("last use not written: %s", type(error).__name__)
            for key_id in touched:
                self._used.pop(key_id, None)
        finally:
            self._noter = None


def _unknown() -> Unauthorized:
    return Unauthorized("Incorrect API key provided.")


def _lost(error: BaseException) -> bool:
    """The connection is gone (or the server is starting), rather than the command refused."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    return isinstance(error, LostConnection | OSError)
