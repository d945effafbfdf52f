"""One call after the other up to a limit, exactly at it and one more: what each is told, in both dialects and by the
official client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import openai
import pytest

from tests.money.bank import COST, Account, Bank
from tests.simulators.client import CLIENTS, OPENAI, ClientDialect, Reply

FIT = 3
MORE: Mapping[str, Any] = {"max_tokens": 20}
MODEL = "cloud/answer"
MINUTE = 61
"""Seconds after the one in which a call was counted until it is not any more."""
Refused = tuple[str, bool]
"""The code, and whether `retry-after` is told."""

QUOTA: Refused = ("insufficient_quota", False)
RATE: Refused = ("rate_limit_exceeded", True)


def tokens(at: Bank) -> int:
    """So many that the last of FIT calls, of 10 tokens each, just has room."""
    return at.bound(OPENAI.body(MODEL, stream=False, **MORE)).tokens + (FIT - 1) * 10


def dollars(at: Bank) -> str:
    micro = at.bound(OPENAI.body(MODEL, stream=False, **MORE)).cost + (FIT - 1) * COST
    return f"{micro // 1_000_000}.{micro % 1_000_000:06d}usd"


# limits, the name of the one that refuses, the refusal, the headers of calls that were admitted
EDGES: Mapping[str, tuple[Callable[[Bank], dict[str, Any]], str, Refused, Callable[[Bank, int], dict[str, int]]]] = {
    "rpm": (
        lambda _: {"rpm": FIT}, "rpm", RATE,
        lambda _, made: {"limit-requests": FIT, "remaining-requests": FIT - made},
    ),
    "tpm": (
        lambda at: {"tpm": tokens(at)}, "tpm", RATE,
        lambda at, made: {"limit-tokens": tokens(at), "remaining-tokens": (FIT - made) * 10},
    ),
    "calls in total": (
        lambda _: {"max_requests": FIT}, "max_requests", QUOTA,
        lambda _, made: {"limit-requests": FIT, "remaining-requests": FIT - made},
    ),
    "calls a day": (
        lambda _: {"max_requests": {"day": FIT}}, "max_requests_day", QUOTA,
        lambda _, made: {"limit-requests": FIT, "remaining-requests": FIT - made},
    ),
    "tokens in total": (
        lambda at: {"max_tokens": tokens(at)}, "max_tokens", QUOTA,
        lambda at, made: {"limit-tokens": tokens(at), "remaining-tokens": (FIT - made) * 10},
    ),
    "tokens a week": (
        lambda at: {"max_tokens": {"week": tokens(at)}}, "max_tokens_week", QUOTA,
        lambda at, made: {"limit-tokens": tokens(at), "remaining-tokens": (FIT - made) * 10},
    ),
    "money a day": (lambda at: {"budget": {"day": dollars(at)}}, "budget_day", QUOTA, lambda _, __: {}),
    "money a month": (lambda at: {"budget": {"month": dollars(at)}}, "budget_month", QUOTA, lambda _, __: {}),
    "money in total": (lambda at: {"budget": {"total": dollars(at)}}, "budget_total", QUOTA, lambda _, __: {}),
    "a pattern's": (
        lambda _: {"max_requests": 100, "models": {"cloud/ans*": {"max_requests": FIT}, "cloud/x*": {"rpm": 0}}},
        "max_requests[cloud/ans*]", QUOTA,
        lambda _, made: {"limit-requests": FIT, "remaining-requests": FIT - made},
    ),
}  # fmt: skip


def ask(account: Account, dialect: ClientDialect, *, stream: bool) -> Reply:
    more = MORE if dialect is OPENAI else {"options": {"num_predict": MORE["max_tokens"]}}
    return account.client.ask(dialect, MODEL, stream=stream, **more)


def shown(reply: Reply) -> dict[str, int]:
    found = {
        name.removeprefix("x-ratelimit-"): value
        for name, value in reply.headers.items()
        if name.startswith("x-ratelimit-")
    }
    for name in [name for name in found if name.startswith("reset-")]:
        assert re.fullmatch(r"\d+ms|(\d+h)?(\d+m)?\d+s", found.pop(name)), reply
    return {name: int(value) for name, value in found.items()}


@pytest.mark.parametrize("of_team", [False, True], ids=["key", "team"])
@pytest.mark.parametrize("name", EDGES)
def test_up_to_the_limit_and_one_more(pair: Bank, name: str, of_team: bool) -> None:
    make, limit, (code, retry), headers = EDGES[name]
    for dialect in CLIENTS:
        limits = make(pair)
        team = f"edges {name} {of_team} {dialect.name}"
        pair.team(team, limits=limits if of_team else {})
        account = pair.key(team, limits={} if of_team else limits)
        first = [time.time()]
        for made in range(1, FIT + 1):
            reply = ask(account, dialect, stream=bool(made % 2))
            first.append(time.time())
            assert reply.status == 200, (dialect.name, made, reply)
            assert shown(reply) == headers(pair, made)
            pair.at_rest(account.team)
        before = pair.usage(account.team)
        for stream in (False, True):
            asked = time.time()
            reply = ask(account, dialect, stream=stream)
            answered = time.time()
            assert reply.status == 429, reply
            message = dialect.error_of(reply)
            assert f"The limit {'team.' if of_team else ''}{limit} of " in message
            if dialect is OPENAI:
                assert reply.json["error"]["code"] == code
            assert reply.headers.get("x-should-retry") == (None if retry else "false")
            found = reply.headers.get("retry-after")
            if not retry:
                assert found is None
            else:
                assert found is not None
                earliest, latest = int(first[0]) + MINUTE - answered, int(first[1]) + MINUTE - asked
                assert earliest <= int(found) < latest + 1, (earliest, found, latest)
            family = headers(pair, FIT)
            assert set(shown(reply)) == set(family), reply
        pair.at_rest(account.team)
        assert pair.usage(account.team) == before, "who is refused uses nothing"
        assert before["calls"] == FIT


def test_places(pair: Bank) -> None:
    """Concurrency: one more than there are places, then one after one has ended."""
    account = pair.key(limits={"concurrency": 2})
    body = OPENAI.body("cloud/endless-slow", stream=True)
    with account.client.open("POST", OPENAI.path, body) as first:
        assert first.status == 200
        with account.client.open("POST", OPENAI.path, body) as second:
            assert second.status == 200
            for dialect in CLIENTS:
                reply = ask(account, dialect, stream=False)
                assert (reply.status, reply.headers["retry-after"]) == (429, "1")
                assert "The limit concurrency of 2 calls at once is reached" in dialect.error_of(reply)
                assert "x-should-retry" not in reply.headers
    pair.at_rest(account.team)
    assert ask(account, OPENAI, stream=False).status == 200


def test_limits_of_nothing(pair: Bank) -> None:
    """0 is a limit, too."""
    for limits in ({"rpm": 0}, {"concurrency": 0}, {"max_requests": 0}, {"budget": {"day": "0usd"}}, {"tpm": 0}):
        account = pair.key(limits=limits)
        reply = ask(account, OPENAI, stream=False)
        assert (reply.status, reply.json["error"]["code"]) == (429, "insufficient_quota"), (limits, reply)
        assert reply.headers["x-should-retry"] == "false"


def test_too_large_for_the_limit(pair: Bank) -> None:
    """A call that would not fit into an empty budget is not told to come again; a smaller one is made."""
    account = pair.key(limits={"budget": {"total": "1usd"}})
    reply = account.client.ask(OPENAI, MODEL, stream=False, max_tokens=1000)
    assert (reply.status, reply.json["error"]["code"]) == (429, "insufficient_quota")
    assert "lower max_tokens" in reply.json["error"]["message"]
    assert ask(account, OPENAI, stream=False).status == 200


def test_a_pattern_counts_its_own_models_alone(pair: Bank) -> None:
    account = pair.key(limits={"models": {"cloud/answer@x": {"max_requests": 1}}})
    for model, status in (("cloud/answer@x", 200), ("cloud/answer@x", 429), ("cloud/answer@y", 200)):
        assert account.client.ask(OPENAI, model, stream=False).status == status, model
        pair.at_rest(account.team)


def test_as_the_official_client_sees_it(pair: Bank) -> None:
    quota, rate = pair.key(limits={"max_requests": 1}), pair.key(limits={"rpm": 1})

    def call(account: Account, *, stream: bool, retries: int) -> Any:
        client = openai.OpenAI(
            api_key=account.credential, base_url=f"{pair.router.url}/v1", max_retries=retries, timeout=30
        )
        with client:
            answer = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=stream, max_tokens=20
            )
            return list(answer) if stream else answer

    for account, code, retries in ((quota, "insufficient_quota", 2), (rate, "rate_limit_exceeded", 0)):
        assert call(account, stream=False, retries=0).choices[0].message.content
        pair.at_rest(account.team)
        pair.wait_lines(account.id, 1)
        for stream in (False, True):
            since = len(pair.router.err)
            with pytest.raises(openai.RateLimitError) as caught:
                call(account, stream=stream, retries=retries)
            assert (caught.value.code, caught.value.status_code) == (code, 429)
            assert caught.value.type == ("insufficient_quota" if account is quota else "rate_limit_error")
            assert (caught.value.response.headers.get("retry-after") is None) == (account is quota)
            (line,) = pair.wait_lines(account.id, 1, since)  # the client does not repeat what is refused for good
            assert (line["status"], line["outcome"]) == (429, code)
            assert line["limit"] == ("max_requests" if account is quota else "rpm")


@pytest.mark.slow
def test_retry_after_is_true(pair: Bank) -> None:
    """Who waits as long as told is answered; and one second earlier, nobody is."""
    account = pair.key(limits={"rpm": 2})
    assert ask(account, OPENAI, stream=False).status == 200
    time.sleep(3)
    assert ask(account, OPENAI, stream=False).status == 200
    told = int(ask(account, OPENAI, stream=False).headers["retry-after"])
    assert 50 <= told <= 58, told
    time.sleep(told - 2.5)
    assert ask(account, OPENAI, stream=False).status == 429
    time.sleep(2.5)
    assert ask(account, OPENAI, stream=False).status == 200
    assert ask(account, OPENAI, stream=False).status == 429
