"""Where a model name leads, in which order, and why not elsewhere."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.call import Needs
from providers.errors import InvalidRequest, ModelNotAllowed, ModelNotFound, NoTarget, Unavailable, UnsupportedFeature
from providers.vendor import Capabilities, ModelFacts
from router.config import ConfigErrors
from router.health import Block
from router.patterns import Pattern, fill
from router.routing import MAX_ATTEMPTS, Rights, Running, plan, visible
from router.snapshot import compile_snapshot
from tests.routing.support import config_of, healthy, plan_of, reasons, snapshot_of, targets

DOWN = Block(Unavailable("it fell over"), 8.4, cooldown=False)
BASE = """
providers:
  openai: {vendor: openai, api_key: k}
  second: {vendor: openai, api_key: k}
  gemini: {vendor: gemini, api_key: k}
  dark: {vendor: kimi, api_key: "${DARK_KEY:-}"}
  local: {vendor: ollama}
  declared: {vendor: openai-compatible, base_url: "http://10.0.0.1:9/v1", models: [alpha, beta]}
models:
  gpt-4o-mini: {targets: [openai/gpt-4o-mini]}
  "gpt-*": {targets: ["openai/*"]}
  "gpt-4*": {targets: ["second/*"]}
  "gemini-*": {targets: ["gemini/*"]}
  "my-*": {targets: ["openai/gpt-*-turbo"]}
  llama3.2: {targets: [local/llama3.2]}
  "tagged:latest": {targets: [local/tagged]}
  weighted: {targets: [{to: openai/a, weight: 3}, {to: second/b}, {to: gemini/c, weight: 0}]}
  tiered: {targets: [{to: gemini/late, priority: 2}, {to: openai/first}, {to: local/last, priority: 3}]}
  unlit: {targets: [dark/x]}
  picky: {targets: [openai/tiny, second/plain], capabilities: {}}
  blind: {targets: [openai/x], capabilities: {vision: false}, fallback: []}
  own-chain: {targets: [openai/x], fallback: [gemini/y, tiered]}
  no-chain: {targets: [openai/x], fallback: []}
  embedder: {targets: [openai/embed-1], fallback: [second/embed-1, local/embed-2]}
