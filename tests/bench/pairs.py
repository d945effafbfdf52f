"""The ledger by itself, in one process with an embedded store: what a pair of reserve and settle costs.

Run as `python -m tests.bench.pairs FOLDER PAIRS ROUNDS`; prints one line with the JSON of `Pair` values. There is no
HTTP and no plan: 32 tasks reserve and settle as fast as they can, so that this process's CPU divided by the pairs is
what the ledger's side of a call costs, its share of the loop and of the socket included.
"""

import asyncio
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from router.cabinet import Cabinet
from router.checks import Amounts
from router.credentials import digest, load_pepper, new_credential, new_id
from router.keys import Keys
from router.ledger import Ask, Bill, Hold, Ledger
from router.limits import Limit
from router.pipe import pack
from router.records import (
    TEAMS,
    Record,
    TeamRecord,
    encode,
    key_name,
    keys_name,
    new_etag,
    new_team_id,
    place_name,
    team_name,
)
from router.store import Store, open_store

TASKS: Final = 32
_MANY: Final = 1 << 40
"""Of a limit that is never reached."""

FOUR: Final = (
    Limit(measure="requests", window="minute", amount=_MANY),
    Limit(measure="tokens", window="minute", amount=_MANY),
    Limit(measure="running", window="now", amount=_MANY),
    Limit(measure="tokens", window="month", amount=_MANY),
)
MONEY: Final = (Limit(measure="cost", window="month", amount=_MANY, currency="usd"),)
KINDS: Final[dict[str, tuple[tuple[Limit, ...], tuple[Limit, ...]]]] = {
    "no limits": ((), ()),
    "a budget in money": (MONEY, ()),
    "4 limits on the key, 4 on its team": (FOUR, FOUR),
}
"""Limits of a key and of its team, by what the table calls them."""

ROW: Final = (
    b'{"id":"%s","time":1795312800.123456,"key":"ABCDEFGHIJKL","dialect":"openai","op":"chat","model":"bench",'
    b'"stream":false}'
)
END: Final = ROW[:-1] + (
    b',"status":200,"outcome":"ok","answered_by":"up/bench","fallback":null,"ms":3.4,"first_content_ms":2.9,'
    b'"tokens_in":120,"tokens_out":48,"cost":1234,"mark":"measured"}'
)
METRICS: Final = tuple(
    part
    for name, amount in (("calls", 1), ("in", 120), ("out", 48), ("cost", 1234))
    for part in (f"m\tp\t{name}", amount)
)
"""What an ordinary answer adds to the usage tables."""


class Pair(msgspec.Struct, frozen=True):
    """One kind of key. Microseconds."""

    kind: str
    cpu: tuple[float, ...]
    """Of this process for each pair, by round."""
    before: int
    after: int
    """Questions to the store before the provider is asked, and after it."""
    reserve_p50: float
    """One call at a time."""
    ping_p50: float
    """On the same connection, in turns with it."""
    store_reserve: float
    store_settle: float
    store_beat: float
    """For each call that a heartbeat tells of."""
    tombstone: float
    """Bytes of the store for each call of the last 24 hours."""


async def write(cabinet: Cabinet, teams: Sequence[TeamRecord], records: Sequence[Record]) -> None:
    """Put records into the store as they lie there, without the audit log that their makers write."""
    commands: list[tuple[str | bytes, ...]] = []
    for team in teams:
        commands += [("SET", team_name(team.id), encode(team)), ("SADD", TEAMS, team.id)]
    for record in records:
        commands += [
            ("SET", place_name(record.id), record.team),
            ("SET", key_name(record.team, record.id), encode(record)),
            ("SADD", keys_name(record.team), record.id),
        ]
    await cabinet.gather(commands)


def new_team(name: str, limits: tuple[Limit, ...]) -> TeamRecord:
    return TeamRecord(id=new_team_id(), name=name, created=int(time.time()), limits=limits, etag=new_etag(1))


def new_key(
    pepper: bytes, team: str, limits: tuple[Limit, ...], *, owner: str = "", tags: tuple[str, ...] = ()
) -> tuple[Record, str]:
    """A key as `Keys` makes it, and its credential."""
    key_id = new_id()
    credential = new_credential(key_id)
    record = Record(
        id=key_id,
        name=f"bench {key_id}",
        created=int(time.time()),
        digest=digest(pepper, credential).hex(),
        owner=owner,
        team=team,
        tags=tags,
        limits=limits,
        etag=new_etag(1),
    )
    return record, credential


