"""What the real model answers, asked as the router asks it. Few tokens: this runs on any processor."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from router.local_model import LocalModel
from router.local_prompt import MODEL
from tests.local_model.ask import busy, chat, content, request, send

pytestmark = pytest.mark.asyncio(loop_scope="module")

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer", "maximum": 99}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def model(model_data: Path) -> AsyncIterator[LocalModel]:
    model = LocalModel(model_data, context=1024)
    await model.start()
    assert await model.wait_ready(120), model.state
    yield model
    await model.stop()


async def test_it_answers_the_question_and_stops(model: LocalModel) -> None:
    answer = await chat(model, "What is the capital of France?")
    assert "Paris" in content(answer)
    assert content(answer) == content(answer).strip()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == MODEL
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["timings"]["predicted_per_second"] > 0


async def test_chinese_is_answered_in_chinese(model: LocalModel) -> None:
    text = content(await chat(model, "中国的首都是哪里？"))
    assert any("\u4e00" <= char <= "\u9fff" for char in text)
    assert "问：" not in text
    assert "Question" not in text


async def test_it_knows_the_turns_before(model: LocalModel) -> None:
    turns = [
        {"role": "system", "content": "You are polite."},
        {"role": "user", "content": "My name is Tom."},
        {"role": "assistant", "content": "Hello Tom! Nice to meet you."},
        {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
    ]
    _, data, _ = await request(model, "POST", "/apply-template", {"messages": turns})
    prompt = json.loads(data)["prompt"]
    turn = "Question: My name is Tom.\nAnswer:\nHello Tom! Nice to meet you."
    assert prompt.endswith(f"You are polite.\n\n{turn}\n\nQuestion: What is my name?\nAnswer:\n")


async def test_a_schema_is_kept(model: LocalModel) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
    answer = await chat(model, "Tell me about Paris.", response_format=wanted, max_tokens=60)
    city = json.loads(content(answer))
    assert city.keys() == {"city", "people"}
    assert type(city["city"]) is str
    assert len(city["city"]) <= 12
    assert type(city["people"]) is int
    assert city["people"] <= 99


async def test_json_mode_gives_json(model: LocalModel) -> None:
    answer = await chat(model, "Paris as JSON", response_format={"type": "json_object"}, max_tokens=200)
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(content(answer)), dict)
    else:
        assert content(answer).lstrip().startswith("{")


async def test_a_seed_gives_the_same_again(model: LocalModel) -> None:
    """Exactly the same only without the prompt cache: what is read in other portions rounds differently."""
    wish = {"temperature": 1.5, "max_tokens": 10, "cache_prompt": False}
    texts = [content(await chat(model, "Tell me a story.", seed=7, **wish)) for _ in range(2)]
    other = content(await chat(model, "Tell me a story.", seed=8, **wish))
    assert texts[0] == texts[1]
    assert other != texts[0]


async def test_stop_length_choices_and_logprobs(model: LocalModel) -> None:
    short = await chat(model, "Tell me a story.", max_tokens=3)
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 3
    halted = await chat(model, "What is the capital of France?", stop=["capital"])
    assert "capital" not in content(halted)
    two = await chat(model, "Hello", n=2, max_tokens=3, logprobs=True, top_logprobs=2)
    assert [choice["index"] for choice in two["choices"]] == [0, 1]
    assert len(two["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2


async def test_a_stream_ends_with_usage(model: LocalModel) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    status, data, headers = await request(model, "POST", "/v1/chat/completions", body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in data.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 4


async def test_text_goes_on(model: LocalModel) -> None:
    body = {"prompt": "One, two, three, four,", "max_tokens": 4, "seed": 7}
    status, data, _ = await request(model, "POST", "/v1/completions", body)
    assert status == 200
    assert "five" in json.loads(data)["choices"][0]["text"]


async def test_a_prompt_that_is_too_long_is_refused_at_once(model: LocalModel) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 3000}]}
    status, data, _ = await request(model, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert json.loads(data)["error"]["type"] == "exceed_context_size_error"


async def test_a_client_that_leaves_frees_its_place(model: LocalModel) -> None:
    assert model.base_url
    url = urlsplit(model.base_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 600, "ignore_eos": True, "stream": True}
    await send(writer, "POST", "/v1/chat/completions", {**body, "stop": ["never said"]}, model.api_key)
    while b'"content":"' not in await reader.read(1000):
        pass
    assert await busy(model)
    writer.close()
    left = time.monotonic()
    while await busy(model):  # noqa: ASYNC110 - the server tells only when asked
        await asyncio.sleep(0.02)
    assert time.monotonic() - left < 8  # the whole answer takes ten


async def test_only_the_key_opens_it(model: LocalModel) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    status, _, headers = await request(model, "POST", "/v1/chat/completions", body, key="wrong")
    assert status == 401
    assert headers.get("access-control-allow-origin") in (None, "null")
    assert model.base_url
    assert urlsplit(model.base_url).hostname == "127.0.0.1"
