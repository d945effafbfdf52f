"""Bounds hold for real tokenizers; estimates come near them; and a plan's bound covers all its attempts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.call import Call
from providers.registry import wire
from router import estimate
from router.estimate import IMAGE_TOKENS, OUTPUT_TOKENS, bound, output_bound, prompt_bound, prompt_estimate, text_tokens
from router.prices import Price
from tests.prices.support import Bench, chat, embed

SAMPLES = {
    "english": "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20,
    "chinese": "天行健，君子以自强不息。地势坤，君子以厚德载物。今天我们来讨论一下大语言模型的计费方式。" * 20,
    "rare characters": "龘靐齉齾爩鱻麤龗灪吁龖厵滟爨癵籱饢驫鲡鹂鸾麣纞虋讟钃骊郁鸜麷鞻韽韾顟顠饙饳騳騼饟騿鬻" * 5,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🤷🏽‍♀️👨🏿‍🚀🦄🎉" * 20,
    "code": "def f(x: int) -> int:\n    return {'a': [x ** 2 for x in range(10)]}[\"a\"][-1] & 0xFF\n" * 20,
    "base64": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==" * 5,
    "russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 10,
    "digits": "3.14159265358979323846264338327950288419716939937510" * 10,
    "spaces": " \t\n" * 300,
    "controls": "\x00\x01\x7f\x1b[0m" * 40,
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Callable[[str], int]]:
    """Vocabularies that come with the test environment, by name: how many tokens a text has."""
    litellm = find_spec("litellm")
    if litellm is None or not litellm.submodule_search_locations:
        pytest.skip("the vocabularies come with litellm")
    folder = Path(litellm.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    tiktoken = pytest.importorskip("tiktoken")
    names = {
        "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    }
    found: dict[str, Callable[[str], int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        for name, file in names.items():
            if (folder / file).is_file():
                encoding = tiktoken.get_encoding(name)
                found[name] = partial(_count, encoding)
    claude = folder / "anthropic_tokenizer.json"
    if claude.is_file():
        made = pytest.importorskip("tokenizers").Tokenizer.from_file(str(claude))
        found["anthropic"] = lambda text: len(made.encode(text).ids)
    assert found
    return found


def _count(encoding: Any, text: str) -> int:
    return len(encoding.encode(text, disallowed_special=()))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_prompt_never_has_more_tokens_than_its_bound(
    tokenizers: dict[str, Callable[[str], int]], sample: str
) -> None:
    text = SAMPLES[sample]
    for name, count in tokenizers.items():
        assert count(text) <= prompt_bound(chat(text)), name
        assert count(text) <= prompt_bound(embed(text)), name


@pytest.mark.parametrize("sample", ["english", "chinese", "code", "russian", "emoji"])
def test_an_estimate_comes_near(tokenizers: dict[str, Callable[[str], int]], sample: str) -> None:
    text = SAMPLES[sample]
    told = prompt_estimate(chat(text))
    counts = [count(text) for name, count in tokenizers.items() if name != "anthropic"]
    assert min(counts) * 0.5 <= told <= max(counts) * 2.2, (told, counts)


_GEMMA = """
import json, sys
from pathlib import Path
import xllamacpp
from router import local_weights
texts = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path = str(local_weights.ensure(Path(sys.argv[1]), local_weights.packaged(), lambda *_: None))
params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 2048, 1, 0, False
params.hostnames, params.port = ["127.0.0.1"], 0
server = xllamacpp.Server(params)
def count(text):
    answer = server.handle_completions({"prompt": text, "max_tokens": 1})
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    return answer["usage"]["prompt_tokens"]
print("COUNTS" + json.dumps([count(text) for text in texts]), flush=True)
import os
os._exit(0)
"""


@pytest.mark.slow
def test_the_bundled_model_counts_fewer_tokens_than_the_bound(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    texts = [text[:200] for text in SAMPLES.values()]
    done = subprocess.run(
        [sys.executable, "-c", _GEMMA, str(tmp_path)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("COUNTS"))
    counts = json.loads(line.removeprefix("COUNTS"))
    for text, count in zip(texts, counts, strict=True):
        assert 0 < count <= prompt_bound(chat(text)), text[:20]


# --- what counts into a prompt


@given(st.text(max_size=200), st.text(max_size=200))
def test_more_text_never_lowers_bound_or_estimate(first: str, more: str) -> None:
    shorter, longer = chat(first + "."), chat(first + "." + more)
    assert prompt_bound(shorter) <= prompt_bound(longer)
    assert prompt_estimate(shorter) <= prompt_estimate(longer) + 1
    assert prompt_estimate(longer) <= prompt_bound(longer)


TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "查天气" * 100,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "object", "description": "d" * 500}},
}
IMAGE: dict[str, Any] = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

LONG = "a" * 3000


def said(**fields: Any) -> Call:
    """A conversation with these fields on the assistant's turn."""
    turn = {"role": "assistant", "content": "ok", **fields}
    return wire("openai").read_call("chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}, turn]})


@pytest.mark.parametrize(
    ("call", "least"),
    [
        pytest.param(chat("hi", tools=[TOOL]), 900, id="tools"),
        pytest.param(chat("hi", response_format=SCHEMA), 500, id="a schema of the answer"),
        pytest.param(chat([{"type": "text", "text": "hi"}, IMAGE, IMAGE]), 2 * IMAGE_TOKENS, id="images"),
        pytest.param(
            chat([{"type": "input_audio", "input_audio": {"data": "A" * 40_000, "format": "mp3"}}]), 7000, id="audio"
        ),
        pytest.param(
            chat([{"type": "file", "file": {"file_id": "file-1"}}]), 1_000_000, id="a document nobody has seen"
        ),
        pytest.param(embed([[1] * 500, [2] * 500]), 1000, id="token ids"),
        pytest.param(
            wire("ollama").read_call("generate", {"model": "m", "prompt": "hi", "context": [7] * 900}),
            900,
            id="an earlier context",
        ),
        pytest.param(
            wire("openai").read_call("completions", {"model": "m", "prompt": "a" * 50, "suffix": "b" * 700}),
            750,
            id="a suffix",
        ),
        *(
            pytest.param(chat("hi", **{name: value}), 3000, id=name)  # type: ignore[arg-type]  # never `dialect`
            for name, value in {
                "documents": [{"text": LONG}],
                "prediction": {"type": "content", "content": LONG},
                "guided_json": {"description": LONG},
                "guided_regex": LONG,
            }.items()
        ),
        pytest.param(chat("hi", metadata={str(n): "x" * 500 for n in range(8)}), 3000, id="metadata"),
        pytest.param(chat([{"type": "text", "text": "hi", "note": LONG}]), 3000, id="beside a part"),
        pytest.param(chat([{**IMAGE, "image_url": {**IMAGE["image_url"], "note": LONG}}]), 19_384, id="in a part"),
        pytest.param(said(note=LONG), 3000, id="beside a message"),
        pytest.param(said(reasoning_details=[{"text": LONG}]), 3000, id="reasoning details"),
        pytest.param(said(reasoning_content=[LONG]), 3000, id="reasoning in an unknown form"),
        pytest.param(
            said(tool_calls=[{"id": "a", "type": "function", "function": {"name": "f", "note": LONG}, "more": LONG}]),
            6000,
            id="in a tool call",
        ),
        pytest.param(
            chat("hi", tools=[{"type": "function", "function": {"name": "f", "note": LONG}}]), 3000, id="in a tool"
        ),
        pytest.param(
            wire("ollama").read_call("generate", {"model": "m", "prompt": "hi", "template": LONG}),
            3000,
            id="a template",
        ),
    ],
)
def test_everything_counts_into_the_bound(call: Call, least: int) -> None:
    assert prompt_bound(call) >= least


def test_a_conversation_with_tool_calls_counts_whole() -> None:
    call = wire("openai").read_call(
        "chat",
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "x" * 100},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "t" * 200,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "n" * 60, "arguments": json.dumps({"a": "y" * 300})},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "z" * 400},
            ],
        },
    )
    assert prompt_bound(call) >= 100 + 200 + 60 + 300 + 400
    assert prompt_estimate(call) >= (100 + 60 + 300 + 400) / 4


