"""Gemini's answers read: increments, thoughts, calls, usage, ends, blocked prompts, framings, garbage."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.call import Call, Sampling
from providers.errors import Broken, Busy, ProviderAuth, RateLimited, Unavailable, UpstreamError
from providers.events import (
    Annotation,
    Event,
    Failed,
    Finished,
    Logprobs,
    Media,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolArguments,
    ToolStart,
    Usage,
    UsageSeen,
    Vector,
)
from providers.wires.gemini import GeminiWire
from tests.wires.gemini_calls import chat, chunk, cuts, events_of, read, sse, stamp

STREAM = [
    chunk(
        {"text": "Compare.", "thought": True},
        usage={"promptTokenCount": 9, "thoughtsTokenCount": 21, "totalTokenCount": 30},
        modelVersion="gemini-2.5-flash",
        responseId="q1",
    ),
    chunk(
        {"text": '9.9 is \u2028„größer“ {"[\\'},
        {"functionCall": {"name": "f", "args": {"a": "ü", "b": [1, 2.5]}}, "thoughtSignature": "U0lH"},
    ),
    chunk({"functionCall": {"name": "f"}}),
    chunk(
        finish="STOP",
        usage={"promptTokenCount": 9, "candidatesTokenCount": 5, "thoughtsTokenCount": 21, "totalTokenCount": 35},
    ),
]
EVENTS: list[Event] = [
    Started("gemini-2.5-flash", "q1"),
    ReasoningDelta("Compare."),
    UsageSeen(Usage(input=9, output=21, reasoning=21)),
    TextDelta('9.9 is \u2028„größer“ {"[\\'),
    ToolStart(0, "call_req0123456789abcdef_0", "f", "U0lH"),
    ToolArguments(0, '{"a":"ü","b":[1,2.5]}'),
    ToolStart(1, "call_req0123456789abcdef_1", "f"),
    ToolArguments(1, "{}"),
    UsageSeen(Usage(input=9, output=26, reasoning=21)),
    Finished("tool_calls", "STOP"),
]
FRAMINGS = {
    "sse": sse(*STREAM),
    "sse with LF": sse(*STREAM).replace(b"\r\n", b"\n"),
    "sse without the last blank line": sse(*STREAM).rstrip(),
    "array": orjson.dumps(STREAM),
    "spaced array": b"[" + b"\r\n,\r\n".join(orjson.dumps(x, option=orjson.OPT_INDENT_2) for x in STREAM) + b"]\n",
    "cut array": orjson.dumps(STREAM)[:-1],
}


@pytest.mark.parametrize("size", [1, 7, 0])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_stream(framing: str, size: int) -> None:
    reader = GeminiWire().reader(chat(stream=True), stamp())
    assert events_of(reader, cuts(FRAMINGS[framing], size)) == EVENTS
    assert reader.done


@pytest.mark.parametrize("body", [orjson.dumps(STREAM), orjson.dumps(STREAM[3])], ids=["array", "one"])
def test_whole(body: bytes) -> None:
    assert GeminiWire().read_answer(chat(), body, stamp())[-1].__class__ is Finished


@given(st.lists(st.integers(0, 1500), max_size=20), st.sampled_from(sorted(FRAMINGS)))
@settings(max_examples=80, deadline=None)
def test_any_split(places: list[int], framing: str) -> None:
    body = FRAMINGS[framing]
    at = [0, *sorted(place % len(body) for place in places), len(body)]
    pieces = [body[start:end] for start, end in pairwise(at)]
    assert events_of(GeminiWire().reader(chat(), stamp()), pieces) == EVENTS


@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_failure(junk: bytes, size: int) -> None:
    for body in (junk, b"data: " + junk + b"\n\n", b"[" + junk, b'data: {"candidates":' + junk + b"}\n\n"):
        events = events_of(GeminiWire().reader(chat(), stamp()), cuts(body, size))
        assert isinstance(events[-1], (Failed, Finished))
        assert sum(isinstance(event, Failed) for event in events) <= 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["candidates", "content", "parts", "text", "functionCall", "args", "name", "error", "index"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_odd_shapes_are_events_or_our_error(value: Any) -> None:
    body = json.dumps(value).encode()
    try:
        GeminiWire().read_answer(chat(), body, stamp())
    except UpstreamError:
        pass
    GeminiWire().read_error(400, {}, body)


# --- the end ------------------------------------------------------------------------------------------------------


def last(*objects: Any, **fields: Any) -> Event:
    return read(GeminiWire(), chat(**fields), *objects)[-1]


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("LANGUAGE", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("OTHER", "stop"),
        ("MALFORMED_FUNCTION_CALL", "stop"),
        ("SOMETHING_NEW", "stop"),
    ],
)
def test_finish_after_text(native: str, reason: Any) -> None:
    assert last(chunk({"text": "a"}, finish=native)) == Finished(reason, native)


@pytest.mark.parametrize(
    ("native", "reason"), [("SAFETY", "content_filter"), ("MAX_TOKENS", "length"), ("STOP", "stop")]
)
def test_finish_without_content(native: str, reason: Any) -> None:
    assert last({"candidates": [{"finishReason": native}]}) == Finished(reason, native)


@pytest.mark.parametrize("native", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER", "SOMETHING_NEW"])
def test_a_failure_that_said_nothing_is_tried_elsewhere(native: str) -> None:
    event = last({"candidates": [{"finishReason": native, "finishMessage": "bad call"}]})
    assert isinstance(event, Failed)
    assert isinstance(event.error, Unavailable)
    assert native in event.error.message
    assert "bad call" in event.error.message


def test_a_finish_on_every_chunk_ends_nothing() -> None:
    events = read(GeminiWire(), chat(), chunk({"text": "a"}, finish="STOP"), chunk({"text": "b"}, finish="STOP"))
    assert events == [TextDelta("a"), TextDelta("b"), Finished("stop", "STOP")]


def test_a_blocked_prompt_is_a_filtered_answer() -> None:
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 14}}
    events = read(GeminiWire(), chat(), blocked)
    assert events == [UsageSeen(Usage(input=14)), Finished("content_filter", "PROHIBITED_CONTENT")]
    assert list(GeminiWire().read_answer(chat(), orjson.dumps(blocked), stamp())) == events


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"data: {}\n\n",
        b"<html>busy</html>",
        b"data: nonsense\n\n",
        b"data: [DONE]\n\n",
        sse(chunk({"text": "a"})),
        sse(chunk({"text": "a"})) + b'data: {"candidates":[{"con',
        b'{"candidates": [',
        b'[{"candidates": []}] trailing',
    ],
)
def test_cut_answers_are_broken(body: bytes) -> None:
    event = events_of(GeminiWire().reader(chat(), stamp()), [body])[-1]
    assert isinstance(event, Failed)
    assert isinstance(event.error, Broken)
    with pytest.raises(Broken):
        GeminiWire().read_answer(chat(), body, stamp())


# --- errors in the answer -----------------------------------------------------------------------------------------

UNAVAILABLE = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize("size", [1, 7, 0])
@pytest.mark.parametrize(
    "body",
    [
        sse(STREAM[0], UNAVAILABLE, STREAM[1]),
        orjson.dumps([STREAM[0], UNAVAILABLE]),
        orjson.dumps(UNAVAILABLE),
        orjson.dumps([UNAVAILABLE]),
    ],
    ids=["sse", "array", "bare", "array of one"],
)
def test_error_in_the_stream(body: bytes, size: int) -> None:
    reader = GeminiWire().reader(chat(), stamp())
    event = events_of(reader, cuts(body, size))[-1]
    assert isinstance(event, Failed)
    assert isinstance(event.error, Busy)
    assert event.error.message == "The model is overloaded."
    assert reader.done
    assert list(reader.feed(sse(STREAM[1]))) == []


@pytest.mark.parametrize("body", [orjson.dumps(UNAVAILABLE), orjson.dumps([UNAVAILABLE])])
def test_error_in_a_whole_answer(body: bytes) -> None:
    with pytest.raises(Busy):
        GeminiWire().read_answer(chat(), body, stamp())


def test_error_with_a_name_only() -> None:
    event = last({"error": {"status": "RESOURCE_EXHAUSTED", "message": "slow down"}})
    assert isinstance(event, Failed)
    assert isinstance(event.error, RateLimited)
    bad_key = {"error": {"code": 400, "message": "no", "details": [{"reason": "API_KEY_INVALID"}]}}
    event = last(bad_key)
    assert isinstance(event, Failed)
    assert isinstance(event.error, ProviderAuth)


# --- usage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        pytest.param(
            {"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 20, "totalTokenCount": 35},
            Usage(input=10, output=25, reasoning=20),
            id="output includes thinking",
        ),
        pytest.param(
            {"promptTokenCount": 10, "candidatesTokenCount": 25, "thoughtsTokenCount": 20, "totalTokenCount": 35},
            Usage(input=10, output=25, reasoning=20),
            id="thinking already inside",
        ),
        pytest.param(
            {"promptTokenCount": 10, "toolUsePromptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 22},
            Usage(input=17, output=5),
            id="fed back results are input",
        ),
        pytest.param(
            {"promptTokenCount": 10, "cachedContentTokenCount": 8, "totalTokenCount": 10},
            Usage(input=10, output=0, cached=8),
            id="nothing said",
        ),
        pytest.param({"promptTokenCount": 10}, Usage(input=10), id="output unknown"),
        pytest.param({"candidatesTokenCount": 3, "thoughtsTokenCount": 4}, Usage(output=7, reasoning=4), id="no total"),
        pytest.param({"promptTokenCount": -5, "totalTokenCount": -9}, Usage(input=0, output=0), id="never negative"),
    ],
)
def test_usage(counts: dict[str, int], usage: Usage) -> None:
    assert UsageSeen(usage) in read(GeminiWire(), chat(), chunk({"text": "a"}, finish="STOP", usage=counts))


def test_usage_is_told_when_it_changes() -> None:
    counts = {"promptTokenCount": 1, "totalTokenCount": 2}
    events = read(
        GeminiWire(), chat(), chunk({"text": "a"}, usage=counts), chunk({"text": "b"}, usage=counts, finish="STOP")
    )
    assert sum(isinstance(event, UsageSeen) for event in events) == 1


# --- the rest -----------------------------------------------------------------------------------------------------


def call_of(**fields: Any) -> Call:
    return chat(**fields)


def test_one_call_where_one_was_asked_for() -> None:
    many = chunk({"functionCall": {"name": "f", "id": "x"}}, {"functionCall": {"name": "g"}}, finish="STOP")
    events = read(GeminiWire(), call_of(parallel_tools=False), many)
    assert [event.id for event in events if isinstance(event, ToolStart)] == ["x"]


def test_ids_are_unique() -> None:
    same = [{"functionCall": {"name": "f", "id": "x"}}] * 2
    ids = [
        event.id for event in read(GeminiWire(), call_of(), chunk(*same, finish="STOP")) if isinstance(event, ToolStart)
    ]
    assert ids == ["x", "call_req0123456789abcdef_1"]


def test_choices() -> None:
    both: dict[str, Any] = {
        "candidates": [
            {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"},
            {"content": {"parts": [{"text": "b"}]}, "finishReason": "MAX_TOKENS", "index": 1},
            {"content": {"parts": [{"text": "c"}]}, "finishReason": "STOP", "index": 9},
        ]
    }
    assert read(GeminiWire(), call_of(sampling=Sampling(n=2)), both) == [
        TextDelta("a", 0),
        TextDelta("b", 1),
        Finished("stop", "STOP", 0),
        Finished("length", "MAX_TOKENS", 1),
    ]


def test_media_code_sources_and_logprobs() -> None:
    answer = chunk(
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
    )
    answer["candidates"][0] |= {
        "finishReason": "STOP",
        "groundingMetadata": {"groundingChunks": [{"web": {"uri": "https://e.org", "title": "E"}}]},
        "logprobsResult": {
            "chosenCandidates": [{"token": "ü", "logProbability": -0.5}],
            "topCandidates": [{"candidates": [{"token": "u", "logProbability": -2}]}],
        },
    }
    top = {"token": "u", "logprob": -2.0, "bytes": [117]}
    assert read(GeminiWire(), call_of(logprobs=True), answer)[:-1] == [
        Media("AAAA", "image/png"),
        TextDelta("\n```python\nprint(1)\n```\n"),
        TextDelta("\n```\n1\n```\n"),
        Logprobs(({"token": "ü", "logprob": -0.5, "bytes": [195, 188], "top_logprobs": [top]},)),
        Annotation(
            {
                "type": "url_citation",
                "url_citation": {"url": "https://e.org", "title": "E", "start_index": 0, "end_index": 0},
            }
        ),
    ]


# --- embeddings ---------------------------------------------------------------------------------------------------


def vectors(body: Any, **fields: Any) -> list[Event]:
    call = chat(kind="embed", messages=(), **fields)
    return list(GeminiWire().read_answer(call, orjson.dumps(body), stamp()))


def test_vectors() -> None:
    assert vectors({"embedding": {"values": [3, 4]}}, inputs=("a",)) == [Vector(0, (3.0, 4.0))]
    assert vectors({"embeddings": [{"values": [0.5]}, {"values": [1]}]}, inputs=("a", "b")) == [
        Vector(0, (0.5,)),
        Vector(1, (1.0,)),
    ]
    counted = {"embeddings": [{"values": [1]}], "usageMetadata": {"promptTokenCount": 4}}
    assert vectors(counted, inputs=("a",))[-1] == UsageSeen(Usage(input=4))


def test_shortened_vectors_have_length_one() -> None:
    assert vectors({"embedding": {"values": [3, 4]}}, inputs=("a",), dimensions=2) == [Vector(0, (0.6, 0.8))]
    assert vectors({"embedding": {"values": [0, 0]}}, inputs=("a",), dimensions=2) == [Vector(0, (0.0, 0.0))]


@pytest.mark.parametrize(
    "body", [{}, {"embeddings": []}, {"embeddings": [{"values": [1]}] * 3}, {"embedding": {"values": []}}, "x"]
)
def test_missing_vectors_are_broken(body: Any) -> None:
    with pytest.raises(Broken):
        vectors(body, inputs=("a", "b"))


def test_an_error_instead_of_vectors() -> None:
    with pytest.raises(Busy):
        vectors(UNAVAILABLE, inputs=("a",))
