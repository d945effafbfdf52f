"""Incremental framing: the same events wherever the bytes are cut, bounded, and safe for line splitters."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.errors import Broken
from providers.framing import SSE, LineReader, SSEReader, line_safe, ndjson, sse

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)
EVENTS = st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=5)


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def feed_all(reader: SSEReader | LineReader, body: bytes, size: int) -> None:
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])


def read(pieces: list[bytes]) -> list[SSE]:
    reader = SSEReader()
    return [event for piece in pieces for event in reader.feed(piece)] + reader.close()


@settings(max_examples=300, deadline=None)
@given(
    EVENTS,
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_sse_cut_anywhere(events: list[list[str]], end: str, mark: bool, comments: bool, cuts: list[int]) -> None:
    lines = ["\ufeff"] if mark else [""]
    for event in events:
        if comments:
            lines.append(f": ping{end}")
        lines += [f"data: {text}{end}" for text in event]
        lines.append(end)
    wanted = [SSE(b"", "\n".join(event).encode()) for event in events]
    body = "".join(lines).encode()
    assert read([body]) == wanted
    assert read([bytes([byte]) for byte in body]) == wanted
    assert read(cut(body, cuts)) == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        pytest.param(b"data:x\n\n", [SSE(b"", b"x")], id="no space"),
        pytest.param(b"data:  x\n\n", [SSE(b"", b" x")], id="one space only is taken"),
        pytest.param(b"event: error\ndata: x\n\n", [SSE(b"error", b"x")], id="named"),
        pytest.param(b"event: ping\n\ndata: x\n\n", [SSE(b"", b"x")], id="an event without data is none"),
        pytest.param(b"id: 7\nretry: 5\ndata: x\n\n", [SSE(b"", b"x")], id="other fields"),
        pytest.param(b"data\n\n", [SSE(b"", b"")], id="a field without a colon"),
        pytest.param(b"data: x", [SSE(b"", b"x")], id="unfinished"),
        pytest.param(b"data: x\n", [SSE(b"", b"x")], id="no blank line"),
        pytest.param(b"data: x\r", [SSE(b"", b"x")], id="a last carriage return"),
        pytest.param(b"\n\n\ndata: x\n\n\n\n", [SSE(b"", b"x")], id="blank lines"),
        pytest.param(b"\xef\xbb", [], id="half a mark"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_sse_shapes(body: bytes, wanted: list[SSE]) -> None:
    assert read([body]) == wanted
    assert read([bytes([byte]) for byte in body]) == wanted


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("body", [b"data: " + b"x" * 200, b"data: " + b"x" * 60 + b"\ndata: " + b"y" * 60, b"x" * 200])
def test_sse_events_are_bounded(body: bytes, size: int) -> None:
    with pytest.raises(Broken):
        feed_all(SSEReader(limit=100), body, size)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=6), st.booleans(), st.lists(st.integers(0, 10_000), max_size=8))
def test_lines_cut_anywhere(texts: list[str], ended: bool, cuts: list[int]) -> None:
    body = "\n".join(texts).encode() + (b"\n" if ended else b"")
    wanted = [line for line in body.split(b"\n") if line.strip()]
    for pieces in ([body], [bytes([byte]) for byte in body], cut(body, cuts)):
        reader = LineReader()
        assert [line for piece in pieces for line in reader.feed(piece)] + reader.close() == wanted


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_are_bounded(size: int) -> None:
    with pytest.raises(Broken):
        feed_all(LineReader(limit=100), b"x" * 200 + b"\n", size)


@given(st.text(max_size=40))
def test_what_we_send_is_one_line_for_every_splitter(text: str) -> None:
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        return
    json_text = orjson.dumps({"text": text})
    safe = line_safe(json_text)
    assert orjson.loads(safe) == {"text": text}
    assert len(safe.decode().splitlines()) == 1
    assert sse(json_text).endswith(b"\n\n")
    assert sse(json_text, b"x").startswith(b"event: x\ndata: ")
    assert read([sse(json_text)]) == [SSE(b"", safe)]
    assert ndjson([json_text, json_text]).decode().splitlines() == [safe.decode()] * 2
