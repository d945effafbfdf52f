"""A plain model of the ledger: what router/ledger.lua promises, in the simplest words.

Nothing is counted up or down here. The model keeps what each call holds and what each call was charged, and adds them
up whenever somebody asks; so a counter that was changed once too often, or not at all, differs from it. Amounts are
integers (micro-USD, tokens, calls), `now` is milliseconds of the server's clock, seconds are Unix seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

OK, REFUSED, STALE, CLOCK, DONE, EXPIRED = 1, 0, 2, 4, 5, 6
SPENT, TOO_LARGE, HELD, RATE = 1, 2, 3, 4
REQUESTS, PLACES = 1, 4
NEVER = -1
BUDGET, WINDOW = "b", "w"
SWEPT_WITH_EACH_RESERVE = 20


class Check(NamedTuple):
    """One limit as a call is checked against it; the fields of a check as ledger.lua documents them."""

    kind: str
    suffix: str
    name: str
    limit: int
    amount: int
    start: int
    stop: int
    measure: int

    @property
    def counter(self) -> tuple[str, str]:
        return self.suffix, self.name


@dataclass(frozen=True, slots=True)
class Bill:
    """What a call used: for the counters by measure, and for the usage tables by metric."""

    requests: int = 0
    tokens: int = 0
    cost: int = 0
    prefix: str = ""
    metrics: tuple[tuple[str, int], ...] = ()
    hour: str = ""
    day: str = ""
    row: str = ""

    def used(self, measure: int) -> int:
        return {REQUESTS: max(self.requests, 0), 2: self.tokens, 3: self.cost, PLACES: 0}[measure]


NOTHING = Bill()


def _add(tables: dict[str, Counter[str]], hour: str, key: str, day: str, metric: str, amount: int) -> None:
    name = metric.rpartition("\t")[2]
    tables[f"sh:{hour}"][metric] += amount
    if name == "refused":
        tables[f"rh:{hour}"][key] += amount
    order = {"cost": "cost", "in": "tokens", "out": "tokens", "refused": "refused"}.get(name)
    if order:
        tables[f"top:{day}:{order}"][key] += amount


@dataclass(frozen=True, slots=True)
class Hold:
    """A running call: what it holds, when that was taken from the rate windows, and when its lease ends."""

    hour: str
    second: int
    checks: tuple[Check, ...]
    bill: Bill | None
    ends: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that ended. `final`: it was settled; else its lease ended, and it may still be heard of."""

    hour: str
    checks: tuple[Check, ...]
    bill: Bill | None
    final: bool


@dataclass(slots=True)
class Rate:
    """What was taken in which second; what is older than 60 seconds no longer counts."""

    taken: dict[int, int] = field(default_factory=dict)

    def look(self, second: int) -> int:
        """The sum that counts at `second`. What is old is forgotten; what is of the future (the clock stepped back)
        is counted as of now.
        """
        if self.taken and max(self.taken) > second:
            self.taken = {second: sum(self.taken.values())}
        self.taken = {at: amount for at, amount in self.taken.items() if at >= second - 60}
        return sum(self.taken.values())


