"""What a store is given at its very first start: an admin token and a first key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.credentials import digest, new_admin_token
from router.descriptions import describe_key
from router.pepper import ADMIN
from router.records import Bootstrap, Record, key_of

if TYPE_CHECKING:
    from router.keys import Keys

FIRST_START: Final = "sy:first-start"


async def begin(keys: Keys, first: list[tuple[str, Record, str]], *, made_token: bool) -> Bootstrap:
    """See `Keys.bootstrap`. first: what an earlier try of this process made and has not shown yet; made_token: whether
    an admin token is to be made. Raises StoreUnavailable: then try again."""
    from router.migration import migrate

    await keys.peppers.stamp(keys.cabinet)
    await migrate(keys)
    team = await keys.teams.ensure_default()
    # Made once and written until the store has it: a reply that was lost does not cost the operator the secrets.
    if not first:
        first.append((new_admin_token(), *keys.new_record({"name": "default"}, team)))
    token, record, credential = first[0]
    shown = made_token and await _claim(keys, ADMIN, digest(keys.pepper, token).hex())
    begun = await keys.cabinet.raw(FIRST_START)
    ours = begun == record.id.encode()
    if begun is None and await _alone(keys, record.id):
        after = describe_key(key_of(record, team.name), None, keys.clock())
        async with keys.trail.entry("key.create", f"key {record.id}", None, after, name=record.name):
            await keys.cabinet.add(record)
        ours = True
    ours = await _claim(keys, FIRST_START, record.id) and ours
    first.clear()
    return Bootstrap(token if shown else None, credential if ours else None)


async def _alone(keys: Keys, key_id: str) -> bool:
    """Whether there is no key but anonymous ones and this one."""
    cursor: str | None = ""
    while cursor is not None:
        page = await keys.page(limit=1000, cursor=cursor)
        if page.unreadable or any(not one.key.anonymous and one.key.id != key_id for one in page.keys):
            return False
        cursor = page.cursor
    return True


async def _claim(keys: Keys, name: str, value: str) -> bool:
    """Write what nobody has written yet. Whether it is there by us, also when an earlier try of ours wrote it."""
    await keys.cabinet.ask("SET", name, value, "NX")
    return await keys.cabinet.raw(name) == value.encode()
