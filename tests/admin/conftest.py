"""The admin API on a real socket, over keys in a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from router.admin import admin_app
from router.keys import Keys, open_keys
from router.store import Store

TOKEN = "an-admin-token-for-tests"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Ask = Callable[..., Awaitable[Answer]]


@pytest.fixture
async def keys(store: Store, tmp_path: Path) -> Keys:
    return await open_keys(store, tmp_path, {"SWITCHYARD_ADMIN_TOKEN": TOKEN})


@pytest.fixture
async def port(keys: Keys) -> AsyncIterator[int]:
    async def describe() -> tuple[bool, dict[str, object]]:
        return True, {"store": "ok"}

    config = uvicorn.Config(admin_app(keys, describe), port=0, lifespan="off", log_level="error", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


@pytest.fixture
def ask(port: int) -> Ask:
    async def send(
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        raw: bytes = b"",
        claim: int | None = None,
        json_body: bool = True,
    ) -> Answer:
        """One request on a connection of its own. `raw` is more header lines, `claim` another length."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        login = f"authorization: Bearer {token}\r\n" if token is not None else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{login}"
        head += f"content-length: {claim or len(sent)}\r\n"
        kind = b"content-type: application/json\r\n" if json_body else b""
        writer.write(head.encode() + kind + raw + b"\r\n" + sent)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        top, _, rest = answer.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(first.split()[1]), headers, rest)

    return send
