"""A real store and the keys in it. Its answers may take as long as a busy machine needs, but where the bound is what is
tested."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from router.keys import Keys, open_keys
from router.known import Memory
from router.ledger import Ledger
from router.link import Links
from router.store import Store

PATIENT = 20.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ledger.DECISION_LIMIT", "link_node.PATIENCE", "holders.ANSWER_LIMIT", "store.ANSWER_LIMIT"):
        monkeypatch.setattr(f"router.{name}", PATIENT)
    monkeypatch.setattr("router.store.CONNECT_LIMIT", PATIENT)
    monkeypatch.setattr(Memory.fetch, "__defaults__", (PATIENT,))
    monkeypatch.setattr(Links.ask, "__kwdefaults__", {"limit": PATIENT, "repeat": True})


@pytest.fixture
async def keys(store: Store, tmp_path: Path) -> Keys:
    return await open_keys(store, tmp_path, {})


@pytest.fixture
async def ledger(store: Store, keys: Keys) -> AsyncIterator[Ledger]:
    made = Ledger(store, keys)
    yield made
    await made.close()