class Bench:
    """A key of one kind and the ledger that admits it."""

    def __init__(self, ledger: Ledger, store: Store, credential: str, team: str) -> None:
        self._ledger = ledger
        self._store = store
        self._credential = credential
        self._team = team
        self._ask = Ask(Amounts(1100, 2345, 844, False), bool, ROW)
        self._bill = Bill(1, 168, 1234, METRICS, END)

    async def reserve(self) -> Hold:
        return await self._ledger.reserve(self._credential, call_id=secrets.token_hex(12), prepare=self._prepare)

    def _prepare(self, _known: object, _local_only: bool) -> Ask:
        return self._ask

    def settle(self, hold: Hold) -> None:
        self._ledger.settle(hold, self._bill)

    async def cpu(self, pairs: int) -> float:
        """Microseconds of this process for each pair, at TASKS calls at once."""
        left = [pairs]

        async def work() -> None:
            while left[0] > 0:
                left[0] -= 1
                self.settle(await self.reserve())

        start = time.process_time_ns()
        await asyncio.gather(*(work() for _ in range(TASKS)))
        await self._quiet()
        return (time.process_time_ns() - start) / pairs / 1000

    async def questions(self) -> tuple[int, int]:
        """Asked of the store before the provider is, and after it; without what the ledger asks by itself now and
        then."""
        links, call = self._ledger.links, asyncio.current_task()
        asked, ask = [0], links.ask

        def counted(*arguments: Any, **options: Any) -> asyncio.Future[Any]:
            asked[0] += asyncio.current_task() is call
            return ask(*arguments, **options)

        links.ask = counted  # type: ignore[method-assign]  # seen by all who hold these links
        try:
            hold = await self.reserve()
            before = asked[0]
            self.settle(hold)
            return before, asked[0] - before
        finally:
            links.ask = ask  # type: ignore[method-assign]
            await self._quiet()

    async def latency(self, calls: int) -> tuple[float, float]:
        """p50 of a reservation and of a PING in microseconds, in turns on one connection."""
        ping, links = pack("PING"), self._ledger.links
        reserves: list[int] = []
        pings: list[int] = []
        for _ in range(calls):
            start = time.perf_counter_ns()
            await links.ask(self._team, ping, limit=5.0)
            pings.append(time.perf_counter_ns() - start)
            start = time.perf_counter_ns()
            hold = await self.reserve()
            reserves.append(time.perf_counter_ns() - start)
            self.settle(hold)
            await self._quiet()
        return statistics.median(reserves) / 1000, statistics.median(pings) / 1000

    async def store_time(self, calls: int) -> tuple[float, float, float]:
        """Microseconds of the server for each reserve, settle, and call in a heartbeat, as it counts them itself."""
        await self._store.run("CONFIG", "RESETSTAT")
        holds: list[Hold] = []
        for _ in range(0, calls, TASKS):
            holds += await asyncio.gather(*(self.reserve() for _ in range(TASKS)))
        reserve = await self._functions() / len(holds)
        for hold in holds:
            hold.since = -1e9  # so that the next heartbeat tells of it
        await self._ledger.live.beat()
        beat = await self._functions() / len(holds)
        for first in range(0, len(holds), TASKS):
            for hold in holds[first : first + TASKS]:
                self.settle(hold)
            await self._quiet()
        return reserve, await self._functions() / len(holds), beat

    async def tombstone(self) -> float:
        """Bytes that the store keeps of an ended call for 24 hours."""
        hour, count, size = int(time.time()) // 3600, 0, 0
        for name in (f"sy:{{{self._team}}}:done:{hour - 1}", f"sy:{{{self._team}}}:done:{hour}"):
            if some := await self._store.run("HLEN", name):
                count += some
                size += await self._store.run("MEMORY", "USAGE", name, "SAMPLES", 0)
        return size / count if count else 0.0

    async def _functions(self) -> float:
        """Microseconds of the library's functions since the last look."""
        stats = await self._store.run("INFO", "commandstats")
        await self._store.run("CONFIG", "RESETSTAT")
        return float(stats["cmdstat_fcall"]["usec"])

    async def _quiet(self) -> None:
        """All that was asked is answered."""
        await self._ledger.links.ask(self._team, pack("PING"), limit=5.0)


async def measure(folder: Path, pairs: int, rounds: int) -> tuple[Pair, ...]:
    store = await open_store("embedded", folder, role="command")
    pepper = load_pepper(folder, {})
    ledger = Ledger(store, Keys(store, pepper))
    try:
        cabinet = Cabinet(store)
        benches: dict[str, Bench] = {}
        for kind, (own, shared) in KINDS.items():
            team = new_team(kind, shared)
            record, credential = new_key(pepper, team.id, own)
            await write(cabinet, [team], [record])
            benches[kind] = Bench(ledger, store, credential, team.id)
        cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for bench in benches.values():
            await bench.cpu(max(pairs // 4, TASKS))
        for _ in range(rounds):
            for kind, bench in benches.items():
                cpu[kind].append(await bench.cpu(pairs))
        found = []
        for kind, bench in benches.items():
            before, after = await bench.questions()
            reserve_p50, ping_p50 = await bench.latency(max(pairs // 4, 20))
            store_reserve, store_settle, store_beat = await bench.store_time(min(pairs, 2000))
            found.append(
                Pair(
                    kind=kind,
                    cpu=tuple(cpu[kind]),
                    before=before,
                    after=after,
                    reserve_p50=reserve_p50,
                    ping_p50=ping_p50,
                    store_reserve=store_reserve,
                    store_settle=store_settle,
                    store_beat=store_beat,
                    tombstone=await bench.tombstone(),
                )
            )
        return tuple(found)
    finally:
        await ledger.close()
        await store.close()


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))).decode())
