"""What a store says was used and is held, by what lies in it: no code of the router is asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from redis import Redis

from tests.simulators.stores import until

_READ: dict[Any, Any] = {
    b"string": lambda store, name: store.get(name),
    b"hash": lambda store, name: store.hgetall(name),
    b"set": lambda store, name: store.smembers(name),
    b"zset": lambda store, name: store.zrange(name, 0, -1, withscores=True),
    b"list": lambda store, name: store.lrange(name, 0, -1),
    b"stream": lambda store, name: store.xrange(name),
}


def dump(stores: Iterable[Redis]) -> dict[bytes, Any]:
    """Every name with its value."""
    found = {}
    for store in stores:
        for name in store.scan_iter(count=1000):
            kind: Any = store.type(name)
            if kind != b"none":
                found[name] = _READ[kind](store, name)
    return found


class Books:
    """The sums in a dump."""

    def __init__(self, stores: Iterable[Redis]) -> None:
        self.all = dump(stores)

    def _named(self, part: bytes) -> list[Any]:
        return [value for name, value in self.all.items() if b"}:" in name and name.split(b"}:", 1)[1].startswith(part)]

    @property
    def running(self) -> int:
        """Calls that hold something."""
        return sum(map(len, self._named(b"holds"))) + sum(map(len, self._named(b"leases")))

    @property
    def held(self) -> Counter[str]:
        """What they hold, by the name of the limit; nothing that is 0."""
        sums: Counter[str] = Counter()
        for counters in self._named(b"n:"):
            for name, value in counters.items():
                if name.endswith(b":h") and int(value):
                    sums[name.decode()] += int(value)
        return sums

    @property
    def rest(self) -> bool:
        return not self.running and not self.held

    def spent(self, limit: str, scope: str) -> int:
        """Spent of one limit of one key."""
        for name, counters in self.all.items():
            if name.endswith(b"}:n:" + scope.encode()):
                return int(counters.get(f"{limit}:s".encode(), 0))
        return 0

    def usage(self, key: str = "") -> Counter[str]:
        """Usage by metric, of one key or all; the sums by hour and by day say the same."""
        hours, days = self._usage(b"uh:", key), self._usage(b"ud:", key)
        assert hours == days
        return hours

    def _usage(self, part: bytes, key: str) -> Counter[str]:
        sums: Counter[str] = Counter()
        for fields in self._named(part):
            for name, amount in fields.items():
                whose, _, _, metric = name.decode().split("\t")
                if key in ("", whose):
                    sums[metric] += int(amount)
        return +sums

    def ended(self) -> Counter[str]:
        """How often each call's end is among the recent requests."""
        rows = [json.loads(fields[b"r"]) for entries in self._named(b"recent") for _, fields in entries]
        return Counter(row["id"] for row in rows if row.get("status") is not None)

    def unended(self) -> set[str]:
        """Calls among the recent requests that began and, as far as one can see, still run."""
        rows = [json.loads(fields[b"r"]) for entries in self._named(b"recent") for _, fields in entries]
        ended = {row["id"] for row in rows if row.get("status") is not None or row.get("lost")}
        return {row["id"] for row in rows} - ended


def at_rest(stores: Iterable[Redis], seconds: float = 25.0) -> Books:
    """The books once nothing is held any more. (What nobody renews is swept after 30 seconds.)"""
    stores = list(stores)
    until(lambda: Books(stores).rest, "nothing is held", seconds)
    return Books(stores)
