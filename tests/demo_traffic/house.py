"""The running demo: simulated providers, a router process with two workers in front of them, its teams and keys."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.demo_traffic import scene
from tests.demo_traffic.vendors import Books, Provider
from tests.simulators.client import Client
from tests.simulators.router import RouterProcess

START_SECONDS: Final = 120.0


@dataclass
class House:
    """`credentials` and `ids` are by the key's name, `teams` gives ids by name."""

    router: RouterProcess
    books: Books
    providers: Mapping[str, Provider]
    config: Mapping[str, Any]
    demo: bool
    """The bundled model answers too."""
    admin: Client
    credentials: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    teams: dict[str, str] = field(default_factory=dict)

    def told(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Of the admin API. Raises RuntimeError with what it says."""
        reply = self.admin.request(method, path, body)
        if reply.status not in (200, 201):
            raise RuntimeError(f"{method} {path}: {reply.status} {reply.body.decode(errors='replace')[:300]}")
        return reply.json

    def ready(self) -> Mapping[str, Any]:
        """What `/readyz` says, as one of the workers sees it."""
        found: Mapping[str, Any] = self.admin.request("GET", "/readyz").json
        return found

    def workers(self) -> dict[int, int]:
        """Process ids by number."""
        return {int(number): told["pid"] for number, told in self.ready()["workers"].items()}

    def reload(self, config: Mapping[str, Any]) -> None:
        """Write the config file and let the router read it."""
        self.router.write_config(config)
        self.router.process.send_signal(signal.SIGHUP)

    @contextmanager
    def store_frozen(self) -> Iterator[None]:
        """The store takes no questions, as on a machine that stands still for a moment."""
        record = json.loads((self.router.directory / "data" / "store" / "server.json").read_text())
        os.kill(record["pid"], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(record["pid"], signal.SIGCONT)

    def lines(self) -> list[dict[str, Any]]:
        """The request log so far."""
        found = (json.loads(line) for line in list(self.router.err) if line.startswith("{"))
        return [line for line in found if line.get("event") == "request"]


def until(true: Any, seconds: float, what: str) -> None:
    """Wait until `true()`. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


@contextmanager
def opened(directory: Path, *, workers: int = 2, port: int | None = None, demo: bool = True) -> Iterator[House]:
    """Start everything; it is ended with the block. `demo`: with the bundled model, where it is installed."""
    demo = demo and scene.demo_installed()
    books = Books()
    with ExitStack() as stack:
        providers = {name: stack.enter_context(Provider(name, books, models)) for name, models in scene.MODELS.items()}
        providers["gpu"].loaded = dict(scene.LOADED)
        urls = {name: provider.url for name, provider in providers.items()}
        config = scene.config(urls, directory, port=port, demo=demo)
        router = RouterProcess(directory, config, arguments=["--workers", str(workers)])
        if port is not None:
            router.port = port
            router.write_config(config)
        stack.enter_context(router)
        house = House(router, books, providers, config, demo, Client(router.port, router.admin_token, seconds=60))
        until(lambda: len(house.workers()) == workers if workers > 1 else True, START_SECONDS, "all workers serve")
        for team in scene.TEAMS:
            made = house.told("POST", "/admin/api/teams", {"name": team.name, **team.fields})
            house.teams[team.name] = made["id"]
        for key in scene.KEYS:
            made = house.told("POST", "/admin/api/keys", {"name": key.name, "team": key.team, **key.fields})
            house.credentials[key.name], house.ids[key.name] = made["key"], made["id"]
        if demo:
            until(lambda: _demo_ready(house), START_SECONDS, "the bundled model answers")
        yield house
        for provider in providers.values():
            if provider.failures:
                raise RuntimeError(f"a simulated provider failed: {provider.failures}")


def _demo_ready(house: House) -> bool:
    return all(state["state"] == "ready" for state in house.ready()["local_models"].values())
