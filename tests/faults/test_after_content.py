"""A provider that fails after its first content: the stream ends with an error event, and nobody else is asked."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.simulators.client import CLIENTS, Client, ClientDialect
from tests.simulators.dialects import SECRET
from tests.simulators.router import RouterProcess
from tests.simulators.scripts import PART
from tests.simulators.server import Simulator

FAULTS = {
    # script: (provider, outcome in the log)
    "content-then-garbage": ("cloud", "provider_broken"),
    "content-then-error": ("cloud", "provider_error"),
    "content-then-reset": ("cloud", "provider_broken"),
    "content-then-cut": ("cloud", "provider_broken"),
    "content-then-end": ("cloud", "provider_broken"),
    "content-then-close": ("cloud", "provider_broken"),
    "content-then-silence": ("bustling", "provider_timeout"),
    "content-then-comments": ("bustling", "provider_timeout"),
    "content-then-huge-line": ("cloud", "provider_broken"),
}


@pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("script", FAULTS)
def test_the_stream_ends_with_an_error(
    router: RouterProcess,
    client: Client,
    cloud: Simulator,
    local: Simulator,
    dialect: ClientDialect,
    script: str,
    fresh: Callable[[str], str],
) -> None:
    provider, outcome = FAULTS[script]
    model = fresh(script)
    before = len(local.calls)
    reply = client.listen(dialect, f"{provider}/{model}", cloud.until_told(model), PART)
    assert reply.status == 200
    assert reply.headers["x-switchyard-provider"] == provider
    told = dialect.read(reply, stream=True)
    assert told.text == PART, "what came before the fault is kept"
    assert told.error
    assert "error" in told.events[-1], "the error is the last event"
    assert sum("error" in event for event in told.events) == 1
    assert not told.complete
    assert b'"done":true' not in reply.body
    assert SECRET not in reply.body.decode()
    assert len(cloud.asked(model)) == 1, "a second attempt"
    assert len(local.calls) == before, "a fallback after content"
    if script not in ("content-then-error", "content-then-end"):
        assert cloud.asked(model)[0].left()
    if dialect.name == "ollama":
        return  # the log is the same for all; waiting for it takes a while
    log = router.log_of(f"{provider}/{model}")
    assert (log["status"], log["outcome"], log["fallback"]) == (200, outcome, None)
    assert len(log["attempts"]) == 1
    assert SECRET not in json.dumps(log)


@pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)
def test_a_pause_within_the_deadline_is_no_fault(
    client: Client, dialect: ClientDialect, fresh: Callable[[str], str]
) -> None:
    reply = client.ask(dialect, f"cloud/{fresh('slow')}", stream=True)
    assert dialect.read(reply, stream=True).complete


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_callers_own_deadline(client: Client, stream: bool, fresh: Callable[[str], str]) -> None:
    """`x-switchyard-timeout` bounds the whole call, attempts at others included, and is no fault of the provider's."""
    dialect = CLIENTS[0]
    silent = f"cloud/{fresh('silent')}"
    for _ in range(6):  # one more than opens a breaker
        reply = client.ask(dialect, silent, stream=stream, headers={"x-switchyard-timeout": "0.3"})
        assert reply.status == 504, reply
        assert reply.headers["x-switchyard-attempts"] == "1"
    assert 0.25 < reply.seconds < 10


def test_the_callers_own_deadline_in_mid_stream(client: Client, fresh: Callable[[str], str]) -> None:
    dialect = CLIENTS[0]
    late = client.ask(dialect, f"cloud/{fresh('endless-slow')}", stream=True, headers={"x-switchyard-timeout": "2"})
    told = dialect.read(late, stream=True)
    assert told.text.startswith(PART)
    assert told.error
    assert 1.9 < late.seconds < 10


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "1e9", "soon"])
def test_a_deadline_that_is_none(client: Client, value: str) -> None:
    reply = client.ask(CLIENTS[0], "cloud/answer", stream=False, headers={"x-switchyard-timeout": value})
    assert reply.status == 400
    assert "x-switchyard-timeout" in CLIENTS[0].error_of(reply)
