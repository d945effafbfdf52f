"""Runs a router with two workers on this machine and sends it traffic of every kind for a minute.

Everything is real but the providers: OpenAI, Gemini, Doubao, Kimi, an OpenAI-compatible server and an Ollama with a GPU
are simulated behind real sockets, so nothing leaves this machine and nothing costs money. Where the bundled demo model
is installed, it answers too. Providers fail and fallbacks answer, limits are reached, clients leave, the GPU's queue
fills up, a config is refused, the store stands still for a moment. At the end the books of clients and providers are
held against the ledger and the metrics.

To look at the pages while it runs and afterwards:   make demo-traffic ARGS=--keep
With Prometheus (Debian's) and the rules beside it:  make demo-traffic ARGS="--keep --prometheus"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from tests.demo_traffic import prometheus, summary
from tests.demo_traffic.caller import Seen
from tests.demo_traffic.house import House, opened, until
from tests.demo_traffic.sums import OF_METRICS, differences, of_clients, of_ledger, of_metrics, samples_of
from tests.demo_traffic.traffic import PACE, Traffic

SETTLE_SECONDS: Final = 60.0
"""The longest that the last settlements may take."""
TRICKLE_SECONDS: Final = 60.0
"""How often what is remembered of past calls is dropped, while the demo stays up."""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo_traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the run (default 60, at least 15)")
    parser.add_argument("--pace", type=float, default=PACE, help=f"calls a second in the background (default {PACE:g})")
    parser.add_argument(
        "--seed", type=int, default=4, help="of the mix; the same seed sends the same calls (default 4)"
    )
    parser.add_argument("--port", type=int, help="of the router (default: a free one)")
    parser.add_argument(
        "--keep", action="store_true", help="stay up afterwards, with a call now and then, until Ctrl-C"
    )
    parser.add_argument(
        "--no-demo-model", action="store_true", help="leave the bundled model out, also where it is there"
    )
    parser.add_argument(
        "--prometheus", action="store_true", help="start Debian's Prometheus with the rules of config/prometheus"
    )
    parser.add_argument("--prometheus-port", type=int, metavar="PORT", help="of Prometheus (default: a free one)")
    chosen = parser.parse_args(argv)
    if not chosen.seconds >= 15:  # nor nan
        parser.error("--seconds: fewer than 15 are too few for all that happens")
    if not 0 < chosen.pace <= 200:
        parser.error("--pace: more than 0 and at most 200")
    for name, port in (("--port", chosen.port), ("--prometheus-port", chosen.prometheus_port)):
        if port is not None and not 0 < port < 65536:
            parser.error(f"{name}: from 1 to 65535")
    if chosen.prometheus and (reason := prometheus.missing()) is not None:
        parser.error(f"--prometheus: {reason}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    chosen = _arguments(argv)
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    try:
        with tempfile.TemporaryDirectory(prefix="switchyard-demo-", ignore_cleanup_errors=True) as folder:
            return _run(chosen, Path(folder), console)
    except KeyboardInterrupt:
        console.print("\nended")
        return 130
    except (RuntimeError, ValueError, AssertionError, prometheus.Trouble, OSError) as error:
        print(f"demo-traffic: {error}", file=sys.stderr)
        return 1


def _run(chosen: argparse.Namespace, folder: Path, console: Console) -> int:
    with contextlib.ExitStack() as stack:
        console.print("starting the router, its providers, teams and keys ...")
        house = stack.enter_context(opened(folder, port=chosen.port, demo=not chosen.no_demo_model))
        if not house.demo:
            console.print("the bundled model is left out (`make setup` brings it)")
        places = [summary.where(house)]
        if chosen.prometheus:
            started = prometheus.running(
                folder / "prometheus", f"127.0.0.1:{house.router.port}", house.router.admin_token,
                hurry=False, port=chosen.prometheus_port,
            )  # fmt: skip
            places.append(f"Prometheus         {stack.enter_context(started).url}")
        console.print("\n".join(places), highlight=False, soft_wrap=True)
        console.print(f"\ntraffic for {chosen.seconds:g} s:")
        traffic = Traffic(
            house, length=chosen.seconds, pace=chosen.pace, seed=chosen.seed,
            say=lambda line: console.print(f"  {line}", highlight=False),
        )  # fmt: skip
        asyncio.run(traffic.play())
        wrong = conclude(house, traffic, console)
        if chosen.keep:
            _stay(house, traffic, console, places)
        return 1 if wrong else 0


def conclude(house: House, traffic: Traffic, console: Console) -> list[str]:
    """The tables at the end, and where the books differ."""
    at_rest(house)
    in_the_books(house, traffic.seen)
    console.print()
    console.print(summary.calls(traffic.seen))
    console.print(summary.answers(traffic.seen))
    clients, ledger = of_clients(house, traffic.seen), of_ledger(house)
    metrics = of_metrics(samples_of(house.admin.request("GET", "/metrics").body.decode()))
    console.print(summary.books(clients, ledger, metrics))
    wrong = differences(clients, ledger, ("tokens", "cost", "settled"))
    wrong += differences(clients, metrics, OF_METRICS)
    for line in wrong:
        console.print(f"[red]the books differ:[/red] {line}", highlight=False)
    if not wrong:
        console.print("clients and providers, the ledger and the metrics say the same")
    return wrong


def at_rest(house: House, seconds: float = SETTLE_SECONDS) -> None:
    """Wait until nothing runs and every settlement is in the store. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    calm = 0
    while calm < 3:  # each worker's gauges are at most a second old
        values = {
            sample.name: sample.value for sample in samples_of(house.admin.request("GET", "/metrics").body.decode())
        }
        busy = [
            name
            for name in ("switchyard_requests_in_flight", "switchyard_holds", "switchyard_journal_entries")
            if values[name]
        ]
        calm = 0 if busy else calm + 1
        if time.monotonic() > deadline:
            raise TimeoutError(f"not at rest within {seconds:g} s: {', '.join(busy)}")
        time.sleep(0.5)


def in_the_books(house: House, seen: Sequence[Seen], seconds: float = SETTLE_SECONDS) -> None:
    """Wait until each call is in the log, and what was settled in the ledger. Raises TimeoutError."""
    until(lambda: len(house.lines()) >= len(seen), seconds, "a line of each call")
    settled = of_clients(house, seen).settled
    until(lambda: of_ledger(house).settled >= settled, seconds, "the ledger has each call")


def _stay(house: House, traffic: Traffic, console: Console, places: Sequence[str]) -> None:
    console.print("\nstays up, with a call now and then, until Ctrl-C:\n")
    console.print("\n".join(places), highlight=False, soft_wrap=True)
    while True:
        asyncio.run(traffic.trickle(TRICKLE_SECONDS))
        traffic.seen.clear()
        house.books.forget()
        house.router.err[:-100] = []
        for provider in house.providers.values():
            provider.forget()


if __name__ == "__main__":
    raise SystemExit(main())
