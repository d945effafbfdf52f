"""Host names to addresses, bounded and remembered."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

RESOLVE_SECONDS = 30.0
"""How long looked-up addresses are used; after that they serve only when the resolver fails."""


class Resolver:
    """Name look-ups in threads of their own, so that a hanging resolver starves nobody; last good addresses survive a
    failure."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")
        self._known: dict[tuple[str, int], tuple[float, list[tuple[int, str]]]] = {}

    async def addresses(self, host: str, port: int) -> list[tuple[int, str]]:
        """(family, numeric address) pairs. Raises OSError."""
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, host)]
        loop = asyncio.get_running_loop()
        known = self._known.get((host, port))
        if known is not None and known[0] > loop.time():
            return known[1]
        try:
            infos = await loop.run_in_executor(
                self._pool, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except OSError:
            if known is None:
                raise
            return known[1]
        found = [(int(family), str(address[0])) for family, _, _, _, address in infos]
        # IPv4 first: a machine without IPv6 routes answers at once, and local servers mostly listen there.
        found.sort(key=lambda pair: pair[0] != socket.AF_INET)
        self._known[host, port] = (loop.time() + RESOLVE_SECONDS, found)
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
