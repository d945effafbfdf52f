"""The clients of a demo run: each call on a connection of its own, and what its client saw of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

SECONDS: Final = 60.0
"""The longest that a client waits."""
Leave = Literal["", "early", "amid"]
"""When a client leaves: not at all, once its provider works and nothing was answered yet, or in the middle. One that is
refused stays."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call. `number` is in its prompt."""

    number: int
    kind: str
    """What it is, for the summary."""
    dialect: Literal["openai", "ollama"]
    path: str
    body: bytes
    credential: str
    leave: Leave = ""


@dataclass(slots=True)
class Seen:
    """What the client of a call got."""

    ask: Ask
    status: int | None = None
    """None when it left, or when nothing came."""
    request_id: str | None = None
    provider: str | None = None
    model: str | None = None
    fallback: str | None = None
    complete: bool = False
    error: str | None = None
    """The error's code (OpenAI) or sentence (Ollama), in the answer or inside its stream."""
    input: int | None = None
    output: int | None = None
    cached: int = 0
    words: int = 0
    """Pieces of content."""
    left: bool = False
    failure: str | None = None
    """What went wrong with the connection itself."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status_class(self) -> str:
        """As the router's metrics put it: an answer that broke off is a failure."""
        if self.left:
            return "499"
        if self.status == 504 or self.error == "deadline_exceeded":
            return "504"
        if self.status == 200 and not self.complete:
            return "5xx"
        return f"{(self.status or 0) // 100}xx"


async def call(port: int, ask: Ask, working: Callable[[int], bool]) -> Seen:
    """Ask, and read the answer or leave. `working(number)`: whether a provider has got the call."""
    seen = Seen(ask)
    try:
        async with asyncio.timeout(SECONDS):
            await _exchange(port, ask, seen, working)
    except TimeoutError:
        seen.failure = "no answer in time"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        seen.failure = f"{type(error).__name__}: {error}"
    return seen


async def _exchange(port: int, ask: Ask, seen: Seen, working: Callable[[int], bool]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {ask.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        if ask.credential:
            head += f"Authorization: Bearer {ask.credential}\r\n"
        writer.write(f"{head}Content-Length: {len(ask.body)}\r\n\r\n".encode() + ask.body)
        await writer.drain()
        top = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        while ask.leave == "early" and not top.done():
            if working(ask.number):
                top.cancel()
                seen.left = True
                return
            await asyncio.wait([top], timeout=0.01)
        lines = (await top).decode("latin-1").rstrip().split("\r\n")
        seen.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        seen.request_id = seen.headers.get("x-request-id")
        seen.provider = seen.headers.get("x-switchyard-provider")
        seen.model = seen.headers.get("x-switchyard-model")
        seen.fallback = seen.headers.get("x-switchyard-fallback")
        status = int(lines[0].split()[1])
        if ask.leave == "amid" and status == 200:
            await reader.readexactly(600)
            seen.left = True
            return
        seen.status = status
        if seen.headers.get("transfer-encoding") != "chunked":
            body = await reader.readexactly(int(seen.headers.get("content-length", 0)))
        else:
            parts = []
            while size := int(await reader.readline(), 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
            body = b"".join(parts)
        _read(seen, body)
    finally:
        writer.transport.abort() if seen.left else writer.close()


# --- what an answer says


def _read(seen: Seen, body: bytes) -> None:
    if seen.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line[6:] for line in body.decode().split("\n\n") if line.startswith("data: ")]
        seen.complete = bool(events) and events[-1] == "[DONE]"
        found = [json.loads(event) for event in events if event != "[DONE]"]
    elif seen.headers.get("content-type", "").startswith("application/x-ndjson"):
        found = [json.loads(line) for line in body.splitlines() if line.strip()]
    else:
        found = [json.loads(body)]
        seen.complete = seen.status == 200
    for event in found:
        _event(seen, event)
    if seen.error is not None:
        seen.complete = False


def _event(seen: Seen, event: Mapping[str, Any]) -> None:
    if (error := event.get("error")) is not None:
        seen.error = str(error.get("code")) if isinstance(error, dict) else str(error)
        return
    if event.get("done"):
        seen.complete = True
    usage = event.get("usage") or {}
    seen.input = usage.get("prompt_tokens", event.get("prompt_eval_count", seen.input))
    seen.output = usage.get("completion_tokens", event.get("eval_count", seen.output))
    seen.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or seen.cached
    seen.words += bool(event.get("message") or event.get("response") or event.get("choices"))
