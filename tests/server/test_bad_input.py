"""Bodies that are no call: a clear 4xx in the client's dialect, fast, and the next request is fine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulators.client import CLIENTS, OLLAMA, OPENAI, Client, ClientDialect, Reply, replies
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator

SECONDS = 1.0
"""Upper bound for the processor time of a refusal, in which nobody else is served; 100 ms is what it should take, and
what it takes on an idle machine."""
SOON = 10.0
"""Upper bound until it is there, also on a busy machine."""
DIALECTS = pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)


@pytest.fixture(autouse=True)
def _the_next_request_is_fine(router: RouterProcess, client: Client) -> Any:
    before = router.worked()
    yield
    worked = router.worked() - before
    print(f"{worked:.2f} s of work")
    assert worked < SECONDS
    assert client.ask(OPENAI, "chat", stream=False).status == 200


def post(client: Client, dialect: ClientDialect, body: bytes, **headers: str) -> Reply:
    reply = client.request("POST", dialect.path, body, {name.replace("_", "-"): text for name, text in headers.items()})
    print(f"{reply.status} in {reply.seconds * 1000:.1f} ms")
    assert reply.seconds < SOON
    return reply


def whole(**fields: Any) -> bytes:
    call = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "stream": False}
    return json.dumps(call | fields).encode()


def nested(depth: int) -> bytes:
    return whole(stream="<>").replace(b'"<>"', b"[" * depth + b"]" * depth)


NOT_JSON = {
    "empty": b"",
    "spaces": b"  \n ",
    "words": b"hello",
    "half": b'{"model": "chat", "mess',
    "array": b"[1, 2]",
    "text": b'"chat"',
    "null": b"null",
    "number": b"17",
    "trailing comma": b'{"model": "chat",}',
    "two values": b'{"model": "chat"} {"model": "chat"}',
    "comment": b'{"model": "chat" /* it */}',
    "NaN": whole(temperature="<>").replace(b'"<>"', b"NaN"),
    "Infinity": whole(temperature="<>").replace(b'"<>"', b"-Infinity"),
    "1e999": whole(temperature="<>").replace(b'"<>"', b"1e999"),
    "duplicate model": b'{"model": "chat", "model": "other", "messages": []}',
    "duplicate inside": b'{"model": "chat", "messages": [{"role": "user", "role": "system", "content": "x"}]}',
    "bad UTF-8": b'{"model": "chat", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "overlong UTF-8": b'{"model": "chat", "messages": [{"role": "user", "content": "\xc0\xaf"}]}',
    "cut UTF-8": b'{"model": "chat", "messages": [{"role": "user", "content": "\xe4\xbd"}]}',
    "UTF-16": whole().decode().encode("utf-16"),
    "lone surrogate": b'{"model": "chat", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "raw control character": b'{"model": "ch\x00at", "messages": []}',
    "depth 70": nested(70),
    "depth 1,100": nested(1_100),
    "depth 100,000": nested(100_000),
    "depth 1,000,000": nested(1_000_000),
    "depth 1,000,000, never closed": b'{"a":' * 1_000_000,
}


@DIALECTS
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_not_json(client: Client, dialect: ClientDialect, body: bytes) -> None:
    reply = post(client, dialect, body)
    assert reply.status == 400, reply
    message = dialect.error_of(reply)
    assert any(word in message for word in ("JSON", "body")), message
    assert len(message) < 300


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    # what: (fields, the field that is named)
    "model is a number": ({"model": 1}, "model"),
    "model is null": ({"model": None}, "model"),
    "model is empty": ({"model": ""}, "model"),
    "model is a list": ({"model": ["chat"]}, "model"),
    "messages is text": ({"messages": "Hello"}, "messages"),
    "messages is an object": ({"messages": {"role": "user"}}, "messages"),
    "a message is text": ({"messages": ["Hello"]}, "messages"),
    "a role is a number": ({"messages": [{"role": 1, "content": "x"}]}, "role"),
    "content is a number": ({"messages": [{"role": "user", "content": 5}]}, "content"),
    "stream is text": ({"stream": "yes"}, "stream"),
    "tools is text": ({"tools": "all"}, "tools"),
    "a tool is a number": ({"tools": [1]}, "tools"),
}
WRONG_OPENAI: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages is null": ({"messages": None}, "messages"),
    "temperature is text": ({"temperature": "hot"}, "temperature"),
    "max_tokens is negative": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens is true": ({"max_tokens": True}, "max_tokens"),
    "n is enormous": ({"n": 1_000_000}, "n"),
    "n is zero": ({"n": 0}, "n"),
    "stop is a number": ({"stop": 3}, "stop"),
    "an unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
    "an unknown part": ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "content"),
    "response_format is text": ({"response_format": "json"}, "response_format"),
    "tool_choice names nothing": ({"tool_choice": {"type": "function"}}, "tool_choice"),
    "stream_options is text": ({"stream": True, "stream_options": "usage"}, "stream_options"),
    "logit_bias is a list": ({"logit_bias": [1]}, "logit_bias"),
}


@DIALECTS
@pytest.mark.parametrize(("fields", "named"), WRONG.values(), ids=WRONG)
def test_wrong_types(client: Client, dialect: ClientDialect, fields: dict[str, Any], named: str) -> None:
    reply = post(client, dialect, whole(**fields))
    assert reply.status == 400, reply
    assert named in reply.body.decode()
    assert dialect.error_of(reply)


@pytest.mark.parametrize(("fields", "named"), WRONG_OPENAI.values(), ids=WRONG_OPENAI)
def test_wrong_values(client: Client, fields: dict[str, Any], named: str) -> None:
    reply = post(client, OPENAI, whole(**fields))
    assert reply.status == 400, reply
    assert named in (reply.json["error"]["param"] or "") + reply.json["error"]["message"]


LARGE = {
    "100,000 messages": {"messages": [{"role": "user", "content": "x"}] * 100_000},
    "10,000 tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}] * 10_000},
    "100,000 biases": {"logit_bias": {str(number): 1 for number in range(100_000)}},
    "100,000 stops": {"stop": ["x"] * 100_000},
}


@pytest.mark.parametrize("fields", LARGE.values(), ids=LARGE)
def test_enormous_lists_end_soon(client: Client, fields: dict[str, Any]) -> None:
    """Refused or passed on, but never a burden on the others."""
    assert post(client, OPENAI, whole(**fields)).status in (200, 400)


@DIALECTS
def test_an_unknown_model(client: Client, dialect: ClientDialect) -> None:
    reply = post(client, dialect, whole(model="chatt"))
    assert reply.status == 404
    message = dialect.error_of(reply)
    assert "'chatt' not found" in message
    assert "chat" in message.replace("chatt", ""), "the nearest name is told"
    if dialect is OPENAI:
        assert reply.json["error"]["code"] == "model_not_found"


@DIALECTS
@pytest.mark.parametrize(
    "model",
    ["a\r\nx-injected: 1", "a\nb", "a\0b", "a\u2028b", "\x1b[31mred", "x" * 10_000, "../../etc/passwd", "{0}%s", "*"],
)
def test_strange_model_names(
    router: RouterProcess, client: Client, cloud: Simulator, dialect: ClientDialect, model: str
) -> None:
    """Inert everywhere: in the answer's headers, upstream, in the log."""
    before = len(cloud.requests)
    for name in (model, f"cloud/{model}"):
        reply = post(client, dialect, whole(model=name))
        assert reply.status in (200, 400, 404), reply
        assert "x-injected" not in reply.headers
        assert len(reply.body) < 5000 or reply.status == 200
    for request in cloud.requests[before:]:
        assert "x-injected" not in request.headers
        assert request.json["model"] == model
    assert not [line for line in router.err if "x-injected: 1" in line and not line.startswith("{")]
    assert all("\x1b" not in line for line in router.err)


