"""Price lists: the one that is shipped, the operator's own, litellm's; and what is wrong with them, with its place."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from router import price_data
from router.config import ConfigErrors
from router.price_file import read_price_file, shipped
from router.prices import load_prices
from tests.prices.support import Bench, config_of

ROOT = Path(__file__).parents[2]
OWN = """
prices:
  - vendor: {who}
    currency: usd
    source: https://example.com/prices
    looked_at: "2026-11-22"
    models:
"""


def own(rows: str, who: str = "openai") -> str:
    return OWN.format(who=who) + "".join(f"      {line}\n" for line in rows.splitlines())


def at(moment: str) -> float:
    return datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()


# --- the shipped list


def test_every_shipped_price_has_its_source_and_day(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert len(bench.prices.entries) > 100
    for entry in bench.prices.entries:
        assert entry.price.source.startswith("https://"), entry.pattern.text
        assert date(2026, 1, 1) <= date.fromisoformat(entry.price.looked_at) <= date(2030, 1, 1), entry.pattern.text
        assert entry.price.input > 0, f"{entry.pattern.text} has no input price"
        for tier in entry.price.tiers:
            assert tier.input >= entry.price.input
            assert tier.output >= entry.price.output
        for kind in (entry.price, *entry.price.tiers):
            assert kind.cached is None or kind.cached <= kind.input, (
                f"{entry.pattern.text}: cached costs more than input"
            )


@pytest.mark.parametrize(
    ("provider", "model", "micro_input", "micro_output"),
    [
        pytest.param("openai", "gpt-4o-mini", 150_000, 600_000, id="openai"),
        pytest.param("openai", "gpt-4o-2024-08-06", 2_500_000, 10_000_000, id="a dated name"),
        pytest.param("gemini", "gemini-2.5-pro", 1_250_000, 10_000_000, id="gemini"),
        pytest.param("gemini", "models/gemini-2.5-pro", 1_250_000, 10_000_000, id="gemini's long name"),
        pytest.param("doubao", "doubao-seed-2-0-pro-260215", 450_704, 2_253_521, id="doubao, 3.2 and 16 yuan at 7.1"),
        pytest.param("kimi", "kimi-k2.6", 915_493, 3_802_817, id="kimi in yuan"),
        pytest.param("kimi-world", "kimi-k2.6", 950_000, 4_000_000, id="kimi in dollars"),
    ],
)
def test_a_shipped_price(tmp_path: Path, provider: str, model: str, micro_input: int, micro_output: int) -> None:
    price = Bench(tmp_path).price(provider, model)
    assert price is not None
    assert (price.input, price.output) == (micro_input, micro_output)


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_guides_examples_have_a_price(tmp_path: Path, page: str) -> None:
    """Else a key with a limit in money could not use what its holder reads first."""
    names = re.findall(r"\b(openai|gemini|doubao|kimi|deepseek)/([a-z][a-z0-9.-]*[a-z0-9])", (ROOT / page).read_text())
    bench = Bench(tmp_path)
    assert {("kimi", "kimi-k2.6"), ("deepseek", "deepseek-flash")} <= set(names)
    assert [f"{provider}/{model}" for provider, model in names if bench.price(provider, model) is None] == []


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-reasoner"])
def test_a_name_that_ended_costs_what_answers_to_it(tmp_path: Path, model: str) -> None:
    bench = Bench(tmp_path)
    assert bench.price("deepseek", model) == bench.price("deepseek", "deepseek-flash")


def test_the_exchange_rate_is_the_config_s(tmp_path: Path) -> None:
    price = Bench(tmp_path, extra="prices: {usd_cny: 6.5}\n").price("kimi", "kimi-k2.6")
    assert price is not None
    assert price.input == 1_000_000


def test_a_price_ends_on_its_day(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    before = bench.price("gemini", "gemini-3.8-flash", at("2026-12-31T23:59:59"))
    after = bench.price("gemini", "gemini-3.8-flash", at("2027-01-01T00:00:00"))
    assert before is not None
    assert after is not None
    assert (before.input, after.input) == (750_000, 1_500_000)
    assert bench.price("gemini", "gemini-3.8-flash", at("2026-12-31T23:59:59")) is before  # and the clock may go back


@pytest.mark.parametrize(
    ("moment", "peak"),
    [
        pytest.param("2026-11-23T00:59:59", False, id="monday before the peak"),
        pytest.param("2026-11-23T01:00:00", True, id="monday at its start"),
        pytest.param("2026-11-23T03:59:59", True, id="monday before its end"),
        pytest.param("2026-11-23T04:00:00", False, id="monday at its end"),
        pytest.param("2026-11-23T09:30:00", True, id="monday's second peak"),
        pytest.param("2026-11-22T02:00:00", False, id="sunday"),
        pytest.param("2026-11-21T02:00:00", False, id="saturday"),
        pytest.param("2026-11-20T02:00:00", True, id="friday"),
    ],
)
def test_off_peak_hours_cost_half(tmp_path: Path, moment: str, peak: bool) -> None:
    bench = Bench(tmp_path)
    bench.price("deepseek", "deepseek-flash", at(moment) - 3600)  # what is remembered of before must not hold
    price = bench.price("deepseek", "deepseek-flash", at(moment))
    assert price is not None
    assert (price.input, price.output) == ((300_000, 1_200_000) if peak else (150_000, 600_000))


# --- what costs nothing, and what nobody knows


@pytest.mark.parametrize("provider", ["box", "demo"])
def test_a_model_on_a_machine_of_one_s_own_costs_nothing(tmp_path: Path, provider: str) -> None:
    price = Bench(tmp_path).price(provider, "gpt-4o-mini")
    assert price is not None
    assert price.free
    assert price.bound(10**6, 10**6) == 0


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        pytest.param("openai", "gpt-99", id="no list names it"),
        pytest.param("paid", "gpt-4o", id="a server that could be anybody's"),
        pytest.param("doubao", "ep-20260101000000-abcde", id="an endpoint, before it says its model"),
        pytest.param("doubao", "doubao-embedding", id="zero in litellm's list"),
        pytest.param("kimi", "kimi-k3.1-pro", id="known in dollars only, asked for in yuan"),
        pytest.param("qwen", "qwen3.8-max", id="known abroad only"),
        pytest.param("gemini", "gemma-4-31b-it", id="zero there too"),
    ],
)
def test_an_unknown_price_is_never_free(tmp_path: Path, provider: str, model: str) -> None:
    assert Bench(tmp_path).price(provider, model) is None


# --- the operator's own list


def test_own_prices_go_before_shipped_ones(tmp_path: Path) -> None:
    bench = Bench(tmp_path, own("gpt-4o-mini: {input: 1, output: 2}\nmy-tuned: {input: 3, output: 4}"))
    mini, tuned = bench.price("openai", "gpt-4o-mini"), bench.price("openai", "my-tuned")
    assert mini is not None
    assert tuned is not None
    assert (mini.input, tuned.output) == (1_000_000, 4_000_000)
    assert bench.price("openai", "gpt-4o") is not None


def test_a_longer_pattern_is_nearer(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, own('"x-*": {input: 1, output: 1}\n"x-big-*": {input: 5, output: 5}\nx-big-1: {input: 9, output: 9}')
    )
    found = [bench.price("openai", name) for name in ("x-small", "x-big-2", "x-big-1", "X-Big-1")]
    assert [price.input // 1_000_000 for price in found if price is not None] == [1, 5, 9, 9]


def test_a_provider_of_the_config_can_have_prices_by_its_name(tmp_path: Path) -> None:
    text = own('"*": {input: 0.5, output: 1.5}').replace("vendor: openai", "provider: paid")
    bench = Bench(tmp_path, text)
    price = bench.price("paid", "anything")
    assert price is not None
    assert price.input == 500_000
    assert bench.price("openai", "gpt-99") is None


def test_a_machine_of_one_s_own_can_be_given_a_price(tmp_path: Path) -> None:
    bench = Bench(tmp_path, own('"*": {input: 0.5, output: 1.5}').replace("vendor: openai", "provider: box"))
    price = bench.price("box", "llama3.2")
    assert price is not None
    assert not price.free


def test_zero_in_a_list_of_ours_is_free(tmp_path: Path) -> None:
    price = Bench(tmp_path, own("gift: {input: 0, output: 0}")).price("openai", "gift")
    assert price is not None
    assert price.free


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        pytest.param(own("m: {input: -1, output: 2}"), 8, 18, "must be at least 0, not -1", id="negative"),
        pytest.param(own("m: {input: x, output: 2}"), 8, 18, "must be a number", id="no number"),
        pytest.param(own("m: {output: 2}"), 8, 10, "needs an input price", id="no input price"),
        pytest.param(own("m: {input: 1, outputs: 2}"), 8, 21, 'did you mean "output"', id="unknown setting"),
        pytest.param(own("m: {input: 1, output: 2, from: tomorrow}"), 8, 38, "must be a day such as", id="no day"),
        pytest.param(
            own('m: {input: 1, output: 2, from: "2026-02-01", until: "2026-01-01"}'),
            8,
            10,
            "before it begins",
            id="ends first",
        ),
        pytest.param(
            own("m: {input: 1, output: 2}\nM: {input: 1, output: 2}"), 9, 10, "two prices for the same day", id="twice"
        ),
        pytest.param(
            own("m: {input: 1, output: 2, tiers: [{above: 9, input: 1}, {above: 9, input: 2, output: 2}]}"),
            8,
            40,
            "needs the prices",
            id="half a tier",
        ),
        pytest.param(
            own("m: {input: 1, output: 2, off_peak: {percent: 50, peak: [9-12]}}"),
            8,
            63,
            "hours of a day",
            id="no hours",
        ),
        pytest.param(
            OWN.format(who="openai").replace("vendor: openai", "host: x") + "      m: {input: 1}\n",
            3,
            5,
            "needs either a vendor or a provider",
            id="nobody's",
        ),
        pytest.param(
            own("m: {input: 1}").replace("https://example.com/prices", "a friend"),
            5,
            13,
            "must be the address",
            id="no source",
        ),
        pytest.param("prices: [\n", 2, 1, "not valid YAML", id="not YAML"),
        pytest.param("- a\n", 1, 1, "must be a mapping", id="a list"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, line: int, column: int, message: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ConfigErrors) as raised:
        read_price_file(file)
    assert any((problem.line, message in problem.message) == (line, True) for problem in raised.value.problems), (
        raised.value.problems
    )
    assert {problem.file for problem in raised.value.problems} == {str(file)}
    assert any(problem.column == column for problem in raised.value.problems), raised.value.problems


def test_a_file_that_is_missing_is_said_at_the_setting(tmp_path: Path) -> None:
    config = config_of(tmp_path, extra="prices: {file: nowhere.yaml}\n")
    with pytest.raises(ConfigErrors, match=r"switchyard.yaml:\d+:\d+: prices.file: there is no file .*nowhere.yaml"):
        load_prices(config)


def test_the_shipped_list_is_found_wherever_one_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped().is_file()


# --- litellm's list


def test_what_ours_does_not_name_is_looked_up_in_litellm_s(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for provider, model in (
        ("openai", "gpt-5-search-api"),
        ("gemini", "gemini-3.7-flash"),
        ("groq", "openai/gpt-oss-120b"),
        ("bedrock", "anthropic.claude-haiku-4-5-20251001-v1:0"),
    ):
        price = bench.price(provider, model)
        assert price is not None, model
        assert price.source == "litellm"
        assert price.input > 0
        assert price.output > 0


def write(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "list.json"
    file.write_text(text)
    monkeypatch.setattr(price_data, "bundled", lambda: file)
    price_data.rows.cache_clear()


@pytest.fixture
def fresh() -> object:
    yield
    price_data.rows.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_rows_of_litellm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(each_in: float | None, each_out: object, mode: str = "chat", owner: str = "openai", **more: object) -> Any:
        tokens = {"input_cost_per_token": each_in, "output_cost_per_token": each_out}
        return {"litellm_provider": owner, "mode": mode, **tokens, **more}

    steps = [
        {"range": [0, 256000.0], "input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07},
        {"range": [256000.0, 1000000.0], "input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06},
    ]
    listed = {
        "sample_spec": row(0.0, "text"),
        "plain": row(1.5e-07, 6e-07, cache_read_input_token_cost=0, max_output_tokens=16384),
        "tiers": row(1e-06, 2e-06, input_cost_per_token_above_200k_tokens=3e-06),
        "steps": row(None, None, tiered_pricing=steps),
        "vectors": row(2e-08, 0.0, "embedding"),
        "half": row(1e-06, 0.0),
        "picture": row(1e-06, 1e-06, "image_generation"),
        "nonsense": row(-1, "1"),
        "theirs": row(1e-06, 1e-06, owner="azure"),
    }
    write(tmp_path, json.dumps(listed), monkeypatch)

    def look(name: str) -> price_data.Listed | None:
        return price_data.find((name,), ("openai",))

    plain, tiers, stepped = look("plain"), look("tiers"), look("steps")
    assert plain == price_data.Listed({"input": 150_000, "output": 600_000}, [], 16384, 0)
    assert tiers is not None
    assert tiers.tiers == [(200_000, {"input": 3_000_000, "output": 2_000_000})]
    assert stepped is not None
    assert (stepped.rates["input"], stepped.tiers) == (50_000, [(256_000, {"input": 250_000, "output": 2_000_000})])
    assert look("vectors") is not None
    for name in ("sample_spec", "half", "picture", "nonsense", "theirs", "nobody"):
        assert look(name) is None, name


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "{"])
def test_a_damaged_list_of_litellm_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    write(tmp_path, text, monkeypatch)
    assert price_data.rows() == {}


@pytest.mark.usefixtures("fresh")
def test_litellm_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_data, "find_spec", lambda _name: None)
    price_data.rows.cache_clear()
    bench = Bench(tmp_path)
    assert bench.price("openai", "gpt-5-search-api") is None
    assert bench.price("openai", "gpt-4o-mini") is not None
