"""The documents' text programs, answered by the demo model: their model names are not installed anywhere, so the
shipped config's fallback answers them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests

from tests.conftest import Serve
from tests.seeds.conftest import PORT, shipped_config
from tests.seeds.running import PROGRAMS, Printed, run_python, run_shell
from tests.simulators.router import UNHURRIED, RouterProcess

URL = f"http://localhost:{PORT}"
CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def router(door: None, module_serve: Serve) -> RouterProcess:
    return module_serve(shipped_config(), UNHURRIED)


def ran(name: str) -> Printed:
    printed = run_python(PROGRAMS / name)
    assert printed.code == 0, printed.err
    assert printed.err == ""
    return printed


def test_plain_call(router: RouterProcess) -> None:
    """Prints the text, then the whole answer as JSON."""
    out = ran("plain.py").out
    at = out.index('{\n  "model"')
    answer = json.loads(out[at:])
    assert answer["response"].strip()
    assert out[:at] == answer["response"] + "\n"
    assert answer["model"] == "deepseek-r1:1.5b"
    assert answer["done"] is True
    assert answer["done_reason"] in ("stop", "length")
    assert answer["eval_count"] > 0
    assert answer["prompt_eval_count"] > 0
    assert answer["total_duration"] > 0
    logged = router.log_of("deepseek-r1:1.5b")
    assert logged["answered_by"] == "demo/gemma-3-270m"
    assert logged["fallback"]


def test_question(router: RouterProcess) -> None:
    out = ran("question.py").out
    assert len(out.strip()) > 20, out


def test_stream_prints_pieces(router: RouterProcess) -> None:
    printed = ran("stream.py")
    assert CHINESE.search(printed.out), printed.out
    assert len(printed.pieces) > 3
    assert printed.pieces[-1][0] > printed.pieces[0][0]


def test_options(router: RouterProcess) -> None:
    assert CHINESE.search(ran("options.py").out)


def test_chat(router: RouterProcess) -> None:
    out = ran("chat.py").out
    assert CHINESE.search(out), out


def test_batch_prints_question_and_answer_pairs(router: RouterProcess) -> None:
    out = ran("batch.py").out
    pairs = re.findall(r"^问题: (.*)\n回答: (.+(?:\n.+)*)", out, re.MULTILINE)
    assert [question for question, _ in pairs] == ["你好", "介绍一下Python", "什么是机器学习"], out
    assert all(answer.strip() for _, answer in pairs)


def generate(**options: Any) -> requests.Response:
    body: dict[str, Any] = {
        "model": "deepseek-r1:7b",
        "prompt": "Tell me a story.",
        "stream": False,
        "options": options,
    }
    return requests.post(f"{URL}/api/generate", json=body, timeout=60)


def test_an_unknown_option_is_ignored(router: RouterProcess) -> None:
    """`max_tokens` is OpenAI's word: in `options` an Ollama ignores it, and so do we."""
    answer = generate(max_tokens=2, num_predict=5, num_ctx=2048)
    assert answer.status_code == 200, answer.text
    assert answer.json()["eval_count"] == 5
    assert answer.json()["done_reason"] == "length"


def test_curl_without_a_content_type(router: RouterProcess) -> None:
    listed = run_shell(PROGRAMS / "curl_tags.sh")
    assert listed.code == 0
    names = [model["name"] for model in json.loads(listed.out)["models"]]
    assert "deepseek-r1:1.5b" in names or "gemma-3-270m" in names, names


def test_curl_with_a_comma_too_many_is_told_so(router: RouterProcess) -> None:
    """The document's curl line has a comma after its last member; a real Ollama refuses that too."""
    answer = run_shell(PROGRAMS / "curl_generate.sh")
    assert answer.code == 0
    told = json.loads(answer.out)
    assert list(told) == ["error"]
    assert "JSON" in told["error"] or "json" in told["error"] or "invalid character" in told["error"], told


def test_an_image_to_a_text_model_is_refused(router: RouterProcess, internet: str) -> None:
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
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json() == {"error": "model 'deepseek-r1:7b' does not support images."}
