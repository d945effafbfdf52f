"""A whole demo run under Debian's Prometheus: every board and every rule has something to show, and all books agree.

The router has two workers and is scraped each second. Alerts wait two seconds in place of minutes, nothing else of the
rules is changed.

During the run these alerts fire: breakers are open (`openai` fails for a while), a budget is nearly spent (of the team
`course`), a config was refused, fallbacks answer more often than usual. Others may, by how the run goes: too many
errors, errors and slowness of the store (it stands still for a moment), a long queue. Of those that cannot be true,
none may fire. No provider is down: `openai` has answered within two minutes, `spare` waits for a key and was never
meant to take calls, the local `lab` was never there.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import promql_parser
import pytest

from tests.boards.queries import board_queries, json_queries, rule_queries, rules, selectors
from tests.demo_traffic import prometheus
from tests.demo_traffic.__main__ import at_rest, in_the_books
from tests.demo_traffic.caller import Seen
from tests.demo_traffic.house import House, opened, until
from tests.demo_traffic.prometheus import Prometheus
from tests.demo_traffic.sums import OF_METRICS, Sums, differences, of_clients, of_ledger, of_metrics
from tests.demo_traffic.traffic import Traffic
from tests.demo_traffic.vendors import Order
from tests.router.test_serve import sockets_of
from tests.simulators.programs import need
from tests.simulators.server import free_port

SHORT, MINUTE = 18.0, 60.0
FIRE = {
    "SwitchyardBreakerOpen", "SwitchyardBudgetNearlySpent", "SwitchyardConfigReloadFailed",
    "SwitchyardFallbacksAboveNormal",
}  # fmt: skip
SILENT = {"SwitchyardProviderDown", "SwitchyardNoProviderUp", "SwitchyardRecordsLost", "SwitchyardLogLinesLost"}
STATES = {
    "switchyard_circuit_open{provider='openai'}": (0, 1),
    "switchyard_config_reload_success": (0, 1),
    "switchyard_journal_entries": (0, 1),
    "switchyard_ollama_loaded_models{provider='gpu'}": (2, 2),
    "switchyard_provider_down{provider='lab', reason='unreachable'}": (1, 1),
    "switchyard_provider_down{provider='spare', reason='no_key'}": (1, 1),
    "switchyard_provider_up{provider='lab'}": (0, 0),
    "switchyard_provider_up{provider='openai'}": (0, 1),
    "switchyard_queue_depth{provider='gpu'}": (0, 1),
    "switchyard_requests_in_flight": (0, 1),
    "switchyard_workers": (2, 2),
}
"""What is to be seen at some time of the run: at most the first number, and at least the second."""


@dataclass
class Run:
    """A run that is over, while its router and its Prometheus live on. Times are Unix seconds."""

    house: House
    prometheus: Prometheus
    traffic: Traffic
    began: float
    ended: float
    clients: Sums
    ledger: Sums

    def numbers(self, query: str) -> list[float]:
        """All that a query gives, each second of the run. NaN is nothing."""
        return [value for series in self.prometheus.over(query, self.began, self.ended) for value in series.numbers]


@pytest.fixture(
    scope="module", params=[pytest.param(SHORT, id="short"), pytest.param(MINUTE, id="minute", marks=pytest.mark.slow)]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    need(prometheus.PROGRAM)
    length: float = request.param
    home = tmp_path_factory.mktemp("demo")
    port = free_port()
    with ExitStack() as stack:
        # Prometheus takes seconds before its first scrape; the router starts meanwhile.
        scraping = stack.enter_context(prometheus.running(home / "prometheus", f"127.0.0.1:{port}"))
        house = stack.enter_context(opened(home, port=port, demo=length >= MINUTE))
        left = 8 * 3600 - time.time() % (8 * 3600)
        if left < 60:  # a budget that is nearly spent stays so: no team's day ends meanwhile
            time.sleep(left + 0.1)
        began = time.time()
        scraping.scraped_after(began)
        traffic = Traffic(house, length=length, say=lambda _: None)
        asyncio.run(traffic.play())
        at_rest(house)
        in_the_books(house, traffic.seen)
        scraping.scraped_after(time.time())
        clients, ledger = of_clients(house, traffic.seen), of_ledger(house)
        yield Run(house, scraping, traffic, began, time.time(), clients, ledger)


def test_sums_of_the_ledger_are_what_providers_told(run: Run) -> None:
    assert run.clients.tokens.total() > 0
    assert run.clients.cost.total() > 0
    assert not differences(run.clients, run.ledger, ("tokens", "cost", "settled"))
    assert run.clients.marks[("estimated",)] == run.ledger.marks[("estimated",)] > 0
    assert run.clients.marks[("aborted",)] > 0


def test_sums_in_prometheus_are_the_same(run: Run) -> None:
    found = of_metrics(run.prometheus.now('{__name__=~"switchyard_.+"}'))
    assert not differences(run.clients, found, OF_METRICS)
    assert not differences(run.ledger, found, ("tokens", "cost", "settled"))


def test_all_that_was_planned_happened(run: Run) -> None:
    seen = run.traffic.seen
    for status in ("2xx", "4xx", "5xx", "499"):
        assert run.clients.requests["openai", status] > 0, status
        assert status == "499" or run.clients.requests["ollama", status] > 0, status
    wanted = {"overloaded", "unreachable", "rate_limited", "provider_off"}
    assert wanted <= {one.fallback for one in seen}
    assert {"insufficient_quota", "rate_limit_exceeded", "quota_store", "model_not_found"} <= {
        one.error for one in seen
    }
    assert {one.provider for one in seen} >= set(run.house.providers)
    assert not run.house.demo or any(one.provider == "demo" for one in seen)


@pytest.mark.parametrize("suffix", [pytest.param("", id="english"), pytest.param("-zh", id="chinese")])
def test_every_query_of_a_board_has_data(run: Run, suffix: str) -> None:
    asked = board_queries("5s", f"{math.ceil(run.ended - run.began)}s", suffix)
    assert {query.board for query in asked} == {
        f"switchyard-{name}{suffix}" for name in ("keys", "overview", "providers")
    }
    # What a panel shows where nothing has happened yet is no answer.
    empty = [query for query in asked if not run.numbers(query.expr.removesuffix(" or vector(0)"))]
    assert not empty


def test_every_table_of_a_board_has_rows(run: Run) -> None:
    asked = json_queries()
    assert asked
    for query in asked:
        rows = run.house.told("GET", query.url)[query.root]
        assert rows, query
        assert all(set(query.columns) <= set(row) for row in rows), query


def test_every_rule_has_data(run: Run) -> None:
    recorded = [rule["record"] for rule in rules("recording.yml")]
    assert recorded
    assert not [name for name in recorded if not run.numbers(name)]
    # What is compared, and below it each series that is looked at. Only `absent` has nothing to say while all is well.
    asked = [query for query in rule_queries() if not query.expr.startswith("absent(")]
    assert not [query for query in asked if not run.numbers(query.expr)]
    looked_at = {
        f"{found.name}{found.matchers}"
        for rule in rules("alerts.yml")
        for found in selectors(promql_parser.parse(rule["expr"]))
    }
    assert not [series for series in looked_at if not run.numbers(series)]
    groups = run.prometheus.ask("rules")["groups"]
    assert not [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]
    assert sum(len(group["rules"]) for group in groups) == len(recorded) + len(rules("alerts.yml"))


def test_alerts_fire_where_they_should(run: Run) -> None:
    found = run.prometheus.over('ALERTS{alertstate="firing"}', run.began, run.ended)
    fired = {series.labels["alertname"] for series in found}
    assert fired >= FIRE
    assert not fired & SILENT
    about = {(series.labels["alertname"], series.labels.get("provider", series.labels.get("team"))) for series in found}
    assert about >= {
        ("SwitchyardBreakerOpen", "openai"),
        ("SwitchyardBudgetNearlySpent", "course"),
    }


def test_states_were_seen(run: Run) -> None:
    for series, (least, most) in STATES.items():
        found = run.numbers(series)
        assert found, series
        assert min(found) <= least, series
        assert max(found) >= most, series


def gone(house: House, killed: int) -> bool:
    """Whether the router's own metrics show one worker, or another one has the killed one's place by now. The killed
    one may take the connection along."""
    try:
        if b"\nswitchyard_workers 1.0\n" in house.admin.request("GET", "/metrics").body:
            return True
        serving = house.workers().values()
        return len(serving) == 2 and killed not in serving
    except (OSError, HTTPException):
        return False


def shares(house: House) -> Counter[int]:
    """How many connections of this process each worker has."""
    own = sockets_of(os.getpid())
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    router = f"0100007F:{house.router.port:04X}"
    ours = {row[1] for row in rows if row[2] == router and f"socket:[{row[9]}]" in own}
    theirs = {f"socket:[{row[9]}]" for row in rows if row[1] == router and row[2] in ours}
    return Counter({pid: len(sockets_of(pid) & theirs) for pid in house.workers().values()})


def seen_flying(run: Run, calls: int, since: float) -> bool:
    return any(
        max(series.numbers, default=0) >= calls
        for series in run.prometheus.over("switchyard_requests_in_flight", since, time.time())
    )


def test_a_killed_worker_takes_nothing_along(run: Run) -> None:
    """Last of all: what the killed worker ran is lost to its clients."""
    began = time.time()
    before = run.house.workers()

    async def calls() -> list[Seen]:
        long = Order(words=800, pace=0.04)
        streams = []
        for _ in range(20):  # which worker takes a call is the kernel's choice
            stream = run.traffic.several(
                16, lambda _: run.traffic.chat("gpt-5-mini", stream=True, order=long, most=1000)
            )
            streams.append(asyncio.create_task(stream))
            await asyncio.sleep(0.6)
            if min((await asyncio.to_thread(shares, run.house)).values()) > 2:
                break
        others = asyncio.create_task(run.traffic.mix(7.0))
        await asyncio.to_thread(until, lambda: seen_flying(run, 16, began), 60, "a scrape has seen all streams")
        os.kill(before[0], signal.SIGKILL)
        # Sooner than a scrape of each second sees it, another one has taken its place.
        await asyncio.to_thread(until, lambda: gone(run.house, before[0]), 60, "the killed worker's gauges are gone")
        await others
        return [one for some in await asyncio.gather(*streams) for one in some]

    seen = asyncio.run(calls())
    assert any(one.failure is not None for one in seen), "the killed worker ran none of the streams"
    assert any(one.complete for one in seen), "the other one ran none"
    until(lambda: len(run.house.workers()) == 2, 60, "another worker serves")
    assert run.house.workers()[0] != before[0]
    at_rest(run.house)
    run.prometheus.scraped_after(time.time())

    counters = run.prometheus.over('{__name__=~"switchyard_.+_(total|bucket|count|sum)"}', run.began, time.time())
    assert len(counters) > 100
    back = [
        (series.labels, earlier, later)
        for series in counters
        for (_, earlier), (_, later) in zip(series.values, series.values[1:], strict=False)
        if later < earlier
    ]
    assert not back
    (workers,) = run.prometheus.over("switchyard_workers", began, time.time())
    assert max(workers.numbers) == workers.numbers[-1] == 2
    (flying,) = run.prometheus.over("switchyard_requests_in_flight", began, time.time())
    assert max(flying.numbers) >= 16
    for gauge in ("requests_in_flight", "holds", "journal_entries", "queue_depth"):
        for sample in run.prometheus.now(f"switchyard_{gauge}"):
            assert sample.value == 0, sample
