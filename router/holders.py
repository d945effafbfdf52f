"""Who shows a right secret: the admin token, or a key's."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from providers.errors import NotAllowed, StoreUnavailable, Unauthorized
from router.audit import Actor
from router.cabinet import Cabinet
from router.credentials import digest, key_id_of
from router.pepper import ADMIN, Pepper
from router.records import Key, key_of
from router.store import ANSWER_LIMIT

_NOTHING = b"0" * 64


@dataclass(frozen=True, slots=True)
class Holder:
    """Who shows a right secret. key: None for the admin token. proof: the secret's digest, by which a session of its
    holder ends with it."""

    key: Key | None
    proof: str = field(repr=False)


class Holders:
    """token: the admin token of the config; without it the one of the first start counts, whose digest is in the store.
    Raises StoreUnavailable, and Unauthorized or NotAllowed, with the reason, for a right secret that may not."""

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
        return None if key_id is None else await self._opened(key_id, self._digest(credential))

    async def _opened(self, key_id: str, shown: bytes) -> Key | None:
        record = await self._cabinet.find(key_id)
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
        await self._look()
        if self.seen_admin(token):
            return Actor("admin token", address or "")
        key = await self.key(token)
        if key is None:
            return None
        if not key.rights.admin:
            raise NotAllowed("This API key lacks the right `admin`.")
        if address is not None and not key.admits(address):
            raise NotAllowed("This API key may not be used from this network.")
        return Actor(f"key {key.id}", address or "")

    async def holder(self, secret: str) -> Holder | None:
        """Whose secret this is: the admin token, or any key's. None for a wrong one."""
        await self._look()
        if self.seen_admin(secret):
            return Holder(None, self._digest(secret).decode())
        key = await self.key(secret)
        return None if key is None else Holder(key, self._digest(secret).decode())

    async def still(self, key_id: str | None, proof: str) -> Holder | None:
        """As `holder`, of the secret with this digest. key_id: None for the admin token."""
        if key_id is None:
            await self._look()
            return Holder(None, proof) if hmac.compare_digest(proof.encode(), self._own or _NOTHING) else None
        key = await self._opened(key_id, proof.encode())
        return None if key is None else Holder(key, proof)

    def seen_admin(self, token: str) -> bool:
        """Whether this is the admin token as last read: the store is not asked."""
        return hmac.compare_digest(self._digest(token), self._own or _NOTHING)

    def changed(self, proof: str) -> bool:
        """Whether the admin token, as last read, is known to be another one than that with this digest."""
        return self._own is not None and not hmac.compare_digest(proof.encode(), self._own)

    @property
    def _own(self) -> bytes | None:
        """The admin token's digest, as last read."""
        return self._digest(self._token) if self._token is not None else self._seen

    async def _look(self) -> None:
        """Read the admin token's digest, where the config has none."""
        if self._token is not None:
            return
        try:
            async with asyncio.timeout(None if self._seen is None else ANSWER_LIMIT):
                self._seen = await self._cabinet.raw(ADMIN)
        except (StoreUnavailable, TimeoutError):
            if self._seen is None:  # else the status page works just when it is needed
                raise
