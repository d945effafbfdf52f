"""The table of names: complete, described, and the conventions' own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from providers.compatible import PROFILES
from providers.registry import VENDORS
from router import otel_names as names
from tests.simulators.router import ROOT

PAGE = (ROOT / "docs/telemetry.md").read_text("utf-8")
SOURCES = [file for file in Path(ROOT / "router").rglob("*.py") if file.name != "otel_names.py"]
DEVELOPING = {names.CACHE_WRITE, names.TOKEN_MODALITY}
"""Names of the latest conventions that the package does not have yet."""


def attributes() -> ModuleType:
    module: ModuleType = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    return module


def texts(module: ModuleType) -> set[str]:
    return {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}


def test_no_other_file_writes_a_name_down() -> None:
    pattern = re.compile(r"""["'`](?:gen_ai|switchyard)\.(?:client|server|usage|request|response|provider)\.""")
    assert [str(file) for file in SOURCES if pattern.search(file.read_text("utf-8"))] == []


def test_every_constant_is_in_the_table() -> None:
    found = {
        value
        for name, value in vars(names).items()
        if name.isupper() and name[0] != "_" and isinstance(value, str) and "." in value
    }
    assert found == {*names.SPAN_ATTRIBUTES, *names.METRIC_ATTRIBUTES}


def test_attributes_are_the_conventions_own() -> None:
    ours = {name for name in (*names.SPAN_ATTRIBUTES, *names.METRIC_ATTRIBUTES) if name.startswith("gen_ai.")}
    assert ours - texts(attributes()) == DEVELOPING
    assert names.RENAMED["published"].keys() <= DEVELOPING


def test_published_metrics_are_the_conventions_own() -> None:
    module = pytest.importorskip("opentelemetry.semconv._incubating.metrics.gen_ai_metrics")
    rows = [row for some in names.METRICS["published"].values() for row in some]
    assert {row.name for row in rows} == texts(module) - {"gen_ai.client.operation.time_per_output_chunk"}
    for row in rows:
        assert row.unit == ("{token}" if row.name.endswith("usage") else "s")
        assert row.buckets is not None
        assert list(row.buckets) == sorted(set(row.buckets))


DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
COUNT = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
BUCKETS: Mapping[str, tuple[float, ...]] = {
    "gen_ai.client.operation.duration": DURATION,
    "gen_ai.client.operation.time_to_first_chunk": DURATION,
    "gen_ai.client.token.usage": COUNT,
    "gen_ai.client.inference.duration": DURATION,
    "gen_ai.client.inference.time_to_first_chunk": DURATION,
    "gen_ai.client.inference.operation.input_tokens": COUNT,
    "gen_ai.client.inference.operation.output_tokens": COUNT,
    "gen_ai.server.request.duration": DURATION,
    "gen_ai.server.time_to_first_token": (*FIRST_TOKEN, 15, 20, 30, 45, 60),  # the conventions end at 10 s
    "gen_ai.server.time_per_output_token": (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
}
"""As https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/ has them."""


def test_buckets_are_the_conventions_own() -> None:
    rows = {row.name: row.buckets for table in names.METRICS.values() for some in table.values() for row in some}
    assert {name: buckets for name, buckets in rows.items() if buckets is not None} == BUCKETS


@pytest.mark.parametrize("chosen", ["published", "latest"])
def test_one_name_is_one_instrument(chosen: names.Names) -> None:
    seen: dict[str, tuple[object, ...]] = {}
    for rows in names.METRICS[chosen].values():
        for row in rows:
            assert seen.setdefault(row.name, row[:4]) == row[:4]
            assert {name for name, _ in row.adds} <= {names.TOKEN_TYPE, names.TOKEN_MODALITY}
    assert "gen_ai.client.token.usage" not in seen or chosen == "published"


def test_values_are_the_conventions_own() -> None:
    module = attributes()
    assert set(names.OPERATIONS.values()) <= {one.value for one in module.GenAiOperationNameValues}
    known = {one.value for one in module.GenAiProviderNameValues} | {"moonshot_ai"}  # newer than the package
    own = {"volcengine", "ollama", "llama_cpp", "openai_compatible"}
    assert {*names.VENDORS.values(), *names.PROFILES.values(), *names.LITELLM.values()} <= known | own


def test_every_vendor_has_a_value() -> None:
    assert names.VENDORS.keys() == VENDORS.keys() - {"litellm"}
    assert names.PROFILES.keys() <= PROFILES.keys()
    assert names.provider_name("kimi") == "moonshot_ai"
    assert names.provider_name("openai-compatible") == "openai_compatible"
    assert names.provider_name("openai-compatible", "xai") == "x_ai"
    assert names.provider_name("openai-compatible", "qwen") == "qwen"
    assert names.provider_name("litellm", None, "bedrock") == "aws.bedrock"
    assert names.provider_name("litellm", None, "anthropic") == "anthropic"


def test_the_page_has_the_tables() -> None:
    for name, meaning in names.SPAN_ATTRIBUTES.items():
        assert f"\n| `{name}` | {meaning} |\n" in PAGE
    by_name: dict[str, set[str]] = {}
    for chosen, table in names.METRICS.items():
        for rows in table.values():
            for row in rows:
                by_name.setdefault(row.name, set()).add(chosen)
                kind = (
                    f"{'counter' if row.buckets is None else 'histogram'}, {'seconds' if row.unit == 's' else 'tokens'}"
                )
                assert re.search(rf"\n\| `{re.escape(row.name)}` \| {kind} \| \w+ \| {re.escape(row.text)} \|\n", PAGE)
    for name, chosen_by in by_name.items():
        said = "both" if len(chosen_by) == 2 else chosen_by.pop()
        assert re.search(rf"\| `{re.escape(name)}` \| [^|]* \| {said} \|", PAGE)
    listed = set(re.findall(r"^\| `((?:gen_ai|switchyard)\.[\w.]+)` \|", PAGE, re.MULTILINE))
    assert listed <= {*by_name, *names.SPAN_ATTRIBUTES}
