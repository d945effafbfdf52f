"""Wrong secrets, counted per address: past a burst, the address is refused before anything is looked up. Of IPv6 it is
the network of 64 bits that counts: one subscriber has all of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import AddressValueError, IPv6Address
from weakref import WeakValueDictionary

from providers.errors import SwitchyardError

BURST = 10
"""Wrong admin tokens in a row."""
PACE = 6.0
"""Seconds until one more try is given."""
MOST_ADDRESSES = 10_000


class TooManyAttempts(SwitchyardError):
    status = 429
    code = "too_many_attempts"
    type = "rate_limit_error"


class Throttle:
    """A leaky bucket per address. The clock is monotonic, in seconds; `what` is told to who is refused."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        burst: int = BURST,
        pace: float = PACE,
        what: str = "admin tokens",
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._pace = pace
        self._what = what
        self._empty_at: dict[str, float] = {}
        """When the address's bucket will have leaked out."""
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Time to judge one secret: those of an address that come at once are judged one after the other, so that each
        is admitted by what became of those before. Raises TooManyAttempts."""
        turn = self._turns.setdefault(_place(address), asyncio.Lock())
        async with turn:
            self.admit(address)
            yield

    def admit(self, address: str) -> None:
        """Raises TooManyAttempts."""
        full_for = self._empty_at.get(_place(address), 0.0) - self._clock() - (self._burst - 1) * self._pace
        if full_for > 0:
            raise TooManyAttempts(f"Too many wrong {self._what} from this address: wait.", retry_after=full_for)

    def failed(self, address: str) -> None:
        address = _place(address)
        now = self._clock()
        if address not in self._empty_at and len(self._empty_at) >= MOST_ADDRESSES:
            self._empty_at = {known: at for known, at in self._empty_at.items() if at > now}
            if len(self._empty_at) >= MOST_ADDRESSES:  # an attack from very many addresses: forget the oldest
                del self._empty_at[next(iter(self._empty_at))]
        self._empty_at[address] = max(self._empty_at.get(address, 0.0), now) + self._pace


def _place(address: str) -> str:
    """Where the bucket of an address is."""
    if ":" not in address:
        return address
    try:
        found = IPv6Address(address.partition("%")[0])
    except AddressValueError:
        return address
    return str(found.ipv4_mapped or IPv6Address(int(found) >> 64 << 64))
