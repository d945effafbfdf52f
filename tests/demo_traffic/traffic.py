"""What is sent in a demo run: an even mix in the background, and one act after the other of what goes wrong."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.demo_traffic import scene
from tests.demo_traffic.caller import Ask, Leave, Seen, call
from tests.demo_traffic.house import House
from tests.demo_traffic.vendors import Order

Say = Callable[[str], None]
Dialect = Literal["openai", "ollama"]

PACE: Final = 10.0
"""Calls a second in the background."""
FROZEN: Final = 2.5
"""Seconds for which the store stands still."""
TOOLS: Final = [
    {
        "type": "function",
        "function": {
            "name": "forecast",
            "description": "The weather of the next days.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
QUESTIONS: Final = (
    "Summarise the minutes of the last meeting.",
    "Write a unit test for a function that reverses a list.",
    "What is the difference between a mutex and a semaphore?",
    "把这段文字翻译成英文：今天天气很好。",
    "Explain this traceback and suggest a fix.",
    "用三句话介绍一下苏州。",
    "Name five risks of the project, in a table.",
)


def picture() -> str:
    """A small grey PNG in base64."""

    def block(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    size = (8).to_bytes(4) * 2 + bytes((8, 0, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + bytes(range(0, 240, 30)) for _ in range(8)))
    png = b"\x89PNG\r\n\x1a\n" + block(b"IHDR", size) + block(b"IDAT", rows) + block(b"IEND", b"")
    return base64.b64encode(png).decode()


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens once, at a share of the run's length."""

    at: float
    name: str
    play: Callable[[], Awaitable[None]]


