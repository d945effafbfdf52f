"""`switchyard serve` as a process: starts that fail say why and leave nothing, several workers are one router."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.router.test_output import fill
from tests.simulators.client import OPENAI, Client, Reply
from tests.simulators.router import ROOT, UNHURRIED, RouterProcess, _clean_environment, providers
from tests.simulators.server import Simulator, free_port
from tests.simulators.waiting import until

Serve = Callable[..., RouterProcess]
START_SECONDS = 60.0
TOKEN = "adm-0123456789abcdef0123456789abcdef"


def those(matches: Callable[[int, list[str], bytes], bool]) -> set[int]:
    """Living processes by (pid, the fields of its stat after the name, its command line)."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
            if fields and fields[0] != "Z" and matches(int(entry.name), fields, (entry / "cmdline").read_bytes()):
                found.add(int(entry.name))
        except OSError:
            continue  # it ended while we looked
    return found


def belonging(leader: int, directory: Path) -> set[int]:
    """Processes of a router: of its session, or (the store has one of its own) with its directory in their command."""
    mark = os.fsencode(directory)
    return those(lambda _, fields, command: int(fields[3]) == leader or mark in command)


def store_of(router: RouterProcess) -> int:
    """The store's process."""
    (found,) = those(lambda _, fields, command: int(fields[1]) == router.process.pid and b"valkey-server" in command)
    return found


def workers_of(router: RouterProcess) -> set[int]:
    return those(lambda _, fields, command: int(fields[1]) == router.process.pid and b"router.cli.main" in command)


def failed(
    directory: Path, config: Mapping[str, Any] | str, env: Mapping[str, str] | None = None, *arguments: str
) -> tuple[int, str]:
    """The exit code of a start that fails, and all that it said."""
    path = directory / "switchyard.yaml"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    with subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", "serve", "--config", str(path), *arguments],
        cwd=ROOT,
        env={**_clean_environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            said = process.communicate(timeout=START_SECONDS)[0].decode()
        except subprocess.TimeoutExpired:
            process.terminate()
            raise AssertionError(f"it did not fail: {process.communicate(timeout=30)[0].decode()}") from None
    assert belonging(process.pid, directory) == set(), "a start that fails leaves no process"
    assert "Traceback" not in said, said
    return process.returncode, said


def config(directory: Path, port: int, **more: Any) -> dict[str, Any]:
    return {
        "server": {"listen": [{"host": "127.0.0.1", "port": port}]},
        "data_dir": str(directory / "data"),
        "providers": {},
        "fallback": [],
        **more,
    }


@contextmanager
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])


# --- starts that fail


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken(tmp_path: Path, workers: int) -> None:
    with taken() as port:
        code, said = failed(tmp_path, config(tmp_path, port), None, "--workers", str(workers))
    assert code == 1
    assert said.strip().count("\n") == 0, said
    assert f"127.0.0.1:{port}" in said
    assert "in use" in said
    assert "--port" in said


def test_a_config_with_problems_names_all_of_them(tmp_path: Path) -> None:
    text = "data_dirr: x\nproviders:\n  a: {vendor: opanai}\nmodels:\n  m: {targets: [nobody/x]}\n"
    code, said = failed(tmp_path, text)
    assert code == 1
    for line, word in ((1, "data_dirr"), (3, "opanai"), (5, "nobody")):
        assert f"switchyard.yaml:{line}:" in said
        assert word in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_data_directory_in_use(serve: Serve, tmp_path: Path, workers: int) -> None:
    running = serve({"providers": {}, "fallback": []}, UNHURRIED)
    taken_config = config(tmp_path, free_port(), data_dir=str(running.directory / "data"))
    code, said = failed(tmp_path, taken_config, None, "--workers", str(workers))
    assert code == 1
    assert str(running.process.pid) in said
    assert "data_dir" in said
    assert "in use" in said
    assert Client(running.port, running.key).request("GET", "/v1/models").status == 200


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, said = failed(tmp_path, config(tmp_path, free_port(), data_dir=str(tmp_path / "file" / "data")))
    assert code == 1
    assert "data_dir" in said


