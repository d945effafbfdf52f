"""The text of `/metrics` is what prometheus-client writes for the same numbers, and promtool finds nothing in it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from router.metric_table import FAMILIES, LABELS, Family
from router.metrics import Metrics
from router.slots import Slot

WORDS = ("plain", "", 'with "quotes"', "back\\slash", "line\nbreak", "中文", "a,b={}", " ", "\t", "half \ud800")
KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


def scraped(metrics: Metrics) -> str:
    return asyncio.run(metrics.scrape()).decode()


def numbers(dice: random.Random) -> list[float]:
    return [dice.choice((0.0, 1.0, 0.0005, 1e-9, 123456789012.0, 2**53 - 1.0, dice.random() * 700)) for _ in range(6)]


def fill(dice: random.Random, workers: list[Metrics], registry: CollectorRegistry) -> None:
    """The same counts in the workers, in turn, and in the library's metrics."""
    for family in FAMILIES:
        if family.name in ("cpu_seconds_total", "resident_memory_bytes", "workers", "build_info"):
            continue
        settings = {"buckets": family.buckets} if family.buckets else {}
        theirs = KINDS[family.kind](family.full, family.text, family.labels, registry=registry, **settings)
        sets = {tuple(dice.choice(WORDS) for _ in family.labels) for _ in range(5)}
        for labels in sorted(sets):
            clean = [label.encode(errors="replace").decode() for label in labels]
            child = theirs.labels(*clean) if labels else theirs
            for turn, number in enumerate(numbers(dice)):
                count(family, workers[turn % len(workers)], labels, number)
                if family.kind == "histogram":
                    child.observe(number)
                elif family.kind == "counter":
                    child.inc(round(number) / family.scale)
                else:
                    child.set(number)


def count(family: Family, worker: Metrics, labels: tuple[str, ...], number: float) -> None:
    if family.kind == "histogram":
        worker.histogram(family.name).of(*labels).observe(number)
    elif family.kind == "counter":
        worker.counter(family.name).of(*labels).inc(round(number))
    else:
        worker.gauges(family.name, lambda: {labels: number})
        worker.publish()
        worker._reads.pop()


def read(text: str) -> dict[str, Any]:
    """Families by name: kind, help, and samples by name and labels."""
    return {
        family.name: (
            family.type,
            family.documentation,
            {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in family.samples},
        )
        for family in text_string_to_metric_families(text)
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_the_library_writes_the_same(workers: int, tmp_path: Path) -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation there
    for seed in range(4):
        directory = tmp_path / str(seed)
        directory.mkdir()
        slots = [Slot(number, workers, directory if workers > 1 else None) for number in range(workers)]
        ours = [Metrics("1", slot) for slot in slots]
        registry = CollectorRegistry()
        fill(random.Random(seed), ours if workers == 1 else ours[:2], registry)
        wanted, found = read(generate_latest(registry).decode()), read(scraped(ours[-1]))
        gauges = {family.full for family in FAMILIES if family.kind == "gauge"}
        for name, (kind, text, samples) in wanted.items():
            assert (kind, text) == found[name][:2]
            extra = {sample: value for sample, value in found[name][2].items() if sample not in samples}
            assert set(extra.values()) <= {0.0}, "what stands from the start"
            shown = {sample: found[name][2][sample] for sample in samples}
            if workers == 1 or name not in gauges:  # those of several workers are not what was set last
                assert shown == {sample: pytest.approx(value) for sample, value in samples.items()}, name


def test_the_table_is_whole() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 25
    for family in FAMILIES:
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert bool(family.buckets) == (family.kind == "histogram")
        assert list(family.buckets) == sorted(set(family.buckets))
        assert set(family.labels) <= set(LABELS)
        assert family.text.endswith(".")
        assert any("\u4e00" <= char <= "\u9fff" for char in family.chinese), family.name
        assert "_seconds" not in family.name or family.unit == "seconds"
    assert {label for family in FAMILIES for label in family.labels} == set(LABELS)


def promtool(text: bytes) -> str:
    if shutil.which("promtool") is None:
        assert "CI" not in os.environ, "promtool is missing (Debian's package prometheus)"
        pytest.skip("promtool is missing")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    return done.stdout.decode() + (f"exit code {done.returncode}" if done.returncode else "")


def test_promtool_looks() -> None:
    """What it is shown elsewhere are routers that have answered calls."""
    assert promtool(scraped(Metrics("1")).encode()) == ""
    assert "no help text" in promtool(b"# TYPE bad gauge\nbad 1\n")
