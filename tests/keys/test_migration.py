"""Keys of the layout before teams are brought over at the first start, also when that is interrupted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.credentials import digest, new_credential, new_id
from router.keys import Change, Keys, anonymous_id
from router.migration import migrate
from router.store import Store


async def old_key(keys: Keys, store: Store, **fields: Any) -> tuple[str, str]:
    key_id = fields.pop("id", None) or new_id()
    credential = new_credential(key_id)
    record = {"id": key_id, "name": "k", "digest": digest(keys.pepper, credential).hex(), "owner": "", "team": ""}
    record |= {"tags": [], "state": "active", "created": 1_700_000_000, "expires_at": None, "models": [], "deny": []}
    record |= {"allow_fallback": True, "local_only": False, "manage_local": False, "admin": False, "anonymous": False}
    record |= {"version": 3, **fields}
    await store.run("SADD", "sy:keys", key_id)
    await store.run("SET", f"sy:{key_id}:key", json.dumps(record))
    await store.run("SET", f"sy:{key_id}:used", "1700000060")
    return key_id, credential


async def names(store: Store) -> set[bytes]:
    return set(await store.run("KEYS", "*"))


async def test_keys_keep_everything_and_their_label_becomes_a_team(keys: Keys, store: Store) -> None:
    key_id, credential = await old_key(keys, store, name="a", team="Web", models=["gpt-*"], admin=True)
    _, other = await old_key(keys, store, name="b", team="web")
    _, plain = await old_key(keys, store, name="c")
    _, revoked = await old_key(keys, store, name="d", state="revoked", team="wbe")
    await old_key(keys, store, id=anonymous_id("guest"), name="guest", digest="", anonymous=True, local_only=True)
    made = await keys.bootstrap()
    assert made.key is None  # there are keys
    key = await keys.authenticate(credential)
    assert key is not None
    assert (key.id, key.rights.models, key.rights.admin) == (key_id, ("gpt-*",), True)
    assert key.team_name.casefold() == "web"
    assert (key.version, key.created) == (3, 1_700_000_000)
    assert (await keys.get("a")).last_used == 1_700_000_060
    found = await keys.authenticate(other)
    assert found is not None
    assert found.team == key.team
    found = await keys.authenticate(plain)
    assert found is not None
    assert found.team == "default"
    assert await keys.authenticate(revoked) is None
    assert (await keys.ensure_anonymous("guest")).created == 1_700_000_000
    assert {team.name.casefold() for team in await keys.teams.list()} == {"default", "web", "wbe"}
    assert not [name for name in await names(store) if name == b"sy:keys" or name.endswith((b":key",))]
    assert len(await keys.list()) == 5


@pytest.mark.parametrize("stop", range(1, 30, 3))
async def test_an_interrupted_migration_goes_on(
    keys: Keys, store: Store, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [await old_key(keys, store, name=f"k{number}", team="web") for number in range(2)]
    real, calls = store.run, 0

    async def failing(*command: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise ConnectionError
        return await real(*command)

    monkeypatch.setattr(store, "run", failing)
    try:
        await migrate(keys)
    except Exception:
        pass  # that is the point
    monkeypatch.setattr(store, "run", real)
    await migrate(keys)
    assert await migrate(keys) == 0
    for _, credential in made:
        key = await keys.authenticate(credential)
        assert key is not None
        assert key.team_name == "web"
    assert len(await keys.list()) == 2
    assert (await keys.audit.verify()).ok


async def test_what_was_changed_since_is_not_undone(keys: Keys, store: Store) -> None:
    key_id, credential = await old_key(keys, store, name="k")
    raw = await store.run("GET", f"sy:{key_id}:key")
    await migrate(keys)
    await keys.revoke("k")
    await store.run("SADD", "sy:keys", key_id)  # as if the last step had not been reached
    await store.run("SET", f"sy:{key_id}:key", raw)
    await migrate(keys)
    assert await keys.authenticate(credential) is None


async def test_a_new_store_has_nothing_to_migrate(keys: Keys) -> None:
    await keys.create(Change(name="k"))
    assert await migrate(keys) == 0