@pytest.mark.parametrize("where", ["environment", "file"])
def test_an_admin_token_that_is_too_short(tmp_path: Path, where: str) -> None:
    env = {"SWITCHYARD_ADMIN_TOKEN": "short-one"} if where == "environment" else {}
    given = config(tmp_path, free_port())
    if where == "file":
        given["server"]["admin_token"] = "short-one"
    code, said = failed(tmp_path, given, env)
    assert code == 1
    assert "token" in said
    assert "short-one" not in said


def test_a_store_url_that_is_none(tmp_path: Path) -> None:
    code, said = failed(tmp_path, config(tmp_path, free_port(), redis={"url": "http://user:pa55word@h/0"}))
    assert code == 1
    assert "redis.url" in said
    assert "pa55word" not in said


def test_no_store_server_to_be_found(tmp_path: Path) -> None:
    """The store's files cannot be opened by the server: what it said is repeated, and nothing is left."""
    (tmp_path / "data" / "store").mkdir(parents=True)
    (tmp_path / "data" / "store" / "appendonlydir").write_text("no directory")
    code, said = failed(tmp_path, config(tmp_path, free_port()))
    assert code == 1
    assert "store does not start" in said


# --- several workers


@pytest.fixture(scope="module")
def pair(module_serve: Serve, cloud: Simulator, local: Simulator) -> RouterProcess:
    return module_serve(
        providers(cloud.url, local.url),
        {**UNHURRIED, "SWITCHYARD_ADMIN_TOKEN": TOKEN},
        ["--workers", "2", "--no-log"],
    )


def accepted(link: socket.socket) -> str:
    """The router's end of a connection, as the kernel names it in the descriptors of the process that has it."""
    here, there = (f"0100007F:{port:04X}" for _, port in (link.getsockname(), link.getpeername()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1], fields[2]) == (there, here):
            return f"socket:[{fields[9]}]"
    raise AssertionError("the connection is gone")


