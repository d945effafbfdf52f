"""What tests ask a router with: the two client dialects over plain HTTP, and raw sockets for what no client would send.

The official SDKs are in tests/clients; here the bytes count.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. Header names are lower case; `seconds` is from the request to the answer's end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says to a client: its text, whether it ended as it should, and the error it brought."""

    text: str = ""
    complete: bool = False
    error: str | None = None
    events: Sequence[Any] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class ClientDialect:
    """How one kind of client asks and understands."""

    name: str
    path: str

    def body(self, model: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello"}], **more}

    def read(self, reply: Reply, *, stream: bool) -> Told:
        return _READERS[self.name](reply.body, stream)

    def error_of(self, reply: Reply) -> str:
        """The message of an error answer, in exactly this dialect's shape."""
        assert reply.headers["content-type"].startswith("application/json"), reply
        found = reply.json
        if self.name == "ollama":
            assert list(found) == ["error"], found
            assert isinstance(found["error"], str), found
            return found["error"]
        assert set(found) == {"error"}, found
        assert {"message", "type", "param", "code"} <= set(found["error"]), found
        return str(found["error"]["message"])


def _read_openai(body: bytes, stream: bool) -> Told:
    if not stream:
        choice = json.loads(body)["choices"][0]
        return Told(choice["message"]["content"], choice["finish_reason"] == "stop")
    text, finished, done = "", False, False
    error: str | None = None
    events: list[Any] = []
    for block in body.decode().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        assert block.startswith("data: "), block
        assert not done, "an event after [DONE]"
        if block == "data: [DONE]":
            done = True
            continue
        event = json.loads(block[6:])
        events.append(event)
        if "error" in event:
            error = str(event["error"]["message"])
            continue
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            finished |= choice["finish_reason"] == "stop"
    return Told(text, finished and done and error is None, error, events)


def _read_ollama(body: bytes, stream: bool) -> Told:
    if not stream:
        found = json.loads(body)
        return Told(found["message"]["content"], found["done"])
    text, done = "", False
    error: str | None = None
    events = [json.loads(line) for line in body.splitlines() if line.strip()]
    for event in events:
        assert not done, "a line after done"
        if "error" in event:
            error = str(event["error"])
            continue
        text += event.get("message", {}).get("content") or ""
        done |= bool(event["done"])
    return Told(text, done and error is None, error, events)


_READERS = {"openai": _read_openai, "ollama": _read_ollama}

OPENAI = ClientDialect("openai", "/v1/chat/completions")
OLLAMA = ClientDialect("ollama", "/api/chat")
CLIENTS = (OPENAI, OLLAMA)


class Client:
    """Asks one router with one key; a connection a request unless `keep` is set."""

    def __init__(self, port: int, key: str, *, seconds: float = 60.0) -> None:
        self.port = port
        self.key = key
        self.seconds = seconds

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        key: str | None = None,
    ) -> Reply:
        """One request and its whole answer. `key` "" sends none."""
        began = time.monotonic()
        with self.open(method, path, body, headers, key=key) as answer:
            data = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, data, time.monotonic() - began)

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        key: str | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer's head; the body is read by the caller, the connection closes at the end of the block."""
        data = json.dumps(body).encode() if isinstance(body, Mapping) else body
        sent = {"content-type": "application/json"} if data is not None else {}
        key = self.key if key is None else key
        if key:
            sent["authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        try:
            connection.request(method, path, data, sent | dict(headers or {}))
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(
        self,
        dialect: ClientDialect,
        model: str,
        *,
        stream: bool,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Reply:
        return self.request("POST", dialect.path, dialect.body(model, stream=stream, **more), headers)

    def listen(
        self,
        dialect: ClientDialect,
        model: str,
        heard: Callable[[], object],
        mark: str,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """A streamed call. `heard` is called when `mark` has come, or at the end of an answer without it."""
        began = time.monotonic()
        with self.open("POST", dialect.path, dialect.body(model, stream=True), headers) as answer:
            data = b""
            while mark.encode() not in data and (part := answer.read1(65536)):
                data += part
            heard()
            data += answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, data, time.monotonic() - began)

    def raw(self, data: bytes, *, seconds: float = 15.0, half_close: bool = False) -> bytes:
        """Send bytes as they are; everything that comes until the router closes or `seconds` pass."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as link:
            try:
                link.sendall(data)
                if half_close:
                    link.shutdown(socket.SHUT_WR)
            except (ConnectionResetError, BrokenPipeError):
                pass  # refused before all was taken: what it said may still be read
            return drain(link)

    def post_bytes(self, path: str, body: bytes, *, key: str | None = None) -> bytes:
        """A well-formed request as bytes, for raw connections."""
        key = self.key if key is None else key
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def drain(link: socket.socket) -> bytes:
    """Everything until the end, a reset or the socket's timeout."""
    parts = []
    try:
        while data := link.recv(65536):
            parts.append(data)
    except (ConnectionResetError, TimeoutError):
        pass
    return b"".join(parts)


def replies(data: bytes) -> list[Reply]:
    """The answers with a content-length in what came over a raw connection."""
    found = []
    while data.startswith(b"HTTP/1.1 "):
        top, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", len(rest)))
        found.append(Reply(int(first.split()[1]), headers, rest[:size], 0.0))
        data = rest[size:]
    return found
