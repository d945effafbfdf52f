"""The bounded number of calls that a provider takes at once, and the bounded queue in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from providers.errors import Busy


class NoPlace(Busy):
    """The queue is full, or the wait in it was too long. The provider itself was not asked, so this says nothing of its
    health."""


class Places:
    """The bounded number of calls that a provider takes at once, and the bounded queue in front of it."""

    def __init__(self, places: int, queue: int) -> None:
        self._semaphore = asyncio.Semaphore(places)
        self._queue = queue
        self.waiting = 0

    @asynccontextmanager
    async def one(self, waited: Callable[[], object] = bool) -> AsyncIterator[None]:
        """Raises NoPlace when the queue is full. `waited` is called when the wait is over, for a place or in vain."""
        if self._semaphore.locked():
            if self.waiting >= self._queue:
                raise NoPlace("the queue in front of the provider is full", retry_after=1.0)
            self.waiting += 1
            try:
                await self._semaphore.acquire()
            finally:
                self.waiting -= 1
                waited()
        else:
            await self._semaphore.acquire()
            waited()
        try:
            yield
        finally:
            self._semaphore.release()
