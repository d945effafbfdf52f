"""A thousand streams whose clients leave at random instants: one end each, and every book says the same."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests.money.bank import INPUT, OUTPUT, Account, Bank, chat
from tests.router.test_serve import Connections
from tests.simulators.client import OPENAI
from tests.simulators.dialects import USAGE
from tests.simulators.server import Exchange, Simulator
from tests.simulators.waiting import until

STREAMS = 1000
AT_ONCE = 100
PIECE = "word"
"""Four characters: a token by our count."""
PIECES = 12
PROMPT = 6
"""Of `Hello`, by our count."""


class Clock:
    """What each call's provider delivered: how many pieces, and whether it came to the end."""

    def __init__(self) -> None:
        self.delivered: dict[str, int] = {}
        self.finished: set[str] = set()

    async def __call__(self, x: Exchange) -> None:
        model = x.request.model
        assert model not in self.delivered, "asked twice"
        self.delivered[model] = 0
        await asyncio.sleep(0.01)
        await x.open_stream()
        await x.chunk(x.dialect.opening(x.request))
        for _ in range(PIECES):
            await asyncio.sleep(0.02)
            self.delivered[model] += 1
            await x.chunk(x.dialect.content(x.request, PIECE))
        self.finished.add(model)
        for frame in x.dialect.finish(x.request):
            await x.chunk(frame)
        await x.end_chunks()


@pytest.fixture(scope="module")
def clock(cloud: Simulator) -> Clock:
    made = Clock()
    cloud.scripts["ticking"] = made
    return made


