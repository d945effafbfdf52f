"""Half a character from a provider is U+FFFD to the client, never the end of an answer."""

from __future__ import annotations

import orjson
import pytest

from providers.lanes import TranslateLane
from providers.surrogates import loads, read, whole_characters
from providers.wire import Lane
from providers.wires.gemini import GeminiWire
from providers.wires.ollama import WIRE as OLLAMA
from providers.wires.openai import WIRE as OPENAI
from tests.wires.cases import stamp
from tests.wires.ollama_calls import ask, user

STAMP = stamp("m")
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAMED = OPENAI.read_call("chat", {**BODY, "stream": True})
WHOLE = OPENAI.read_call("chat", BODY)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (rb'"lone \ud83d x"', "lone \ufffd x"),
        (rb'"lone \uDE00"', "lone \ufffd"),
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\ud83d\u0041\ud7ff"', "\ufffdA\ud7ff"),
        (rb'"\\ud83d \ud83d"', "\\ud83d \ufffd"),
        (rb'"\\\ud83d"', "\\\ufffd"),
    ],
)
def test_lone_surrogates_are_replaced(given: bytes, meant: str) -> None:
    assert loads(given) == meant
    value, text = read(given)
    assert value == meant == orjson.loads(text)


@pytest.mark.parametrize("given", [rb'"\ud83d\ude00"', rb'"\\ud83d"', b'"plain"', b"{"])
def test_what_is_sound_stays_the_same_object(given: bytes) -> None:
    assert whole_characters(given) is given


def test_what_is_broken_otherwise_is_still_refused() -> None:
    with pytest.raises(orjson.JSONDecodeError):
        loads(rb'{"a":"\ud83d"')


def sent(lane: Lane, body: bytes) -> bytes:
    frames = [*lane.feed(body), *lane.close()]
    assert [frame.error for frame in frames if frame.error] == []
    return b"".join(frame.data for frame in frames)


def openai_chunk(delta: bytes, finish: bytes = b"null") -> bytes:
    head = b'{"id":"a","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    return b"data: " + head + delta + b',"logprobs":null,"finish_reason":' + finish + b"}]}\n\n"


@pytest.mark.parametrize("lane", [OPENAI.splice(STREAMED, STAMP), TranslateLane(STREAMED, OPENAI, OPENAI, STAMP)])
def test_openai_streams(lane: Lane) -> None:
    body = openai_chunk(rb'{"role":"assistant","content":"a \ud83d"}') + openai_chunk(rb'{"content":"lone \ud83d x"}')
    out = sent(lane, body + openai_chunk(b"{}", b'"stop"') + b"data: [DONE]\n\n")
    chunks = [orjson.loads(line[6:]) for line in out.split(b"\n\n") if line and line != b"data: [DONE]"]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == "a \ufffdlone \ufffd x"


@pytest.mark.parametrize("lane", [OPENAI.splice(WHOLE, STAMP), TranslateLane(WHOLE, OPENAI, OPENAI, STAMP)])
def test_openai_whole_answers(lane: Lane) -> None:
    body = (
        rb'{"id":"a","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"logprobs":null,'
        rb'"message":{"role":"assistant","content":"lone \ud83d x","refusal":null},"finish_reason":"stop"}]}'
    )
    assert orjson.loads(lane.whole(body))["choices"][0]["message"]["content"] == "lone \ufffd x"


OLLAMA_LINE = (
    rb'{"model":"m","message":{"role":"assistant","content":"lone \ud83d x"},"done":true,"done_reason":"stop"}'
)


def test_ollama() -> None:
    call = ask(messages=user())
    out = sent(OLLAMA.splice(call, STAMP), OLLAMA_LINE + b"\n")
    assert orjson.loads(out)["message"]["content"] == "lone \ufffd x"
    assert orjson.loads(OLLAMA.splice(call, STAMP).whole(OLLAMA_LINE))["message"]["content"] == "lone \ufffd x"
    assert "lone \ufffd x".encode() in sent(TranslateLane(STREAMED, OLLAMA, OPENAI, STAMP), OLLAMA_LINE + b"\n")
    assert "lone \ufffd x".encode() in TranslateLane(WHOLE, OLLAMA, OPENAI, STAMP).whole(OLLAMA_LINE)


def test_gemini() -> None:
    answer = rb'{"candidates":[{"content":{"parts":[{"text":"lone \ud83d x"}]},"finishReason":"STOP"}]}'
    wire = GeminiWire()
    out = sent(TranslateLane(STREAMED, wire, OPENAI, STAMP), b"data: " + answer + b"\n\n")
    assert "lone \ufffd x".encode() in out
    assert "lone \ufffd x".encode() in TranslateLane(WHOLE, wire, OPENAI, STAMP).whole(answer)
