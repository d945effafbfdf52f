"""What aisuite is asked to do against the router, in an environment of its own (its `openai` is another release).

Reads the desk as JSON on standard input; prints a JSON line for each check: its name, and what went wrong or null.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import aisuite

from tests.clients.desk import BACKENDS, Desk, at
from tests.clients.upstream import AFTER_TOOL, RESULT
from tests.simulators.scripts import ANSWER

HELLO = [{"role": "user", "content": "Hello"}]
PARIS = [{"role": "user", "content": "What is the capital of France?"}]


def client_of(desk: Desk) -> Any:
    keyed = {"api_key": desk.key, "base_url": f"{desk.url}/v1"}
    return aisuite.Client({"openai": keyed, "ollama": {"base_url": desk.door}})


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"{RESULT} in {city}"


def openai_models(desk: Desk) -> None:
    for backend in BACKENDS:
        answer = client_of(desk).chat.completions.create(f"openai:{at(backend, 'answer')}", HELLO, temperature=0.5)
        assert answer.choices[0].message.content == ANSWER


def ollama_models(desk: Desk) -> None:
    """Keyless but for the Bearer `ollama` that it always sends; names with a colon of their own."""
    for model in ("gemma-3-270m", "deepseek-r1:1.5b"):
        answer = client_of(desk).chat.completions.create(f"ollama:{model}", PARIS, max_tokens=30, temperature=0, seed=7)
        assert "Paris" in answer.choices[0].message.content
    answer = client_of(desk).chat.completions.create(f"ollama:{at('local', 'answer')}", HELLO)
    assert answer.choices[0].message.content == ANSWER


def streams(desk: Desk) -> None:
    for model in (
        f"openai:{at('cloud', 'answer')}",
        f"openai:{at('gemini', 'answer')}",
        f"ollama:{at('local', 'answer')}",
    ):
        chunks = client_of(desk).chat.completions.create(model, HELLO, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER


def its_own_tool_loop(desk: Desk) -> None:
    """Calls the function itself and sends the result back, until the model answers in words."""
    models = [f"openai:{at(backend, script)}" for backend in BACKENDS for script in ("weather", "weather-twice")]
    for model in [*models, f"ollama:{at('local', 'weather')}"]:
        answer = client_of(desk).chat.completions.create(model, HELLO, tools=[get_weather], max_turns=3)
        assert answer.choices[0].message.content == AFTER_TOOL, model


def errors(desk: Desk) -> None:
    for model in ("openai:nobody", "ollama:nobody"):
        told = ""
        try:
            client_of(desk).chat.completions.create(model, HELLO)
        except Exception as error:  # aisuite's own class has moved between releases; what it says counts
            told = str(error)
        assert "404" in told, told
        assert "model 'nobody' not found" in told, told


CHECKS = (openai_models, ollama_models, streams, its_own_tool_loop, errors)


def main() -> None:
    desk = Desk.from_json(sys.stdin.read())
    for check in CHECKS:
        problem = None
        try:
            check(desk)
        except Exception:  # whatever it is, it is the finding
            problem = traceback.format_exc()
        print(json.dumps({"check": check.__name__, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
