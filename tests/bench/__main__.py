"""Compare gateways and weigh the router's ledger, or with --profile show where the router's CPU goes."""

import argparse
import datetime
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import gateways, ledger, profile, report, run
from tests.bench.report import MANY, ONE, STREAMS
from tests.bench.run import Cores, Phase, Plan

_LEDGER: Final = "ledger"
_README: Final = Path(__file__).with_name("README.md")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [*(gateway.name for gateway in gateways.GATEWAYS), _LEDGER]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", help=f"rows to run, separated by commas: {', '.join(names)}")
    parser.add_argument("--calls", type=int, default=4000, help="whole answers per phase (default 4000)")
    parser.add_argument("--seconds", type=float, default=3.0, help="longest time of a phase (default 3)")
    parser.add_argument("--streams", type=int, default=150, help="streams per phase, 50 at a time (default 150)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the table shows the median (default 5)")
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute")
    parser.add_argument(
        "--pin", action="store_true", help="the gateway on the last core, load and upstream on the others"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into tests/bench/README.md")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every sample as JSON (the ledger's to FILE-ledger)"
    )
    parser.add_argument("--set-up", action="store_true", help="install the peers into .bench/ first")
    parser.add_argument(
        "--profile",
        choices=("calls", "streams", "translate"),
        help="profile the router (or, with --only, another Python gateway) under this load",
    )
    chosen = parser.parse_args(argv)
    chosen.ledger_keys = 100_000
    chosen.names = chosen.only.split(",") if chosen.only else names
    unknown = set(chosen.names) - set(names)
    if unknown:
        parser.error(f"--only: no such row: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if chosen.quick:
        chosen.rounds, chosen.calls, chosen.seconds, chosen.streams = 1, 1500, 1.2, 50
        chosen.ledger_keys = 4000
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    chosen = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if chosen.set_up:
        gateways.set_up()
    picked = [gateway for gateway in gateways.GATEWAYS if gateway.name in chosen.names]
    cores = Cores.pinned() if chosen.pin else Cores()
    errors = 0
    with tempfile.TemporaryDirectory(prefix="switchyard-bench-", ignore_cleanup_errors=True) as folder:
        if chosen.profile:
            try:
                return profile.profile(chosen.profile, picked[-1], Path(folder), chosen.seconds)
            except run.Trouble as trouble:
                _say(str(trouble))
                return 1
        if picked:
            errors += _compare(chosen, picked, cores, Path(folder))
        if _LEDGER in chosen.names:
            errors += _weigh(chosen, cores, Path(folder))
    return 1 if errors else 0


def _compare(chosen: argparse.Namespace, picked: Sequence[gateways.Gateway], cores: Cores, folder: Path) -> int:
    """The gateways; how many wrong answers there were."""
    phases = (
        Phase(ONE, 1, chosen.calls // 4, chosen.seconds / 2),
        Phase(MANY, 32, chosen.calls, chosen.seconds),
        Phase(STREAMS, 50, chosen.streams, max(chosen.seconds, chosen.streams / 50 * 1.5), stream=True),
    )
    rows = run.run(Plan(picked, phases, chosen.rounds, cores, folder, _say))
    method = (
        f"Median of {chosen.rounds} interleaved rounds; {chosen.calls} whole answers or {chosen.seconds:g} s "
        f"at 32 connections, {chosen.streams} streams, 50 at a time; "
        f"{'pinned' if chosen.pin else 'not pinned'} to cores."
    )
    figures = report.text(rows, run.machine(), method, _today())
    print(figures)
    if chosen.json:
        chosen.json.write_text(json.dumps([run.plain(row) for row in rows], indent=1))
    if chosen.write:
        report.write(_README, figures)
    return sum(row.errors for row in rows)


def _weigh(chosen: argparse.Namespace, cores: Cores, folder: Path) -> int:
    """The ledger; how many wrong answers there were."""
    size = ledger.Size(chosen.rounds, chosen.calls, chosen.seconds, chosen.ledger_keys, chosen.calls)
    try:
        found = ledger.measure(size, cores, folder, _say)
    except run.Trouble as trouble:
        _say(str(trouble))
        return 1
    method = f"Median of {chosen.rounds} interleaved rounds; {'pinned' if chosen.pin else 'not pinned'} to cores."
    figures = f"{report.preface(found.rows, run.machine(), method, _today())}\n\n{ledger.text(found)}"
    print(figures)
    if chosen.json:
        path = chosen.json.with_name(f"{chosen.json.stem}-ledger{chosen.json.suffix}")
        path.write_text(json.dumps(ledger.plain(found), indent=1, default=msgspec.to_builtins))
    if chosen.write:
        report.write(_README, figures, report.LEDGER)
    return found.errors


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


if __name__ == "__main__":
    raise SystemExit(main())
