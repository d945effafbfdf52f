"""The demo vendor between our values and the real server, both wires of a client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from providers.call import Call
from providers.demo import MODEL, STOP, VENDOR
from providers.errors import ContextTooLong
from providers.wire import Stamp, Wire
from providers.wires.ollama import WIRE as OLLAMA
from providers.wires.openai import WIRE as OPENAI
from router import local_prompt
from router.local_model import LocalModel
from tests.local_model.ask import busy, unchunked

pytestmark = pytest.mark.asyncio(loop_scope="module")
STAMP = Stamp(request_id="req-1", created=1_700_000_000.0, clock=lambda: 1_700_000_001.0, answered_by=MODEL)
HELLO = [{"role": "user", "content": "What is the capital of France?"}]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def model(model_data: Path) -> AsyncIterator[LocalModel]:
    model = LocalModel(model_data, context=1024)
    await model.start()
    assert await model.wait_ready(120), model.state
    yield model
    await model.stop()


async def opened(model: LocalModel, call: Call) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    base, key = await model.wait()
    url = urlsplit(base)
    request = VENDOR.request(call, MODEL, key)
    head = [f"{request.method} {url.path}{request.path} HTTP/1.1", "host: localhost", "connection: close"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write("\r\n".join([*head, f"content-length: {len(request.body)}", "", ""]).encode() + request.body)
    return reader, writer


async def answered(model: LocalModel, call: Call, client: Wire) -> bytes:
    """The client's bytes, as the engine would make them."""
    reader, writer = await opened(model, call)
    head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    lines = head.decode().lower().split("\r\n")
    status = int(lines[0].split()[1])
    headers = dict(line.split(": ", 1) for line in lines[1:])
    body = unchunked(rest) if headers.get("transfer-encoding") == "chunked" else rest
    if status != 200:
        raise VENDOR.classify(status, headers, body)
    lane = VENDOR.lane(call, client, STAMP)
    if not call.stream:
        out = lane.whole(body)
    else:
        frames = [*lane.feed(body), *lane.close()]
        assert [frame for frame in frames if frame.error] == []
        out = b"".join(frame.data for frame in frames)
    assert lane.meter.usage is not None
    assert lane.meter.finish is not None
    return out


def openai(body: Mapping[str, Any], op: str = "chat") -> Call:
    return OPENAI.read_call(op, {"model": MODEL, **body})


async def test_whole_and_stream_say_the_same_to_an_openai_client(model: LocalModel) -> None:
    whole = json.loads(await answered(model, openai({"messages": HELLO, "seed": 1}), OPENAI))
    assert whole["object"] == "chat.completion"
    assert "Paris" in whole["choices"][0]["message"]["content"]
    assert whole["usage"]["completion_tokens"] > 0
    streamed = await answered(model, openai({"messages": HELLO, "seed": 1, "stream": True}), OPENAI)
    events = [line.removeprefix("data: ") for line in streamed.decode().splitlines() if line]
    assert events.pop() == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["choices"][0]["message"]["content"]


async def test_an_ollama_client_is_answered(model: LocalModel) -> None:
    for op, body in (("chat", {"messages": HELLO}), ("generate", {"prompt": HELLO[0]["content"]})):
        given = {"model": MODEL, "stream": False, "options": {"num_predict": 16, "temperature": 0}, **body}
        answer = json.loads(await answered(model, OLLAMA.read_call(op, given), OLLAMA))
        assert answer["done"] is True
        assert "Paris" in (answer.get("response") or answer["message"]["content"])
        assert answer["eval_count"] > 0


async def test_a_schema_and_text_reach_the_server(model: LocalModel) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = json.loads(
        await answered(model, openai({"messages": HELLO, "response_format": wanted, "seed": 1}), OPENAI)
    )
    assert type(json.loads(answer["choices"][0]["message"]["content"])["ok"]) is bool
    text = json.loads(
        await answered(
            model, openai({"prompt": "One, two, three, four,", "max_tokens": 4, "seed": 1}, "completions"), OPENAI
        )
    )
    assert text["object"] == "text_completion"
    assert "five" in text["choices"][0]["text"]


async def test_a_long_prompt_is_our_error(model: LocalModel) -> None:
    with pytest.raises(ContextTooLong):
        await answered(model, openai({"messages": [{"role": "user", "content": "word " * 3000}]}), OPENAI)


async def test_a_caller_that_leaves_a_whole_answer_frees_its_place(model: LocalModel) -> None:
    call = openai({"messages": HELLO, "max_tokens": 600, "ignore_eos": True, "stop": "never said"})
    reader, writer = await opened(model, call)
    while b"content" not in await reader.read(1000):
        pass
    assert await busy(model)
    writer.close()
    left = time.monotonic()
    while await busy(model):  # noqa: ASYNC110 - the server tells only when asked
        await asyncio.sleep(0.02)
    assert time.monotonic() - left < 8


async def test_what_a_call_says_upstream() -> None:
    call = openai({"messages": HELLO, "stop": ["X"], "seed": 5, "max_completion_tokens": 9, "user": "u", "store": True})
    body = json.loads(VENDOR.request(call, MODEL, "k").body)
    assert body["stop"] == ["X", *STOP]
    assert (body["max_tokens"], body["cache_prompt"], body["stream"]) == (9, False, True)
    assert body.keys().isdisjoint({"user", "store"})
    plain = json.loads(VENDOR.request(openai({"messages": HELLO, "temperature": None}), MODEL, "k").body)
    assert plain.keys().isdisjoint({"stop", "cache_prompt", "max_tokens", "temperature"})
    assert (MODEL, STOP) == (local_prompt.MODEL, local_prompt.STOP)


async def test_the_model_list(model: LocalModel) -> None:
    request = VENDOR.models_request(model.api_key)
    assert request
    assert request.path == "/models"
    facts = VENDOR.read_models(json.dumps({"data": [{"id": MODEL, "meta": {"n_params": 268_098_176}}]}).encode())
    assert [fact.name for fact in facts] == [MODEL]
    assert facts[0].capabilities.tools is False
