"""The audit log: every change stands in it before it is made, and whoever edits it is found out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from providers.errors import InvalidRequest, StoreUnavailable
from router.audit import Actor, Audit
from router.changes import TeamChange
from router.keys import Change, Conflict, Keys, open_keys
from router.records import AUDIT, AUDIT_END, AUDIT_HEAD, team_name
from router.store import Store, open_store

PEPPER = b"the pepper of these tests"


async def test_every_change_is_there_with_who_and_what(keys: Keys) -> None:
    by = keys.acting(Actor("key AAAAAAAAAAAA", "192.0.2.7"))
    made = await by.make(Change(name="k", team="web"))
    await by.change("k", Change(owner="ann", models=("a",)))
    await by.change("k", Change(owner="ann"))  # changes nothing
    await by.rotate("k", 60)
    await by.end_overlap("k")
    await by.teams.change("web", TeamChange(timezone="Europe/Berlin"))
    await by.revoke("k")
    entries, more = await keys.audit.entries()
    entries.reverse()
    assert more is None
    key, team = f"key {made.key.id}", f"team {made.key.team}"
    assert [(entry["action"], entry["target"]) for entry in entries] == [
        ("team.create", team),
        ("key.create", key),
        ("key.change", key),
        ("key.rotate", key),
        ("key.end_overlap", key),
        ("team.change", team),
        ("key.revoke", key),
    ]
    assert {(entry["actor"], entry["address"]) for entry in entries} == {("key AAAAAAAAAAAA", "192.0.2.7")}
    assert entries[2]["before"] == {"owner": "", "models": []}
    assert entries[2]["after"] == {"owner": "ann", "models": ["a"]}
    assert entries[6]["after"] == {"state": "revoked"}
    assert [entry["n"] for entry in entries] == list(range(1, 8))
    verdict = await keys.audit.verify()
    assert (verdict.ok, verdict.entries) == (True, 7)
    assert verdict.head == f"7:{entries[6]['hash']}"


async def test_a_change_that_failed_is_told(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    await keys.create(Change(name="k"))

    async def refused(*_: object) -> bool:
        return False

    async def lost(*_: object) -> bool:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(keys.cabinet, "replace", refused)
    with pytest.raises(Conflict):
        await keys.change("k", Change(owner="ann"))
    monkeypatch.setattr(keys.cabinet, "replace", lost)
    with pytest.raises(StoreUnavailable):
        await keys.change("k", Change(owner="ann"))
    (unknown, asked, failed, *_), _ = await keys.audit.entries()
    assert unknown["result"].startswith("failed: unknown")
    assert (unknown["of"], asked["result"]) == (asked["n"], "accepted")
    assert failed["result"] == "failed: changed by others meanwhile"
    assert (await keys.audit.verify()).ok


async def test_without_the_log_nothing_is_changed(keys: Keys, store: Store) -> None:
    key, _ = await keys.create(Change(name="k"))
    await store.run("DEL", AUDIT)
    await store.run("SET", AUDIT, "no list")
    with pytest.raises(StoreUnavailable):
        await keys.change("k", Change(owner="ann"))
    with pytest.raises(StoreUnavailable):
        await keys.create(Change(name="other"))
    assert [listed.key for listed in await keys.list()] == [key]


async def filled(keys: Keys, count: int = 6) -> None:
    for number in range(count):
        await keys.audit.append({"actor": "a", "action": "test", "target": f"t{number}", "result": "accepted"})


Tamper = Callable[[Store], Awaitable[object]]


async def edited(store: Store) -> None:
    raw = json.loads(await store.run("LINDEX", AUDIT, 2))
    await store.run("LSET", AUDIT, 2, json.dumps({**raw, "target": "other"}, separators=(",", ":")))


async def spaced(store: Store) -> None:
    raw = (await store.run("LINDEX", AUDIT, 2)).decode()
    await store.run("LSET", AUDIT, 2, raw.replace('{"', '{ "', 1))


async def doubled_field(store: Store) -> None:
    raw = (await store.run("LINDEX", AUDIT, 2)).decode()
    await store.run("LSET", AUDIT, 2, raw.replace("{", '{"target":"other",', 1))


async def removed(store: Store) -> None:
    await store.run("LREM", AUDIT, 1, await store.run("LINDEX", AUDIT, 2))


async def first_removed(store: Store) -> None:
    await store.run("LPOP", AUDIT)


async def swapped(store: Store) -> None:
    one, two = await store.run("LINDEX", AUDIT, 2), await store.run("LINDEX", AUDIT, 3)
    await store.run("LSET", AUDIT, 2, two)
    await store.run("LSET", AUDIT, 3, one)


async def cut(store: Store) -> None:
    await store.run("RPOP", AUDIT)


async def cut_with_its_mark(store: Store) -> None:
    await store.run("RPOP", AUDIT)
    await store.run("DEL", AUDIT_HEAD)


async def forged_mark(store: Store) -> None:
    await store.run("RPOP", AUDIT)
    last = json.loads(await store.run("LINDEX", AUDIT, -1))
    await store.run("SET", AUDIT_HEAD, f"{last['n']}:{last['hash']}:{'0' * 32}")


async def repeated(store: Store) -> None:
    await store.run("RPUSH", AUDIT, await store.run("LINDEX", AUDIT, -1))


async def junk(store: Store) -> None:
    await store.run("LSET", AUDIT, 2, b"\xff{")


async def forged(store: Store) -> None:
    last = json.loads(await store.run("LINDEX", AUDIT, -1))
    other = Audit(Keys(store, b"another pepper").cabinet, b"another pepper")
    entry = {"n": last["n"] + 1, "actor": "a", "action": "test", "target": "x", "result": "accepted"}
    await store.run("RPUSH", AUDIT, other._sealed({**entry, "prev": last["hash"]})[0])


async def all_of_it(store: Store) -> None:
    await store.run("DEL", AUDIT, AUDIT_HEAD)


async def all_but_one_with_its_marks(store: Store) -> None:
    await store.run("LTRIM", AUDIT, 0, 0)
    await store.run("DEL", AUDIT_HEAD)
    await store.run("DEL", AUDIT_END)


async def wrong_types(store: Store) -> None:
    await store.run("LSET", AUDIT, 2, b'{"n": "two", "time": 5, "actor": {}, "before": 7, "hash": "x"}')


async def wrong_text(store: Store) -> None:
    await store.run("LSET", AUDIT, 2, b'{"n": 3, "actor": "\\ud800", "prev": "\\ud800", "hash": "\\ud800"}')


async def spliced(store: Store) -> None:
    """Entries with the right numbers and seals, of another chain under the same pepper."""
    ours = await store.run("LRANGE", AUDIT, 0, -1)
    head = await store.run("GET", AUDIT_HEAD)
    await store.run("DEL", AUDIT, AUDIT_HEAD)
    await filled(Keys(store, PEPPER))
    await store.run("LTRIM", AUDIT, 0, 2)
    await store.run("RPUSH", AUDIT, *ours[3:])
    await store.run("SET", AUDIT_HEAD, head)


@pytest.mark.parametrize(
    "tamper",
    [
        edited,
        spaced,
        doubled_field,
        removed,
        first_removed,
        swapped,
        cut,
        cut_with_its_mark,
        forged_mark,
        repeated,
        junk,
        forged,
        spliced,
        all_of_it,
        all_but_one_with_its_marks,
        wrong_types,
        wrong_text,
    ],
)
async def test_tampering_is_found(store: Store, tamper: Tamper) -> None:
    keys = Keys(store, PEPPER)
    await filled(keys)
    assert (await keys.audit.verify()).ok
    await tamper(store)
    verdict = await keys.audit.verify()
    assert not verdict.ok
    await filled(keys, 1)  # and going on does not heal it
    assert not (await keys.audit.verify()).ok


async def test_an_older_copy_of_everything_is_found_by_a_head_that_was_noted(keys: Keys, store: Store) -> None:
    await filled(keys, 3)
    older = (await keys.audit.verify()).head
    mark = await store.run("GET", AUDIT_HEAD)
    await filled(keys, 2)
    noted = (await keys.audit.verify()).head
    assert (await keys.audit.verify(noted)).ok
    await store.run("LTRIM", AUDIT, 0, 2)
    for name in (AUDIT_HEAD, AUDIT_END):
        await store.run("SET", name, mark)
    assert (await keys.audit.verify(older)).ok  # nothing in the store can know
    assert not (await keys.audit.verify(noted)).ok
    assert not (await keys.audit.verify(f"99:{'a' * 64}")).ok
    for nonsense in ("x", "99:abc", ":", "0", f"-1:{'a' * 64}", older.upper()):
        with pytest.raises(InvalidRequest, match="as `audit verify` prints it"):
            await keys.audit.verify(nonsense)


async def test_a_log_that_was_emptied_with_its_marks_is_missed_by_the_keys(keys: Keys, store: Store) -> None:
    await keys.create(Change(name="k", team="web"))
    for name in (AUDIT, AUDIT_HEAD, AUDIT_END):
        await store.run("DEL", name)
    for _ in range(3):
        (problem,) = (await keys.audit.verify()).problems
        assert problem.startswith("2 keys or teams were made without an entry")
        await keys.change("k", Change(owner=str(time.monotonic_ns())))
    await keys.create(Change(name="other"))
    assert not (await keys.audit.verify()).ok


async def test_an_entry_in_between_is_no_shadow_on_those_after_it(keys: Keys, store: Store) -> None:
    await filled(keys, 40)
    third = await store.run("LINDEX", AUDIT, 2)
    await store.run("LINSERT", AUDIT, "AFTER", third, b"junk")
    assert (await keys.audit.verify()).problems == ("entry 4 cannot be read",)
    await store.run("LSET", AUDIT, 3, third)
    assert (await keys.audit.verify()).problems == ("entry 4 (its number is 3) was repeated, added or moved",)
    for place in range(30):
        await store.run("LSET", AUDIT, place, b"junk")
    *_, last = problems = (await keys.audit.verify()).problems
    assert (len(problems), last) == (21, "and 10 more problems")


async def test_damaged_entries_are_shown_as_such(keys: Keys, store: Store) -> None:
    await filled(keys, 5)
    for place, tamper in ((4, wrong_text), (3, wrong_types)):
        await tamper(store)
        await store.run("LSET", AUDIT, place - 1, await store.run("LINDEX", AUDIT, 2))
    await store.run("LSET", AUDIT, 2, b"[" * 100_000)
    entries, _ = await keys.audit.entries()
    assert [entry["n"] for entry in entries] == [5, 4, 3, 2, 1]
    assert entries[1] == entries[2] | {"n": 4} == {"n": 4, "result": "damaged: it is not as it was written"}
    json.dumps(entries)
    assert not (await keys.audit.verify()).ok


async def test_a_search_finds_names(keys: Keys) -> None:
    made = await keys.make(Change(name="Alice", team="web"))
    await keys.make(Change(name="bob", team="web"))
    await keys.change("Alice", Change(owner="ann"))
    await keys.rotate("Alice", 0)
    entries, _ = await keys.audit.entries(q="alice")
    assert [entry["action"] for entry in entries] == ["key.rotate", "key.change", "key.create"]
    assert {entry["target"] for entry in entries} == {f"key {made.key.id}"}
    assert entries[0]["after"] == {"overlap_seconds": 0, "ended_earlier": False}
    await keys.rotate("Alice", 600)
    (entry,), _ = await keys.audit.entries(limit=1)
    assert entry["before"] == {"old_key_until": None}
    assert (entry["after"]["overlap_seconds"], entry["after"]["old_key_until"][:2]) == (600, "20")


async def test_changes_of_others_meanwhile_cost_tries_not_entries(keys: Keys, tmp_path: Path) -> None:
    await keys.create(Change(name="k"))
    stores = [await open_store("embedded", tmp_path, role="command") for _ in range(4)]
    fields: list[dict[str, Any]] = [{"owner": "o"}, {"tags": ("t",)}, {"models": ("m",)}, {"deny": ("d",)}]
    try:
        others = [await open_keys(store, tmp_path, {}) for store in stores]
        await asyncio.gather(*(other.change("k", Change(**one)) for other, one in zip(others, fields, strict=True)))
    finally:
        for store in stores:
            await store.close()
    key = (await keys.get("k")).key
    assert (key.owner, key.tags, key.rights.models, key.rights.deny, key.version) == ("o", ("t",), ("m",), ("d",), 5)
    verdict = await keys.audit.verify()
    assert (verdict.ok, verdict.entries) == (True, 5)


async def test_many_writers_make_one_chain(keys: Keys, tmp_path: Path) -> None:
    stores = [await open_store("embedded", tmp_path, role="command") for _ in range(3)]
    try:
        writers = [await open_keys(store, tmp_path, {}) for store in stores]
        await asyncio.gather(*(filled(writer, 20) for writer in writers))
    finally:
        for store in stores:
            await store.close()
    verdict = await keys.audit.verify()
    assert (verdict.ok, verdict.entries) == (True, 60)


async def test_reading_is_paged_and_searched(keys: Keys) -> None:
    await filled(keys, 7)
    found: list[Any] = []
    cursor: int | None = None
    while True:
        entries, cursor = await keys.audit.entries(limit=3, before=cursor)
        found += entries
        if cursor is None:
            break
    assert [entry["n"] for entry in found] == [7, 6, 5, 4, 3, 2, 1]
    entries, _ = await keys.audit.entries(q="t3")
    assert [entry["target"] for entry in entries] == ["t3"]
    assert (await keys.audit.entries(q="%"))[0] == []


async def test_a_team_that_cannot_be_read_does_not_stop_the_examination(keys: Keys, store: Store) -> None:
    made = await keys.make(Change(name="k", team="web"))
    await store.run("SET", team_name(made.key.team), b"?")
    assert (await keys.audit.verify()).ok
