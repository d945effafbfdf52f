"""Who is there in a demo run: providers with their prices, models, teams and keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from router.local_weights import missing
from tests.demo_traffic.vendors import Told
from tests.simulators.router import KEY_VARIABLE
from tests.simulators.server import refused_port

USD_CNY: Final = 7.2
MILLION: Final = 1_000_000

GPU_PLACES, GPU_QUEUE = 2, 4
"""Of the Ollama, over both workers."""
GPU_MODEL, GPU_VECTORS = "qwen3:8b", "bge-m3:latest"
LOADED: Final[Mapping[str, int]] = {GPU_MODEL: 6_114_238_464, GPU_VECTORS: 1_221_225_472}
"""Bytes of GPU memory."""

MODELS: Final[Mapping[str, tuple[str, ...]]] = {
    "openai": ("gpt-5-mini", "gpt-4o", "text-embedding-3-small"),
    "gemini": ("gemini-3-flash",),
    "doubao": ("doubao-seed-1-8",),
    "kimi": ("kimi-k2.6",),
    "campus": ("qwen3-32b", "qwen3-coder-30b"),
    "gpu": (GPU_MODEL, GPU_VECTORS),
}
"""What each simulated provider serves."""

Rates = Mapping[str, float]
PRICES: Final[Mapping[str, tuple[str, Mapping[str, Rates]]]] = {
    "openai": (
        "usd",
        {
            "gpt-5-mini": {"input": 0.25, "cached": 0.025, "output": 2},
            "gpt-4o": {"input": 2.5, "cached": 1.25, "output": 10},
            "text-embedding-3-small": {"input": 0.02, "output": 0},
        },
    ),
    "gemini": ("usd", {"*": {"input": 0.5, "cached": 0.05, "output": 3}}),
    "doubao": ("cny", {"*": {"input": 0.72, "cached": 0.18, "output": 7.2}}),
    "kimi": ("cny", {"*": {"input": 3.6, "cached": 0.72, "output": 14.4}}),
    "campus": ("usd", {"*": {"input": 0.1, "output": 0.4}}),
    "spare": ("usd", {"*": {"input": 1, "output": 1}}),
}
"""Of a million tokens. The GPU and the demo model are local, which costs nothing."""


def cost(told: Told) -> int:
    """Micro-USD of an answer with the usage that a provider told, rounded up once."""
    if told.provider not in PRICES:
        return 0
    currency, rows = PRICES[told.provider]
    rates = rows.get(told.model) or rows["*"]
    exact = {name: Fraction(str(rate)) for name, rate in rates.items()}
    whole = exact["input"] * ((told.input or 0) - told.cached)
    whole += exact.get("cached", exact["input"]) * told.cached + exact["output"] * (told.output or 0)
    if currency == "cny":
        whole /= Fraction(str(USD_CNY))
    return -(-whole.numerator // whole.denominator)


def price_file(directory: Path) -> str:
    groups = [
        {
            "provider": provider,
            "currency": currency,
            "source": "https://example.com/prices",
            "looked_at": "2026-11-22",
            "models": {name: dict(rates) for name, rates in rows.items()},
        }
        for provider, (currency, rows) in PRICES.items()
    ]
    path = directory / "prices.yaml"
    path.write_text(json.dumps({"prices": groups}, indent=1))
    return str(path)


def config(urls: Mapping[str, str], directory: Path, *, port: int | None = None, demo: bool = True) -> dict[str, Any]:
    """The router's config, for providers at these addresses."""
    key = f"${{{KEY_VARIABLE}}}"
    slow = {"connect": 2.0, "first_content": 20.0, "idle": 10.0, "total": 60.0}

    def cloud(vendor: str, path: str, name: str, **more: Any) -> dict[str, Any]:
        return {"vendor": vendor, "base_url": f"{urls[name]}{path}", "api_key": key, "timeouts": dict(slow), **more}

    nobody = f"http://127.0.0.1:{refused_port()}/v1"
    gpu: dict[str, Any] = {"vendor": "ollama", "base_url": urls["gpu"], "local": True, "timeouts": dict(slow)}
    providers: dict[str, Any] = {
        "openai": cloud("openai", "/v1", "openai"),
        "gemini": cloud("gemini", "/v1beta", "gemini"),
        "doubao": cloud("doubao", "/api/v3", "doubao"),
        "kimi": cloud("kimi", "/v1", "kimi"),
        # A server of the house: quick to be given up, and it tells its list.
        "campus": cloud(
            "openai-compatible", "/v1", "campus", models="discover",
            timeouts={"connect": 1.0, "first_content": 1.0, "idle": 5.0, "total": 30.0},
        ),
        "gpu": {**gpu, "max_concurrency": GPU_PLACES, "queue": GPU_QUEUE},
        # A machine of the house that is switched off.
        "lab": {"vendor": "openai-compatible", "base_url": nobody, "local": True, "models": "discover"},
        # Waits for a key.
        "spare": {"vendor": "openai-compatible", "base_url": nobody, "api_key": "${DEMO_SPARE_KEY:-}"},
    }  # fmt: skip
    local = f"gpu/{GPU_MODEL}"
    models: dict[str, Any] = {
        "gpt-5-mini": {"targets": ["openai/gpt-5-mini"], "fallback": ["gemini/gemini-3-flash", local]},
        "gpt-4o": {"targets": ["openai/gpt-4o"], "fallback": ["gemini/gemini-3-flash", local]},
        "lab-llama-70b": {"targets": ["lab/llama-70b"], "fallback": ["openai/gpt-4o", local]},
        "gemini-3-flash": {"targets": ["gemini/gemini-3-flash"], "fallback": [local]},
        "doubao-seed-1-8": {"targets": ["doubao/doubao-seed-1-8"], "fallback": ["kimi/kimi-k2.6", local]},
        "kimi-k2.6": {"targets": ["kimi/kimi-k2.6"], "fallback": ["doubao/doubao-seed-1-8", local]},
        "qwen3-*": {"targets": ["campus/qwen3-*"], "fallback": [local]},
        GPU_MODEL: {"targets": [local], "fallback": ["campus/qwen3-32b"]},
        "only-openai": {"targets": ["openai/gpt-5-mini"], "fallback": []},
        "only-gpu": {"targets": [local], "fallback": []},
        "text-embedding-3-small": {"targets": ["openai/text-embedding-3-small"]},
        "bge-m3": {"targets": [f"gpu/{GPU_VECTORS}"]},
        "reserve": {"targets": ["spare/reserve"], "fallback": [local]},
    }
    if demo:
        providers["demo"] = {"vendor": "demo", "local": True, "models": ["gemma-3-270m"], "max_concurrency": 2}
        models["demo"] = {"targets": ["demo/gemma-3-270m"], "fallback": []}
    found: dict[str, Any] = {
        "providers": providers,
        "models": models,
        "fallback": [local],
        "prices": {"file": price_file(directory), "usd_cny": USD_CNY},
    }
    if port is not None:
        found["server"] = {"listen": [{"host": "127.0.0.1", "port": port}]}
    return found