fallback: [local/qwen2.5:7b]
"""


@pytest.mark.parametrize(
    ("asked", "matched", "first"),
    [
        ("gpt-4o-mini", "exact", "openai/gpt-4o-mini"),
        ("gpt-5", "pattern:gpt-*", "openai/gpt-5"),
        ("gpt-4o", "pattern:gpt-4*", "second/gpt-4o"),
        ("gemini-2.5-flash", "pattern:gemini-*", "gemini/gemini-2.5-flash"),
        ("my-4", "pattern:my-*", "openai/gpt-4-turbo"),
        ("gemini/models/x", "written", "gemini/models/x"),
        ("local/llama3.2:3b", "written", "local/llama3.2:3b"),
        ("llama3.2", "exact", "local/llama3.2"),
        ("llama3.2:latest", "exact", "local/llama3.2"),
        ("tagged", "exact", "local/tagged"),
        ("phi3", "discovered", "local/phi3:latest"),
        ("phi3:latest", "discovered", "local/phi3:latest"),
        ("PHI3", "discovered", "local/phi3:latest"),
        ("qwen2.5:7b", "discovered", "local/qwen2.5:7b"),
        ("org/model", "discovered", "local/org/model"),
        ("alpha", "discovered", "declared/alpha"),
        ("declared/beta", "written", "declared/beta"),
    ],
)
def test_names(asked: str, matched: str, first: str) -> None:
    snapshot = snapshot_of(BASE, discovered={"local": ["phi3:latest", "qwen2.5:7b", "org/model"]})
    found = plan_of(snapshot, asked)
    assert (found.matched, targets(found)[0]) == (matched, first)
    assert plan_of(snapshot, asked) == found, "the second time from the cache"


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("gpt4o-mini", ["gpt-4o-mini"]),
        ("lama3.2", ["llama3.2"]),
        ("declared/betta", ["declared/beta"]),
        ("opnai/x", []),
        ("local/", []),
        ("", []),
        ("x" * 5000, []),
        ("zzz", []),
    ],
)
def test_unknown_names_are_404_with_what_is_near(asked: str, near: list[str]) -> None:
    with pytest.raises(ModelNotFound) as caught:
        plan_of(snapshot_of(BASE), asked)
    assert caught.value.status == 404
    assert set(near) <= set(caught.value.near)
    assert len(caught.value.message) < 300


def test_a_name_that_two_providers_serve_must_be_written_out() -> None:
    snapshot = snapshot_of(BASE, discovered={"local": ["shared"], "gemini": ["shared"]})
    with pytest.raises(ModelNotFound, match="write gemini/shared or local/shared"):
        plan_of(snapshot, "shared")
    assert targets(plan_of(snapshot, "gemini/shared"))[0] == "gemini/shared"


def test_a_name_that_one_provider_serves_while_the_other_is_off_is_plain() -> None:
    snapshot = snapshot_of(BASE, discovered={"local": ["shared"], "dark": ["shared"]})
    assert targets(plan_of(snapshot, "shared"))[0] == "local/shared"


def test_the_remembered_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.snapshot.ROUTE_CACHE", 10)
    snapshot = snapshot_of(BASE)
    for number in range(50):
        plan_of(snapshot, f"gpt-{number}")
    assert len(snapshot._routes) <= 10


# -- order --------------------------------------------------------------------------------------------------------


def test_priorities_then_fallback() -> None:
    found = plan_of(snapshot_of(BASE), "tiered")
    assert targets(found) == ["openai/first", "gemini/late", "local/last", "local/qwen2.5:7b"]
    assert [attempt.role for attempt in found.attempts] == ["target"] * 3 + ["fallback"]


@pytest.mark.parametrize(
    ("roll", "first"), [(0.0, "openai/a"), (0.7499, "openai/a"), (0.75, "second/b"), (0.9999, "second/b")]
)
def test_weights_decide_by_the_roll(roll: float, first: str) -> None:
    found = plan_of(snapshot_of(BASE), "weighted", rolls=[roll])
    assert targets(found)[0] == first
    assert set(targets(found)[:2]) == {"openai/a", "second/b"}
    assert reasons(found)["gemini/c"] == "weight_zero"


def test_weights_hold_over_many_rolls() -> None:
    snapshot, random = snapshot_of(BASE), Random(7)
    first = Counter(
        str(plan(snapshot, "weighted", Needs(), Rights(), healthy, random.random).attempts[0]) for _ in range(4000)
    )
    assert 2850 < first["openai/a"] < 3150


def test_no_dice_where_one_target_is_left() -> None:
    found = plan_of(snapshot_of(BASE), "weighted", sick={"openai/a": DOWN})
    assert targets(found)[0] == "second/b"


def test_fallback_chains() -> None:
    snapshot = snapshot_of(BASE)
    assert targets(plan_of(snapshot, "gpt-4o-mini")) == ["openai/gpt-4o-mini", "local/qwen2.5:7b"]
    assert targets(plan_of(snapshot, "no-chain")) == ["openai/x"]
    own = plan_of(snapshot, "own-chain")
    assert targets(own) == ["openai/x", "gemini/y", "openai/first", "local/last"], (
        "a model name in a chain is its targets"
    )
    assert reasons(own) == {"gemini/late": "attempts_limit"}


def test_nothing_is_tried_twice() -> None:
    assert targets(plan_of(snapshot_of(BASE), "local/qwen2.5:7b")) == ["local/qwen2.5:7b"]


def test_the_local_end_keeps_its_place() -> None:
    snapshot = snapshot_of("""
providers: {openai: {vendor: openai, api_key: k}, local: {vendor: ollama}}
models: {many: {targets: [{to: openai/a}, {to: openai/b, priority: 2}, {to: openai/c, priority: 3},
  {to: openai/d, priority: 4}, {to: openai/e, priority: 5}]}}