async def one(port: int, account: Account, model: str, dice: random.Random) -> tuple[str, int]:
    """A call, how its client went (`early` before it has an answer, `amid`, or with all of it: `whole`), and the pieces
    that it got.

    It stays for some time, or for some pieces, or to the end.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = writer.get_extra_info("socket")
    writer.write(chat(account.credential, OPENAI.body(model, stream=True, max_tokens=50)))
    seen = b""
    patience = dice.choice((dice.uniform(0, 0.02), dice.uniform(0, 0.5), 30.0, 30.0))
    most = dice.choice((dice.randrange(PIECES), PIECES + 1))
    try:
        async with asyncio.timeout(patience):
            while not seen.endswith(b"0\r\n\r\n"):
                if seen.count(PIECE.encode()) > most:
                    raise TimeoutError
                part = await reader.read(65536)
                assert part, seen
                seen += part
    except TimeoutError:
        if dice.random() < 0.5:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        writer.transport.abort() if dice.random() < 0.5 else writer.close()
        pieces = seen.count(PIECE.encode())
        return "amid" if pieces else "early", pieces
    assert seen.startswith(b"HTTP/1.1 200"), seen
    writer.close()
    return "whole", PIECES


def crowd(at: Bank, accounts: list[Account], seed: int) -> dict[str, tuple[str, int]]:
    """All calls, so many at a time: how each client went, by model."""
    dice = random.Random(seed)

    async def run() -> dict[str, tuple[str, int]]:
        places = asyncio.Semaphore(AT_ONCE)

        async def call(number: int) -> tuple[str, tuple[str, int]]:
            model = f"ticking@{seed}-{number}"
            async with places:
                account = accounts[number % len(accounts)]
                return model, await one(at.router.port, account, f"cloud/{model}", random.Random(dice.random()))

        return dict(await asyncio.gather(*(call(number) for number in range(STREAMS))))

    return asyncio.run(run())


LIMITS: Mapping[str, Any] = {
    "concurrency": 200, "max_requests": 100_000, "max_tokens": {"month": "50m"}, "tpm": "50m", "rpm": 100_000,
    "budget": {"total": "500000usd", "day": "500000usd"},
}  # fmt: skip


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_thousand_streams(pair: Bank, cloud: Simulator, clock: Clock, seed: int) -> None:
    team = f"leaving {seed}"
    pair.team(team, limits=LIMITS)
    accounts = [pair.key(team, limits=LIMITS) for _ in range(3)]
    account = accounts[0].team
    since = len(pair.router.err)
    went = crowd(pair, accounts, seed)
    ways = Counter(way for way, _ in went.values())
    assert min(ways.values()) > STREAMS // 20, ways

    def lines() -> list[dict[str, Any]]:
        return [line for line in pair.lines(since) if (line["model"] or "").startswith(f"cloud/ticking@{seed}-")]

    # Who left before the whole request was read made no call: all is over when nothing has come for some time, in
    # which both workers and the store have answered again and again.
    known: list[tuple[int, int, int]] = []

    def over() -> bool:
        assert both.statuses("GET", "/healthz", "") == [200, 200]
        held = pair.holds(account)
        known.append((len(clock.delivered), len(lines()), len(pair.tombstones(account))))
        return held == 0 and len(known) > 20 and len(set(known[-20:])) == 1

    with Connections(pair.router) as both:
        until(over)
    pair.at_rest(account)
    asked = [model for model in went if model in clock.delivered]
    found = lines()
    by_model = {line["model"].partition("/")[2]: line for line in found}
    assert len(by_model) == len(found), "one line for each"
    assert set(asked) <= set(by_model)
    charged = {line["request_id"]: line for line in found if line["cost"] is not None}

    # One end for each call that began, in each of the books.
    graves = pair.tombstones(account)
    assert set(charged) <= set(graves)
    assert set(graves.values()) == {b""}, "all settled, none swept"
    rows = pair.recent(account)
    begun = Counter(row["id"] for row in rows if "status" not in row)
    ended = Counter(row["id"] for row in rows if "status" in row)
    assert set(begun.values()) | set(ended.values()) <= {1}
    # (Who left while the key was looked up was nobody's caller yet.)
    assert set(ended) == set(graves) == {line["request_id"] for line in found if line["key"] is not None}
    assert set(begun) <= set(ended), "what began has ended"
    assert set(charged) <= set(begun)

    # What was charged is what the provider delivered.
    cost = tokens = requests = 0
    for model, line in by_model.items():
        if model not in clock.delivered:
            # Where the client left while the router connected, the provider may have got the prompt.
            assert line["cost"] in (None, 0, PROMPT * INPUT), line
            if not line["cost"]:
                continue
        if model in clock.finished and line["mark"] == "measured":
            wanted = (USAGE["prompt_tokens"], USAGE["completion_tokens"])
            assert (line["tokens_in"], line["tokens_out"]) == wanted
        else:
            assert went[model][0] != "whole", line
            assert line["mark"] == "aborted", line
            # The report, where it had come already; the larger of it and our own count.
            assert line["tokens_in"] in ((PROMPT, USAGE["prompt_tokens"]) if model in clock.finished else (PROMPT,))
            # At least what the client got, at most what the provider sent: the rest was on its way.
            assert went[model][1] <= line["tokens_out"] <= clock.delivered.get(model, 0), (line, model)
        cost += line["tokens_in"] * INPUT + line["tokens_out"] * OUTPUT
        tokens += line["tokens_in"] + line["tokens_out"]
        requests += 1
    assert cost == sum(line["cost"] for line in charged.values())
    usage = pair.usage(account)
    assert (usage["cost"], usage["in"] + usage["out"], usage["calls"]) == (cost, tokens, len(charged))
    for scope in (None, "team"):
        found_in = [pair.counter(one, "budget_total", scope) for one in accounts]
        assert sum(spent for spent, _ in found_in) == cost * (1 if scope is None else 3)
        assert {held for _, held in found_in} == {0}
    for name, amount in (("budget_day", cost), ("max_tokens_month", tokens), ("max_requests", requests)):
        assert pair.counter(accounts[0], name, "team") == (amount, 0), name
        assert sum(pair.counter(one, name)[0] for one in accounts) == amount
    assert sum(pair.usage(account, one.id)["cost"] for one in accounts) == cost
    assert {pair.counter(accounts[0], "concurrency", scope) for scope in (None, "team")} == {(0, 0)}

    def in_flight() -> list[float]:
        metrics = pair.admin.request("GET", "/metrics").body.decode()
        named = [line for line in metrics.splitlines() if "in_flight" in line and not line.startswith("#")]
        return [float(line.rsplit(" ", 1)[1]) for line in named]

    until(lambda: in_flight() == [0.0], what=in_flight)
