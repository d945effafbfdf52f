"""A paid provider whose every answer uses another number of tokens, and which writes down what it delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from tests.simulators.dialects import dialect_of
from tests.simulators.router import KEY_VARIABLE, PATIENT
from tests.simulators.scripts import SCRIPTS, complaint
from tests.simulators.server import Exchange, Simulator

INPUT, OUTPUT = 3, 7
"""Micro-USD for a token."""
WORD = "word "
COST_OF_ONE = 100 * INPUT + 10 * OUTPUT
"""Micro-USD of a call to `even`."""


class Paid(Simulator):
    """`paid`: whole or streamed, at once. `lasting@SECONDS`: as long as that. `even`: always 100 tokens in and 10 out.
    `gate`: answers once the gate is open."""

    def __init__(self) -> None:
        mine = {"paid": self._paid, "lasting": self._lasting, "even": self._even, "gate": self._gate}
        super().__init__({**SCRIPTS, **mine}, dialect_of, default="paid")
        self.delivered: list[tuple[str, int, int]] = []
        """Model, tokens in, tokens out of each answer that was said to its end."""
        self.open = asyncio.Event()
        self._numbers = count(1)

    def sums(self, model: str = "") -> Mapping[str, int]:
        """What usage must say."""
        found = [(i, o) for name, i, o in list(self.delivered) if name.startswith(model)]
        cost = sum(i * INPUT + o * OUTPUT for i, o in found)
        return {"calls": len(found), "in": sum(i for i, _ in found), "out": sum(o for _, o in found), "cost": cost}

    async def _paid(self, x: Exchange) -> None:
        number = next(self._numbers)
        await self._say(x, 50 + number % 97, 1 + number % 31)

    async def _even(self, x: Exchange) -> None:
        await self._say(x, 100, 10)

    async def _gate(self, x: Exchange) -> None:
        while not self.open.is_set():  # noqa: ASYNC110 - set in another thread
            await asyncio.sleep(0.02)
        await self._say(x, 100, 10)

    async def _lasting(self, x: Exchange) -> None:
        seconds = float(x.request.model.partition("@")[2].partition("/")[0])
        number = next(self._numbers)
        await self._say(x, 50 + number % 97, int(seconds * 10), pause=0.1)

    async def _say(self, x: Exchange, tokens_in: int, tokens_out: int, pause: float = 0.0) -> None:
        usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        if not x.stream:
            whole = json.loads(x.dialect.whole(x.request, WORD * tokens_out))
            if pause:
                await asyncio.sleep(pause * tokens_out)
            self.delivered.append((x.request.model, tokens_in, tokens_out))
            await x.answer(200, json.dumps({**whole, "usage": usage}).encode())
            return
        await x.open_stream()
        await x.chunk(x.dialect.opening(x.request))
        for _ in range(tokens_out):
            if pause:
                await asyncio.sleep(pause)
            await x.chunk(x.dialect.content(x.request, WORD))
        finish, *_, done = x.dialect.finish(x.request)
        await x.chunk(finish)
        last = {"id": "chatcmpl-sim", "object": "chat.completion.chunk", "created": 1, "model": x.request.model}
        self.delivered.append((x.request.model, tokens_in, tokens_out))
        await x.chunk(b"data: " + json.dumps({**last, "choices": [], "usage": usage}).encode() + b"\n\n")
        await x.chunk(done)
        await x.end_chunks()


def config(url: str, store: str | None, prices: Path, **more: Any) -> dict[str, Any]:
    """A router's config with the one provider `sim`; `prices`: where the price file is written."""
    group = {
        "provider": "sim",
        "currency": "usd",
        "source": "https://example.com/prices",
        "looked_at": "2026-11-22",
        "models": {"*": {"input": INPUT, "output": OUTPUT}},
    }
    prices.write_text(json.dumps({"prices": [group]}))
    provider = {
        "vendor": "openai-compatible",
        "base_url": f"{url}/v1",
        "api_key": f"${{{KEY_VARIABLE}}}",
        "timeouts": {**PATIENT, "first_content": 20.0, "total": 120.0},
    }
    told = {
        "providers": {"sim": provider},
        "models": {"chat": {"targets": ["sim/paid"]}},
        "fallback": [],
        "prices": {"file": str(prices)},
    }
    return {**told, **({"redis": {"url": store}} if store else {}), **more}


__all__ = ["COST_OF_ONE", "INPUT", "OUTPUT", "Paid", "complaint", "config"]
