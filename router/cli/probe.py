"""Reaching providers from the command line, through the transport that calls take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.provider import Provider

SECONDS = 10.0
MAX_LIST_BYTES = 8 * 1024 * 1024


def probe_all(providers: Sequence[Provider]) -> dict[str, tuple[bool, str]]:
    """Per provider whether it answered as it should, and what it said. All at once; takes `SECONDS` at most."""
    return asyncio.run(_probe_all(providers))


async def _probe_all(providers: Sequence[Provider]) -> dict[str, tuple[bool, str]]:
    results = await asyncio.gather(*(probe(provider) for provider in providers))
    return {provider.name: result for provider, result in zip(providers, results, strict=True)}


async def probe(provider: Provider, seconds: float = SECONDS) -> tuple[bool, str]:
    """One provider: its model list where it has one, else any answer of its server."""
    from providers.errors import SwitchyardError
    from providers.vendor import UpstreamRequest
    from router.transport import HttpTransport, Route

    if provider.vendor.transport != "http":
        return True, f"reached through {provider.vendor.transport}, which is not tried here"
    if not provider.base_url:
        return True, "runs inside the router"
    asked = provider.vendor.models_request(provider.api_key)
    request = asked or UpstreamRequest(method="GET", path="/", headers={}, body=b"")
    request = UpstreamRequest(request.method, request.path, {**request.headers, **provider.headers}, request.body)
    route = Route(provider.base_url, provider.timeouts.connect, provider.proxy, provider.ca_bundle)
    transport = HttpTransport()
    try:
        async with asyncio.timeout(seconds):
            response = await transport.open(route, request)
            body = await response.read_all(MAX_LIST_BYTES)
        if asked is None:
            return True, f"{provider.base_url} answers (status {response.status})"
        if response.status != 200:
            error = provider.vendor.classify(response.status, response.headers, body)
            return False, f"status {response.status}: {error.message}"
        return True, f"{len(provider.vendor.read_models(body))} models at {provider.base_url}"
    except TimeoutError:
        return False, f"no answer from {provider.base_url} within {seconds:g} seconds"
    except SwitchyardError as failure:
        return False, failure.message
    finally:
        await transport.close()
