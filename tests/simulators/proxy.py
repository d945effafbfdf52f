"""A small HTTP proxy on a real socket: CONNECT tunnels and absolute-form requests, with Basic credentials."""

from __future__ import annotations

import asyncio
import threading
from base64 import b64encode
from urllib.parse import urlsplit


class Proxy:
    """`heads` holds the head of each request that came, as text."""

    def __init__(self, user: str = "", password: str = "") -> None:
        self.heads: list[str] = []
        self.port = 0
        self.refuse_with: int | None = None
        """Answer every request with this status."""
        self._wanted = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}" if user else None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")
        self._ready = threading.Event()

    def __enter__(self) -> Proxy:
        self._thread.start()
        if not self._ready.wait(60):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda _, context: None)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of the two sides has left: so does the other
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        given = next(
            (line[21:] for line in head.split("\r\n") if line.lower().startswith("proxy-authorization: ")), None
        )
        status = 407 if self._wanted is not None and given != self._wanted else self.refuse_with
        if status is not None:
            writer.write(f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
        else:
            host, _, port = urlsplit(target).netloc.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\nvia: simulated\r\n\r\n")
            else:
                parts = urlsplit(target)
                far_writer.write(
                    head.replace(target, parts.path + (f"?{parts.query}" if parts.query else ""), 1).encode()
                )
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            far_writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    finally:
        target.close()
