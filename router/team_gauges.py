"""What of the teams' limits is spent, read from the store by whichever worker is scraped.

Reading is shared by all who scrape, goes on when a scrape has stopped waiting for it, and lets calls have a turn after
every BATCH of teams. What was read is shown for FRESH_SECONDS, and for LATE_SECONDS where the store is slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from redis.exceptions import RedisError

from providers.errors import StoreUnavailable
from router.cabinet import Cabinet
from router.limits import MICRO
from router.metric_text import Row
from router.metrics import Rows
from router.periods import zone_of
from router.records import TeamRecord, decode_team, team_name
from router.standing import TEAM, Scope, standings
from router.store import Store
from router.usage_text import Rate

MOST_TEAMS: Final = 500
BATCH: Final = 100
"""Teams in one round trip."""
FRESH_SECONDS: Final = 5.0
LATE_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 0.3
"""How long a scrape waits for the store ..."""
FIRST_SECONDS: Final = 1.5
"""... and how long where it has nothing else to show."""
READ_SECONDS: Final = 10.0

_One = TypeVar("_One")

_log = logging.getLogger("switchyard.metrics")


class TeamGauges:
    """`rate()`: yuan for one US dollar."""

    def __init__(
        self, store: Store, rate: Callable[[], Rate], clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._cabinet = Cabinet(store)
        self._rate = rate
        self._clock = clock
        self._monotonic = monotonic
        self._rows: Rows = {}
        self._read_at = -LATE_SECONDS
        self._reading: asyncio.Task[None] | None = None
        self._records: dict[bytes, TeamRecord] = {}
        self._cut = 0

    async def read(self) -> Rows:
        """Rows of `team_limit` and its sisters; none while the store is away."""
        if self._store.problem is not None:
            return {}
        age = self._monotonic() - self._read_at
        if age < FRESH_SECONDS:
            return self._rows
        reading = self._reading
        if reading is None or reading.done():
            reading = self._reading = asyncio.create_task(self._renew(), name="limits of teams")
        await asyncio.wait([reading], timeout=ANSWER_SECONDS if age < LATE_SECONDS else FIRST_SECONDS)
        return self._rows if self._monotonic() - self._read_at < LATE_SECONDS else {}

    async def close(self) -> None:
        """End what is being read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._rows = await self._read()
        except (StoreUnavailable, RedisError, OSError, TimeoutError) as error:
            _log.debug("no limits of teams: %s", type(error).__name__)
        else:
            self._read_at = self._monotonic()

    async def _read(self) -> Rows:
        teams = await self._limited()
        cut = max(0, len(teams) - MOST_TEAMS)
        if cut and not self._cut:
            _log.warning("the metrics show the limits of %d teams; %d more have limits", MOST_TEAMS, cut)
        self._cut = cut
        limits: list[Row] = []
        spent: list[Row] = []
        held: list[Row] = []
        shown = teams[:MOST_TEAMS]
        scopes = [Scope(team.id, TEAM, team.limits, zone_of(team.timezone)) for team in shown]
        async with self._cabinet.errors():
            found = await standings(self._store, scopes, rate=self._rate(), now=self._clock())
        for team, stood in zip(shown, found, strict=True):
            for one in stood:
                labels = team.name, one.limit.name, one.unit
                scale = MICRO if one.limit.measure == "cost" else 1
                limits.append((labels, one.limit.amount / scale))
                spent.append((labels, one.spent / scale))
                held.append((labels, one.held / scale))
        return {
            "team_limit": limits,
            "team_limit_spent": spent,
            "team_limit_held": held,
            "team_limits_cut": [((), float(cut))],
        }

    async def _limited(self) -> list[TeamRecord]:
        """The teams that have limits and are not revoked, in order of their ids."""
        known, self._records = self._records, {}
        found = []
        for ids in _batches(await self._cabinet.team_ids()):
            for raw in await self._cabinet.gather([("GET", team_name(team)) for team in ids]):
                if raw is not None:
                    record = self._records[raw] = known.get(raw) or decode_team(raw)
                    if record.limits and record.state != "revoked":
                        found.append(record)
            await asyncio.sleep(0)
        return found


def _batches(many: Sequence[_One]) -> Iterable[Sequence[_One]]:
    return (many[start : start + BATCH] for start in range(0, len(many), BATCH))
