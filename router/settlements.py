"""Settlements on their way to the store: sent at once, and kept in the journal until the store has them.

Nobody waits for one. What the store did not take for whatever reason is sent again when it answers, in the order in
which it was kept; one that the server itself refuses goes behind the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import RedisError

from providers.errors import StoreUnavailable
from router.journal import Entry, Journal
from router.link import Links

log = logging.getLogger("switchyard.ledger")

SETTLE_LIMIT: Final = 2.0
"""Seconds that a settlement may take before it goes to the journal."""
CLOSE_LIMIT: Final = 2.0
"""Seconds that settlements on their way get at the end."""
REPLAY_PACE: Final = 0.2
REPLAY_BATCH: Final = 200


class Settlements:
    """Make it inside the running loop, with an open journal; `close` it before the links."""

    def __init__(self, links: Links, journal: Journal) -> None:
        self._links = links
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._sent: set[asyncio.Future[Any]] = set()
        self._replayer: asyncio.Task[None] | None = None
        self._closed = False
        if len(journal):
            self._replay()

    def __len__(self) -> int:
        """Those that were sent and not answered."""
        return len(self._sent)

    def send(self, account: str, command: bytes) -> None:
        """Send one now. Never raises, and cannot be cancelled."""
        future = self._links.ask(account, command, limit=SETTLE_LIMIT)
        self._sent.add(future)
        future.add_done_callback(lambda done: self._answered(done, (account, command)))

    async def finish(self) -> None:
        """Give what was sent a little time, and stop sending again."""
        self._closed = True
        if self._sent:
            await asyncio.wait(self._sent, timeout=CLOSE_LIMIT)
        if self._replayer is not None:
            self._replayer.cancel()
            await asyncio.wait([self._replayer])

    def _answered(self, done: asyncio.Future[Any], entry: Entry) -> None:
        self._sent.discard(done)
        if done.cancelled() or done.exception() is not None:
            self._journal.add(entry)
            self._replay()

    def _replay(self) -> None:
        if self._replayer is None and not self._closed:
            self._replayer = self._loop.create_task(self._send_journal(), name="ledger replays")

    async def _send_journal(self) -> None:
        try:
            while len(self._journal):
                await asyncio.sleep(REPLAY_PACE)
                await self._journal.sync()
                while self._links.up and (batch := self._journal.waiting(REPLAY_BATCH)):
                    if not await self._send_again(batch):
                        break
        finally:
            self._replayer = None
            if len(self._journal):
                self._replay()

    async def _send_again(self, batch: Sequence[tuple[int, Entry]]) -> bool:
        """Whether the store took any."""
        questions = [self._links.ask(account, command, limit=SETTLE_LIMIT) for _, (account, command) in batch]
        taken = 0
        for (number, _), answer in zip(batch, await asyncio.gather(*questions, return_exceptions=True), strict=True):
            if isinstance(answer, list):
                self._journal.done(number)
                taken += 1
            elif isinstance(answer, RedisError):
                self._journal.defer(number)
            elif not isinstance(answer, StoreUnavailable):
                log.error("a settlement could not be sent: %s", type(answer).__name__)
        if taken:
            log.info("%d settlements of the journal are in the store", taken)
        return taken > 0
