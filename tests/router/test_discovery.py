"""Model lists of providers that are asked for theirs: learnt, kept, lost, and completed for older Ollamas."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import orjson
import pytest

from providers.errors import Unreachable
from providers.vendor import ModelFacts, UpstreamRequest
from router import discovery
from router.discovery import ANSWER_SECONDS, FIRST_SECONDS, MISSES, PACE, SLOWER, Discovery
from router.routing import Provider, compile_snapshot
from router.transport import Response, Route
from tests.router.jobs import Scripted
from tests.router.virtual import now, run
from tests.routing.support import config_of

CONFIG = """
providers:
  box: {vendor: ollama, base_url: "http://box.test", local: true}
  cloud: {vendor: openai-compatible, base_url: "http://cloud.test/v1", api_key: sk-cloud, models: discover}
  fixed: {vendor: openai-compatible, base_url: "http://fixed.test/v1", api_key: sk-fixed, models: [a]}
models: {}
fallback: []
"""
Answer = bytes | Exception | float
"""A body, a failure, or seconds of silence."""


def tags(*names: str, capabilities: Sequence[str] | None = ("completion",)) -> bytes:
    more = {} if capabilities is None else {"capabilities": capabilities}
    return orjson.dumps({"models": [{"name": name, "model": name, **more} for name in names]})


def ids(*names: str) -> bytes:
    return orjson.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


class Network:
    """`answers` by host and path."""

    def __init__(self, **answers: Answer) -> None:
        self.answers: dict[str, Answer] = dict(answers)
        self.status = 200
        self.asked: list[str] = []
        self.shown: dict[str, Answer] = {}

    async def open(
        self, route: Route, request: UpstreamRequest, *, body: AsyncIterator[bytes] | None = None
    ) -> Response:
        host = route.base_url.removeprefix("http://").partition(".")[0]
        if request.path == "/api/show":
            model = orjson.loads(request.body)["model"]
            self.asked.append(f"show {model}")
            answer = self.shown.get(model, Unreachable("there are no details"))
        else:
            self.asked.append(host)
            answer = self.answers.get(host, Unreachable("it is not there"))
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = b"{}"
        return Scripted(self.status, [answer])


class Looker:
    """A Discovery and what it told."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.told: list[Mapping[str, Sequence[ModelFacts]]] = []
        self.recovered: list[str] = []
        self.answers: Counter[str] = Counter()
        self.providers: dict[str, Provider] = dict(compile_snapshot(config_of(CONFIG)).providers)
        self.discovery = Discovery(
            {"http": network},
            lambda: tuple(self.providers.values()),
            self.told.append,
            self.recovered.append,
            self.answers.__getitem__,
        )

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.discovery.look()

    def names(self, provider: str) -> list[str]:
        return [fact.name for fact in self.told[-1].get(provider, ())]


def test_lists_are_learnt_and_told_once() -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("llama3.2:latest"), cloud=ids("m1", "m2")))
        await looker.look(3)
        assert len(looker.told) == 1
        assert looker.names("box") == ["llama3.2:latest"]
        assert looker.names("cloud") == ["m1", "m2"]
        assert "fixed" not in looker.network.asked, "its names are declared"
        looker.network.answers["cloud"] = ids("m2")
        await looker.look(2)
        assert len(looker.told) == 2
        assert looker.names("cloud") == ["m2"]
        assert looker.recovered == []

    run(test())


@pytest.mark.parametrize(
    "trouble",
    [Unreachable("refused"), 1e6, b"", b"<html>", b"[1, 2", b'{"models": 1}', b"\xff\xfe", b"[" * 5000],
    ids=["refused", "silent", "empty", "html", "half", "no list", "bytes", "deep"],
)
def test_a_provider_that_misses_a_few_times_loses_its_list(trouble: Answer) -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("llama3.2:latest"), cloud=ids("m1")))
        await looker.look()
        looker.network.answers["box"] = trouble
        await looker.look(MISSES - 1)
        assert len(looker.told) == 1, "the last list stands for a while"
        await looker.look(3)
        assert len(looker.told) == 2
        assert looker.names("box") == []
        assert looker.names("cloud") == ["m1"], "others are not touched"
        assert looker.discovery.problems["box"]
        looker.network.answers["box"] = tags("llama3.2:latest")
        await looker.look(2)
        assert looker.names("box") == ["llama3.2:latest"]
        assert looker.recovered == ["box"]
        assert looker.discovery.problems == {}

    run(test())


def test_a_provider_is_away_when_neither_lists_nor_calls_are_answered() -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a"), cloud=ids("m1")))
        discovery = looker.discovery
        assert discovery.unheard() == {"box", "cloud"}
        await looker.look()
        assert discovery.unheard() == set()
        looker.network.answers["box"] = Unreachable("refused")
        await looker.look(MISSES - 1)
        assert discovery.away() == {}, "one look or two in vain say nothing"
        await looker.look()
        assert discovery.away() == {"box": "unreachable"}
        looker.answers["box"] += 1
        assert discovery.away() == {}, "a call speaks for it at once"
        await looker.look(MISSES - 1)
        assert discovery.away() == {}, "and for as many looks as before"
        await looker.look()
        assert discovery.away() == {"box": "unreachable"}
        looker.network.answers["box"] = tags("a")
        await looker.look()
        assert discovery.away() == {}

    run(test())


