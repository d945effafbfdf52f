"""A worker dies with live streams: what they held comes back, what they had used is charged, the others serve on."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from router.holds import LEASE, PACE, SWEEP_PACE
from tests.money.bank import INPUT, OUTPUT, Bank, chat
from tests.router.test_serve import sockets_of, workers_of
from tests.simulators.client import OPENAI
from tests.simulators.server import Exchange, Simulator
from tests.simulators.waiting import until

STREAMS = 20
"""Of the worker that dies, at least."""
PAUSE = 0.05
PROMPT = 6
BACK = 40.0
"""Seconds within which everything is back."""

pytestmark = pytest.mark.slow


class Drip:
    """A token each PAUSE, for as long as anyone listens: when each was sent, by model."""

    def __init__(self) -> None:
        self.sent: dict[str, list[float]] = {}

    async def __call__(self, x: Exchange) -> None:
        times = self.sent[x.request.model] = []
        await x.open_stream()
        await x.chunk(x.dialect.opening(x.request))
        while not x.peer.gone.is_set():
            times.append(time.monotonic())
            await x.chunk(x.dialect.content(x.request, "word"))
            await asyncio.sleep(PAUSE)


class Streams(threading.Thread):
    """Clients that read for as long as they are sent anything; `broken` are those whose connection ended."""

    def __init__(self, port: int, requests: dict[str, bytes]) -> None:
        super().__init__()
        self._port = port
        self._requests = requests
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self.started: set[str] = set()
        self.broken: dict[str, float] = {}

    def run(self) -> None:
        self._loop.run_until_complete(self._all())
        self._loop.close()

    async def _all(self) -> None:
        tasks = [asyncio.create_task(self._one(name, data)) for name, data in self._requests.items()]
        await self._over.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _one(self, name: str, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(data)
            while part := await reader.read(65536):
                if b"word" in part:
                    self.started.add(name)
        except OSError:
            pass  # the worker died: its sockets are reset
        finally:
            writer.close()
        self.broken[name] = time.monotonic()

    def __enter__(self) -> Streams:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(20)


class Serving(threading.Thread):
    """A short call every 0.2 s: how many were answered, and what else came."""

    def __init__(self, at: Bank) -> None:
        super().__init__()
        self._client = at.key().client
        self._over = threading.Event()
        self.answered = 0
        self.others: list[object] = []

    def run(self) -> None:
        while not self._over.wait(0.2):
            try:
                reply = self._client.ask(OPENAI, "cloud/answer", stream=False)
            except OSError as error:
                self.others.append(error)
                continue
            if reply.status == 200:
                self.answered += 1
            else:
                self.others.append(reply)

    def __enter__(self) -> Serving:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(20)


def test_a_worker_is_killed(pair: Bank, cloud: Simulator) -> None:
    drip = Drip()
    cloud.scripts["drip"] = drip
    limits = {"concurrency": 1000, "budget": {"total": "500000usd"}, "max_tokens": "500m", "tpm": "500m"}
    account = pair.key(limits=limits)
    requests = {
        f"drip@{number}": chat(account.credential, OPENAI.body(f"cloud/drip@{number}", stream=True, max_tokens=50))
        for number in range(4 * STREAMS)
    }
    idle = {pid: len(sockets_of(pid)) for pid in workers_of(pair.router)}
    with Streams(pair.router.port, requests) as streams:
        until(lambda: len(streams.started) == len(requests), 20)
        assert pair.holds(account.team) == len(requests)
        shares = {pid: len(sockets_of(pid)) - count for pid, count in idle.items()}
        victim = max(shares, key=lambda pid: shares[pid])
        time.sleep(2 * PACE)  # each has told of itself at least once
        with Serving(pair) as serving:
            os.kill(victim, signal.SIGKILL)
            killed_at = time.monotonic()
            until(lambda: len(streams.broken) >= STREAMS, 15)
            left = len(requests) - len(streams.broken)
            took = until(lambda: pair.holds(account.team) == left, BACK)
            assert took > LEASE / 2, "nobody else's hold is taken"
            assert len(streams.broken) == len(requests) - left, "the other worker's streams go on"
            assert pair.counter(account, "concurrency")[1] == left
            until(lambda: serving.answered > 10)
        # At most those that the dead worker had accepted and not answered.
        assert len(serving.others) <= 1, serving.others
        assert all(isinstance(other, OSError) for other in serving.others), serving.others

        lost = {row["id"]: row for row in pair.recent(account.team) if row.get("lost")}
        graves = {call for call, grave in pair.tombstones(account.team).items() if grave.startswith(b"s")}
        assert len(lost) == len(streams.broken)
        assert set(lost) == graves
        by_model = {row["answered_by"].partition("/")[2]: row for row in lost.values()}
        assert set(by_model) == set(streams.broken)
        cost = 0
        for model, row in by_model.items():
            output = (row["cost"] - PROMPT * INPUT) // OUTPUT
            sent = drip.sent[model]
            before = sum(at < killed_at - PACE - 0.5 for at in sent)
            assert before - 2 <= output <= len(sent), (output, before, len(sent))
            cost += PROMPT * INPUT + output * OUTPUT
        usage = pair.usage(account.team)
        assert (usage["cost"], usage["calls"], usage["aborted"]) == (cost, len(lost), len(lost))
        assert pair.counter(account, "budget_total")[0] == cost
        assert pair.counter(account, "max_tokens")[0] == usage["in"] + usage["out"]
    pair.at_rest(account.team, 10)
    assert pair.usage(account.team)["calls"] == len(requests)
    assert pair.counter(account, "budget_total")[0] == pair.usage(account.team)["cost"]
    assert pair.counter(account, "concurrency") == (0, 0)
    print(f"back after {took:.1f} s (lease {LEASE:g}, sweeps each {SWEEP_PACE:g}); {len(lost)} streams were lost")
