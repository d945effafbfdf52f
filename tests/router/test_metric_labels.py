"""The names that models have in the metrics: of the config, of model lists and price lists, and no others."""

from __future__ import annotations

from pathlib import Path

from providers.vendor import ModelFacts
from router.config import load_config
from router.metric_labels import LONGEST, ModelLabels
from router.prices import load_prices
from router.snapshot import compile_snapshot

CONFIG = """
providers:
  cloud: {vendor: openai, api_key: k, capabilities: {seen: {vision: true}, "o*": {tools: true}}}
  named: {vendor: kimi, api_key: k, models: [first, second]}
  box: {vendor: ollama, model_limits: {slow: {rpm: 1}}}
models:
  chat: {targets: [cloud/answer, {to: "box/Other:7b"}], fallback: [box/last]}
  "gpt-*": {targets: [cloud/*]}
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
