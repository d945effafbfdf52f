"""A browser's side of the pages, without a browser: cookies are kept, forms say where they come from, streams are read
event by event."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlencode

SECONDS = 40.0
"""Patience with a busy machine; nothing waits for it to pass."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Header names are lower case; of `set-cookie` all values, each with its attributes."""

    status: int
    headers: Mapping[str, str]
    set_cookies: tuple[str, ...]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Event(NamedTuple):
    name: str
    data: str


@dataclass
class Site:
    """One visitor of a router's pages."""

    port: int
    always: Mapping[str, str] = field(default_factory=dict)
    """Headers of all that he sends."""
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, {**self.always, **self._cookie(), **(headers or {})})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        pairs = [(name.lower(), value) for name, value in answer.getheaders()]
        found = tuple(value for name, value in pairs if name == "set-cookie")
        for cookie in found:
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
            if "Max-Age=0" in cookie:
                del self.cookies[name]
        return Answer(answer.status, dict(pairs), found, data)

    def get(self, path: str = "/admin", **headers: str) -> Answer:
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(
        self, path: str, fields: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return self.ask("POST", path, urlencode(fields or {}), {"origin": self.origin} if headers is None else headers)

    def sign_in(self, secret: str) -> Answer:
        return self.post("/admin/sign-in", {"secret": secret})

    def copy(self, port: int | None = None) -> Site:
        return Site(port or self.port, self.always, dict(self.cookies))

    def signed_in(self) -> bool:
        answer = self.get("/admin/overview")
        assert answer.status in (200, 401), answer
        return answer.status == 200

    def _cookie(self) -> dict[str, str]:
        return {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {}

    @contextmanager
    def watch(self) -> Iterator[Stream]:
        """The live tail."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request("GET", "/admin/live", headers={**self.always, **self._cookie()})
            yield Stream(connection.getresponse())
        finally:
            connection.close()


class Stream:
    """Server-sent events as they come."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self._answer = answer

    def events(self, seconds: float = SECONDS) -> Iterator[Event]:
        """Until the stream ends, or that long; comments are left out."""
        name, data = "", []
        end = time.monotonic() + seconds
        for raw in self._answer:
            if time.monotonic() > end:
                return
            line = raw.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            elif not line and name:
                yield Event(name, "\n".join(data))
                name, data = "", []

    def until(self, name: str, text: str = "", seconds: float = SECONDS) -> list[Event]:
        """All events up to the first of that name with `text` in it."""
        seen = []
        for event in self.events(seconds):
            seen.append(event)
            if event.name == name and text in event.data:
                return seen
        raise AssertionError(f"no event {name} with {text!r}: {seen}")
