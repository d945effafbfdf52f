"""What providers do that is no failure yet: races on idle connections, strange usage numbers. And all of them down."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.simulators.client import CLIENTS, OPENAI, Client
from tests.simulators.router import KEY_VARIABLE, UNHURRIED, RouterProcess, providers
from tests.simulators.scripts import ANSWER
from tests.simulators.server import Exchange, Simulator


def test_a_thousand_calls_while_the_provider_closes_idle_connections(
    client: Client, cloud: Simulator, fresh: Callable[[str], str]
) -> None:
    model = f"cloud/{fresh('answer-then-close')}"

    def some(_: int) -> int:
        replies = [client.ask(OPENAI, model, stream=bool(turn % 2)) for turn in range(125)]
        return sum(reply.headers.get("x-switchyard-provider") == "cloud" for reply in replies)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(some, range(8))) == 1000


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -5, "completion_tokens": -1, "total_tokens": -6},
        {"prompt_tokens": "7", "completion_tokens": "3"},
        {"prompt_tokens": 10**18, "completion_tokens": 10**30},
        {"prompt_tokens": 1.5, "completion_tokens": None},
        {"prompt_tokens": [1], "completion_tokens": {"a": 1}},
        [],
        "many",
        7,
    ],
    ids=lambda usage: json.dumps(usage)[:40],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_strange_usage(client: Client, cloud: Simulator, fresh: Callable[[str], str], usage: Any, stream: bool) -> None:
    """The answer goes through, and the numbers that are counted stay sane."""

    async def script(x: Exchange) -> None:
        if not x.stream:
            found = json.loads(x.dialect.whole(x.request, ANSWER))
            await x.answer(200, json.dumps({**found, "usage": usage}).encode())
            return
        await x.open_stream()
        await x.chunk(x.dialect.content(x.request, ANSWER))
        for frame in x.dialect.finish(x.request):
            if b'"usage"' in frame:
                frame = b"data: " + json.dumps({**json.loads(frame[6:]), "usage": usage}).encode() + b"\n\n"
            await x.chunk(frame)
        await x.end_chunks()

    cloud.scripts["strange-usage"] = script
    for dialect in CLIENTS:
        reply = client.ask(dialect, f"cloud/{fresh('strange-usage')}", stream=stream)
        assert reply.headers["x-switchyard-provider"] == "cloud", reply
        told = dialect.read(reply, stream=stream)
        assert (told.text, told.complete) == (ANSWER, True)
    for line in client.request("GET", "/metrics").body.decode().splitlines():
        if "tokens" in line and not line.startswith("#"):
            assert 0 <= float(line.rsplit(" ", 1)[1]) < 1e15, line


def test_everything_is_down(module_serve: Callable[..., RouterProcess], local: Simulator) -> None:
    """Cloud and local model refuse, or their name does not exist: 502 or 503 in the dialect, soon."""
    from tests.simulators.server import refused_port

    config = providers(f"http://127.0.0.1:{refused_port()}", f"http://127.0.0.1:{refused_port()}")
    row = {"vendor": "openai-compatible", "base_url": "http://no-such-host.invalid/v1", "timeouts": {"connect": 1}}
    config["providers"]["nowhere"] = {**row, "api_key": f"${{{KEY_VARIABLE}}}"}
    router = module_serve(config, UNHURRIED)
    client = Client(router.port, router.key)
    for model in ("chat", "nowhere/x"):
        for dialect in CLIENTS:
            for stream in (True, False):
                reply = client.ask(dialect, model, stream=stream)
                assert reply.status in (502, 503), reply
                assert dialect.error_of(reply)
                assert reply.seconds < 15
                assert "127.0.0.1" not in reply.body.decode()
    assert client.request("GET", "/readyz").status == 200
    assert client.request("GET", "/v1/models").status == 200
