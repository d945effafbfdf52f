"""One account, its limits and its bills in short words, for tests of single functions."""

from __future__ import annotations

from typing import Any

from tests.ledger import books
from tests.ledger.books import Books, Command
from tests.ledger.model import NOTHING, PLACES, Bill, Check

REQUESTS, TOKENS, COST = 1, 2, 3
NOW = 1_795_000_000_250
"""2026-11-18 11:06:40.250 UTC."""
MIDNIGHT = 1_795_046_400
HOUR, DAY = 3600, 86_400
LEASE = 30_000
HOURS = str(NOW // 1000 // HOUR)


def budget(limit: int, amount: int, name: str = "budget_total", start: int = 0, stop: int = 0, of: int = COST) -> Check:
    return Check("b", "n:k1", name, limit, amount, start, stop, of)


def rate(limit: int, amount: int = 1, name: str = "rpm", of: int = REQUESTS) -> Check:
    return Check("w", f"w:k1:{name}", name, limit, amount, 0, 0, of)


def places(limit: int) -> Check:
    return budget(limit, 1, "concurrency", of=PLACES)


def bill(cost: int = 0, tokens: int = 0, requests: int = 1, row: str = '{"id":"c"}') -> Bill:
    metrics = tuple(
        (f"gpt-4.1\topenai\t{name}", amount) for name, amount in (("calls", 1), ("in", tokens), ("cost", cost))
    )
    return Bill(requests, tokens, cost, "k1\t", metrics, HOURS, "2026-11-18", row)


class Story:
    """What happens to one account, at times in milliseconds after `NOW`."""

    def __init__(self, account: Books) -> None:
        self.account = account
        self.calls = 0
        self.lease = LEASE

    def run(self, after: int, command: Command) -> Any:
        self.account.at(NOW + after)
        return self.account.run(command)

    def reserve(self, after: int, *checks: Check, call: str = "", **facts: Any) -> Any:
        self.calls += 1
        return self.run(after, books.reserve(call or f"c{self.calls}", HOURS, checks, self.lease, **facts))

    def settle(self, after: int, call: str, *checks: Check, used: Bill = NOTHING) -> Any:
        return self.run(after, books.settle(call, HOURS, checks, used, "k1"))

    def beat(self, after: int, call: str, *checks: Check, used: Bill | None = None) -> Any:
        return self.run(after, books.beat(LEASE, ["key:k1"], [(call, HOURS, checks, used)]))

    def counter(self, name: str = "budget_total") -> tuple[int, int]:
        """Spent and held."""
        return self.account.seen().counters["n:k1", name][1:]
