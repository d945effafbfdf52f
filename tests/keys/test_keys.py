"""Keys in a real store: made, changed, ended, kept over a restart, and never kept in clear."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from providers.errors import InvalidRequest, NotFound, StoreUnavailable
from router.keys import Change, Conflict, Keys, anonymous_id, describe, open_keys, parse_expiry
from router.pepper import PEPPER_CHECK
from router.store import Store, StoreError, open_store


async def test_a_key_is_what_was_asked_for(keys: Keys) -> None:
    wanted = Change(name="ci", owner="ann", team="web", tags=("a", "b"), models=("gpt-*",), deny=("gpt-5",), admin=True)
    key, credential = await keys.create(wanted)
    assert credential.startswith(f"sk-sy-{key.id}-")
    assert (key.name, key.owner, key.team_name, key.tags, key.state) == ("ci", "ann", "web", ("a", "b"), "active")
    assert (key.rights.models, key.rights.deny, key.rights.admin, key.rights.allow_fallback) == (
        ("gpt-*",),
        ("gpt-5",),
        True,
        True,
    )
    assert (await keys.get(key.id)).key == key == (await keys.get("ci")).key
    assert [listed.key for listed in await keys.list()] == [key]
    assert await keys.authenticate(credential) == key


async def test_only_a_digest_is_kept(store: Store, keys: Keys, tmp_path: Path) -> None:
    _, credential = await keys.create(Change(name="secret"))
    made = await keys.bootstrap()
    assert made.admin_token is not None
    await store.close()
    secrets = [text[-49:-6] for text in (credential, made.admin_token)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"secret" in path.read_bytes() for path in files)
    for path in files:
        for secret in secrets:
            for form in (secret.encode(), base64.b64encode(secret.encode()), secret.encode().hex().encode()):
                assert form not in path.read_bytes()


async def test_keys_outlive_a_restart(store: Store, keys: Keys, tmp_path: Path) -> None:
    key, credential = await keys.create(Change(name="kept"))
    await store.close()
    again = await open_store("embedded", tmp_path)
    assert await (await open_keys(again, tmp_path, {})).authenticate(credential) == key
    await again.close()


async def test_changes_take_effect_and_raise_the_version(keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k"))
    changed = await keys.change("k", Change(state="disabled", models=("a", "a", " b ")))
    assert (changed.state, changed.rights.models, changed.version) == ("disabled", ("a", "b"), 2)
    assert await keys.authenticate(credential) is None
    assert (await keys.change("k", Change(state="active"))).version == 3
    assert await keys.authenticate(credential) is not None
    assert (await keys.change("k", Change(state="active"))).version == 3  # nothing changed
    with pytest.raises(Conflict, match="version 3"):
        await keys.change(key.id, Change(name="late"), expected_version=2)


async def test_concurrent_changes_lose_nothing(keys: Keys) -> None:
    key, _ = await keys.create(Change(name="k"))
    await asyncio.gather(
        keys.change(key.id, Change(owner="ann")),
        keys.change(key.id, Change(tags=("web",))),
        keys.change(key.id, Change(admin=True)),
    )
    final = (await keys.get(key.id)).key
    assert (final.owner, final.tags, final.rights.admin, final.version) == ("ann", ("web",), True, 4)


async def test_revoked_is_final(keys: Keys) -> None:
    key, _ = await keys.create(Change(name="k"))
    assert (await keys.revoke(key.id)).state == "revoked"
    assert (await keys.revoke(key.id)).state == "revoked"
    with pytest.raises(Conflict, match="stays revoked"):
        await keys.change(key.id, Change(state="active"))


async def test_a_name_that_two_keys_have_needs_the_id(keys: Keys) -> None:
    await keys.create(Change(name="twin"))
    await keys.create(Change(name="twin"))
    with pytest.raises(Conflict, match="2 keys are named 'twin': use the id"):
        await keys.get("twin")


@pytest.mark.parametrize("ref", ["nobody", "0" * 12, "sy:keys", "../../x", "*", "{a}", "a" * 5000, ""])
async def test_an_unknown_key_is_not_found(keys: Keys, ref: str) -> None:
    with pytest.raises(NotFound):
        await keys.get(ref)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (Change(), "name"),
        (Change(name="  "), "name"),
        (Change(name="x" * 101), "name"),
        (Change(name="a\nb"), "name"),
        (Change(name="a", owner="\x00"), "owner"),
        (Change(name="a", models=("a b",)), "models"),
        (Change(name="a", deny=("",)), "deny"),
        (Change(name="a", tags=tuple(map(str, range(51)))), "tags"),
        (Change(name="a", expires_at=1), "expires_at"),
        (Change(name="a", state="gone"), "state"),  # type: ignore[arg-type]  # what a careless caller may send
    ],
)
async def test_what_cannot_be_is_refused_by_name(keys: Keys, change: Change, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await keys.create(change)
    assert caught.value.param == param
    assert await keys.list() == []


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 1_802_592_000),
        ("12H", 1_800_043_200),
        ("90s", 1_800_000_090),
        ("2w", 1_801_209_600),
        ("never", None),
        ("2027-01-31", 1_801_353_600),
        ("2027-01-31T08:00:00+08:00", 1_801_353_600),
    ],
)
def test_an_expiry_is_read(text: str, seconds: int | None) -> None:
    assert parse_expiry(text, NOW) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "0s", "3q", "1e3d", "999999999y", "tomorrow", "2027-13-01"])
def test_what_is_no_expiry_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_expiry(text, NOW)
    assert caught.value.param == "expires"


async def test_the_first_start_makes_a_token_and_a_key_once(keys: Keys) -> None:
    await keys.ensure_anonymous("guest")
    first = await keys.bootstrap()
    assert first.admin_token is not None
    assert first.key is not None
    assert first.key not in repr(first)
    assert (await keys.authenticate(first.key)) is not None
    assert await keys.is_admin(first.admin_token)
    assert not await keys.is_admin(first.key)
    second = await keys.bootstrap()
    assert (second.admin_token, second.key) == (None, None)


async def test_a_key_made_before_the_first_start_is_enough(keys: Keys) -> None:
    await keys.create(Change(name="mine"))
    assert (await keys.bootstrap()).key is None


async def test_the_operators_token_takes_the_place_of_a_made_one(store: Store, tmp_path: Path) -> None:
    keys = await open_keys(store, tmp_path, {"SWITCHYARD_ADMIN_TOKEN": "t" * 24})
    made = await keys.bootstrap()
    assert made.admin_token is None
    assert await keys.is_admin("t" * 24)
    assert not await keys.is_admin("t" * 23)
    with pytest.raises(StoreError, match="too short"):
        await open_keys(store, tmp_path, {"SWITCHYARD_ADMIN_TOKEN": "admin"})


async def test_the_admin_right_opens_administration_and_ends_with_the_key(keys: Keys) -> None:
    key, credential = await keys.create(Change(name="boss", admin=True))
    assert await keys.is_admin(credential)
    await keys.revoke(key.id)
    assert not await keys.is_admin(credential)


async def test_the_anonymous_key_is_one_local_and_opened_by_nothing(keys: Keys) -> None:
    made = await asyncio.gather(*(keys.ensure_anonymous("guest") for _ in range(5)))
    assert {key.id for key in made} == {anonymous_id("guest")}
    assert made[0].rights.local_only
    await keys.change("guest", Change(local_only=False))
    assert not (await keys.ensure_anonymous("guest")).rights.local_only
    assert len(await keys.list()) == 1


@pytest.mark.parametrize("environ", [{}, {"SWITCHYARD_PEPPER": "another pepper " * 3}])
async def test_another_pepper_is_noticed(store: Store, keys: Keys, tmp_path: Path, environ: Mapping[str, str]) -> None:
    await keys.create(Change(name="k"))
    await open_keys(store, tmp_path / "elsewhere", environ)
    assert "another pepper" in str(store.problem)
    assert "SWITCHYARD_PEPPER" in str(store.problem)


async def test_who_only_looks_leaves_no_stamp_and_a_stamp_on_nothing_is_replaced(store: Store, tmp_path: Path) -> None:
    other = await open_keys(store, tmp_path / "other", {})
    assert await other.list() == []
    assert await store.run("EXISTS", PEPPER_CHECK) == 0
    await store.run("SET", PEPPER_CHECK, other.pepper_check())  # as earlier versions did
    keys = await open_keys(store, tmp_path, {})
    assert store.problem is None
    await keys.create(Change(name="k"))
    assert await store.run("GET", PEPPER_CHECK) == keys.pepper_check().encode()
    with pytest.raises(StoreUnavailable, match="another pepper"):
        await other.create(Change(name="k"))
    assert len(await keys.list()) == 1


async def test_a_pepper_moves_from_the_file_to_the_variable(store: Store, keys: Keys, tmp_path: Path) -> None:
    _, credential = await keys.create(Change(name="k"))
    environ = {"SWITCHYARD_PEPPER": (tmp_path / "pepper").read_text()}
    assert await (await open_keys(store, tmp_path / "elsewhere", environ)).authenticate(credential) is not None
    assert store.problem is None


async def test_a_variable_that_was_read_as_text_goes_on_to_be(store: Store, tmp_path: Path) -> None:
    written = "0123456789abcdef" * 4
    old = Keys(store, written.encode())
    _, credential = await old.create(Change(name="k"))
    keys = await open_keys(store, tmp_path, {"SWITCHYARD_PEPPER": written})
    assert await keys.authenticate(credential) is not None
    assert (await keys.audit.verify()).ok
    assert store.problem is None


async def test_a_description_holds_no_secret(keys: Keys) -> None:
    key, credential = await keys.create(Change(name="k", expires_at=int(time.time()) + 5))
    told = describe(await keys.get(key.id), time.time() + 10)
    assert told["state"] == "expired"
    assert credential[19:] not in str(told)
    assert "digest" not in str(told)


async def test_a_name_means_the_one_key_that_is_not_revoked(keys: Keys) -> None:
    first, _ = await keys.create(Change(name="alice"))
    await keys.revoke("alice")
    assert (await keys.get("alice")).key.id == first.id
    second, _ = await keys.create(Change(name="alice"))
    assert (await keys.get("alice")).key.id == second.id
    await keys.revoke("alice")
    with pytest.raises(Conflict, match="2 keys are named 'alice', all revoked"):
        await keys.get("alice")


async def test_a_key_is_not_named_like_the_id_of_another(keys: Keys) -> None:
    key, _ = await keys.create(Change(name="a"))
    await keys.create(Change(name="b"))
    with pytest.raises(Conflict, match="the id of a key"):
        await keys.create(Change(name=key.id))
    with pytest.raises(Conflict, match="the id of a key"):
        await keys.change("b", Change(name=key.id))
    await keys.create(Change(name="A" * 12))


async def test_an_expiry_too_far_ahead_is_told_as_such(keys: Keys) -> None:
    far = parse_expiry("9999-12-31", time.time())
    with pytest.raises(InvalidRequest, match="too far ahead"):
        await keys.create(Change(name="k", expires_at=far))
