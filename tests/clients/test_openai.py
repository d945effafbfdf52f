"""The official `openai` client, unmodified: the release in our own environment and the newest in one of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import openai
import pytest

from tests.clients import openai_tour
from tests.clients.desk import BACKENDS, Desk, at
from tests.clients.environments import environment, tour
from tests.simulators.server import Simulator

Check = Callable[[Desk], Awaitable[None] | None]
EACH = pytest.mark.parametrize("check", openai_tour.CHECKS, ids=lambda check: check.__name__)
NEWEST = "newest"


@EACH
def test_here(check: Check, desk: Desk) -> None:
    openai_tour.run(check, desk)


@pytest.fixture(scope="module")
def newest(desk: Desk) -> Mapping[str, str | None]:
    """What each check came to in the newest client's environment."""
    return tour("openai", replace(desk, tag=NEWEST))


@EACH
def test_newest(check: Check, newest: Mapping[str, str | None]) -> None:
    assert newest[check.__name__] is None, newest[check.__name__]


def test_the_newest_is_newer(newest: Mapping[str, str | None]) -> None:
    asked = [str(environment("openai")), "-c", "import openai; print(openai.__version__)"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stdout
    assert int(told.split(".")[0]) >= 3 > int(openai.__version__.split(".")[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("script", ["endless-slow", "silent"])
def test_providers_notice_who_left(script: str, backend: str, desk: Desk, upstreams: Simulator) -> None:
    """After `leave_mid_stream` and `cancelled`, whose connections the router has to close upstream."""
    named = f"{script}@{desk.tag}" + ("-gone" if script == "silent" else "")
    model = at(backend, named).partition("/")[2]
    if not upstreams.asked(model):
        openai_tour.run(openai_tour.leave_mid_stream if script == "endless-slow" else openai_tour.cancelled, desk)
    paths = {"cloud": "/v1/", "local": "/api/", "gemini": "/v1beta/"}
    asked = [request for request in upstreams.asked(model) if request.path.startswith(paths[backend])]
    assert len(asked) == 1
    assert asked[0].left()
