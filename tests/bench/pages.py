"""What the overview page and a scrape cost, with many keys and a million calls behind them.

    python -m tests.bench.pages                     # 1,000 keys, 1,000,000 calls of two days; about two minutes
    python -m tests.bench.pages --single            # each call settled by itself; some minutes

The calls are settled by the ledger's own function in a running router's store, many in one pipeline. Unless `--single`,
a bill stands for several calls, and there is one for every key, model, provider and hour: the sums have at least the
fields that as many calls one by one would make.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from itertools import islice
from pathlib import Path
from typing import Final

import orjson

from router.cabinet import Cabinet
from router.checks import Amounts, Calendar, checks_of, pack_value, packed
from router.credentials import load_pepper
from router.functions import account_keys, fcall
from router.limits import Limit
from router.link import Links
from router.periods import HOUR
from router.records import Record, TeamRecord
from router.store import open_store
from tests.bench import procs
from tests.bench.pairs import FOUR, new_key, new_team, write
from tests.pages.site import Site
from tests.simulators import scripts
from tests.simulators.client import OLLAMA, OPENAI, Client
from tests.simulators.router import RouterProcess

HOURS: Final = 48
"""The page shows a day, and the same part of the day before."""
USED: Final = 8
"""Models at providers that each key uses."""
AT_ONCE: Final = 2000
"""Settlements on their way at the same time."""
PROVIDERS: Final = 10
WORKERS: Final = 2
PAIRS: Final = tuple((f"model-{number % 12}", f"provider-{number % 5}") for number in range(24))
BUDGET: Final = (Limit(measure="cost", window="month", amount=50_000_000_000, currency="usd"),)
CHECKS: Final = checks_of(BUDGET, "team", "team.", bool, 1.0)


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is, and how often is looked."""

    keys: int = 1000
    teams: int = 20
    calls: int = 1_000_000
    models: int = 200
    single: bool = False
    rounds: int = 7


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of each look: until the answer was there, and the CPU of the router and of its store."""

    wall: tuple[float, ...]
    router: tuple[float, ...]
    store: tuple[float, ...]


@dataclass
class Found:
    """What was measured. `seconds`: of the settling; `fields`: of all hashes of sums."""

    bills: int = 0
    calls: int = 0
    seconds: float = 0.0
    fields: int = 0
    memory: int = 0
    """Bytes that the store uses."""
    pages: dict[str, Times] = field(default_factory=dict)
    scrape: Times = Times((), (), ())
    lines: int = 0
    """Of a scrape."""


# --- what is behind the page


@dataclass(frozen=True, slots=True)
class _Settled:
    team: str
    key: str
    model: str
    provider: str
    hour: int
    calls: int


def _cells(keys: Sequence[tuple[str, str]], size: Size, now: float) -> Iterator[_Settled]:
    """The calls as bills: by hour, as they would have come."""
    dice = random.Random(11)
    mine = {key: dice.sample(PAIRS, USED) for _, key in keys}
    last = int(now // HOUR)
    cells = len(keys) * USED * HOURS
    each, rest = divmod(size.calls, cells)
    number = 0
    for hour in range(last - HOURS + 1, last + 1):
        for team, key in keys:
            for model, provider in mine[key]:
                calls = each + (number * rest // cells != (number + 1) * rest // cells)
                number += 1
                for some in [1] * calls if size.single else [calls] * bool(calls):
                    yield _Settled(team, key, model, provider, hour, some)


def _command(one: _Settled, number: int, calendar: Calendar, now: float) -> bytes:
    """The settlement of a call that began in its hour, as the ledger sends it."""
    prefix = f"sy:{{{one.team}}}:"
    moment = min(one.hour * HOUR + number % HOUR, now)
    tokens_in, tokens_out, cost = (100 + number % 900) * one.calls, (20 + number % 300) * one.calls, 1234 * one.calls
    failed = number % 50 == 0
    where = f"{one.model}\t{one.provider}\t"
    metrics: list[str | int] = [f"{where}calls", one.calls, f"{where}in", tokens_in, f"{where}out", tokens_out]
    metrics += [f"{where}cost", cost]
    if failed:
        metrics += [f"{where}errors", 1]
    if number % 10 == 0:
        metrics += [f"{where}fallbacks", 1]
    row = {
        "id": f"b{number}", "time": moment, "key": one.key, "dialect": "openai", "op": "chat", "model": one.model,
        "status": 502 if failed else 200, "outcome": "provider_error" if failed else "ok", "fallback": None,
        "answered_by": f"{one.provider}/{one.model}", "ms": 340.0, "first_content_ms": 120.0 + number % 400,
        "tokens_in": tokens_in, "tokens_out": tokens_out, "cost": cost, "mark": "measured", "stream": True,
    }  # fmt: skip
    checks = packed(CHECKS, Amounts(tokens_in + tokens_out, cost), calendar, now, {})
    usage = f"{one.key}\t"
    day = calendar.day(moment)
    bill = [one.calls, tokens_in + tokens_out, cost, usage, metrics, str(one.hour), day, orjson.dumps(row).decode()]
    arguments = (prefix, f"b{number}", str(one.hour), checks, pack_value(bill), one.key)
    return fcall("settle", account_keys(prefix), arguments)


async def fill(data: Path, size: Size) -> tuple[Found, str]:
    """Teams, keys and calls into the store of a running router; and a credential of one of the keys."""
    found = Found()
    now = time.time()
    pepper = load_pepper(data, {})
    store = await open_store("embedded", data, role="command")
    try:
        teams: list[TeamRecord] = [new_team(f"team-{number:03}", BUDGET) for number in range(size.teams)]
        made = [new_key(pepper, teams[number % size.teams].id, FOUR) for number in range(size.keys)]
        records: list[Record] = [record for record, _ in made]
        await write(Cabinet(store), teams, records)
        links = Links(store)
        calendar = Calendar(UTC)
        began = time.perf_counter()
        try:
            cells = _cells([(record.team, record.id) for record in records], size, now)
            while some := list(islice(cells, AT_ONCE)):
                asked = []
                for one in some:
                    asked.append(links.ask(one.team, _command(one, found.bills, calendar, now), limit=60.0))
                    found.bills += 1
                    found.calls += one.calls
                for answer in await asyncio.gather(*asked):
                    assert answer[0] == 1, answer
        finally:
            await links.close()
        found.seconds = time.perf_counter() - began
        for prefix in ("uh", "ud", "sh"):
            for team in teams:
                for name in await store.run("KEYS", f"sy:{{{team.id}}}:{prefix}:*"):
                    found.fields += await store.run("HLEN", name)
        found.memory = int((await store.run("INFO", "memory"))["used_memory"])
    finally:
        await store.close()
    return found, made[-1][1]


# --- looking


class Looker:
    """One connection, and the processes whose CPU is counted."""

    def __init__(self, router: RouterProcess) -> None:
        record = json.loads((router.directory / "data" / "store" / "server.json").read_text())
        self._store = frozenset({int(record["pid"])})
        self._router = frozenset(router.family()) - self._store
        self._link = http.client.HTTPConnection("127.0.0.1", router.port, timeout=60)

    def close(self) -> None:
        self._link.close()

    def get(self, path: str, headers: dict[str, str]) -> bytes:
        self._link.request("GET", path, headers=headers)
        answer = self._link.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {data[:200]!r}")
        return data

    def measure(self, look: Callable[[], object], rounds: int, before: Callable[[], object] = lambda: None) -> Times:
        """`before` is done before each look and not counted."""
        wall, router, store = [], [], []
        for _ in range(rounds):
            before()
            used = procs.cpu(self._router), procs.cpu(self._store)
            began = time.perf_counter()
            look()
            wall.append((time.perf_counter() - began) * 1000)
            router.append(procs.difference(used[0], procs.cpu(self._router)) * 1000)
            store.append(procs.difference(used[1], procs.cpu(self._store)) * 1000)
        return Times(tuple(wall), tuple(router), tuple(store))


def _look_at_pages(router: RouterProcess, credential: str, rounds: int) -> dict[str, Times]:
    found = {}
    looker = Looker(router)
    try:
        for who, secret in (("administrator", router.admin_token), ("holder of a key", credential)):
            site = Site(router.port)
            if site.sign_in(secret).status not in (200, 303):
                raise RuntimeError(f"the {who} cannot sign in")
            headers = {"cookie": "; ".join(f"{name}={value}" for name, value in site.cookies.items())}

            def look(headers: dict[str, str] = headers) -> bytes:
                return looker.get("/admin", headers)

            # The first one reads two days, the next ones what has changed since; then those who look within a moment.
            found[f"{who}, the first page"] = looker.measure(look, 1)
            slowest = max(found[f"{who}, the first page"].wall) / 1000
            pause = max(2.2, min(20 * slowest, 10.0))
            found[f"{who}, read anew"] = looker.measure(look, rounds, lambda pause=pause: time.sleep(pause))  # type: ignore[misc]  # a default fixes the value
            found[f"{who}, shared reading"] = looker.measure(look, 3 * rounds)
    finally:
        looker.close()
    return found


def _models(size: Size) -> list[str]:
    return [f"vendor-model-{number:03}" for number in range(size.models)]


def config(url: str, size: Size) -> dict[str, object]:
    """Many models at some providers."""
    names = _models(size)
    provider = {"vendor": "openai-compatible", "base_url": f"{url}/v1", "api_key": "k"}
    return {
        "providers": {
            f"provider-{at}": {**provider, "models": names[at::PROVIDERS]} for at in range(min(PROVIDERS, len(names)))
        },
        "models": {name: {"targets": [f"provider-{at % PROVIDERS}/{name}"]} for at, name in enumerate(names)},
    }


def _scrape(router: RouterProcess, size: Size, rounds: int) -> tuple[Times, int]:
    """Every model has been asked for in both dialects; then `/metrics` is read, with a rest in between."""
    client = Client(router.port, router.key, seconds=30)
    for name in _models(size):
        for dialect, stream in ((OPENAI, False), (OLLAMA, True)):
            reply = client.ask(dialect, name, stream=stream)
            if reply.status != 200:
                raise RuntimeError(f"{name}: {reply}")
    looker = Looker(router)
    headers = {"authorization": f"Bearer {router.admin_token}"}
    try:
        text = looker.get("/metrics", headers)
        times = looker.measure(lambda: looker.get("/metrics", headers), rounds, lambda: time.sleep(0.2))
    finally:
        looker.close()
    return times, sum(not line.startswith(b"#") for line in text.splitlines())


def measure(size: Size, directory: Path, say: Callable[[str], None]) -> Found:
    """All of it. Raises RuntimeError."""
    with scripts.provider() as upstream:
        router = RouterProcess(directory, config(upstream.url, size), arguments=["--workers", str(WORKERS), "--no-log"])
        with router:
            found, credential = asyncio.run(fill(directory / "data", size))
            say(f"{found.calls:,} calls are in the store, in {found.seconds:.0f} s")
            found.pages = _look_at_pages(router, credential, size.rounds)
            say("pages done")
            found.scrape, found.lines = _scrape(router, size, 3 * size.rounds)
    return found


# --- the tables


def _cell(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:7.1f} (worst {max(values):.1f})" if len(values) > 1 else f"{middle:7.1f}"


def text(found: Found, size: Size) -> str:
    lines = [
        f"{size.keys:,} keys in {size.teams} teams, {found.calls:,} calls of {HOURS} hours in {found.bills:,} bills:"
        f" {found.fields:,} sums, {found.memory / 2**20:.0f} MiB in the store",
        "",
        f"{'GET /admin':<36}{'answered in ms':>24}{'router CPU ms':>24}{'store CPU ms':>24}",
    ]
    rows = [*found.pages.items(), (f"/metrics, {size.models} models, {found.lines:,} lines", found.scrape)]
    for name, times in rows:
        lines.append(f"{name:<36}{_cell(times.wall):>24}{_cell(times.router):>24}{_cell(times.store):>24}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Size()
    parser.add_argument("--keys", type=int, default=defaults.keys)
    parser.add_argument("--teams", type=int, default=defaults.teams)
    parser.add_argument("--calls", type=int, default=defaults.calls)
    parser.add_argument("--models", type=int, default=defaults.models, help="of the scrape")
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--single", action="store_true", help="a settlement for every call")
    size = Size(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory(prefix="switchyard-pages-", dir=os.environ.get("TMPDIR")) as folder:
        print(text(measure(size, Path(folder), print), size))


if __name__ == "__main__":
    main()
