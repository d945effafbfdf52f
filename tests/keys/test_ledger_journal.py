"""Where the ledger keeps settlements that the store does not take, and what it refuses when it cannot keep them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from providers.errors import StoreUnavailable
from router import journal as journals
from router.checks import Amounts
from router.keys import Change, Keys
from router.known import Known
from router.ledger import Ask, Bill, Ledger
from router.store import Store


def ask(_known: Known, _local_only: bool) -> Ask:
    return Ask(Amounts(tokens=10, cost=10))


async def test_no_call_is_taken_whose_settlement_could_be_lost(
    store: Store, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes nothing and memory is full: calls are refused until the store has what waits, then go on."""
    monkeypatch.setattr(journals, "MOST_IN_MEMORY", 2)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "journal").write_text("a file, not a folder")
    ledger = Ledger(store, keys, data_dir=tmp_path / "nowhere")
    pid = store.server_pid
    assert pid is not None
    try:
        _, credential = await keys.create(Change(name="k"))
        holds = [await ledger.reserve(credential, call_id=f"c{number}", prepare=ask) for number in range(3)]
        os.kill(pid, signal.SIGSTOP)
        try:
            for hold in holds:
                ledger.settle(hold, Bill(1, 10, 10, ("m\tp\tcalls", 1)))
            async with asyncio.timeout(60):
                while not ledger.journal.full:  # noqa: ASYNC110 - settlements wait for the store first
                    await asyncio.sleep(0.02)
            with pytest.raises(StoreUnavailable, match="settlements"):
                await ledger.reserve(credential, call_id="more", prepare=ask)
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            while len(ledger.journal):  # noqa: ASYNC110 - the store takes them when it is back
                await asyncio.sleep(0.02)
        ledger.settle(await ledger.reserve(credential, call_id="after", prepare=ask))
    finally:
        await ledger.close()


async def test_an_end_while_the_store_stands_still_keeps_what_it_owes(store: Store, keys: Keys, tmp_path: Path) -> None:
    """Closed before the store answered: the next start sends it."""
    first = Ledger(store, keys, data_dir=tmp_path)
    key, credential = await keys.create(Change(name="k"))
    hold = await first.reserve(credential, call_id="c", prepare=ask)
    pid = store.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        first.settle(hold, Bill(1, 10, 10, ("m\tp\tcalls", 1)))
        async with asyncio.timeout(15):
            await first.close()
    finally:
        os.kill(pid, signal.SIGCONT)
    second = Ledger(store, keys, data_dir=tmp_path)
    try:
        assert len(second.journal) == 1
        async with asyncio.timeout(60):
            while len(second.journal):  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.02)
    finally:
        await second.close()
    sums = [await store.redis.hgetall(name) for name in await store.redis.keys(f"sy:{{{key.team}}}:uh:*")]
    assert [list(fields.values()) for fields in sums] == [[b"1"]]
    assert await store.redis.exists(f"sy:{{{key.team}}}:holds") == 0
