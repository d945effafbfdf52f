"""What a scrape of `/metrics` costs: CPU of the worker that answers it, and of the counting of one call.

    python -m tests.bench.scrape --models 200 --workers 2

Every model is asked for in two dialects, at two providers, with answers, refusals, failures and clients that leave.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

from router.metrics import Metrics
from router.slots import ALONE, Slot

DIALECTS = ("openai", "ollama")
STATUSES = ("2xx", "4xx", "5xx", "499")
TYPES = ("input", "output", "input_cached", "input_cache_write", "output_reasoning")


def fill(metrics: Metrics, models: int, providers: int) -> None:
    """Counts as they look after a day with that many models."""
    for number in range(models):
        model, provider = f"vendor/model-{number}-instruct", f"provider-{number % providers}"
        for dialect, status in product(DIALECTS, STATUSES):
            metrics._requests.of(dialect, model, provider, model, status, "none").inc(number + 1)
        metrics._requests.of("openai", model, "local", "qwen2.5:7b", "2xx", "timeout").inc(3)
        for kind in TYPES:
            metrics._tokens.of(provider, model, kind).inc(number * 1000)
        metrics._cost.of("usd", provider, model).inc(number * 12345)
    for number, dialect in product(range(providers), DIALECTS):
        provider = f"provider-{number}"
        metrics._duration.of(dialect, provider).observe(0.3)
        metrics._first.of(provider).observe(0.2)
        metrics._pace.of(provider).observe(0.02)
        metrics._overhead.of(dialect).observe(0.0006)
        for outcome in ("ok", "timeout", "rate_limited", "unavailable", "aborted"):
            metrics._attempts.of(provider, outcome).inc()


def milliseconds(metrics: Metrics, rounds: int) -> list[float]:
    """CPU of each scrape, in milliseconds."""
    found = []
    with asyncio.Runner() as runner:
        runner.get_loop()
        for _ in range(rounds):
            began = time.process_time()
            runner.run(metrics.scrape())
            found.append((time.process_time() - began) * 1000)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--providers", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        slots = [Slot(number, given.workers, Path(directory)) for number in range(given.workers)]
        workers = [Metrics("1", slot) for slot in (slots if given.workers > 1 else [ALONE])]
        for metrics in workers:
            fill(metrics, given.models, given.providers)
        first, *rest = milliseconds(workers[0], given.rounds + 1)
        text = asyncio.run(workers[0].scrape())
        lines = sum(not line.startswith(b"#") for line in text.splitlines())
        print(f"{given.models} models, {given.workers} workers: {lines} lines, {len(text) / 1000:.0f} kB")
        print(
            f"CPU of a scrape: first {first:.1f} ms, then {statistics.median(rest):.1f} ms (worst {max(rest):.1f} ms)"
        )


if __name__ == "__main__":
    main()
