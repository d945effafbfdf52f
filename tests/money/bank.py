"""A router whose books are looked at: keys through its admin API, counters in its store, crowds of calls at once."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis

from providers.wires.openai import OpenAIWire
from router.config import load_config
from router.estimate import Bound, bound
from router.prices import load_prices
from router.routing import Rights, plan
from router.snapshot import compile_snapshot
from tests.simulators.client import Client
from tests.simulators.dialects import SECRET
from tests.simulators.router import KEY_VARIABLE, RouterProcess
from tests.simulators.server import Exchange, Script
from tests.simulators.waiting import until

INPUT, OUTPUT = 1000, 2000
"""Dollars for a million tokens: 7 tokens in and 3 out, as the simulator says, cost 0.013 dollars."""
COST = 7 * INPUT + 3 * OUTPUT
"""Micro-USD of an answer with the usage that the simulator tells by default."""
SECONDS: Mapping[str, float] = {"connect": 5.0, "first_content": 30.0, "idle": 30.0, "total": 120.0}
"""Deadlines that no test meets, also on a busy machine."""


def price_file(directory: Path, *providers: str, **more: Any) -> str:
    """A list with the same price for all models of these providers; `more` are rows of single models."""
    groups = [
        {
            "provider": provider,
            "currency": "usd",
            "source": "https://example.com/prices",
            "looked_at": "2026-11-22",
            "models": {"*": {"input": INPUT, "output": OUTPUT}, **more},
        }
        for provider in providers
    ]
    path = directory / "prices.yaml"
    path.write_text(json.dumps({"prices": groups}))
    return str(path)


def cloud(url: str, **more: Any) -> dict[str, Any]:
    """A paid provider of the config."""
    key = f"${{{KEY_VARIABLE}}}"
    return {
        "vendor": "openai-compatible", "base_url": f"{url}/v1", "api_key": key, "timeouts": dict(SECONDS), **more,
    }  # fmt: skip


def local(url: str, **more: Any) -> dict[str, Any]:
    return {"vendor": "ollama", "base_url": url, "local": True, "timeouts": dict(SECONDS), **more}


@dataclass(frozen=True)
class Account:
    """A key, what it opens with, and its team."""

    id: str
    team: str
    credential: str
    client: Client


class Bank:
    """A running router and its store."""

    def __init__(self, router: RouterProcess, url: str | None = None) -> None:
        """`url`: of the store; None for the embedded one."""
        self.router = router
        self.admin = Client(router.port, router.admin_token)
        if url is not None:
            self.store = redis.Redis.from_url(url, protocol=2)
        else:
            record = json.loads((router.directory / "data" / "store" / "server.json").read_text())
            self.store = redis.Redis(unix_socket_path=record["socket"], protocol=2)
        self._names = iter(range(1_000_000))

    def close(self) -> None:
        self.store.close()

    # --- keys

    def key(self, team: str | None = None, **fields: Any) -> Account:
        """A new key, by default in a team of its own."""
        number = next(self._names)
        made = self._told("POST", "/admin/api/keys", {"name": f"k{number}", "team": team or f"t{number}", **fields})
        return Account(made["id"], made["team_id"], made["key"], Client(self.router.port, made["key"], seconds=60))

    def team(self, name: str, **fields: Any) -> str:
        return str(self._told("POST", "/admin/api/teams", {"name": name, **fields})["id"])

    def change(self, account: Account, **fields: Any) -> None:
        self._told("PATCH", f"/admin/api/keys/{account.id}", fields)

    def _told(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        reply = self.admin.request(method, path, body)
        assert reply.status in (200, 201), reply
        return reply.json

    # --- the store

    def counter(self, account: Account, limit: str, scope: str | None = None) -> tuple[int, int]:
        """What is spent and held of a budget of the key, or of another scope of its team."""
        return self.counted(account.team, scope or account.id, limit)

    def counted(self, account: str, scope: str, limit: str) -> tuple[int, int]:
        found = cast("Any", self.store).hmget(f"sy:{{{account}}}:n:{scope}", f"{limit}:s", f"{limit}:h")
        return int(found[0] or 0), int(found[1] or 0)

    def rate(self, account: str, scope: str, limit: str) -> int:
        """The sum of the last minute."""
        fields = cast("dict[bytes, bytes]", self.store.hgetall(f"sy:{{{account}}}:w:{scope}:{limit}"))
        return sum(int(value) for name, value in fields.items() if name.isdigit())

    def holds(self, account: str) -> int:
        with self.store.pipeline() as both:
            both.hlen(f"sy:{{{account}}}:holds")
            both.zcard(f"sy:{{{account}}}:leases")
            held, leased = both.execute()
        assert held == leased
        return int(held)

    def at_rest(self, account: str, seconds: float = 25.0) -> float:
        """Wait until nothing is held; how long it took. (What nobody renews is swept after 30 seconds.)"""
        took = until(lambda: self.holds(account) == 0, seconds, lambda: f"{self.holds(account)} holds of {account}")
        for name in cast("list[bytes]", self.store.keys(f"sy:{{{account}}}:n:*")):
            for field, value in cast("dict[bytes, bytes]", self.store.hgetall(name)).items():
                assert not field.endswith(b":h") or value == b"0", (name, field, value)
                assert int(value) >= 0, (name, field, value)
        return took

    def usage(self, account: str, key: str = "") -> dict[str, int]:
        """Sums by metric of a team (and of one key of it), from the hours; the days say the same."""
        kinds = [cast("list[bytes]", self.store.keys(f"sy:{{{account}}}:{kind}:*")) for kind in ("ud", "uh")]
        with self.store.pipeline() as together:  # in one moment, also while calls are being settled
            for names in kinds:
                for name in names:
                    together.hgetall(name)
            values = iter(cast("list[dict[bytes, bytes]]", together.execute()))
        sums = []
        for names in kinds:
            found: dict[str, int] = {}
            for _ in names:
                for field, value in next(values).items():
                    whose, _, _, metric = field.decode().split("\t")
                    if not key or whose == key:
                        found[metric] = found.get(metric, 0) + int(value)
            sums.append({metric: amount for metric, amount in found.items() if amount})
        assert sums[0] == sums[1], sums
        return sums[0]

    def recent(self, account: str) -> list[dict[str, Any]]:
        """The entries of the recent requests, oldest first."""
        rows = cast("list[Any]", self.store.xrange(f"sy:{{{account}}}:recent"))
        return [json.loads(fields[b"r"]) for _, fields in rows]

    def tombstones(self, account: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name in cast("list[bytes]", self.store.keys(f"sy:{{{account}}}:done:*")):
            for call, value in cast("dict[bytes, bytes]", self.store.hgetall(name)).items():
                assert call.decode() not in found, "one call with two tombstones"
                found[call.decode()] = value
        return found

    # --- the log

    def lines(self, since: int = 0) -> list[dict[str, Any]]:
        """The request log."""
        found = (json.loads(line) for line in self.router.err[since:] if line.startswith("{"))
        return [line for line in found if line.get("event") == "request"]

    def wait_lines(self, key: str, number: int, since: int = 0, seconds: float = 60.0) -> list[dict[str, Any]]:
        """The lines of a key's calls, once there are so many; more are a failure."""

        def own() -> list[dict[str, Any]]:
            return [line for line in self.lines(since) if line["key"] == key]

        until(lambda: len(own()) >= number, seconds, lambda: f"{len(own())} of {number} lines")
        found = own()
        assert len(found) == number, found
        return found

    # --- what a call may take

    def bound(self, body: Mapping[str, Any]) -> Bound:
        """What the router reserves for a chat."""
        config = load_config(self.router.config_path, {**os.environ, KEY_VARIABLE: SECRET})
        call = OpenAIWire().read_call("chat", body)
        snapshot = compile_snapshot(config)
        made = plan(snapshot, call.asked_model, call.needs, Rights(), lambda *_: None, lambda: 0.5)
        prices = load_prices(config)
        return bound(call, made.attempts, lambda target: prices.find(target.provider, target.model, time.time()))


