"""The four kinds of store, and a router of two workers on one of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from tests.simulators.client import Client, Reply
from tests.simulators.router import KEY_VARIABLE, ROOT, RouterProcess, journal
from tests.simulators.stores import Cluster, Sentinels, Server, until
from tests.stores.books import Books, at_rest
from tests.stores.load import Load
from tests.stores.paid import Paid, config

KINDS = ("embedded", "redis", "sentinel", "cluster")
PEPPER = "a-pepper-of-the-tests-of-stores-0123456789"


class Stand:
    """A store: its address for a config (None: embedded) and connections to all its primaries."""

    def __init__(self, box: Server | Sentinels | Cluster | None) -> None:
        self.box = box
        self.data_dir: Path | None = None
        """Of the router, for the embedded store."""

    @property
    def url(self) -> str | None:
        if self.box is None:
            return None
        return self.box.url() if isinstance(self.box, Server) else self.box.url

    def primaries(self) -> list[Redis]:
        box = self.box
        if isinstance(box, Server):
            return [box.client()]
        if isinstance(box, Sentinels):
            return [box.primary.client()]
        if isinstance(box, Cluster):
            # No client that follows redirections: each node is to tell what it has itself.
            owners = {box.owner(slot).port: box.owner(slot) for slot in (0, 5461, 10923)}
            return [server.client() for server in owners.values()]
        return [Redis(unix_socket_path=self.embedded["socket"], protocol=2)]

    @property
    def embedded(self) -> Mapping[str, Any]:
        """The embedded server's pid and socket."""
        assert self.data_dir is not None
        found: dict[str, Any] = json.loads((self.data_dir / "store" / "server.json").read_text())
        return found


@contextmanager
def stand(kind: str, directory: Path, **options: Any) -> Iterator[Stand]:
    boxes: dict[str, Any] = {
        "redis": lambda: Server(directory / "redis", {"appendonly": "yes", **options}),
        "sentinel": lambda: Sentinels(directory / "sentinel"),
        "cluster": lambda: Cluster(directory / "cluster", **options),
    }
    if kind == "embedded":
        yield Stand(None)
        return
    with boxes[kind]() as box:
        yield Stand(box)


@dataclass(slots=True)
class House:
    """A router of two workers, its store and the provider behind it."""

    stand: Stand
    router: RouterProcess
    paid: Paid
    env: Mapping[str, str]
    """Of the router, beyond what every router here has; commands have it too."""

    @property
    def admin(self) -> Client:
        return Client(self.router.port, self.router.admin_token)

    def client(self, key: str) -> Client:
        return Client(self.router.port, key, seconds=60)

    def load(self, key: str, **more: Any) -> Load:
        return Load(self.router.port, key, **more)

    def run(
        self, *words: str, given: str | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`switchyard WORDS` with the router's config, while it serves."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHYARD_")}
        environ |= {"SWITCHYARD_CONFIG": str(self.router.config_path), "SWITCHYARD_PEPPER": PEPPER}
        environ |= {KEY_VARIABLE: "unused", **self.env, **(env or {})}
        command = [sys.executable, "-m", "router.cli.main", *words]
        return subprocess.run(
            command, env=environ, cwd=ROOT, input=given, capture_output=True, text=True, timeout=120, check=False
        )

    def told(self, *words: str) -> Any:
        """What a verb prints as JSON."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def key(self, name: str, team: str = "default", **fields: Any) -> tuple[str, str]:
        """A new key's id and secret, by the admin API."""
        made: list[Reply] = []

        def ask() -> bool:
            made.append(self.admin.request("POST", "/admin/api/keys", {"name": name, "team": team, **fields}))
            return made[-1].status != 503  # a store that is slow for a moment, on a busy machine

        until(ask, "a key")
        assert made[-1].status == 201, made[-1].body
        return made[-1].json["id"], made[-1].json["key"]

    def books(self, seconds: float = 25.0) -> Books:
        """Once nothing is held and nothing waits in a journal."""
        books = at_rest(self.stand.primaries(), seconds)
        until(lambda: not self.journal(), "the journal is empty")
        return books

    def journal(self) -> list[str]:
        """The settlements that wait in journals."""
        return [line.decode() for line in journal(self.router.directory / "data")]

    def ready(self) -> Reply:
        return self.admin.request("GET", "/readyz")

    def until_ready(self, seconds: float = 60.0) -> None:
        until(lambda: self.ready().status == 200, "the router is ready", seconds)

    def metric(self, name: str) -> float | None:
        """A metric's value (the sum over its labels); None when there is none of the name."""
        text = self.client("").request("GET", "/metrics").body.decode()
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found)) if found else None

    def state_lines(self) -> list[str]:
        """What the log says of the store."""
        return [line for line in list(self.router.err) if "switchyard.store" in line]


@contextmanager
def house(
    kind: str, directory: Path, paid: Paid, *, workers: int = 2, env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[House]:
    """A house of its own; it ends with its router at rest. `options` are the store's."""
    with stand(kind, directory, **options) as place, housed(place, directory / "router", paid, workers, env) as made:
        yield made


@contextmanager
def housed(
    place: Stand, home: Path, paid: Paid, workers: int = 2, env: Mapping[str, str] | None = None, **more: Any
) -> Iterator[House]:
    home.mkdir(parents=True)
    place.data_dir = home / "data"
    told = config(paid.url, place.url, home / "prices.yaml", **more)
    router = RouterProcess(home, told, {"SWITCHYARD_PEPPER": PEPPER, **(env or {})}, ["--workers", str(workers)])
    with router:
        made = House(place, router, paid, env or {})
        made.until_ready()
        yield made
    assert not any("Traceback" in line for line in router.err), router.tail()
