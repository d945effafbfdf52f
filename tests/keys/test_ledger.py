"""The ledger's key check with a real store: one round trip for many, no cache to be stale, bounded when the store is
not there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from providers.errors import StoreUnavailable, Unauthorized
from router.credentials import new_credential
from router.keys import Change, Key, Keys, open_keys
from router.ledger import Ledger
from router.store import Store, open_store


async def made(keys: Keys, count: int) -> list[tuple[Key, str]]:
    return [await keys.create(Change(name=f"k{number}")) for number in range(count)]


async def test_a_call_is_admitted_and_settled_once(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    hold = await ledger.reserve(credential, call_id="c1", listener="l")
    assert (hold.key, hold.call_id, hold.listener) == (key, "c1", "l")
    ledger.settle(hold)
    assert ledger.settled_twice == 0
    ledger.settle(hold)
    assert ledger.settled_twice == 1


async def test_calls_of_one_tick_share_a_round_trip_and_get_their_own_answer(ledger: Ledger, keys: Keys) -> None:
    pairs = await made(keys, 20)
    before = ledger.round_trips
    holds = await asyncio.gather(*(ledger.reserve(credential, call_id="c") for _, credential in pairs * 2))
    assert [hold.key.id for hold in holds] == [key.id for key, _ in pairs * 2]
    assert ledger.round_trips - before == 1


async def test_cancelled_callers_leave_the_others_alone(ledger: Ledger, keys: Keys) -> None:
    pairs = await made(keys, 16)
    for pause in (0, 1, 2, 3):
        calls = [asyncio.create_task(ledger.reserve(credential, call_id="c")) for _, credential in pairs]
        for _ in range(pause):
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        for place, result in enumerate(results):
            if isinstance(result, asyncio.CancelledError):
                assert place % 2 == 0
            else:
                assert not isinstance(result, BaseException)
                assert result.key.id == pairs[place][0].id
    assert (await ledger.reserve(pairs[0][1], call_id="c")).key.id == pairs[0][0].id


async def test_unknown_and_wrong_keys_look_alike_and_junk_needs_no_store(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    before = ledger.round_trips
    told = set()
    for junk in ("", "x", "sk-123", credential + "x", credential[:-1] + ("0" if credential[-1] != "0" else "1")):
        with pytest.raises(Unauthorized) as caught:
            await ledger.reserve(junk, call_id="c")
        told.add(caught.value.message)
    assert ledger.round_trips == before
    for wrong in (new_credential(key.id), new_credential("0" * 12)):
        with pytest.raises(Unauthorized) as caught:
            await ledger.reserve(wrong, call_id="c")
        told.add(caught.value.message)
    assert told == {"Incorrect API key provided."}
    with pytest.raises(Unauthorized, match="No API key was sent"):
        await ledger.reserve(None, call_id="c")


async def test_a_change_is_effective_on_the_very_next_call(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    await ledger.reserve(credential, call_id="c")
    await keys.change(key.id, Change(models=("only",)))
    assert (await ledger.reserve(credential, call_id="c")).key.rights.models == ("only",)
    for state in ("disabled", "revoked"):
        await keys.change(key.id, Change(state=state))
        with pytest.raises(Unauthorized, match=f"This API key is {state}"):
            await ledger.reserve(credential, call_id="c")
        with pytest.raises(Unauthorized, match="Incorrect"):  # the state is for the holder alone
            await ledger.reserve(new_credential(key.id), call_id="c")


async def test_a_key_ends_at_its_expiry(store: Store, keys: Keys) -> None:
    expiry = int(time.time()) + 1000
    _, credential = await keys.create(Change(name="k", expires_at=expiry))
    now = float(expiry) - 0.1
    ledger = Ledger(store, keys, clock=lambda: now)
    await ledger.reserve(credential, call_id="c")
    now = float(expiry)
    with pytest.raises(Unauthorized, match="has expired"):
        await ledger.reserve(credential, call_id="c")
    await ledger.close()


async def test_keyless_calls_have_the_rights_of_their_listeners_key(ledger: Ledger, keys: Keys) -> None:
    with pytest.raises(Unauthorized):
        await ledger.reserve_anonymous("guest", call_id="c")
    key = await keys.ensure_anonymous("guest")
    assert (await ledger.reserve_anonymous("guest", call_id="c")).key == key
    with pytest.raises(Unauthorized, match="Incorrect"):
        await ledger.reserve(new_credential(key.id), call_id="c")
    await keys.change("guest", Change(state="disabled"))
    with pytest.raises(Unauthorized, match="disabled"):
        await ledger.reserve_anonymous("guest", call_id="c")


async def test_a_frozen_store_refuses_in_time_and_recovers(store: Store, ledger: Ledger, keys: Keys) -> None:
    _, credential = await keys.create(Change(name="k"))
    await ledger.reserve(credential, call_id="c")
    pid = store.server_pid
    assert pid is not None

    async def call(after: float) -> float:
        await asyncio.sleep(after)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await ledger.reserve(credential, call_id="c")
        assert (caught.value.status, caught.value.code) == (503, "quota_store")
        return time.monotonic() - began

    os.kill(pid, signal.SIGSTOP)
    try:
        waits = await asyncio.gather(*(call(number * 0.02) for number in range(30)))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert max(waits) < 0.3
    assert (await ledger.reserve(credential, call_id="c")).key.name == "k"


async def test_a_killed_store_costs_at_most_a_refusal_and_never_an_entry(
    store: Store, ledger: Ledger, keys: Keys
) -> None:
    _, credential = await keys.create(Change(name="k"))
    pid = store.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while True:
            with pytest.raises(Unauthorized):
                await ledger.reserve("junk", call_id="c")
            try:
                assert (await ledger.reserve(credential, call_id="c")).key.name == "k"
                break
            except StoreUnavailable:
                continue


async def test_the_queue_is_bounded(ledger: Ledger, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.ledger.MOST_WAITING", 4)
    _, credential = await keys.create(Change(name="k"))
    results = await asyncio.gather(*(ledger.reserve(credential, call_id="c") for _ in range(6)), return_exceptions=True)
    assert [isinstance(result, StoreUnavailable) for result in results] == [False] * 4 + [True] * 2


async def test_the_last_use_is_noted_once_a_minute(store: Store, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    now = 1_900_000_000.0
    ledger = Ledger(store, keys, clock=lambda: now)

    async def use() -> int | None:
        ledger.settle(await ledger.reserve(credential, call_id="c"))
        while ledger._noter is not None:  # noqa: ASYNC110 - the task is its own
            await asyncio.sleep(0)
        return (await keys.get(key.id)).last_used

    assert (await keys.get(key.id)).last_used is None
    assert await use() == 1_900_000_000
    now += 59
    assert await use() == 1_900_000_000
    now += 1
    assert await use() == 1_900_000_060
    await ledger.close()


async def test_closing_refuses_who_waits(store: Store, keys: Keys) -> None:
    ledger = Ledger(store, keys)
    _, credential = await keys.create(Change(name="k"))
    calls = [asyncio.create_task(ledger.reserve(credential, call_id="c")) for _ in range(3)]
    await asyncio.sleep(0)
    await ledger.close()
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(credential, call_id="c")


async def test_a_record_that_cannot_be_read_refuses(store: Store, keys: Keys, ledger: Ledger) -> None:
    key, credential = await keys.create(Change(name="k"))
    await store.redis.set(f"sy:{key.id}:key", b"{")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await ledger.reserve(credential, call_id="c")


async def test_a_store_that_is_not_there_refuses_in_time(tmp_path: Path) -> None:
    store = await open_store(f"unix://{tmp_path}/nobody.sock", tmp_path)
    keys = await open_keys(store, tmp_path, {})
    ledger = Ledger(store, keys)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(new_credential("0" * 12), call_id="c")
    assert time.monotonic() - began < 0.3
    await ledger.close()
    await store.close()
