"""The tables: text of Markdown for the terminal and for README.md."""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench import run
from tests.bench.load import Spread
from tests.bench.run import Row, Sample

BEGIN: Final = "<!-- figures: written by `make bench ARGS=--write` -->"
END: Final = "<!-- end of figures -->"
LEDGER: Final = ("<!-- ledger: written by `make bench ARGS=--write` -->", "<!-- end of ledger -->")
ONE, MANY, STREAMS = "one", "many", "streams"  # names of the phases


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal; all but the first are right-aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, lines)])


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def figure(value: float | None) -> str:
    """Three significant digits below a thousand."""
    if value is None:
        return "–"
    return number(value, 0 if abs(value) >= 99.95 else 1)


def _noisy(row: Row, phase: str, measure: Callable[[Sample], float | None]) -> str:
    noise = row.noise(phase, measure)
    return figure(row.median(phase, measure)) + (f" ±{noise:.0%}" if noise is not None else "")


def _ratio(row: Row, base: Row | None, phase: str, measure: Callable[[Sample], float | None]) -> str:
    mine = row.median(phase, measure)
    theirs = base.median(phase, measure) if base else None
    return f"{mine / theirs:.2f}" if mine and theirs else "–"


def _time(which: Callable[[Sample], Spread | None], percentile: str) -> Callable[[Sample], float | None]:
    def read(sample: Sample) -> float | None:
        found = which(sample)
        return getattr(found, percentile) if found else None

    return read


def _added(row: Row, direct: Row, phase: str, which: Callable[[Sample], Spread | None]) -> str:
    """`p50 / p99` in microseconds above the direct row's."""
    parts = []
    for percentile in ("p50", "p99"):
        measure = _time(which, percentile)
        mine, base = row.median(phase, measure), direct.median(phase, measure)
        parts.append(figure(mine - base if mine is not None and base is not None else None))
    return " / ".join(parts)


def _latency(sample: Sample) -> Spread | None:
    return sample.result.latency


def _first(sample: Sample) -> Spread | None:
    return sample.result.first


def _chunk(sample: Sample) -> Spread | None:
    return sample.result.chunk


def _rate(sample: Sample) -> float | None:
    return sample.result.calls / sample.result.seconds


def _chunk_rate(sample: Sample) -> float | None:
    return sample.result.chunks / sample.result.seconds


def calls(rows: Sequence[Row]) -> str:
    direct, by_name = rows[0], {row.name: row for row in rows}
    head = (
        *("whole answers", "keys", "CPU µs/call", "× nginx", "× ferrogw", "store µs/call", "CPU µs/call, 1 conn."),
        *("calls/s", "added µs p50 / p99", "busy p50 / p99 ms", "errors"),
    )
    lines = []
    for row in rows:
        gateway = row is not direct
        busy = [row.median(MANY, _time(_latency, p)) for p in ("p50", "p99")]
        lines.append(
            (
                row.name,
                "yes" if row.checks_keys else "no",
                _noisy(row, MANY, run.cpu_per_call) if gateway else "–",
                _ratio(row, by_name.get("nginx"), MANY, run.cpu_per_call),
                _ratio(row, by_name.get("ferrogw"), MANY, run.cpu_per_call),
                figure(row.median(MANY, run.store_per_call) or None),
                _noisy(row, ONE, run.cpu_per_call) if gateway else "–",
                number(row.median(MANY, _rate)),
                _added(row, direct, ONE, _latency) if gateway else "–",
                " / ".join(number(value / 1000 if value is not None else None, 1) for value in busy),
                str(row.errors),
            )
        )
    return table(head, lines)


def streams(rows: Sequence[Row]) -> str:
    direct, by_name = rows[0], {row.name: row for row in rows}
    head = (
        *("streams", "CPU µs/chunk", "× nginx", "× ferrogw", "store µs/chunk", "chunks/s"),
        *("added to first chunk µs p50 / p99", "added to a chunk µs p50 / p99"),
    )
    lines = []
    for row in rows:
        if STREAMS not in row.samples:
            continue
        gateway = row is not direct
        lines.append(
            (
                row.name,
                _noisy(row, STREAMS, run.cpu_per_chunk) if gateway else "–",
                _ratio(row, by_name.get("nginx"), STREAMS, run.cpu_per_chunk),
                _ratio(row, by_name.get("ferrogw"), STREAMS, run.cpu_per_chunk),
                figure(row.median(STREAMS, run.store_per_chunk) or None),
                number(row.median(STREAMS, _chunk_rate)),
                _added(row, direct, STREAMS, _first) if gateway else "–",
                _added(row, direct, STREAMS, _chunk) if gateway else "–",
            )
        )
    return table(head, lines)


def memory(rows: Sequence[Row]) -> str:
    head = (
        "memory, MiB",
        "processes",
        "RSS at rest",
        "PSS at rest",
        "RSS, 32 calls",
        "RSS, 50 streams",
        "PSS, 50 streams",
        "store PSS",
        "CPU at rest ms/s",
    )
    lines = []
    for row in rows:
        if row.rest is None or row.lane:
            continue
        store = row.store_rest
        lines.append(
            (
                row.name,
                str(row.rest.processes),
                figure(row.rest.rss),
                figure(row.rest.pss),
                figure(row.median(MANY, lambda sample: sample.memory.rss)),
                figure(row.median(STREAMS, lambda sample: sample.memory.rss)),
                figure(row.median(STREAMS, lambda sample: sample.memory.pss)),
                figure(store.pss if store and store.processes else None),
                figure(row.rest_cpu * 1000 if row.rest_cpu is not None else None),
            )
        )
    return table(head, lines)


def preface(rows: Sequence[Row], machine: Mapping[str, str], method: str, today: datetime.date) -> str:
    """When, where and how; with what others did meanwhile."""
    releases = ", ".join(dict.fromkeys(f"{row.gateway} {row.release}" for row in rows if row.release))
    others = [sample.others for row in rows for samples in row.samples.values() for sample in samples]
    noise = (
        f"Other processes of the machine used {sum(others) / len(others):.2f} cores on average meanwhile."
        if others
        else ""
    )
    facts = "; ".join(f"{name}: {value}" for name, value in machine.items())
    return f"Measured on {today.isoformat()} ({facts}). {releases}. {method} {noise}".strip()


def text(rows: Sequence[Row], machine: Mapping[str, str], method: str, today: datetime.date) -> str:
    parts = [preface(rows, machine, method, today), calls(rows)]
    if any(STREAMS in row.samples for row in rows):
        parts.append(streams(rows))
    parts.append(memory(rows))
    return "\n\n".join(parts)


def write(path: Path, figures: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Replaces what stands between the marks."""
    begin, end = marks
    page = path.read_text()
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{path} has not exactly one pair of marks {begin} and {end}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    path.write_text(re.sub(pattern, lambda _: f"{begin}\n\n{figures}\n\n{end}", page, flags=re.DOTALL))
