"""What a meter has seen of an answer, through every lane: characters, those that are wide, and images."""

from __future__ import annotations

import orjson
import pytest

from providers.call import Call
from providers.registry import vendor, wire
from providers.wire import Lane, Stamp
from router.estimate import text_tokens
from tests.prices.support import chat

SAID = "Lisboa é 里斯本 🎉"
WIDE = len(SAID.encode()) - len(SAID)


def lane(call: Call, vendor_name: str) -> Lane:
    return vendor(vendor_name).lane(call, wire(call.wire), Stamp("id", 1.0, lambda: 1.0, "m"))


def chunk(**delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    head = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: %s\n\n" % orjson.dumps({**head, "choices": [choice]})


def line(**fields: object) -> bytes:
    return orjson.dumps({"model": "m", "created_at": "2026-11-22T00:00:00Z", **fields}) + b"\n"


def whole(**message: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return orjson.dumps({"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


def call_of(text: str) -> dict[str, object]:
    return {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": text}}


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
@pytest.mark.parametrize(
    ("provider", "said"),
    [
        pytest.param("openai", [chunk(role="assistant", content=""), chunk(content=SAID)], id="content"),
        pytest.param("openai", [chunk(role="assistant", content=SAID)], id="content in the first chunk"),
        pytest.param("openai", [chunk(content="")] + [chunk(content=letter) for letter in SAID], id="in pieces"),
        pytest.param("openai", [chunk(role="assistant", reasoning_content=SAID)], id="reasoning"),
        pytest.param("ollama", [line(message={"role": "assistant", "content": SAID}, done=False)], id="ollama"),
        pytest.param(
            "ollama", [line(message={"role": "assistant", "content": "", "thinking": SAID}, done=False)], id="thinking"
        ),
    ],
)
def test_a_stream_is_counted(dialect: str, provider: str, said: list[bytes]) -> None:
    reading = lane(chat("hi", dialect, stream=True), provider)
    for piece in said:
        assert all(frame.error is None for frame in reading.feed(piece))
    assert (reading.meter.chars, reading.meter.wide) == (len(SAID), WIDE)


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
@pytest.mark.parametrize("thought", [True, False])
def test_reasoning_is_seen(dialect: str, thought: bool) -> None:
    name, other = ("reasoning_content", "thinking") if thought else ("content", "content")
    for provider, said in (
        ("openai", [chunk(role="assistant", content=""), chunk(**{name: SAID})]),
        ("openai", [chunk(role="assistant", **{name: SAID})]),
        ("ollama", [line(message={"role": "assistant", "content": "", other: SAID}, done=False)]),
    ):
        reading = lane(chat("hi", dialect, stream=True), provider)
        for piece in said:
            reading.feed(piece)
        assert reading.meter.thought == thought, (provider, said)


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_a_whole_answer_is_counted(dialect: str) -> None:
    reading = lane(chat("hi", dialect, stream=False), "openai")
    reading.whole(whole(content=SAID))
    assert (reading.meter.chars, reading.meter.wide) == (len(SAID), WIDE)


@pytest.mark.parametrize("stream", [True, False])
def test_tool_arguments_are_counted(stream: bool) -> None:
    arguments = '{"city": "里斯本"}'
    reading = lane(chat("hi", stream=stream), "openai")
    if stream:
        reading.feed(chunk(role="assistant", tool_calls=[call_of(arguments)]))
    else:
        reading.whole(whole(content=None, tool_calls=[call_of(arguments)]))
    assert (reading.meter.chars, reading.meter.wide) == (len(arguments), 6)


def test_images_are_counted() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    reading = lane(chat("hi", stream=True), "openai")
    reading.feed(chunk(role="assistant", content="", images=[image, image]))
    assert reading.meter.images == 2
    reading = lane(chat("hi"), "openai")
    reading.whole(whole(content="Here", images=[image]))
    assert reading.meter.images == 1
    part = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}
    answer = {"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}
    reading = lane(chat("hi"), "gemini")
    reading.whole(orjson.dumps(answer))
    assert reading.meter.images == 1


def test_what_was_counted_is_near_the_truth() -> None:
    assert text_tokens(len(SAID), WIDE) in range(6, 12)
