"""A state machine that does to the ledger what a day of operation may do to it, and compares it with its model.

Several clients reserve, beat and settle; answers get lost; anything that was ever sent arrives again, or late, or only
after what came after it; clients die; records change under them; the clock jumps both ways; the server forgets its
functions, or falls back to an earlier state. After every step all that the server keeps is read and compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.ledger import books
from tests.ledger.books import Books, Seen
from tests.ledger.model import (
    BUDGET,
    CLOCK,
    DONE,
    NEVER,
    NOTHING,
    OK,
    PLACES,
    REFUSED,
    STALE,
    WINDOW,
    Account,
    Bill,
    Check,
)
from tests.ledger.world import (
    CALENDAR,
    COST,
    DAY,
    HOUR,
    JUMPS,
    KEYS,
    KINDS,
    LEASE,
    LIMITS,
    MODELS,
    MOMENTS,
    REQUESTS,
    SMALL_JUMPS,
    TOKENS,
    ZONES,
    Act,
    Call,
    Client,
    Limits,
)


class Ledger(RuleBasedStateMachine):
    """`books` is the server; it is set by the subclass that `against` makes."""

    books: Books
    steps = 0
    answers: ClassVar[Counter[str]] = Counter()
    """What was met so far, over all runs: for those who want to know what the runs cover."""

    @initialize(
        moment=st.sampled_from(sorted(MOMENTS)),
        zone=st.sampled_from(ZONES),
        team=LIMITS,
        key=LIMITS,
    )
    def begin(self, moment: str, zone: str, team: Limits, key: Limits) -> None:
        self.books.clear()
        self.zone = ZoneInfo(zone)
        self.now = int(MOMENTS[moment].timestamp() * 1000)
        self.model = Account()
        self.clients = [Client(), Client(skew=-1500), Client(skew=2 * HOUR)]
        self.calls: list[Call] = []
        self.sent: list[Act] = []
        self.final: dict[str, tuple[tuple[Check, ...], Bill]] = {}
        self.checks_of: dict[str, tuple[Check, ...]] = {}
        self.seen = books.seen([])
        self.etags = 0
        self.saved: tuple[Any, ...] | None = None
        for record, limits in (("team", team), ("key:k1", key), ("key:k2", {})):
            self._edit(record, limits)
        for client in self.clients[:2]:
            client.known |= self.model.records

    # --- what happens

    @rule(jump=st.sampled_from(JUMPS))
    def jump(self, jump: int) -> None:
        self.now += jump

    @rule(jump=st.sampled_from(SMALL_JUMPS))
    def wait(self, jump: int) -> None:
        self.now += jump

    @rule(zone=st.sampled_from(ZONES))
    def move(self, zone: str) -> None:
        """The team's days, weeks and months are those of another place from now on."""
        self.zone = ZoneInfo(zone)

    @rule(window=st.sampled_from(CALENDAR), before=st.sampled_from([-3000, -1, 0]), over=st.booleans())
    def edge(self, window: str, before: int, over: bool) -> None:
        """To the end of a window; perhaps over it with calls that run."""
        self.now = books.window(window, self.now // 1000, self.zone)[1] * 1000 + before
        if over:
            self.serve("k1", MODELS[0], 5, 5, "running", 2)
            self.now += 4000
            self.serve("k1", MODELS[0], 5, 5, "running", 1)

    @rule(
        client=st.integers(0, 2),
        key=st.sampled_from(KEYS),
        model=st.sampled_from(MODELS),
        tokens=st.integers(0, 100),
        cost=st.integers(0, 400),
        ends=st.sampled_from([0, 0, 0, 0, 0, 1, -1, HOUR]),
        fate=st.sampled_from(["told", "told", "told", "twice", "answer lost", "late"]),
        many=st.sampled_from([1, 1, 1, 2, 5]),
    )
    def reserve(
        self, client: int, key: str, model: str, tokens: int, cost: int, ends: int, fate: str, many: int
    ) -> None:
        for _ in range(many):
            call = self._call(client, key, model, tokens, cost, self.now + ends if ends else 0)
            if fate == "late":
                self.sent.append(self._reservation(call, self._records(call)))  # it will arrive with `again`
            else:
                self._reserve(call, fate)

    @rule(
        key=st.sampled_from(KEYS),
        model=st.sampled_from(MODELS),
        tokens=st.integers(1, 100),
        cost=st.integers(1, 400),
        used=st.sampled_from(["nothing", "as held", "as held", "less", "more"]),
        many=st.integers(1, 4),
        lasts=st.sampled_from([0, 0, 400, 1500, -1500]),
    )
    def serve(self, key: str, model: str, tokens: int, cost: int, used: str, many: int, lasts: int = 0) -> None:
        """Calls as they usually are: reserved, and settled."""
        for _ in range(many):
            call = self._call(0, key, model, tokens, cost)
            self._reserve(call, "told")
            self.now += lasts
            if call.state == "live" and used != "running":
                self._settle(call, used)

    @precondition(lambda self: any(call.state in ("asked", "live") for call in self.calls))
    @rule(
        which=st.integers(0, 99),
        used=st.sampled_from(["nothing", "as held", "less", "more", "much more", "a free call"]),
        twice=st.booleans(),
        held_back=st.sampled_from([False, False, False, True]),
        heard=st.booleans(),
    )
    def settle(self, which: int, used: str, twice: bool, held_back: bool, heard: bool) -> None:
        running = [call for call in self.calls if call.state in ("asked", "live")]
        call = running[which % len(running)]
        self._settle(call, used, twice, held_back)
        if heard and (last := self.clients[call.client].beat):
            self._do(last, keep=False)  # a heartbeat on the way when the call ended

    def _settle(self, call: Call, used: str, twice: bool = False, held_back: bool = False) -> None:
        call.state = "over"
        bill = self._bill(call, used)
        act = Act(
            books.settle(call.id, call.hour, call.checks, bill, call.key),
            lambda account, now: account.settle(now, call.id, call.hour, call.checks, bill, call.key),
            call.id,
            call.checks,
            bill,
        )
        if held_back:
            self.sent.append(act)  # in a worker's journal, until `again`
        else:
            self._do(act, twice)

    @rule(
        client=st.integers(0, 2), used=st.sampled_from(["", "nothing", "less", "as held", "more"]), twice=st.booleans()
    )
    def beat(self, client: int, used: str, twice: bool) -> None:
        live = [call for call in self.calls if call.client == client and call.state == "live"]
        records = ("team", *(f"key:{key}" for key in sorted({call.key for call in live})))
        told = [(call.id, call.hour, call.checks, self._bill(call, used) if used else None) for call in live]
        act = Act(
            books.beat(LEASE, records, told),
            lambda account, now: account.beat(now, LEASE, records, told),
        )
        self.clients[client].beat = act
        etags = self._do(act, twice)[1]
        for call in live:
            if etags[records.index(f"key:{call.key}")] is None:
                call.state = "lost"  # its key is gone

    @rule(
        client=st.sampled_from([0, 0, 0, 1, 2]),
        told=st.sampled_from(["less", "as held", "more", ""]),
        swept=st.booleans(),
        others=st.booleans(),
        then=st.sampled_from(["goes on", "less", "nothing", "more", "goes on", ""]),
    )
    def stand_still(self, client: int, told: str, swept: bool, others: bool, then: str) -> None:
        """A client is not heard of for longer than a lease; then its calls end, or go on."""
        if client == 0:
            self.serve("k1", MODELS[0], 10, 10, "running", 1)
        self.beat(client, told, False)
        self.now += LEASE
        if swept:
            self.sweep(100, False)
        if others:
            self.serve("k1", MODELS[0], 5, 5, "less", 1)
        if then == "goes on":
            self.beat(client, told, True)
        elif then:
            for call in self.calls:
                if call.client == client and call.state == "live":
                    self._settle(call, then)

    @rule(most=st.sampled_from([1, 3, 100]), twice=st.booleans())
    def sweep(self, most: int, twice: bool) -> None:
        self._do(Act(books.sweep(most), lambda account, now: account.sweep(now, most)), twice)

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 999), recent=st.booleans(), twice=st.booleans())
    def again(self, which: int, recent: bool, twice: bool) -> None:
        """Something arrives again, or late."""
        sent = self.sent[-6:] if recent else self.sent
        self._do(sent[which % len(sent)], twice, keep=False)

    @rule(record=st.sampled_from(["team", "key:k1", "key:k2"]), limits=LIMITS, twice=st.booleans())
    def edit(self, record: str, limits: Limits, twice: bool) -> None:
        self._edit(record, limits, twice)

    @rule(client=st.integers(0, 2), skew=st.sampled_from([0, -1500, 2 * HOUR, -DAY, 8 * DAY]))
    def crash(self, client: int, skew: int) -> None:
        """A client dies with all its calls; another takes its place."""
        self.clients[client] = Client(skew)
        for call in self.calls:
            if call.client == client and call.state in ("asked", "live"):
                call.state = "lost"

    @rule()
    def flush_functions(self) -> None:
        self.books.ask("FUNCTION", "FLUSH")

    @rule()
    def save(self) -> None:
        """A replica has got this far."""
        keys = self.books.client.keys(books.PREFIX + "*")
        state = {key: self.books.client.dump(key) for key in keys}
        self.saved = (state, self.model.copy(), dict(self.final))

    @precondition(lambda self: self.saved)
    @rule(does=st.sampled_from([False, False, False, True]))
    def fail_over(self, does: bool) -> None:
        """The replica takes over; what came after is lost, and may arrive once more."""
        if not does:
            return
        assert self.saved is not None
        state, model, final = self.saved
        self.books.clear()
        for key, value in state.items():
            self.books.client.restore(key, 0, value)
        self.model, self.final = model.copy(), dict(final)
        self.seen = self.books.seen()

    # --- how

    def _call(self, client: int, key: str, model: str, tokens: int, cost: int, ends: int = 0) -> Call:
        moment = self.now // 1000
        call = Call(
            f"call{len(self.calls)}",
            client,
            key,
            model,
            str(moment // 3600),
            datetime.fromtimestamp(moment, self.zone).date().isoformat(),
            tokens,
            cost,
            ends,
        )
        self.calls.append(call)
        return call

    def _records(self, call: Call) -> tuple[tuple[str, str], ...]:
        known = self.clients[call.client].known
        return tuple(
            (name, known.get(name, b"\n").partition(b"\n")[0].decode()) for name in (f"key:{call.key}", "team")
        )

    def _reservation(self, call: Call, records: tuple[tuple[str, str], ...], newest: Sequence[int] = ()) -> Act:
        client = self.clients[call.client]
        # A client that was told the server's time reckons with that.
        moment = self.now if newest else self.now + client.skew
        call.checks = self._checks(call, moment // 1000, newest)
        self.checks_of[call.id] = call.checks
        checks, row, ends = call.checks, f'{{"id":"{call.id}"}}', call.ends
        return Act(
            books.reserve(call.id, call.hour, checks, LEASE, records, ends, row, call.key, call.day),
            lambda account, now: account.reserve(
                now, call.id, call.hour, checks, LEASE, records, ends, row, call.key, call.day
            ),
            call.id,
            checks,
        )

    def _checks(self, call: Call, moment: int, newest: Sequence[int]) -> tuple[Check, ...]:
        amounts = {REQUESTS: 1, TOKENS: call.tokens, COST: call.cost, PLACES: 1}
        checks: list[Check] = []
        for record in (f"key:{call.key}", "team"):
            raw = self.clients[call.client].known.get(record, b"\n{}")
            scope = record.removeprefix("key:")
            for name, amount in json.loads(raw.partition(b"\n")[2]).items():
                plain, bracket, _ = name.partition("[")
                if bracket and not call.model.startswith("gpt-4"):
                    continue
                kind = KINDS[plain]
                suffix, start, stop = f"w:{scope}:{name}", 0, 0
                if kind.kind == BUDGET:
                    suffix = f"n:{scope}"
                    start, stop = books.window(kind.window, moment, self.zone)
                    if newest and newest[2 * len(checks) + 1] > moment:
                        start, stop = newest[2 * len(checks) : 2 * len(checks) + 2]
                checks.append(Check(kind.kind, suffix, name, amount, amounts[kind.measure], start, stop, kind.measure))
        return tuple(checks)

    def _reserve(self, call: Call, fate: str) -> None:
        """As the router does: with what the client knows, and again with what it is told."""
        client = self.clients[call.client]
        newest: Sequence[int] = ()
        for _ in range(4):
            records = self._records(call)
            act = self._reservation(call, records, newest)
            answer = self._do(act, fate == "twice")
            if fate == "answer lost":
                return
            if answer[0] == STALE:
                self.sent.remove(act)  # answered, and not sent again
                client.known |= {name: raw for (name, _), raw in zip(records, answer[2:4], strict=True) if raw}
                newest = ()
            elif answer[0] == CLOCK:
                self.sent.remove(act)
                newest = answer[2:]
            else:
                call.state = "live" if answer[0] == OK else "over"
                return
        raise AssertionError(f"no decision about {call}")

    def _bill(self, call: Call, used: str) -> Bill:
        share = {"nothing": 0, "less": 40, "as held": 100, "more": 115, "much more": 300, "a free call": 0}[used]
        tokens, cost = call.tokens * share // 100, call.cost * share // 100
        if used == "nothing":
            never = NEVER if call.tokens % 4 == 1 else 0
            return replace(NOTHING, requests=never, row='{"released":true}')
        return Bill(
            1,
            tokens,
            cost,
            f"{call.key}\t",
            tuple(
                (f"{call.model}\tkimi\t{name}", amount)
                for name, amount in (("calls", 1), ("in", tokens), ("cost", cost))
            ),
            call.hour,
            call.day,
            f'{{"id":"{call.id}"}}',
        )

    def _edit(self, record: str, limits: Limits, twice: bool = False) -> None:
        self.etags += 1
        before = self.model.records.get(record, b"").partition(b"\n")[0].decode()
        # Each etag begins with the one before: they must be compared whole.
        etag = (before or "1.") + "a"
        amounts = {name + pattern: KINDS[name].most * share // 100 for (name, pattern), share in limits.items()}
        raw = f"{etag}\n{json.dumps(amounts)}".encode()
        self._do(Act(books.put(record, before, raw), lambda account, now: account.put(record, before, raw)), twice)

    def _do(self, act: Act, twice: bool = False, keep: bool = True) -> Any:
        if keep:
            self.sent.append(act)
        answer = self._step(act)
        if twice:
            before = self.seen
            lapsed = any(hold.ends <= self.now for hold in self.model.holds.values())  # more to sweep
            self._step(act)
            if not lapsed:
                same = _but_refusals if act.command.function == "reserve" else replace
                assert same(self.seen) == same(before), f"{act.command.function} changes something when it is repeated"
        return answer

    # --- what must be so after every step

    def _step(self, act: Act) -> Any:
        type(self).steps += 1
        before, was = self.seen, self.model.copy()
        expected = act.apply(self.model, self.now)
        answer, dump = self.books.step(self.now, act.command)
        self.seen = after = books.seen(dump)
        told = f"{act.command.function} of {act.call or 'all'} at {self.now}"
        assert answer == (list(expected) if isinstance(expected, tuple) else expected), told
        self._compare(after, told)
        self._check_sums(after)
        self._check_growth(act, answer, before, after, was)
        if act.command.function == "settle" and answer[0] == 1:
            assert act.call not in self.final, "settled twice"
            self.final[act.call] = (act.checks, act.bill)
        self._check_bills(after)
        if act.command.function == "reserve":
            self.answers[f"reserve {answer[0]}" + (f" {answer[3]}" if answer[0] == REFUSED else "")] += 1
            lapsed = any(hold.ends <= self.now for hold in was.holds.values())
            if answer[0] != OK and not lapsed:
                assert _but_refusals(after) == _but_refusals(before), told
                for suffix in {*before.rates, *after.rates}:
                    assert self._counting(before, suffix) == self._counting(after, suffix), told
                if answer[0] not in (REFUSED, CLOCK):
                    assert after == before, told
        return answer

    def _counting(self, seen: Seen, suffix: str) -> int:
        """What counts in a rate window now."""
        return sum(amount for second, amount in seen.rates.get(suffix, {}).items() if second >= self.now // 1000 - 60)

    def _compare(self, seen: Seen, told: str) -> None:
        """The server keeps what the model keeps."""
        model = self.model
        assert dict(seen.counters) == model.counters(), told
        rates = {suffix: rate.taken for suffix, rate in model.rates.items() if rate.taken}
        assert seen.rates == rates, told
        assert dict(seen.holds) == {
            call: (hold.hour, hold.second, books.packed(hold.checks), books.packed_bill(hold.bill))
            for call, hold in model.holds.items()
        }, told
        assert seen.leases == {call: hold.ends for call, hold in model.holds.items()}, told
        assert seen.tombstones == {
            (ended.hour, call): b"" if ended.final else b"s" + books.packed_bill(ended.bill)
            for call, ended in model.ended.items()
        }, told
        assert seen.usage == model.usage(), told
        assert seen.sums == model.sums(), told
        for table, rows in seen.usage.items():
            for name in rows if table.startswith("ud:") else ():
                key, _, where = name.rpartition("\t")[0].partition("\t")
                assert where in seen.used_models[f"km:{key}:{table[3:]}"], told
        assert seen.used == model.used, told
        assert seen.records == model.records, told
        assert seen.rows == model.rows, told

    def _check_sums(self, seen: Seen) -> None:
        """What is kept agrees with itself: never below zero, and what is held is the sum of the holds."""
        held: Counter[tuple[str, str]] = Counter()
        for _, _, checks, _ in seen.holds.values():
            for check in map(Check._make, msgspec.msgpack.decode(checks)):
                if check.kind == BUDGET and seen.counters[check.counter][0] == check.start:
                    held[check.counter] += check.amount
        for counter, (_, spent, holding) in seen.counters.items():
            assert spent >= 0, counter
            assert holding == held[counter] >= 0, counter
        for suffix, (total, oldest, latest) in seen.rate_facts.items():
            taken = seen.rates[suffix]
            assert (total, oldest, latest) == (sum(taken.values()), min(taken), max(taken)), suffix
            assert min(taken.values()) >= 0, suffix
        ended = [call for _, call in seen.tombstones]
        assert len(ended) == len(set(ended)), "a call ended twice"
        assert not seen.holds.keys() & set(ended), "a call that ended holds something"
        assert seen.holds.keys() == seen.leases.keys()

    def _check_bills(self, seen: Seen) -> None:
        """What is spent, and what usage says, are the bills that were settled, and those of calls that were lost."""
        bills = dict(self.final)
        for (_, call), mark in seen.tombstones.items():
            if len(mark) > 1:
                facts = msgspec.msgpack.decode(mark[1:])
                facts[4] = tuple(zip(facts[4][::2], facts[4][1::2], strict=True))
                bills[call] = (self.checks_of[call], Bill(*facts))
        spent: Counter[tuple[str, str]] = Counter()
        usage: Counter[tuple[str, str]] = Counter()
        for checks, bill in bills.values():
            for check in checks:
                if check.kind == BUDGET and seen.counters.get(check.counter, (None,))[0] == check.start:
                    spent[check.counter] += bill.used(check.measure)
            for metric, amount in bill.metrics:
                usage[f"uh:{bill.hour}", bill.prefix + metric] += amount
                usage[f"ud:{bill.day}", bill.prefix + metric] += amount
        assert {counter: amount for counter, (_, amount, _) in seen.counters.items() if amount} == +spent
        assert {(table, name): amount for table, kept in seen.usage.items() for name, amount in kept.items()} == +usage

    def _check_growth(self, act: Act, answer: Any, before: Seen, after: Seen, was: Account) -> None:
        """spent + held passes a limit only by what calls used beyond their holds, or hold again after their lease."""
        excess: Counter[tuple[str, str]] = Counter()
        function = act.command.function
        if function == "settle":
            excess = self._excess(was, act.call, act.checks, act.bill)
        elif function in ("sweep", "reserve"):
            for call, hold in was.holds.items():
                if hold.ends <= self.now and hold.bill:
                    excess += self._excess(was, call, hold.checks, hold.bill)
        elif function == "beat":
            for call, hold in self.model.holds.items():
                if call not in was.holds:
                    excess += Counter({check.counter: check.amount for check in hold.checks if check.kind == BUDGET})
        limits = {check.counter: check.limit for check in act.checks if check.kind == BUDGET}
        for counter, (start, spent, held) in after.counters.items():
            old = before.counters.get(counter, (start, 0, 0))
            total = old[1] + old[2] if old[0] == start else 0
            if spent + held > total + excess[counter]:
                assert function == "reserve", counter
                assert answer[0] == OK, counter
                assert spent + held <= limits[counter], counter
        if function == "reserve" and answer[0] == OK and act.call not in was.holds:
            for check in act.checks:
                if check.kind == WINDOW:
                    assert self._counting(after, check.suffix) <= check.limit, check.suffix

    def _excess(self, was: Account, call: str, checks: Sequence[Check], bill: Bill) -> Counter[tuple[str, str]]:
        """By how much a bill exceeds what the call held, or was charged before."""
        hold, ended = was.holds.get(call), was.ended.get(call)
        charged = (ended and ended.bill) or NOTHING
        excess: Counter[tuple[str, str]] = Counter()
        for check in checks:
            known = check.amount if hold and check.measure != PLACES else charged.used(check.measure)
            excess[check.counter] += max(bill.used(check.measure) - known, 0)
        return excess


def _but_refusals(seen: Seen) -> Seen:
    """What a refused call may change is its being counted as refused, and what left the rate windows by itself."""
    return replace(seen, rates={}, rate_facts={}, sums={}, errors=0)


def against(account: Books) -> type[Ledger]:
    """The machine for a server."""
    return type("Ledger", (Ledger,), {"books": account, "steps": 0, "answers": Counter()})


__all__ = ["DONE", "Ledger", "against"]
