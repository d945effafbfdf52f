"""aisuite, unmodified, in an environment of its own: `openai:` models with a key, `ollama:` models on the keyless
door."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.clients.desk import Desk
from tests.clients.environments import tour


@pytest.fixture(scope="module")
def told(desk: Desk) -> Mapping[str, str | None]:
    return tour("aisuite", desk)


@pytest.mark.parametrize("check", ["openai_models", "ollama_models", "streams", "its_own_tool_loop", "errors"])
def test_aisuite(check: str, told: Mapping[str, str | None]) -> None:
    assert told.keys() == {"openai_models", "ollama_models", "streams", "its_own_tool_loop", "errors"}
    assert told[check] is None, told[check]
