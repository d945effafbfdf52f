"""The ASGI side of the Ollama door: asks `ollama_door` what to say, checks the key, passes management on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from providers.errors import NotAllowed, TooLarge, UpstreamError
from providers.jsontext import read_object
from providers.vendor import UpstreamRequest
from router import ollama_door as door
from router.http import ClientGone, Receive, Scope, Send, read_body, reply
from router.routing import Provider, Rights, visible
from router.transport import Response, Route

if TYPE_CHECKING:
    from router.runtime import Runtime

MANAGEMENT_SECONDS = 30.0
"""How long connecting to the local Ollama may take; a pull itself may take hours."""
PS_SECONDS = 2.0
MAX_PS = 1024 * 1024


class OllamaRoutes:
    """Everything of Ollama's API but the four inference routes."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    paths = tuple(door.ROUTES)

    async def handle(self, path: str, scope: Scope, receive: Receive, send: Send, rights: Rights | None) -> None:
        """Answer a path of this door. `rights` are the caller's; None only for public operations."""
        found = door.find(scope["method"], path)
        if isinstance(found, door.Answer):
            await self._send(send, found)
            return
        if found.op == "root":
            await self._send(send, door.headless(found, door.root()))
        elif found.op == "version":
            await self._send(send, door.headless(found, door.version()))
        else:
            if rights is None:
                raise NotAllowed("this needs a key")
            await self._keyed(found, scope, receive, send, rights)

    async def _keyed(self, found: door.Found, scope: Scope, receive: Receive, send: Send, rights: Rights) -> None:
        snapshot = self._runtime.snapshot
        entries = visible(snapshot, rights)
        since = self._runtime.config_loaded_at
        if found.op == "tags":
            await self._send(send, door.headless(found, door.tags(entries, since)))
        elif found.op == "ps":
            await self._send(send, door.ps(entries, await self._loaded()))
        elif found.op == "status":
            await self._send(send, door.status())
        elif found.op == "show":
            body = read_object(await read_body(scope["headers"], receive, door.MAX_MANAGEMENT_BODY))
            await self._send(send, door.show(snapshot, entries, body, since, rights))
        else:
            given = b"" if found.op == "blob" else await read_body(scope["headers"], receive, door.MAX_MANAGEMENT_BODY)
            body = read_object(given) if found.op != "blob" else {}
            managed = door.manage(found, body, snapshot, entries, rights)
            if isinstance(managed, door.Answer):
                await self._send(send, managed)
            else:
                await self._forward(managed, scope, receive, send)

    async def _loaded(self) -> tuple[door.Loaded, ...]:
        """What is in memory: the local Ollama's own word, and the demo model while it runs."""
        runtime = self._runtime
        loaded: list[door.Loaded] = []
        provider = door.local_ollama(runtime.snapshot)
        if provider is not None:
            request = UpstreamRequest("GET", "/api/ps", {}, b"")
            try:
                response = await runtime.http.open(_route(provider, PS_SECONDS), request)
                try:
                    if response.status == 200:
                        loaded += door.read_ps(await response.read_all(MAX_PS))
                    response.finish()
                finally:
                    response.abort()
            except UpstreamError:
                pass  # an Ollama that is down has nothing loaded
        for name, model in runtime.local_models.items():
            if model.state.state == "ready":
                loaded += [door.Loaded(entry.id) for entry in runtime.snapshot.listed if entry.providers == (name,)]
        return tuple(loaded)

    async def _forward(self, forward: door.Forward, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a management request on, both ways as it comes."""
        body = _pieces(receive, forward.max_body) if forward.stream_body else None
        response: Response = await self._runtime.http.open(
            _route(forward.provider, MANAGEMENT_SECONDS), forward.request, body=body
        )
        try:
            kept = ("content-type", "content-length")
            headers = [(name.encode(), response.headers[name].encode()) for name in kept if name in response.headers]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            while data := await response.read():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            response.finish()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            response.abort()

    async def _send(self, send: Send, answer: door.Answer) -> None:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
        if answer.body or not answer.length:
            await reply(send, answer.status, answer.body, answer.content_type.encode(), headers)
            return
        # HEAD: the length of the body it does not get.
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", b"%d" % answer.length),
            *headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _route(provider: Provider, connect: float) -> Route:
    return Route(provider.base_url, connect, provider.proxy, provider.ca_bundle)


async def _pieces(receive: Receive, limit: int) -> AsyncIterator[bytes]:
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise TooLarge(f"a blob may be at most {limit} bytes")
        yield piece
        if not message.get("more_body", False):
            return
