"""Teams: one name, one team; keys that change teams; and names in the store that no person chooses."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import msgspec
import pytest

from providers.errors import InvalidRequest, NotFound
from router.changes import TeamChange
from router.keys import Change, Conflict, Keys, open_keys
from router.limit_text import parse_limits
from router.records import key_name, place_name, successor, team_name
from router.store import Store, open_store
from router.teams import CLAIM_LIMIT, claim_name, near


async def test_a_team_is_what_was_asked_for(keys: Keys) -> None:
    limits = parse_limits({"budget": {"month": "300cny"}})
    made = await keys.teams.create(TeamChange(name="Search", timezone="Asia/Shanghai", owner="ann", limits=limits))
    assert (made.name, made.timezone, made.owner, made.state, made.version) == (
        "Search",
        "Asia/Shanghai",
        "ann",
        "active",
        1,
    )
    assert [limit.name for limit in made.limits] == ["budget_month"]
    for ref in (made.id, "Search", "SEARCH", " search "):
        assert await keys.teams.get(ref) == made
    assert [team.name for team in await keys.teams.list()] == ["default", "Search"]


async def test_changes_merge_and_raise_the_version(keys: Keys) -> None:
    made = await keys.teams.create(TeamChange(name="a", limits=parse_limits({"rpm": 5, "tpm": 9})))
    changed = await keys.teams.change("a", TeamChange(owner="ann", limits=parse_limits({"rpm": None})), expected=1)
    assert ([limit.name for limit in changed.limits], changed.version) == (["tpm"], 2)
    assert changed.etag != made.etag
    for late in (1, made.etag):
        with pytest.raises(Conflict, match="version 2"):
            await keys.teams.change("a", TeamChange(owner="bob"), expected=late)
    assert (await keys.teams.change("a", TeamChange(owner="ann"), expected=changed.etag)) == changed


async def test_a_name_belongs_to_one_team(keys: Keys) -> None:
    await keys.teams.create(TeamChange(name="web"))
    made = await asyncio.gather(
        *(keys.teams.create(TeamChange(name=name)) for name in ("Lab", "lab", "LAB", "lab")), return_exceptions=True
    )
    assert len([one for one in made if not isinstance(one, BaseException)]) == 1
    assert all(isinstance(one, Conflict) for one in made if isinstance(one, BaseException))
    for taken in ("web", "WEB", "default"):
        with pytest.raises(Conflict):
            await keys.teams.create(TeamChange(name=taken))
    with pytest.raises(Conflict):
        await keys.teams.change("lab", TeamChange(name="web"))


async def test_a_renamed_team_leaves_its_name_to_others(keys: Keys) -> None:
    old = await keys.teams.create(TeamChange(name="web"))
    await keys.teams.change("web", TeamChange(name="site"))
    assert (await keys.teams.get("site")).id == old.id
    with pytest.raises(NotFound):
        await keys.teams.get("web")
    new = await keys.teams.create(TeamChange(name="web"))
    assert new.id != old.id
    await keys.teams.change("site", TeamChange(name="SITE"))  # only the case: still its own
    assert (await keys.teams.get("site")).name == "SITE"


async def test_a_name_whose_team_was_never_written_is_free_again(keys: Keys) -> None:
    abandoned = int(time.time()) - CLAIM_LIMIT - 1
    await keys.cabinet.set_value(claim_name("web"), "", f"AAAAAAAA {abandoned}")
    assert (await keys.teams.create(TeamChange(name="web"))).id != "AAAAAAAA"
    # One that is just being made is made together: whoever comes first.
    await keys.cabinet.set_value(claim_name("lab"), "", f"BBBBBBBB {int(time.time())}")
    assert (await keys.teams.create(TeamChange(name="lab"))).id == "BBBBBBBB"


@pytest.mark.parametrize(
    ("name", "likely"),
    [
        ("serach", "search"),
        ("searh", "search"),
        ("web team", "web-team"),
        ("web_team", "web-team"),
        ("team-2", None),
        ("infra", None),
        ("sales", None),
    ],
)
def test_slips_are_told_from_other_names(name: str, likely: str | None) -> None:
    assert near(name, ["search", "web-team", "team-1", "default"]) == likely


async def test_a_key_of_an_unknown_team_makes_it_unless_it_looks_like_a_slip(keys: Keys) -> None:
    made = await keys.make(Change(name="k", team="search"))
    assert (made.team_created, made.key.team_name) == (True, "search")
    again = await keys.make(Change(name="k2", team="Search"))
    assert (again.team_created, again.key.team) == (False, made.key.team)
    assert (await keys.make(Change(name="k3", team=made.key.team))).key.team == made.key.team
    with pytest.raises(InvalidRequest, match="did you mean 'search'"):
        await keys.make(Change(name="k4", team="serach"))
    assert len(await keys.list(team="search")) == 3
    assert len(await keys.teams.list()) == 2


async def test_many_keys_at_once_make_their_team_once(keys: Keys, tmp_path: Path) -> None:
    stores = [await open_store("embedded", tmp_path, role="command") for _ in range(3)]
    try:
        makers = [await open_keys(store, tmp_path, {}) for store in stores]
        made = await asyncio.gather(
            *(maker.make(Change(name=f"k{number}", team="new")) for number in range(10) for maker in makers)
        )
    finally:
        for store in stores:
            await store.close()
    assert len({one.key.team for one in made}) == 1
    assert [one.team_created for one in made].count(True) == 1
    assert len(await keys.list(team="new")) == 30
    assert (await keys.audit.verify()).ok


async def test_no_team_takes_a_name_that_means_another(keys: Keys) -> None:
    web = await keys.teams.create(TeamChange(name="Web"))
    lab = await keys.teams.create(TeamChange(name="lab"))
    for name in ("default", "Default", "WEB", web.id):
        with pytest.raises(Conflict):
            await keys.teams.change("lab", TeamChange(name=name))
    assert (await keys.teams.change("lab", TeamChange(name="LAB"))).id == lab.id


async def test_the_default_team_stays(keys: Keys) -> None:
    key, _ = await keys.create(Change(name="k"))
    assert (key.team, key.team_name) == ("default", "default")
    with pytest.raises(Conflict, match="keeps its name"):
        await keys.teams.change("default", TeamChange(name="x"))
    with pytest.raises(Conflict, match="disabled, not revoked"):
        await keys.teams.change("default", TeamChange(state="revoked"))
    assert (await keys.teams.change("default", TeamChange(state="disabled"))).state == "disabled"


async def test_keys_of_a_team_that_is_not_active_do_not_administer(keys: Keys) -> None:
    _, token = await keys.create(Change(name="boss", admin=True, team="ops"))
    assert await keys.is_admin(token)
    await keys.teams.change("ops", TeamChange(state="disabled"))
    assert not await keys.is_admin(token)
    await keys.teams.change("ops", TeamChange(state="active"))
    assert await keys.is_admin(token)
    await keys.teams.change("ops", TeamChange(state="revoked"))
    assert not await keys.is_admin(token)
    with pytest.raises(Conflict, match="stays revoked"):
        await keys.teams.change("ops", TeamChange(state="active"))
    with pytest.raises(Conflict, match="takes no new keys"):
        await keys.create(Change(name="k", team="ops"))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (TeamChange(), "name"),
        (TeamChange(name=" "), "name"),
        (TeamChange(name="a", timezone="Mars/Olympus"), "timezone"),
        (TeamChange(name="a", timezone="../../etc/passwd"), "timezone"),
        (TeamChange(name="a", timezone=""), "timezone"),
        (TeamChange(name="a", timezone="Asia"), "timezone"),
        (TeamChange(name="a", limits=(parse_limits({"models": {str(n): {"rpm": 1}}})[0] for n in range(99))), "limits"),  # type: ignore[arg-type]  # any iterable will do
    ],
)
async def test_what_cannot_be_is_refused_by_name(keys: Keys, change: TeamChange, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await keys.teams.create(change)
    assert caught.value.param == param


# --- moving a key


async def test_a_key_moves_with_all_it_has(keys: Keys, store: Store) -> None:
    key, credential = await keys.create(Change(name="k", team="web", owner="ann", limits=parse_limits({"rpm": 5})))
    await store.run("HSET", f"sy:{{{key.team}}}:used", key.id, 1_800_000_000)
    with pytest.raises(NotFound, match="no team 'lab'"):
        await keys.change("k", Change(team="lab"))
    lab = await keys.teams.create(TeamChange(name="lab"))
    moved = await keys.change("k", Change(team="lab"), expected_version=1)
    assert (moved.team, moved.team_name, moved.owner, moved.limits) == (lab.id, "lab", "ann", key.limits)
    found = await keys.get("k")
    assert (found.key, found.last_used) == (moved, 1_800_000_000)
    assert await keys.authenticate(credential) == moved
    assert await keys.list(team="web") == []
    assert [listed.key for listed in await keys.list(team="lab")] == [moved]
    assert await store.run("EXISTS", key_name(key.team, key.id)) == 0


async def test_a_move_that_was_interrupted_is_finished_by_the_next_who_looks(keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k", team="web"))
    lab = await keys.teams.create(TeamChange(name="lab"))
    record = await keys.cabinet.key(key.team, key.id)
    assert record is not None
    frozen = successor(record, msgspec.structs.replace(record, moving=lab.id))
    assert await keys.cabinet.replace(record, frozen)
    assert (await keys.revoke(key.id)).team == lab.id  # and no change is lost
    assert await keys.authenticate(credential) is None
    assert [listed.key.state for listed in await keys.list()] == ["revoked"]


async def test_a_change_that_comes_while_a_key_moves_is_not_lost(keys: Keys) -> None:
    await keys.teams.create(TeamChange(name="lab"))
    for number in range(5):
        key, credential = await keys.create(Change(name=f"k{number}", team="web"))
        results = await asyncio.gather(
            keys.change(key.id, Change(team="lab")),
            keys.change(key.id, Change(owner="ann")),
            keys.revoke(key.id),
            return_exceptions=True,
        )
        assert not [one for one in results if isinstance(one, BaseException) and not isinstance(one, Conflict)]
        assert (await keys.get(key.id)).key.state == "revoked"
        assert await keys.authenticate(credential) is None


async def test_what_is_revoked_stays_where_it_is(keys: Keys) -> None:
    await keys.teams.create(TeamChange(name="lab"))
    await keys.create(Change(name="k"))
    await keys.revoke("k")
    with pytest.raises(Conflict, match="stays where it is"):
        await keys.change("k", Change(team="lab"))


async def test_no_chosen_name_becomes_part_of_a_name_in_the_store(keys: Keys, store: Store) -> None:
    names = ["{a}", "sy:keys", "*", "a:b", "..x", "x" * 100, "{default}", "键"]
    for name in names:
        await keys.create(Change(name=name, team=name, owner=name))
    for name in names:
        assert (await keys.get(name)).key.name == name
        assert (await keys.teams.get(name)).name == name
    one = "[0-9A-Za-z]"
    team = f"(default|{one}{{8}})"
    shapes = [
        "sy:(teams|pepper|audit-end|\\{audit\\}:log|\\{audit\\}:head)",
        "sy:team-as:[0-9a-f]{24}",
        f"sy:at:{one}{{12}}",
        f"sy:\\{{{team}\\}}:(team|keys|used|key:{one}{{12}})",
    ]
    for found in await store.run("KEYS", "*"):
        assert any(re.fullmatch(shape, found.decode()) for shape in shapes), found


@pytest.mark.parametrize("ref", ["", "nobody", "A" * 8, "*", "{default}", "default}", "a" * 5000, "\x00"])
async def test_an_unknown_team_is_not_found(keys: Keys, ref: str) -> None:
    with pytest.raises(NotFound):
        await keys.teams.get(ref)


async def test_records_of_a_newer_router_are_told(keys: Keys, store: Store) -> None:
    key, _ = await keys.create(Change(name="k", team="web"))
    from providers.errors import StoreUnavailable

    for name in (key_name(key.team, key.id), team_name(key.team)):
        before = await store.run("GET", name)
        for raw in (b"{}", b"junk", b"1.abcdef\n[]", b"x.abcdef\n{}", b"1.abcdef\n"):
            await store.run("SET", name, raw)
            with pytest.raises(StoreUnavailable, match="newer router"):
                await keys.get(key.id)
        await store.run("SET", name, before)
    await store.run("DEL", place_name(key.id))
    with pytest.raises(NotFound):
        await keys.get(key.id)
