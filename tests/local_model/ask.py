"""A plain HTTP client for the tests: what llama.cpp's server says, without a library's opinion."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from router.local_model import LocalModel


async def request(
    model: LocalModel, method: str, path: str, body: dict[str, Any] | None = None, *, key: str | None = None
) -> tuple[int, bytes, dict[str, str]]:
    assert model.base_url
    url = urlsplit(model.base_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    await send(writer, method, path, body, model.api_key if key is None else key)
    answer = await reader.read()
    writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        rest = unchunked(rest)
    return int(lines[0].split()[1]), rest, headers


async def send(writer: asyncio.StreamWriter, method: str, path: str, body: dict[str, Any] | None, key: str) -> None:
    data = json.dumps(body).encode() if body is not None else b""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    await writer.drain()


def unchunked(data: bytes) -> bytes:
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        out, data = out + data[:length], data[length + 2 :]
    return out


async def chat(model: LocalModel, text: str, **more: Any) -> dict[str, Any]:
    """With a seed: the same answer each time."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "seed": 7, **more}
    status, data, _ = await request(model, "POST", "/v1/chat/completions", body)
    assert status == 200, data
    answer: dict[str, Any] = json.loads(data)
    return answer


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


async def busy(model: LocalModel) -> bool:
    _, data, _ = await request(model, "GET", "/slots")
    return any(slot["is_processing"] for slot in json.loads(data))
