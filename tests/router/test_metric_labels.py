"""The names that models have in the metrics: of the config, of model lists and price lists, and no others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from providers.call import Needs
from providers.errors import ModelNotFound
from providers.events import Usage
from providers.vendor import ModelFacts
from router.config import load_config
from router.metric_labels import LONGEST, MOST_LISTED, Admitted, ModelLabels
from router.metrics import Metrics
from router.prices import load_prices
from router.routing import Rights, plan
from router.settlement import Bill, Part
from router.snapshot import Snapshot, compile_snapshot
from router.trace import Trace
from tests.router.test_metric_text import scraped

CONFIG = """
providers:
  cloud: {vendor: openai, api_key: k, capabilities: {seen: {vision: true}, "o*": {tools: true}}}
  named: {vendor: kimi, api_key: k, models: [first, second]}
  box: {vendor: ollama, model_limits: {slow: {rpm: 1}}}
models:
  chat: {targets: [cloud/answer, {to: "box/Other:7b"}], fallback: [box/last]}
  "gpt-*": {targets: [cloud/*]}
  gpt-own: {targets: [named/first]}
fallback: [box/end]
"""


def test_names(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "c.yaml", {})
    found = compile_snapshot(config, discovered={"box": [ModelFacts("Found:latest"), ModelFacts("x" * 101)]})
    assert LONGEST == 100
    prices = load_prices(config)
    priced = [(name, model) for name, row in found.providers.items() for model in prices.names(row)]
    labels = ModelLabels(found, priced).named
    known = {
        "cloud": ("answer", "seen", "gpt-5-mini"),
        "named": ("first", "second"),
        "box": ("Other:7b", "last", "end", "slow", "Found:latest"),
    }
    for provider, names in known.items():
        assert [labels(provider, name) for name in names] == list(names), provider
    assert labels("box", "found") == labels("box", "FOUND:latest") == "Found:latest", "spellings are one"
    for provider, name in (("cloud", "gpt-anything"), ("cloud", "o1-x"), ("box", "answer"), ("box", "x" * 101)):
        assert labels(provider, name) == "other"
    assert labels("gone", "answer") == "other"


def test_ten_thousand_invented_names_make_one_series(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    snapshot = compile_snapshot(load_config(tmp_path / "c.yaml", {}))
    labels, metrics, dice = ModelLabels(snapshot), Metrics("1"), random.Random(3)
    before = lines(metrics)
    for prefix, names in (
        ("", 400),
        ("gpt-", 3200),
        ("cloud/", 3200),
        ("box/", 3200),
    ):  # looking for near names is slow
        seen = []
        for number in range(names):
            trace = Trace("id", 0.0, 0.0, "openai", "chat")
            name = prefix + "".join(dice.choices('abcdefgh0123456789-./:"\\\n你', k=dice.randrange(1, 30)))
            bill = None
            try:
                trace.plan = plan(snapshot, name, Needs(), Rights(), lambda *_: None, dice.random)
            except ModelNotFound:
                trace.status = 404
            else:
                trace.status, trace.answered = 200, trace.plan.attempts[0].target
                trace.first_content = 0.1
                part = Part(trace.answered, Usage(1, 2, 3, 4, 5), 0, 6, False, True)
                bill = Bill("measured", 1, 2, 6, False, Usage(), {}, (part,))
            metrics.observe(trace, labels.route(trace.plan), 1.0, bill, labels.of)
            if number in (300, names - 1):
                seen.append(lines(metrics))
        assert seen[0] == seen[1], prefix
    assert {name: count - before[name] for name, count in seen[1].items() if "requests_total" in name} == {
        "switchyard_requests_total": 4  # refused; by the pattern; written out at either provider
    }


def test_a_server_with_other_names_at_every_look_makes_no_series_without_end(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    config = load_config(tmp_path / "c.yaml", {})
    admitted, metrics = Admitted(), Metrics("1")
    models: set[str] = set()
    routes: set[str] = set()
    vram: dict[tuple[str, ...], float] = {}
    metrics.gauges("ollama_vram_bytes", lambda: vram)
    for look in range(40):
        names = [f"m{look}-{number}" for number in range(20)]
        snapshot = compile_snapshot(config, discovered={"box": [ModelFacts(name) for name in [*names, "slow"]]})
        labels = ModelLabels(snapshot, admitted=admitted)
        models |= {labels.named("box", name) for name in names}
        routes |= {labels.route(None, name) for name in names}
        vram = {("box", labels.named("box", name)): 1.0 for name in names}
        metrics.publish()
        assert labels.named("box", "slow") == "slow", "the config's own names stay"
        assert labels.named("cloud", "answer") == "answer"
    assert len(models) == len(routes) == MOST_LISTED + 1
    assert len(metrics._gauges.own.entries) < MOST_LISTED + 20
    assert "other" in models & routes
    assert {labels.named("box", f"m39-{number}") for number in range(20)} == {"other"}


def test_calls_that_are_refused_before_they_are_planned_keep_their_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    listed = {"box": [ModelFacts("Found:latest"), ModelFacts("gpt-local")]}
    snapshot = compile_snapshot(load_config(tmp_path / "c.yaml", {}), discovered=listed)
    wanted = {
        "chat": "chat",
        "chat:latest": "chat",
        "gpt-5": "gpt-*",
        "gpt-own": "gpt-own",
        "gpt-local": "gpt-*",
        "Found": "Found:latest",
        "nobody": "other",
        "cloud/answer": "cloud/answer",
        "box/found": "box/Found:latest",
        "box/elsewhere": "other",
        "gone/answer": "other",
        "gpt-" + "5" * 1000: "other",
        "": "other",
    }
    labels = ModelLabels(snapshot)
    for name, label in wanted.items():
        assert labels.route(None, name) == label, name
        if name in snapshot_names(snapshot, wanted):
            made = plan(snapshot, name, Needs(), Rights(), lambda *_: None, random.random)
            assert labels.route(made) == label, "the same as of a call that has a plan"
    assert labels.route(None) == "other", "it was not read"


def snapshot_names(snapshot: Snapshot, names: Iterable[str]) -> list[str]:
    """Those that lead somewhere."""
    found = []
    for name in names:
        with suppress(ModelNotFound):
            snapshot.route(name)
            found.append(name)
    return found


def lines(metrics: Metrics) -> Counter[str]:
    """How many lines each metric has."""
    return Counter(line.partition("{")[0].partition(" ")[0] for line in scraped(metrics).splitlines())
