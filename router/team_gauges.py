"""What of the teams' limits is spent: read from the store once per scrape, whichever worker is scraped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from providers.errors import StoreUnavailable
from router.cabinet import Cabinet
from router.limits import MICRO
from router.metric_text import Row
from router.metrics import Rows
from router.periods import zone_of
from router.records import decode_team, team_name
from router.standing import TEAM, Scope, standings
from router.store import Store
from router.usage_text import Rate

MOST_TEAMS: Final = 500
ANSWER_SECONDS: Final = 0.3
"""How long a scrape waits for the store."""

_log = logging.getLogger("switchyard.metrics")


class TeamGauges:
    """`rate()`: yuan for one US dollar."""

    def __init__(self, store: Store, rate: Callable[[], Rate], clock: Callable[[], float]) -> None:
        self._store = store
        self._cabinet = Cabinet(store)
        self._rate = rate
        self._clock = clock

    async def read(self) -> Rows:
        """Rows of `team_limit` and its sisters; none while the store is away."""
        if self._store.problem is not None:
            return {}
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._read()
        except (StoreUnavailable, RedisError, OSError, TimeoutError) as error:
            _log.debug("no limits of teams: %s", type(error).__name__)
            return {}

    async def _read(self) -> Rows:
        ids = (await self._cabinet.team_ids())[:MOST_TEAMS]
        raws = await self._cabinet.gather([("GET", team_name(team)) for team in ids])
        teams = [decode_team(raw) for raw in raws if raw is not None]
        teams = [team for team in teams if team.limits and team.state != "revoked"]
        scopes = [Scope(team.id, TEAM, team.limits, zone_of(team.timezone)) for team in teams]
        found = await standings(self._store, scopes, rate=self._rate(), now=self._clock())
        limits: list[Row] = []
        spent: list[Row] = []
        held: list[Row] = []
        for team, some in zip(teams, found, strict=True):
            for one in some:
                labels = team.name, one.name.removeprefix("team."), one.unit
                scale = MICRO if one.limit.measure == "cost" else 1
                for rows, amount in ((limits, one.limit.amount), (spent, one.spent), (held, one.held)):
                    rows.append((labels, amount / scale))
        return {"team_limit": limits, "team_limit_spent": spent, "team_limit_held": held}