KEYS = {
    "none": {},
    "empty": {"authorization": ""},
    "no word": {"authorization": "Bearer"},
    "Basic": {"authorization": "Basic dXNlcjpwYXNz"},
    "not ours": {"authorization": "Bearer sk-proj-abcdefghijklmnopqrstuvwxyz"},
    "10 KB": {"authorization": "Bearer " + "x" * 10_000},
    "glob": {"authorization": "Bearer *"},
    "quote": {"authorization": "Bearer ' OR 1=1 --"},
    "two different": {"authorization": "Bearer sk-a", "x-api-key": "sk-b"},
}


@DIALECTS
@pytest.mark.parametrize("headers", KEYS.values(), ids=KEYS)
def test_a_missing_or_wrong_key(client: Client, dialect: ClientDialect, headers: dict[str, str]) -> None:
    reply = client.request("POST", dialect.path, whole(), headers, key="")
    assert reply.status == 401, reply
    assert dialect.error_of(reply)
    for text in headers.values():
        secret = text.rpartition(" ")[2]
        assert len(secret) < 7 or secret not in reply.body.decode()
    assert reply.seconds < SOON


@DIALECTS
def test_a_key_that_was_ours_but_for_one_letter(client: Client, dialect: ClientDialect) -> None:
    for place in (-1, -10, 10):
        letters = list(client.key)
        letters[place] = "A" if letters[place] != "A" else "B"
        assert client.request("POST", dialect.path, whole(), key="".join(letters)).status == 401


