"""Everything moves to another store: records, limits, what was spent, but no secret; whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from providers.errors import InvalidRequest, StoreUnavailable
from router.changes import TeamChange
from router.credentials import load_pepper, load_peppers
from router.keys import Change, Conflict, Keys
from router.limit_text import parse_limits
from router.pepper import Pepper
from router.records import counters_name, key_name
from router.store import Store, open_store
from router.transfer import bring, export, read_export


@pytest.fixture
async def other(keys: Keys, tmp_path: Path) -> AsyncIterator[Keys]:
    """The keys of another, empty store, with the same pepper."""
    path = tmp_path / "other"
    path.mkdir(mode=0o700)
    opened = await open_store("embedded", path)
    yield Keys(opened, keys.pepper)
    await opened.close()


async def filled(keys: Keys, store: Store) -> dict[str, str]:
    """Two teams with keys that spent something. Names and credentials."""
    limits = parse_limits({"budget": {"day": "5usd"}, "rpm": 7})
    await keys.teams.create(TeamChange(name="Web", timezone="Asia/Shanghai", limits=limits))
    made = {}
    hour = int(keys.clock()) // 3600
    for name, team in (("a", "Web"), ("b", "Web"), ("c", "")):
        key, made[name] = await keys.create(Change(name=name, team=team, limits=limits))
        fields = ("budget_day:s", "1250", "budget_day:w", "1800000000", "budget_day:h", "99")
        await store.run("HSET", counters_name(key.team, key.id), *fields)
        await store.run("HSET", counters_name(key.team, "team"), *fields)
        await store.run("HSET", f"sy:{{{key.team}}}:used", key.id, "1800000000")
        await store.run("HSET", f"sy:{{{key.team}}}:uh:{hour}", f"{key.id}\tm\tp\tcalls", "3")
        await store.run("EXPIRE", f"sy:{{{key.team}}}:uh:{hour}", "1000")
    await keys.bootstrap()
    await keys.rotate("b", 3600)
    await keys.revoke("c")
    return made


async def lines(keys: Keys, *, usage: bool = False) -> list[str]:
    return [line async for line in export(keys, usage=usage)]


async def dump(store: Store) -> dict[str, Any]:
    """The store's content, apart from its log."""
    found: dict[str, Any] = {}
    for name in sorted(await store.run("KEYS", "*")):
        text = name.decode()
        if not text.startswith(("sy:{audit}", "sy:audit-end", "sy:team-as", "sy:pepper", "sy:first-start")):
            kind = (await store.run("TYPE", name)).decode()
            read = {"string": ("GET",), "set": ("SMEMBERS",), "hash": ("HGETALL",)}[kind]
            found[text] = await store.run(*read, name)
    return found


async def test_all_arrives_but_what_running_calls_hold(keys: Keys, store: Store, other: Keys) -> None:
    made = await filled(keys, store)
    text = await lines(keys, usage=True)
    done = await bring(other, read_export(text))
    assert (done.teams, done.keys, done.present, done.warnings) == (2, 3, 0, [])
    before = await dump(store)
    for fields in before.values():
        if isinstance(fields, dict):
            fields.pop(b"budget_day:h", None)
    assert await dump(other.cabinet.store) == before
    assert (await other.authenticate(made["a"])) == (await keys.authenticate(made["a"]))
    assert await other.authenticate(made["b"]) is not None  # the overlap moves, too
    assert await other.authenticate(made["c"]) is None
    assert (await other.teams.get("web")).timezone == "Asia/Shanghai"
    with pytest.raises(Conflict):
        await other.teams.create(TeamChange(name="WEB"))
    assert (await other.bootstrap()).admin_token is None  # the old one goes on to work
    ttl = await other.cabinet.ask("TTL", next(name for name in before if ":uh:" in name))
    assert 900 < ttl <= 1000


async def test_no_secret_is_in_it(keys: Keys, store: Store) -> None:
    made = await filled(keys, store)
    text = "".join(await lines(keys, usage=True))
    for credential in made.values():
        assert credential[19:] not in text
    assert "sk-sy" not in text
    assert keys.pepper.hex() not in text


async def test_importing_again_does_no_harm(keys: Keys, store: Store, other: Keys) -> None:
    await filled(keys, store)
    text = await lines(keys)
    await bring(other, read_export(text))
    once = await dump(other.cabinet.store)
    done = await bring(other, read_export(text))
    assert (done.teams, done.keys, done.present) == (0, 0, 3)
    assert await dump(other.cabinet.store) == once


