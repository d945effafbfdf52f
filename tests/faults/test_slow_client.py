"""A client that does not read: the provider is held back, memory stays flat, and patience has an end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulators.client import OPENAI, Client
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Exchange, Simulator

STALL = 2.0
"""`write_stall_seconds` of this router."""
FLOOD = 200_000_000
"""Bytes that the script `flood` has to send."""


def in_the_kernel() -> int:
    """Bytes that the system may hold at most between two ends of a connection: it gives more to those who were quick
    to read, even if they stop."""
    limits = (Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2] for name in ("tcp_rmem", "tcp_wmem"))
    return sum(map(int, limits))


@pytest.fixture(scope="module")
def stalling(module_serve: Callable[..., RouterProcess], cloud: Simulator, local: Simulator) -> RouterProcess:
    config = providers(cloud.url, local.url)
    return module_serve({**config, "server": {"limits": {"write_stall_seconds": STALL}}}, UNHURRIED)


@pytest.fixture
def deaf(stalling: RouterProcess) -> Iterator[Callable[[str], socket.socket]]:
    """Opens calls whose client reads nothing."""
    links = []
    client = Client(stalling.port, stalling.key)

    def post(model: str) -> socket.socket:
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        link.settimeout(60)
        link.connect(("127.0.0.1", stalling.port))
        links.append(link)
        link.sendall(client.post_bytes(OPENAI.path, json.dumps(OPENAI.body(model, stream=True)).encode()))
        return link

    yield post
    for link in links:
        link.close()


def test_back_pressure_and_the_end_of_patience(
    stalling: RouterProcess, deaf: Callable[[str], socket.socket], cloud: Simulator, fresh: Callable[[str], str]
) -> None:
    """The provider has 200 MB to send; what is on the way stays bounded, and the call ends after the stall time."""
    client = Client(stalling.port, stalling.key)
    client.ask(OPENAI, "cloud/answer", stream=True)
    before = stalling.rss()
    models = [fresh("flood") for _ in range(4)]
    began = time.monotonic()
    for model in models:
        deaf(f"cloud/{model}")
    requests = [cloud.wait_for(model) for model in models]
    most = 0.0
    while not all(request.peer.gone.is_set() for request in requests):
        assert time.monotonic() - began < STALL + 15, "the calls were not ended"
        most = max(most, stalling.rss())
        time.sleep(0.02)
    assert time.monotonic() - began > STALL * 0.6
    assert most - before < 32, "MB of the router grew"
    taken = 8 * 1024 * 1024 + 2 * in_the_kernel()
    assert taken < FLOOD
    for request in requests:
        assert request.peer.sent < taken, "bytes were taken that nobody reads"
    log = stalling.log_of(f"cloud/{models[0]}")
    assert (log["status"], log["outcome"]) == (499, "client_stalled")


def test_a_slow_reader_gets_everything(
    stalling: RouterProcess, deaf: Callable[[str], socket.socket], cloud: Simulator, fresh: Callable[[str], str]
) -> None:
    """Reading in fits and starts, each within the stall time, loses nothing."""
    model = fresh("long")
    pieces = 300

    async def long(x: Exchange) -> None:
        await x.open_stream()
        for number in range(pieces):
            await x.chunk(x.dialect.content(x.request, f"<{number:05}>" + "y" * 8000))
        for frame in x.dialect.finish(x.request):
            await x.chunk(frame)
        await x.end_chunks()

    cloud.scripts["long"] = long
    link = deaf(f"cloud/{model}")
    seen = b""
    for _ in range(4):
        time.sleep(0.2)
        seen += link.recv(65536)
    while not seen.endswith(b"0\r\n\r\n"):
        part = link.recv(1 << 20)
        assert part
        seen += part
    text = seen.decode()
    assert [f"<{number:05}>" in text for number in range(pieces)].count(False) == 0
    assert "[DONE]" in text