def test_a_provider_that_is_no_longer_asked_is_not_away() -> None:
    async def test() -> None:
        looker = Looker(Network(box=Unreachable("refused"), cloud=ids("m1")))
        await looker.look(MISSES)
        assert looker.discovery.away() == {"box": "unreachable"}
        before = dict(looker.providers)
        declared = config_of(CONFIG.replace("box: {vendor: ollama", "box: {models: [a], vendor: ollama"))
        looker.providers = dict(compile_snapshot(declared).providers)
        assert not looker.providers["box"].discover
        await looker.look()
        assert looker.discovery.away() == looker.discovery.problems == {}
        looker.providers = before
        assert looker.discovery.away() == {}, "it begins anew"
        await looker.look()
        assert looker.discovery.away() == {"box": "unreachable"}, "nothing was ever heard of it"
        looker.answers["box"] += 1
        await looker.look(MISSES - 1)
        assert looker.discovery.away() == {}

    run(test())


def test_misses_count_in_a_row() -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a")))
        for _ in range(3):
            looker.network.answers["box"] = tags("a")
            await looker.look()
            looker.network.answers["box"] = Unreachable("refused")
            await looker.look(MISSES - 1)
        assert len(looker.told) == 1
        assert looker.recovered == ["box", "box"]

    run(test())


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_error_answer_is_a_miss(status: int) -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a"), cloud=ids("m1")))
        looker.network.status = status
        await looker.look()
        assert looker.told == []
        assert set(looker.discovery.problems) == {"box", "cloud"}

    run(test())


def test_a_silent_provider_holds_nobody_up() -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a"), cloud=1e6))
        await looker.look()
        assert now() == ANSWER_SECONDS
        assert looker.names("box") == ["a"]

    run(test())


def test_a_provider_that_a_reload_turns_off_or_removes_is_forgotten() -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a"), cloud=ids("m1")))
        await looker.look()
        looker.providers["cloud"] = dataclasses.replace(looker.providers["cloud"], off="enabled is false")
        asked = looker.network.asked.count("cloud")
        await looker.look()
        assert looker.told[-1].keys() == {"box"}
        assert looker.network.asked.count("cloud") == asked
        del looker.providers["box"]
        await looker.look()
        assert looker.told[-1] == {}

    run(test())


SHOWN = orjson.dumps(
    {
        "capabilities": ["completion", "tools"],
        "model_info": {"general.architecture": "llama", "llama.context_length": 8},
    }
)


def test_details_of_older_ollamas_are_asked_once() -> None:
    async def test() -> None:
        network = Network(box=tags("a", "b", capabilities=None))
        network.shown = {"a": SHOWN}
        looker = Looker(network)
        await looker.look()
        a, b = looker.told[-1]["box"]
        assert (a.capabilities.chat, a.capabilities.tools, a.capabilities.context) == (True, True, 8)
        assert (b.name, b.capabilities.chat) == ("b", None), "what cannot be had stays unknown"
        await looker.look(2)
        assert network.asked.count("show a") == 1
        assert network.asked.count("show b") == 3
        assert len(looker.told) == 1

    run(test())


def test_details_that_are_slow_do_not_cost_the_list() -> None:
    async def test() -> None:
        network = Network(box=tags("a", "b", "c", capabilities=None))
        network.shown = {"a": SHOWN, "b": 1e6, "c": SHOWN}
        looker = Looker(network)
        await looker.look(MISSES + 1)
        assert looker.names("box") == ["a", "b", "c"]
        assert looker.told[-1]["box"][0].capabilities.chat is True
        assert now() == (MISSES + 1) * ANSWER_SECONDS
        assert "box" not in looker.discovery.problems

    run(test())


def test_a_long_list_is_completed_look_by_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MOST_SHOWN", 2)

    async def test() -> None:
        names = [f"m{number}" for number in range(5)]
        network = Network(box=tags(*names, capabilities=None))
        network.shown = dict.fromkeys(names, SHOWN)
        looker = Looker(network)
        known = []
        for _ in range(3):
            await looker.look()
            known.append(sum(fact.capabilities.chat is True for fact in looker.told[-1]["box"]))
        assert known == [2, 4, 5]

    run(test())


async def running(looker: Looker, until: float) -> None:
    await looker.discovery.start()
    await asyncio.sleep(until - now())
    await looker.discovery.stop()


def test_local_servers_are_asked_often_and_clouds_seldom() -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a"), cloud=ids("m1")))
        await running(looker, SLOWER * PACE + 1)
        assert looker.network.asked.count("box") == SLOWER + 1
        assert looker.network.asked.count("cloud") == 2

    run(test())


def test_the_start_waits_for_lists_a_moment_only() -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a"), cloud=ids("m1")))
        await looker.discovery.start()
        assert now() == 0
        assert looker.names("box") == ["a"]
        await looker.discovery.stop()
        looker = Looker(Network(box=1e6, cloud=1e6))
        await looker.discovery.start()
        assert now() == FIRST_SECONDS
        await looker.discovery.stop()

    run(test())


def test_a_bug_in_a_look_is_not_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        looker = Looker(Network(box=tags("a"), cloud=ids("m1")))
        broken: Callable[[Mapping[str, Sequence[ModelFacts]]], None] = {}.__getitem__  # type: ignore[assignment]  # raises
        works = looker.discovery._changed
        looker.discovery._changed = broken
        await looker.discovery.start()
        looker.discovery._changed = works
        looker.network.answers["box"] = tags("b")
        await asyncio.sleep(PACE + 1)
        await looker.discovery.stop()
        assert looker.names("box") == ["b"]
        assert "looking for models failed" in caplog.text

    run(test())
