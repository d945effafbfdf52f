"""The bounded number of calls that a provider takes at once, and the bounded queue in front of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from providers.errors import Busy


class NoPlace(Busy):
    """The queue is full, or the wait in it was too long. The provider itself was not asked, so this says nothing of its
    health."""


class Places:
    """First come, first served. Both numbers can be changed while calls run and wait, which asyncio's semaphore cannot
    do."""

    def __init__(self, places: int, queue: int) -> None:
        self._places = self._free = places
        self._queue = queue
        self._line: deque[asyncio.Future[None]] = deque()
        self.waiting = 0

    @property
    def busy(self) -> bool:
        """Whether a call has a place or waits for one."""
        return self._free != self._places or self.waiting > 0

    def resize(self, places: int, queue: int) -> None:
        """New numbers, from now on. Where calls have more places than there are now, the next ones wait until enough of
        them have ended; who waits in a queue that is shorter now stays in it."""
        self._free += places - self._places
        self._places, self._queue = places, queue
        self._call_in()

    @asynccontextmanager
    async def one(self, waited: Callable[[], object] = bool) -> AsyncIterator[None]:
        """Raises NoPlace when the queue is full. `waited` is called when the wait is over, for a place or in vain."""
        if self._free > 0:
            self._free -= 1
            waited()
        else:
            if self.waiting >= self._queue:
                raise NoPlace("the queue in front of the provider is full", retry_after=1.0)
            turn = asyncio.get_running_loop().create_future()
            self._line.append(turn)
            self.waiting += 1
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    with suppress(ValueError):  # a place was free just then, and it was passed over
                        self._line.remove(turn)
                else:  # the place came just then
                    self._give_back()
                raise
            finally:
                self.waiting -= 1
                waited()
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._free += 1
        self._call_in()

    def _call_in(self) -> None:
        """Give free places to those who still wait."""
        while self._free > 0 and self._line:
            turn = self._line.popleft()
            if not turn.cancelled():
                self._free -= 1
                turn.set_result(None)
