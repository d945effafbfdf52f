"""A remote store that is not there: the router lives, says so, refuses what costs money quickly, lets local models
answer keys that it has just seen, and begins by itself when the store comes.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path

import pytest

from router.credentials import new_credential, new_id
from router.embedded import find_binary
from tests.simulators.client import CLIENTS, OPENAI, Client
from tests.simulators.router import RouterProcess, providers
from tests.simulators.server import Simulator, free_port, refused_port
from tests.simulators.waiting import until

Serve = Callable[..., RouterProcess]
QUICK = 0.3
"""Seconds within which a call is refused while the store is away."""


@contextmanager
def store_at(port: int, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real server on TCP, with an append-only file so that it comes back with what it knew."""
    settings = {
        "port": port, "bind": "127.0.0.1", "dir": directory, "save": "", "appendonly": "yes",
        "maxmemory-policy": "noeviction",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen([find_binary(environ), *words], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


NOBODY_ELSE = {"x-switchyard-no-fallback": "1"}


def refused_quickly(client: Client, headers: Mapping[str, str] | None = None) -> None:
    """Every call is refused in its dialect as something that will pass; the best of some is timed: three where the
    machine has time."""
    for dialect in CLIENTS:
        took: list[float] = []
        while len(took) < 3 or (min(took) >= QUICK and len(took) < 20):
            reply = client.ask(dialect, "chat", stream=False, headers=headers)
            assert reply.status == 503, reply.body
            assert "store" in dialect.error_of(reply)
            assert int(reply.headers["retry-after"]) >= 1
            took.append(reply.seconds)
        assert min(took) < QUICK


def degraded(client: Client, workers: int) -> None:
    """What would cost money is refused; the local model answers for it and says why. (Of several workers one may not
    have seen the key yet.)"""
    refused_quickly(client, NOBODY_ELSE)
    answered = 0
    for dialect in CLIENTS:
        for stream in (False, True):
            reply = client.ask(dialect, "chat", stream=stream)
            assert reply.seconds < 30
            if workers > 1 and reply.status == 503:
                continue
            answered += 1
            assert reply.status == 200, reply
            assert reply.headers["x-switchyard-degraded"] == "store"
            assert reply.headers["x-switchyard-provider"] == "local"
            assert dialect.read(reply, stream=stream).complete
    assert answered >= (4 if workers == 1 else 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_from_a_start_without_it_to_calls(
    serve: Serve, cloud: Simulator, local: Simulator, tmp_path: Path, workers: int
) -> None:
    port = free_port()
    config = {**providers(cloud.url, local.url), "redis": {"url": f"redis://127.0.0.1:{port}/0"}}
    router = serve(config, None, ["--workers", str(workers)])
    stranger = Client(router.port, new_credential(new_id()))
    until(lambda: stranger.request("GET", "/healthz").status == 200)
    ready = stranger.request("GET", "/readyz")
    assert ready.status == 503
    assert f"127.0.0.1:{port}" in ready.json["store"]
    assert "not made yet" in "\n".join(router.out)
    refused_quickly(stranger)
    assert stranger.request("GET", "/v1/models").status == 503
    with ExitStack() as stack:
        first = stack.enter_context(store_at(port, tmp_path))
        line = router.wait_line("  key          sk-", router.out)
        key = re.search(r"sk-\S+", line)
        assert key is not None
        assert sum("sk-" in each for each in router.out) == 1, "it is shown once"
        router.wait_line("  admin token  ", router.out)
        client = Client(router.port, key[0])
        until(lambda: client.request("GET", "/readyz").status == 200)
        until(lambda: all(client.ask(OPENAI, "chat", stream=False).status == 200 for _ in range(4)))
        until(lambda: stranger.ask(OPENAI, "chat", stream=False).status == 401)

        first.kill()
        first.wait()
        until(lambda: client.request("GET", "/readyz").status == 503)
        degraded(client, workers)
        refused_quickly(stranger)
        assert client.request("GET", "/healthz").status == 200

        stack.enter_context(store_at(port, tmp_path))
        until(lambda: all(client.ask(OPENAI, "chat", stream=False).status == 200 for _ in range(4)))
        until(lambda: client.request("GET", "/readyz").status == 200)
    assert router.stop() == 0
    assert sum("sk-" in each for each in router.out) == 1, "a store that comes back makes no new key"


def test_an_end_while_the_store_is_away(serve: Serve, cloud: Simulator, local: Simulator) -> None:
    config = {**providers(cloud.url, local.url), "redis": {"url": f"redis://127.0.0.1:{refused_port()}/0"}}
    took: list[float] = []
    while not took or (min(took) >= 1.9 and len(took) < 4):
        router = serve(config)
        began = time.monotonic()
        assert router.stop() == 0
        took.append(time.monotonic() - began)
    assert min(took) < 1.9, "it waits for nothing"


def test_a_running_stream_outlives_the_store(
    serve: Serve, cloud: Simulator, local: Simulator, tmp_path: Path, fresh: Callable[[str], str]
) -> None:
    """A call that was admitted is answered to its end."""
    port = free_port()
    config = {**providers(cloud.url, local.url), "redis": {"url": f"redis://127.0.0.1:{port}/0"}}
    with store_at(port, tmp_path) as store:
        router = serve(config)
        if not router.key:
            router.key = router.wait_line("  key          sk-", router.out).split()[1]
        client = Client(router.port, router.key)
        model = fresh("slow")
        found = []

        def ask() -> None:
            reply = client.ask(OPENAI, f"cloud/{model}", stream=True)
            while reply.status == 503 and not cloud.asked(model):  # the store of a busy machine was late
                reply = client.ask(OPENAI, f"cloud/{model}", stream=True)
            found.append(reply)

        call = threading.Thread(target=ask)
        call.start()
        cloud.wait_for(model)
        store.kill()
        call.join(60)
        assert OPENAI.read(found[0], stream=True).complete
        degraded(client, 1)
