"""Servers for the ledger's functions: the embedded store's Valkey, and Debian's Redis where it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import redis

from tests.ledger import books
from tests.ledger.books import Books
from tests.ledger.story import DAY, Story


@pytest.fixture(scope="session", params=["valkey", "redis"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A server that these tests have for themselves."""
    directory = tmp_path_factory.mktemp("store")
    if request.param == "valkey":
        with books.valkey(directory) as client:
            yield client
    elif binary := shutil.which("redis-server"):
        with books.server(binary, directory) as client:
            yield client
    else:
        pytest.skip("redis-server is not installed")


@pytest.fixture
def account(client: redis.Redis) -> Books:
    """An account without anything in it."""
    account = Books(client)
    account.clear()
    return account


@pytest.fixture
def story(account: Books) -> Story:
    return Story(account)


@pytest.fixture
def patient(story: Story) -> Story:
    """The same with leases that never end."""
    story.lease = 1000 * DAY
    return story