def test_every_place_for_a_key(client: Client) -> None:
    for headers in (
        {"x-api-key": client.key},
        {"x-goog-api-key": client.key},
        {"authorization": f"bearer {client.key}"},
    ):
        assert client.request("POST", OPENAI.path, whole(), headers, key="").status == 200
    assert client.request("POST", f"{OPENAI.path}?key={client.key}", whole(), key="").status == 200


# --- size and form of bodies


@pytest.fixture(scope="module")
def small(module_serve: Callable[..., RouterProcess], cloud: Simulator, local: Simulator) -> RouterProcess:
    """A router that takes bodies of at most 64 KB."""
    config = providers(cloud.url, local.url)
    return module_serve({**config, "server": {"limits": {"max_body_bytes": 65536}}}, UNHURRIED)


@DIALECTS
def test_a_body_too_large(small: RouterProcess, dialect: ClientDialect) -> None:
    client = Client(small.port, small.key)
    reply = client.request("POST", dialect.path, whole(user="x" * 65536))
    assert reply.status == 413, reply
    assert "65536" in dialect.error_of(reply)
    assert client.ask(dialect, "chat", stream=False).status == 200


@DIALECTS
def test_a_body_too_large_in_chunks(small: RouterProcess, dialect: ClientDialect) -> None:
    """Refused while it comes: not read to its end."""
    client = Client(small.port, small.key)
    head = f"POST {dialect.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {small.key}\r\n"
    data = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"4000\r\n" + b"x" * 16384 + b"\r\n"
    (reply,) = replies(client.raw(data + (b"4000\r\n" + b"y" * 16384 + b"\r\n") * 40))
    assert reply.status == 413
    assert dialect.error_of(reply)
    assert client.ask(dialect, "chat", stream=False).status == 200


def test_it_is_refused_before_it_comes(small: RouterProcess) -> None:
    """The announced length is enough: nobody waits for 10 GB."""
    client = Client(small.port, small.key)
    head = f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {small.key}\r\n"
    for announced in ("10000000000", "9" * 19, "9" * 30):
        answer = replies(client.raw(f"{head}Content-Length: {announced}\r\n\r\n".encode()))
        assert [reply.status for reply in answer] in ([413], [400]), announced


def test_more_than_announced(small: RouterProcess) -> None:
    """What follows a body of the announced length is another request, and this is none."""
    client = Client(small.port, small.key)
    data = client.post_bytes(OPENAI.path, whole()) + b'{"more": true}' * 10
    first, *rest = replies(client.raw(data))
    assert first.status in (200, 400)
    assert [reply.status for reply in rest] in ([], [400])
    assert client.ask(OPENAI, "chat", stream=False).status == 200


def test_less_than_announced(small: RouterProcess, cloud: Simulator) -> None:
    """A client that announces more than it sends and closes: no call is made of the half."""
    client = Client(small.port, small.key)
    before = len(cloud.requests)
    head = client.post_bytes(OPENAI.path, whole() + b" " * 100)[:-100]
    assert client.raw(head, half_close=True) == b"" or True
    assert len(cloud.requests) == before


@DIALECTS
def test_compressed_and_multipart(client: Client, dialect: ClientDialect) -> None:
    reply = post(client, dialect, gzip.compress(whole()), content_encoding="gzip")
    assert reply.status == 415
    assert "compressed" in dialect.error_of(reply)
    bomb = gzip.compress(bytes(10_000_000))
    assert post(client, dialect, bomb, content_encoding="gzip").status == 415
    form = post(client, dialect, b"--x\r\n\r\n--x--", content_type="multipart/form-data; boundary=x")
    assert form.status == 415
    assert "multipart" in dialect.error_of(form)
    assert post(client, dialect, whole(), content_encoding="identity").status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""]
)
def test_the_content_type_is_not_believed(client: Client, kind: str) -> None:
    """curl -d says form-urlencoded, and its users mean JSON."""
    assert post(client, OPENAI, whole(), content_type=kind).status == 200


def test_what_was_checked_is_what_is_forwarded(client: Client, cloud: Simulator, fresh: Callable[[str], str]) -> None:
    """Escapes, spaces and key order do not smuggle a second meaning upstream."""
    model = fresh("answer")
    body = b'{"mod\\u0065l" : "cloud/%b", "messages":[{"role":"user","content":"Hi"}], "extra": {"model": "x"}}' % (
        model.encode()
    )
    assert post(client, OPENAI, body).status == 200
    (request,) = cloud.asked(model)
    assert request.json["model"] == model
    assert b"\\u0065" not in request.body


def test_odd_names_of_ollama_too(client: Client) -> None:
    assert post(client, OLLAMA, whole(model="cloud/answer:latest")).status in (200, 404)
