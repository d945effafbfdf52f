"""Metrics of several workers, in their files: sums over all, and nothing lost with a worker that is killed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router import metrics_files
from router.metric_table import BY_NAME, Family
from router.metrics import Metrics
from router.metrics_files import KINDS, SMALLEST, File, Other, _extend
from router.slots import Slot, SlotDirectory
from tests.router.test_metric_text import scraped
from tests.simulators.router import ROOT


def shown(metrics: Metrics) -> dict[str, float]:
    """Samples by name and labels, as `name{a="b"}`."""
    found = {}
    for family in text_string_to_metric_families(scraped(metrics)):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def count(metrics: Metrics, calls: int, provider: str = "cloud") -> None:
    for _ in range(calls):
        metrics._attempts.of(provider, "ok").inc()
        metrics._duration.of("openai", provider).observe(0.3)


def test_each_worker_shows_the_sum_of_all(tmp_path: Path) -> None:
    workers = [Metrics("1.2", Slot(number, 3, tmp_path)) for number in range(3)]
    for number, worker in enumerate(workers):
        count(worker, number + 1)
        worker.in_flight.inc(number)
        worker.gauge("holds", partial(float, number))
        worker.gauge("redis_up", partial(float, 5 + number))
        worker.gauge("usd_cny", partial(float, 5 + number))
        worker.publish()
    for worker in workers:
        found = shown(worker)
        assert found['switchyard_upstream_attempts_total{outcome="ok",provider="cloud"}'] == 6
        assert found['switchyard_request_duration_seconds_count{dialect="openai",provider="cloud"}'] == 6
        assert found['switchyard_request_duration_seconds_bucket{dialect="openai",le="0.5",provider="cloud"}'] == 6
        assert found['switchyard_request_duration_seconds_bucket{dialect="openai",le="0.25",provider="cloud"}'] == 0
        assert found['switchyard_request_duration_seconds_sum{dialect="openai",provider="cloud"}'] == pytest.approx(1.8)
        assert found["switchyard_requests_in_flight"] == 3
        assert found["switchyard_holds"] == 3
        assert worker.current("holds") == {(): 3}
        assert found["switchyard_redis_up"] == 5, "the smallest"
        assert found["switchyard_usd_cny"] == 7, "the largest"
        assert found["switchyard_workers"] == 3
        assert found['switchyard_build_info{version="1.2"}'] == 1
        assert not any("pid" in name for name in found)


def test_one_process_and_several_show_the_same_text(tmp_path: Path) -> None:
    alone, worker = Metrics("1"), Metrics("1", Slot(0, 1, tmp_path))
    for metrics in (alone, worker):
        count(metrics, 3, 'a"b\\c\n你')
        metrics.gauge("usd_cny", lambda: 4.5)
    both = [re.sub(r"(cpu_seconds_total|memory_bytes) .*", "", scraped(one)) for one in (alone, worker)]
    assert both[0] == both[1]
    assert 'provider="a\\"b\\\\c\\n你"' in both[0]
    assert sorted(tmp_path.glob("*.db")) == sorted(tmp_path / f"{kind}_0.db" for kind in KINDS)


def test_a_gauge_is_read_anew_for_each_scrape_of_its_own_worker(tmp_path: Path) -> None:
    one, two = (Metrics("1", Slot(number, 2, tmp_path)) for number in range(2))
    level = [1.0]
    one.gauge("holds", lambda: level[0])
    assert shown(one)["switchyard_holds"] == 1
    level[0] = 7
    assert shown(one)["switchyard_holds"] == 7
    level[0] = 8
    assert shown(two)["switchyard_holds"] == 7
    one.publish()
    assert shown(two)["switchyard_holds"] == 8


_WORKER = """
import sys
from pathlib import Path
from router import metrics_files
from router.metrics import Metrics
from router.slots import Slot, SlotDirectory
metrics = Metrics("1", Slot(0, 2, Path(sys.argv[1])))
metrics.in_flight.inc()
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        metrics._attempts.of("cloud", "ok").inc()
    print("done", flush=True)
    if line == "0\\n":
        for number in range(10**9):  # it is killed while it counts and makes series
            metrics._attempts.of("cloud", "killed").inc()
            metrics._attempts.of(f"new{min(number // 20, 3000)}", "made").inc()
