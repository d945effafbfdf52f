"""What many keys cost the embedded store, and how long it takes to list, search and name them.

python -m tests.bench.many_keys [--keys 100000] [--teams 100]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from router.issue import MOST_KEYS, Row, issue
from router.keys import open_keys
from router.store import open_store

T = TypeVar("T")
LIMITS = {"rpm": 60, "tpm": "100k", "concurrency": 4, "budget": {"day": "5usd", "month": "50usd"}}


async def timed(what: str, work: Awaitable[T]) -> T:
    began = time.perf_counter()
    done = await work
    print(f"{what:<28}{(time.perf_counter() - began) * 1000:10.1f} ms")
    return done


async def measure(number: int, teams: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data"
        store = await open_store("embedded", path)
        try:
            keys = await open_keys(store, path, {})
            empty = await store.redis.info("memory")
            for start in range(0, number, MOST_KEYS):
                rows = [
                    Row(at, {"name": f"person-{at}", "owner": f"person-{at}@example.com"})
                    for at in range(start, min(start + MOST_KEYS, number))
                ]
                defaults = {"limits": LIMITS, "models": ["gpt-*", "local/*"], "tags": ["dev"], "expires": "365d"}
                await issue(keys, f"team{start // MOST_KEYS % teams}", rows, defaults)
            full = await store.redis.info("memory")
            for name in ("used_memory", "used_memory_rss"):
                each = (full[name] - empty[name]) / number
                print(f"{name:<28}{full[name] / 1e6:10.1f} MB {each:8.0f} bytes per key")
            await timed("one page of 100", keys.page(limit=100))
            await timed("one page of 1000", keys.page(limit=1000))
            await timed("a search without a match", keys.page(q="%"))
            await timed("a key by its name", keys.get(f"person-{number // 2}"))
            await timed("all keys", keys.list())
        finally:
            await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--teams", type=int, default=100)
    given = parser.parse_args()
    asyncio.run(measure(given.keys, given.teams))


if __name__ == "__main__":
    main()
