"""The documents' image programs, answered by a simulated Ollama with a vision model and a text model."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from tests.conftest import Serve
from tests.seeds.conftest import PORT, shipped_config
from tests.seeds.running import PROGRAMS, run_python, run_shell
from tests.simulators import dialects, scripts
from tests.simulators.router import UNHURRIED, RouterProcess
from tests.simulators.server import Exchange, Request, Simulator
from tests.simulators.waiting import until

URL = f"http://localhost:{PORT}"
VISION = "llama3.2-vision:11b"
SEEN = "这是一张照片，显示了一名女性站在海滩上，向海洋望着。"
CAPABILITIES = {
    VISION: ["completion", "vision"],
    "llava:latest": ["completion", "vision"],
    "deepseek-r1:7b": ["completion", "thinking"],
    "moondream:latest": ["completion", "vision"],
}


class Ollama(dialects.Ollama):
    """With the models of the documents installed."""

    def whole(self, request: Request, text: str) -> bytes:
        found = json.loads(super().whole(request, text))
        if request.path == "/api/tags":
            row = found["models"][0]
            rows = CAPABILITIES.items()
            found["models"] = [{**row, "name": name, "model": name, "capabilities": words} for name, words in rows]
        return json.dumps(found).encode()


async def look(x: Exchange) -> None:
    await x.answer(200, x.dialect.whole(x.request, SEEN))


@pytest.fixture(scope="module")
def ollama() -> Iterator[Simulator]:
    with Simulator({"answer": scripts.answer, VISION: look, "llava": look}, lambda _: Ollama()) as simulator:
        yield simulator
        assert not simulator.failures, simulator.failures


@pytest.fixture(scope="module")
def router(door: None, module_serve: Serve, ollama: Simulator) -> RouterProcess:
    config = shipped_config()
    del config["providers"]["demo"]
    config["fallback"] = config["fallback"][:1]
    router = module_serve(config, {**UNHURRIED, "OLLAMA_HOST": ollama.url})
    # In no config: the list was read.
    until(lambda: "moondream" in requests.get(f"{URL}/api/tags", timeout=60).text, what=router.tail)
    return router


@pytest.fixture
def with_vision(tmp_path: Path) -> Path:
    """The image program with the vision model's name in place of DeepSeek's, as the document says to do."""
    text = (PROGRAMS / "image.py").read_text("utf-8")
    assert text.count('"deepseek-r1:7b"') == 1
    program = tmp_path / "image.py"
    program.write_text(text.replace('"deepseek-r1:7b"', f'"{VISION}"'), "utf-8")
    return program


def test_a_vision_model_sees_the_very_image(
    router: RouterProcess, ollama: Simulator, internet: str, picture: bytes, with_vision: Path
) -> None:
    printed = run_python(with_vision, internet=internet, fragment=True)
    assert printed.code == 0, printed.err
    assert printed.out == SEEN + "\n"
    as_png = BytesIO()
    Image.open(BytesIO(picture)).save(as_png, format="PNG")
    seen = [request.json for request in ollama.asked(VISION) if request.path in ("/api/generate", "/api/chat")]
    assert len(seen) == 1
    sent = seen[0].get("images") or seen[0]["messages"][-1]["images"]
    assert sent == [base64.b64encode(as_png.getvalue()).decode()]
    assert "这张图片是什么？" in (seen[0].get("prompt"), *(turn["content"] for turn in seen[0].get("messages", ())))
    assert seen[0]["stream"] is False


def test_curl_with_an_image(router: RouterProcess, ollama: Simulator) -> None:
    program = PROGRAMS / "curl_image.sh"
    printed = run_shell(program)
    assert printed.code == 0
    assert json.loads(printed.out)["response"] == SEEN
    given = re.search(r'"images": \["([^"]+)"\]', program.read_text("utf-8"))
    assert given is not None
    seen = [request.json for request in ollama.asked("llava") if request.path in ("/api/generate", "/api/chat")]
    assert (seen[-1].get("images") or seen[-1]["messages"][-1]["images"]) == [given[1]]


def test_a_text_model_refuses_clearly(router: RouterProcess, ollama: Simulator, internet: str) -> None:
    printed = run_python(PROGRAMS / "image.py", internet=internet, fragment=True)
    assert printed.code == 0, printed.err
    assert printed.out == "None\n"
    body: dict[str, Any] = {
        "model": "deepseek-r1:7b",
        "prompt": "这张图片是什么？",
        "stream": False,
        "images": ["iVBORw0KGgo="],
    }
    answer = requests.post(f"{URL}/api/generate", json=body, timeout=30)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert re.search("image|vision", answer.json()["error"]), answer.text
    asked = [request.path for request in ollama.asked("deepseek-r1:7b")]
    assert "/api/generate" not in asked
    assert "/api/chat" not in asked