@dataclass(slots=True)
class Account:
    """One account's books. Each method does what the library's function of that name does, and answers like it."""

    records: dict[str, bytes] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    windows: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """The window each counter is in, its start and end: the latest in which anything was held or charged."""
    rates: dict[str, Rate] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    refused: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """Refusals by hour, key, day and limit."""

    def copy(self) -> Account:
        return Account(
            dict(self.records),
            dict(self.holds),
            dict(self.ended),
            dict(self.windows),
            {suffix: Rate(dict(rate.taken)) for suffix, rate in self.rates.items()},
            dict(self.used),
            self.rows,
            self.refused.copy(),
        )

    # --- sums

    def held(self, counter: tuple[str, str], start: int) -> int:
        return sum(
            check.amount
            for hold in self.holds.values()
            for check in hold.checks
            if check.kind == BUDGET and check.counter == counter and check.start == start
        )

    def spent(self, counter: tuple[str, str], start: int) -> int:
        return sum(
            ended.bill.used(check.measure)
            for ended in self.ended.values()
            if ended.bill
            for check in ended.checks
            if check.kind == BUDGET and check.counter == counter and check.start == start
        )

    def counters(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """Window, spent and held of each counter."""
        return {
            counter: (start, self.spent(counter, start), self.held(counter, start))
            for counter, (start, _) in self.windows.items()
        }

    def usage(self) -> dict[str, Counter[str]]:
        """The tables by hour and by day."""
        tables: dict[str, Counter[str]] = {}
        for ended in self.ended.values():
            if (bill := ended.bill) and bill.prefix:
                for table in (f"uh:{bill.hour}", f"ud:{bill.day}"):
                    for metric, amount in bill.metrics:
                        tables.setdefault(table, Counter())[bill.prefix + metric] += amount
        return {name: kept for name, table in tables.items() if (kept := +table)}

    def sums(self) -> dict[str, Counter[str]]:
        """The tables for pages."""
        tables: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for ended in self.ended.values():
            if (bill := ended.bill) and bill.prefix:
                for metric, amount in bill.metrics:
                    _add(tables, bill.hour, bill.prefix.strip(), bill.day, metric, amount)
        for (hour, key, day, limit), times in self.refused.items():
            _add(tables, hour, key, day, "\t\trefused", times)
            tables[f"rh:{hour}"][f"{key}\t{limit}"] += times
        return {name: kept for name, table in tables.items() if (kept := +table)}

    # --- functions

    def reserve(
        self,
        now: int,
        call: str,
        hour: str,
        checks: Sequence[Check],
        lease: int,
        records: Iterable[tuple[str, str]],
        ends: int = 0,
        row: str = "",
        key: str = "",
        day: str = "",
    ) -> list[Any]:
        self.sweep(now, SWEPT_WITH_EACH_RESERVE)
        if call in self.ended:
            return [DONE, now]
        running = self.holds.get(call)
        if running is None:
            known = [(self.records.get(name), etag) for name, etag in records]  # without an etag: there is none
            if any((raw or b"\n").partition(b"\n")[0] != etag.encode() for raw, etag in known):
                return [STALE, now, *(raw for raw, _ in known)]
            if ends and now >= ends:
                return [EXPIRED, now]
        found = [self._look(check, now, 0 if running else check.amount) for check in checks]
        if running is None:
            if any(one.other for one in found):
                return [CLOCK, now, *(number for one in found for number in one.window)]
            refused = [(index, one) for index, one in enumerate(found) if one.why]
            if refused:
                index, one = max(refused, key=lambda item: (item[1].weight, -item[0]))
                if key:
                    check = checks[index]
                    of_team = check.suffix.startswith(("n:team", "w:team"))
                    self.refused[hour, key, day, ("team." if of_team else "") + check.name] += 1
                return [REFUSED, now, index, one.why, one.spent, one.held, one.retry]
            self.holds[call] = Hold(hour, now // 1000, tuple(checks), None, now + lease)
            self._open(checks)
            for check in checks:
                if check.kind == WINDOW and check.amount:
                    taken = self.rates.setdefault(check.suffix, Rate()).taken
                    taken[now // 1000] = taken.get(now // 1000, 0) + check.amount
            self.rows += bool(row)
        else:
            self.holds[call] = replace(running, ends=now + lease)
        return [OK, now, *(number for one in found for number in (one.remaining, one.reset))]

    def settle(self, now: int, call: str, hour: str, checks: Sequence[Check], bill: Bill, key: str) -> tuple[int, int]:
        before = self.ended.get(call)
        if before and before.final:
            return 0, now
        hold = self.holds.pop(call, None)
        if hold:
            checks = hold.checks
            self._correct_rates(hold, bill)
        else:
            self._open(
                check
                for check in checks
                if check.measure != PLACES
                and bill.used(check.measure) != ((before and before.bill) or NOTHING).used(check.measure)
            )
        self.ended[call] = Ended(hour, tuple(checks), bill, final=True)
        self.rows += bool(bill.row)
        if key:
            self.used[key] = now // 60_000 * 60
        return 1, now

    def beat(
        self,
        now: int,
        lease: int,
        records: Sequence[str],
        calls: Iterable[tuple[str, str, Sequence[Check], Bill | None]],
    ) -> list[Any]:
        for call, hour, checks, bill in calls:
            ended = self.ended.get(call)
            if ended and ended.final:
                continue
            hold = self.holds.get(call)
            if hold is None:
                # It lives on after all: what was charged when its lease ended is taken back, and it holds again. What
                # it took from the rate windows was given back for good.
                self.ended.pop(call, None)
                self.holds[call] = Hold(hour, 0, tuple(checks), bill, now + lease)
                self._open(checks)
            else:
                self.holds[call] = replace(hold, bill=bill, ends=now + lease)
        return [now, [self.records[name].partition(b"\n")[0] if name in self.records else None for name in records]]

    def sweep(self, now: int, most: int) -> list[int]:
        late = sorted((hold.ends, call) for call, hold in self.holds.items() if hold.ends <= now)[:most]
        for _, call in late:
            hold = self.holds.pop(call)
            if hold.bill:  # else nobody knows, and what it took stays taken
                self._correct_rates(hold, hold.bill)
            self.ended[call] = Ended(hold.hour, hold.checks, hold.bill, final=False)
            self.rows += 1
        return [len(late), now]

    def put(self, record: str, expected: str, raw: bytes) -> int:
        known = self.records.get(record)
        if known == raw:
            return 1
        etag = known.partition(b"\n")[0].decode() if known is not None else ""
        if expected not in ("*", etag):
            return 0
        self.records[record] = raw
        return 1

    # --- details

    def _look(self, check: Check, now: int, amount: int) -> Found:
        if check.kind == WINDOW:
            return self._look_at_rate(check, now, amount)
        window, ends = self.windows.get(check.counter, (None, 0))
        spent = self.spent(check.counter, check.start) if window == check.start else 0
        held = self.held(check.counter, check.start) if window == check.start else 0
        passed = check.stop > 0 and now >= check.stop * 1000
        future = check.start * 1000 > now and window != check.start
        goes_on = window is not None and window < check.start and ends * 1000 > now
        other = passed or future or goes_on or (window or 0) > check.start
        reset = max(check.stop * 1000 - now, 1) if check.stop else 0
        why = retry = 0
        if amount and spent + held + amount > check.limit:
            if amount > check.limit:
                why, retry = TOO_LARGE, 0
            elif spent + amount > check.limit:
                why, retry = SPENT, reset
            else:
                why, retry = HELD, 1000
        return Found(
            why, spent, held, retry, max(check.limit - spent - held - amount, 0), reset, (window or 0, ends), other
        )

    def _look_at_rate(self, check: Check, now: int, amount: int) -> Found:
        second = now // 1000
        rate = self.rates.setdefault(check.suffix, Rate())
        total = rate.look(second)
        why = retry = 0
        if amount and total + amount > check.limit:
            if amount > check.limit:
                why = TOO_LARGE
            else:
                why, retry = (
                    RATE,
                    next(
                        max((at + 61) * 1000 - now, 1)
                        for at in sorted(rate.taken)
                        if sum(later for when, later in rate.taken.items() if when > at) + amount <= check.limit
                    ),
                )
        latest = second if amount or not rate.taken else max(rate.taken)
        return Found(why, total, 0, retry, max(check.limit - total - amount, 0), (latest + 61) * 1000 - now)

    def _open(self, checks: Iterable[Check]) -> None:
        for check in checks:
            if check.kind == BUDGET:
                known = self.windows.get(check.counter)
                if known is None or known[0] < check.start:
                    self.windows[check.counter] = (check.start, check.stop)

    def _correct_rates(self, hold: Hold, bill: Bill) -> None:
        """What a call took too much goes back to the second in which it was taken, if that still is on record. The call
        itself stays counted, unless it was never admitted.
        """
        for check in hold.checks:
            taken = self.rates[check.suffix].taken if check.suffix in self.rates else {}
            if check.kind == WINDOW and hold.second in taken:
                used = check.amount if check.measure == REQUESTS else bill.used(check.measure)
                if bill.requests == NEVER:
                    used = 0
                taken[hold.second] = max(taken[hold.second] + used - check.amount, 0)


class Found(NamedTuple):
    """How one check came out."""

    why: int
    spent: int
    held: int
    retry: int
    remaining: int
    reset: int
    window: tuple[int, int] = (0, 0)
    """The window the counter is in, its start and end; 0 and 0 where there is none."""
    other: bool = False
    """Whether the window the caller reckoned with is not in force."""

    @property
    def weight(self) -> tuple[int, int]:
        """What no time mends is told first, then what takes longest."""
        if self.why == TOO_LARGE:
            return 2, 0
        if self.why == SPENT and not self.retry:
            return 1, 0
        return 0, self.retry
