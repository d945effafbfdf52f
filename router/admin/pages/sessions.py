"""Who is signed in. A session is a record in the store, so that it holds in every worker and over a restart:

    sy:session:<digest>     JSON of a Session; the cookie holds the secret, here is its digest under the pepper
    sy:sessions:<holder>    sorted set of those digests by their last use; holder: a key's id, or `admin`

A session is tied to the secret that opened it and is looked at again whenever it is used: it ends when the key is
revoked, disabled, expired or rotated, when the key lost its right or may not be used from there, and when there is
another admin token. What has ended never begins again: each worker remembers some of it, and does not ask again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

import msgspec

from providers.errors import StoreUnavailable, Unauthorized
from router.credentials import digest
from router.holders import Holder
from router.keys import Keys
from router.records import Key

IDLE: Final = 2 * 3600
"""Seconds without use after which a session ends. An open page uses it all the time."""
LONGEST: Final = 30 * 86400
"""Seconds after which everybody signs in again: a screen on a wall once a month."""
MOST: Final = 50
"""Sessions of one holder; the one that was used longest ago makes room."""
REMEMBERED: Final = 60.0
"""Seconds for which a session that was good stays good while the store is away."""
MOST_REMEMBERED: Final = 1000
MOST_ENDED: Final = 4096
"""Sessions that are known to have ended, or never to have been."""
STRANGERS: Final = 4
"""Sessions that this worker does not know yet and looks for at once: cookies that somebody made up wait for each
other, and nobody else for them."""
SHARED: Final = 1.0
"""Seconds for which one look at a session serves all its streams."""
CLOSING_PACE = 0.5
"""Seconds between two attempts to end sessions in a store that was away."""
PROLONGED: Final = 60.0
"""Seconds between two writings of a session's new end."""
ANSWER: Final = 1.0
"""Seconds that the store has for all that is asked about one session."""

_ADMIN: Final = "admin"
_log = logging.getLogger("switchyard.pages")


