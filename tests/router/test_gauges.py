"""What `/metrics` tells of a running router besides calls: providers and why they are down, the queue, what Ollama has
loaded, the teams' limits, the store; at a real router with a store of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from providers.errors import RateLimited
from router.config import load_config
from router.health import Health
from router.otel import installed
from router.provider_state import down
from router.runtime import Runtime
from router.slots import Slot
from router.snapshot import compile_snapshot
from tests.router.test_metrics import scrape, value, values
from tests.router.test_store_away import NOBODY_ELSE, store_at
from tests.simulators import scripts
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import KEY_VARIABLE, UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator, free_port, refused_port
from tests.simulators.waiting import until

Serve = Callable[..., RouterProcess]
KEY = f"${{{KEY_VARIABLE}}}"


@dataclass
class House:
    router: RouterProcess
    client: Client
    store: subprocess.Popen[bytes]
    ollama: Simulator

    def gauge(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a gauge by its labels' values."""
        found = values(scrape(self.client)).items()
        return {tuple(value for _, value in labels): number for (sample, labels), number in found if sample == name}

    def admin(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.router.admin_token}"}
        reply = self.client.request(method, f"/admin/api/{path}", json.dumps(body).encode(), headers, key="")
        assert reply.status in (200, 201), reply.body
        made: dict[str, Any] = reply.json
        return made


@contextmanager
def opened(serve: Serve, cloud: Simulator, directory: Path, env: Mapping[str, str] | None = None) -> Iterator[House]:
    with ExitStack() as stack:
        port = free_port()
        store = stack.enter_context(store_at(port, directory))
        ollama = stack.enter_context(scripts.provider())
        more = {
            "off": {"vendor": "openai", "enabled": False},
            "keyless": {"vendor": "openai", "api_key": "${NO_SUCH_KEY:-}"},
            "gone": {"vendor": "ollama", "base_url": f"http://127.0.0.1:{refused_port()}"},
            "narrow": {
                "vendor": "openai-compatible", "base_url": f"{cloud.url}/v1", "api_key": KEY,
                "max_concurrency": 1, "queue": 2,
            },
            "partly": {"vendor": "openai-compatible", "base_url": f"{cloud.url}/v1", "api_key": KEY},
        }  # fmt: skip
        config = providers(cloud.url, ollama.url, **more)
        config["redis"] = {"url": f"redis://127.0.0.1:{port}/0"}
        router = serve(config, env)
        if not router.key:  # the store came late
            router.key = router.wait_line("  key          sk-", router.out).split()[1]
        if not router.admin_token:
            router.admin_token = router.wait_line("  admin token  ", router.out).split()[2]
        yield House(router, Client(router.port, router.key), store, ollama)


