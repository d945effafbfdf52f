"""The ledger's functions, rule by rule: the ones that are easy to get wrong. (All together: test_properties.py.)"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import OutOfMemoryError

from router.functions import Library
from tests.ledger import books
from tests.ledger.books import LUA, PREFIX, Books, Command
from tests.ledger.model import (
    CLOCK,
    DONE,
    EXPIRED,
    HELD,
    OK,
    RATE,
    REFUSED,
    SPENT,
    STALE,
    TOO_LARGE,
    Check,
)
from tests.ledger.story import (
    COST,
    DAY,
    HOUR,
    HOURS,
    LEASE,
    MIDNIGHT,
    NOW,
    TOKENS,
    Story,
    bill,
    budget,
    places,
    rate,
)

# --- rate windows


@pytest.mark.parametrize(
    ("check", "amounts"),
    [
        pytest.param(rate(3), [1, 1, 1], id="requests"),
        pytest.param(rate(100, 1, "tpm", TOKENS), [40, 50, 10], id="tokens"),
        pytest.param(rate(100, 1, "tpm", TOKENS), [100], id="tokens at once"),
    ],
)
def test_a_rate_lets_exactly_its_limit_pass(patient: Story, check: Check, amounts: Sequence[int]) -> None:
    for number, amount in enumerate(amounts):
        left = check.limit - sum(amounts[: number + 1])
        assert patient.reserve(number * 1000, check._replace(amount=amount))[2] == left
    before = patient.account.seen()
    answer = patient.reserve(len(amounts) * 1000, check._replace(amount=1))
    assert answer[:1] + answer[2:6] == [REFUSED, 0, RATE, check.limit, 0]
    assert patient.account.seen() == before


@pytest.mark.parametrize("amount", [1, 30, 31, 60, 70, 90, 100])
def test_after_the_time_told_a_call_passes_and_a_millisecond_before_it_does_not(patient: Story, amount: int) -> None:
    for after, taken in ((0, 30), (700, 1), (1200, 29), (20_000, 40)):
        assert patient.reserve(after, rate(100, taken, "tpm", TOKENS))[0] == OK
    answer = patient.reserve(30_000, rate(100, amount, "tpm", TOKENS))
    # The first second (31 taken) leaves the window 61 seconds after it began: nothing counts for less than 60 seconds.
    leaves = 61_000 - NOW % 1000
    expected = leaves if amount <= 31 else leaves + 1000 if amount <= 60 else leaves + 20_000
    assert answer[0] == REFUSED
    assert answer[6] == expected - 30_000
    assert patient.reserve(30_000 + answer[6] - 1, rate(100, amount, "tpm", TOKENS))[0] == REFUSED
    assert patient.reserve(30_000 + answer[6], rate(100, amount, "tpm", TOKENS))[0] == OK


def test_a_rate_is_whole_again_when_the_last_call_has_left_it(patient: Story) -> None:
    assert patient.reserve(0, rate(3))[2:] == [2, 60_750]
    assert patient.reserve(10_000, rate(3))[2:] == [1, 60_750]
    assert patient.reserve(10_000, rate(3), call="c2")[2:] == [1, 60_750], "the repetition is answered alike"
    assert patient.reserve(70_749, rate(3))[2:] == [1, 60_001]
    assert patient.reserve(70_749 + 60_000, rate(3))[2:] == [1, 60_001]
    assert patient.reserve(70_749 + 60_000 + 60_001, rate(3))[2] == 2


def test_what_a_call_did_not_use_goes_back_to_the_second_in_which_it_was_taken(patient: Story) -> None:
    tokens = rate(100, 80, "tpm", TOKENS)
    patient.reserve(0, tokens, call="a")
    patient.reserve(5000, rate(100, 20, "tpm", TOKENS), call="b")
    assert patient.settle(9000, "a", tokens, used=bill(tokens=30)) == [1, NOW + 9000]
    assert patient.account.seen().rates["w:k1:tpm"] == {NOW // 1000: 30, NOW // 1000 + 5: 20}
    assert patient.reserve(9000, rate(100, 51, "tpm", TOKENS))[0] == REFUSED
    assert patient.reserve(9000, rate(100, 50, "tpm", TOKENS))[0] == OK


def test_a_refund_never_takes_more_than_is_there_when_the_clock_has_stepped_back_and_forth(patient: Story) -> None:
    tokens = rate(100, 80, "tpm", TOKENS)
    patient.reserve(0, tokens, call="a")
    patient.reserve(70_000, rate(100, 10, "tpm", TOKENS), call="b")
    patient.reserve(0, rate(100, 10, "tpm", TOKENS), call="c")  # what b took counts from now on, in the second of a
    patient.settle(0, "a", tokens)
    assert patient.account.seen().rates["w:k1:tpm"] == {NOW // 1000: 0}


def test_a_clock_that_steps_back_frees_nothing(patient: Story) -> None:
    for _ in range(3):
        patient.reserve(0, rate(3))
    assert patient.reserve(-50_000, rate(3))[0] == REFUSED
    answer = patient.reserve(-50_000, rate(3))
    assert answer[6] == 60_750, "a minute from when the clock stepped back"
    assert patient.reserve(-50_000 + answer[6], rate(3))[0] == OK


# --- refusals


TODAY = {"start": MIDNIGHT - DAY, "stop": MIDNIGHT}
UNTIL_MIDNIGHT = MIDNIGHT * 1000 - NOW


@pytest.mark.parametrize(
    ("checks", "told", "why", "retry"),
    [
        pytest.param([budget(9, 10)], 0, TOO_LARGE, 0, id="too large for ever"),
        pytest.param([budget(10, 6)], 0, SPENT, 0, id="a total that is spent"),
        pytest.param([budget(14, 6)], 0, HELD, 1000, id="a total that running calls hold"),
        pytest.param([budget(10, 6, "budget_day", **TODAY)], 0, SPENT, UNTIL_MIDNIGHT, id="a day that is spent"),
        pytest.param([budget(14, 6, "budget_day", **TODAY)], 0, HELD, 1000, id="a day that running calls hold"),
        pytest.param([places(1)], 0, HELD, 1000, id="all places taken"),
        pytest.param([places(0)], 0, TOO_LARGE, 0, id="no places at all"),
        pytest.param([budget(0, 1)], 0, TOO_LARGE, 0, id="a budget of nothing"),
        pytest.param([rate(0)], 0, TOO_LARGE, 0, id="a rate of nothing"),
        pytest.param([rate(1)], 0, RATE, 60_750, id="a rate"),
        pytest.param([rate(9), budget(10, 6)], 1, SPENT, 0, id="only the second fails"),
        pytest.param([rate(1), places(1)], 0, RATE, 60_750, id="the longer wait, first"),
        pytest.param([places(1), rate(1)], 1, RATE, 60_750, id="the longer wait, last"),
        pytest.param([rate(1), budget(10, 6)], 1, SPENT, 0, id="what no time mends before any wait"),
        pytest.param([budget(10, 6), places(0)], 1, TOO_LARGE, 0, id="too large before spent"),
        pytest.param(
            [rate(1), budget(10, 6, "budget_day", **TODAY)], 1, SPENT, UNTIL_MIDNIGHT, id="tomorrow is after the minute"
        ),
        pytest.param([places(1), budget(14, 6)], 0, HELD, 1000, id="the first of equals"),
    ],
)
def test_what_is_told_when_limits_fail(story: Story, checks: Sequence[Check], told: int, why: int, retry: int) -> None:
    both = (budget(99, 5), budget(99, 5, "budget_day", **TODAY))
    story.reserve(0, *both, call="a")
    story.settle(0, "a", *both, used=bill(cost=5))
    story.reserve(0, *both, rate(9), places(9), call="b")
    before = story.account.seen()
    answer = story.reserve(0, *checks)
    assert answer[0] == REFUSED
    assert (answer[2], answer[3], answer[6]) == (told, why, retry)
    spent, held = {SPENT: (5, 5), HELD: (5, 5)}.get(why, (answer[4], answer[5]))
    if checks[told].kind == "b" and checks[told].measure == COST:
        assert (answer[4], answer[5]) == (spent, held)
    assert story.account.seen() == before


def test_near_midnight_the_rate_is_told_when_it_takes_longer_than_the_day(story: Story) -> None:
    day = budget(5, 5, "budget_day", **TODAY)
    before_midnight = UNTIL_MIDNIGHT - 2000
    story.reserve(before_midnight, day, rate(1), call="a")
    story.settle(before_midnight, "a", day, rate(1), used=bill(cost=5))
    answer = story.reserve(before_midnight, day, rate(1))
    assert (answer[2], answer[3]) == (1, RATE)
    assert answer[6] > 60_000


def test_what_is_left_and_when_it_is_whole_again(story: Story) -> None:
    checks = (budget(100, 30), budget(50, 30, "budget_day", **TODAY), rate(5), places(2))
    assert story.reserve(0, *checks, call="a") == [OK, NOW, 70, 0, 20, UNTIL_MIDNIGHT, 4, 60_750, 1, 0]
    assert story.reserve(0, *checks, call="a") == [OK, NOW, 70, 0, 20, UNTIL_MIDNIGHT, 4, 60_750, 1, 0]
    story.settle(1000, "a", *checks, used=bill(cost=45))
    small = tuple(check._replace(amount=min(check.amount, 5)) for check in checks)
    assert story.reserve(1000, *small)[2:6] == [50, 0, 0, UNTIL_MIDNIGHT - 1000], "what was used, not what was held"


# --- windows


@pytest.mark.parametrize(
    ("zone", "name", "moment", "length"),
    [
        pytest.param("UTC", "day", "2026-11-18T23:59:59", 24 * HOUR, id="a day"),
        pytest.param("Asia/Kolkata", "day", "2026-11-18T23:59:59", 24 * HOUR, id="a day that is half an hour off"),
        pytest.param("America/New_York", "day", "2026-11-01T12:00:00", 25 * HOUR, id="a day of 25 hours"),
        pytest.param("Europe/Berlin", "day", "2026-03-29T12:00:00", 23 * HOUR, id="a day of 23 hours"),
        pytest.param("UTC", "week", "2026-11-22T23:00:00", 7 * DAY, id="a week, on Sunday"),
        pytest.param("America/New_York", "week", "2026-11-01T20:00:00", 7 * DAY + HOUR, id="a week with the change"),
        pytest.param("UTC", "month", "2026-02-28T23:00:00", 28 * DAY, id="February"),
        pytest.param("Europe/Berlin", "month", "2026-10-31T23:00:00", 31 * DAY + HOUR, id="October with the change"),
        pytest.param("Asia/Shanghai", "month", "2026-12-31T23:59:59", 31 * DAY, id="the end of a year"),
    ],
)
def test_a_budget_is_full_until_the_last_millisecond_of_its_window(
    patient: Story, zone: str, name: str, moment: str, length: int
) -> None:
    there = ZoneInfo(zone)
    start, stop = books.window(name, datetime.fromisoformat(moment).replace(tzinfo=there).timestamp(), there)
    assert stop - start == length
    check = budget(10, 10, f"budget_{name}", start, stop)
    assert patient.reserve(start * 1000 - NOW, check, call="a")[0] == OK
    patient.settle(start * 1000 - NOW, "a", check, used=bill(cost=10))
    last = stop * 1000 - NOW - 1
    assert patient.reserve(last, check)[3:] == [SPENT, 10, 0, 1]
    # A caller whose clock is late is told the window that the counter is in, and reckons with the server's time.
    assert patient.reserve(last + 1, check) == [CLOCK, stop * 1000, start, stop]
    after = books.window(name, stop, there)
    assert after[0] == stop
    following = check._replace(start=after[0], stop=after[1])
    # A caller whose clock is early neither spends tomorrow's budget nor closes today's.
    assert patient.reserve(last, following) == [CLOCK, stop * 1000 - 1, start, stop]
    assert patient.reserve(last + 1, following)[0] == OK


def test_a_clock_that_steps_back_over_midnight_does_not_open_yesterday_again(patient: Story) -> None:
    yesterday = budget(10, 10, "budget_day", **TODAY)
    today = yesterday._replace(start=MIDNIGHT, stop=MIDNIGHT + DAY)
    patient.reserve(UNTIL_MIDNIGHT, today, call="a")
    assert patient.reserve(UNTIL_MIDNIGHT - 1, yesterday) == [CLOCK, MIDNIGHT * 1000 - 1, MIDNIGHT, MIDNIGHT + DAY]
    answer = patient.reserve(UNTIL_MIDNIGHT - 1, today)
    assert answer == [REFUSED, MIDNIGHT * 1000 - 1, 0, HELD, 0, 10, 1000], "the newest window stays in force"


def test_all_windows_are_told_when_one_is_another(patient: Story) -> None:
    today = budget(10, 1, "budget_day", **TODAY)
    month = budget(10, 1, "budget_month", MIDNIGHT - 18 * DAY, MIDNIGHT + 12 * DAY)
    patient.reserve(0, today, month)
    checks = (budget(10, 1), rate(9), today, places(3), month)
    answer = patient.reserve(UNTIL_MIDNIGHT, *checks)
    windows = (0, 0, 0, 0, MIDNIGHT - DAY, MIDNIGHT, 0, 0, MIDNIGHT - 18 * DAY, MIDNIGHT + 12 * DAY)
    assert answer == [CLOCK, MIDNIGHT * 1000, *windows]


def test_a_call_that_ends_after_midnight_belongs_to_the_day_it_began(patient: Story) -> None:
    yesterday = budget(10, 6, "budget_day", **TODAY)
    today = yesterday._replace(start=MIDNIGHT, stop=MIDNIGHT + DAY)
    patient.reserve(UNTIL_MIDNIGHT - 1, yesterday, budget(99, 6), call="a")
    assert patient.reserve(UNTIL_MIDNIGHT, today, budget(99, 6), call="b")[2] == 4, "nothing is held in the new day"
    patient.settle(UNTIL_MIDNIGHT, "a", yesterday, budget(99, 6), used=bill(cost=5))
    assert patient.counter("budget_day") == (0, 6)
    assert patient.counter() == (5, 6)


# --- numbers


def test_numbers_near_two_to_the_fifty_stay_exact(story: Story) -> None:
    large = 2**50 + 1
    check = budget(2**51, large, "budget_total")
    assert story.reserve(0, check, call="a")[2] == 2**51 - large
    story.settle(0, "a", check, used=bill(cost=large, tokens=large))
    assert story.counter() == (large, 0)
    answer = story.reserve(0, check._replace(amount=2**51 - large + 1))
    assert answer[3:6] == [SPENT, large, 0]
    assert story.reserve(0, check._replace(amount=2**51 - large))[2] == 0
    assert story.account.seen().usage[f"uh:{HOURS}"]["k1\tgpt-4.1\topenai\tcost"] == large


# --- calls that are repeated, late, or lost


def test_a_reservation_that_arrives_after_the_settlement_holds_nothing(story: Story) -> None:
    checks = (budget(10, 5), places(1), rate(1))
    assert story.settle(0, "a", *checks, used=bill(cost=4))[0] == 1
    before = story.account.seen()
    assert story.reserve(100, *checks, call="a") == [DONE, NOW + 100]
    assert story.account.seen() == before
    assert story.counter() == (4, 0)
    assert story.settle(200, "a", *checks, used=bill(cost=4))[0] == 0


def test_a_reservation_that_is_repeated_after_its_lease_does_not_come_back(story: Story) -> None:
    checks = (budget(10, 5), places(1))
    story.reserve(0, *checks, call="a")
    assert story.reserve(LEASE, *checks, call="a") == [DONE, NOW + LEASE]
    assert story.counter() == (0, 0)


def test_a_reservation_that_is_repeated_is_answered_as_before_whatever_has_changed(story: Story) -> None:
    story.run(0, books.put("key:k1", "", b"1.abc\n{}"))
    facts: dict[str, Any] = {"records": [("key:k1", "1.abc")], "ends": NOW + 5000, "call": "a"}
    assert story.reserve(0, budget(10, 5), **facts)[0] == OK
    story.run(0, books.put("key:k1", "1.abc", b"2.def\n{}"))
    assert story.reserve(6000, budget(10, 5), **facts)[0] == OK, "the same call, and admitted already"
    assert story.counter() == (0, 5)


def test_a_call_gives_back_what_it_holds_though_it_is_settled_by_other_limits(story: Story) -> None:
    story.reserve(0, budget(10, 5), places(1), call="a")
    story.reserve(0, budget(10, 5), call="b")
    other = (budget(100, 7, "budget_month"),)
    story.beat(0, "b", *other)
    story.settle(0, "a", *other, used=bill(cost=3))
    story.settle(0, "b", *other, used=bill(cost=2))
    assert story.counter() == (5, 0)
    assert story.counter("concurrency") == (0, 0)
    assert ("n:k1", "budget_month") not in story.account.seen().counters


def test_the_end_of_a_lease_charges_the_last_heartbeat_and_a_late_settlement_the_difference(story: Story) -> None:
    checks = (budget(10, 5), places(1))
    story.reserve(0, *checks, call="a")
    story.beat(1000, "a", *checks, used=bill(cost=2, tokens=20))
    assert story.run(1000 + LEASE - 1, books.sweep())[0] == 0
    assert story.run(1000 + LEASE, books.sweep())[0] == 1
    assert (story.counter(), story.counter("concurrency")) == ((2, 0), (0, 0))
    late = books.settle("a", HOURS, checks, bill(cost=4, tokens=30), "k1")
    assert story.run(50_000, late)[0] == 1
    assert story.run(50_001, late)[0] == 0
    assert story.counter() == (4, 0)
    usage = {name.rpartition("\t")[2]: amount for name, amount in story.account.seen().usage["ud:2026-11-18"].items()}
    assert usage == {"calls": 1, "in": 30, "cost": 4}


def test_a_call_that_outlived_its_lease_holds_again_with_its_next_heartbeat(story: Story) -> None:
    checks = (budget(10, 5), places(1))
    story.reserve(0, *checks, call="a")
    story.beat(0, "a", *checks, used=bill(cost=2))
    story.run(LEASE, books.sweep())
    story.beat(LEASE, "a", *checks, used=bill(cost=3))
    assert (story.counter(), story.counter("concurrency")) == ((0, 5), (0, 1))
    assert story.account.seen().usage == {}
    story.settle(LEASE, "a", *checks, used=bill(cost=4))
    assert (story.counter(), story.counter("concurrency")) == ((4, 0), (0, 0))
    before = story.account.seen()
    story.beat(LEASE, "a", *checks, used=bill(cost=3))
    assert story.account.seen() == before, "a heartbeat that comes after the end changes nothing"


def test_a_lost_counter_is_charged_and_never_below_zero(story: Story) -> None:
    checks = (budget(10, 5), places(1))
    story.reserve(0, *checks, call="a")
    story.account.client.delete(PREFIX + "n:k1")
    story.settle(0, "a", *checks, used=bill(cost=4))
    assert story.counter() == (4, 0)


def test_each_reservation_clears_twenty_leases_that_are_over(story: Story) -> None:
    for _ in range(45):
        story.reserve(0, places(45))
    assert story.reserve(LEASE - 1, places(45))[3] == HELD
    assert story.reserve(LEASE, places(25))[3] == HELD, "25 are left"
    assert story.reserve(LEASE, places(25))[2] == 19
    assert story.run(LEASE, books.sweep(3))[0] == 3
    assert story.run(LEASE, books.sweep())[0] == 2
    assert story.counter("concurrency") == (0, 1)


def test_a_lease_without_a_hold_is_forgotten(story: Story) -> None:
    story.reserve(0, places(1), call="a")
    story.account.client.zadd(PREFIX + "leases", {"ghost": NOW})
    assert story.run(1, books.sweep())[0] == 1
    assert set(story.account.seen().leases) == {"a"}
    assert story.account.seen().tombstones == {}


# --- records


def test_a_reservation_is_refused_when_a_record_is_another_or_gone(story: Story) -> None:
    key, team = b"3.abcdef\n{}", b"7.ghijkl\n{}"
    story.run(0, books.put("key:k1", "", key))
    story.run(0, books.put("team", "", team))

    def ask(first: str, second: str) -> Any:
        return story.reserve(0, budget(10, 5), records=[("key:k1", first), ("team", second)])

    assert ask("3.abcdef", "7.ghijkl")[0] == OK
    before = story.account.seen()
    for wrong in ("3.abcdeX", "3.abcde", "3.abcdefg", "3.abcdef\n", ""):
        assert ask(wrong, "7.ghijkl") == [STALE, NOW, key, team]
        assert ask("3.abcdef", wrong) == [STALE, NOW, key, team]
    story.account.client.delete(PREFIX + "key:k1")
    assert ask("3.abcdef", "7.ghijkl") == [STALE, NOW, None, team]
    assert ask("", "7.ghijkl")[0] == OK, "an empty etag stands for no record"
    assert story.account.seen().counters["n:k1", "budget_total"] == (0, 0, 10)
    assert before.counters["n:k1", "budget_total"] == (0, 0, 5)


def test_a_key_is_refused_from_the_millisecond_it_expires(story: Story) -> None:
    assert story.reserve(-1, ends=NOW)[0] == OK
    assert story.reserve(0, ends=NOW) == [EXPIRED, NOW]
    assert story.reserve(0, ends=0)[0] == OK


def test_a_heartbeat_tells_the_records_as_they_are(story: Story) -> None:
    story.run(0, books.put("key:k1", "", b"1.abc\n{}\n"))
    story.reserve(0, places(1), call="a")
    assert story.beat(0, "a", places(1)) == [NOW, [b"1.abc"]]
    story.run(0, books.put("key:k1", "1.abc", b"2.def\n{}"))
    assert story.beat(5, "a", places(1)) == [NOW + 5, [b"2.def"]]
    story.account.client.delete(PREFIX + "key:k1")
    assert story.beat(6, "a", places(1)) == [NOW + 6, [None]]


def test_put_writes_only_over_what_was_expected(story: Story) -> None:
    first, second, third = b"1.aaa\nx", b"2.bbb\ny", b"3.ccc\nz"
    assert story.run(0, books.put("key:k1", "1.aaa", first)) == 0, "there is none"
    assert story.run(0, books.put("key:k1", "", first, [("keys", "k1")])) == 1
    assert story.run(0, books.put("key:k1", "", second)) == 0, "there is one"
    assert story.run(0, books.put("key:k1", "", first, [("keys", "k1")])) == 1, "a repetition"
    assert story.run(0, books.put("key:k1", "1.aa", second)) == 0
    assert story.run(0, books.put("key:k1", "1.aaa", second)) == 1
    assert story.run(0, books.put("key:k1", "1.aaa", second)) == 1, "a repetition"
    assert story.run(0, books.put("key:k1", "1.aaa", third)) == 0, "somebody else was first"
    assert story.run(0, books.put("key:k1", "", first)) == 0, "a repetition that is too late"
    client = story.account.client
    assert client.get(PREFIX + "key:k1") == second
    assert story.run(0, books.put("key:k1", "*", third, [("keys", "k1"), ("others", "k9")])) == 1
    assert client.get(PREFIX + "key:k1") == third
    assert (client.smembers(PREFIX + "keys"), client.smembers(PREFIX + "others")) == ({b"k1"}, {b"k9"})


def test_a_refused_put_joins_no_set(story: Story) -> None:
    assert story.run(0, books.put("key:k1", "1.aaa", b"2.bbb\ny", [("keys", "k1")])) == 0
    assert story.account.client.exists(PREFIX + "keys") == 0


def test_the_audit_log_is_a_chain(story: Story) -> None:
    log = "sy:{audit}:log"

    def append(expected: str, entry: dict[str, str]) -> Any:
        return story.run(0, Command("audit", (log,), (expected, json.dumps(entry), entry["hash"])))

    first, second, other = ({"prev": prev, "hash": name} for prev, name in (("", "h1"), ("h1", "h2"), ("h1", "h3")))
    assert append("h0", first) == [0, b""]
    assert append("", first) == [1]
    assert append("", first) == [1], "a repetition"
    assert append("", {"prev": "", "hash": "h9"}) == [0, b"h1"]
    assert append("h1", second) == [1]
    assert append("h1", second) == [1]
    assert append("h1", other) == [0, b"h2"], "somebody else was first"
    assert append("", first) == [1], "a repetition, though others have written since"
    assert [json.loads(raw)["hash"] for raw in story.account.client.lrange(log, 0, -1)] == ["h1", "h2"]


@pytest.mark.parametrize("damage", ["not JSON", "[1]", '"text"', '{"hash": 7}', "{}"])
def test_a_damaged_audit_log_can_be_written_on(story: Story, damage: str) -> None:
    log = "sy:{audit}:log"
    story.account.client.rpush(log, damage)
    assert story.run(0, Command("audit", (log,), ("h1", '{"hash":"h2"}', "h2"))) == [0, b""]
    assert story.run(0, Command("audit", (log,), ("", '{"hash":"h2"}', "h2"))) == [1]


# --- what is kept, and where


def test_what_is_kept_expires_when_it_has_served(story: Story) -> None:
    checks = (budget(10, 5), rate(9))
    story.reserve(0, *checks, call="a", row='{"id":"a"}')
    story.settle(0, "a", *checks, used=bill(cost=5))
    client = story.account.client
    seconds = {key.decode().removeprefix(PREFIX): client.ttl(key) for key in story.account.ask("KEYS", PREFIX + "*")}
    assert 7 * DAY < seconds.pop(f"sh:{HOURS}") <= 8 * DAY
    for name in ("km:k1:2026-11-18", "top:2026-11-18:cost"):
        assert 2 * DAY < seconds.pop(name) <= 3 * DAY
    assert 24 * HOUR < seconds.pop(f"done:{HOURS}") <= 25 * HOUR
    assert 34 * DAY < seconds.pop(f"uh:{HOURS}") <= 35 * DAY
    assert 399 * DAY < seconds.pop("ud:2026-11-18") <= 400 * DAY
    assert 60 < seconds.pop("w:k1:rpm") <= 240
    assert seconds.pop("test-clock") == -1
    assert seconds == {"n:k1": -1, "used": -1, "recent": -1}
    assert client.hgetall(PREFIX + "used") == {b"k1": str(NOW // 60_000 * 60).encode()}
    rows = [fields[b"r"] for _, fields in story.account.ask("XRANGE", PREFIX + "recent", "-", "+")]
    assert rows == [b'{"id":"a"}', b'{"id":"c"}']


def test_all_keys_of_an_account_lie_in_one_slot(story: Story) -> None:
    checks = (budget(15, 5), rate(9), places(3))
    for call in "abc":
        story.reserve(0, *checks, call=call, row="{}")
    story.beat(0, "a", *checks, used=bill(cost=1))
    story.settle(0, "b", *checks, used=bill(cost=5))
    story.run(LEASE, books.sweep(1))
    keys: list[bytes] = [key for key in story.account.ask("KEYS", "*") if not key.startswith(PREFIX.encode() + b"test")]
    assert len(keys) == 13
    assert {key_slot(key) for key in keys} == {key_slot(books.TEAM.encode())}


@contextmanager
def full(client: redis.Redis) -> Iterator[None]:
    """The server has no memory left."""
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def test_a_full_store_takes_back_and_revokes_but_lends_nothing(story: Story) -> None:
    checks = (budget(10, 5), places(2))
    story.run(0, books.put("key:k1", "", b"1.aaa\nx"))
    story.reserve(0, *checks, call="a")
    story.reserve(0, *checks, call="b")
    story.account.at(NOW + 1000)
    run = story.account.run
    with full(story.account.client):
        with pytest.raises(OutOfMemoryError):
            run(books.reserve("c", HOURS, checks))
        assert run(books.beat(LEASE, [], [("a", HOURS, checks, bill(cost=1))])) == [NOW + 1000, []]
        assert run(books.put("key:k1", "1.aaa", b"2.bbb\ny")) == 1
        assert run(books.settle("a", HOURS, checks, bill(cost=3), "k1"))[0] == 1
        assert run(books.sweep())[0] == 0
        assert run(Command("audit", ("sy:{audit}:log",), ("", '{"hash":"h"}', "h"))) == [1]
    assert story.counter() == (3, 5)
    assert story.run(LEASE, books.sweep())[0] == 1


def test_the_clock_is_the_servers(client: redis.Redis, account: Books) -> None:
    library = Library.of(LUA.read_bytes())
    account.ask("FUNCTION", "LOAD", "REPLACE", library.code)
    early = time.time_ns() // 1_000_000
    answer = account.ask("FCALL", library.name("sweep"), 1, PREFIX + "holds", PREFIX, 1)
    assert early <= answer[1] <= time.time_ns() // 1_000_000
