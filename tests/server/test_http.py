"""HTTP that no client sends: limits, smuggling, deadlines for receiving. One clear answer, then the connection ends."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.simulators.client import OPENAI, Client, drain, replies
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator

BODY = json.dumps(OPENAI.body("chat", stream=False)).encode()
SOON = 5.0
"""Seconds until a refused connection is closed, also on a busy machine."""


@pytest.fixture(scope="module")
def strict(module_serve: Callable[..., RouterProcess], cloud: Simulator, local: Simulator) -> RouterProcess:
    """A router that waits one second for headers and one for a body."""
    config = providers(cloud.url, local.url)
    return module_serve({**config, "server": {"limits": {"header_seconds": 1, "body_seconds": 1}}}, UNHURRIED)


def assert_fine(client: Client) -> None:
    assert client.ask(OPENAI, "chat", stream=False).status == 200


def refused(client: Client, data: bytes, *statuses: int) -> None:
    """Exactly one answer, one of the statuses, as JSON; then the connection closes, soon."""
    began = time.monotonic()
    said = client.raw(data)
    took = time.monotonic() - began
    print(f"{took * 1000:.1f} ms")
    assert took < SOON
    (reply,) = replies(said)
    assert reply.status in statuses, reply
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json["error"]) >= {"message", "type", "code"}
    assert reply.headers["connection"] == "close"
    assert_fine(client)


def head(client: Client, *lines: str, path: str = OPENAI.path, host: bool = True) -> str:
    first = [f"POST {path} HTTP/1.1", *(["Host: router"] if host else []), f"Authorization: Bearer {client.key}"]
    return "\r\n".join([*first, *lines]) + "\r\n\r\n"


LENGTH = f"Content-Length: {len(BODY)}"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([f"X-Filler: {'x' * 100_000}"], 431),
        ([f"X-Filler-{number}: y" for number in range(200)], 431),
        ([f"X-Filler-{number}: y" for number in range(10_000)], 431),
        ([f"X-Filler-{number}: {'y' * 900}" for number in range(50)], 431),
    ],
    ids=["100 KB header", "200 headers", "10,000 headers", "45 KB in 50 headers"],
)
def test_headers_too_large(client: Client, lines: list[str], status: int) -> None:
    refused(client, head(client, *lines, LENGTH).encode() + BODY, status)


def test_a_header_of_20_mb(router: RouterProcess, client: Client) -> None:
    before = router.rss()
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as link:
        sent = 0
        try:
            link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Filler: ")
            for _ in range(320):
                link.sendall(b"x" * 65536)
                sent += 65536
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 8_000_000, "it was read to its end"
    assert router.rss() - before < 8
    assert_fine(client)


def test_a_url_too_long(client: Client) -> None:
    refused(client, head(client, LENGTH, path="/v1/" + "x" * 9000).encode() + BODY, 414)
    refused(client, head(client, LENGTH, path="/v1/models?" + "x" * 1_000_000).encode() + BODY, 414, 431)


NO_HTTP = {
    "no host": (f"POST {OPENAI.path} HTTP/1.1\r\n{LENGTH}\r\n\r\n", BODY),
    "two hosts": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: a\r\nHost: b\r\n{LENGTH}\r\n\r\n", BODY),
    "garbage": ("hello, are you there?\r\n\r\n", b""),
    "TLS on the plain port": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b""),
    "HTTP/9": ("GET / HTTP/9.9\r\nHost: x\r\n\r\n", b""),
    "a space in the path": (f"POST /v1/chat completions HTTP/1.1\r\nHost: x\r\n{LENGTH}\r\n\r\n", BODY),
    "NUL in a header": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n{LENGTH}\r\n\r\n", BODY),
    "a header without a name": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\n: b\r\n{LENGTH}\r\n\r\n", BODY),
    "a space before the colon": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nX-A : b\r\n{LENGTH}\r\n\r\n", BODY),
    "obs-fold": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\n{LENGTH}\r\n\r\n", BODY),
    "bare LF": (f"POST {OPENAI.path} HTTP/1.1\nHost: x\n{LENGTH}\n\n", BODY),
    "negative length": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b""),
    "signed length": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", b"12345"),
    "hex length": (f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n", b"12345"),
    "two lengths": (
        f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"12345",
    ),
}


@pytest.mark.parametrize(("text", "body"), NO_HTTP.values(), ids=NO_HTTP)
def test_not_http(client: Client, text: str, body: bytes) -> None:
    refused(client, text.encode("latin-1") + body, 400)


SMUGGLED = "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
SMUGGLING = {
    "CL and TE": ["Content-Length: 4", "Transfer-Encoding: chunked"],
    "TE and CL": ["Transfer-Encoding: chunked", "Content-Length: 4"],
    "TE twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    "TE list": ["Transfer-Encoding: chunked, identity"],
    "TE unknown": ["Transfer-Encoding: xchunked"],
    "TE with a tab": ["Transfer-Encoding:\tchunked\x0b"],
    "TE with a space": ["Transfer-Encoding : chunked"],
    "TE in quotes": ['Transfer-Encoding: "chunked"'],
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING)
def test_smuggling(client: Client, lines: list[str]) -> None:
    """One request, one answer: what hides behind it is never served."""
    hidden = SMUGGLED.format(key=client.key).encode()
    data = head(client, *lines).encode("latin-1") + b"0\r\n\r\n" + hidden
    refused(client, data, 400)


@pytest.mark.parametrize(
    "body",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5;a\n\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"-5\r\nhello",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\nhello",
    ],
)
def test_bad_chunks(client: Client, body: bytes) -> None:
    """A chunk that is none: at most one answer, the connection closes, nothing behind it is served."""
    hidden = SMUGGLED.format(key=client.key).encode()
    data = head(client, "Transfer-Encoding: chunked").encode() + body + hidden
    said = replies(client.raw(data))
    assert [reply.status for reply in said] in ([400], []), said
    assert_fine(client)


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    data = client.post_bytes(OPENAI.path, BODY) + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    first, second = replies(client.raw(data))
    assert (first.status, second.status) == (200, 200)
    assert "choices" in first.json
    assert "version" in second.json


@pytest.mark.parametrize(
    "path", ["http://router/v1/chat/completions", "//v1/chat/completions", "/v1/%63hat/completions"]
)
def test_other_spellings_of_a_path_need_the_key_too(client: Client, path: str) -> None:
    """Whatever a spelling leads to, it leads nowhere without a key."""
    data = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{LENGTH}\r\n\r\n".encode() + BODY
    (reply,) = replies(client.raw(data))
    assert reply.status in (400, 401, 404)
    with_key = head(client, LENGTH, "Connection: close", path=path).encode() + BODY
    (reply,) = replies(client.raw(with_key))
    assert reply.status in (200, 400, 404)


# --- deadlines


def end_of(
    client: Client, data: bytes, *, drip: bytes = b"", every: float = 0.2, most: float = 15.0
) -> tuple[float, bytes]:
    """Seconds until the router ended the connection, and what it said. `drip` is sent on a byte at a time."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", client.port), timeout=every) as link:
        link.sendall(data)
        said = b""
        while time.monotonic() - began < most:
            try:
                part = link.recv(65536)
            except TimeoutError:
                try:
                    link.sendall(drip[:1])
                except (ConnectionResetError, BrokenPipeError):
                    break
                drip = drip[1:]
                continue
            except ConnectionResetError:
                break
            said += part
            if not part:
                break
        else:
            raise AssertionError("the connection was still open")
        return time.monotonic() - began, said


