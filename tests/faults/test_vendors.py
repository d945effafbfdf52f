"""The same faults from providers that speak other wires: Ollama's and Gemini's, translated or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulators.client import CLIENTS, OPENAI, Client, ClientDialect
from tests.simulators.dialects import SECRET
from tests.simulators.router import BUSTLING, HASTY, KEY_VARIABLE, PATIENT, UNHURRIED, RouterProcess, providers
from tests.simulators.scripts import ANSWER, PART
from tests.simulators.server import Simulator

pytestmark = pytest.mark.parametrize("vendor", ["ollama", "gemini"])
DIALECTS = pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)
MODES = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
Fresh = Callable[[str], str]


@pytest.fixture(scope="module")
def vendors(module_serve: Callable[..., RouterProcess], cloud: Simulator, local: Simulator) -> Client:
    key = f"${{{KEY_VARIABLE}}}"
    rows = {}
    for vendor, url in (("ollama", cloud.url), ("gemini", f"{cloud.url}/v1beta")):
        for pace, timeouts in (("", PATIENT), ("-hasty", HASTY), ("-bustling", BUSTLING)):
            row = {"vendor": vendor, "base_url": url, "api_key": key, "timeouts": dict(timeouts)}
            rows[vendor + pace] = row | ({"local": False} if vendor == "ollama" else {})
    router = module_serve(providers(cloud.url, local.url, **rows), UNHURRIED)
    return Client(router.port, router.key)


@DIALECTS
@MODES
def test_a_healthy_one(vendors: Client, vendor: str, dialect: ClientDialect, stream: bool, fresh: Fresh) -> None:
    scripts = ["answer", "interim"] + (["byte-by-byte"] if stream else ["trailers", "true-gzip"])
    for script in scripts:
        reply = vendors.ask(dialect, f"{vendor}/{fresh(script)}", stream=stream)
        assert reply.headers.get("x-switchyard-provider") == vendor, (script, reply)
        told = dialect.read(reply, stream=stream)
        assert told.complete, script
        assert told.text == ANSWER


BEFORE = {
    "500": ("unavailable", 502),
    "503": ("overloaded", 503),
    "429": ("rate_limited", 503),
    "401": ("auth", 502),
    "error-in-200": (None, 502),
    "role-then-garbage": ("broken", 502),
    "short-length": ("broken", 502),
    "html": ("broken", 502),
    "silent": ("timeout", 503),
    "headers-then-silence": ("timeout", 503),
}


@DIALECTS
@MODES
@pytest.mark.parametrize("script", BEFORE)
def test_before_content(
    vendors: Client, cloud: Simulator, vendor: str, dialect: ClientDialect, stream: bool, script: str, fresh: Fresh
) -> None:
    reason, status = BEFORE[script]
    provider = f"{vendor}-hasty" if reason == "timeout" else vendor
    model = fresh(script)
    reply = vendors.ask(dialect, f"{provider}/{model}", stream=stream)
    assert reply.status == 200, reply
    assert reply.headers["x-switchyard-provider"] == "local"
    assert reason in (None, reply.headers["x-switchyard-fallback"])
    assert dialect.read(reply, stream=stream).text == ANSWER
    assert len(cloud.asked(model)) == 1
    if stream or reason != "timeout":
        headers = {"x-switchyard-no-fallback": "1"}
        told = vendors.ask(dialect, f"{provider}/{fresh(script)}", stream=stream, headers=headers)
        assert told.status == status, told
        assert dialect.error_of(told)
        assert SECRET not in told.body.decode()


@DIALECTS
@pytest.mark.parametrize(
    "script",
    ["content-then-garbage", "content-then-error", "content-then-reset", "content-then-cut", "content-then-end",
     "content-then-silence"],
)  # fmt: skip
def test_after_content(
    vendors: Client, cloud: Simulator, vendor: str, dialect: ClientDialect, script: str, fresh: Fresh
) -> None:
    model = fresh(script)
    provider = f"{vendor}-bustling" if script.endswith("silence") else vendor
    reply = vendors.listen(dialect, f"{provider}/{model}", cloud.until_told(model), PART)
    assert reply.headers["x-switchyard-provider"] == provider
    told = dialect.read(reply, stream=True)
    assert told.text == PART
    assert told.error
    assert "error" in told.events[-1]
    assert SECRET not in reply.body.decode()
    assert len(cloud.asked(model)) == 1


def test_the_key_is_in_a_header_never_in_the_path(vendors: Client, cloud: Simulator, vendor: str, fresh: Fresh) -> None:
    model = fresh("answer")
    vendors.ask(OPENAI, f"{vendor}/{model}", stream=True)
    (request,) = cloud.asked(model)
    assert SECRET not in request.path
    assert SECRET in str(request.headers)
