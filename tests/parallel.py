"""How a run in several processes (`pytest -n 3`, as `make test` does it) is shared out.

A file stays together, so that the routers and stores of its module are started once. A folder of `TOGETHER` stays
together as a whole, because its files share what is dear or is there only once; these begin first, for they take
longest. `TIMED` files hold our time limits against load that fills the machine: one process alone runs them, so that
they never meet each other. Every process has session fixtures, temporary folders and ports of its own, and collects
the same tests: parameters that are made by chance need `ids`.
"""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = (
    "tests/local_model/",  # the weights are joined once
    "tests/clients/",  # one router with a model in it
    "tests/seeds/",  # the port that is written in the programs
)
TIMED = ("tests/stores/", "tests/money/", "tests/store/", "tests/faults/")


def piece(nodeid: str) -> str:
    """The file or the folder whose tests run one after the other in one process."""
    return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: piece(item.nodeid) not in TOGETHER)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Pieces(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return piece(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            """The first process takes what is timed as long as there is some, then what is left, like the others."""
            timed = [name for name in self.workqueue if name.startswith(TIMED)]
            rest = [name for name in self.workqueue if not name.startswith(TIMED)]
            first = next(iter(self.assigned_work)) is node
            if found := (timed or rest) if first else rest:
                self.workqueue.move_to_end(found[0], last=False)
                super()._assign_work_unit(node)
            else:
                node.shutdown()

    config.option.loadscopereorder = False
    return Pieces(config, log)
