"""The least an ASGI application can do: read the body, answer fixed bytes. The floor of the server half of a gateway.

Run by uvicorn with httptools and uvloop as the row `uvicorn`; it calls no upstream.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from tests.bench.upstream import WHOLE

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(WHOLE)).encode())],
}
_BODY = {"type": "http.response.body", "body": WHOLE}


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send(_START)
    await send(_BODY)
