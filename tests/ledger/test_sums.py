"""What pages read: the sums that the ledger keeps beside the usage, and the calls that went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.ledger import books
from tests.ledger.books import PREFIX
from tests.ledger.story import HOURS, LEASE, Story, bill, budget, rate


def test_pages_read_sums_and_the_day_s_keys_in_order(story: Story) -> None:
    story.reserve(0, call="a")
    story.settle(0, "a", used=bill(cost=5, tokens=70))
    story.reserve(0, call="b")
    story.settle(0, "b", used=bill(cost=2, tokens=30))
    checks = (rate(1, name="rpm"),)
    for call in "cdef":
        story.run(0, books.reserve(call, HOURS, checks, row=f'{{"id":"{call}"}}', key="k1", day="2026-11-18"))
    sums = story.account.seen().sums
    assert sums[f"sh:{HOURS}"] == {
        "gpt-4.1\topenai\tcalls": 2,
        "gpt-4.1\topenai\tin": 100,
        "gpt-4.1\topenai\tcost": 7,
        "\t\trefused": 3,
    }
    assert sums[f"rh:{HOURS}"] == {"k1": 3, "k1\trpm": 3}
    assert story.account.seen().used_models == {"km:k1:2026-11-18": {"gpt-4.1\topenai"}}
    assert sums["top:2026-11-18:cost"] == {"k1": 7}
    assert sums["top:2026-11-18:tokens"] == {"k1": 100}
    assert sums["top:2026-11-18:refused"] == {"k1": 3}


def test_errors_are_told_apart_and_a_key_s_first_refusal_with_them(story: Story) -> None:
    failing = replace(bill(row='{"id":"bad"}'), metrics=(("m\tp\tcalls", 1), ("m\tp\terrors", 1)))
    story.reserve(0, call="bad")
    story.settle(0, "bad", used=failing)
    story.reserve(0, call="good")
    story.settle(0, "good", used=replace(bill(), metrics=(("m\tp\tcalls", 1), ("m\tp\terrors", 0))))
    story.reserve(0, call="lost")
    story.run(LEASE + 1, books.sweep())
    checks = (rate(0, name='rpm["x*]'),)
    for call in ("r1", "r2"):
        story.run(LEASE, books.reserve(call, HOURS, checks, row=f'{{"id":"{call}"}}', key="k1", day="2026-11-18"))
    rows = [json.loads(fields[b"r"]) for _, fields in story.account.ask("XRANGE", PREFIX + "errors", "-", "+")]
    assert rows[:2] == [{"id": "bad"}, {"id": "lost", "lost": True}]
    assert rows[2:] == [{"id": "r1", "status": 429, "outcome": "limit", "limit": 'rpm["x*]'}]


@pytest.mark.parametrize(
    ("scope", "told"), [("k1", "rpm"), ("team", "team.rpm"), ("teamwork2026", "rpm")], ids=lambda text: text
)
def test_a_refusal_tells_whose_limit_it_was(story: Story, scope: str, told: str) -> None:
    for check in (rate(0)._replace(suffix=f"w:{scope}:rpm"), budget(0, 1, "rpm")._replace(suffix=f"n:{scope}")):
        story.reserve(0, check, row='{"id":"c"}', key="k1", day="2026-11-18")
    assert story.account.seen().sums[f"rh:{HOURS}"] == {"k1": 2, f"k1\t{told}": 2}


def test_only_the_newest_errors_are_kept(story: Story) -> None:
    failing = replace(bill(row='{"id":"bad"}'), metrics=(("m\tp\tcalls", 1), ("m\tp\terrors", 1)))
    for number in range(450):
        story.settle(0, f"c{number}", used=failing)
    length = story.account.ask("XLEN", PREFIX + "errors")
    assert 200 <= length <= 300, "a node of the stream holds a hundred"
    for number in range(450):
        facts: dict[str, Any] = {"row": '{"id":"c"}', "key": f"k{number}", "day": "2026-11-18"}
        story.reserve(0, rate(0), **facts)
    assert 200 <= story.account.ask("XLEN", PREFIX + "errors") <= 300


def test_models_beyond_a_number_are_summed_together(story: Story) -> None:
    many = 250
    for number in range(many):
        where = f"made-up-{number}\twide"
        used = tuple((f"{where}\t{name}", 1) for name in ("calls", "in", "out", "cost", "estimated"))
        story.reserve(0, call=f"c{number}")
        story.settle(0, f"c{number}", used=replace(bill(), metrics=used))
    seen = story.account.seen()
    hour = seen.sums[f"sh:{HOURS}"]
    assert 1000 <= len(hour) <= 1010
    assert sum(amount for name, amount in hour.items() if name.endswith("\tcalls")) == many
    assert hour["other\twide\tcalls"] == many - 200
    assert len(seen.used_models["km:k1:2026-11-18"]) == 50
    assert seen.sums["kr:k1:2026-11-18"] == {
        f"{HOURS}\t{name}": many - 50 for name in ("calls", "in", "out", "cost", "estimated")
    }
    # A model that has a name keeps it, whatever is new of it; one that has none gets none by anything else.
    for where in ("made-up-0\twide", "made-up-249\twide"):
        story.settle(0, f"again {where}", used=replace(bill(), metrics=((f"{where}\terrors", 1),)))
    hour = story.account.seen().sums[f"sh:{HOURS}"]
    assert {name: amount for name, amount in hour.items() if name.endswith("\terrors")} == {
        "made-up-0\twide\terrors": 1,
        "other\twide\terrors": 1,
    }
