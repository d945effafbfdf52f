"""A paid provider and a local one behind two workers, with every price known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Serve
from tests.money import bank as banks
from tests.money.bank import Bank
from tests.simulators.router import UNHURRIED
from tests.simulators.server import Simulator
from tests.simulators.waiting import one_day, until


@pytest.fixture(autouse=True)
def day() -> None:
    """What is spent of a day, a week or a month is looked at before the next begins."""
    one_day()


@pytest.fixture(scope="module")
def pair(
    module_serve: Serve, cloud: Simulator, local: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    """Two workers in front of a paid provider, without a fallback."""
    prices = banks.price_file(tmp_path_factory.mktemp("prices"), "cloud")
    config = {
        "providers": {"cloud": banks.cloud(cloud.url), "local": banks.local(local.url)},
        "models": {"chat": {"targets": ["cloud/gate"]}, "other": {"targets": ["cloud/gate"]}},
        "prices": {"file": prices},
    }
    router = module_serve(config, UNHURRIED, ["--workers", "2"])
    with banks.bank(router) as opened:
        until(lambda: len(opened.admin.request("GET", "/readyz").json["workers"]) == 2)
        yield opened