@pytest.fixture(scope="module")
def house(module_serve: Serve, cloud: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with opened(module_serve, cloud, tmp_path_factory.mktemp("store"), UNHURRIED) as found:
        yield found


def test_providers_that_take_no_calls_and_why(house: House) -> None:
    for _ in range(6):
        house.client.ask(OPENAI, "down/x", stream=False)
    down = {
        ("off", "disabled"): 1.0,
        ("keyless", "no_key"): 1.0,
        ("gone", "unreachable"): 1.0,
        ("down", "unreachable"): 1.0,
    }
    until(lambda: house.gauge("switchyard_provider_down") == down)
    up = house.gauge("switchyard_provider_up")
    assert up == {(name,): float(name not in {away for away, _ in down}) for (name,) in up}
    taking = {name for (name,), value in up.items() if value}
    assert taking == {"cloud", "hasty", "bustling", "local", "narrow", "partly"}
    info = house.gauge("switchyard_provider_info")
    assert {name for _, name, _ in info} == {name for (name,) in up}, "labels come in order of their names"
    assert {(name, local, vendor) for local, name, vendor in info} >= {
        ("gone", "yes", "ollama"), ("cloud", "no", "openai-compatible"),
    }  # fmt: skip
    opened = house.gauge("switchyard_circuit_open")
    assert opened.keys() == up.keys()
    assert {name: number for (name,), number in opened.items() if number} == {"down": 1}


def test_a_provider_that_leads_back_here_is_misconfigured(tmp_path: Path) -> None:
    row = "{vendor: openai-compatible, api_key: k, base_url: 'http://127.0.0.1:8080/v1'}"
    (tmp_path / "c.yaml").write_text(f"providers: {{loop: {row}}}")
    snapshot = compile_snapshot(load_config(tmp_path / "c.yaml", {}))
    assert down(snapshot, Health(time.monotonic, lambda: 0.5), {}) == {"loop": "misconfigured"}


def test_silence_makes_those_down_that_are_asked_for_their_models_and_are_near(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("""
providers:
  box: {vendor: ollama}
  fixed: {vendor: ollama, models: [a]}
  cloud: {vendor: openai, api_key: k, models: discover}
""")
    snapshot = compile_snapshot(load_config(tmp_path / "c.yaml", {}))
    silent = dict.fromkeys(snapshot.providers, "unreachable")
    assert down(snapshot, Health(time.monotonic, lambda: 0.5), silent) == {"box": "unreachable"}


async def test_a_local_server_is_neither_up_nor_down_until_it_was_asked(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{refused_port()}"
    (tmp_path / "c.yaml").write_text(f"""
providers:
  box: {{vendor: ollama, base_url: "{url}"}}
  cloud: {{vendor: openai, api_key: k, base_url: "{url}/v1", models: discover}}
""")
    runtime = Runtime(load_config(tmp_path / "c.yaml", {}))
    runtime.snapshot = compile_snapshot(runtime.config)
    assert runtime.gauges._up() == {("cloud",): 1.0}
    await runtime.discovery.look()
    assert runtime.gauges._up() == {("cloud",): 1.0, ("box",): 0.0}
    await runtime.http.close()


@pytest.mark.parametrize("serves", [True, False])
async def test_a_process_that_takes_no_calls_measures_nothing(tmp_path: Path, serves: bool) -> None:
    (tmp_path / "c.yaml").write_text(f"""
data_dir: {tmp_path}
providers: {{box: {{vendor: ollama, base_url: "http://127.0.0.1:{refused_port()}"}}}}
telemetry: {{otlp_endpoint: "http://127.0.0.1:{refused_port()}"}}
""")
    runtime = Runtime(load_config(tmp_path / "c.yaml", {}))
    try:
        await runtime.start({}, serves=serves)
        running = {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
        assert ("Gauges.run" in running, runtime.telemetry is not None) == (serves, serves and installed())
    finally:
        await runtime.stop()


async def test_whether_and_why_a_provider_is_down_are_told_of_one_moment(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("providers: {cloud: {vendor: openai, api_key: k}}")
    runtime = Runtime(load_config(tmp_path / "c.yaml", {}))
    runtime.snapshot = compile_snapshot(runtime.config)
    now = 0.0

    def tick() -> float:
        """A pause of one second is over at the second look."""
        nonlocal now
        now += 0.6
        return now

    runtime.health = Health(tick, lambda: 0.5)
    runtime.health.failure("cloud/m", RateLimited("too many", retry_after=1))
    assert runtime.gauges._up() == {("cloud",): 0.0}
    assert runtime.gauges._why() == {("cloud", "rate_limited"): 1.0}
    assert runtime.gauges._up() == {("cloud",): 1.0}
    assert runtime.gauges._why() == {}
    await runtime.http.close()


@pytest.mark.parametrize("number", [0, 1])
async def test_one_worker_asks_what_is_loaded(tmp_path: Path, number: int) -> None:
    """After a swap two that look at different times would tell of the old model beside the new one."""
    (tmp_path / "c.yaml").write_text(f"""
data_dir: {tmp_path}
providers: {{box: {{vendor: ollama, base_url: "http://127.0.0.1:{refused_port()}"}}}}
""")
    runtime = Runtime(load_config(tmp_path / "c.yaml", {}), slot=Slot(number, 2))
    try:
        await runtime.start({})
        await asyncio.sleep(0)
        running = {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
        assert ("Metrics.run" in running, "LoadedModels.run" in running) == (True, number == 0)
    finally:
        await runtime.stop()


def test_one_bad_model_does_not_make_a_provider_down(house: House) -> None:
    for _ in range(6):
        house.client.ask(OPENAI, "partly/500@gauges", stream=False)
    until(lambda: house.gauge("switchyard_provider_down").get(("partly", "unavailable")) == 1)
    assert house.client.ask(OPENAI, "partly/answer", stream=False).status == 200
    assert ("partly", "unavailable") not in house.gauge("switchyard_provider_down")
    assert house.gauge("switchyard_circuit_open")[("partly",)] == 1, "the one model"


def test_the_queue(house: House) -> None:
    done: list[int] = []

    def wait() -> None:
        done.append(house.client.ask(OPENAI, "narrow/answer", stream=False).status)

    waiting = threading.Thread(target=wait)
    with house.client.open("POST", OPENAI.path, OPENAI.body("narrow/endless-slow@queue", stream=True)) as first:
        first.read1(10)
        assert house.gauge("switchyard_queue_depth") == {("narrow",): 0.0}
        waiting.start()
        until(lambda: house.gauge("switchyard_queue_depth") == {("narrow",): 1.0})
        assert value(house.client, "switchyard_queue_wait_seconds_count", provider="narrow") == 1
    waiting.join(60)
    assert done == [200]
    assert house.gauge("switchyard_queue_depth") == {("narrow",): 0.0}
    assert value(house.client, "switchyard_queue_wait_seconds_count", provider="narrow") == 2
    assert value(house.client, "switchyard_queue_wait_seconds_sum", provider="narrow") > 0
    assert value(house.client, "switchyard_queue_wait_seconds_count") == 2, "others have no queue"


def test_what_ollama_has_loaded(house: House) -> None:
    # The other one is away.
    until(lambda: house.gauge("switchyard_ollama_loaded_models") == {("local",): 1.0})
    assert house.gauge("switchyard_ollama_vram_bytes") == {("llama3.2", "local"): 1719393189.0}, (
        "by the config's spelling"
    )


def test_the_limits_of_teams(house: House) -> None:
    limits = {"budget": {"day": "5usd"}, "tpm": 4000, "concurrency": 3}
    team = house.admin("POST", "teams", {"name": 'Blue "team" 蓝', "limits": limits})
    house.admin("POST", "teams", {"name": "without limits"})
    key = house.admin("POST", "keys", {"name": "spender", "team": team["id"]})["key"]
    house.client.request("POST", OPENAI.path, OPENAI.body("local/answer", stream=False), key=key)
    name = 'Blue "team" 蓝'
    with house.client.open(
        "POST", OPENAI.path, OPENAI.body("local/endless-slow@held", stream=True, max_tokens=10), key=key
    ) as running:
        running.read1(10)
        until(lambda: house.gauge("switchyard_team_limit_held").get(("concurrency", name, "calls")) == 1)
    held, spent = house.gauge("switchyard_team_limit_held"), house.gauge("switchyard_team_limit_spent")
    assert spent[("tpm", name, "tokens")] > 0
    assert house.gauge("switchyard_team_limit") == {
        ("budget_day", name, "usd"): 5.0,
        ("tpm", name, "tokens"): 4000.0,
        ("concurrency", name, "calls"): 3.0,
    }
    assert spent.keys() == held.keys()


def test_the_process(house: House) -> None:
    assert 20e6 < house.gauge("switchyard_resident_memory_bytes")[()] < 2e9
    before = house.gauge("switchyard_cpu_seconds_total")[()]
    house.client.ask(OPENAI, "chat", stream=False)
    assert house.gauge("switchyard_cpu_seconds_total")[()] > before > 0
    until(lambda: value(house.client, "switchyard_event_loop_lag_seconds_count") > 0)
    assert house.gauge("switchyard_usd_cny") == {(): 7.1}
    assert abs(house.gauge("switchyard_config_reload_timestamp_seconds")[()] - time.time()) < 300


def test_while_the_store_is_away_a_scrape_answers_without_what_is_in_it(
    serve: Serve, cloud: Simulator, tmp_path: Path
) -> None:
    with opened(serve, cloud, tmp_path) as house:
        house.admin("POST", "teams", {"name": "blue", "limits": {"tpm": 4000}})
        until(lambda: house.gauge("switchyard_redis_up") == {(): 1.0})
        until(lambda: house.gauge("switchyard_team_limit"))
        failed = value(house.client, "switchyard_redis_errors_total")
        os.kill(house.store.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            house.gauge("switchyard_team_limit")
            assert time.monotonic() - began < 30
            assert house.client.ask(OPENAI, "chat", stream=False, headers=NOBODY_ELSE).status == 503
            until(lambda: house.gauge("switchyard_redis_up") == {(): 0.0})
            assert value(house.client, "switchyard_redis_errors_total", kind="unanswered") > 0
            assert value(house.client, "switchyard_redis_errors_total") > failed
            until(lambda: house.gauge("switchyard_team_limit_spent") == {})
        finally:
            os.kill(house.store.pid, signal.SIGCONT)
        until(lambda: house.gauge("switchyard_team_limit"))
        until(lambda: house.gauge("switchyard_redis_up") == {(): 1.0})