@pytest.mark.parametrize("stop", [2, 9, 14, 17, 20, 22, 24, 26])
async def test_an_interrupted_import_goes_on(
    keys: Keys, store: Store, other: Keys, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await filled(keys, store)
    text = await lines(keys)
    real, real_gather, calls = other.cabinet.ask, other.cabinet.gather, 0

    async def counted(real: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise StoreUnavailable("gone")
        return await real(*arguments)

    monkeypatch.setattr(other.cabinet, "ask", lambda *arguments: counted(real, *arguments))
    monkeypatch.setattr(other.cabinet, "gather", lambda commands: counted(real_gather, commands))
    with pytest.raises(StoreUnavailable):
        await bring(other, read_export(text))
    monkeypatch.undo()
    for team in ("Web", "default"):  # a team is there whole, or not yet
        found = await other.cabinet.team((await keys.teams.get(team)).id)
        if found is not None and found.version == (await keys.teams.get(team)).version and team != "default":
            assert len(await other.list(team=team)) == len(await keys.list(team=team))
    done = await bring(other, read_export(text))
    assert done.keys + done.present == 3
    assert await other.authenticate(made["a"]) is not None
    assert not await other.cabinet.ask("KEYS", "*:import")


async def test_another_pepper_is_refused(keys: Keys, store: Store, other: Keys, tmp_path: Path) -> None:
    await filled(keys, store)
    stranger = Keys(other.cabinet.store, load_pepper(tmp_path / "stranger", {}))
    with pytest.raises(InvalidRequest, match="another pepper"):
        await bring(stranger, read_export(await lines(keys)))
    assert await dump(other.cabinet.store) == {}


async def test_what_is_there_is_kept_unless_asked(keys: Keys, store: Store, other: Keys) -> None:
    made = await filled(keys, store)
    text = await lines(keys)
    await bring(other, read_export(text))
    await other.change("a", Change(owner="new"))
    before = await dump(other.cabinet.store)
    with pytest.raises(Conflict, match="another key with the id"):
        await bring(other, read_export(text))
    assert await dump(other.cabinet.store) == before
    await bring(other, read_export(text), replace=True)
    assert (await other.get("a")).key.owner == ""
    await other.teams.change("Web", TeamChange(owner="new"))
    with pytest.raises(Conflict, match="another team with the id"):
        await bring(other, read_export(text))
    await other.change("a", Change(team="default"))
    await bring(other, read_export(text), replace=True)
    assert (await other.get("a")).key.team_name == "Web"
    assert len(await other.list()) == 3
    assert await other.authenticate(made["a"]) is not None


async def test_a_team_is_not_replaced_while_its_calls_run(keys: Keys, store: Store, other: Keys) -> None:
    await filled(keys, store)
    text = await lines(keys)
    await bring(other, read_export(text))
    key = (await other.get("a")).key
    await other.change("a", Change(owner="new"))
    leases = f"sy:{{{key.team}}}:leases"
    await other.cabinet.ask("ZADD", leases, int(other.clock() * 1000) + 30_000, "call")
    await other.cabinet.ask("HSET", counters_name(key.team, key.id), "budget_day:h", "700", "rpd:s", "3")
    await other.cabinet.ask("HSET", counters_name(key.team, "team"), "budget_day:h", "700")
    before = await other.cabinet.ask("HGETALL", counters_name(key.team, key.id))
    with pytest.raises(Conflict, match="calls are running in team Web"):
        await bring(other, read_export(text), replace=True)
    assert await other.cabinet.ask("HGETALL", counters_name(key.team, key.id)) == before
    assert (await other.get("a")).key.owner == "new"

    await other.cabinet.ask("ZADD", leases, int(other.clock() * 1000) - 90_000, "call")  # of a router that was killed
    await bring(other, read_export(text), replace=True)
    for scope in (key.id, "team"):
        counters = await other.cabinet.ask("HGETALL", counters_name(key.team, scope))
        found = dict(counters if isinstance(counters, dict) else zip(counters[::2], counters[1::2], strict=True))
        wanted = {b"budget_day:s": b"1250", b"budget_day:w": b"1800000000", b"budget_day:h": b"700"}
        assert found == wanted  # what the killed router's calls hold is still theirs


async def test_a_name_that_is_taken_is_told(keys: Keys, store: Store, other: Keys) -> None:
    await filled(keys, store)
    await other.teams.create(TeamChange(name="web"))
    with pytest.raises(Conflict, match="another team named 'Web'"):
        await bring(other, read_export(await lines(keys)))


async def test_a_damaged_file_is_refused(keys: Keys, store: Store, other: Keys) -> None:
    await filled(keys, store)
    text = await lines(keys)
    for place in range(len(text)):
        for damaged in (
            text[:place],
            text[:place] + text[place + 1 :],
            [*text[:place], "{}", *text[place + 1 :]],
            [*text[:place], text[place][:-9], *text[place + 1 :]],
            [*text[:place], text[place], *text[place:]],
        ):
            if [line for line in damaged if '"counters":{' not in line[:13]] == [
                line for line in text if '"counters":{' not in line[:13]
            ]:
                continue  # without a team's own counters, a file is whole as well
            with pytest.raises(InvalidRequest):
                read_export(damaged)
    with pytest.raises(InvalidRequest, match="format 2"):
        read_export([text[0].replace('"switchyard_export":1', '"switchyard_export":2')])
    with pytest.raises(InvalidRequest, match="no file of"):
        read_export(['{"a": 1}'])
    with pytest.raises(InvalidRequest, match="empty"):
        read_export([])


async def test_a_file_from_the_future_is_told(keys: Keys, store: Store, other: Keys) -> None:
    await filled(keys, store)
    text = await lines(keys)
    head = json.loads(text[0])
    text[0] = json.dumps({**head, "clock": head["clock"] + 3600})
    assert "two clocks is wrong" in (await bring(other, read_export(text))).warnings[0]


async def test_a_record_that_cannot_be_read_is_named(keys: Keys, store: Store) -> None:
    key, _ = await keys.create(Change(name="k"))
    await store.run("SET", key_name(key.team, key.id), b"1.aaaaaa\n{")
    with pytest.raises(StoreUnavailable, match=key.id):
        await lines(keys)


async def test_the_files_reading_of_the_pepper_is_taken_in_a_new_store(store: Store, other: Keys) -> None:
    written = "0123456789abcdef" * 4
    keys = Keys(store, written.encode())  # as earlier versions read it
    _, credential = await keys.create(Change(name="k"))
    fresh = Keys(other.cabinet.store, Pepper(*load_peppers(Path("unused"), {"SWITCHYARD_PEPPER": written})))
    await bring(fresh, read_export(await lines(keys)))
    assert await fresh.authenticate(credential) is not None
    assert (await fresh.audit.verify()).ok
