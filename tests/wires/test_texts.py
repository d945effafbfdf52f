"""Reading clients' JSON, cleaning providers' texts, knowing media by their first bytes."""

from __future__ import annotations

import base64

import pytest

from providers import media
from providers.errors import InvalidRequest
from providers.jsontext import MAX_DEPTH, read_object
from providers.scrub import LIMIT, clean
from providers.wires.openai.vectors import to_base64, to_floats


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "missing request body"),
        (b"  \n", "missing request body"),
        (b"{", "not valid JSON"),
        (b"[]", "an array"),
        (b'"x"', "a string"),
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"7", "a scalar"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":"\xc0\xaf"}', "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a":1} x', "not valid JSON"),
        (b'{"a":1,"a":2}', "'a' stands twice"),
        (b'{"o":{"model":"x","model":"y"}}', "'model' stands twice"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "deeper than"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than"),
    ],
)
def test_bodies_that_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_object(body)
    assert says in caught.value.message


def test_bodies_that_are_read() -> None:
    assert read_object(b' {"a":[1,{"b":null}],"c":"\\u00e9"} ') == {"a": [1, {"b": None}], "c": "é"}
    deep = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert read_object(deep)
    assert read_object(b'{"a":[' + b"[]," * 200 + b"[]]}"), "wide is not deep"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Incorrect API key provided: sk-proj-abcdefghijkl.", "Incorrect API key provided: [redacted]."),
        ("Authorization: Bearer abc.def-ghi_jkl12345", "Authorization: [redacted]"),
        ("key AIzaSyA1234567890abcdef is bad", "key [redacted] is bad"),
        ("GET /v1?key=secret123&x=1", "GET /v1[redacted]&x=1"),
        ("ark 0d2f6a52-7a55-9b1f-b3a4-0c1f5a0b9c11", "ark [redacted]"),
        ("<b>bold</b> move", "bold move"),
        ("a\r\nset-cookie: x\x00\u2028b", "a set-cookie: x b"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_clean(text: str, wanted: str) -> None:
    assert clean(text) == wanted


def test_clean_is_bounded() -> None:
    assert len(clean("x" * 100_000)) == LIMIT
    assert "sk-" not in clean("y" * (LIMIT - 5) + " sk-abcdefghijklmnop")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0........", "image/jpeg"),
        (b"GIF89a......", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBP....", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVE....", "audio/wav"),
        (b"%PDF-1.7....", "application/pdf"),
        (b"nothing known", None),
    ],
)
def test_sniff(data: bytes, wanted: str | None) -> None:
    text = base64.b64encode(data).decode()
    assert media.sniff(text) == wanted
    assert media.split_data_uri(media.data_uri(text)) == (wanted or "image/jpeg", text)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "data:",
        "data:image/png",
        "data:image/png,x",
        "data:image/png;base64,",
        "data:;base64,@@@@",
        "https://x",
        "data:;base64,é",
    ],
)
def test_no_data_uri(uri: str) -> None:
    assert media.split_data_uri(uri) is None


def test_sniff_what_is_no_base64() -> None:
    assert media.sniff("@@@@") is None
    assert media.sniff("") is None


def test_vectors_are_float32_little_endian() -> None:
    assert to_base64([0.25, -0.5, 0.75, 1.0]) == "AACAPgAAAL8AAEA/AACAPw=="
    assert to_floats("AACAPgAAAL8AAEA/AACAPw==") == [0.25, -0.5, 0.75, 1.0]
    for wrong in ("", "AAA", "AACAPg", "@@@@", "AACA"):
        with pytest.raises(ValueError, match="not"):
            to_floats(wrong)
