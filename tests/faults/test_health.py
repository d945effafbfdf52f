"""A deployment that fails takes a pause: how long, who decides, and what callers are told meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from router.health import OPEN_SECONDS
from tests.simulators.client import OPENAI, Client
from tests.simulators.dialects import SECRET
from tests.simulators.server import Simulator
from tests.simulators.waiting import until

Fresh = Callable[[str], str]


def ask(client: Client, model: str, *, fallback: bool = True) -> tuple[int, str | None, str | None]:
    headers = {} if fallback else {"x-switchyard-no-fallback": "1"}
    reply = client.ask(OPENAI, f"cloud/{model}", stream=False, headers=headers)
    assert SECRET not in reply.body.decode()
    return reply.status, reply.headers.get("x-switchyard-fallback"), reply.headers.get("retry-after")


def kept(cloud: Simulator, model: str, seconds: float) -> bool:
    """Whether the provider was not asked sooner than it had said, each time."""
    return all(later.at - earlier.at >= seconds for earlier, later in pairwise(cloud.asked(model)))


def test_retry_after_is_kept(client: Client, cloud: Simulator, fresh: Fresh) -> None:
    """No call before the time that the provider named, and one after it."""
    model = fresh("429-2s")
    for _ in range(6):
        assert ask(client, model)[:2] == (200, "rate_limited")
    status, _, after = ask(client, model, fallback=False)
    assert status == 503
    assert after in ("1", "2"), "the true time until the next try"
    assert kept(cloud, model, 2.0)
    asked = len(cloud.asked(model))

    def asked_again() -> bool:
        ask(client, model)
        return len(cloud.asked(model)) > asked

    until(asked_again)
    assert kept(cloud, model, 2.0)


def test_retry_after_in_milliseconds(client: Client, cloud: Simulator, fresh: Fresh) -> None:
    model = fresh("429-ms")
    for _ in range(3):
        assert ask(client, model)[:2] == (200, "rate_limited")
    assert kept(cloud, model, 1.5)


@pytest.mark.parametrize("script", ["429-day", "429-negative", "429-words"])
def test_a_strange_retry_after_is_bounded(client: Client, fresh: Fresh, script: str) -> None:
    model = fresh(script)
    for _ in range(2):
        assert ask(client, model)[:2] == (200, "rate_limited")
    status, _, after = ask(client, model, fallback=False)
    assert status == 503
    assert after is None or 0 < int(after) <= 60


def test_bare_429s_are_not_hammered(client: Client, cloud: Simulator, fresh: Fresh) -> None:
    """Twenty calls in a row: one or a few reach the provider, every caller is answered."""
    model = fresh("429")
    for _ in range(20):
        assert ask(client, model)[:2] == (200, "rate_limited")
    assert len(cloud.asked(model)) <= 12


def test_the_breaker_opens_and_a_caller_without_fallback_still_tries(
    client: Client, cloud: Simulator, fresh: Fresh
) -> None:
    """Five failures in a row: then others answer without asking. Who wants nobody else gets his try."""
    model = fresh("500")
    for _ in range(12):
        assert ask(client, model)[:2] == (200, "unavailable")
    asked = cloud.asked(model)
    assert len([call for call in asked if call.at < asked[4].at + OPEN_SECONDS]) == 5
    assert ask(client, model, fallback=False)[0] == 502
    assert len(cloud.asked(model)) == len(asked) + 1


def test_a_success_closes_it(client: Client, cloud: Simulator, fresh: Fresh) -> None:
    """Four failures, a success, four failures: the breaker counts failures in a row."""
    model = fresh("moody")
    for script in ["500"] * 4 + ["answer"] + ["500"] * 4 + ["answer"]:
        cloud.scripts["moody"] = cloud.scripts[script]
        assert ask(client, model)[1] == (None if script == "answer" else "unavailable")
    assert len(cloud.asked(model)) == 10


def test_other_models_of_the_provider_go_on(client: Client, fresh: Fresh) -> None:
    broken = fresh("500")
    for _ in range(6):
        ask(client, broken)
    assert ask(client, fresh("answer"))[:2] == (200, None)


def test_the_pages_say_so(client: Client, fresh: Fresh) -> None:
    model = fresh("429-day")
    ask(client, model)
    state = client.request("GET", "/readyz").json
    assert state["unhealthy"][f"cloud/{model}"] == "rate_limited"
    assert client.request("GET", "/readyz").status == 200, "a provider that fails does not make the router unready"
