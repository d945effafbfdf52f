"""How a refusal speaks of money: in the currency that the limit is written in."""

from __future__ import annotations

import pytest

from router.allowance import HELD, SPENT, TOO_LARGE, quantity, refusal
from router.checks import Amounts, Check, checks_of
from router.limits import Currency, Limit


def check(amount: int, currency: Currency, rate: float = 7.1) -> Check:
    limit = Limit(measure="cost", window="day", amount=amount, currency=currency)
    (made,) = checks_of([limit], "k", "", lambda pattern: True, rate)
    return made


@pytest.mark.parametrize(
    ("currency", "why", "words"),
    [
        ("cny", SPENT, ("The limit budget_day of ¥0.001 ", "¥0.00071 spent", "take ¥0.071.")),
        ("cny", TOO_LARGE, ("The limit budget_day of ¥0.001 ", "the ¥0.071 that")),
        ("cny", HELD, ("¥0.00071 spent", "¥0.000355 held")),
        ("usd", SPENT, ("The limit budget_day of $0.001 ", "$0.0001 spent", "take $0.01.")),
    ],
)
def test_money_is_told_in_the_limits_own_currency(currency: Currency, why: int, words: tuple[str, ...]) -> None:
    told = refusal(check(1000, currency), Amounts(cost=10_000), why, 100, 50, 0, 0.0).message
    for word in words:
        assert word in told, told
    assert ("$" in told) == (currency == "usd")


def test_a_limit_is_told_as_it_was_written_however_odd_the_rate() -> None:
    written = check(333_333, "cny", 7.13)
    assert quantity(written, written.amount) == "¥0.333333"
