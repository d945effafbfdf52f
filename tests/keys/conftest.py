"""A real store and the keys in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.keys import Keys, open_keys
from router.ledger import Ledger
from router.store import Store


@pytest.fixture
async def keys(store: Store, tmp_path: Path) -> Keys:
    return await open_keys(store, tmp_path, {})


@pytest.fixture
async def ledger(store: Store, keys: Keys) -> AsyncIterator[Ledger]:
    made = Ledger(store, keys)
    yield made
    await made.close()
