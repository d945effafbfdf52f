"""`/metrics` of a real router after calls of every kind: complete, well formed, and bounded whatever clients send."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from router.credentials import new_credential, new_id
from router.metric_table import FAMILIES
from router.metrics import Metrics
from tests.router.test_metric_text import promtool, scraped
from tests.simulators.client import CLIENTS, OPENAI, Client
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator
from tests.simulators.waiting import until

Serve = Callable[..., RouterProcess]
Series = tuple[str, tuple[tuple[str, str], ...]]


def scrape(client: Client) -> dict[str, Metric]:
    reply = client.request("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(reply.body.decode())}


def values(families: Mapping[str, Metric]) -> dict[Series, float]:
    found: dict[Series, float] = {}
    for family in families.values():
        for sample in family.samples:
            name = (sample.name, tuple(sorted(sample.labels.items())))
            assert name not in found, f"{name} stands twice"
            found[name] = sample.value
    return found


def series(families: Mapping[str, Metric]) -> Counter[str]:
    """How many sets of labels each family has; the buckets of a histogram are one."""
    sets = {
        (family.name, tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le")))
        for family in families.values()
        for sample in family.samples
    }
    return Counter(name for name, _ in sets)


def value(client: Client, name: str, **labels: str) -> float:
    """The sum of the series with these labels."""
    return sum(
        found
        for (sample, given), found in values(scrape(client)).items()
        if sample == name and labels.items() <= dict(given).items()
    )


@pytest.fixture(scope="module")
def counted(module_serve: Serve, cloud: Simulator, local: Simulator) -> Client:
    config = providers(cloud.url, local.url)
    config["models"]["gpt-*"] = {"targets": ["cloud/answer"]}
    config["providers"]["shut"] = {"vendor": "openai", "enabled": False}
    config["models"]["closed"] = {"targets": ["shut/x"], "fallback": []}
    config["models"]["closed-*"] = {"targets": ["shut/*"], "fallback": []}
    router = module_serve(config, UNHURRIED)
    client = Client(router.port, router.key)
    for model in ("closed", "closed-5"):
        assert client.ask(OPENAI, model, stream=False).status == 503
    assert Client(router.port, new_credential(new_id())).ask(OPENAI, "chat", stream=False).status == 401
    for dialect in CLIENTS:
        for stream in (True, False):
            for model in ("chat", "cloud/500@counted", "nobody", "gpt-5", "down/x"):
                client.ask(dialect, model, stream=stream)
    client.request("POST", "/v1/embeddings", {"model": "chat", "input": "x"})
    with client.open("POST", OPENAI.path, OPENAI.body("cloud/endless-slow@left", stream=True)) as answer:
        answer.read1(10)
    until(lambda: value(client, "switchyard_client_disconnects_total") == 1)
    late = client.ask(OPENAI, "cloud/silent@late", stream=False, headers={"x-switchyard-timeout": "0.2"})
    assert late.status == 504
    until(lambda: value(client, "switchyard_requests_total", status_class="504") == 1)
    return client


def test_every_metric_of_the_table_is_there(counted: Client) -> None:
    text = counted.request("GET", "/metrics").body.decode()
    assert re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE) == [
        (family.full, family.kind) for family in FAMILIES
    ]
    families = scrape(counted)
    assert all(family.documentation for family in families.values())
    for family in FAMILIES:
        found = families[family.full.removesuffix("_total") if family.kind == "counter" else family.full]
        labels = {frozenset(sample.labels) - {"le"} for sample in found.samples}
        assert labels <= {frozenset(family.labels)}, family.name


def test_promtool_finds_nothing(counted: Client) -> None:
    assert promtool(counted.request("GET", "/metrics").body) == ""


def test_the_text_is_well_formed(counted: Client) -> None:
    families = scrape(counted)
    found = values(families)
    for family in families.values():
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        if family.type != "histogram":
            continue
        buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
                buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        for labels, steps in buckets.items():
            counts = [count for _, count in sorted(steps)]
            assert counts == sorted(counts)
            assert counts[-1] == found[f"{family.name}_count", labels]
    assert found[("switchyard_requests_in_flight", ())] == 0
    assert found[("switchyard_config_reload_success", ())] == 1


def test_what_is_counted(counted: Client) -> None:
    """Twice each: both dialects; and streamed or not."""

    def calls(**labels: str) -> float:
        return value(counted, "switchyard_requests_total", **labels)

    assert calls(route="chat", provider="cloud", status_class="2xx", fallback="none") == 5
    assert calls(route="gpt-*", status_class="2xx") == 4, "a pattern is one route"
    assert calls(route="other", provider="local", status_class="2xx", fallback="unavailable") == 4
    assert calls(route="other", provider="local", status_class="2xx", fallback="unreachable") == 4
    assert calls(route="other", provider="none", model="none", status_class="4xx") == 4
    assert calls(route="closed", provider="none", status_class="5xx") == 1, "also where planning itself refuses"
    assert calls(route="closed-*", provider="none", status_class="5xx") == 1
    assert calls(route="other", provider="none", status_class="504") == 1, "the caller's own deadline"
    assert calls(route="other", provider="none", status_class="5xx") == 0
    assert value(counted, "switchyard_upstream_attempts_total", provider="cloud", outcome="deadline") == 1
    assert calls(route="chat", provider="none", status_class="4xx") == 1, "a key that is not known"
    assert calls(status_class="499", provider="cloud", model="other") == 1, "the client left"
    assert calls(provider="cloud", model="answer") == 9, "a name of the config"
    assert value(counted, "switchyard_fallbacks_total", to="local", **{"from": "cloud"}) == 4
    assert value(counted, "switchyard_fallbacks_total", to="local", **{"from": "down"}) == 4
    assert value(counted, "switchyard_upstream_attempts_total", provider="cloud", outcome="unavailable") == 4
    assert value(counted, "switchyard_upstream_attempts_total", provider="down", outcome="unreachable") == 4
    assert value(counted, "switchyard_tokens_total", provider="cloud", type="input") > 0
    assert value(counted, "switchyard_ttft_seconds_count") > 0
    assert value(counted, "switchyard_time_per_output_token_seconds_count") > 0
    assert value(counted, "switchyard_settlements_total", mark="aborted") == 1


def test_unknown_names_make_no_series(counted: Client) -> None:
    dice = random.Random(7)
    alphabet = 'abcdefghijklmnopqrstuvwxyz0123456789:.-/你"\\{}\n'
    for prefix in ("", "cloud/", "gpt-"):
        for stream in (True, False):
            counted.ask(OPENAI, f"{prefix}the first", stream=stream)
        before = series(scrape(counted))
        for number in range(200):
            name = prefix + "".join(dice.choices(alphabet, k=dice.randrange(1, 30)))
            counted.request("POST", OPENAI.path, json.dumps(OPENAI.body(name, stream=number % 2 == 0)).encode())
        more = series(scrape(counted)) - before
        assert all(count <= 1 for count in more.values()), f"one for names that are refused as such: {more}"


def test_other_spellings_of_a_known_name_make_no_series(counted: Client) -> None:
    before = series(scrape(counted))
    statuses = {
        name: counted.ask(OPENAI, name, stream=False).status for name in ("chat:latest", "CHAT", "Chat:latest", "cHaT")
    }
    assert series(scrape(counted)) == before, statuses
    assert 200 in statuses.values()


def test_gauges_are_read_when_they_are_asked_for() -> None:
    metrics = Metrics("1.2.3")
    level: list[float | None] = [1.0]
    metrics.gauge("usd_cny", lambda: level[0])
    for number in (1.0, 5.0):
        level[0] = number
        assert f"\nswitchyard_usd_cny {number}\n" in scraped(metrics)
        assert metrics.current("usd_cny") == {(): number}
    level[0] = None
    assert "\nswitchyard_usd_cny " not in scraped(metrics), "no value"
    assert metrics.current("usd_cny") == {}
    assert 'switchyard_build_info{version="1.2.3"} 1.0' in scraped(metrics)


def test_labels_that_are_named_no_longer_are_gone() -> None:
    metrics = Metrics("1")
    waiting: dict[tuple[str, ...], float] = {("a",): 1.0, ("b",): 0.0}
    metrics.gauges("queue_depth", lambda: waiting)
    assert metrics.current("queue_depth") == waiting
    waiting = {("b",): 2.0}
    assert metrics.current("queue_depth") == waiting
    assert 'queue_depth{provider="a"}' not in scraped(metrics)
    waiting = {("a",): 3.0}
    assert metrics.current("queue_depth") == waiting


def test_a_scraper_that_takes_only_openmetrics_gets_it(counted: Client) -> None:
    accept = {"accept": "application/openmetrics-text;version=1.0.0"}
    answer = counted.request("GET", "/metrics", None, accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    parsed = openmetrics_families(answer.body.decode())  # type: ignore[no-untyped-call]  # no annotation there
    told = {family.name: family for family in parsed}
    plain = scrape(counted)
    assert told.keys() == plain.keys()
    for name in (
        "switchyard_requests",
        "switchyard_tokens",
        "switchyard_request_duration_seconds",
        "switchyard_workers",
    ):
        assert told[name].type == plain[name].type
        as_told = {(s.name, frozenset(s.labels.items())): s.value for s in told[name].samples}
        assert as_told == {(s.name, frozenset(s.labels.items())): s.value for s in plain[name].samples}
    both = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
    assert counted.request("GET", "/metrics", None, both).headers["content-type"].startswith("text/plain")