fallback: [openai/f, local/z]
""")
    found = plan_of(snapshot, "many")
    assert len(found.attempts) == MAX_ATTEMPTS
    assert targets(found) == ["openai/a", "openai/b", "openai/c", "local/z"]
    assert reasons(found) == dict.fromkeys(("openai/d", "openai/e", "openai/f"), "attempts_limit")
    without = plan_of(snapshot, "many", fallback=False)
    assert targets(without) == ["openai/a", "openai/b", "openai/c", "openai/d"]


# -- reasons ------------------------------------------------------------------------------------------------------

CANNOT = {
    "vision": Needs(vision=True),
    "tools": Needs(tools=True),
    "schema": Needs(schema=True),
    "reasoning": Needs(reasoning=True),
    "embeddings": Needs(kind="embed"),
}


@pytest.mark.parametrize("lack", CANNOT)
def test_a_target_that_cannot_is_skipped(lack: str) -> None:
    found = plan_of(snapshot_of(BASE), "picky", CANNOT[lack], rolls=[0.0])
    assert targets(found)[0] == "second/plain", "what is not known is allowed"
    assert reasons(found)["openai/tiny"] == f"no_{lack}"


@pytest.mark.parametrize("need", ["audio", "files", "image_urls", "token_inputs", "logprobs", "choices"])
def test_every_need_has_its_reason(need: str) -> None:
    facts = ModelFacts("m", Capabilities(**{need: False}))
    snapshot = snapshot_of(BASE, discovered={"local": [facts]})
    needs = Needs(choices=2) if need == "choices" else Needs(**{need: True})  # type: ignore[arg-type]  # names of bools
    found = plan_of(snapshot, "local/m", needs)
    assert reasons(found)["local/m"] == f"no_{need}"


def test_of_several_lacks_one_is_named() -> None:
    found = plan_of(snapshot_of(BASE), "openai/tiny", Needs(vision=True, tools=True, schema=True), fallback=False)
    assert reasons(found)["openai/tiny"] == "no_vision"


def test_a_prompt_that_cannot_fit() -> None:
    snapshot = snapshot_of(BASE)
    assert "openai/tiny" in targets(plan_of(snapshot, "openai/tiny", Needs(prompt_bytes=80)))
    found = plan_of(snapshot, "openai/tiny", Needs(prompt_bytes=81), fallback=False)
    assert reasons(found)["openai/tiny"] == "context_too_small"
    refusal = found.refusal()
    assert isinstance(refusal, InvalidRequest)
    assert refusal.native_code == "context_length_exceeded"


def test_kinds_and_embedding_models() -> None:
    snapshot = snapshot_of(BASE)
    chat = plan_of(snapshot, "embedder", Needs(), fallback=False)
    assert reasons(chat)["openai/embed-1"] == "no_chat"
    embed = plan_of(snapshot, "embedder", Needs(kind="embed"))
    assert targets(embed) == ["openai/embed-1", "second/embed-1"], "only the same model gives comparable vectors"
    assert reasons(embed) == {"local/embed-2": "embeddings_differ"}


def test_facts_come_from_the_row_then_the_provider_then_the_vendor_then_the_server() -> None:
    text = """
providers:
  p: {vendor: ollama, capabilities: {"t*": {tools: true, context: 20}, "tin*": {schema: true}}}
models: {m: {targets: [p/tiny], capabilities: {vision: true}}}
"""
    server = ModelFacts("tiny", Capabilities(audio=True, context=99, tools=False))
    known = snapshot_of(text, discovered={"p": [server]}).models[0].capabilities
    assert known.vision is True, "row"
    assert known.schema is True, "the provider's longest pattern"
    assert known.tools is False, "the shorter pattern does not count, the vendor says no"
    assert known.context == 10, "vendor"
    assert known.audio is True, "server"


def test_off_providers_and_their_words() -> None:
    text = """
server: {listen: [{host: 127.0.0.1, port: 11434}]}
providers:
  none: {vendor: openai}
  empty: {vendor: openai, api_key: "${A:-${B:-}}"}
  empty-local: {vendor: openai, api_key: "${A:-}", local: true, base_url: "http://127.0.0.1:9/v1"}
  waits: {vendor: litellm, litellm_provider: azure, api_key: "${AZURE_API_KEY:-}"}
  keyless: {vendor: litellm, litellm_provider: bedrock}
  disabled: {vendor: ollama, enabled: false}
  self: {vendor: ollama, base_url: "${OLLAMA_HOST:-localhost}"}
  other: {vendor: ollama, base_url: "localhost:11435"}