def sockets_of(pid: int) -> set[str]:
    """The connections of a process, as the kernel names them."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


class Connections:
    """Connections to each of the workers: which one accepted is seen from its descriptors."""

    def __init__(self, router: RouterProcess) -> None:
        self.router = router
        self.of: dict[int, socket.socket] = {}

    def __enter__(self) -> Connections:
        limit = time.monotonic() + 60
        spare = []
        while self.of.keys() != (workers := workers_of(self.router)) or len(workers) < 2:
            assert time.monotonic() < limit, "one worker accepts nothing"
            link = socket.create_connection(("127.0.0.1", self.router.port), timeout=30)
            link.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert link.recv(65536).startswith(b"HTTP/1.1 200")
            name = accepted(link)
            owner = next((pid for pid in workers if name in sockets_of(pid)), None)
            if owner is not None and owner not in self.of:
                self.of[owner] = link
            else:
                spare.append(link)
                # Those that wait for the next one make it likelier that the other worker takes it.
        for link in spare:
            link.close()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.of.values():
            link.close()

    def statuses(self, method: str, path: str, key: str, body: bytes = b"") -> list[int]:
        """One request to each worker."""
        found = []
        for link in self.of.values():
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n"
            )
            link.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += link.recv(65536)
            top, _, rest = answer.partition(b"\r\n\r\n")
            size = int(
                next(line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1]
            )
            while len(rest) < size:
                rest += link.recv(65536)
            found.append(int(top.split()[1]))
        return found


def make_key(router: RouterProcess, name: str) -> tuple[str, str]:
    reply = Client(router.port, TOKEN).request("POST", "/admin/api/keys", {"name": name})
    assert reply.status in (200, 201), reply.body
    return reply.json["key"], reply.json["id"] if "id" in reply.json else reply.json["info"]["id"]


def test_a_key_made_while_they_run_works_in_every_worker(pair: RouterProcess) -> None:
    chat = json.dumps(OPENAI.body("chat", stream=False)).encode()
    with Connections(pair) as both:
        key, key_id = make_key(pair, "shared")
        assert both.statuses("POST", OPENAI.path, key, chat) == [200, 200]
        assert both.statuses("GET", "/v1/models", key) == [200, 200]
        revoked = Client(pair.port, TOKEN).request("DELETE", f"/admin/api/keys/{key_id}")
        assert revoked.status < 300, revoked.body
        assert both.statuses("POST", OPENAI.path, key, chat) == [401, 401]


def test_a_worker_that_is_killed_is_replaced_and_the_others_serve_on(pair: RouterProcess) -> None:
    before = workers_of(pair)
    assert len(before) == 2
    victim = min(before)
    seen = len(pair.err)
    os.kill(victim, signal.SIGKILL)
    pair.wait_line(f"worker {victim} ended", pair.err, since=seen)
    client = Client(pair.port, pair.key)
    for _ in range(20):
        assert client.ask(OPENAI, "chat", stream=False).status == 200
    until(lambda: len(workers_of(pair)) == 2)
    assert victim not in workers_of(pair)
    with Connections(pair) as both:
        assert both.statuses("GET", "/readyz", pair.key) == [200, 200]


def test_a_reload_reaches_every_worker(pair: RouterProcess, cloud: Simulator, local: Simulator) -> None:
    good = providers(cloud.url, local.url)
    with Connections(pair) as both:
        chat = json.dumps(OPENAI.body("only-now", stream=False)).encode()
        assert both.statuses("POST", OPENAI.path, pair.key, chat) == [404, 404]
        pair.write_config({**good, "models": {"only-now": {"targets": ["cloud/answer"]}}})
        pair.process.send_signal(signal.SIGHUP)
        until(lambda: both.statuses("POST", OPENAI.path, pair.key, chat) == [200, 200])
        pair.write_config(good)
        pair.process.send_signal(signal.SIGHUP)
        until(lambda: both.statuses("POST", OPENAI.path, pair.key, chat) == [404, 404])


def test_the_end_of_several_workers(serve: Serve, cloud: Simulator, local: Simulator) -> None:
    router = serve(providers(cloud.url, local.url), None, ["--workers", "2"])
    leader = router.process.pid
    assert belonging(leader, router.directory) == {leader, store_of(router), *workers_of(router)}
    assert router.stop(signal.SIGTERM) == 0
    assert belonging(leader, router.directory) == set()


@pytest.mark.parametrize("ready", [True, False], ids=["ready", "loading"])
def test_the_end_of_a_router_with_the_demo_model(serve: Serve, ready: bool) -> None:
    pytest.importorskip("xllamacpp")
    router = serve({"providers": {"demo": {"vendor": "demo", "local": True}}, "fallback": []})
    leader = router.process.pid
    client = Client(router.port, router.key)
    if ready:
        until(lambda: client.request("GET", "/readyz").json["local_models"]["demo"]["state"] == "ready")
        assert len(belonging(leader, router.directory)) == 3, "the router, the store, the model"
    assert router.stop(signal.SIGTERM) == 0
    assert belonging(leader, router.directory) == set()


def test_a_killed_supervisor_takes_everything_with_it(serve: Serve, cloud: Simulator, local: Simulator) -> None:
    router = serve(providers(cloud.url, local.url), None, ["--workers", "2"])
    leader, port = router.process.pid, router.port
    assert router.stop(signal.SIGKILL) == -9
    until(lambda: belonging(leader, router.directory) == set())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


# --- the embedded store


def test_calls_recover_after_the_store_was_killed_under_load(serve: Serve, cloud: Simulator, local: Simulator) -> None:
    router = serve(providers(cloud.url, local.url))
    statuses: list[tuple[float, int]] = []
    over = threading.Event()

    def load() -> None:
        client = Client(router.port, router.key)
        while not over.is_set():
            status = client.ask(OPENAI, "chat", stream=False).status
            statuses.append((time.monotonic(), status))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: [status for _, status in statuses].count(200) > 20)
        killed = time.monotonic()
        os.kill(store_of(router), signal.SIGKILL)
        until(lambda: settled(statuses, killed))
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
    assert {status for _, status in statuses} <= {200, 503}
    until(lambda: Client(router.port, router.key).request("GET", "/readyz").status == 200)


def settled(statuses: list[tuple[float, int]], since: float) -> bool:
    """A second after the kill at the earliest: the last thirty calls were all answered."""
    last = statuses[-30:]
    return last[0][0] > since + 1 and all(status == 200 for _, status in last)


# --- a terminal that goes away


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that is full, with a reader that stands still."""
    reader, writer = os.pipe()
    fill(writer)
    os.set_blocking(writer, True)
    yield writer
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("sink", ["closed", "full disk", "unread", "none"])
@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_reads_any_more_what_it_says(
    tmp_path: Path,
    cloud: Simulator,
    local: Simulator,
    fresh: Callable[[str], str],
    workers: int,
    sink: str,
    unread: int,
) -> None:
    """`switchyard serve | head`: it serves, refuses a bad reload, replaces workers, drains, and ends well."""
    server = {"limits": {"drain_seconds": 10}, "admin_token": TOKEN}  # a literal, so that there is something to warn of
    router = RouterProcess(tmp_path, {**providers(cloud.url, local.url), "server": server}, UNHURRIED)
    with (
        open("/dev/full", "wb") as full,
        subprocess.Popen(
            [
                *(("sh", "-c", 'exec "$@" 2>&-', "sh") if sink == "none" else ()),
                *router.command,
                "--workers",
                str(workers),
            ],
            cwd=ROOT,
            env=router._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr={"full disk": full.fileno(), "unread": unread}.get(sink, subprocess.PIPE),
            start_new_session=True,
        ) as process,
    ):
        try:
            router.process = process
            assert process.stdout is not None
            banner = ""
            patience = threading.Timer(START_SECONDS, process.kill)
            patience.start()
            for line in process.stdout:
                banner += line.decode()
                if "curl" in banner:
                    break
            patience.cancel()
            key = re.search(r"^  key +(sk-\S+)", banner, re.MULTILINE)
            assert key is not None, "it does not begin to serve"
            process.stdout.close()
            if process.stderr is not None:
                process.stderr.close()
            if sink == "none":
                assert os.readlink(f"/proc/{process.pid}/fd/2") == os.devnull, "no socket has its number"
            client = Client(router.port, key[1])
            until(lambda: client.request("GET", "/healthz").status == 200)
            for _ in range(5):
                assert client.ask(OPENAI, "chat", stream=False).status == 200
            if workers == 1:
                wanted = r"switchyard_log_lines_dropped_total " + (
                    "0.0" if sink in ("unread", "none") else r"([5-9]|\d\d+)\.0"
                )
                until(lambda: re.search(wanted, client.request("GET", "/metrics").body.decode()) is not None)
            else:
                victim = min(workers_of(router))
                os.kill(victim, signal.SIGKILL)
                until(lambda: len(workers_of(router) - {victim}) == 2)
            router.config_path.write_text("nonsense: 1\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: client.request("GET", "/readyz").json["config"] != "ok")
            with client.open("POST", OPENAI.path, OPENAI.body(f"cloud/{fresh('slow')}", stream=True)) as answer:
                seen = answer.read1(65536)
                process.send_signal(signal.SIGTERM)
                told = OPENAI.read(Reply(200, {}, seen + answer.read(), 0.0), stream=True)
            assert told.complete, "it waits for calls that run"
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert belonging(process.pid, tmp_path) == set()