class Session(msgspec.Struct, frozen=True):
    """As it lies in the store. key: an id, None for the admin token. admin: sees everything. proof: the digest of the
    secret that opened it. created: Unix seconds."""

    key: str | None
    admin: bool
    proof: str
    created: float

    def __repr__(self) -> str:
        return f"Session({self.key or _ADMIN})"


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page. key: None for the holder of the admin token."""

    kind: Literal["admin", "key"]
    name: str
    admin: bool
    key: Key | None


@dataclass(frozen=True, slots=True)
class _Known:
    viewer: Viewer
    proof: str = field(repr=False)
    ends: float
    good_at: float
    prolonged_at: float


class _Look(NamedTuple):
    at: float
    found: asyncio.Task[Viewer | None]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Session).decode


class Sessions:
    """Opens, finds and ends sessions. `clock` is Unix time, `monotonic` in seconds. Raises StoreUnavailable."""

    def __init__(
        self, keys: Keys, *, clock: Callable[[], float] | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = keys
        self._cabinet = keys.cabinet
        self._clock = clock or keys.clock
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._unclosed: dict[str, None] = {}
        """Ended here, and not yet in the store."""
        self._closing: asyncio.Task[None] | None = None
        self._strangers = asyncio.Semaphore(STRANGERS)
        self._looks: dict[tuple[str, str], _Look] = {}

    def _digest(self, secret: str) -> str:
        return digest(self._keys.pepper, f"session {secret}").hex()

    async def open(self, secret: str, address: str) -> str | None:
        """A new session for who shows the admin token or a key's credential, as the secret for the cookie. None for a
        wrong one, and for a right one that may not be used now and from there."""
        try:
            holder = await self._keys.holder(secret)
        except Unauthorized:
            return None
        if holder is None or (holder.key is not None and not holder.key.admits(address)):
            return None
        now = self._clock()
        made = secrets.token_urlsafe(32)
        name = self._digest(made)
        key = holder.key
        session = Session(None if key is None else key.id, key is None or key.rights.admin, holder.proof, now)
        listed = _index(session)
        await self._cabinet.ask("SET", _place(name), _encode(session), "EX", IDLE)
        await self._cabinet.gather(
            [
                ("ZADD", listed, repr(now), name),
                ("EXPIRE", listed, LONGEST),
                ("ZREMRANGEBYSCORE", listed, 0, repr(now - LONGEST)),
            ]
        )
        await self._make_room(listed)
        _log.info("%s signed in from %s", "the admin token" if key is None else f"key {key.id}", address or "a socket")
        return made

    async def _make_room(self, listed: str) -> None:
        if int(await self._cabinet.ask("ZCARD", listed)) <= MOST:
            return
        names = [name.decode() for name in await self._cabinet.ask("ZRANGE", listed, 0, -1)]
        there = await self._cabinet.gather([("EXISTS", _place(name)) for name in names])
        living = [name for name, lives in zip(names, there, strict=True) if lives]
        evicted = living[: max(0, len(living) - MOST)]
        gone = [name for name in names if name not in living] + evicted
        if gone:
            await self._cabinet.gather([*(("DEL", _place(name)) for name in evicted), ("ZREM", listed, *gone)])

    async def find(self, secret: str, address: str) -> Viewer | None:
        """Who this session is of, when he may still look from there. Raises StoreUnavailable when the store is away and
        the session has not just been seen here."""
        return await self._find(self._digest(secret), address)

    async def lately(self, secret: str, address: str) -> tuple[Viewer | None, float]:
        """As `find`, but one look serves all who ask about a session within SHARED seconds; and when that look was
        (monotonic)."""
        place = (self._digest(secret), address)
        now = self._monotonic()
        look = self._looks.get(place)
        if look is None or now - look.at >= SHARED:
            self._looks = {known: one for known, one in self._looks.items() if now - one.at < SHARED}
            look = self._looks[place] = _Look(now, asyncio.create_task(self._find(*place)))
            look.found.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to who asks
        return await asyncio.shield(look.found), look.at

    async def _find(self, name: str, address: str) -> Viewer | None:
        if name in self._ended or name in self._unclosed:
            return None
        try:
            if self._cabinet.store.problem is not None:
                raise StoreUnavailable(self._cabinet.store.problem)
            async with asyncio.timeout(ANSWER), contextlib.AsyncExitStack() as turn:
                if name not in self._known:
                    await turn.enter_async_context(self._strangers)
                viewer = await self._read(name, address)
        except (StoreUnavailable, TimeoutError) as error:
            return self._remembered(name, address, error)
        if viewer is None:
            self._forget(name)
        return viewer

    async def close(self, secret: str) -> bool:
        """End a session. False when the store is away: then it has ended in this worker, and ends in the store as soon
        as that answers, unless the router ends before."""
        name = self._digest(secret)
        if name in self._known or len(self._unclosed) < MOST_REMEMBERED:
            self._unclosed[name] = None
        self._forget(name)
        if await self._closed(name):
            return True
        if self._closing is None or self._closing.done():
            self._closing = asyncio.create_task(self._close_later(), name="sessions to end")
        return False

    async def _closed(self, name: str) -> bool:
        """Whether it has ended in the store now."""
        if self._cabinet.store.problem is not None:
            return False
        try:
            async with asyncio.timeout(ANSWER):
                raw = await self._cabinet.raw(_place(name))
                if raw is not None:
                    await self._end(name, _read(raw))
        except (StoreUnavailable, TimeoutError):
            return False
        self._unclosed.pop(name, None)
        return True

    async def _close_later(self) -> None:
        while self._unclosed:
            await asyncio.sleep(CLOSING_PACE)
            for name in list(self._unclosed):
                if not await self._closed(name):
                    break

    async def _read(self, name: str, address: str) -> Viewer | None:
        raw = await self._cabinet.raw(_place(name))
        session = None if raw is None else _read(raw)
        if session is None:
            return None
        viewer = await self._viewer(session, address)
        ends = session.created + LONGEST
        if viewer is None or self._clock() >= ends:
            await self._end(name, session)
            return None
        now = self._monotonic()
        known = self._known.get(name)
        if known is None or now - known.prolonged_at >= PROLONGED:
            wall = self._clock()
            if not await self._cabinet.ask("EXPIRE", _place(name), max(1, int(min(IDLE, ends - wall)))):
                return None
            listed = _index(session)
            await self._cabinet.gather([("ZADD", listed, repr(wall), name), ("EXPIRE", listed, LONGEST)])
            known = _Known(viewer, session.proof, ends, now, now)
        self._remember(name, replace(known, viewer=viewer, good_at=now))
        return viewer

    async def _viewer(self, session: Session, address: str) -> Viewer | None:
        try:
            holder = await self._keys.still(session.key, session.proof)
        except Unauthorized:
            return None
        return None if holder is None else _viewer_of(session, holder, address)

    async def _end(self, name: str, session: Session | None) -> None:
        commands: list[tuple[str, ...]] = [("DEL", _place(name))]
        if session is not None:
            commands.append(("ZREM", _index(session), name))
        await self._cabinet.gather(commands)

    def _forget(self, name: str) -> None:
        """It has ended."""
        self._known.pop(name, None)
        self._ended[name] = None
        self._ended.move_to_end(name)
        if len(self._ended) > MOST_ENDED:
            self._ended.popitem(last=False)

    def _remember(self, name: str, known: _Known) -> None:
        self._known.pop(name, None)
        if len(self._known) >= MOST_REMEMBERED:
            del self._known[next(iter(self._known))]  # the one that was used longest ago
        self._known[name] = known

    def _remembered(self, name: str, address: str, error: Exception) -> Viewer | None:
        known = self._known.get(name)
        now = self._monotonic()
        if known is None or now - known.good_at > REMEMBERED:
            self._known.pop(name, None)
            raise StoreUnavailable("The store that knows who is signed in does not answer.") from error
        key = known.viewer.key
        if key is None:
            if self._keys.admin_changed(known.proof):
                self._forget(name)
                return None
            # Whoever watches is not shut out just when it is needed.
            self._remember(name, replace(known, good_at=now))
        elif key.expired(self._clock()) or not key.admits(address):
            return None
        return known.viewer if self._clock() < known.ends else None


def _viewer_of(session: Session, holder: Holder, address: str) -> Viewer | None:
    key = holder.key
    if key is None:
        return Viewer("admin", "", admin=True, key=None)
    if not key.admits(address) or (session.admin and not key.rights.admin):
        return None
    return Viewer("key", key.name, session.admin, key)


def _place(name: str) -> str:
    return f"sy:session:{name}"


def _index(session: Session) -> str:
    return f"sy:sessions:{session.key or _ADMIN}"


def _read(raw: bytes) -> Session | None:
    """None for what another version has written: sign in again."""
    try:
        return _decode(raw)
    except msgspec.DecodeError:
        return None