def demo_installed() -> bool:
    """Whether the bundled model can run here."""
    return missing() is None


# --- teams and keys


@dataclass(frozen=True, slots=True)
class Team:
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    team: str
    fields: Mapping[str, Any]


SHANGHAI: Final = "Asia/Shanghai"
TEAMS: Final = (
    Team("research", {"timezone": SHANGHAI, "limits": {"budget": {"month": "800cny"}, "concurrency": 60}}),
    Team("product", {"limits": {"budget": {"day": "2usd", "month": "40usd"}, "max_tokens": {"day": "2m"}}}),
    Team("course", {"timezone": SHANGHAI, "limits": {"budget": {"day": "0.05usd"}, "max_requests": {"day": 2000}}}),
    Team("ops", {}),
)
KEYS: Final = (
    Key("notebook", "research", {"limits": {"tpm": "400k", "budget": {"day": "30cny"}}}),
    Key("nightly-batch", "research", {"limits": {"max_tokens": {"month": "20m"}}}),
    Key("chat-app", "product", {"limits": {"budget": {"day": "1usd"}}}),
    Key("editor", "product", {"limits": {"concurrency": 20}}),
    Key("ci", "product", {"limits": {"rpm": 6}}),
    Key("class-a", "course", {}),
    Key("class-b", "course", {"limits": {"max_requests": {"total": 12}}}),
    Key("probe", "ops", {}),
    Key("kiosk", "ops", {"models": ["qwen3*", "only-gpu"], "rights": {"allow_fallback": False}}),
)
EVERYDAY: Final = ("notebook", "nightly-batch", "chat-app", "editor", "probe")
"""Keys of the traffic in the background."""
