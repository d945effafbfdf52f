"""A real server with the ledger's library in it: start it, call its functions, and read all that they keep.

The library's clock is the server's. `Books` loads a build of the library whose clock is a key instead, so that tests
say what time it is; nothing else in it differs.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import redis
from redis.exceptions import ResponseError

from router.embedded import Embedded, die_with_parent, find_binary
from router.functions import Library, not_found
from tests.ledger.model import Bill, Check

LUA = Path(__file__).parents[2] / "router" / "ledger.lua"
CLOCK = """local function milliseconds()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
"""
TEAM = "T3stTeam"
PREFIX = f"sy:{{{TEAM}}}:"
CLOCK_KEY = PREFIX + "test-clock"
DUMP = """
local all = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local kind = redis.call('TYPE', key)['ok']
  local value
  if kind == 'hash' then
    value = redis.call('HGETALL', key)
    if key == ARGV[1] .. 'holds' then
      for at = 2, #value, 2 do value[at] = cmsgpack.unpack(value[at]) end
    end
  elseif kind == 'zset' then
    value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'stream' then
    value = redis.call('XLEN', key)
  elseif kind == 'set' then
    value = redis.call('SMEMBERS', key)
    table.sort(value)
  elseif kind == 'list' then
    value = redis.call('LRANGE', key, 0, -1)
  else
    value = redis.call('GET', key)
  end
  all[#all + 1] = {key, value}
end
return all
"""


def replaced(source: str, old: str, new: str) -> str:
    """The source with its one `old` replaced; fails when the source has changed, so that no test goes stale."""
    assert source.count(old) == 1, f"occurs {source.count(old)} times in ledger.lua, not once:\n{old}"
    return source.replace(old, new)


def with_clock(source: str) -> str:
    """The library with the clock in a key."""
    clock = f"local function milliseconds()\n  return tonumber(redis.call('GET', '{CLOCK_KEY}'))\nend\n"
    return replaced(source, CLOCK, clock)


@contextmanager
def valkey(data_dir: Path) -> Iterator[redis.Redis]:
    """The embedded store's server."""
    store = Embedded(data_dir)
    store.prepare()
    assert store.acquire("command")
    store.launch()
    try:
        asyncio.run(store.until_ready())
        with redis.Redis(unix_socket_path=store.socket) as client:
            yield client
    finally:
        asyncio.run(store.stop())


@contextmanager
def server(binary: str, data_dir: Path) -> Iterator[redis.Redis]:
    """Any other server, on a socket in `data_dir`."""
    socket = data_dir / "socket"
    options = {"port": "0", "unixsocket": str(socket), "dir": str(data_dir), "save": "", "daemonize": "no"}
    process = subprocess.Popen(
        [binary, *(word for name, value in options.items() for word in (f"--{name}", value))],
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent(),
    )
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            limit = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    break
                except (redis.ConnectionError, redis.BusyLoadingError):
                    assert process.poll() is None
                    assert time.monotonic() < limit
                    time.sleep(0.01)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def binary() -> str:
    return find_binary({})


# --- what goes over the wire


def packed(checks: Sequence[Check]) -> bytes:
    return msgspec.msgpack.encode([list(check) for check in checks])


def packed_bill(bill: Bill | None) -> bytes:
    if bill is None:
        return b""
    metrics = [part for metric in bill.metrics for part in metric]
    return msgspec.msgpack.encode(
        [bill.requests, bill.tokens, bill.cost, bill.prefix, metrics, bill.hour, bill.day, bill.row]
    )


def window(name: str, moment: float, zone: ZoneInfo) -> tuple[int, int]:
    """Start and end, in Unix seconds, of the day, week or month that holds `moment`; (0, 0) for `total` and `now`."""
    if name in ("total", "now"):
        return 0, 0
    today = datetime.fromtimestamp(moment, zone).date()
    if name == "day":
        first, after = today, today + timedelta(days=1)
    elif name == "week":
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    else:
        first = today.replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
    begins, ends = (datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() for day in (first, after))
    return int(begins), int(ends)


@dataclass(frozen=True, slots=True)
class Command:
    """One call of a function, to be sent as often as wanted."""

    function: str
    keys: tuple[str, ...]
    arguments: tuple[bytes | str | int, ...]


def reserve(
    call: str,
    hour: str,
    checks: Sequence[Check],
    lease: int = 30_000,
    records: Sequence[tuple[str, str]] = (),
    ends: int = 0,
    row: str = "",
    key: str = "",
    day: str = "",
) -> Command:
    named = [part for name, etag in records for part in (PREFIX + name, etag)]
    named += [""] * (4 - len(named))
    told: tuple[bytes | str | int, ...] = (PREFIX, call, hour, packed(checks), lease, *named, ends, row, key, day)
    return Command("reserve", (PREFIX + "holds",), told)


def settle(call: str, hour: str, checks: Sequence[Check], bill: Bill, key: str = "") -> Command:
    return Command("settle", (PREFIX + "holds",), (PREFIX, call, hour, packed(checks), packed_bill(bill), key))


def beat(lease: int, records: Sequence[str], calls: Iterable[tuple[str, str, Sequence[Check], Bill | None]]) -> Command:
    told: list[bytes | str | int] = [PREFIX, lease, len(records), *(PREFIX + name for name in records)]
    for call, hour, checks, bill in calls:
        told += [call, hour, packed(checks), packed_bill(bill)]
    return Command("beat", (PREFIX + "holds",), tuple(told))


def sweep(most: int = 100) -> Command:
    return Command("sweep", (PREFIX + "holds",), (PREFIX, most))


def put(record: str, expected: str, raw: bytes, sets: Sequence[tuple[str, str]] = ()) -> Command:
    keys = (PREFIX + record, *(PREFIX + name for name, _ in sets))
    return Command("put", keys, (expected, raw, *(member for _, member in sets)))


# --- what is kept


@dataclass(frozen=True, slots=True)
class Seen:
    """All that an account's keys hold."""

    counters: Mapping[tuple[str, str], tuple[int, int, int]]
    """Window, spent and held by suffix and field."""
    rates: Mapping[str, Mapping[int, int]]
    """What was taken in each second, by suffix."""
    rate_facts: Mapping[str, tuple[int, int, int]]
    """Sum, oldest and latest second as kept beside it."""
    holds: Mapping[str, tuple[str, int, bytes, bytes]]
    leases: Mapping[str, int]
    tombstones: Mapping[tuple[str, str], bytes]
    """By hour and call."""
    usage: Mapping[str, Mapping[str, int]]
    sums: Mapping[str, Mapping[str, int]]
    """What pages read: of all keys by hour, refusals, and the order of the day's keys."""
    used_models: Mapping[str, frozenset[str]]
    """What each key has used on a day; it may know more than is left of it."""
    used: Mapping[str, int]
    records: Mapping[str, bytes]
    rows: int
    errors: int
    """Rows of failed, lost and refused calls."""


def _pairs(flat: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for at in range(0, len(flat), 2):
        yield flat[at].decode(), flat[at + 1]


def seen(dump: Sequence[tuple[bytes, Any]]) -> Seen:
    """Sorts a dump. Every key must be one that is known."""
    counters: dict[tuple[str, str], tuple[int, int, int]] = {}
    rates: dict[str, dict[int, int]] = {}
    rate_facts: dict[str, tuple[int, int, int]] = {}
    tombstones: dict[tuple[str, str], bytes] = {}
    usage: dict[str, dict[str, int]] = {}
    sums: dict[str, dict[str, int]] = {}
    used_models: dict[str, frozenset[str]] = {}
    holds: dict[str, tuple[str, int, bytes, bytes]] = {}
    leases: dict[str, int] = {}
    used: dict[str, int] = {}
    records: dict[str, bytes] = {}
    rows = errors = 0
    for key, value in dump:
        suffix = key.decode().removeprefix(PREFIX)
        kind = suffix.partition(":")[0]
        if kind == "n":
            facts = {name: int(number) for name, number in _pairs(value)}
            for field in {name.rpartition(":")[0] for name in facts}:
                numbers = (facts.pop(f"{field}:w"), facts.pop(f"{field}:s"), facts.pop(f"{field}:h"))
                assert facts.pop(f"{field}:e") > numbers[0] or numbers[0] == 0
                counters[suffix, field] = numbers
            assert not facts, facts
        elif kind == "w":
            facts = {name: int(number) for name, number in _pairs(value)}
            rate_facts[suffix] = (facts.pop("s"), facts.pop("t"), facts.pop("l"))
            rates[suffix] = {int(name): number for name, number in facts.items()}
        elif kind == "done":
            tombstones |= {(suffix.partition(":")[2], call): mark for call, mark in _pairs(value)}
        elif kind in ("uh", "ud"):
            usage[suffix] = {name: int(number) for name, number in _pairs(value) if int(number)}
        elif kind in ("sh", "kr", "rh", "top"):
            sums[suffix] = {name: int(number) for name, number in _pairs(value) if int(number)}
        elif kind == "km":
            used_models[suffix] = frozenset(where.decode() for where in value)
        elif suffix == "holds":
            holds = {call: (hold[0].decode(), hold[1], hold[2], hold[3]) for call, hold in _pairs(value)}
        elif suffix == "leases":
            leases = {call: int(ends) for call, ends in _pairs(value)}
        elif suffix == "used":
            used = {name: int(moment) for name, moment in _pairs(value)}
        elif suffix == "recent":
            rows = value
        elif suffix == "errors":
            errors = value
        elif kind in ("key", "team"):
            records[suffix] = value
        else:
            assert key.decode() == CLOCK_KEY, key
    usage = {name: table for name, table in usage.items() if table}
    sums = {name: table for name, table in sums.items() if table}
    return Seen(
        counters, rates, rate_facts, holds, leases, tombstones, usage, sums, used_models, used, records, rows, errors
    )


class Books:
    """The account of `TEAM` on a server of our own, with a library whose clock we set."""

    def __init__(self, client: redis.Redis, source: str | None = None) -> None:
        self.client = client
        self.library = Library.of(with_clock(LUA.read_text() if source is None else source).encode())
        self._dump = client.register_script(DUMP)
        self._dump.sha = client.script_load(DUMP)
        self.load()

    def load(self) -> None:
        self.ask("FUNCTION", "LOAD", "REPLACE", self.library.code)

    def ask(self, *words: bytes | str | int) -> Any:
        return self.client.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py

    def clear(self) -> None:
        self.client.flushall()

    def at(self, now: int) -> None:
        """Set the clock, in milliseconds."""
        self.client.set(CLOCK_KEY, now)

    def run(self, command: Command) -> Any:
        """Its answer. A library that is gone is loaded again, as the router does."""
        try:
            return self.ask(*self._words(command))
        except ResponseError as error:
            if not not_found(error):
                raise
            self.load()
            return self.ask(*self._words(command))

    def step(self, now: int, command: Command) -> tuple[Any, list[tuple[bytes, Any]]]:
        """Its answer at that time, and all that is kept after it; in one round trip."""
        for _ in range(2):
            pipeline = self.client.pipeline(transaction=False)
            pipeline.set(CLOCK_KEY, now)
            pipeline.execute_command(*self._words(command))  # type: ignore[no-untyped-call]  # redis-py
            pipeline.evalsha(self._dump.sha, 0, PREFIX)
            _, answer, dump = pipeline.execute(raise_on_error=False)
            if isinstance(answer, ResponseError) and not_found(answer):
                self.load()
                continue
            break
        for reply in (answer, dump):
            if isinstance(reply, Exception):
                raise reply
        return answer, dump

    def dump(self) -> list[tuple[bytes, Any]]:
        return self.client.evalsha(self._dump.sha, 0, PREFIX)  # type: ignore[no-any-return]  # untyped replies

    def seen(self) -> Seen:
        return seen(self.dump())

    def _words(self, command: Command) -> tuple[bytes | str | int, ...]:
        return ("FCALL", self.library.name(command.function), len(command.keys), *command.keys, *command.arguments)
