"""One router for all clients: three simulated providers, the demo model, a listener with keys and one without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients import upstream
from tests.clients.desk import Desk
from tests.simulators.dialects import SECRET
from tests.simulators.router import PATIENT, UNHURRIED, RouterProcess
from tests.simulators.server import Simulator, free_port


@pytest.fixture(scope="session")
def upstreams() -> Iterator[Simulator]:
    with upstream.provider() as simulator:
        yield simulator
        assert not simulator.failures, simulator.failures


@pytest.fixture(scope="session")
def clients_router(
    tmp_path_factory: pytest.TempPathFactory, upstreams: Simulator
) -> Iterator[tuple[RouterProcess, int]]:
    """The router and the port of its keyless listener."""
    timeouts = dict(PATIENT)
    url = upstreams.url
    config = {
        "providers": {
            "cloud": {"vendor": "openai", "base_url": f"{url}/v1", "api_key": SECRET, "timeouts": timeouts},
            "gemini": {"vendor": "gemini", "base_url": f"{url}/v1beta", "api_key": SECRET, "timeouts": timeouts},
            "local": {"vendor": "ollama", "base_url": url, "local": True, "timeouts": timeouts},
            "demo": {"vendor": "demo", "local": True, "models": ["gemma-3-270m"]},
        },
        "models": {
            "chat": {"targets": ["cloud/answer"]},
            "deepseek-r1:1.5b": {"targets": ["local/503"], "fallback": ["demo/gemma-3-270m"]},
        },
        "fallback": [],
    }
    router = RouterProcess(tmp_path_factory.mktemp("clients"), config, UNHURRIED)
    door = free_port()
    listen = [{"host": "127.0.0.1", "port": router.port}, {"host": "127.0.0.1", "port": door, "anonymous": "guest"}]
    router.write_config({**config, "server": {"listen": listen}})
    with router:
        yield router, door


@pytest.fixture(scope="session")
def desk(clients_router: tuple[RouterProcess, int]) -> Desk:
    router, door = clients_router
    return Desk(router.url, f"http://127.0.0.1:{door}", router.key, "here")