"""
    assert {name: provider.off for name, provider in snapshot_of(text).providers.items()} == {
        "none": 'it has no api_key; write for example api_key: "${OPENAI_API_KEY:-}"',
        "empty": "A and B are not set",
        "empty-local": None,
        "waits": "AZURE_API_KEY is not set",
        "keyless": None,
        "disabled": "enabled is false",
        "self": "http://localhost:11434 points at this router itself",
        "other": None,
    }


def test_unhealthy_targets_are_skipped_with_the_reason() -> None:
    found = plan_of(snapshot_of(BASE), "gpt-4o-mini", sick={"openai/gpt-4o-mini": DOWN})
    assert targets(found) == ["local/qwen2.5:7b"]
    assert found.attempts[0].role == "fallback"
    assert [(skip.reason, skip.detail, skip.block) for skip in found.skipped] == [
        ("unhealthy", "unavailable; it is tried again in 8 s", DOWN)
    ]


def test_a_fallback_that_is_not_installed_is_skipped() -> None:
    snapshot = snapshot_of(BASE, discovered={"local": ["phi3"]})
    assert reasons(plan_of(snapshot, "gpt-4o-mini"))["local/qwen2.5:7b"] == "not_installed"
    assert targets(plan_of(snapshot, "local/new")) == ["local/new"], "what was asked for is tried: the list may be old"


@pytest.mark.parametrize(("rights", "fallback"), [(Rights(allow_fallback=False), True), (Rights(), False)])
def test_fallback_can_be_turned_off(rights: Rights, fallback: bool) -> None:
    found = plan_of(snapshot_of(BASE), "gpt-4o-mini", rights=rights, fallback=fallback)
    assert targets(found) == ["openai/gpt-4o-mini"]
    assert reasons(found) == {"local/qwen2.5:7b": "fallback_off"}


# -- rights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rights", "asked", "allowed"),
    [
        (Rights(models=("gpt-*",)), "gpt-4o-mini", True),
        (Rights(models=("gpt-*",)), "llama3.2", False),
        (Rights(models=("llama3.2",)), "llama3.2:latest", True),
        (Rights(models=("llama3.2:latest",)), "llama3.2", True),
        (Rights(models=("gpt-4o-mini",)), "openai/gpt-4o-mini", False),
        (Rights(models=("openai/*",)), "openai/gpt-4o-mini", True),
        (Rights(deny=("gpt-4o*",)), "gpt-4o-mini", False),
        (Rights(deny=("gpt-4o*",)), "openai/gpt-4o-mini", False),
        (Rights(deny=("gpt-4o*",)), "openai/GPT-4o-mini", False),
        (Rights(deny=("gpt-4o*",)), "gpt-5", True),
        (Rights(models=("*",), deny=("*:latest",)), "llama3.2", True),
        (Rights(models=("*:latest",)), "gpt-5", False),
        (Rights(deny=("gpt-4o*",)), "openai/models/gpt-4o-mini", False),
        (Rights(deny=("openai/gpt-4o*",)), "openai/models/gpt-4o-mini", False),
        (Rights(deny=("gpt-4o*",)), "openai// GPT-4o-mini", False),
        (Rights(deny=("llama3.2",)), "openai/registry.ollama.ai/library/LLAMA3.2:Latest", False),
        (Rights(deny=("gpt-4o*",)), "openai/models/not-gpt-4o", True),
        (Rights(models=("gpt-4o*",)), "openai/models/gpt-4o-mini", False),
    ],
)
def test_names_a_key_may_use(rights: Rights, asked: str, allowed: bool) -> None:
    snapshot = snapshot_of(BASE)
    if allowed:
        assert plan_of(snapshot, asked, rights=rights).attempts
    else:
        with pytest.raises(ModelNotAllowed):
            plan_of(snapshot, asked, rights=rights)


def test_deny_reaches_the_targets_behind_a_name() -> None:
    found = plan_of(snapshot_of(BASE), "tiered", rights=Rights(deny=("gemini/*", "qwen*")))
    assert targets(found) == ["openai/first", "local/last"]
    assert reasons(found) == {"gemini/late": "denied", "local/qwen2.5:7b": "denied"}


def test_a_name_of_any_length_is_not_remembered() -> None:
    snapshot = snapshot_of(BASE)
    with pytest.raises(ModelNotAllowed):
        plan_of(snapshot, "gpt-" + "x" * 100_000, rights=Rights(models=("*",)))
    assert not snapshot._allowed


def test_a_server_that_we_run_is_not_mistaken_for_ourselves() -> None:
    text = "server: {listen: [{port: 80}]}\nproviders: {demo: {vendor: demo}}"
    assert snapshot_of(text, running={"demo": Running("http://127.0.0.1")}).providers["demo"].off is None
    stopped = snapshot_of(text, running={"demo": Running(off="the extra is not installed")}).providers["demo"]
    assert stopped.off == "the extra is not installed"


def test_local_only() -> None:
    found = plan_of(snapshot_of(BASE), "gpt-4o-mini", rights=Rights(local_only=True))
    assert targets(found) == ["local/qwen2.5:7b"]
    none = plan_of(snapshot_of(BASE), "no-chain", rights=Rights(local_only=True))
    assert isinstance(none.refusal(), ModelNotAllowed)
    assert none.refusal().status == 403


# -- refusals -----------------------------------------------------------------------------------------------------


def test_what_the_caller_is_told() -> None:
    snapshot = snapshot_of(BASE)
    blind = plan_of(snapshot, "blind", Needs(vision=True)).refusal()
    assert isinstance(blind, UnsupportedFeature)
    assert (blind.status, blind.param, blind.message) == (400, "messages", "model 'blind' does not support images.")
    off = plan_of(snapshot, "unlit", fallback=False).refusal()
    assert isinstance(off, NoTarget)
    assert off.status == 503
    assert "DARK_KEY is not set" in off.message
    mixed = plan_of(snapshot, "picky", Needs(tools=True), sick={"second/plain": DOWN}, fallback=False).refusal()
    assert isinstance(mixed, NoTarget)


def test_a_fallback_answers_where_the_target_cannot() -> None:
    text = BASE.replace("capabilities: {vision: false}, fallback: []", "capabilities: {vision: false}")
    assert targets(plan_of(snapshot_of(text), "blind", Needs(vision=True))) == ["local/qwen2.5:7b"]


# -- lists --------------------------------------------------------------------------------------------------------


def test_model_lists() -> None:
    facts = ModelFacts("phi3:latest", Capabilities(context=4096), {"size": 7})
    snapshot = snapshot_of(
        BASE, discovered={"local": [facts, ModelFacts("llama3.2:latest")], "gemini": [ModelFacts("x")]}
    )
    by_id = {entry.id: entry for entry in snapshot.listed}
    assert "gpt-*" not in by_id
    assert "unlit" not in by_id, "its only provider is off"
    assert "unlit" in {entry.id for entry in snapshot.models}
    assert by_id["phi3:latest"].facts == facts
    assert by_id["phi3:latest"].context_length == 4096
    assert by_id["phi3:latest"].local
    assert "llama3.2:latest" not in by_id, "the row of that name stands for it"
    assert "tagged:latest" not in by_id, "the server was asked and does not have it"
    assert by_id["alpha"].providers == ("declared",)
    assert not by_id["gpt-4o-mini"].local
    assert snapshot.entry("phi3") is by_id["phi3:latest"]
    assert snapshot.entry("llama3.2:latest") is by_id["llama3.2"]
    assert visible(snapshot, Rights()) is snapshot.listed
    assert {entry.id for entry in visible(snapshot, Rights(models=("gpt-*",)))} == {"gpt-4o-mini"}
    assert all(entry.local for entry in visible(snapshot, Rights(local_only=True)))


def test_every_listed_name_leads_somewhere() -> None:
    snapshot = snapshot_of(BASE, discovered={"local": ["shared", "phi3"], "gemini": ["shared"]})
    for entry in snapshot.listed:
        assert snapshot.route(entry.id).tiers, entry.id


def test_options_that_make_no_sense_are_config_problems() -> None:
    def vendor(name: str, options: object) -> None:
        raise ValueError(f"{name} has no such profile")

    config = config_of("providers:\n  p:\n    vendor: kimi\n    options: {profile: x}\n")
    with pytest.raises(ConfigErrors, match=r"c\.yaml:4:14: providers\.p\.options: kimi has no such profile"):
        compile_snapshot(config, vendor=vendor)  # type: ignore[arg-type]  # it never returns


# -- patterns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("a", "a", ()),
        ("a", "b", None),
        ("*", "", ("",)),
        ("a*", "abc", ("bc",)),
        ("*c", "abc", ("ab",)),
        ("a*c", "ac", ("",)),
        ("a*a", "a", None),
        ("a*b*c", "axbyc", ("x", "y")),
        ("a*b*c", "ac", None),
        ("*.*", "a.b.c", ("a", "b.c")),
        ("a.b", "axb", None),
    ],
)
def test_patterns(pattern: str, name: str, found: tuple[str, ...] | None) -> None:
    assert Pattern(pattern).match(name) == found


@given(st.text("ab*", max_size=6), st.text("ab", max_size=12))
def test_patterns_agree_with_regular_expressions(pattern: str, name: str) -> None:
    import re

    wanted = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
    found = Pattern(pattern).match(name)
    assert (found is not None) is wanted
    if found is not None:
        parts = pattern.split("*")
        assert "".join(a + b for a, b in zip(parts, (*found, ""), strict=True)) == name


def test_many_stars_and_a_long_name_cost_little() -> None:
    assert Pattern("*a" * 200 + "*b").match("a" * 100_000) is None


@pytest.mark.parametrize(
    ("target", "found", "sent"),
    [
        ("*", ("2",), "asked"),
        ("x-*", ("2",), "x-2"),
        ("*/*", ("a", "b"), "a/b"),
        ("*-*", ("a",), "a-a"),
        ("x", (), "x"),
    ],
)
def test_filling_targets(target: str, found: tuple[str, ...], sent: str) -> None:
    assert fill(target, "asked", found) == sent