class Traffic:
    """All calls of a run, as their clients saw them. `length` is in seconds."""

    def __init__(self, house: House, *, length: float, pace: float = PACE, seed: int = 4, say: Say) -> None:
        self.house = house
        self.seen: list[Seen] = []
        self._length = length
        self._pace = pace
        self._dice = random.Random(seed)
        self._say = say
        self._numbers = itertools.count(1)
        self._picture = picture()
        self._mix: Sequence[tuple[int, Callable[[], Awaitable[Seen]]]] = (
            (18, lambda: self.chat(self._any("gpt-5-mini", "gpt-5-mini", "gpt-4o"))),
            (10, lambda: self.chat(self._any("gemini-3-flash"))),
            (10, lambda: self.chat(self._any("doubao-seed-1-8", "kimi-k2.6"))),
            (8, lambda: self.chat(self._any("qwen3-32b", "qwen3-coder-30b"))),
            (8, lambda: self.chat(scene.GPU_MODEL, dialect="ollama")),
            (4, lambda: self.generate(scene.GPU_MODEL)),
            (6, lambda: self.embed()),
            (5, lambda: self.tools()),
            (4, lambda: self.see()),
            (4, lambda: self.chat("lab-llama-70b")),  # it is switched off: the fallback answers
            (3, lambda: self.chat("reserve")),  # it waits for a key
            (3, lambda: self.text()),
            (3, lambda: self.think()),
        )

    # --- the whole

    async def play(self) -> None:
        """Background and acts, until all calls have ended."""
        began = time.monotonic()
        running: set[asyncio.Task[Any]] = {asyncio.create_task(self.mix(self._length))}
        for act in self._acts():
            await asyncio.sleep(max(0.0, began + act.at * self._length - time.monotonic()))
            self._say(f"{time.monotonic() - began:5.1f} s  {act.name}")
            running.add(asyncio.ensure_future(act.play()))
        await asyncio.gather(*running)

    async def trickle(self, seconds: float) -> None:
        """A call now and then, for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self._one()
            await asyncio.sleep(0.5 + self._dice.random())

    async def mix(self, seconds: float) -> None:
        """The even mix, for so long."""
        running = set()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            running.add(asyncio.create_task(self._one()))
            await asyncio.sleep(self._dice.expovariate(self._pace))
        await asyncio.gather(*running)

    async def burst(self, calls: int, at_once: int = 16) -> None:
        """So many calls of the even mix, as fast as they are answered."""
        left = iter(range(calls))

        async def caller() -> None:
            for _ in left:
                await self._one()

        await asyncio.gather(*(caller() for _ in range(at_once)))

    async def _one(self) -> None:
        (make,) = self._dice.choices([make for _, make in self._mix], [weight for weight, _ in self._mix])
        await make()

    def _acts(self) -> Sequence[Act]:
        acts = [
            Act(0.0, "a call of each kind, and of each model", self.each_kind),
            Act(0.06, "a team comes near the end of its budget", self.near_the_budget),
            Act(0.10, "calls beyond what a key may make in a minute", self.too_many),
            Act(0.14, "calls that are refused: wrong keys, unknown models, no right, no sense", self.refused),
            Act(0.18, "clients that leave, early and amid the answer", self.leaving),
            Act(0.24, "OpenAI fails: fallbacks answer, its breakers open", self.outage),
            Act(0.36, "a quota of calls is used up", self.used_up),
            Act(0.40, "Kimi asks for a pause (429)", self.pause),
            Act(0.44, "the GPU has more to do than fits into its queue", self.crowd),
            Act(0.56, "a config that is wrong: refused, the old one serves on", self.bad_config),
            Act(0.60, "answers that break off, never come, or tell no usage", self.broken),
            Act(0.72, "the store stands still for a moment", self.frozen),
            Act(0.80, "a good config again, with a model more", self.good_config),
            Act(0.84, "the model that came with it", self.newcomer),
        ]
        if self.house.demo:
            acts.append(Act(0.28, "the bundled model answers for real", self.bundled))
        return sorted(acts, key=lambda act: act.at)

    # --- calls

    def _any(self, *names: str) -> str:
        return self._dice.choice(names)

    def _key(self) -> str:
        return self._dice.choice(scene.EVERYDAY)

    def _order(self, **more: Any) -> Order:
        made = {"words": self._dice.randrange(8, 80), "pace": self._dice.choice((0.005, 0.01, 0.02, 0.04)), **more}
        return Order(**made)

    async def send(
        self,
        kind: str,
        path: str,
        body: Mapping[str, Any],
        *,
        key: str | None,
        number: int,
        order: Order,
        leave: Leave = "",
        credential: str | None = None,
    ) -> Seen:
        """One call; `credential` in place of that of a key."""
        self.house.books.orders[number] = order
        dialect: Dialect = "ollama" if path.startswith("/api/") else "openai"
        told = credential if credential is not None else self.house.credentials[key or ""]
        ask = Ask(number, kind, dialect, path, json.dumps(body).encode(), told, leave)
        seen = await call(self.house.router.port, ask, self._working)
        self.seen.append(seen)
        return seen

    def _working(self, number: int) -> bool:
        return bool(self.house.books.of(number))

    def _prompt(self, number: int) -> str:
        return f"{self._dice.choice(QUESTIONS)} (#{number})"

    async def chat(
        self,
        model: str,
        *,
        kind: str = "chat",
        key: str | None = None,
        stream: bool | None = None,
        dialect: Dialect | None = None,
        order: Order | None = None,
        leave: Leave = "",
        content: Any = None,
        most: int = 200,
        credential: str | None = None,
        **more: Any,
    ) -> Seen:
        """A chat in one of the two dialects. `most`: the longest answer, in tokens. `content`: of the message, given
        its text."""
        number = next(self._numbers)
        stream = self._dice.random() < 0.7 if stream is None else stream
        dialect = dialect or ("ollama" if self._dice.random() < 0.2 else "openai")
        message: dict[str, Any] = {"role": "user", "content": self._prompt(number)}
        if content is not None:
            message |= content(message["content"])
        body: dict[str, Any] = {"model": model, "stream": stream, "messages": [message], **more}
        if dialect == "ollama":
            path = "/api/chat"
            body["options"] = {"num_predict": most}
        else:
            path = "/v1/chat/completions"
            body["max_tokens"] = most
            if stream and number % 2:
                body["stream_options"] = {"include_usage": True}
        shown = f"{kind}, {'streamed' if stream else 'whole'}" if kind == "chat" else kind
        return await self.send(
            shown, path, body,
            key=key or self._key(), number=number, order=order or self._order(), leave=leave, credential=credential,
        )  # fmt: skip

    async def generate(self, model: str) -> Seen:
        number = next(self._numbers)
        body = {"model": model, "prompt": self._prompt(number), "stream": True, "options": {"num_predict": 100}}
        return await self.send("generate", "/api/generate", body, key=self._key(), number=number, order=self._order())

    async def text(self) -> Seen:
        """The old completions."""
        number = next(self._numbers)
        body = {"model": "qwen3-coder-30b", "prompt": f"def answer(): # (#{number})", "max_tokens": 60}
        return await self.send(
            "completions", "/v1/completions", body, key=self._key(), number=number, order=self._order(words=20)
        )

    async def embed(self) -> Seen:
        number = next(self._numbers)
        texts = [f"a sentence to find again (#{number})", "and another one"]
        dialect = self._dice.random()
        if dialect < 0.4:
            path, model = "/api/embed", "bge-m3"
        else:
            path, model = "/v1/embeddings", "text-embedding-3-small" if dialect < 0.7 else "bge-m3"
        body = {"model": model, "input": texts}
        return await self.send("embeddings", path, body, key=self._key(), number=number, order=Order())

    async def tools(self) -> Seen:
        model = self._any("gpt-5-mini", "gemini-3-flash", "qwen3-32b")
        return await self.chat(model, kind="tools", order=self._order(words=4, tool=True), tools=TOOLS)

    async def see(self) -> Seen:
        def openai(text: str) -> Mapping[str, Any]:
            url = {"url": f"data:image/png;base64,{self._picture}"}
            return {"content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]}

        def ollama(text: str) -> Mapping[str, Any]:
            return {"content": text, "images": [self._picture]}

        if self._dice.random() < 0.3:
            return await self.chat(scene.GPU_MODEL, kind="images", dialect="ollama", content=ollama)
        return await self.chat(self._any("gpt-4o", "gemini-3-flash"), kind="images", dialect="openai", content=openai)

    async def think(self) -> Seen:
        """An answer with reasoning, to a prompt that the provider has in its cache."""
        order = self._order(words=30, reasoning=60, cached=50)
        return await self.chat(
            self._any("gpt-5-mini", "gemini-3-flash"), kind="reasoning", dialect="openai", order=order
        )

    async def several(self, count: int, make: Callable[[int], Awaitable[Seen]], pause: float = 0.03) -> list[Seen]:
        """The same call so many times, almost at once."""

        async def later(at: int) -> Seen:
            await asyncio.sleep(at * pause)
            return await make(at)

        return await asyncio.gather(*(later(at) for at in range(count)))

    # --- acts

    async def each_kind(self) -> None:
        """However the dice of the mix fall, nothing is missing."""
        models = ("kimi-k2.6", "doubao-seed-1-8", "gemini-3-flash", "qwen3-32b", "qwen3-coder-30b", "gpt-4o")
        calls = [make for _, make in self._mix] + [lambda model=model: self.chat(model) for model in models]
        await self.several(len(calls), lambda at: calls[at](), 0.1)
        for _ in range(20):  # where its fallback's queue is full, nobody answers
            if (await self.chat("reserve")).fallback is not None:
                return

    async def near_the_budget(self) -> None:
        """Until nine tenths of the day's budget are spent: `course` is what the boards should warn of."""
        for _ in range(200):
            spent, limit = self._budget("class-a", "team.budget_day")
            if spent >= 0.93 * limit:
                return
            # The hold of a call must fit into what is left: long calls first, short ones towards the end.
            most = 400 if limit - spent > 0.2 * limit else 60
            order = Order(words=most, pace=0)
            await self.chat("gpt-4o", kind="a budget's end", key="class-a", dialect="openai", order=order, most=most)

    def _budget(self, key: str, name: str) -> tuple[float, float]:
        """What is spent of a limit, and the limit."""
        reply = self.house.admin.request("GET", "/v1/usage", key=self.house.credentials[key])
        (found,) = [limit for limit in reply.json["limits"] if limit["name"] == name]
        return float(found["spent"]), float(found["limit"])

    async def too_many(self) -> None:
        await self.several(14, lambda _: self.chat("qwen3-32b", kind="beyond rpm", key="ci"))

    async def refused(self) -> None:
        await asyncio.gather(
            self.chat("gpt-7-ultra", kind="refused", dialect="openai"),
            self.chat("llama9:900b", kind="refused", dialect="ollama"),
            self.chat("gpt-5-mini", kind="refused", credential="sk-nonsense"),
            self.chat("gpt-5-mini", kind="refused", credential=""),
            self.chat("gpt-5-mini", kind="refused", key="kiosk"),
            self.chat("qwen3-32b", kind="refused", dialect="openai", temperature="warm"),
        )

    async def leaving(self) -> None:
        early = Order(trouble=dict.fromkeys(scene.MODELS, "endless"))
        models = ("gpt-5-mini", "gemini-3-flash", "doubao-seed-1-8")

        def one(at: int) -> Awaitable[Seen]:
            leave: Leave = "early" if at % 3 == 0 else "amid"
            # A whole answer that never comes: nothing has been said when its client leaves.
            return self.chat(
                models[at % len(models)], kind="client leaves", stream=leave == "amid", order=early, leave=leave
            )

        await self.several(9, one)

    async def outage(self) -> None:
        books = self.house.books
        books.outages["openai"] = "503"
        try:
            await self.several(24, lambda _: self.chat("gpt-5-mini", kind="outage"), 0.05)
            # Callers who want no other model are told.
            dialects: Sequence[Dialect] = ("openai", "ollama", "openai")
            await self.several(3, lambda at: self.chat("only-openai", kind="outage", dialect=dialects[at]))
            await asyncio.sleep(min(4.0, 0.1 * self._length))
        finally:
            del books.outages["openai"]

    async def used_up(self) -> None:
        for count in (16, 3):  # the last ones when no running call could give anything back
            await self.several(count, lambda _: self.chat("qwen3-32b", kind="beyond a quota", key="class-b"), 0.05)

    async def pause(self) -> None:
        order = self._order(trouble={"kimi": "429"})
        await self.several(6, lambda _: self.chat("kimi-k2.6", kind="rate limited", order=order), 0.1)

    async def crowd(self) -> None:
        """Each of the GPU's places is taken, its queue is full; who may not go elsewhere is told so."""
        slow = Order(words=60, pace=min(0.12, 0.005 * self._length))
        seconds = slow.seconds / 2
        kiosk = self.several(8, lambda _: self.chat("only-gpu", kind="GPU crowd", key="kiosk", order=slow), seconds / 8)
        others = self.several(12, lambda _: self.chat(scene.GPU_MODEL, kind="GPU crowd", order=slow), seconds / 12)
        await asyncio.gather(kiosk, others)

    async def broken(self) -> None:
        # The campus server is the one that is given up soon.
        order = {name: Order(words=40, trouble={"campus": name}) for name in ("silent", "garbage", "cut", "untold")}
        asks = [self.chat("qwen3-coder-30b", kind="breaks", stream=True, order=one) for one in order.values()]
        asks.append(self.chat("qwen3-coder-30b", kind="breaks", stream=False, order=order["untold"]))
        asks.append(self.chat("qwen3-coder-30b", kind="breaks", stream=False, order=order["garbage"]))
        longer = Order(words=20, trouble={"campus": "more"})
        asks.append(self.chat("qwen3-coder-30b", kind="more than asked", order=longer, most=30))
        await asyncio.gather(*asks)

    async def bad_config(self) -> None:
        models = {**self.house.config["models"], "broken": {"targets": ["nobody/knows"]}}
        self.house.reload({**self.house.config, "models": models})

    async def good_config(self) -> None:
        models = {**self.house.config["models"], "newcomer": {"targets": ["campus/qwen3-32b"]}}
        self.house.reload({**self.house.config, "models": models})

    async def newcomer(self) -> None:
        await self.several(4, lambda _: self.chat("newcomer", kind="chat"))

    async def frozen(self) -> None:
        with self.house.store_frozen():
            until = time.monotonic() + FROZEN
            # With a limit on it, the first one may not go to a local model.
            firm = self.chat("gpt-5-mini", kind="store stands still", key="editor", dialect="openai")
            await asyncio.gather(
                firm, self.several(5, lambda _: self.chat("gpt-5-mini", kind="store stands still"), 0.1)
            )
            await asyncio.sleep(max(0.0, until - time.monotonic()))

    async def bundled(self) -> None:
        for text in ("What is the capital of France?", "中国的首都是哪里？"):
            await self.chat(
                "demo", kind="bundled model", content=lambda _, text=text: {"content": text},
                dialect="openai", stream=False, most=16,
            )  # fmt: skip