def test_an_image_of_gpt_4o_mini_is_dear(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    call = chat([{"type": "text", "text": "hi"}, IMAGE])
    mini, plain = (prompt_bound(call, bench.attempt("openai", name)) for name in ("gpt-4o-mini", "gpt-4o"))
    assert mini > 48_000 > plain


def test_a_prompt_is_never_larger_than_the_context(tmp_path: Path) -> None:
    attempt = Bench(tmp_path).attempt("openai", "gpt-4o-mini", context=1000)
    assert prompt_bound(chat("x" * 5000), attempt) == 1000
    assert prompt_bound(chat("x"), attempt) < 1000


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("abcd", 1), ("a" * 400, 100), ("汉" * 100, 100), ("é" * 8, 5), ("🙂" * 8, 11)],
)
def test_text_tokens(text: str, tokens: int) -> None:
    assert text_tokens(len(text), len(text.encode()) - len(text)) == tokens


# --- the longest answer


@pytest.mark.parametrize(
    ("call", "known", "price", "most"),
    [
        pytest.param(chat(max_tokens=50), {}, None, 50, id="as asked"),
        pytest.param(chat(max_tokens=50, n=3), {}, None, 150, id="times n"),
        pytest.param(chat(max_tokens=5000), {"max_output": 100}, None, 100, id="no more than the model can"),
        pytest.param(chat(), {"max_output": 100}, Price(max_output=200), 100, id="the config knows best"),
        pytest.param(chat(), {}, Price(max_output=200), 200, id="then the price list"),
        pytest.param(chat(), {"context": 300}, None, 300, id="then the context"),
        pytest.param(chat(), {}, None, OUTPUT_TOKENS, id="then the constant"),
        pytest.param(embed("hi"), {}, None, 0, id="embeddings have no answer"),
        pytest.param(
            wire("ollama").read_call("chat", {"model": "m", "messages": [], "options": {"num_predict": 7}}),
            {},
            None,
            7,
            id="num_predict",
        ),
        pytest.param(
            wire("ollama").read_call("chat", {"model": "m", "messages": [], "options": {"num_predict": -1}}),
            {},
            None,
            OUTPUT_TOKENS,
            id="num_predict without end",
        ),
        pytest.param(
            wire("openai").read_call("completions", {"model": "m", "prompt": "a", "max_tokens": 10, "best_of": 4}),
            {},
            None,
            40,
            id="best_of",
        ),
    ],
)
def test_the_longest_answer(tmp_path: Path, call: Call, known: dict[str, int], price: Price | None, most: int) -> None:
    assert output_bound(call, Bench(tmp_path).attempt("openai", "m", **known), price) == most


