"""The end of a router: running calls get their time, then an error event; nothing of it stays behind."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.simulators.client import CLIENTS, OPENAI, Client, ClientDialect, Reply
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.scripts import PART
from tests.simulators.server import Simulator
from tests.simulators.waiting import until

Serve = Callable[..., RouterProcess]
Fresh = Callable[[str], str]


def config(cloud: Simulator, local: Simulator, drain: float) -> dict[str, object]:
    return {**providers(cloud.url, local.url), "server": {"limits": {"drain_seconds": drain}}}


def refuses(port: int) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def read_some(answer: http.client.HTTPResponse) -> bytes:
    seen = b""
    while PART.encode() not in seen:
        seen += answer.read1(65536)
    return seen


class Running:
    """Calls that are under way: streams of both dialects, and one that is not streamed."""

    def __init__(self, router: RouterProcess, cloud: Simulator, fresh: Fresh, stack: ExitStack) -> None:
        self.client = Client(router.port, router.key)
        self.models = [fresh("endless-slow") for _ in CLIENTS]
        self.streams: list[tuple[ClientDialect, bytes, http.client.HTTPResponse]] = []
        for dialect, model in zip(CLIENTS, self.models, strict=True):
            body = dialect.body(f"cloud/{model}", stream=True)
            answer = stack.enter_context(self.client.open("POST", dialect.path, body))
            self.streams.append((dialect, read_some(answer), answer))
        self.whole: list[Reply] = []
        silent = fresh("silent")
        self.models.append(silent)
        self._thread = threading.Thread(
            target=lambda: self.whole.append(self.client.ask(OPENAI, f"cloud/{silent}", stream=False))
        )
        self._thread.start()
        cloud.wait_for(silent)

    def check(self) -> None:
        """Each stream ends with one error in its dialect, in a complete body; the whole call gets a 503."""
        for dialect, seen, answer in self.streams:
            told = dialect.read(Reply(200, {}, seen + answer.read(), 0.0), stream=True)
            assert told.text.startswith(PART)
            assert told.error is not None
            assert "shutting down" in told.error
            assert not told.complete
        self._thread.join(60)
        (reply,) = self.whole
        assert reply.status == 503
        assert "shutting down" in OPENAI.error_of(reply)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_streams_that_outlast_the_drain(
    serve: Serve, cloud: Simulator, local: Simulator, fresh: Fresh, number: signal.Signals
) -> None:
    router = serve(config(cloud, local, 0.6), UNHURRIED)
    with ExitStack() as stack:
        running = Running(router, cloud, fresh, stack)
        family = router.family()
        assert len(family) >= 1
        began = time.monotonic()
        router.process.send_signal(number)
        until(lambda: refuses(router.port))
        running.check()
        assert router.wait(60) == 0
        assert 0.5 < time.monotonic() - began < 60
        assert router.family() == []
    for model in running.models:
        assert cloud.asked(model)[0].left()
    for model in running.models[:2]:
        assert router.log_of(f"cloud/{model}")["outcome"] == "overloaded"


def test_a_call_that_ends_in_time_is_not_disturbed(
    serve: Serve, cloud: Simulator, local: Simulator, fresh: Fresh
) -> None:
    router = serve(config(cloud, local, 60.0), UNHURRIED)
    client = Client(router.port, router.key)
    with client.open("POST", OPENAI.path, OPENAI.body(f"cloud/{fresh('slow')}", stream=True)) as answer:
        seen = answer.read1(65536)
        router.process.send_signal(signal.SIGTERM)
        told = OPENAI.read(Reply(200, {}, seen + answer.read(), 0.0), stream=True)
        assert told.complete
        assert router.wait(60) == 0, "the drain waited for nobody"


def test_the_second_signal_ends_at_once(serve: Serve, cloud: Simulator, local: Simulator, fresh: Fresh) -> None:
    router = serve(config(cloud, local, 60.0), UNHURRIED)
    with ExitStack() as stack:
        running = Running(router, cloud, fresh, stack)
        router.process.send_signal(signal.SIGINT)
        router.wait_line("waiting up to", router.err)
        router.process.send_signal(signal.SIGINT)
        running.check()
        assert router.wait(60) == 0
    assert router.family() == []


def test_an_idle_router_ends_at_once(serve: Serve, cloud: Simulator, local: Simulator) -> None:
    """Idle keep-alive connections of clients and to providers hold nothing up."""
    router = serve(config(cloud, local, 60.0), UNHURRIED)
    client = Client(router.port, router.key)
    with socket.create_connection(("127.0.0.1", router.port)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        assert client.ask(OPENAI, "cloud/answer", stream=False).status == 200
        assert router.stop(seconds=30) == 0
    assert router.family() == []


def test_several_workers(serve: Serve, cloud: Simulator, local: Simulator, fresh: Fresh) -> None:
    router = serve(config(cloud, local, 0.5), UNHURRIED, ["--workers", "2"])
    with ExitStack() as stack:
        running = Running(router, cloud, fresh, stack)
        router.process.send_signal(signal.SIGTERM)
        running.check()
        assert router.wait(60) == 0
    assert router.family() == []


def test_a_killed_router_leaves_no_process(serve: Serve, cloud: Simulator, local: Simulator) -> None:
    """SIGKILL: the store's process does not live on, and the next start with the same data works."""
    router = serve(config(cloud, local, 1.0), UNHURRIED)
    router.process.kill()
    with pytest.raises(AssertionError):
        # -9 is what it ends with; the fixture need not stop it again.
        assert router.wait(60) == 0
    until(lambda: not router.family())
    again = RouterProcess(router.directory, config(cloud, local, 1.0), UNHURRIED)
    with again:
        client = Client(again.port, router.key)
        assert client.ask(OPENAI, "cloud/answer", stream=False).status == 200, "the first start's key is still good"
    assert again.code == 0
