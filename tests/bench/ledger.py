"""What the ledger costs: of each call, and of many keys. Started by `python -m tests.bench --only ledger`."""

import asyncio
import contextlib
import dataclasses
import itertools
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from router.cabinet import Cabinet
from router.credentials import load_pepper
from router.store import open_store
from tests.bench import procs, run
from tests.bench.gateways import LIMITED, METERED, ROOT, UNBILLED, UNMETERED, Lane, Site
from tests.bench.pairs import FOUR, MONEY, Pair, new_key, new_team, write
from tests.bench.report import MANY, ONE, figure, number, table
from tests.bench.run import Cores, Phase, Plan, Row, Running, Sample, Trouble, cpu_per_call, free_port

_TEAMS: Final = 200
_CALLERS: Final = 5000
_FEW: Final = 10


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    calls: int
    seconds: float
    keys: int = 100_000
    pairs: int = 4000

    @property
    def callers(self) -> int:
        """Keys that the calls are spread over in the widest phase."""
        return min(_CALLERS, self.keys // 2)


@dataclass(slots=True)
class Keys:
    """What many keys cost."""

    number: int
    callers: int
    store_before: int = 0
    """Bytes that the store uses."""
    store_after: int = 0
    rest: float = 0.0
    """MiB of the router, before any of them has called."""
    once: float = 0.0
    """MiB of the router, after 25,000 of them have called, and after 25,000 others have."""
    twice: float = 0.0
    remembered: int = 0
    """How many called before each of these two looks."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    rows: list[Row]
    pairs: tuple[Pair, ...]
    keys: Keys | None

    @property
    def errors(self) -> int:
        wrong = sum(row.errors for row in self.rows)
        if self.keys is not None:
            wrong += sum(sample.result.errors for samples in self.keys.samples.values() for sample in samples)
        return wrong


SMALL, LARGE, SPREAD = f"{_FEW} keys of {_FEW}", f"{_FEW} keys of all", "many keys of all"


def measure(size: Size, cores: Cores, folder: Path, say: Callable[[str], None]) -> Report:
    """All of it. Raises Trouble."""
    phases = (
        Phase(ONE, 1, size.calls // 4, size.seconds / 2),
        Phase(MANY, 32, size.calls, size.seconds),
    )
    whole = folder / "whole"
    whole.mkdir()
    rows = run.run(Plan([METERED, LIMITED, UNMETERED, UNBILLED], phases, size.rounds, cores, whole, say))
    if len(rows) != 5:
        raise Trouble("a router did not start; the reason is above")
    alone = folder / "pairs"
    alone.mkdir()
    pairs = _pairs(size, cores, alone)
    say("pairs of reserve and settle done")
    keys = _keys(size, cores, folder, say)
    return Report(rows, pairs, keys)


def _pairs(size: Size, cores: Cores, folder: Path) -> tuple[Pair, ...]:
    command = [sys.executable, "-m", "tests.bench.pairs", str(folder), str(size.pairs), str(size.rounds)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if made.returncode:
        raise Trouble(f"tests.bench.pairs ended with {made.returncode}:\n{made.stderr[-1500:]}")
    return msgspec.json.decode(made.stdout, type=tuple[Pair, ...])


# --- many keys


async def _fill(running: Running, count: int) -> tuple[int, int, list[str]]:
    """Give the router's store `count` keys in teams; bytes that the store uses before and after, and credentials."""
    data = running.site.folder / "data"
    pepper = load_pepper(data, {})
    dice = random.Random(7)
    store = await open_store("embedded", data, role="command")
    try:
        before = int((await store.run("INFO", "memory"))["used_memory"])
        teams = [new_team(f"course-{number:03}", (*FOUR, *MONEY)) for number in range(min(_TEAMS, count))]
        made = []
        for number, team in zip(range(count), itertools.cycle(teams), strict=False):
            tags = tuple(dice.sample(("autumn", "bachelor", "exam", "lab-3", "night", "project"), 2))
            made.append(new_key(pepper, team.id, FOUR, owner=f"student{number:06}@example.edu", tags=tags))
        await write(Cabinet(store), teams, [record for record, _ in made])
        after = int((await store.run("INFO", "memory"))["used_memory"])
    finally:
        await store.close()
    return before, after, [credential for _, credential in made]


def _keys(size: Size, cores: Cores, folder: Path, say: Callable[[str], None]) -> Keys:
    keys = Keys(size.keys, size.callers)
    with contextlib.ExitStack() as stack:
        port, upstream_pid = stack.enter_context(run.upstream(cores))

        def started(name: str) -> Running:
            home = folder / name
            home.mkdir()
            running = Running(METERED, Site(free_port(), port, home), cores)
            stack.callback(running.stop)
            return running

        few, many = started("few"), started("many")
        _, _, small = asyncio.run(_fill(few, _FEW))
        keys.store_before, keys.store_after, large = asyncio.run(_fill(many, size.keys))
        say(f"{size.keys} keys are in the store")
        keys.rest = procs.memory(many.processes().router).rss

        def calls(running: Running, credentials: Sequence[str], phase: Phase, name: str) -> Sample:
            listed = folder / f"keys-{name.replace(' ', '-')}"
            listed.write_text("\n".join(credentials))
            job = run.job(running.site.port, Lane(""), credentials[0], phase)
            sample = run.measure(msgspec.structs.replace(job, keys=str(listed)), running, upstream_pid, cores, 0.1)
            if not sample.result.calls:
                raise Trouble(f"{name}: no call was answered, {sample.result.samples}")
            if sample.result.errors:
                say(f"{name}: {sample.result.errors} errors, {sample.result.samples}")
            return sample

        jobs = (
            (SMALL, few, small),
            (LARGE, many, large[:_FEW]),
            (SPREAD, many, large[-size.callers :]),
        )
        phase = Phase(MANY, 32, max(size.calls, size.callers), size.seconds * 2)
        for name, running, credentials in jobs:
            calls(running, credentials, phase, name)  # so that each key has called once
        for _ in range(size.rounds):
            for name, running, credentials in jobs:
                keys.samples.setdefault(name, []).append(calls(running, credentials, phase, name))
        keys.remembered = min(25_000, size.keys // 2)
        all_of_them = Phase(MANY, 32, keys.remembered, 60.0)
        calls(many, large[: keys.remembered], all_of_them, "first")
        keys.once = procs.memory(many.processes().router).rss
        calls(many, large[keys.remembered : 2 * keys.remembered], all_of_them, "second")
        keys.twice = procs.memory(many.processes().router).rss
    return keys


# --- the tables


def _noisy(values: Sequence[float]) -> str:
    if not values:
        return "–"
    middle = statistics.median(values)
    return figure(middle) + (f" ±{(max(values) - min(values)) / 2 / middle:.0%}" if len(values) > 1 and middle else "")


def _difference(row: Row, less: Row, phase: str) -> str:
    """Of each round: what both met at about the same time."""
    pairs = zip(row.values(phase, cpu_per_call), less.values(phase, cpu_per_call), strict=False)
    values = [one - other for one, other in pairs]
    return figure(statistics.median(values)) if values else "–"


def _p50(sample: Sample) -> float | None:
    return sample.result.latency.p50 if sample.result.latency else None


def whole(rows: Sequence[Row]) -> str:
    """The router with and without what counts."""
    _, metered, limited, unmetered, unbilled = rows
    head = (
        *("the whole router", "CPU µs/call", "of it the ledger", "of it bounds and bills"),
        *("CPU µs/call, 1 conn.", "of it the ledger", "p50 µs, 1 conn.", "store µs/call", "errors"),
    )
    lines = []
    for row in (metered, limited, unmetered, unbilled):
        counts, bills = row in (metered, limited), row is not unbilled
        lines.append(
            (
                row.gateway,
                _noisy(row.values(MANY, cpu_per_call)),
                _difference(row, unmetered, MANY) if counts else "–",
                _difference(unmetered, unbilled, MANY) if bills else "–",
                _noisy(row.values(ONE, cpu_per_call)),
                _difference(row, unmetered, ONE) if counts else "–",
                figure(row.median(ONE, _p50)),
                figure(row.median(MANY, run.store_per_call)),
                str(row.errors),
            )
        )
    return table(head, lines)


def pairs(found: Sequence[Pair]) -> str:
    """Reserve and settle by themselves."""
    head = (
        *(
            "reserve and settle by themselves",
            "CPU µs/pair",
            "questions before, after",
            "reserve p50 µs",
            "PING p50 µs",
        ),
        *("store µs: reserve", "settle", "heartbeat", "store bytes/call for 24 h"),
    )
    lines = []
    for pair in found:
        times = (pair.reserve_p50, pair.ping_p50, pair.store_reserve, pair.store_settle, pair.store_beat)
        asked = f"{pair.before}, {pair.after}"
        lines.append((pair.kind, _noisy(pair.cpu), asked, *map(figure, times), figure(pair.tombstone)))
    return table(head, lines)


def keys(found: Keys) -> str:
    """What many keys cost."""

    def cpu(name: str) -> list[float]:
        return [value for sample in found.samples.get(name, []) if (value := cpu_per_call(sample)) is not None]

    base = statistics.median(cpu(SMALL))
    spread = SPREAD.replace("many", f"{found.callers:,}")
    first = [
        (shown.replace("all", f"{found.number:,}"), _noisy(cpu(name)), f"{statistics.median(cpu(name)) / base:.2f}")
        for shown, name in ((SMALL, SMALL), (LARGE, LARGE), (spread, SPREAD))
    ]
    used = (found.store_after - found.store_before) / 2**20
    called = f"{found.remembered:,}"
    second = [
        (f"the store, for {found.number:,} keys", number(used, 1)),
        ("the router, before they call", number(found.rest, 1)),
        (f"the router, after {called} have called", number(found.once, 1)),
        (f"the router, after {called} others have called", number(found.twice, 1)),
    ]
    return "\n\n".join(
        (
            table(("calls spread over", "CPU µs/call", f"× {SMALL}"), first),
            table(("memory for keys", "MiB"), second),
        )
    )


def text(report: Report) -> str:
    parts = [whole(report.rows), pairs(report.pairs)]
    if report.keys is not None:
        parts.append(keys(report.keys))
    return "\n\n".join(parts)


def plain(report: Report) -> dict[str, object]:
    """Every sample as JSON values."""
    return {
        "rows": [run.plain(row) for row in report.rows],
        "pairs": msgspec.to_builtins(report.pairs),
        "keys": dataclasses.asdict(report.keys) if report.keys is not None else None,
    }