def test_slow_requests(strict: RouterProcess) -> None:
    """A deadline for the whole header and for the whole body, not for each byte of them."""
    client = Client(strict.port, strict.key)
    start = client.post_bytes(OPENAI.path, BODY)
    with ThreadPoolExecutor(3) as pool:
        nothing, half_head, half_body = pool.map(
            lambda parts: end_of(client, parts[0], drip=parts[1]),
            [(b"", b""), (start[:20], start[20:]), (start[:-40], start[-40:])],
        )
    for seconds, _ in (nothing, half_head, half_body):
        assert 0.8 < seconds < 10
    assert nothing[1] == b""
    (told,) = replies(half_head[1])
    assert told.status == 408
    assert told.json["error"]["code"] == "request_timeout"
    assert half_body[1] == b"" or replies(half_body[1])[0].status == 408
    assert_fine(client)


def test_a_hundred_silent_connections_disturb_nobody(strict: RouterProcess) -> None:
    client = Client(strict.port, strict.key)
    links = [socket.create_connection(("127.0.0.1", strict.port), timeout=60) for _ in range(100)]
    try:
        assert_fine(client)
        for link in links:
            assert drain(link) == b""
    finally:
        for link in links:
            link.close()


def test_an_idle_connection_between_requests_is_kept(strict: RouterProcess) -> None:
    """The deadline for headers starts with a request, not with the end of the one before it."""
    with socket.create_connection(("127.0.0.1", strict.port), timeout=60) as link:
        for pause in (2.1, 0):
            link.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert link.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(pause)


def test_a_call_may_take_longer_than_the_deadlines_for_receiving(
    strict: RouterProcess, fresh: Callable[[str], str]
) -> None:
    client = Client(strict.port, strict.key)

    reply = client.ask(OPENAI, f"cloud/{fresh('slower')}", stream=True)
    assert OPENAI.read(reply, stream=True).complete
    assert reply.seconds > 1


@pytest.fixture(autouse=True, scope="module")
def _slower(cloud: Simulator) -> None:
    from tests.simulators.scripts import PIECES, say

    cloud.scripts["slower"] = lambda x: say(x, PIECES, pause=0.35)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_http_1_0_is_never_sent_chunks(client: Client, stream: bool) -> None:
    """RFC 9112, 6.1. nginx speaks 1.0 to what is behind it unless told otherwise."""
    body = json.dumps(OPENAI.body("chat", stream=stream)).encode()
    said = client.raw(client.post_bytes(OPENAI.path, body).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
    head, _, rest = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    if stream:
        lines = [line for line in rest.split(b"\n\n") if line]
        assert all(line.startswith(b"data: ") for line in lines), rest
        assert lines[-1] == b"data: [DONE]"
    else:
        assert json.loads(rest)["object"] == "chat.completion"
