"""Fixtures of all tests that need providers or a router: simulators over real sockets and real router processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from router import store_client
from router.store import Store, open_store
from tests.parallel import (  # noqa: F401 - hooks of pytest
    TIMED,
    pytest_collection_modifyitems,
    pytest_xdist_make_scheduler,
)
from tests.simulators import router as routers
from tests.simulators import scripts
from tests.simulators.client import Client
from tests.simulators.router import RouterProcess
from tests.simulators.server import Simulator

# An example may take as long as a busy machine needs. Every run tries the same ones, so that what fails does so for a
# change; to look further: `pytest --hypothesis-profile explore`.
settings.register_profile("patient", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("patient")

Serve = Callable[..., RouterProcess]
"""serve(config, env=None, arguments=()): a running router; it is stopped when the scope of the fixture ends."""


@pytest.fixture(scope="module", autouse=True)
def patient_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """Commands of stores that are opened in this process may take as long as a busy machine needs; but where the
    bounds are what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.nodeid.startswith(TIMED):
            patch.setitem(store_client._CLIENT, "socket_timeout", 10.0)
        yield


@pytest.fixture(scope="session")
def cloud() -> Iterator[Simulator]:
    """A cloud provider that does what the model's name says (see tests.simulators.scripts)."""
    with scripts.provider() as simulator:
        yield simulator
        assert not simulator.failures, simulator.failures


@pytest.fixture(scope="session")
def local() -> Iterator[Simulator]:
    """The local Ollama that calls fall back to: always healthy."""
    with scripts.provider() as simulator:
        yield simulator
        assert not simulator.failures, simulator.failures


def _serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    with ExitStack() as running:

        def serve(
            config: Mapping[str, Any], env: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
        ) -> RouterProcess:
            return running.enter_context(RouterProcess(tmp_path_factory.mktemp("router"), config, env, arguments))

        yield serve


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts router processes for one test."""
    yield from _serving(tmp_path_factory)


@pytest.fixture(scope="module")
def module_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts router processes that the tests of a module share."""
    yield from _serving(tmp_path_factory)


@pytest.fixture(scope="session")
def router(tmp_path_factory: pytest.TempPathFactory, cloud: Simulator, local: Simulator) -> Iterator[RouterProcess]:
    """One router for all tests that need no config of their own: `cloud` and `local` with short deadlines."""
    for serve in _serving(tmp_path_factory):
        yield serve(routers.providers(cloud.url, local.url), routers.UNHURRIED)


@pytest.fixture(scope="session")
def client(router: RouterProcess) -> Client:
    return Client(router.port, router.key)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An embedded store in the test's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("router.store.CONNECT_LIMIT", 60.0)  # it has just been started
        opened = await open_store("embedded", tmp_path)
    yield opened
    await opened.close()


_numbers = count(1)


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """A model name of its own for a script (`silent` becomes `silent@7`): no test meets another's open breaker."""
    return lambda script: f"{script}@{next(_numbers)}"
