"""The ledger's key check with a real store: no cache to be stale, bounded when the store is not there."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from providers.errors import NoTarget, StoreUnavailable, Unauthorized
from router.changes import TeamChange
from router.credentials import new_credential
from router.keys import Change, Key, Keys, Listed, describe, open_keys
from router.known import Known, Memory
from router.ledger import DECISION_LIMIT, Ask, Ledger
from router.link_node import PATIENCE
from router.pipe import pack
from router.records import State, key_name, place_name
from router.store import Store, open_store

_numbers = count(1)


def fresh() -> str:
    """A call's id: each is reserved once."""
    return f"call{next(_numbers)}"


async def made(keys: Keys, number: int) -> list[tuple[Key, str]]:
    return [await keys.create(Change(name=f"k{one}")) for one in range(number)]


async def test_a_call_is_admitted_and_settled_once(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    hold = await ledger.reserve(credential, call_id="c1")
    assert (hold.key, hold.call_id) == (key, "c1")
    ledger.settle(hold)
    assert ledger.settled_twice == 0
    ledger.settle(hold)
    assert ledger.settled_twice == 1


async def test_calls_of_one_tick_get_their_own_answer(ledger: Ledger, keys: Keys) -> None:
    pairs = await made(keys, 20)
    holds = await asyncio.gather(*(ledger.reserve(credential, call_id=fresh()) for _, credential in pairs * 2))
    assert [hold.key.id for hold in holds] == [key.id for key, _ in pairs * 2]


async def test_cancelled_callers_leave_the_others_alone(ledger: Ledger, keys: Keys) -> None:
    pairs = await made(keys, 16)
    for pause in (0, 1, 2, 3):
        calls = [asyncio.create_task(ledger.reserve(credential, call_id=fresh())) for _, credential in pairs]
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
    assert (await ledger.reserve(pairs[0][1], call_id=fresh())).key.id == pairs[0][0].id


async def test_unknown_and_wrong_keys_look_alike_and_junk_needs_no_store(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    told = set()
    for junk in ("", "x", "sk-123", credential + "x", credential[:-1] + ("0" if credential[-1] != "0" else "1")):
        with pytest.raises(Unauthorized) as caught:
            await ledger.reserve(junk, call_id=fresh())
        told.add(caught.value.message)
    for wrong in (new_credential(key.id), new_credential("0" * 12)):
        with pytest.raises(Unauthorized) as caught:
            await ledger.reserve(wrong, call_id=fresh())
        told.add(caught.value.message)
    assert told == {"Incorrect API key provided."}
    with pytest.raises(Unauthorized, match="No API key was sent"):
        await ledger.reserve(None, call_id=fresh())


async def test_a_change_is_effective_on_the_very_next_call(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    await ledger.reserve(credential, call_id=fresh())
    await keys.change(key.id, Change(models=("only",)))
    assert (await ledger.reserve(credential, call_id=fresh())).key.rights.models == ("only",)
    for state in ("disabled", "revoked"):
        await keys.change(key.id, Change(state=state))
        with pytest.raises(Unauthorized, match=f"This API key is {state}"):
            await ledger.reserve(credential, call_id=fresh())
        with pytest.raises(Unauthorized, match="Incorrect"):  # the state is for the holder alone
            await ledger.reserve(new_credential(key.id), call_id=fresh())


async def refused(ledger: Ledger, credential: str) -> str:
    """Call until a call is refused; what is told then."""
    async with asyncio.timeout(60):
        while True:
            try:
                ledger.settle(await ledger.reserve(credential, call_id=fresh()))
            except Unauthorized as error:
                return error.message
            await asyncio.sleep(0.02)


async def test_a_key_ends_at_its_expiry(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k", expires_at=int(time.time()) + 3600))
    await ledger.reserve(credential, call_id=fresh())
    expiry = int(time.time()) + 2
    keys.clock = lambda: expiry - 2.0  # however long the change takes, it is one for the future
    await keys.change(key.id, Change(expires_at=expiry))
    assert await refused(ledger, credential) == "This API key has expired."
    assert time.time() >= expiry  # this machine's clock and the store's are the same


async def test_an_old_secret_ends_with_the_overlap(ledger: Ledger, keys: Keys) -> None:
    _, first = await keys.create(Change(name="k"))
    await ledger.reserve(first, call_id=fresh())
    rotated = await keys.rotate("k", 2)
    await ledger.reserve(rotated.credential, call_id=fresh())
    assert "newer" in await refused(ledger, first)
    assert rotated.key.old_until is not None
    assert time.time() >= rotated.key.old_until
    again = await keys.rotate("k", 0)
    with pytest.raises(Unauthorized):
        await ledger.reserve(rotated.credential, call_id=fresh())
    await ledger.reserve(again.credential, call_id=fresh())


async def test_a_key_that_moves_is_served_all_the_time(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k", team="a"))
    for team in ("b", "c"):
        await keys.teams.create(TeamChange(name=team))
    done = asyncio.Event()

    async def calls() -> set[str]:
        seen = set()
        while not done.is_set():
            hold = await ledger.reserve(credential, call_id=fresh())
            seen.add(hold.key.team_name)
            ledger.settle(hold)
        return seen

    calling = asyncio.create_task(calls())
    for team in ("b", "c", "b", "c", "b"):
        await keys.change(key.id, Change(team=team))
        assert (await ledger.reserve(credential, call_id=fresh())).key.team_name == team
    done.set()
    assert {"b", "c"} <= await calling


async def test_a_key_that_moves_while_it_is_looked_for_is_found(
    ledger: Ledger, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place was read, and then the record is not there any more: that is no unknown key."""
    key, credential = await keys.create(Change(name="k", team="a"))
    await keys.teams.create(TeamChange(name="b"))
    genuine = Memory._asked
    teams = ["b"]

    async def asked(memory: Memory, tag: str, command: bytes, until: float) -> object:
        answer: object = await genuine(memory, tag, command, until)
        if command == pack("GET", place_name(key.id)) and teams:
            await keys.change(key.id, Change(team=teams.pop()))
        return answer

    monkeypatch.setattr(Memory, "_asked", asked)
    assert (await ledger.reserve(credential, call_id=fresh())).key.team_name == "b"
    with pytest.raises(Unauthorized, match="Incorrect"):
        await ledger.reserve(new_credential("0" * 12), call_id=fresh())


async def test_a_team_that_is_not_active_refuses_all_its_keys(ledger: Ledger, keys: Keys) -> None:
    pairs = [await keys.create(Change(name=name, team="web")) for name in ("a", "b")]
    states: tuple[State, ...] = ("disabled", "revoked")
    for state in states:
        await ledger.reserve(pairs[0][1], call_id=fresh())
        await keys.teams.change("web", TeamChange(state=state))
        for _, credential in pairs:
            with pytest.raises(Unauthorized, match=state):
                await ledger.reserve(credential, call_id=fresh())
        if state == "disabled":
            await keys.teams.change("web", TeamChange(state="active"))


async def test_keyless_calls_have_the_rights_of_their_listeners_key(ledger: Ledger, keys: Keys) -> None:
    with pytest.raises(Unauthorized):
        await ledger.reserve_anonymous("guest", call_id=fresh())
    key = await keys.ensure_anonymous("guest")
    assert (await ledger.reserve_anonymous("guest", call_id=fresh())).key == key
    with pytest.raises(Unauthorized, match="Incorrect"):
        await ledger.reserve(new_credential(key.id), call_id=fresh())
    await keys.change("guest", Change(state="disabled"))
    with pytest.raises(Unauthorized, match="disabled"):
        await ledger.reserve_anonymous("guest", call_id=fresh())


def paid(_known: Known, local_only: bool) -> Ask:
    """A call that no local model can answer."""
    if local_only:
        raise NoTarget("no local model")
    return Ask()


@pytest.fixture
def as_it_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on the bounds are the product's."""

    def bound() -> None:
        monkeypatch.setattr("router.ledger.DECISION_LIMIT", DECISION_LIMIT)
        monkeypatch.setattr("router.link_node.PATIENCE", PATIENCE)

    return bound


async def test_a_frozen_store_refuses_in_time_and_recovers(
    store: Store, ledger: Ledger, keys: Keys, as_it_is: Callable[[], None]
) -> None:
    _, credential = await keys.create(Change(name="k"))
    await ledger.reserve(credential, call_id=fresh())
    as_it_is()
    pid = store.server_pid
    assert pid is not None
    late = 0.0

    async def look() -> None:
        """How late this process was woken at the most: that is not the ledger's time."""
        nonlocal late
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            late = max(late, time.monotonic() - began - 0.005)

    looking = asyncio.create_task(look())

    async def call(after: float) -> float:
        await asyncio.sleep(after)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await ledger.reserve(credential, call_id=fresh(), prepare=paid)
        assert (caught.value.status, caught.value.code) == (503, "quota_store")
        return time.monotonic() - began

    os.kill(pid, signal.SIGSTOP)
    try:
        waits = await asyncio.gather(*(call(number * 0.02) for number in range(30)))
    finally:
        os.kill(pid, signal.SIGCONT)
        looking.cancel()
    assert max(waits) < min(DECISION_LIMIT + 0.1 + 2 * late, 10)
    assert (await ledger.reserve(credential, call_id=fresh())).key.name == "k"


async def test_a_killed_store_costs_at_most_a_refusal_and_never_an_entry(
    store: Store, ledger: Ledger, keys: Keys
) -> None:
    _, credential = await keys.create(Change(name="k"))
    pid = store.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while True:
            with pytest.raises(Unauthorized):
                await ledger.reserve("junk", call_id=fresh())
            try:
                assert (await ledger.reserve(credential, call_id=fresh())).key.name == "k"
                break
            except StoreUnavailable:
                await asyncio.sleep(0)  # a refusal known beforehand waits for nothing


async def test_the_last_use_is_noted_to_the_minute(ledger: Ledger, keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    assert (await keys.get(key.id)).last_used is None
    began = time.time()
    ledger.settle(await ledger.reserve(credential, call_id=fresh()))
    async with asyncio.timeout(60):
        while (used := (await keys.get(key.id)).last_used) is None:  # noqa: ASYNC110 - written by the store
            await asyncio.sleep(0.01)
    assert began // 60 * 60 <= used <= time.time()
    shown = describe(Listed(key, key.created - 59), time.time())
    assert shown["last_used"] == shown["created"], "a use is not shown before the key was made"


async def test_closing_refuses_who_waits(store: Store, keys: Keys) -> None:
    ledger = Ledger(store, keys)
    _, credential = await keys.create(Change(name="k"))
    calls = [asyncio.create_task(ledger.reserve(credential, call_id=fresh())) for _ in range(3)]
    await asyncio.sleep(0)
    await ledger.close()
    for call in calls:
        with pytest.raises(StoreUnavailable):
            await call
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(credential, call_id=fresh())


async def test_a_record_that_cannot_be_read_refuses(store: Store, keys: Keys, ledger: Ledger) -> None:
    key, credential = await keys.create(Change(name="k"))
    await store.run("SET", key_name(key.team, key.id), b"{")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await ledger.reserve(credential, call_id=fresh())


async def test_a_store_that_is_not_there_refuses_in_time(tmp_path: Path, as_it_is: Callable[[], None]) -> None:
    as_it_is()
    store = await open_store(f"unix://{tmp_path}/nobody.sock", tmp_path)
    keys = await open_keys(store, tmp_path, {})
    ledger = Ledger(store, keys)
    async with asyncio.timeout(15):  # connecting has two seconds
        with pytest.raises(StoreUnavailable):
            await ledger.reserve(new_credential("0" * 12), call_id=fresh())
    await ledger.close()
    await store.close()
