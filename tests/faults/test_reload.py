"""SIGHUP: a good file is in force at once, a broken one changes nothing and is named."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.router.test_metrics import scrape, values
from tests.simulators.client import OPENAI, Client, Reply
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.scripts import PART
from tests.simulators.server import Simulator
from tests.simulators.waiting import until


@pytest.fixture(scope="module")
def reloading(module_serve: Callable[..., RouterProcess], cloud: Simulator, local: Simulator) -> RouterProcess:
    return module_serve(providers(cloud.url, local.url), UNHURRIED)


@pytest.fixture
def good(reloading: RouterProcess, cloud: Simulator, local: Simulator) -> dict[str, Any]:
    """The config at the start of each test, in force."""
    config = providers(cloud.url, local.url)
    reload(reloading, config, "is in force")
    return config


def reload(router: RouterProcess, config: dict[str, Any] | str, until: str) -> None:
    if isinstance(config, str):
        router.config_path.write_text(config)
    else:
        router.write_config(config)
    seen = len(router.err)
    router.process.send_signal(signal.SIGHUP)
    router.wait_line(until, router.err, since=seen)


def client_of(router: RouterProcess) -> Client:
    return Client(router.port, router.key)


def ready(router: RouterProcess) -> dict[str, Any]:
    reply = client_of(router).request("GET", "/readyz")
    assert reply.status == 200, "a refused reload does not make a serving router unready"
    found: dict[str, Any] = reply.json
    return found


def config_ok(router: RouterProcess) -> str:
    text = client_of(router).request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if "config_reload_success" in line and not line.startswith("#")]
    return line.rsplit(" ", 1)[1]


def test_a_new_model_name(reloading: RouterProcess, good: dict[str, Any]) -> None:
    client = client_of(reloading)
    assert client.ask(OPENAI, "brand-new", stream=False).status == 404
    reload(reloading, {**good, "models": {"brand-new": {"targets": ["cloud/answer"]}}}, "is in force")
    assert client.ask(OPENAI, "brand-new", stream=False).status == 200
    assert client.ask(OPENAI, "chat", stream=False).status == 404, "the old name is gone"
    assert config_ok(reloading) == "1.0"


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("providers: {cloud: [", "switchyard.yaml"),
        ("nonsense: 1\n", "nonsense"),
        ('providers: {a: {vendor: openai, api_key: "${NOT_SET_ANYWHERE}"}}\n', "NOT_SET_ANYWHERE"),
        ("models: {a: {targets: [nobody/x]}}\n", "nobody"),
        ("models: {a: {targets: [b]}, a: {targets: [c]}}\n", "a"),
    ],
    ids=["half a file", "unknown setting", "missing variable", "unknown target", "twice"],
)
def test_a_broken_file(reloading: RouterProcess, good: dict[str, Any], broken: str, named: str) -> None:
    client = client_of(reloading)
    reload(reloading, broken, "config not reloaded")
    assert client.ask(OPENAI, "chat", stream=False).status == 200, "the old config serves on"
    said = ready(reloading)["config"]
    assert said != "ok"
    assert named in said
    assert config_ok(reloading) == "0.0"
    reload(reloading, good, "is in force")
    assert ready(reloading)["config"] == "ok"


def test_the_file_is_gone(reloading: RouterProcess, good: dict[str, Any]) -> None:
    reloading.config_path.unlink()
    seen = len(reloading.err)
    reloading.process.send_signal(signal.SIGHUP)
    reloading.wait_line("config not reloaded", reloading.err, since=seen)
    assert client_of(reloading).ask(OPENAI, "chat", stream=False).status == 200
    assert ready(reloading)["config"] != "ok"


def test_a_stream_survives_the_removal_of_its_provider(
    reloading: RouterProcess, good: dict[str, Any], fresh: Callable[[str], str]
) -> None:
    client = client_of(reloading)
    body = OPENAI.body(f"cloud/{fresh('slow')}", stream=True)
    with client.open("POST", OPENAI.path, body) as answer:
        seen = answer.read1(65536)
        assert PART not in seen.decode()
        rest = {name: row for name, row in good["providers"].items() if name != "cloud"}
        reload(reloading, {**good, "providers": rest, "models": {}}, "is in force")
        told = OPENAI.read(Reply(200, {}, seen + answer.read(), 0.0), stream=True)
        assert told.complete
    assert client.ask(OPENAI, "cloud/answer", stream=False).status == 404


def test_a_call_keeps_its_name_in_the_metrics_over_a_reload(
    reloading: RouterProcess, good: dict[str, Any], fresh: Callable[[str], str]
) -> None:
    """As in the ledger: it was admitted under that name."""
    client = client_of(reloading)
    target = f"cloud/{fresh('slow')}"
    reload(reloading, {**good, "models": {"early-name": {"targets": [target]}}}, "is in force")
    with client.open("POST", OPENAI.path, OPENAI.body("early-name", stream=True)) as answer:
        answer.read1(65536)
        reload(reloading, {**good, "models": {}}, "is in force")
        answer.read()
    answered_by = {("provider", "cloud"), ("model", target.removeprefix("cloud/"))}
    wanted = {
        "switchyard_requests_total": {("route", "early-name")} | answered_by,
        "switchyard_tokens_total": {("type", "output")} | answered_by,
    }

    def missing() -> list[str]:
        found = values(scrape(client))
        return [
            family
            for family, labels in wanted.items()
            if not any(name == family and labels <= set(at) and number for (name, at), number in found.items())
        ]

    until(lambda: not missing(), what=missing)


def test_many_reloads_lose_no_call(reloading: RouterProcess, good: dict[str, Any]) -> None:
    client = client_of(reloading)
    for _ in range(30):
        reloading.process.send_signal(signal.SIGHUP)
        assert client.ask(OPENAI, "chat", stream=False).status == 200
