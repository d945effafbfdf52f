"""Who shows a right secret: the admin token, or a key's."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable

from providers.errors import StoreUnavailable, Unauthorized
from router.audit import Actor
from router.cabinet import Cabinet
from router.credentials import digest, key_id_of
from router.pepper import ADMIN, Pepper
from router.records import Key, key_of
from router.store import ANSWER_LIMIT

_NOTHING = b"0" * 64


class Holders:
    """token: the admin token of the config; without it the one of the first start counts, whose digest is in the store.
    Raises StoreUnavailable, and Unauthorized, with the reason, for a right secret that may not."""

    def __init__(self, cabinet: Cabinet, pepper: Pepper, token: str | None, clock: Callable[[], float]) -> None:
        self._cabinet = cabinet
        self._pepper = pepper
        self._token = token
        self._clock = clock
        self._seen: bytes | None = None

    @property
    def given(self) -> bool:
        """Whether the operator has chosen the admin token."""
        return self._token is not None

    def _digest(self, text: str) -> bytes:
        return digest(self._pepper.value, text).hex().encode()

    async def key(self, credential: str) -> Key | None:
        """The key of a credential; None when the secret opens none."""
        key_id = key_id_of(credential)
        if key_id is None:
            return None
        record = await self._cabinet.find(key_id)
        shown = self._digest(credential)
        right = hmac.compare_digest(shown, record.digest.encode() if record and record.digest else _NOTHING)
        old = hmac.compare_digest(shown, record.old_digest.encode() if record and record.old_digest else _NOTHING)
        if record is None or not (right or old):
            return None
        now = self._clock()
        if old and now >= (record.old_until or 0):
            raise Unauthorized("This secret was replaced by a newer one: use that.")
        team = await self._cabinet.team(record.team)
        key = key_of(record, team.name if team is not None else "")
        if (condition := key.condition(now)) != "active":
            raise Unauthorized(
                "This API key has expired." if condition == "expired" else f"This API key is {condition}."
            )
        if team is not None and team.state != "active":
            raise Unauthorized(f"The team of this API key is {team.state}.")
        return key

    async def admin(self, token: str, address: str | None) -> Actor | None:
        """See `Keys.admin`."""
        if self._token is None:
            try:
                async with asyncio.timeout(None if self._seen is None else ANSWER_LIMIT):
                    self._seen = await self._cabinet.raw(ADMIN)
            except (StoreUnavailable, TimeoutError):
                if self._seen is None:  # else the status page works just when it is needed
                    raise
        if self.seen_admin(token):
            return Actor("admin token", address or "")
        key = await self.key(token)
        if key is None:
            return None
        if not key.rights.admin:
            raise Unauthorized("This API key lacks the right `admin`.")
        if address is not None and not key.admits(address):
            raise Unauthorized("This API key may not be used from this network.")
        return Actor(f"key {key.id}", address or "")

    def seen_admin(self, token: str) -> bool:
        """Whether this is the admin token as last read: the store is not asked."""
        own = self._digest(self._token) if self._token is not None else self._seen
        return hmac.compare_digest(self._digest(token), own or _NOTHING)
