"""What goes to an Ollama server for clients of other wires, what its errors mean, and the vendor's lists."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.call import (
    Audio,
    Call,
    File,
    Image,
    Reasoning,
    ReasoningAsk,
    ResponseFormat,
    Sampling,
    Text,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
)
from providers.errors import (
    Broken,
    Busy,
    ContextTooLong,
    ModelNotFound,
    NotAllowed,
    ProviderAuth,
    ProviderModelNotFound,
    ProviderQuota,
    RateLimited,
    Refused,
    Unavailable,
    UnsupportedFeature,
    UpstreamError,
)
from providers.ollama import VENDOR, canonical_name
from providers.vendor import ModelFacts
from providers.wires.ollama import WIRE
from providers.wires.ollama.schema import tool_parameters
from tests.wires.ollama_calls import ask, foreign, said, user


def body(call: Call) -> dict[str, Any]:
    request = VENDOR.request(call, "sent", None)
    found: dict[str, Any] = orjson.loads(request.body)
    return found


def test_a_conversation_with_tools_and_pictures() -> None:
    call = foreign(
        said("developer", "brief"),
        said("user", "look", Image(data="AAAA"), "closely"),
        said("assistant", Reasoning("hm"), ToolUse("a", "f", '{"x":1}'), ToolUse("b", "g", "")),
        said("tool", ToolResult("b", (Text("B"),))),
        said("tool", ToolResult("a", (Text("A"), Image(data="BBBB")))),
        tools=(Tool("f", "does f", {"type": "object", "properties": {}}), Tool("g")),
        stream=True,
    )
    assert body(call) == {
        "model": "sent",
        "stream": True,
        "messages": [
            {"role": "system", "content": "brief"},
            {"role": "user", "content": "look\nclosely", "images": ["AAAA"]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [
                    {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": 1}}},
                    {"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}},
                ],
            },
            {"role": "tool", "content": "B", "tool_name": "g", "tool_call_id": "b"},
            {"role": "tool", "content": "A", "tool_name": "f", "tool_call_id": "a", "images": ["BBBB"]},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "does f", "parameters": {"type": "object", "properties": {}}},
            },
            {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
        ],
    }


def test_settings() -> None:
    call = foreign(
        sampling=Sampling(temperature=0.5, top_p=0.9, top_k=4, seed=1, stop=("a",), presence_penalty=1.0, max_tokens=9),
        response_format=ResponseFormat("schema", schema={"type": "object"}, name="n", strict=True),
        reasoning=ReasoningAsk(enabled=True, effort="minimal"),
        logprobs=True,
        top_logprobs=2,
    )
    assert {key: value for key, value in body(call).items() if key not in ("model", "messages")} == {
        "stream": False,
        "format": {"type": "object"},
        "options": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 4,
            "seed": 1,
            "presence_penalty": 1.0,
            "num_predict": 9,
            "stop": ["a"],
        },
        "think": "low",
        "logprobs": True,
        "top_logprobs": 2,
    }


@pytest.mark.parametrize(
    ("wanted", "think"),
    [
        (ReasoningAsk(), None),
        (ReasoningAsk(enabled=False), False),
        (ReasoningAsk(enabled=True), True),
        (ReasoningAsk(enabled=True, effort="high"), "high"),
        (ReasoningAsk(budget=1000), True),
    ],
)
def test_think_is_sent_only_when_asked(wanted: ReasoningAsk, think: Any) -> None:
    assert body(foreign(reasoning=wanted)).get("think") == think


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (ResponseFormat("text"), None),
        (ResponseFormat("json"), "json"),
        (ResponseFormat("schema"), "json"),
        (None, None),
    ],
)
def test_format(wanted: ResponseFormat | None, sent: Any) -> None:
    assert body(foreign(response_format=wanted)).get("format") == sent


@pytest.mark.parametrize(
    ("choice", "names", "told"),
    [
        (ToolChoice("auto"), ["f", "g"], None),
        (ToolChoice("none"), None, None),
        (ToolChoice("required"), ["f", "g"], "Answer by calling at least one of the tools, with no other text."),
        (ToolChoice("named", "g"), ["g"], "Answer by calling the tool g, with no other text."),
    ],
)
def test_tool_choice(choice: ToolChoice, names: list[str] | None, told: str | None) -> None:
    sent = body(foreign(said("system", "s"), said("user", "u"), tools=(Tool("f"), Tool("g")), tool_choice=choice))
    assert ([tool["function"]["name"] for tool in sent["tools"]] if "tools" in sent else None) == names
    assert [message["content"] for message in sent["messages"]] == ["s", *([told] if told else []), "u"]


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (foreign(said("user", Image(url="https://x/y.png"))), "messages[0].content"),
        (foreign(said("user", File(data="AAAA"))), "messages[0].content"),
        (foreign(sampling=Sampling(n=2)), "n"),
        (foreign(kind="embed", inputs=((1, 2),)), "input"),
        (foreign(said("user", Text("hi")), tools=(Tool("web_search", extras={"type": "web_search"}),)), "tools[0]"),
    ],
)
def test_what_ollama_cannot_say_is_refused(call: Call, param: str) -> None:
    with pytest.raises(UnsupportedFeature) as refused:
        VENDOR.request(call, "sent", None)
    assert refused.value.param == param


def test_audio_travels_with_the_images() -> None:
    assert body(foreign(said("user", Audio("AAAA", "wav"))))["messages"][0]["images"] == ["AAAA"]


@pytest.mark.parametrize("text", ["not json", "[1]"])
def test_arguments_are_always_an_object(text: str) -> None:
    sent = body(foreign(said("assistant", ToolUse("a", "f", text))))
    (found,) = sent["messages"][0]["tool_calls"]
    assert list(found["function"]["arguments"]) == ["invalid_arguments"]


@pytest.mark.parametrize(
    ("call", "path", "sent"),
    [
        (
            foreign(kind="text", prompt="a", suffix="b", untemplated=True, stream=True),
            "/api/generate",
            {"model": "sent", "prompt": "a", "suffix": "b", "stream": True},
        ),
        (
            foreign(kind="text", prompt="a", untemplated=True),
            "/api/generate",
            {"model": "sent", "prompt": "a", "raw": True, "stream": False},
        ),
        (
            foreign(kind="embed", inputs=("a",), dimensions=3),
            "/api/embed",
            {"model": "sent", "input": ["a"], "dimensions": 3},
        ),
        (
            ask(messages=user(), options={"max_tokens": 1}, keep_alive="5m"),
            "/api/chat",
            {"model": "sent", "messages": user(), "options": {"max_tokens": 1}, "keep_alive": "5m"},
        ),
        (ask("embeddings", prompt="a"), "/api/embeddings", {"model": "sent", "prompt": "a"}),
    ],
)
def test_paths_and_bodies(call: Call, path: str, sent: dict[str, Any]) -> None:
    request = VENDOR.request(call, "sent", None)
    assert (request.method, request.path, orjson.loads(request.body)) == ("POST", path, sent)


def test_a_key_is_sent_as_bearer() -> None:
    assert VENDOR.request(foreign(), "m", "k").headers["authorization"] == "Bearer k"
    assert "authorization" not in VENDOR.request(foreign(), "m", None).headers


# --- tool schemas ----------------------------------------------------------------------------------------------------


def test_references_are_put_in_place_and_constraints_told() -> None:
    given_schema = {
        "type": "object",
        "properties": {
            "when": {"type": "string", "format": "date", "description": "Day"},
            "count": {"type": "integer", "minimum": 1, "default": 5},
            "unit": {"$ref": "#/$defs/Unit"},
            "to": {"oneOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]},
            "mix": {"allOf": [{"type": "object", "properties": {"a": {"const": "x"}}}, {"required": ["a"]}]},
            "many": {"type": "array", "items": {"$ref": "#/$defs/Unit"}},
        },
        "required": ["when"],
        "$defs": {"Unit": {"type": "string", "enum": ["C", "F"]}},
    }
    before = orjson.dumps(given_schema)
    unit = {"type": "string", "enum": ["C", "F"]}
    assert tool_parameters(given_schema) == {
        "type": "object",
        "properties": {
            "when": {"type": "string", "format": "date", "description": "Day (format: date)"},
            "count": {"type": "integer", "minimum": 1, "default": 5, "description": "(default: 5; minimum: 1)"},
            "unit": unit,
            "to": {"anyOf": [unit, {"type": "null"}]},
            "mix": {
                "type": "object",
                "properties": {"a": {"const": "x", "enum": ["x"], "description": "(const: x)"}},
                "required": ["a"],
            },
            "many": {"type": "array", "items": unit},
        },
        "required": ["when"],
    }
    assert orjson.dumps(given_schema) == before


def test_recursion_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    found = tool_parameters({"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    assert found == {"type": "object", "properties": {"next": {"type": "object"}}}


def test_definitions_that_multiply_are_bounded() -> None:
    defs = {f"D{n}": {"properties": {key: {"$ref": f"#/$defs/D{n + 1}"} for key in "abcd"}} for n in range(40)}
    found = tool_parameters({"properties": {"x": {"$ref": "#/$defs/D0"}}, "$defs": defs})
    assert len(orjson.dumps(found)) < 1_000_000
    big = {"properties": {f"p{n}": {"$ref": "#/$defs/D"} for n in range(500)}, "$defs": {"D": {"title": "x" * 100_000}}}
    assert len(orjson.dumps(tool_parameters(big))) < 1_000_000


@pytest.mark.parametrize("reference", ["#", "#/$defs/none", "https://x/y", "#/type", ""])
def test_references_that_lead_nowhere_become_objects(reference: str) -> None:
    assert tool_parameters({"type": "object", "properties": {"a": {"$ref": reference}}})["properties"]["a"] == {
        "type": "object"
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["properties", "type", "$ref", "allOf", "anyOf", "items", "description", "default", "a"]),
            inner | st.sampled_from(["#/a", "#/properties/a", "#/$defs/a"]),
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["properties", "a", "$defs", "allOf", "$ref", "type"]), JSON, max_size=4))
def test_any_schema_can_be_sent(schema: dict[str, Any]) -> None:
    orjson.dumps(tool_parameters(schema))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (400, "bad", Refused),
        (400, "the input length exceeds the context length", ContextTooLong),
        (404, "model 'x' not found", ProviderModelNotFound),
        (413, "big", Refused),
        (429, "slow down", RateLimited),
        (500, "model runner has unexpectedly stopped", Unavailable),
        (500, "this model is missing data required for image input", Refused),
        (500, 'option "stop" must be of type array', Refused),
        (502, "cloud", Unavailable),
        (503, "server busy, please try again.  maximum pending requests exceeded", Busy),
        (418, "?", Refused),
        (200, "late", Broken),
    ],
)
def test_errors_of_a_server(status: int, text: str, error: type[UpstreamError]) -> None:
    found = WIRE.read_error(status, {"retry-after": "3"}, orjson.dumps({"error": text}))
    assert type(found) is error
    assert (found.message, found.upstream_status) == (text, status)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, ProviderAuth, "the provider refuses the router's credential"),
        (402, ProviderQuota, "the router's account at the provider has no quota left"),
        (403, ProviderAuth, "the provider refuses the router's credential"),
    ],
)
def test_an_account_that_is_not_the_callers(status: int, error: type[UpstreamError], message: str) -> None:
    found = WIRE.read_error(status, {}, b'{"error":"unauthorized"}')
    assert type(found) is error
    assert (found.message, found.upstream_status) == (message, status)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"error":{"message":"nested","type":"x"}}', "nested"),
        (b"<html><b>Bad Gateway</b></html>", "Bad Gateway"),
        (b"", "the provider answered with status 502"),
        (b'"text"', "the provider answered with status 502"),
        (b'{"error":"key sk-abcdefghijklmnop is wrong"}', "key [redacted] is wrong"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_error_texts(raw: bytes, message: str) -> None:
    assert WIRE.read_error(502, {}, raw).message == message


@pytest.mark.parametrize(
    ("error", "said_so"),
    [
        (ModelNotFound("foo"), "model 'foo' not found"),
        (ModelNotFound("foo", ["food"]), "model 'foo' not found, did you mean 'food'?"),
        (ModelNotFound("foo", message="'foo' is served twice"), "'foo' is served twice"),
        (NotAllowed("no"), "no"),
    ],
)
def test_our_errors_in_ollamas_shape(error: Any, said_so: str) -> None:
    raw = WIRE.write_error(error, "req")
    assert orjson.loads(raw) == {"error": said_so}
    assert WIRE.write_stream_error(ask(messages=user()), error, "req") == raw + b"\n"


# --- lists -----------------------------------------------------------------------------------------------------------


def test_the_model_list() -> None:
    entry = {"name": "a:latest", "model": "a:latest", "size": 5, "details": {"family": "llama"}}
    newer = {
        "name": "b",
        "capabilities": ["completion", "tools", "thinking"],
        "details": {"context_length": 8192},
    }
    old, new = VENDOR.read_models(orjson.dumps({"models": [entry, newer, {"size": 1}]}))
    assert (old.name, old.details, old.capabilities.tools, old.capabilities.context) == ("a:latest", entry, None, None)
    able = new.capabilities
    assert (new.name, able.chat, able.tools, able.reasoning, able.vision) == ("b", True, True, True, False)
    assert (able.embeddings, able.context, able.image_urls) == (None, 8192, False)
    assert VENDOR.read_models(b'{"models":null}') == []


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"models":5}', b"<html>"])
def test_lists_that_are_none(raw: bytes) -> None:
    with pytest.raises(Broken):
        VENDOR.read_models(raw)


def test_show_completes_the_facts() -> None:
    shown = {
        "capabilities": ["embedding"],
        "details": {"family": "bert"},
        "model_info": {"general.architecture": "bert", "bert.context_length": 512},
    }
    found = VENDOR.read_show(ModelFacts("e", details={"size": 5}), orjson.dumps(shown))
    assert (found.capabilities.embeddings, found.capabilities.chat, found.capabilities.context) == (True, False, 512)
    assert found.details["size"] == 5
    assert found.details["model_info"] == shown["model_info"]


def test_names() -> None:
    assert canonical_name("Foo:latest") == canonical_name("foo") != canonical_name("foo:7b")
