"""Callers that ask a router without a pause, each on a connection of its own, and what became of every call.

They run in a thread with a loop of its own, so that a test may kill servers meanwhile. `lag` is the longest that the
loop itself was kept waiting: what the clock of a busy machine adds to every time measured here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

TICK = 0.01
GIVE_UP = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call. `began`, `ended`: monotonic seconds; `status` 0: the connection ended before the head."""

    began: float
    head: float
    ended: float
    status: int
    body: bytes
    stream: bool

    @property
    def seconds(self) -> float:
        """Until the head of the answer."""
        return self.head - self.began

    @property
    def complete(self) -> bool:
        if self.status != 200:
            return False
        if not self.stream:
            return self.body.endswith(b"}")
        return self.body.endswith(b"data: [DONE]\n\n") and b'data: {"error"' not in self.body

    @property
    def code(self) -> str:
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""


class Load:
    """`callers` connections to `port`, each with a call every `pace` seconds or, if answers take longer, less often."""

    def __init__(
        self,
        port: int,
        key: str,
        *,
        model: str = "sim/paid",
        callers: int = 32,
        pace: float = 0.05,
        stream: bool | None = None,
        most: float = math.inf,
        **more: Any,
    ) -> None:
        """`stream` None: every other call. `most`: calls of one caller. `more`: fields of the request."""
        self.outcomes: list[Outcome] = []
        self.lag = 0.0
        self._port, self._key, self._model, self._callers, self._pace = port, key, model, callers, pace
        self._stream, self._most, self._more = stream, most, more
        self._ends = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True, name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let the running calls end, and begin no more."""
        self._ends = True
        self._thread.join(GIVE_UP + 5)
        assert not self._thread.is_alive(), "a call hangs"

    def wait(self) -> Load:
        """Until every caller has made its `most` calls."""
        self._thread.join(GIVE_UP + 5)
        assert not self._thread.is_alive(), "a call hangs"
        return self

    # --- what became of it

    @property
    def statuses(self) -> Counter[int]:
        return Counter(outcome.status for outcome in list(self.outcomes))

    def answered(self) -> list[Outcome]:
        return [outcome for outcome in list(self.outcomes) if outcome.status == 200]

    def refused(self) -> list[Outcome]:
        return [outcome for outcome in list(self.outcomes) if outcome.status != 200]

    def since(self, moment: float) -> list[Outcome]:
        return [outcome for outcome in list(self.outcomes) if outcome.began >= moment]

    def gap(self, moment: float) -> float:
        """Seconds from `moment` to the end of the last refusal after it: the service is whole from then on."""
        return max((outcome.ended - moment for outcome in self.refused() if outcome.ended > moment), default=0.0)

    def slowest(self, share: float = 1.0) -> float:
        """The seconds within which this share of all calls knew their answer's head."""
        times = sorted(outcome.seconds for outcome in list(self.outcomes))
        return times[max(0, math.ceil(len(times) * share) - 1)] if times else 0.0

    def told(self) -> str:
        return (
            f"{len(self.outcomes)} calls {dict(self.statuses)}, head after p50 {self.slowest(0.5) * 1000:.0f} ms,"
            f" p99 {self.slowest(0.99) * 1000:.0f} ms, max {self.slowest() * 1000:.0f} ms, lag {self.lag * 1000:.0f} ms"
        )

    # --- asking

    async def _run(self) -> None:
        watch = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._caller(number) for number in range(self._callers)))
        watch.cancel()

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK)
            self.lag = max(self.lag, time.monotonic() - began - TICK)

    async def _caller(self, number: int) -> None:
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        made = 0
        if self._pace:
            await asyncio.sleep(self._pace * number / self._callers)
        while not self._ends and made < self._most:
            stream = self._stream if self._stream is not None else bool((number + made) % 2)
            began = time.monotonic()
            fresh = line is None
            try:
                async with asyncio.timeout(GIVE_UP):
                    if line is None:
                        line = await asyncio.open_connection("127.0.0.1", self._port)
                    outcome = await self._ask(*line, stream, began)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                if line is not None:
                    line[1].close()
                line = None
                if not fresh and isinstance(error, asyncio.IncompleteReadError) and not error.partial:
                    continue  # the idle connection had ended
                outcome = Outcome(began, time.monotonic(), time.monotonic(), 0, repr(error).encode(), stream)
            made += 1
            self.outcomes.append(outcome)
            if line is not None and line[1].is_closing():
                line = None
            await asyncio.sleep(max(self._pace - (time.monotonic() - began), 0.001))
        if line is not None:
            line[1].close()
            with contextlib.suppress(OSError):
                await line[1].wait_closed()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: bool, began: float
    ) -> Outcome:
        messages = [{"role": "user", "content": "Hello"}]
        body = json.dumps({"model": self._model, "messages": messages, "stream": stream, **self._more}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (self._key.encode(), len(body), body)
        )
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        head = time.monotonic()
        status = int(text[9:12])
        headers = dict(line.lower().split(": ", 1) for line in text.split("\r\n")[1:] if ": " in line)
        data = b""
        try:
            if "content-length" in headers:
                data = await reader.readexactly(int(headers["content-length"]))
            else:
                while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                    data += (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
        except asyncio.IncompleteReadError:
            writer.close()  # an answer that was broken off
        return Outcome(began, head, time.monotonic(), status, data, stream)
