"""Two hundred calls at the same moment, through two workers, where exactly fifty fit: exactly fifty are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.money.bank import COST, Account, Answer, Bank, Gate, chat, crowd
from tests.router.test_serve import sockets_of, workers_of
from tests.simulators.client import OPENAI
from tests.simulators.scripts import answer
from tests.simulators.server import Simulator
from tests.simulators.waiting import until

CALLS, FIT = 200, 50
BODY: Mapping[str, Any] = OPENAI.body("chat", stream=False, max_tokens=20)
ROUNDS = [pytest.param(2, id="2 rounds"), pytest.param(20, id="20 rounds", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def gate(cloud: Simulator) -> Gate:
    made = Gate(answer)
    cloud.scripts["gate"] = made
    return made


def fifty_tokens(at: Bank) -> int:
    return FIT * at.bound(BODY).tokens


def fifty_prices(at: Bank) -> str:
    micro = FIT * at.bound(BODY).cost
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}usd"


# name: limits, which of them says no, and whether it is worded as one that passes by itself once nothing runs
LIMITS: Mapping[str, tuple[Callable[[Bank], dict[str, Any]], str, str]] = {
    "calls in total": (lambda _: {"max_requests": FIT}, "max_requests", "insufficient_quota"),
    "calls a day": (lambda _: {"max_requests": {"day": FIT}}, "max_requests_day", "insufficient_quota"),
    "rpm": (lambda _: {"rpm": FIT}, "rpm", "rate_limit_exceeded"),
    "tpm": (lambda at: {"tpm": fifty_tokens(at)}, "tpm", ""),
    "tokens a month": (lambda at: {"max_tokens": {"month": fifty_tokens(at)}}, "max_tokens_month", ""),
    "concurrency": (lambda _: {"concurrency": FIT}, "concurrency", ""),
    "money in total": (lambda at: {"budget": {"total": fifty_prices(at)}}, "budget_total", ""),
    "money a week": (lambda at: {"budget": {"week": fifty_prices(at)}}, "budget_week", ""),
    "a pattern's": (
        lambda _: {"models": {"cha*": {"max_requests": FIT}, "oth*": {"max_requests": 1}}, "rpm": 1000},
        "max_requests[cha*]",
        "insufficient_quota",
    ),
    "all at once": (
        lambda at: {
            "max_requests": FIT, "rpm": FIT, "tpm": fifty_tokens(at), "budget": {"day": fifty_prices(at)},
        },
        "",
        "insufficient_quota",
    ),
}  # fmt: skip
"""By what exactly fifty calls fit: the limits, the name that refusals give, and what one call more is told afterwards
(empty: it is made)."""


def rush(at: Bank, gate: Gate, account: Account, *, stream: bool) -> list[Answer]:
    """One round: the provider answers nobody before all calls are decided."""
    gate.close()
    data = chat(account.credential, {**BODY, "stream": stream})
    return crowd(
        at.router.port,
        [data] * CALLS,
        lambda answered: answered + gate.arrived == CALLS,
        gate.release,
    )


def assert_fifty(answers: list[Answer], limit: str) -> None:
    told = Counter((reply.status, "" if reply.status == 200 else reply.code) for reply in answers)
    assert told == {(200, ""): FIT, (429, "rate_limit_exceeded"): CALLS - FIT}, told
    for reply in answers:
        if reply.status == 429:
            assert limit in reply.body.decode(), reply
            assert 1 <= int(reply.headers["retry-after"]) <= 62, reply
            assert "x-should-retry" not in reply.headers, reply


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("name", LIMITS)
def test_exactly_fifty(pair: Bank, gate: Gate, name: str, rounds: int) -> None:
    make, limit, afterwards = LIMITS[name]
    limits = make(pair)
    for number in range(rounds):
        for stream in (False, True):
            account = pair.key(limits=limits)
            answers = rush(pair, gate, account, stream=stream)
            assert_fifty(answers, limit)
            pair.at_rest(account.team)
            assert pair.usage(account.team) == {
                "calls": FIT, "in": 7 * FIT, "out": 3 * FIT, "cost": COST * FIT,
            }, number  # fmt: skip
            more = account.client.request("POST", OPENAI.path, {**BODY, "stream": stream})
            if afterwards:
                assert (more.status, more.json["error"]["code"]) == (429, afterwards), more
                assert more.headers.get("x-should-retry") == ("false" if afterwards == "insufficient_quota" else None)
                assert ("retry-after" in more.headers) == (afterwards == "rate_limit_exceeded")
            else:
                assert more.status == 200, more


@pytest.mark.parametrize("rounds", ROUNDS)
def test_exactly_fifty_of_a_team(pair: Bank, gate: Gate, rounds: int) -> None:
    """Four keys of a team share its fifty."""
    for number in range(rounds):
        team = f"shared {rounds} {number}"
        pair.team(team, limits={"max_requests": FIT, "budget": {"total": fifty_prices(pair)}})
        accounts = [pair.key(team, limits={"max_requests": FIT - 1}) for _ in range(4)]
        gate.close()
        requests = [
            chat(accounts[place % 4].credential, {**BODY, "stream": bool(number % 2)}) for place in range(CALLS)
        ]
        answers = crowd(pair.router.port, requests, lambda answered: answered + gate.arrived == CALLS, gate.release)
        assert_fifty(answers, "")
        assert sum("team." in reply.body.decode() for reply in answers if reply.status == 429) > 0
        account = accounts[0]
        pair.at_rest(account.team)
        assert pair.counter(account, "max_requests", "team") == (FIT, 0)
        assert pair.counter(account, "budget_total", "team") == (FIT * COST, 0)
        assert sum(pair.counter(one, "max_requests")[0] for one in accounts) == FIT


def test_without_a_gate(pair: Bank, gate: Gate) -> None:
    """Calls that end while others come: fifty all the same, and who came too late is told so for good."""
    for stream in (False, True):
        account = pair.key(limits={"max_requests": FIT})
        gate.release()
        data = chat(account.credential, {**BODY, "stream": stream})
        answers = crowd(pair.router.port, [data] * CALLS)
        assert Counter(reply.status for reply in answers) == {200: FIT, 429: CALLS - FIT}
        for reply in answers:
            if reply.status == 429:
                quota = reply.code == "insufficient_quota"
                assert reply.headers.get("x-should-retry") == ("false" if quota else None), reply
                assert ("retry-after" in reply.headers) == (not quota), reply
        pair.at_rest(account.team)
        assert pair.counter(account, "max_requests") == (FIT, 0)


def test_both_workers_take_part(pair: Bank, gate: Gate) -> None:
    account = pair.key(limits={"concurrency": CALLS})
    data = chat(account.credential, BODY)
    workers = workers_of(pair.router)
    assert len(workers) == 2

    def shares() -> list[int]:
        """The connections that each worker took of a crowd; on a busy machine one may take all of a crowd's."""
        before = {pid: len(sockets_of(pid)) for pid in workers}
        taken: list[int] = []

        def released() -> None:
            taken.extend(len(sockets_of(pid)) - count for pid, count in before.items())
            gate.release()

        gate.close()
        answers = crowd(pair.router.port, [data] * CALLS, lambda answered: answered + gate.arrived == CALLS, released)
        assert {reply.status for reply in answers} == {200}
        pair.at_rest(account.team)
        return taken

    until(lambda: min(shares()) > CALLS // 10)