"""


def test_a_killed_worker_loses_nothing_and_its_successor_goes_on(tmp_path: Path) -> None:
    directory = SlotDirectory(tmp_path)
    other = Metrics("1", directory.slot(1, 2))
    count(other, 5)
    for turn in range(1, 3):
        with subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(directory.path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert shown(other)["switchyard_requests_in_flight"] == 1
            for order in ("100\n", "0\n"):
                process.stdin.write(order)
                process.stdin.flush()
                assert process.stdout.readline() == "done\n"
            before = -1.0
            for _ in range(5):
                now = shown(other).get('switchyard_upstream_attempts_total{outcome="killed",provider="cloud"}', 0.0)
                assert now >= before
                before = now
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
        directory.clear(0)
        found = shown(other)
        assert found['switchyard_upstream_attempts_total{outcome="ok",provider="cloud"}'] == 5 + 100 * turn
        assert found['switchyard_upstream_attempts_total{outcome="killed",provider="cloud"}'] >= before
        assert found["switchyard_requests_in_flight"] == 0
        assert found["switchyard_workers"] == 1
    directory.close()


def test_a_successor_with_other_buckets_counts_in_cells_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        family = replace(BY_NAME["request_duration_seconds"], buckets=(1.0,))
        before.setitem(cast("dict[str, Family]", BY_NAME), family.name, family)
        count(Metrics("0", Slot(0, 1, tmp_path)), 5)
    metrics = Metrics("1", Slot(0, 1, tmp_path))
    count(metrics, 2)
    found = shown(metrics)
    assert found['switchyard_upstream_attempts_total{outcome="ok",provider="cloud"}'] == 7
    assert found['switchyard_request_duration_seconds_count{dialect="openai",provider="cloud"}'] == 2
    assert found['switchyard_request_duration_seconds_sum{dialect="openai",provider="cloud"}'] == pytest.approx(0.6)


def test_a_file_that_grows_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = File(tmp_path / "x"), Other(tmp_path / "x")
    own.entry("first", 1)
    other.look()
    real = os.stat

    def stat(path: Path) -> os.stat_result:
        found = real(path)
        monkeypatch.undo()
        for number in range(2000):
            own.entry(f"later {number}", 3)
        return found

    monkeypatch.setattr(os, "stat", stat)
    other.look()
    assert real(tmp_path / "x").st_size > SMALLEST
    assert [entry.key for entry in other.entries] == [entry.key for entry in own.entries]


def test_files_grow(tmp_path: Path) -> None:
    metrics = Metrics("1", Slot(0, 1, tmp_path))
    first = metrics._attempts.of("provider-0", "ok")
    for number in range(2000):
        metrics._attempts.of(f"provider-{number}", "ok").inc()
    first.inc()
    file = (tmp_path / "counter_0.db").stat()
    assert file.st_size >= 2 * SMALLEST
    assert file.st_mode & 0o777 == 0o600
    again = Metrics("1", Slot(0, 1, tmp_path))
    again._attempts.of("provider-1999", "ok").inc()
    found = shown(again)
    assert found['switchyard_upstream_attempts_total{outcome="ok",provider="provider-0"}'] == 2
    assert found['switchyard_upstream_attempts_total{outcome="ok",provider="provider-1"}'] == 1
    assert found['switchyard_upstream_attempts_total{outcome="ok",provider="provider-1999"}'] == 2
    assert sum(value for name, value in found.items() if "upstream_attempts" in name) == 2002


def test_a_router_that_is_started_again_counts_from_0(tmp_path: Path) -> None:
    name = 'switchyard_upstream_attempts_total{outcome="ok",provider="cloud"}'
    for left_behind in (False, True):
        directory = SlotDirectory(tmp_path)
        metrics = Metrics("1", directory.slot(0, 2))
        assert name not in shown(metrics)
        count(metrics, 3)
        assert shown(metrics)[name] == 3
        if left_behind:
            os.close(directory._lock)  # as the kernel does when the parent is killed
        else:
            directory.close()
    again = SlotDirectory(tmp_path)
    assert list((tmp_path / "workers").iterdir()) == [again.path]
    assert name not in shown(Metrics("1", again.slot(0, 2)))
    again.close()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot say that there is room")
def test_a_file_grows_where_there_is_room(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        _extend(file.fileno(), 0, 1 << 20)
        found = os.fstat(file.fileno())
    assert found.st_blocks * 512 >= found.st_size == 1 << 20


def test_a_full_disk_costs_a_series_and_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    metrics = Metrics("1", Slot(0, 1, tmp_path))
    count(metrics, 1)
    monkeypatch.setattr(metrics_files, "_extend", full)
    for number in range(2000):
        count(metrics, 1, f"provider-{number}")
    count(metrics, 1)
    found = shown(metrics)
    assert found['switchyard_upstream_attempts_total{outcome="ok",provider="cloud"}'] == 2
    assert 'switchyard_upstream_attempts_total{outcome="ok",provider="provider-1999"}' not in found
