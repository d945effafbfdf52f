"""What tests of a proxy in front of the router share: a provider whose pieces are let out one by one, raw upstreams
that count what they are asked, and connections from other addresses of this machine."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from tests.simulators.server import Exchange, Simulator


class Gate:
    """A script `gate`: each piece of its answer waits until the test lets it out."""

    PIECES = 4

    def __init__(self) -> None:
        self._open = threading.Semaphore(0)

    def let(self) -> None:
        self._open.release()

    async def __call__(self, x: Exchange) -> None:
        await x.open_stream()
        await x.chunk(x.dialect.opening(x.request))
        for number in range(self.PIECES):
            while not self._open.acquire(blocking=False):  # noqa: ASYNC110 - another thread lets it out
                await asyncio.sleep(0.005)
            await x.chunk(x.dialect.content(x.request, f"piece {number} "))
        for last in x.dialect.finish(x.request):
            await x.chunk(last)
        await x.end_chunks()


def pieces_come_one_by_one(cloud: Simulator, ask: Callable[[Mapping[str, Any]], http.client.HTTPResponse]) -> None:
    """Let a piece out only when the one before has arrived: whoever keeps one back waits for ever (or for a timeout).
    `ask` posts a body for the script `gate`."""
    gate = Gate()
    cloud.scripts["gate"] = gate
    gate.let()
    answer = ask({"model": "cloud/gate", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    assert answer.status == 200, answer.read()
    for number in range(Gate.PIECES):
        while f"piece {number}" not in (line := answer.readline().decode()):
            assert line, f"the stream ended before piece {number}"
        gate.let()
    assert "[DONE]" in answer.read().decode()


class Counting:
    """An upstream that reads requests and hangs up: how many it was sent, with their bodies."""

    def __init__(self) -> None:
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link:
                data = b""
                while b"\r\n\r\n" not in data and (more := link.recv(65536)):
                    data += more
                if data.startswith(b"POST"):
                    self.asked += 1


def connect(port: int, source: str, tls: ssl.SSLContext | None, seconds: float = 60.0) -> http.client.HTTPConnection:
    """A connection to the proxy from another address of this machine (127.0.0.2, ...)."""
    if tls is None:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=seconds, source_address=(source, 0))
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=seconds, source_address=(source, 0), context=tls)


def post(
    connection: http.client.HTTPConnection, body: Mapping[str, Any], key: str, headers: Mapping[str, str] | None = None
) -> http.client.HTTPResponse:
    sent = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)
    return connection.getresponse()


def picture(model: str, size: int) -> dict[str, Any]:
    """A call with an image of `size` bytes in it."""
    url = "data:image/png;base64," + "A" * size
    content = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def listening(port: int, running: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until somebody listens; `running` says whether the one who should is alive."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert running(), "it ended"
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.02)
