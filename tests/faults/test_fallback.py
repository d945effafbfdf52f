"""A provider that fails before its first content: the local model answers, or the client is told why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.simulators import scripts
from tests.simulators.client import CLIENTS, Client, ClientDialect
from tests.simulators.dialects import SECRET
from tests.simulators.router import RouterProcess
from tests.simulators.scripts import ANSWER
from tests.simulators.server import Simulator

pytestmark = pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)
MODES = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
Fresh = Callable[[str], str]


class Fault(NamedTuple):
    reason: str
    """The word in x-switchyard-fallback."""
    status: int
    """What a client is told that does not want a fallback."""
    provider: str = "cloud"
    modes: tuple[bool, ...] = (True, False)


FAULTS = {
    "refused": Fault("unreachable", 502, "down"),
    "500": Fault("unavailable", 502),
    "502": Fault("unavailable", 502),
    "503": Fault("overloaded", 503),
    "504": Fault("timeout", 503),
    "529": Fault("overloaded", 503),
    "408": Fault("timeout", 503),
    "429": Fault("rate_limited", 503),
    "429-2s": Fault("rate_limited", 503),
    "401": Fault("auth", 502),
    "403": Fault("auth", 502),
    "402": Fault("provider_quota", 503),
    "404": Fault("model_not_found", 502),
    "silent": Fault("timeout", 503, "hasty"),
    "headers-then-silence": Fault("timeout", 503, "hasty"),
    "comments": Fault("timeout", 503, "hasty", (True,)),
    "error-in-200": Fault("unavailable", 502),
    "role-then-garbage": Fault("broken", 502),
    "short-length": Fault("broken", 502),
    "html": Fault("broken", 502),
    "whole-for-stream": Fault("unavailable", 502, modes=(True,)),
    "huge-line": Fault("broken", 502, modes=(True,)),
    "huge-headers": Fault("broken", 502),
    "endless-headers": Fault("broken", 502),
    "endless-body": Fault("broken", 502, modes=(False,)),
    "false-gzip": Fault("broken", 502),
    "bomb": Fault("broken", 502),
    "307": Fault("broken", 502),
}
CASES = [
    pytest.param(script, fault, stream, id=f"{script}-{'stream' if stream else 'whole'}")
    for script, fault in FAULTS.items()
    for stream in fault.modes
]


@pytest.fixture(scope="module", autouse=True)
def elsewhere(cloud: Simulator, local: Simulator) -> None:
    """Where redirects point: to the simulator that answers everything."""
    cloud.scripts["307"] = scripts.redirect(lambda: local.url)


def assert_clean(text: str, client: Client) -> None:
    """Nothing secret in what a client reads."""
    for secret in (SECRET, SECRET[3:], "org-simulated", client.key, "127.0.0.1"):
        assert secret not in text, text


@MODES
def test_a_healthy_provider_answers(client: Client, dialect: ClientDialect, stream: bool, fresh: Fresh) -> None:
    model = fresh("answer")
    reply = client.ask(dialect, f"cloud/{model}", stream=stream)
    assert reply.status == 200, reply
    told = dialect.read(reply, stream=stream)
    assert told.complete
    assert told.text == ANSWER
    assert reply.headers["x-switchyard-provider"] == "cloud"
    assert reply.headers["x-switchyard-model"] == model
    assert reply.headers["x-switchyard-attempts"] == "1"
    assert "x-switchyard-fallback" not in reply.headers


@pytest.mark.parametrize(("script", "fault", "stream"), CASES)
def test_the_local_model_answers(
    client: Client,
    cloud: Simulator,
    dialect: ClientDialect,
    script: str,
    fault: Fault,
    stream: bool,
    fresh: Fresh,
) -> None:
    model = fresh(script)
    reply = client.ask(dialect, f"{fault.provider}/{model}", stream=stream)
    assert reply.status == 200, reply
    told = dialect.read(reply, stream=stream)
    assert told.complete, reply
    assert told.text == ANSWER
    assert reply.headers["x-switchyard-fallback"] == fault.reason
    assert reply.headers["x-switchyard-provider"] == "local"
    assert reply.headers["x-switchyard-attempts"] == "2"
    assert_clean(json.dumps(dict(reply.headers)) + reply.body.decode(), client)
    if fault.provider != "down":
        # One attempt at it, and its connection is not left behind in an unknown state.
        (request,) = cloud.asked(model)
        assert script in ("307", *CLEAN_ENDS) or request.left()


CLEAN_ENDS = frozenset(
    {"500", "502", "503", "504", "529", "408", "429", "429-2s", "401", "403", "402", "404", "html"}
    | {"error-in-200", "role-then-garbage", "whole-for-stream", "false-gzip", "bomb"}
)
"""Faults after which the connection is fine: HTTP-wise they are complete answers."""


@pytest.mark.parametrize(("script", "fault", "stream"), CASES)
def test_without_fallback_the_providers_error_is_told(
    client: Client,
    local: Simulator,
    dialect: ClientDialect,
    script: str,
    fault: Fault,
    stream: bool,
    fresh: Fresh,
) -> None:
    before = len(local.calls)
    model = f"{fault.provider}/{fresh(script)}"
    reply = client.ask(dialect, model, stream=stream, headers={"x-switchyard-no-fallback": "1"})
    assert reply.status == fault.status, reply
    message = dialect.error_of(reply)
    assert message
    assert_clean(json.dumps(dict(reply.headers)) + reply.body.decode(), client)
    assert "x-switchyard-fallback" not in reply.headers
    assert len(local.calls) == before, "another host was asked"


def test_the_log_tells_of_each_attempt(
    router: RouterProcess, client: Client, dialect: ClientDialect, fresh: Fresh
) -> None:
    slow = ("bomb", "endless-body", "endless-headers", "huge-headers", "huge-line")
    asked = {
        script: f"{fault.provider}/{fresh(script)}"
        for script, fault in FAULTS.items()
        if fault.provider != "hasty" and script not in slow
    }
    for model in asked.values():
        client.ask(dialect, model, stream=False)
    for script, model in asked.items():
        log, reason = router.log_of(model), FAULTS[script].reason
        if False not in FAULTS[script].modes:
            continue
        assert (log["status"], log["outcome"], log["fallback"]) == (200, "ok", reason)
        assert [attempt["outcome"] for attempt in log["attempts"]] == [reason, "ok"]
        assert_clean(json.dumps({**log, "client": None}), client)


def test_the_providers_own_words_are_kept(client: Client, dialect: ClientDialect, fresh: Fresh) -> None:
    reply = client.ask(dialect, f"cloud/{fresh('500')}", stream=False, headers={"x-switchyard-no-fallback": "1"})
    assert "simulated trouble" in dialect.error_of(reply)


@pytest.mark.parametrize("script", ["400", "413", "422"])
@MODES
def test_a_refusal_of_the_request_is_final(
    client: Client, cloud: Simulator, dialect: ClientDialect, script: str, stream: bool, fresh: Fresh
) -> None:
    """The request itself is at fault: nobody else is asked, and the deployment's health does not suffer."""
    model = fresh(script)
    for _ in range(6):
        reply = client.ask(dialect, f"cloud/{model}", stream=stream)
        assert reply.status == 400, reply
        assert "simulated trouble" in dialect.error_of(reply)
        assert_clean(reply.body.decode(), client)
    assert len(cloud.asked(model)) == 6


def test_nobody_left(client: Client, module_serve: Callable[..., RouterProcess], dialect: ClientDialect) -> None:
    """Cloud and local model are down: 502 or 503, at once."""
    reply = client.ask(dialect, "down/a", stream=True, headers={"x-switchyard-no-fallback": "1"})
    assert reply.status == 502
    assert reply.seconds < 10


@MODES
def test_strange_but_sound_answers(client: Client, dialect: ClientDialect, stream: bool, fresh: Fresh) -> None:
    """Interim answers, unasked compression, trailers, talk after the end mark, a byte a chunk: all are understood."""
    names = ["interim", "after-done", "byte-by-byte"] if stream else ["interim", "true-gzip", "trailers"]
    for script in names:
        reply = client.ask(dialect, f"cloud/{fresh(script)}", stream=stream)
        assert reply.status == 200, reply
        told = dialect.read(reply, stream=stream)
        assert told.complete, script
        assert told.text == ANSWER
        assert reply.headers["x-switchyard-provider"] == "cloud", script
