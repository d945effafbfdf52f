"""What local Ollamas have in memory: asked for in the background, for the metrics. Ollama has no metrics of its own.

https://github.com/ollama/ollama/blob/main/docs/api.md#list-running-models
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from providers.errors import SwitchyardError
from providers.vendor import UpstreamRequest
from router.engine import Transport
from router.metric_labels import ModelLabels
from router.ollama_door import Loaded, read_ps
from router.routing import Provider
from router.transport import Route

PACE: Final = 10.0
"""Seconds between two looks."""
ANSWER_SECONDS: Final = 2.0
MAX_ANSWER: Final = 1024 * 1024
"""Bytes."""

_log = logging.getLogger("switchyard.metrics")


class LoadedModels:
    """What was found at the last look. A server that did not answer has no values."""

    def __init__(
        self,
        transport: Transport,
        providers: Callable[[], Sequence[Provider]],
        labels: Callable[[], ModelLabels],
    ) -> None:
        self._transport = transport
        self._providers = providers
        self._labels = labels
        self._found: dict[str, tuple[Loaded, ...]] = {}

    def models(self) -> Mapping[tuple[str, ...], float]:
        """How many models each provider has loaded."""
        return {(name,): float(len(loaded)) for name, loaded in self._found.items()}

    def vram(self) -> Mapping[tuple[str, ...], float]:
        """Bytes of video memory by provider and model; those that nobody has named are one."""
        sums: Counter[tuple[str, ...]] = Counter()
        labels = self._labels()
        for name, loaded in self._found.items():
            for one in loaded:
                sums[name, labels.named(name, one.name)] += max(0, one.size_vram)
        return {where: float(size) for where, size in sums.items()}

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - the next look may do better
                self._found = {}
                _log.exception("asking what is loaded failed")
            await asyncio.sleep(PACE)

    async def look(self) -> None:
        """Ask every local Ollama once."""
        asked = [one for one in self._providers() if one.vendor.name == "ollama" and one.local and one.off is None]
        answers = await asyncio.gather(*map(self._ask, asked))
        self._found = {one.name: answer for one, answer in zip(asked, answers, strict=True) if answer is not None}

    async def _ask(self, provider: Provider) -> tuple[Loaded, ...] | None:
        headers = {"authorization": f"Bearer {provider.api_key}"} if provider.api_key else {}
        request = UpstreamRequest("GET", "/api/ps", {**headers, **provider.headers}, b"")
        route = Route(provider.base_url, provider.timeouts.connect, provider.proxy, provider.ca_bundle)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._transport.open(route, request)
                try:
                    if response.status != 200:
                        return None
                    body = await response.read_all(MAX_ANSWER)
                    response.finish()
                finally:
                    response.abort()
        except (SwitchyardError, TimeoutError):
            return None
        return read_ps(body)