# --- many calls at once


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """Of an error."""
        return str(json.loads(self.body)["error"]["code"])


def chat(credential: str, body: Mapping[str, Any], path: str = "/v1/chat/completions") -> bytes:
    """A request as bytes."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {credential}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readline()
        body = b"".join(parts)
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(first.split()[1]), headers, body)


def crowd(
    port: int,
    requests: Sequence[bytes],
    ready: Callable[[int], bool] = lambda _: True,
    release: Callable[[], None] = lambda: None,
    seconds: float = 60.0,
) -> list[Answer]:
    """Send all requests at the same moment, each on a connection of its own, and read all answers.

    `release` is called once `ready(answers so far)`.
    """

    async def run() -> list[Answer]:
        links = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in requests))
        for (_, writer), data in zip(links, requests, strict=True):
            writer.write(data)
        reads = [asyncio.create_task(read_answer(reader)) for reader, _ in links]
        try:
            async with asyncio.timeout(seconds):
                while not ready(sum(read.done() for read in reads)):  # noqa: ASYNC110 - other threads and processes
                    await asyncio.sleep(0.005)
                release()
                return await asyncio.gather(*reads)
        finally:
            for _, writer in links:
                writer.close()

    return asyncio.run(run())


class Gate:
    """A provider's script that takes calls and answers none before it is opened."""

    def __init__(self, then: Script) -> None:
        self.arrived = 0
        self.open = False
        self._then = then

    def close(self) -> None:
        self.arrived, self.open = 0, False

    def release(self) -> None:
        self.open = True

    async def __call__(self, x: Exchange) -> None:
        self.arrived += 1
        while not self.open and not x.peer.gone.is_set():  # noqa: ASYNC110 - a thread opens it
            await asyncio.sleep(0.005)
        await self._then(x)


@contextmanager
def bank(router: RouterProcess, url: str | None = None) -> Iterator[Bank]:
    opened = Bank(router, url)
    try:
        yield opened
    finally:
        opened.close()
