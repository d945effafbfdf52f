"""Plain ASGI in a few functions: read a bounded body, answer JSON, answer an error in the caller's dialect."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import orjson

from providers.errors import InternalError, LimitReached, MethodNotAllowed, SwitchyardError, TooLarge, UnsupportedMedia
from providers.wire import Wire

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"


class ClientGone(Exception):
    """The client left before its request was complete."""


def header(headers: Headers, name: bytes) -> str | None:
    """The first value of a header, None when absent. `name` is lower case."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The request's body, at most `limit` bytes: a longer one is refused before it is read.

    Raises TooLarge, UnsupportedMedia (compressed or multipart bodies), ClientGone.
    """
    for key, value in headers:
        if key == b"content-length":
            if value.isdigit() and int(value) > limit:
                raise TooLarge(f"the body is larger than {limit} bytes, the most that this router takes")
        elif key == b"content-encoding":
            if value.strip().lower() not in (b"identity", b""):
                raise UnsupportedMedia("compressed request bodies are not taken: send the JSON as it is")
        elif key == b"content-type" and value[:10].lower() == b"multipart/":
            raise UnsupportedMedia("send a JSON object, not a multipart form")
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise TooLarge(f"the body is larger than {limit} bytes, the most that this router takes")
        return body
    parts = [body]
    size = len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise TooLarge(f"the body is larger than {limit} bytes, the most that this router takes")
    return b"".join(parts)


async def reply(
    send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def reply_json(
    send: Send, status: int, value: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    await reply(send, status, orjson.dumps(value), JSON, headers)


def require(method: str, *allowed: str) -> None:
    """Raises MethodNotAllowed."""
    if method not in allowed:
        raise MethodNotAllowed(f"this path takes {' and '.join(allowed)}, not {method}", ", ".join(allowed))


def internal_error(log: logging.Logger, request_id: str, bug: Exception) -> InternalError:
    """A clean 500 for a bug of ours, whose traceback goes to the log."""
    log.error("request %s failed inside the router", request_id, exc_info=bug)
    return InternalError(f"the router failed on this request; its id is {request_id}")


async def reply_error(
    send: Send, wire: Wire, error: SwitchyardError, request_id: str, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """An error answer in the wire's dialect, with what a client's retry logic reads."""
    extra = [(b"x-request-id", request_id.encode()), *headers]
    if error.retry_after is not None and error.retry_after > 0:
        extra.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
    if error.should_retry is not None:
        extra.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if isinstance(error, LimitReached):
        extra += error.headers
    if isinstance(error, MethodNotAllowed):
        extra.append((b"allow", error.allow.encode("latin-1")))
    if isinstance(error, (TooLarge, UnsupportedMedia)):
        # The rest of the body is not read.
        extra.append((b"connection", b"close"))
    await reply(send, error.status, wire.write_error(error, request_id), JSON, extra)
