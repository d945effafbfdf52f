"""Where the clients are pointed at. Standard library only: programs in other environments read it too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

BACKENDS = ("cloud", "local", "gemini")
"""Providers in the tests' config: an OpenAI, an Ollama and a Gemini, all simulated."""
REAL = "demo/gemma-3-270m"


@dataclass(frozen=True, slots=True)
class Desk:
    """One router and a key for it. `tag` makes the model names of one client's run its own."""

    url: str
    door: str
    """Base URL of the keyless listener."""
    key: str
    tag: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Desk:
        return Desk(**json.loads(text))


def at(backend: str, script: str) -> str:
    """The model name that reaches a script of `tests.clients.upstream` at a provider. Gemini's are known by their
    names: what does not begin with `gemini` has no tools."""
    if backend != "gemini":
        return f"{backend}/{script}"
    return "gemini/gemini-embedding" if script == "embed" else f"gemini/gemini-{script}"
