"""Keeps the model lists of providers that are asked for theirs (`models: discover`), in the background.

Clients never wait for it: they see the last list that came. A provider that does not answer loses its list after MISSES
misses in a row, so that a model that is gone stops being offered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from providers.errors import SwitchyardError, UpstreamError
from providers.vendor import ModelFacts, UpstreamRequest
from router.engine import Transport
from router.routing import Provider
from router.transport import Route

PACE = 15.0
"""Seconds between two looks at a local server; clouds are asked SLOWER times less often."""
SLOWER = 40
ANSWER_SECONDS = 5.0
FIRST_SECONDS = 0.5
"""How long starting waits for the first lists."""
MISSES = 3
MAX_LIST = 8 * 1024 * 1024
"""Bytes of a model list."""

MOST_SHOWN = 32
"""Models whose details are asked for at one look."""


@runtime_checkable
class Shows(Protocol):
    """A vendor that tells details of one model at a time."""

    def show_request(self, model: str, api_key: str | None) -> UpstreamRequest: ...

    def read_show(self, facts: ModelFacts, body: bytes) -> ModelFacts: ...


_log = logging.getLogger("switchyard.discovery")


class _Silence(NamedTuple):
    """Looks in vain since a provider's last answer of any kind. answers: how many calls it had answered by then."""

    reason: str
    looks: int
    answers: int


class Discovery:
    """`changed` is called with all lists when one of them has become another, `recovered` with the name of a provider
    that answers again."""

    def __init__(
        self,
        transports: Mapping[str, Transport],
        providers: Callable[[], Sequence[Provider]],
        changed: Callable[[Mapping[str, Sequence[ModelFacts]]], None],
        recovered: Callable[[str], None],
        answers: Callable[[str], int] = lambda _: 0,
    ) -> None:
        """`answers(provider)`: how many calls it has answered so far."""
        self._transports = transports
        self._providers = providers
        self._changed = changed
        self._recovered = recovered
        self._answers = answers
        self.lists: dict[str, Sequence[ModelFacts]] = {}
        self.problems: dict[str, str] = {}
        """Why a provider's list could not be had the last time."""
        self._misses: dict[str, int] = {}
        self._silent: dict[str, _Silence] = {}
        self._listed: set[str] = set()
        """Who has ever told its list."""
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()

    def away(self) -> dict[str, str]:
        """Providers that do not answer, and the error's stable word: MISSES looks in a row were in vain, one where
        nothing was ever heard of it, and no call was answered meanwhile."""
        return {
            name: one.reason
            for name, one in self._silent.items()
            if one.answers == self._answers(name) and (one.looks >= MISSES or not (one.answers or name in self._listed))
        }

    def unheard(self) -> set[str]:
        """Providers that are being asked for the first time: nobody knows yet whether they are there."""
        return {
            one.name
            for one in self._providers()
            if one.discover and one.off is None and one.name not in self._listed and one.name not in self._silent
            and not self._answers(one.name)
        }  # fmt: skip

    async def start(self) -> None:
        """Begin to look, and give the first look a moment: local servers answer or refuse at once."""
        self._task = asyncio.create_task(self._run(), name="discovery")
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await self._looked.wait()
        except TimeoutError:
            pass

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self, *, clouds: bool = True) -> None:
        """Ask everyone once."""
        due = [
            provider
            for provider in self._providers()
            if provider.discover and provider.off is None and (clouds or provider.local)
        ]
        before = dict(self.lists)
        await asyncio.gather(*(self._ask(provider) for provider in due))
        names = {provider.name for provider in self._providers() if provider.discover and provider.off is None}
        for known in (self.lists, self.problems, self._misses, self._silent):
            for gone in set(known) - names:
                del known[gone]
        self._listed &= names
        if self.lists != before:
            self._changed(dict(self.lists))

    async def _run(self) -> None:
        turn = 0
        while True:
            try:
                await self.look(clouds=turn % SLOWER == 0)
            except Exception:  # noqa: BLE001 - the lists stay as they are; the next look may do better
                _log.exception("looking for models failed")
            self._looked.set()
            turn += 1
            await asyncio.sleep(PACE)

    async def _ask(self, provider: Provider) -> None:
        request = provider.vendor.models_request(provider.api_key)
        if request is None:
            self._listed.add(provider.name)  # there is nothing to wait for
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                facts = provider.vendor.read_models(await self._fetch(provider, request))
            self.lists[provider.name] = await self._complete(provider, facts)
        except (SwitchyardError, TimeoutError) as error:
            why = error.message if isinstance(error, SwitchyardError) else "it did not answer in time"
            if self.problems.get(provider.name) != why:
                _log.info("no model list from %s: %s", provider.name, why)
            self.problems[provider.name] = why
            self._was_silent(provider.name, error.reason if isinstance(error, UpstreamError) else "timeout")
            self._misses[provider.name] = self._misses.get(provider.name, 0) + 1
            if self._misses[provider.name] >= MISSES:
                self.lists.pop(provider.name, None)
        else:
            self._silent.pop(provider.name, None)
            self._listed.add(provider.name)
            if self.problems.pop(provider.name, None) is not None:
                self._recovered(provider.name)
            self._misses.pop(provider.name, None)

    def _was_silent(self, name: str, reason: str) -> None:
        answers = self._answers(name)
        before = self._silent.get(name)
        looks = before.looks if before is not None and before.answers == answers else 0
        self._silent[name] = _Silence(reason, looks + 1, answers)

    async def _complete(self, provider: Provider, facts: Sequence[ModelFacts]) -> Sequence[ModelFacts]:
        """The list with the capabilities of models of which it does not tell them: older Ollamas say them one by
        one. What is not told in time stays unknown until the next look."""
        vendor = provider.vendor
        if not isinstance(vendor, Shows):
            return facts
        known = {fact.name: fact for fact in self.lists.get(provider.name, ())}
        found = []
        asked = 0
        until = asyncio.get_running_loop().time() + ANSWER_SECONDS
        for fact in facts:
            before = known.get(fact.name)
            if fact.capabilities.chat is None and before is not None and before.capabilities.chat is not None:
                fact = before
            elif fact.capabilities.chat is None and asked < MOST_SHOWN:
                asked += 1
                request = vendor.show_request(fact.name, provider.api_key)
                try:
                    async with asyncio.timeout_at(until):
                        fact = vendor.read_show(fact, await self._fetch(provider, request))
                except SwitchyardError as error:
                    _log.debug("no details of %s from %s: %s", fact.name, provider.name, error.message)
                except TimeoutError:
                    asked = MOST_SHOWN
            found.append(fact)
        return found

    async def _fetch(self, provider: Provider, request: UpstreamRequest) -> bytes:
        route = Route(provider.base_url, provider.timeouts.connect, provider.proxy, provider.ca_bundle)
        response = await self._transports[provider.vendor.transport].open(route, request)
        try:
            body = await response.read_all(MAX_LIST)
            if response.status != 200:
                raise provider.vendor.classify(response.status, response.headers, body)
            response.finish()
        finally:
            response.abort()
        return body
