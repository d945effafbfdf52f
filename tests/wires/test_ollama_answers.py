"""What Ollama servers answer: read at any chunk boundary, passed on or told anew, and never mistaken for complete."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.call import Call, ReasoningAsk
from providers.errors import Broken, ContentFiltered, Unavailable, UpstreamError
from providers.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Logprobs,
    Media,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolArguments,
    ToolStart,
    Usage,
    UsageSeen,
    Vector,
)
from providers.lanes import TranslateLane
from providers.wire import Frame, Lane
from providers.wires.ollama import WIRE
from providers.wires.ollama.answers import tool_id
from tests.wires.ollama_calls import CHUNK_SIZES, ask, chunk, cuts, foreign, last, lines, stamp, user

WEATHER = {"function": {"name": "weather", "arguments": {"city": "Lisbon"}}}


def read(body: bytes, size: int = 0, call: Call | None = None) -> list[Event]:
    reader = WIRE.reader(call or foreign(), stamp())
    return [event for piece in cuts(body, size) for event in reader.feed(piece)] + list(reader.close())


STREAMS: list[Any] = [
    pytest.param(
        lines(chunk("Four"), chunk("."), last()),
        [TextDelta("Four"), TextDelta("."), UsageSeen(Usage(7, 3)), Finished("stop", "stop")],
        id="text",
    ),
    pytest.param(
        lines(chunk("a", thinking="b"), last(done_reason="length")),
        [ReasoningDelta("b"), TextDelta("a"), UsageSeen(Usage(7, 3)), Finished("length", "length")],
        id="thinking and content in one chunk",
    ),
    pytest.param(
        lines(chunk(tool_calls=[{**WEATHER, "id": "x"}]), last(prompt_eval_count=None, eval_count=None)),
        [ToolStart(0, "x", "weather"), ToolArguments(0, '{"city":"Lisbon"}'), Finished("tool_calls", "stop")],
        id="tool call before the end, nothing counted",
    ),
    pytest.param(
        lines(last(tool_calls=[{**WEATHER, "id": "x"}, {**WEATHER, "id": "y"}], eval_count=None)),
        [
            ToolStart(0, "x", "weather"),
            ToolArguments(0, '{"city":"Lisbon"}'),
            ToolStart(1, "y", "weather"),
            ToolArguments(1, '{"city":"Lisbon"}'),
            UsageSeen(Usage(7, None)),
            Finished("tool_calls", "stop"),
        ],
        id="parallel calls on the last line, all with index 0",
    ),
    pytest.param(
        lines(
            {"model": "sent", "response": "", "thinking": "hm", "done": False},
            {"model": "sent", "response": "你好\u2028", "done": False},
            {"model": "sent", "response": "", "done": True, "done_reason": "stop", "context": [1, 2]},
        ),
        [ReasoningDelta("hm"), TextDelta("你好\u2028"), Finished("stop", "stop")],
        id="generate",
    ),
    pytest.param(
        lines(chunk("x"), last(done_reason=None, prompt_eval_count=None, eval_count=None)),
        [TextDelta("x"), Finished("stop")],
        id="an old server without done_reason",
    ),
    pytest.param(
        b"\n" + lines(chunk("x")) + b"\r\n" + lines(last()).rstrip(),
        [TextDelta("x"), UsageSeen(Usage(7, 3)), Finished("stop", "stop")],
        id="blank lines, no last line end",
    ),
    pytest.param(
        lines(chunk(None), chunk("x", logprobs=[{"token": "x", "logprob": -1.0}]), last(), chunk("never read")),
        [
            TextDelta("x"),
            Logprobs(({"token": "x", "logprob": -1.0},)),
            UsageSeen(Usage(7, 3)),
            Finished("stop", "stop"),
        ],
        id="null content, logprobs, lines after the end",
    ),
]


@pytest.mark.parametrize("size", CHUNK_SIZES)
@pytest.mark.parametrize(("body", "events"), STREAMS)
def test_streams(body: bytes, events: list[Event], size: int) -> None:
    assert read(body, size) == [Started("sent"), *events]


@given(
    st.lists(
        st.tuples(st.text(max_size=5), st.text(max_size=5)).map(lambda pair: chunk(pair[0], thinking=pair[1])),
        max_size=5,
    ),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_where_the_bytes_are_cut_does_not_matter(given_chunks: list[dict[str, Any]], sizes: list[int]) -> None:
    body = lines(*given_chunks, last())
    whole = read(body)
    reader = WIRE.reader(foreign(), stamp())
    found: list[Event] = []
    at = 0
    for size in sizes:
        found += reader.feed(body[at : at + size])
        at += size
    found += reader.feed(body[at:])
    assert found + list(reader.close()) == whole
    assert reader.done


FAILURES: list[Any] = [
    pytest.param(lines(chunk("Once"), {"error": "unexpected EOF"}), Unavailable, "unexpected EOF", id="error line"),
    pytest.param(lines({"error": {"message": "nested"}}), Unavailable, "nested", id="error as an object"),
    pytest.param(lines({"error": "bad", "done": "yes"}), Unavailable, "bad", id="error beside nonsense"),
    pytest.param(lines(chunk("Once")), Broken, "ended before it was done", id="no end"),
    pytest.param(b"", Broken, "ended before it was done", id="nothing"),
    pytest.param(lines(chunk("Once")) + b'{"model":"m"', Broken, "ended before it was done", id="half a line"),
    pytest.param(b"<html>502 Bad Gateway</html>\n", Broken, "not JSON", id="HTML"),
    pytest.param(b'{"message":{"content":"\xff"}}\n', Broken, "not JSON", id="not UTF-8"),
    pytest.param(lines({"message": {"content": ["x"]}}), Broken, "another shape", id="another shape"),
    pytest.param(lines([1]), Broken, "another shape", id="no object"),
    pytest.param(lines(last(done_reason=None)), Broken, "aborted", id="ended without reason or content"),
    pytest.param(b'{"x":"' + b"a" * 5_000_000, Broken, "more than", id="an endless line"),
    pytest.param(lines(chunk("Once")) + b'{"model"}', Broken, "not JSON", id="a broken last line"),
    pytest.param(b"[" * 100_000 + b"\n", Broken, "", id="deep nesting"),
]


@pytest.mark.parametrize("size", [7, 0])
@pytest.mark.parametrize(("body", "error", "text"), FAILURES)
def test_what_is_not_complete_fails_in_both_lanes(
    body: bytes, error: type[UpstreamError], text: str, size: int
) -> None:
    if size and len(body) > 1_000_000:
        size = 64 * 1024
    failed = read(body, size)[-1]
    assert isinstance(failed, Failed)
    spliced = frames(WIRE.splice(ask(messages=user()), stamp()), body, size)[-1].error
    assert spliced is not None
    for found in (failed.error, spliced):
        assert type(found) is error
        assert text in found.message


def frames(lane: Lane, body: bytes, size: int = 0) -> list[Frame]:
    return [frame for piece in cuts(body, size) for frame in lane.feed(piece)] + list(lane.close())


@pytest.mark.parametrize("size", CHUNK_SIZES)
def test_spliced_lines_stay_as_they_are_but_for_the_name(size: int) -> None:
    first = b'{ "created_at":"x", "model":"sent", "message":{"content":"a"},"done":false,"new_field":1}\n'
    use = {"id": "call_1", "function": {"index": 0, **WEATHER["function"]}}
    body = lines(chunk(), chunk("a\u2028é", thinking="t")) + first + lines(last(tool_calls=[use]))
    lane = WIRE.splice(ask(messages=user()), stamp())
    found = frames(lane, body, size)
    assert [frame.kind for frame in found] == ["opening", "content", "content", "terminal"]
    expected = lines(chunk(model="m"), chunk("a\u2028é", thinking="t", model="m")).replace(
        "\u2028".encode(), rb"\u2028"
    )
    sent = b"".join(frame.data for frame in found)
    assert sent.startswith(expected)
    assert orjson.loads(sent.splitlines()[2]) == {**orjson.loads(first), "model": "m"}
    assert sent.endswith(lines(last(tool_calls=[use], model="m")))
    meter = lane.meter
    assert (meter.usage, meter.finish, meter.model, lane.done) == (Usage(7, 3), "tool_calls", "sent", True)
    assert (meter.chars, meter.frames) == (4 + 1 + len('{"city":"Lisbon"}'), 3)


@pytest.mark.parametrize("size", CHUNK_SIZES)
def test_spliced_tool_calls_are_numbered_and_named(size: int) -> None:
    """Older servers give no ids, and some number every parallel call 0. Arguments stay as the server wrote them."""
    told = b'{"model":"m","message":{"content":"","tool_calls":[%b]},"done":%b,"done_reason":"stop"}\n'
    one = b'{"function":{"name":"f","index":0,"arguments":{"n":123456789012345678901234567890,"x":1.0e2}}}'
    two = b'{"id":"call_b","function":{"name":"g"}}'
    body = told % (one, b"false") + told % (two + b"," + one, b"true")
    sent = b"".join(frame.data for frame in frames(WIRE.splice(ask(messages=user()), stamp()), body, size))
    uses = [use for line in sent.splitlines() for use in orjson.loads(line)["message"]["tool_calls"]]
    assert [use["function"]["index"] for use in uses] == [0, 1, 2]
    assert [use["id"] for use in uses] == [tool_id("req_1", 0), "call_b", tool_id("req_1", 2)]
    assert sent.count(b'{"n":123456789012345678901234567890,"x":1.0e2}') == 2
    assert uses[1]["function"]["arguments"] == {}


def test_spliced_bytes_are_untouched_when_the_names_agree() -> None:
    body = b'{"model":"m",  "message":{"content":"a"}}\n{"model":"m","done":true,"done_reason":"stop"}\n'
    assert b"".join(frame.data for frame in frames(WIRE.splice(ask(messages=user()), stamp()), body)) == body


WHOLE: dict[str, Any] = {**last(), "message": {"role": "assistant", "content": "Four", "thinking": "2+2"}}


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (ask(messages=user(), stream=False), WHOLE),
        (
            ask("generate", prompt="x", stream=False),
            {"model": "sent", "response": "Four", "done": True, "context": [1]},
        ),
        (ask("embed", input="x"), {"model": "sent", "embeddings": [[0.25, -1.0]], "prompt_eval_count": 2}),
        (ask("embeddings", prompt="x"), {"embedding": [0.25, -1.0]}),
    ],
)
def test_spliced_whole_answers(call: Call, body: dict[str, Any]) -> None:
    found = orjson.loads(WIRE.splice(call, stamp()).whole(orjson.dumps(body)))
    assert found == ({**body, "model": "m"} if "model" in body else body)


@pytest.mark.parametrize(
    ("call", "body", "text"),
    [
        (ask(messages=user()), {**WHOLE, "done": False}, "before it was done"),
        (ask(messages=user()), {"error": "boom"}, "boom"),
        (ask(messages=user()), {"done": True, "done_reason": "stop"}, "no message"),
        (ask("embed", input="x"), {"model": "m"}, "no embeddings"),
        (foreign(kind="embed", inputs=("x",)), {"embeddings": "x"}, "not lists of numbers"),
    ],
)
def test_whole_answers_that_are_none(call: Call, body: dict[str, Any], text: str) -> None:
    with pytest.raises(UpstreamError, match=text):
        WIRE.read_answer(call, orjson.dumps(body), stamp())
    if call.wire == "ollama":
        with pytest.raises(UpstreamError, match=text):
            WIRE.splice(call, stamp()).whole(orjson.dumps(body))


def test_a_whole_answer_as_events() -> None:
    assert WIRE.read_answer(foreign(), orjson.dumps(WHOLE), stamp()) == [
        Started("sent"),
        ReasoningDelta("2+2"),
        TextDelta("Four"),
        UsageSeen(Usage(7, 3)),
        Finished("stop", "stop"),
    ]


def test_embeddings_as_events() -> None:
    call = foreign(kind="embed", op="embeddings", inputs=("a", "b"))
    body = {"model": "sent", "embeddings": [[0.5], [1]], "prompt_eval_count": 6}
    assert WIRE.read_answer(call, orjson.dumps(body), stamp()) == [
        Started("sent"),
        Vector(0, (0.5,)),
        Vector(1, (1.0,)),
        UsageSeen(Usage(6)),
        Finished("stop"),
    ]


def test_made_ids_look_like_ollamas_and_stay_the_same() -> None:
    body = lines(chunk(tool_calls=[WEATHER]), chunk(tool_calls=[WEATHER]), last())
    found = [event.id for event in read(body) if isinstance(event, ToolStart)]
    assert all(re.fullmatch("call_[a-z0-9]{8}", made) for made in found)
    assert len(set(found)) == 2
    assert found == [event.id for event in read(body, 7) if isinstance(event, ToolStart)]


def test_one_call_at_a_time_when_asked() -> None:
    body = lines(chunk(tool_calls=[WEATHER, WEATHER]), last())
    found = read(body, call=foreign(parallel_tools=False))
    assert len([event for event in found if isinstance(event, ToolStart)]) == 1


def test_arguments_as_text_from_servers_that_only_resemble_ollama() -> None:
    body = lines(last(tool_calls=[{"function": {"name": "f", "arguments": '{"a":1}'}}]))
    assert ToolArguments(0, '{"a":1}') in read(body)


# --- towards the client ----------------------------------------------------------------------------------------------


def written(call: Call, *events: Event) -> list[dict[str, Any]]:
    writer = WIRE.writer(call, stamp())
    out = b"".join(writer.write(event) for event in events) + writer.close()
    assert out.isascii() or not re.search("[\u0085\u2028\u2029]", out.decode())
    assert out.endswith(b"\n")
    return [orjson.loads(line) for line in out.decode().splitlines()]


def test_a_written_stream() -> None:
    found = written(
        ask(messages=user()),
        Started("gpt"),
        ReasoningDelta("hm"),
        TextDelta("a\u2028\u0085 é"),
        TextDelta(""),
        TextDelta("other choice", choice=1),
        ToolStart(0, "call_a", "f"),
        ToolStart(1, "call_b", "g"),
        ToolArguments(1, ""),
        ToolArguments(0, '{"a":'),
        ToolArguments(0, "1}"),
        Finished("tool_calls", "tool_calls"),
        UsageSeen(Usage(5, 9, reasoning=4)),
    )
    calls = [
        {"id": "call_a", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}},
        {"id": "call_b", "function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    time = "1970-01-01T00:16:{:09.6f}Z"
    base = {"model": "m"}
    assert found == [
        {
            **base,
            "created_at": time.format(40.5),
            "message": {"role": "assistant", "content": "", "thinking": "hm"},
            "done": False,
        },
        {
            **base,
            "created_at": time.format(41),
            "message": {"role": "assistant", "content": "a\u2028\u0085 é"},
            "done": False,
        },
        {
            **base,
            "created_at": time.format(41.5),
            "message": {"role": "assistant", "content": "", "tool_calls": calls},
            "done": False,
        },
        {
            **base,
            "created_at": time.format(42),
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            "total_duration": 2_000_000_000,
            "prompt_eval_count": 5,
            "prompt_eval_duration": 500_000_000,
            "eval_count": 9,
            "eval_duration": 1_500_000_000,
        },
    ]


def test_generate_has_a_response_and_no_context() -> None:
    found = written(
        ask("generate", prompt="x"),
        ReasoningDelta("hm"),
        TextDelta("a"),
        Logprobs(({"token": "a"},)),
        Finished("length"),
    )
    assert [(line["response"], line.get("thinking")) for line in found] == [
        ("", "hm"),
        ("a", None),
        ("", None),
        ("", None),
    ]
    assert found[2]["logprobs"] == [{"token": "a"}]
    assert found[-1]["done_reason"] == "length"
    assert not any("context" in line or "message" in line for line in found)
    assert "eval_count" not in found[-1]


@pytest.mark.parametrize(
    ("reason", "said"), [("stop", "stop"), ("tool_calls", "stop"), ("length", "length"), ("content_filter", "stop")]
)
def test_finish_reasons(reason: FinishReason, said: str) -> None:
    assert written(ask(messages=user()), TextDelta("a"), Finished(reason))[-1]["done_reason"] == said


@pytest.mark.parametrize("op", ["chat", "generate"])
def test_a_filter_that_leaves_nothing_is_an_error(op: str) -> None:
    call = ask(op, messages=user()) if op == "chat" else ask(op, prompt="hi")
    blocked = Finished("content_filter", "SAFETY")
    with pytest.raises(ContentFiltered, match=r"let no answer through \(SAFETY\)"):
        WIRE.writer(call, stamp()).write(blocked)
    with pytest.raises(ContentFiltered):
        WIRE.write_answer(call, [blocked], stamp())
    assert b'"done_reason":"stop"' in WIRE.write_answer(call, [TextDelta("a"), blocked], stamp())


def test_thinking_is_hidden_from_those_who_switched_it_off() -> None:
    call = ask(messages=user(), think=False)
    assert len(written(call, ReasoningDelta("hm"), Finished("stop"))) == 1
    whole = WIRE.write_answer(call, [ReasoningDelta("hm"), TextDelta("a"), Finished("stop")], stamp())
    assert b"thinking" not in whole


def test_a_call_that_the_limit_cut_is_left_out() -> None:
    found = written(ask(messages=user()), ToolStart(0, "a", "f"), ToolArguments(0, '{"a'), Finished("length"))
    assert [line["done"] for line in found] == [True]
    assert found[0]["done_reason"] == "length"


@pytest.mark.parametrize("arguments", ['{"a', "[1]", '"text"'])
def test_arguments_that_are_no_object_end_the_answer_with_an_error(arguments: str) -> None:
    call = ask(messages=user())
    events: list[Event] = [ToolStart(0, "a", "f"), ToolArguments(0, arguments), Finished("tool_calls")]
    with pytest.raises(Broken, match="not a JSON object"):
        written_raw(call, events)
    with pytest.raises(Broken, match="not a JSON object"):
        WIRE.write_answer(call, events, stamp())


def written_raw(call: Call, events: list[Event]) -> list[dict[str, Any]]:
    writer = WIRE.writer(call, stamp())
    return [orjson.loads(line) for line in b"".join([*map(writer.write, events), writer.close()]).splitlines()]


def test_a_whole_answer_is_the_same_events_folded() -> None:
    events: list[Event] = [
        ReasoningDelta("h"),
        ReasoningDelta("m"),
        TextDelta("I "),
        RefusalDelta("won't"),
        Media("AAAA", "image/png"),
        ToolStart(0, "a", "f"),
        ToolArguments(0, "{}"),
        UsageSeen(Usage(5)),
        Finished("tool_calls"),
    ]
    assert orjson.loads(WIRE.write_answer(ask(messages=user()), events, stamp())) == {
        "model": "m",
        "created_at": "1970-01-01T00:16:40.500000Z",
        "message": {
            "role": "assistant",
            "content": "I won't",
            "thinking": "hm",
            "tool_calls": [{"id": "a", "function": {"index": 0, "name": "f", "arguments": {}}}],
            "images": ["AAAA"],
        },
        "done": True,
        "done_reason": "stop",
        "total_duration": 500_000_000,
        "prompt_eval_count": 5,
        "eval_duration": 500_000_000,
    }


def test_written_embeddings() -> None:
    events: list[Event] = [Vector(1, (2.0,)), Vector(0, "AACAPw=="), UsageSeen(Usage(6)), Finished("stop")]
    assert orjson.loads(WIRE.write_answer(ask("embed", input=["a", "b"]), events, stamp())) == {
        "model": "m",
        "embeddings": [[1.0], [2.0]],
        "total_duration": 500_000_000,
        "prompt_eval_count": 6,
    }
    assert WIRE.write_answer(ask("embeddings", prompt="a"), events[1:], stamp()) == b'{"embedding":[1.0]}'


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
EVENTS = st.one_of(
    TEXTS.map(TextDelta),
    TEXTS.map(ReasoningDelta),
    st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), min_size=1, max_size=2).map(lambda e: Logprobs(tuple(e))),
)


@given(
    st.lists(EVENTS, max_size=6),
    st.lists(st.tuples(TEXTS, st.dictionaries(TEXTS, st.none() | st.booleans() | TEXTS, max_size=3)), max_size=3),
    st.sampled_from(["stop", "length"]),
    st.none() | st.builds(Usage, input=st.integers(0, 10**9), output=st.integers(0, 10**9)),
    st.sampled_from(["chat", "generate"]),
    st.integers(1, 50),
)
def test_what_is_written_is_read_back(
    deltas: list[Event],
    tools: list[tuple[str, dict[str, Any]]],
    reason: FinishReason,
    usage: Usage | None,
    op: str,
    size: int,
) -> None:
    said: list[Event] = [event for event in deltas if not isinstance(event, (TextDelta, ReasoningDelta)) or event.text]
    for index, (name, arguments) in enumerate(tools):
        said += [ToolStart(index, f"c{index}", name), ToolArguments(index, orjson.dumps(arguments).decode())]
    if usage is not None:
        said.append(UsageSeen(usage))
    said.append(Finished("tool_calls" if tools and reason == "stop" else reason, reason))
    writer = WIRE.writer(ask(op, messages=user()) if op == "chat" else ask(op, prompt="x"), stamp())
    body = b"".join(writer.write(event) for event in said) + writer.close()
    assert len(body.decode().splitlines()) == body.count(b"\n")
    assert parsed(read(body, size)[1:]) == parsed(said)


def parsed(events: list[Event]) -> list[Any]:
    """Events with their arguments' JSON read: its text may spell a character in two ways."""
    return [(e.index, orjson.loads(e.delta)) if isinstance(e, ToolArguments) else e for e in events]


def test_translating_between_two_ollamas_says_the_same() -> None:
    body = lines(chunk("a", thinking="t"), chunk(tool_calls=[{**WEATHER, "id": "x"}]), last())
    lane = TranslateLane(ask(messages=user()), WIRE, WIRE, stamp())
    out = b"".join(frame.data for frame in frames(lane, body, 7))
    assert read(out)[1:] == read(body)[1:]


def test_reasoning_off_is_kept_for_foreign_calls_too() -> None:
    call = foreign(reasoning=ReasoningAsk(enabled=False))
    assert ReasoningDelta("t") in read(lines(chunk("a", thinking="t"), last()), call=call)
