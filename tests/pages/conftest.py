"""The house of a module's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from router.admin.pages import overview_page, sessions
from tests.pages.house import House, opened_house


@pytest.fixture(scope="module", autouse=True)
def patient_pages() -> Iterator[None]:
    """Pages of this process may wait for their store as long as a busy machine takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "ANSWER", 20.0)
        patch.setattr(overview_page, "PATIENCE", 20.0)
        patch.setattr(overview_page, "OWN_PATIENCE", 20.0)
        yield


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with opened_house(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> House:
    """The same for all tests of this module; nobody is signed in."""
    shared.later = 0.0
    for name in await shared.names():
        await shared.keys.cabinet.ask("DEL", name)
    return shared
