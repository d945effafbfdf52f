"""The pepper of a store: which reading of the setting is meant, and the stamp that says whose keys lie there.

`sy:pepper` holds a check value of the pepper (it says nothing about it). It is written with the first change, never by
who only looks. 64 hexadecimal digits in SWITCHYARD_PEPPER mean the same 32 bytes as in `data_dir/pepper`; a store whose
keys were made when they were taken as text tells so by its stamp.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

from providers.errors import StoreUnavailable
from router.credentials import digest
from router.records import AUDIT, TEAMS, keys_name
from router.store import where

if TYPE_CHECKING:
    from router.cabinet import Cabinet
    from router.store import Store

PEPPER_CHECK: Final = "sy:pepper"
ADMIN: Final = "sy:admin"
OLD_INDEX: Final = "sy:keys"
"""The keys of version 0.1: see `router.migration`."""


def check_of(pepper: bytes) -> str:
    """A text that is the same for the same pepper, and says nothing about it."""
    return digest(pepper, "the check value of a pepper").hex()[:32]


class Pepper:
    """readings: the ways to read the setting, the preferred one first. `value` is the one in use."""

    def __init__(self, *readings: bytes) -> None:
        self.value = readings[0]
        self._by_check = {check_of(reading): reading for reading in readings}

    @property
    def check(self) -> str:
        return check_of(self.value)

    def adopt(self, check: str) -> bool:
        """Use the reading with this check value. False when there is none."""
        self.value = self._by_check.get(check, self.value)
        return check in self._by_check

    async def examine(self, store: Store) -> str | None:
        """A problem when the keys of this store were made under another pepper. Writes nothing."""
        stamp = cast("bytes | None", await store.run("GET", PEPPER_CHECK))
        if stamp is None or self.adopt(stamp.decode("ascii", "replace")) or not await _depends(store):
            return None
        return (
            f"the keys in {where(store.name)} were made under another pepper, so none would be recognised:"
            " restore data_dir/pepper, or give all routers of this store the same SWITCHYARD_PEPPER"
        )

    async def stamp(self, cabinet: Cabinet) -> None:
        """Before something is written: this pepper is the store's. Raises StoreUnavailable when another one is."""
        mine = self.check.encode()
        await cabinet.ask("SET", PEPPER_CHECK, mine, "NX")
        if await cabinet.raw(PEPPER_CHECK) == mine:
            return
        async with cabinet.errors():
            problem = await self.examine(cabinet.store)
        if problem is not None:
            cabinet.store.told(problem)
            raise StoreUnavailable(problem)
        await cabinet.ask("SET", PEPPER_CHECK, self.check)  # a stamp on nothing, or another reading of ours


async def _depends(store: Store) -> bool:
    """Whether anything here was made under the pepper that the store is stamped with."""
    for name in (ADMIN, AUDIT, OLD_INDEX):
        if await store.run("EXISTS", name):
            return True
    for team in cast("Iterable[bytes]", await store.run("SMEMBERS", TEAMS)):
        if await store.run("EXISTS", keys_name(team.decode())):
            return True
    return False
