"""Limits that all callers of a provider share: two workers together never ask it for more, and go on elsewhere."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from providers.wires.openai import OpenAIWire
from router.estimate import prompt_bound
from tests.conftest import Serve
from tests.money import bank as banks
from tests.money.bank import Bank, Gate, chat, crowd
from tests.simulators.client import CLIENTS, OPENAI
from tests.simulators.router import UNHURRIED
from tests.simulators.scripts import answer
from tests.simulators.server import Simulator
from tests.simulators.waiting import until

CALLS, FIT = 200, 50
BODY: Mapping[str, Any] = OPENAI.body("", stream=False, max_tokens=20)
PROMPT = prompt_bound(OpenAIWire().read_call("chat", {**BODY, "model": "any"}))

WAYS = ("alone", "next", "fallback")
TOKENS = {"alone": PROMPT + 20, "next": 2 * PROMPT + 20, "fallback": 2 * PROMPT + 20}
"""What a call holds: the prompts of all targets that may be asked, and the answer of one."""
LIMITS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "rpm": lambda _: {"limits": {"rpm": FIT}},
    "tpm": lambda way: {"limits": {"tpm": FIT * TOKENS[way]}},
    "concurrency": lambda _: {"limits": {"concurrency": FIT}},
    "model-rpm": lambda _: {"limits": {"rpm": 1000}, "model_limits": {"gate*": {"rpm": FIT}, "other*": {"rpm": 1}}},
    "model-concurrency": lambda _: {"model_limits": {"gate*": {"concurrency": FIT}}},
    "all": lambda way: {
        "limits": {"rpm": FIT, "tpm": FIT * TOKENS[way], "concurrency": FIT}, "model_limits": {"*": {"rpm": FIT}},
    },
}  # fmt: skip
ROUNDS = ("1", "2")


@pytest.fixture(scope="module")
def gate(cloud: Simulator) -> Gate:
    made = Gate(answer)
    cloud.scripts["gate"] = made
    return made


@pytest.fixture(scope="module")
def limited(
    module_serve: Serve, cloud: Simulator, local: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    """A provider and a model for each limit, way to go on, and round."""
    providers: dict[str, Any] = {"cloud": banks.cloud(cloud.url), "local": banks.local(local.url)}
    models: dict[str, Any] = {}
    for limit, make in LIMITS.items():
        for way in WAYS:
            for number in ROUNDS:
                name = f"{limit}-{way}-{number}"
                providers[name] = banks.cloud(cloud.url, **make(way))
                targets: list[Any] = [f"{name}/gate@{name}"]
                if way == "next":
                    targets.append({"to": f"cloud/next@{name}", "priority": 2})
                models[name] = {"targets": targets, "fallback": ["local/llama3.2"] if way == "fallback" else []}
    prices = banks.price_file(tmp_path_factory.mktemp("prices"), *(name for name in providers if name != "local"))
    router = module_serve(
        {"providers": providers, "models": models, "prices": {"file": prices}}, UNHURRIED, ["--workers", "2"]
    )
    with banks.bank(router) as opened:
        until(lambda: len(opened.admin.request("GET", "/readyz").json["workers"]) == 2)
        yield opened


@pytest.mark.parametrize("number", [ROUNDS[0], pytest.param(ROUNDS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limit", LIMITS)
def test_exactly_fifty_reach_the_provider(
    limited: Bank, gate: Gate, cloud: Simulator, limit: str, way: str, number: str
) -> None:
    name = f"{limit}-{way}-{number}"
    key = limited.key()
    gate.close()
    data = chat(key.credential, {**BODY, "model": name, "stream": (number == "2") == (way == "next")})
    answers = crowd(
        limited.router.port, [data] * CALLS, lambda answered: answered + gate.arrived == CALLS, gate.release
    )
    assert len(cloud.asked(f"gate@{name}")) == FIT
    told = Counter((reply.status, reply.headers.get("x-switchyard-provider")) for reply in answers)
    if way == "alone":
        assert told == {(200, name): FIT, (503, None): CALLS - FIT}
        for reply in answers:
            if reply.status == 503:
                assert 1 <= int(reply.headers["retry-after"]) <= 62, reply
    else:
        assert told == {(200, name): FIT, (200, "cloud" if way == "next" else "local"): CALLS - FIT}
    if way == "fallback":
        why = Counter(reply.headers.get("x-switchyard-fallback") for reply in answers)
        assert why == {None: FIT, "provider_limit": CALLS - FIT}
    account = f"p:{name}"
    limited.at_rest(account)
    limited.at_rest(key.team)
    if "rpm" in limit or limit == "all":
        pattern = {"rpm": "rpm", "model-rpm": "rpm[gate*]", "all": "rpm"}[limit]
        assert limited.rate(account, "all", pattern) == FIT
    # An account's limits say nothing of its health, and a key's books know nothing of them.
    unhealthy = limited.admin.request("GET", "/readyz").json["unhealthy"]
    assert not any(target.startswith(f"{name}/") for target in unhealthy), unhealthy
    used = limited.usage(key.team)
    assert (used["calls"], used.get("errors", 0)) == (CALLS, CALLS - FIT if way == "alone" else 0)
    # One more, in both dialects.
    for dialect in CLIENTS:
        more = key.client.ask(dialect, name, stream=False)
        if "concurrency" in limit:
            assert more.status == 200, more
        elif way == "alone":
            assert more.status == 503
            assert 1 <= int(more.headers["retry-after"]) <= 62
            assert dialect.error_of(more)
        else:
            assert more.status == 200


def test_a_refused_attempt_gives_back_what_it_took(limited: Bank, gate: Gate, cloud: Simulator) -> None:
    """Clients that leave, errors of the provider: no place is lost."""
    name = "concurrency-alone-1"
    key = limited.key()
    gate.close()
    with socket.create_connection(("127.0.0.1", limited.router.port), timeout=60) as link:
        link.sendall(chat(key.credential, {**BODY, "model": name, "stream": True}))
        until(lambda: gate.arrived == 1)
        assert limited.counted(f"p:{name}", "all", "concurrency") == (0, 1)
    limited.at_rest(f"p:{name}")
    cloud.scripts["gate"] = cloud.scripts["500"]
    try:
        for _ in range(3):
            assert key.client.request("POST", OPENAI.path, {**BODY, "model": name}).status >= 500
    finally:
        cloud.scripts["gate"] = gate
    limited.at_rest(f"p:{name}")
    assert limited.counted(f"p:{name}", "all", "concurrency") == (0, 0)
