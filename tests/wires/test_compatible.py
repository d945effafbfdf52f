"""Vendors of the OpenAI wire: rows, options, headers, what models can do, model lists. Bodies are fixtures."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from providers import registry
from providers.compatible import PROFILES, OpenAICompatible, compatible, make_vendor
from providers.errors import Broken, UnsupportedFeature
from providers.vendor import Capabilities
from providers.wires.openai import WIRE
from tests.wires.cases import stamp


def chat(**fields: Any) -> Any:
    return WIRE.read_call("chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})


@pytest.mark.parametrize("name", ["openai", "kimi", "doubao", "openai-compatible"])
def test_the_registry_knows(name: str) -> None:
    vendor = registry.vendor(name)
    assert vendor.name == name
    assert vendor.wire.name == "openai"
    assert registry.wire("openai").name == "openai"


def test_the_registry_refuses_options_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="takes no options: x"):
        registry.vendor("openai", {"x": 1})
    with pytest.raises(KeyError):
        registry.vendor("nobody")


@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_every_profile_makes_a_request(profile: str | None) -> None:
    vendor = compatible(profile)
    call = chat(stream=True, max_tokens=5, temperature=0.5, reasoning_effort="high", user="u")
    request = vendor.request(call, "model-1", "key")
    body = orjson.loads(request.body)
    assert request.path == "/chat/completions"
    assert body["model"] == "model-1"
    assert body["stream"] is True
    assert "key" in "".join(request.headers.values())
    assert vendor.lane(call, WIRE, stamp("model-1")).meter.usage is None
    assert call.raw["model"] == "m", "the client's body stays as it was"


def test_options_override_single_quirks() -> None:
    vendor = make_vendor({"profile": "vllm", "drop": ["seed"], "max_tokens": "max_tokens", "think_tags": "tagged"})
    assert vendor.default.drop == frozenset({"seed"})
    assert vendor.default.reasoning_in == "template_enable"
    assert vendor.default.traits.think_tags == "tagged"
    body = orjson.loads(vendor.request(chat(seed=1, max_completion_tokens=7), "m", None).body)
    assert "seed" not in body
    assert body["max_tokens"] == 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"profile": "nobody"}, "there is no profile 'nobody'"),
        ({"profile": 7}, "profile must be a name"),
        ({"colour": "red"}, "there is no quirk 'colour'"),
        ({"images": "some"}, "images"),
        ({"drop": "seed"}, "drop"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_vendor(options)


def test_how_the_key_is_sent() -> None:
    assert compatible("azure").auth("k") == {"api-key": "k"}
    assert compatible(None).auth("k") == {"authorization": "Bearer k"}
    assert compatible(None).auth(None) == {}
    assert make_vendor({"auth": "none"}).auth("k") == {}
    assert make_vendor({"extra_headers": {"x-title": "t"}}).request(chat(), "m", None).headers["x-title"] == "t"


@pytest.mark.parametrize(
    ("vendor", "model", "known"),
    [
        ("openai", "text-embedding-3-small", {"embeddings": True, "chat": False, "token_inputs": True}),
        ("openai", "gpt-4o-mini", {"chat": True, "vision": True, "embeddings": False, "schema": True}),
        ("openai", "gpt-3.5-turbo", {"chat": True, "text": False}),
        ("openai", "gpt-3.5-turbo-instruct", {"chat": False, "text": True}),
        ("openai", "gpt-5.5", {"reasoning": True}),
        ("openai", "dall-e-3", {"chat": False}),
        ("openai", "a-name-of-next-year", {"chat": None, "embeddings": None, "vision": None}),
        ("kimi", "kimi-k3", {"embeddings": False, "text": False, "image_urls": False, "choices": False, "chat": None}),
        ("doubao", "doubao-embedding-large-text-240915", {"embeddings": True, "chat": False}),
        ("doubao", "ep-20260901101010-abcde", {"chat": None, "embeddings": None, "text": False}),
    ],
)
def test_what_models_can_do(vendor: str, model: str, known: dict[str, Any]) -> None:
    facts = msgspec.structs.asdict(registry.vendor(vendor).capabilities(model))
    assert {name: facts[name] for name in known} == known


def test_an_unknown_server_is_left_to_decide() -> None:
    assert compatible(None).capabilities("x") == Capabilities()


@pytest.mark.parametrize(
    ("vendor", "rows", "names"),
    [
        ("openai", {"object": "list", "data": [{"id": "gpt-4o"}, {"id": 7}, "x", {}]}, ["gpt-4o"]),
        ("openai-compatible", [{"id": "a"}], ["a"]),
        ("openai-compatible", {"models": [{"name": "b"}]}, ["b"]),
        ("doubao", {"data": [{"id": "d1"}, {"id": "d2", "status": "Shutdown"}]}, ["d1"]),
    ],
)
def test_model_lists(vendor: str, rows: Any, names: list[str]) -> None:
    made = registry.vendor(vendor)
    request = made.models_request("k")
    assert request is not None
    assert (request.method, request.path, request.headers["authorization"]) == ("GET", "/models", "Bearer k")
    assert [facts.name for facts in made.read_models(orjson.dumps(rows))] == names


def test_model_lists_carry_facts() -> None:
    kimi = {"id": "kimi-k3", "context_length": 1048576, "supports_image_in": True, "supports_reasoning": True}
    (facts,) = registry.vendor("kimi").read_models(orjson.dumps({"data": [kimi]}))
    assert (facts.capabilities.context, facts.capabilities.vision, facts.capabilities.reasoning) == (
        1048576,
        True,
        True,
    )
    ark = {
        "id": "doubao-x",
        "domain": "VLM",
        "modalities": {"input_modalities": ["text"]},
        "token_limits": {"context_window": 9},
        "features": {"tools": {"function_calling": False}},
    }
    (facts,) = registry.vendor("doubao").read_models(orjson.dumps({"data": [ark]}))
    assert (facts.capabilities.context, facts.capabilities.vision, facts.capabilities.tools) == (9, False, False)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"7", b'{"data": 7}'])
def test_lists_that_cannot_be_understood(body: bytes) -> None:
    with pytest.raises(Broken):
        registry.vendor("openai").read_models(body)


def test_some_have_no_list() -> None:
    assert compatible("qwen").models_request("k") is None


def test_what_cannot_be_said_names_the_field() -> None:
    vendor: OpenAICompatible = compatible("groq")
    with pytest.raises(UnsupportedFeature) as caught:
        vendor.request(chat(n=2), "m", None)
    assert caught.value.param == "n"
    with pytest.raises(UnsupportedFeature) as caught:
        registry.vendor("kimi").request(chat(tools=[{"type": "function", "function": {"name": "f"}}]), "kimi-k3", None)
    assert caught.value.param == "tools[0].function.name"


@pytest.mark.parametrize("profile", [None, "openrouter", "vllm"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", ["anthropic/claude-opus-4"]),
        ("fallbacks", ["b"]),
        ("route", "fallback"),
        ("provider", {"order": ["a"]}),
        ("plugins", [{"id": "web"}]),
        ("preset", "mine"),
    ],
)
def test_what_lets_another_model_answer_is_refused(profile: str | None, name: str, value: Any) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        compatible(profile).request(chat(**{name: value}), "m", None)
    assert caught.value.param == name
    call = WIRE.read_call("embeddings", {"model": "m", "input": "hi", name: value})
    with pytest.raises(UnsupportedFeature) as caught:
        compatible(profile).request(call, "m", None)
    assert caught.value.param == name
    own = make_vendor({"refuse": []})
    assert orjson.loads(own.request(chat(**{name: value}), "m", None).body)[name] == value


def test_openrouter_gets_no_transforms() -> None:
    assert b"transforms" not in compatible("openrouter").request(chat(transforms=["middle-out"]), "m", None).body


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"type": "object"}),
        ({"type": "object", "properties": {"a": True}}, {"type": "object", "properties": {"a": True}}),
        (
            {"type": "object", "properties": {"type": {}, "n": {"const": 1.5}, "o": {"enum": [None, {}]}}},
            {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "n": {"const": 1.5, "type": "number"},
                    "o": {"enum": [None, {}], "type": ["null", "object"]},
                },
            },
        ),
        (
            {"anyOf": [{"required": ["a"]}, {"$ref": "#/$defs/x"}]},
            {"type": "object", "anyOf": [{"type": "object", "required": ["a"]}, {"$ref": "#/$defs/x"}]},
        ),
    ],
)
def test_kimi_gets_a_type_in_every_schema(given: dict[str, Any], sent: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": given}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": given}}
    call = chat(tools=[tool], response_format=form)
    body = orjson.loads(registry.vendor("kimi").request(call, "kimi-k3", None).body)
    assert body["tools"][0]["function"]["parameters"] == sent
    assert body["response_format"]["json_schema"]["schema"] == sent
    assert call.raw["tools"] == [tool], "the client's body stays as it was"
