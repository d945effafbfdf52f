"""A client that leaves: the provider's connection is closed within 500 ms, whatever the call was doing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.simulators.client import CLIENTS, OPENAI, Client, ClientDialect
from tests.simulators.router import RouterProcess
from tests.simulators.scripts import PART
from tests.simulators.server import Simulator
from tests.simulators.waiting import Pulse

GRACE = 0.5
"""Seconds in which the provider must see that nobody listens any more, where the router does not stand still."""
Fresh = Callable[[str], str]
Leave = Callable[[str], None]


@pytest.fixture
def assert_cancelled(router: RouterProcess, client: Client, cloud: Simulator) -> Iterator[Leave]:
    """To be called when the client has just left."""
    with Pulse(lambda: client.request("GET", "/healthz")) as pulse:

        def check(model: str) -> None:
            left_at = time.monotonic()
            (request,) = cloud.asked(model)
            assert request.left(), "the provider's connection stayed open"
            pulse.stop()
            assert request.peer.closed_at is not None
            assert request.peer.closed_at - left_at < GRACE + pulse.standstill(left_at, request.peer.closed_at)
            log = router.log_of(f"cloud/{model}")
            assert (log["status"], log["outcome"], log["fallback"]) == (499, "aborted", None)
            assert [attempt["outcome"] for attempt in log["attempts"]] in (["aborted"], ["ok"])
            assert len(cloud.asked(model)) == 1

        yield check


def post(client: Client, dialect: ClientDialect, model: str, *, stream: bool) -> socket.socket:
    """A call that has been sent and not been answered yet."""
    body = json.dumps(dialect.body(model, stream=stream)).encode()
    link = socket.create_connection(("127.0.0.1", client.port), timeout=60)
    link.sendall(client.post_bytes(dialect.path, body))
    return link


@pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)
def test_in_mid_stream(client: Client, dialect: ClientDialect, fresh: Fresh, assert_cancelled: Leave) -> None:
    model = fresh("endless-slow")
    with post(client, dialect, f"cloud/{model}", stream=True) as link:
        seen = b""
        while PART.encode() not in seen:
            part = link.recv(65536)
            assert part, seen
            seen += part
    assert_cancelled(model)


@pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    ("script", "stream"),
    [("silent", True), ("headers-then-silence", True), ("comments", True), ("silent", False)],
    ids=["before the head", "before content", "during comments", "whole"],
)
def test_before_the_answer(
    client: Client,
    cloud: Simulator,
    dialect: ClientDialect,
    script: str,
    stream: bool,
    fresh: Fresh,
    assert_cancelled: Leave,
) -> None:
    model = fresh(script)
    with post(client, dialect, f"cloud/{model}", stream=stream):
        cloud.wait_for(model)
    assert_cancelled(model)


def test_by_a_reset(client: Client, cloud: Simulator, fresh: Fresh, assert_cancelled: Leave) -> None:
    model = fresh("endless-slow")
    link = post(client, OPENAI, f"cloud/{model}", stream=True)
    cloud.wait_for(model)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    link.close()
    assert_cancelled(model)


@pytest.mark.parametrize("script", ["silent", "endless-slow"], ids=["before the answer", "in mid-stream"])
def test_with_more_requests_on_the_way(
    router: RouterProcess, client: Client, cloud: Simulator, script: str, fresh: Fresh, assert_cancelled: Leave
) -> None:
    """The first of five ends, the others never begin, and nothing is said of it but its line."""
    model = fresh(script)
    since = len(router.err)
    body = json.dumps(OPENAI.body(f"cloud/{model}", stream=True)).encode()
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as link:
        link.sendall(client.post_bytes(OPENAI.path, body) * 5)
        cloud.wait_for(model)
        if script != "silent":
            assert link.recv(65536)
    assert_cancelled(model)
    last = fresh("answer")
    assert client.ask(OPENAI, f"cloud/{last}", stream=False).status == 200
    router.log_of(f"cloud/{last}")
    assert [line for line in router.err[since:] if not line.startswith("{")] == []


def test_two_hundred_at_once(router: RouterProcess, client: Client, cloud: Simulator, fresh: Fresh) -> None:
    """Nothing is left of them: no socket, no call in flight, and the next call works."""
    models = [fresh("endless-slow") for _ in range(200)]
    links = [post(client, OPENAI, f"cloud/{model}", stream=True) for model in models]
    for model in models:
        cloud.wait_for(model)
    for link in links:
        link.close()
    for model in models:
        assert cloud.asked(model)[0].left()
    assert client.ask(OPENAI, "cloud/answer", stream=True).status == 200
    metrics = client.request("GET", "/metrics").body.decode()
    in_flight = [line for line in metrics.splitlines() if "in_flight" in line and not line.startswith("#")]
    assert [line.rsplit(" ", 1)[1] for line in in_flight] == ["0.0"], in_flight


def test_keep_alive_after_a_stream(client: Client, fresh: Fresh) -> None:
    """A client that reads to the end uses its connection again."""
    body = json.dumps(OPENAI.body(f"cloud/{fresh('answer')}", stream=True)).encode()
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as link:
        for _ in range(3):
            link.sendall(client.post_bytes(OPENAI.path, body))
            seen = b""
            while not seen.endswith(b"0\r\n\r\n"):
                part = link.recv(65536)
                assert part, seen
                seen += part
            assert b"[DONE]" in seen
