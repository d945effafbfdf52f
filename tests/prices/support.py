"""Prices, targets and finished calls for the tests of money."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from providers.call import Call
from providers.events import FinishReason, Usage
from providers.registry import wire
from providers.wire import Meter
from router.config import Config, load_config
from router.prices import Price, Prices, load_prices
from router.snapshot import Attempt, Snapshot, Target, compile_snapshot
from router.trace import AttemptRecord, Trace

CONFIG = """
providers:
  openai: {vendor: openai, api_key: k}
  gemini: {vendor: gemini, api_key: k}
  doubao: {vendor: doubao, api_key: k}
  kimi: {vendor: kimi, api_key: k}
  kimi-world: {vendor: kimi, api_key: k, base_url: "https://api.moonshot.ai/v1"}
  deepseek: {vendor: openai-compatible, options: {profile: deepseek}, api_key: k}
  qwen: {vendor: openai-compatible, options: {profile: qwen}, api_key: k}
  groq: {vendor: openai-compatible, options: {profile: groq}, api_key: k}
  bedrock: {vendor: litellm, litellm_provider: bedrock}
  paid: {vendor: openai-compatible, api_key: k, base_url: "http://paid.test/v1"}
  box: {vendor: ollama, base_url: "http://box.test:11434"}
  demo: {vendor: demo}
"""
NOW = 1_795_305_600.0  # Sunday 2026-11-22, midnight UTC


def config_of(tmp_path: Path, prices: str | None = None, extra: str = "") -> Config:
    """The config above, with the text of a price file of the operator's own."""
    text = CONFIG
    if prices is not None:
        (tmp_path / "own.yaml").write_text(prices)
        text += "prices: {file: own.yaml}\n"
    (tmp_path / "switchyard.yaml").write_text(text + extra)
    return load_config(tmp_path / "switchyard.yaml", {})


class Bench:
    """A compiled config and its prices."""

    def __init__(self, tmp_path: Path, prices: str | None = None, extra: str = "") -> None:
        config = config_of(tmp_path, prices, extra)
        self.snapshot: Snapshot = compile_snapshot(config)
        self.prices: Prices = load_prices(config)

    def target(self, provider: str, model: str) -> Target:
        return Target(self.snapshot.providers[provider], model)

    def price(self, provider: str, model: str, now: float = NOW) -> Price | None:
        return self.prices.find(self.snapshot.providers[provider], model, now)

    def attempt(self, provider: str, model: str, **known: Any) -> Attempt:
        return Attempt(self.target(provider, model), "target", **known)


def chat(text: Any = "Hello", dialect: str = "openai", **fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return wire(dialect).read_call("chat", body)


def embed(texts: Any) -> Call:
    return wire("openai").read_call("embeddings", {"model": "m", "input": texts})


def meter(
    text: str = "", usage: Usage | None = None, finish: FinishReason | None = "stop", *, images: int = 0
) -> Meter:
    """What a lane would have seen of an answer with this text."""
    seen = Meter()
    if text:
        seen.saw(text)
    seen.images = images
    seen.frames += images
    seen.usage = usage
    seen.finish = finish
    return seen


def attempt(target: Target, outcome: str = "ok", status: int | None = 200, **seen: Any) -> AttemptRecord:
    record = AttemptRecord(target, outcome, status)
    for name, value in seen.items():
        setattr(record, name, value)
    return record


def finished(call: Call, *records: AttemptRecord, answered: bool = True, **seen: Any) -> Trace:
    """The trace of a call that has ended; its last attempt answered unless told."""
    trace = Trace("id", NOW, 0.0, call.wire, call.op)
    trace.call = call
    trace.attempts = list(records)
    if answered and records:
        trace.committed = True
        trace.answered = records[-1].target
    for name, value in seen.items():
        setattr(trace, name, value)
    return trace


def nonzero(metrics: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in metrics.items() if value}