def test_a_prediction_may_be_billed_as_output(tmp_path: Path) -> None:
    call = chat(max_tokens=50, n=2, prediction={"type": "content", "content": LONG})
    assert output_bound(call, Bench(tmp_path).attempt("openai", "m"), None) >= 2 * (50 + 3000)


def test_reasoning_apart_from_max_tokens_is_reserved_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    attempt = bench.attempt("doubao", "m", max_output=1000)
    assert output_bound(chat(max_tokens=50), attempt, None) == 1050
    assert output_bound(chat(max_completion_tokens=50), attempt, None) == 50


def test_models_at_home_do_not_reserve_their_whole_context(tmp_path: Path) -> None:
    attempt = Bench(tmp_path).attempt("box", "m", context=1_000_000)
    assert output_bound(chat(), attempt, None) == OUTPUT_TOKENS


# --- a plan


def test_a_plan_costs_at_most_its_dearest_way(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    call = chat("x" * 1000, max_tokens=100)
    attempts = [bench.attempt("openai", "cheap"), bench.attempt("gemini", "dear"), bench.attempt("box", "free")]
    prices = {
        "cheap": Price(input=1_000_000, output=1_000_000),
        "dear": Price(input=9_000_000, output=9_000_000),
        "free": Price(),
    }
    found = bound(call, attempts, lambda target: prices[target.model])
    prompt = prompt_bound(call)
    assert found.prompt == prompt
    assert found.output == 100
    assert found.costs == (prompt + 100, 9 * (prompt + 100), 0)
    assert found.cost == prompt + 9 * (prompt + 100)  # the cheap one may fail after it took the prompt
    assert found.tokens == 3 * prompt + 100
    assert not found.unpriced


def test_an_attempt_without_a_price_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    attempts = [bench.attempt("paid", "what"), bench.attempt("openai", "m")]
    found = bound(
        chat(max_tokens=1), attempts, lambda target: None if target.model == "what" else Price(input=1_000_000)
    )
    assert found.unpriced
    assert found.costs[0] is None
    assert found.cost == found.costs[1]


def test_a_dearer_service_is_reserved(tmp_path: Path) -> None:
    attempts = [Bench(tmp_path).attempt("openai", "m")]

    def cost(**fields: str) -> int:
        return bound(chat(max_tokens=1000, **fields), attempts, lambda _: Price(input=1_000_000, output=1_000_000)).cost

    assert cost(service_tier="priority") == -(-cost() * 250 // 100)
    assert cost(service_tier="flex") == cost(service_tier="default") == cost()


def test_a_bound_takes_microseconds(tmp_path: Path) -> None:
    """A generous limit: it takes about 3."""
    import time

    bench = Bench(tmp_path)
    call, attempts = chat("Hello " * 100, max_tokens=100), [bench.attempt("openai", "gpt-4o-mini")]
    price = bench.price("openai", "gpt-4o-mini")
    best = 1.0
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            estimate.bound(call, attempts, lambda _: price)
        best = min(best, (time.perf_counter() - began) / 100)
    assert best < 50e-6
