"""The way back: what a writer says a reader hears, and no chunk, however odd, gets past the lanes as an exception."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.call import Call
from providers.errors import UpstreamError
from providers.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolArguments,
    ToolStart,
    Usage,
    UsageSeen,
)
from providers.lanes import TranslateLane
from providers.wire import Frame, Lane
from providers.wires.openai import WIRE
from providers.wires.openai.answer import ThinkSplitter
from tests.wires.cases import stamp

STAMP = stamp("m")
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def chat(**fields: Any) -> Call:
    return WIRE.read_call("chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})


STREAMED = chat(stream=True, stream_options={"include_usage": True})
WHOLE = chat()


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """A proper answer: one choice or two, text, reasoning and refusal in any mix, tool calls, usage, the ends."""
    events: list[Event] = [Started("model-1", "id-1")]
    choices = draw(st.integers(1, 2))
    calls = dict.fromkeys(range(choices), 0)
    for _ in range(draw(st.integers(1, 8))):
        choice = draw(st.integers(0, choices - 1))
        kind = draw(st.sampled_from(["text", "reasoning", "refusal", "tool"]))
        if kind == "tool":
            index = calls[choice]
            calls[choice] += 1
            arguments = orjson.dumps(draw(st.dictionaries(WORDS, WORDS, max_size=2))).decode()
            events.append(ToolStart(index, f"call_{choice}_{index}", f"tool_{index}", choice=choice))
            half = draw(st.integers(0, len(arguments)))
            events += [ToolArguments(index, part, choice) for part in (arguments[:half], arguments[half:]) if part]
        else:
            made = {"text": TextDelta, "reasoning": ReasoningDelta, "refusal": RefusalDelta}[kind]
            events.append(made(draw(WORDS), choice=choice))
    for choice in range(choices):
        ends: list[FinishReason] = ["tool_calls"] if calls[choice] else ["stop", "length", "content_filter"]
        reason = draw(st.sampled_from(ends))
        events.append(Finished(reason, reason, choice))
    prompt, output = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    cached = draw(st.none() | st.integers(0, 100))
    events.append(UsageSeen(Usage(input=prompt, output=output, cached=cached)))
    return events


def joined(events: list[Event]) -> dict[Any, Any]:
    """An answer without its cuts: texts by choice and kind, calls, ends."""
    found: dict[Any, Any] = {}
    for event in events:
        match event:
            case TextDelta(text, choice) | RefusalDelta(text, choice):
                found[type(event), choice] = found.get((type(event), choice), "") + text
            case ReasoningDelta(text=text, choice=choice):
                found[ReasoningDelta, choice] = found.get((ReasoningDelta, choice), "") + text
            case ToolStart(index, ident, name, choice=choice):
                found["call", choice, index] = (ident, name, "")
            case ToolArguments(index, delta, choice):
                ident, name, text = found["call", choice, index]
                found["call", choice, index] = (ident, name, text + delta)
            case Finished(reason, choice=choice):
                found["finish", choice] = reason
            case UsageSeen(usage):
                found["usage"] = usage
            case Started(model):
                found["model"] = model
            case _:
                raise AssertionError(event)
    return found


@settings(max_examples=200, deadline=None)
@given(answers(), st.integers(1, 50))
def test_streams_written_are_heard_the_same(events: list[Event], size: int) -> None:
    writer = WIRE.writer(STREAMED, STAMP)
    body = b"".join(writer.write(event) for event in events) + writer.close()
    assert writer.close() == b""
    reader = WIRE.reader(STREAMED, STAMP)
    heard = [event for start in range(0, len(body), size) for event in reader.feed(body[start : start + size])]
    assert reader.done
    assert list(reader.close()) == []
    assert joined(heard) == joined(events)


@settings(max_examples=100, deadline=None)
@given(answers())
def test_whole_answers_written_are_heard_the_same(events: list[Event]) -> None:
    body = WIRE.write_answer(WHOLE, events, STAMP)
    assert joined(list(WIRE.read_answer(WHOLE, body, STAMP))) == joined(events)


@settings(max_examples=100, deadline=None)
@given(answers(), st.integers(1, 50))
def test_clean_streams_are_spliced_byte_for_byte(events: list[Event], size: int) -> None:
    writer = WIRE.writer(STREAMED, STAMP)
    body = b"".join(writer.write(event) for event in events) + writer.close()
    lane = WIRE.splice(STREAMED, STAMP)
    frames = [frame for start in range(0, len(body), size) for frame in lane.feed(body[start : start + size])]
    assert b"".join(frame.data for frame in frames) == body
    assert lane.done
    assert lane.close() == ()
    assert lane.meter.usage == joined(events)["usage"]


def test_only_one_end_goes_out() -> None:
    lane = WIRE.splice(STREAMED, STAMP)
    chunk = {"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}
    body = b"data: " + orjson.dumps(chunk) + b"\n\n"
    sent = b"".join(frame.data for frame in [*lane.feed(body * 3), *lane.feed(b"data: [DONE]\n\n" * 2), *lane.close()])
    assert sent.count(b'"finish_reason":"stop"') == 1
    assert sent.count(b"[DONE]") == 1


# --- odd input ----------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["", "a", "stop", "error", "{}", "call_1"])
NAMES = """
id model choices index delta message content role tool_calls function name arguments finish_reason usage error text data
embedding reasoning refusal reasoning_details base_resp status_code x_groq logprobs audio images image_url prompt_tokens
completion_tokens function_call annotations moderation url type
"""
ODD = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES.split()),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
PARTS = st.sampled_from(["index", "delta", "message", "finish_reason", "text", "usage", "error", "logprobs"])
CHOICES = st.fixed_dictionaries({"choices": st.lists(st.dictionaries(PARTS, ODD, max_size=6), max_size=3)})


def lanes() -> list[Lane]:
    return [WIRE.splice(STREAMED, STAMP), TranslateLane(STREAMED, WIRE, WIRE, STAMP)]


@settings(max_examples=400, deadline=None)
@given(st.lists(ODD | CHOICES, max_size=5))
def test_odd_chunks_never_raise(chunks: list[Any]) -> None:
    good = {"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    for lane in lanes():
        frames: list[Frame] = []
        for chunk in [good, *chunks]:
            frames += lane.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
        frames += lane.close()
        assert frames[-1].kind in ("error", "terminal")
        assert sum(frame.kind == "error" for frame in frames) <= 1
        for frame in frames:
            for event in frame.data.split(b"\n\n")[:-1]:
                assert event == b"data: [DONE]" or isinstance(orjson.loads(event.removeprefix(b"data: ")), dict)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_odd_bytes_never_raise(body: bytes) -> None:
    for lane in lanes():
        frames = [*lane.feed(body), *lane.close()]
        assert frames[-1].kind == "error"


@settings(max_examples=400, deadline=None)
@given(ODD | CHOICES)
def test_odd_whole_answers_raise_only_our_errors(body: Any) -> None:
    text = orjson.dumps(body)
    embed = WIRE.read_call("embeddings", {"model": "m", "input": "a", "encoding_format": "base64"})
    for call in (WHOLE, embed):
        for lane in (WIRE.splice(call, STAMP), TranslateLane(call, WIRE, WIRE, STAMP)):
            try:
                assert orjson.loads(lane.whole(text))
            except UpstreamError:
                continue  # said so in the right way


@pytest.mark.parametrize("kind", ["stream", "splice"])
def test_what_came_before_a_failure_counts(kind: str) -> None:
    body = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"no"}}\n\n'
    if kind == "stream":
        events = list(WIRE.reader(STREAMED, STAMP).feed(body))
        assert [type(event) for event in events] == [Started, TextDelta, Failed]
    else:
        assert [frame.kind for frame in WIRE.splice(STREAMED, STAMP).feed(body)] == ["content", "error"]


@pytest.mark.parametrize(
    ("text", "prefilled", "thought", "said"),
    [
        ("<think>a b</think>c", False, "a b", "c"),
        ("\n <think>\na</think>\n\nc <think>x</think>", False, "a", "c <think>x</think>"),
        ("plain <think>x", False, "", "plain <think>x"),
        ("<thin", False, "", "<thin"),
        ("a < b", False, "", "a < b"),
        ("a</think>c", True, "a", "c"),
        ("<think>never closed </thin", False, "never closed </thin", ""),
        ("<think></think>c", False, "", "c"),
    ],
)
def test_think_tags(text: str, prefilled: bool, thought: str, said: str) -> None:
    for size in (1, 3, 100):
        splitter = ThinkSplitter(prefilled)
        pieces = [piece for start in range(0, len(text), size) for piece in splitter.feed(text[start : start + size])]
        pieces += splitter.close()
        assert "".join(piece for inside, piece in pieces if inside) == thought
        assert "".join(piece for inside, piece in pieces if not inside) == said


def test_a_writer_finishes_a_choice_once() -> None:
    for op, body in (("chat", STREAMED.raw), ("completions", {"model": "m", "prompt": "a", "stream": True})):
        writer = WIRE.writer(WIRE.read_call(op, body), STAMP)
        writer.write(TextDelta("a"))
        assert writer.write(Finished("stop"))
        assert writer.write(Finished("length")) == b""
