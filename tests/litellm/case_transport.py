"""The library for real, against providers on sockets of this machine.

Run by `test_transport.py` in a process of its own: its warnings, threads and memory stay out of the other tests.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
import pytest_asyncio

from providers.call import Call, Message, ResponseFormat, Sampling, Text, Tool, ToolResult, ToolUse
from providers.errors import (
    Broken,
    Busy,
    ProviderAuth,
    ProviderModelNotFound,
    RateLimited,
    Refused,
    SwitchyardError,
    Unavailable,
    Unreachable,
    UnsupportedFeature,
    UpstreamError,
)
from providers.events import Event, Failed, Finished, TextDelta, ToolArguments, ToolStart, UsageSeen, Vector
from providers.litellm import make_vendor
from providers.vendor import UpstreamRequest, Vendor
from providers.wire import Stamp
from router.litellm_transport import LitellmTransport
from router.transport import HIGH_WATER, Route
from tests.litellm.upstream import Asked, Caller, Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-ant-canary-0123456789"
ANTHROPIC = make_vendor({"provider": "anthropic"})
AZURE = make_vendor({"provider": "azure", "api_version": "2024-10-21"})
OPENAI = make_vendor({"provider": "openai"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transport() -> AsyncIterator[LitellmTransport]:
    made = LitellmTransport()
    yield made
    await made.close()


def said(text: str = "hi", **fields: Any) -> Call:
    given: dict[str, Any] = {"wire": "openai", "op": "chat", "kind": "chat", "asked_model": "m", "raw": {}}
    return Call(**(given | {"messages": (Message("user", (Text(text),)),)} | fields))


def stamp() -> Stamp:
    return Stamp(request_id="req1", created=1.0, clock=lambda: 2.0, answered_by="m")


async def ask(
    transport: LitellmTransport, upstream: Upstream, call: Call, vendor: Vendor = ANTHROPIC, model: str = "claude-x"
) -> Sequence[Event]:
    """The events of an answer, as the engine would get them; raises what it would raise."""
    request = vendor.request(call, model, KEY)
    response = await transport.open(Route(upstream.url), request)
    try:
        if response.status >= 400:
            raise vendor.classify(response.status, response.headers, await response.read_all(10**6))
        if not call.stream:
            return vendor.wire.read_answer(call, await response.read_all(10**6), stamp())
        reader = vendor.wire.reader(call, stamp())
        events: list[Event] = []
        try:
            while data := await response.read():
                events += reader.feed(data)
        except UpstreamError as error:
            return [*events, Failed(error)]
        return [*events, *reader.close()]
    finally:
        response.abort()


def event(name: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))


USAGE = {"input_tokens": 12, "output_tokens": 6}
START = event(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 12, "output_tokens": 1},
    },
)
TEXT = event("content_block_start", index=0, content_block={"type": "text", "text": ""}) + b"".join(
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in ("Hel", "lo")
)
STOP = event("content_block_stop", index=0)
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 6}) + event("message_stop")
CALLS = b"".join(
    event("content_block_start", index=at, content_block={"type": "tool_use", "id": id_, "name": "f", "input": {}})
    + event("content_block_delta", index=at, delta={"type": "input_json_delta", "partial_json": '{"a":'})
    + event("content_block_delta", index=at, delta={"type": "input_json_delta", "partial_json": f"{at}}}"})
    + event("content_block_stop", index=at)
    for at, id_ in enumerate(("toolu_a", "toolu_b"))
)
TOOL_END = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9}) + event("message_stop")
WHOLE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "usage": USAGE,
}


def streams(*pieces: bytes) -> Any:
    async def script(asked: Asked, caller: Caller) -> None:
        await caller.stream()
        for piece in pieces:
            await caller.send(piece)
        await caller.end()

    return script


def answers(value: Any, status: int = 200, **headers: str) -> Any:
    async def script(asked: Asked, caller: Caller) -> None:
        await caller.json(value, status, **headers)

    return script


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# --- answers


async def test_anthropic_text(transport: LitellmTransport) -> None:
    async with Upstream(answers(WHOLE)) as upstream:
        events = await ask(transport, upstream, said(sampling=Sampling(temperature=0.5, stop=("x",))))
    assert text_of(events) == "Hello"
    assert Finished("stop", "stop") in events
    usage = next(event.usage for event in events if isinstance(event, UsageSeen))
    assert (usage.input, usage.output) == (12, 6)
    asked = upstream.asked[0]
    assert asked.path == "/v1/messages"
    assert asked.headers["x-api-key"] == KEY
    assert (asked.body["temperature"], asked.body["stop_sequences"]) == (0.5, ["x"])


async def test_anthropic_stream(transport: LitellmTransport) -> None:
    async with Upstream(streams(START, TEXT, STOP + END)) as upstream:
        events = await ask(transport, upstream, said(stream=True))
    assert text_of(events) == "Hello"
    assert Finished("stop", "stop") in events
    usage = [event.usage for event in events if isinstance(event, UsageSeen)][-1]
    assert (usage.input, usage.output) == (12, 6)
    assert upstream.asked[0].body["stream"] is True


TOOL = Tool("f", "does", {"type": "object", "properties": {"a": {"type": "integer"}}})


async def test_tools_and_their_results(transport: LitellmTransport) -> None:
    call = said(
        stream=True,
        tools=(TOOL,),
        messages=(
            Message("user", (Text("go"),)),
            Message("assistant", (ToolUse("t1", "f", '{"a":1}'),)),
            Message("tool", (ToolResult("t1", (Text("done"),)),)),
        ),
    )
    async with Upstream(streams(START, CALLS, TOOL_END)) as upstream:
        events = await ask(transport, upstream, call)
    assert [(event.index, event.id, event.name) for event in events if isinstance(event, ToolStart)] == [
        (0, "toolu_a", "f"),
        (1, "toolu_b", "f"),
    ]
    arguments = ["", ""]
    for item in events:
        if isinstance(item, ToolArguments):
            arguments[item.index] += item.delta
    assert arguments == ['{"a":0}', '{"a":1}']
    assert [event.reason for event in events if isinstance(event, Finished)] == ["tool_calls"]
    body = upstream.asked[0].body
    assert body["tools"][0]["name"] == "f"
    assert body["messages"][1]["content"][0]["type"] == "tool_use"
    assert body["messages"][2]["content"][0]["tool_use_id"] == "t1"


def completion(text: str) -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


async def test_azure(transport: LitellmTransport) -> None:
    async with Upstream(answers(completion("ok"))) as upstream:
        events = await ask(transport, upstream, said(), AZURE, "my-deployment")
    assert text_of(events) == "ok"
    asked = upstream.asked[0]
    assert asked.path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"
    assert asked.headers["api-key"] == KEY


async def test_openai_like_stream(transport: LitellmTransport) -> None:
    def chunk(**fields: Any) -> bytes:
        value = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x", "choices": [], **fields}
        return b"data: " + orjson.dumps(value) + b"\n\n"

    def delta(finish: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": fields, "finish_reason": finish}]

    pieces = (
        chunk(choices=delta(role="assistant", content="")),
        chunk(choices=delta(content="o")),
        chunk(choices=delta(content="k")),
        chunk(choices=delta("stop")),
        chunk(usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}),
        b"data: [DONE]\n\n",
    )
    async with Upstream(streams(*pieces)) as upstream:
        events = await ask(transport, upstream, said(stream=True), OPENAI, "gpt-x")
    assert text_of(events) == "ok"
    assert upstream.asked[0].body["stream_options"] == {"include_usage": True}
    usage = [event.usage for event in events if isinstance(event, UsageSeen)][-1]
    assert (usage.input, usage.output) == (3, 2)


async def test_embeddings(transport: LitellmTransport) -> None:
    body = {
        "object": "list",
        "model": "e",
        "data": [{"object": "embedding", "index": at, "embedding": [0.5, at]} for at in range(2)],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    call = said(kind="embed", op="embeddings", messages=(), inputs=("a", "b"))
    async with Upstream(answers(body)) as upstream:
        events = await ask(transport, upstream, call, OPENAI, "e")
    assert [event for event in events if isinstance(event, Vector)] == [Vector(0, (0.5, 0)), Vector(1, (0.5, 1))]
    assert upstream.asked[0].path == "/embeddings"
    assert upstream.asked[0].body["input"] == ["a", "b"]


async def test_headers_of_the_provider_go_along(transport: LitellmTransport) -> None:
    async with Upstream(answers(WHOLE)) as upstream:
        request = ANTHROPIC.request(said(), "claude-x", KEY)
        headers = {**request.headers, "x-team": "red"}
        response = await transport.open(
            Route(upstream.url), UpstreamRequest(request.method, request.path, headers, request.body)
        )
        assert response.status == 200
    assert upstream.asked[0].headers["x-team"] == "red"


async def test_many_at_once(transport: LitellmTransport) -> None:
    async with Upstream(streams(START, TEXT, STOP + END)) as upstream:
        found = await asyncio.gather(*(ask(transport, upstream, said(stream=True)) for _ in range(20)))
    assert [text_of(events) for events in found] == ["Hello"] * 20


async def test_back_pressure(transport: LitellmTransport) -> None:
    """An upstream that sends without end is not read without end."""
    written = 0

    async def script(asked: Asked, caller: Caller) -> None:
        nonlocal written
        await caller.stream()
        await caller.send(START + event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
        while written < 600:
            delta = {"type": "text_delta", "text": f"{written} " + "x" * 20000}
            await caller.send(event("content_block_delta", index=0, delta=delta))
            written += 1

    async with Upstream(script) as upstream:
        response = await transport.open(Route(upstream.url), ANTHROPIC.request(said(stream=True), "claude-x", KEY))
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(1)
        assert len(await response.read()) < HIGH_WATER + 50_000
        response.abort()
        await asyncio.wait_for(upstream.left.wait(), 60)


# --- failures


def refusal(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, refusal("invalid_request_error", "bad"), Refused),
        (401, refusal("authentication_error", f"invalid x-api-key {KEY}"), ProviderAuth),
        (403, refusal("permission_error", "no"), ProviderAuth),
        (404, refusal("not_found_error", "model"), ProviderModelNotFound),
        (429, refusal("rate_limit_error", "slow"), RateLimited),
        (500, refusal("api_error", "oops"), Unavailable),
        (503, refusal("api_error", "oops"), Busy),
        (529, refusal("overloaded_error", "Overloaded"), Busy),
        (502, "<html>", Unavailable),
    ],
)
async def test_error_before_the_answer(
    transport: LitellmTransport, status: int, body: Any, kind: type[UpstreamError], stream: bool
) -> None:
    async with Upstream(answers(body, status, retry_after="7")) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await ask(transport, upstream, said(stream=stream))
    assert type(raised.value) is kind
    assert len(upstream.asked) == 1  # no retries
    notes = " ".join(getattr(raised.value, "__notes__", []))
    for text in (raised.value.message, notes):
        assert KEY not in text
        assert "Traceback" not in text
        assert "/site-packages/" not in text
    if kind is RateLimited:
        assert raised.value.retry_after == 7


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        pytest.param([START + TEXT], Broken, id="cut without an end"),
        pytest.param(
            [START + TEXT, event("error", error={"type": "overloaded_error", "message": "x"})], None, id="told"
        ),
        pytest.param([START + TEXT, b"data: {nonsense\n\n"], None, id="garbage"),
    ],
)
async def test_error_in_the_stream(
    transport: LitellmTransport, pieces: list[bytes], kind: type[UpstreamError] | None
) -> None:
    async with Upstream(streams(*pieces)) as upstream:
        events = await ask(transport, upstream, said(stream=True))
    assert not any(isinstance(event, Finished) for event in events)
    failure = events[-1]
    assert isinstance(failure, Failed)
    assert kind is None or isinstance(failure.error, kind)
    assert "Traceback" not in failure.error.message


async def test_connection_lost_in_the_stream(transport: LitellmTransport) -> None:
    async def script(asked: Asked, caller: Caller) -> None:
        await caller.stream()
        await caller.send(START + TEXT)
        await asyncio.sleep(0.05)
        caller.cut()

    async with Upstream(script) as upstream:
        events = await ask(transport, upstream, said(stream=True))
    assert text_of(events) == "Hello"
    assert isinstance(events[-1], Failed)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"type":"message"}'])
async def test_an_answer_that_is_none(transport: LitellmTransport, body: bytes) -> None:
    async def script(asked: Asked, caller: Caller) -> None:
        caller.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await caller.writer.drain()

    async with Upstream(script) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await ask(transport, upstream, said())
    assert raised.value.scope == "transient"


async def test_nobody_there(transport: LitellmTransport) -> None:
    async with Upstream(answers({})) as upstream:
        pass
    for stream in (False, True):
        with pytest.raises(Unreachable):
            await ask(transport, upstream, said(stream=stream))


async def test_what_a_provider_does_not_take(transport: LitellmTransport) -> None:
    cohere = make_vendor({"provider": "predibase"})
    async with Upstream(answers({})) as upstream:
        with pytest.raises(UnsupportedFeature) as raised:
            await ask(transport, upstream, said(tools=(TOOL,)), cohere)
    assert raised.value.param == "tools"
    assert upstream.asked == []


async def test_an_unknown_provider(transport: LitellmTransport) -> None:
    async with Upstream(answers({})) as upstream:
        with pytest.raises(SwitchyardError):
            await ask(transport, upstream, said(), make_vendor({"provider": "nosuch"}))
    assert upstream.asked == []


# --- leaving


@pytest.mark.parametrize("when", ["before the answer", "in the stream"])
async def test_leaving_ends_the_upstream_call(transport: LitellmTransport, when: str) -> None:
    began = asyncio.Event()

    async def script(asked: Asked, caller: Caller) -> None:
        if when == "in the stream":
            await caller.stream()
            await caller.send(START + TEXT)
        began.set()
        await asyncio.sleep(60)

    async with Upstream(script) as upstream:
        task = asyncio.create_task(
            transport.open(Route(upstream.url), ANTHROPIC.request(said(stream=True), "claude-x", KEY))
        )
        if when == "in the stream":
            (await task).abort()
        else:
            await asyncio.wait_for(began.wait(), 60)
            task.cancel()
        await asyncio.wait_for(upstream.left.wait(), 60)


async def test_it_keeps_quiet(
    transport: LitellmTransport, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Upstream(answers(refusal("authentication_error", KEY), 401)) as upstream:
        with pytest.raises(ProviderAuth):
            await ask(transport, upstream, said(response_format=ResponseFormat("json")))
    out = capfd.readouterr()
    assert KEY not in caplog.text
    assert (out.out, out.err) == ("", "")


async def test_the_other_loop_goes_on_while_it_is_imported() -> None:
    """In yet another process, since here it has happened. Bounds are generous: machines are busy."""
    code = """
import asyncio, time
from providers.vendor import UpstreamRequest
from router.litellm_transport import LitellmTransport
from router.transport import Route
async def main():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1
    counting = asyncio.create_task(tick())
    transport = LitellmTransport()
    body = b'{"provider":"anthropic","options":{},"call":{"model":"m","messages":[]}}'
    try:
        await transport.open(Route("http://127.0.0.1:9"), UpstreamRequest("POST", "/chat/completions", {}, body))
    except Exception:
        pass
    counting.cancel()
    await transport.close()
    print(ticks)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 300)
    assert out.strip().isdigit(), err.decode()
    assert int(out) > 50
