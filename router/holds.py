"""Running calls: their holds are kept alive, and the streams of keys that were revoked are ended.

Every `PACE` seconds one question for each account tells the store what its calls have used so far and renews their
leases; the answer carries the etags of their keys' records, so that a change is seen without asking for it. When this
process dies, nobody renews, and whoever sweeps next charges what was told last.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import RedisError

from providers.errors import StoreUnavailable, SwitchyardError
from router.checks import NO_AMOUNTS, NO_CHECKS, Amounts, Check, pack_value
from router.functions import account_keys, fcall
from router.known import Asks, Known
from router.pipe import pack
from router.records import TEAMS, Key

log = logging.getLogger("switchyard.ledger")

LEASE: Final = 30.0
"""Seconds that a hold lives without a heartbeat."""
PACE: Final = 2.0
"""Seconds between two heartbeats of a call: also how long a revoked key's stream may go on."""
SWEEP_PACE: Final = 4.0
"""Seconds between two looks for leases that nobody renews."""
SWEEPER: Final = "sy:sweeper"
"""Whose turn it is to sweep: one worker does it for all routers of the store."""
MOST_AT_ONCE: Final = 200
"""Calls in one heartbeat, teams in one sweep: bounds the time that one question occupies the store."""


NOTHING_USED: Final = pack_value([0, 0, 0, "", [], "", "", ""])


@dataclass(slots=True, eq=False)
class Hold:
    """One admitted call, or its part of a provider's shared limits, until it is settled."""

    account: str
    prefix: str
    call_id: str
    hour: str
    """Of its admission (server's clock, Unix seconds // 3600): where its tombstone will be."""
    moment: float
    """Of its admission, Unix seconds of the server's clock."""
    checks: bytes = NO_CHECKS
    amounts: Amounts = NO_AMOUNTS
    known: Known | None = None
    shown: bytes | None = field(default=None, repr=False)
    """Digest of the secret that it was admitted by; None without one."""
    standing: tuple[tuple[Check, int, int], ...] = ()
    """Each check with what is left of it and the milliseconds until it is whole again, as of the admission."""
    reserved: bool = True
    """False for a call of a local model that was admitted while the store was away."""
    day: str = ""
    settled: bool = field(default=False, repr=False)
    since: float = 0.0
    """Monotonic seconds of its admission."""
    used: Callable[[], bytes] = field(default=lambda: NOTHING_USED, repr=False)
    """What it has used so far, as a packed bill."""
    cut: Callable[[SwitchyardError], None] | None = field(default=None, repr=False)
    """Ends the call."""

    @property
    def key(self) -> Key:
        assert self.known is not None
        return self.known.key


class Live:
    """The running calls of this worker. `recheck` gives why a call may not go on, or None; it is told whether the
    records of its key have changed."""

    def __init__(
        self,
        links: Asks,
        recheck: Callable[[Hold, bool], Any],
        monotonic: Callable[[], float],
        told: Callable[[int], None],
        accounts: Callable[[], Iterable[str]],
    ) -> None:
        """`told` gets the store's clock (ms); `accounts()` are those to sweep beside the teams."""
        self._links = links
        self._recheck = recheck
        self._monotonic = monotonic
        self._told = told
        self._accounts = accounts
        self._holds: dict[Hold, None] = {}
        self._tasks = [
            asyncio.create_task(self._each(PACE, self.beat), name="ledger heartbeat"),
            asyncio.create_task(self._each(SWEEP_PACE, self.sweep), name="ledger sweeper"),
        ]
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.swept = 0
        """Holds whose lease ended, as found by this worker."""

    def __len__(self) -> int:
        return len(self._holds)

    def add(self, hold: Hold) -> None:
        self._holds[hold] = None

    def remove(self, hold: Hold) -> None:
        self._holds.pop(hold, None)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def beat(self) -> None:
        """Renew the leases of all calls that have run for a while. Raises StoreUnavailable or RedisError."""
        now = self._monotonic()
        accounts: dict[str, list[Hold]] = {}
        for hold in self._holds:
            if now - hold.since >= PACE / 2 and not hold.settled:
                accounts.setdefault(hold.account, []).append(hold)
        failed: Exception | None = None
        for account, holds in accounts.items():
            try:
                for first in range(0, len(holds), MOST_AT_ONCE):
                    await self._beat(account, holds[first : first + MOST_AT_ONCE])
            except (StoreUnavailable, RedisError) as error:
                failed = failed or error  # a record that cannot be read ends no lease but its own account's
        if failed is not None:
            raise failed

    async def _beat(self, account: str, holds: list[Hold]) -> None:
        names = list(dict.fromkeys(name for hold in holds if hold.known is not None for name in hold.known.names))
        told: list[bytes | str | int] = [holds[0].prefix, int(LEASE * 1000), len(names), *names]
        for hold in holds:
            if hold.reserved:
                told += (hold.call_id, hold.hour, hold.checks, _used(hold))
        answer = await self._links.ask(account, fcall("beat", account_keys(holds[0].prefix), told))
        self._told(answer[0])
        etags = {name: (etag or b"").decode() for name, etag in zip(names, answer[1], strict=True)}
        for hold in holds:
            known = hold.known
            if known is None or hold.settled or hold.cut is None:
                continue
            changed = tuple(etags[name] for name in known.names) != known.etags
            if changed or known.key.expires_at is not None or known.key.old_until is not None:
                why = await self._recheck(hold, changed)
                if why is not None and not hold.settled:
                    hold.cut(why)

    async def sweep(self) -> None:
        """End the holds that nobody renews, in all accounts. Raises StoreUnavailable or RedisError."""
        turn = pack("SET", SWEEPER, self._name, "NX", "PX", int(SWEEP_PACE * 750))
        if await self._links.ask(SWEEPER, turn) is None:
            return  # another worker has just done it
        teams = await self._links.ask(TEAMS, pack("SMEMBERS", TEAMS))
        accounts = [*(team.decode() for team in teams), *self._accounts()]
        found = 0
        while accounts:
            some, accounts = accounts[:MOST_AT_ONCE], accounts[MOST_AT_ONCE:]
            questions = []
            for account in some:
                prefix = f"sy:{{{account}}}:"
                command = fcall("sweep", account_keys(prefix), (prefix, MOST_AT_ONCE))
                questions.append(self._links.ask(account, command))
            for account, answer in zip(some, await asyncio.gather(*questions, return_exceptions=True), strict=True):
                if isinstance(answer, list):
                    found += answer[0]
                    if answer[0] == MOST_AT_ONCE:
                        accounts.append(account)  # there may be more
        if found:
            self.swept += found
            log.warning("%d calls of a worker that is gone were ended and charged", found)

    async def _each(self, pace: float, work: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(pace * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
            try:
                await work()
            except (StoreUnavailable, RedisError) as error:
                # Leases outlive a short absence; `Links` tells of it.
                log.debug("%s failed: %s", getattr(work, "__name__", "task"), type(error).__name__)
            except Exception:  # a bug of ours in one round must not end the leases of all calls for good
                log.exception("%s failed", getattr(work, "__name__", "task"))


def _used(hold: Hold) -> bytes:
    try:
        return hold.used()
    except Exception:  # a bug of ours in one call's count must not end the leases of all others
        log.exception("what call %s has used so far cannot be told", hold.call_id)
        return NOTHING_USED
