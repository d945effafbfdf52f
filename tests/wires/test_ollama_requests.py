"""What Ollama clients send: read as a real Ollama reads it, refused in its words."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from providers.call import Image, Message, Reasoning, ResponseFormat, Text, ToolResult, ToolUse
from providers.errors import InvalidRequest, ModelNotFound, SwitchyardError
from providers.wires.ollama import WIRE, fields, load_answer
from tests.wires.ollama_calls import ask, stamp, user

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


@pytest.mark.parametrize(
    ("given", "streams"), [({}, True), ({"stream": None}, True), ({"stream": True}, True), ({"stream": False}, False)]
)
def test_streams_unless_told_not_to(given: dict[str, Any], streams: bool) -> None:
    assert ask(messages=user(), **given).stream is streams


def test_keys_match_in_any_case() -> None:
    call = WIRE.read_call("chat", {"Model": "m", "MESSAGES": user(), "Stream": False})
    assert (call.asked_model, call.stream, call.raw["model"]) == ("m", False, "m")


def test_unknown_keys_are_passed_over() -> None:
    call = ask(messages=user(), temperature=3, tool_choice="required", nonsense=[1])
    assert call.sampling.temperature is None
    assert call.tool_choice is None


def test_a_conversation() -> None:
    call = ask(
        messages=[
            {"role": "System", "content": "brief"},
            {"role": "user", "content": "look", "images": [PNG]},
            {"role": "assistant", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "21", "tool_name": "f"},
        ]
    )
    assert call.messages == (
        Message("system", (Text("brief"),)),
        Message("user", (Text("look"), Image(data=PNG))),
        Message("assistant", (Reasoning("hm"), ToolUse("call_2_0", "f", '{"a":1}'))),
        Message("tool", (ToolResult("call_2_0", (Text("21"),), "f"),)),
    )
    assert call.needs.vision
    assert not call.needs.tools


CALLS = [
    {"id": "a", "function": {"name": "f", "arguments": {}}},
    {"id": "b", "function": {"name": "g", "arguments": {}}},
    {"id": "c", "function": {"name": "f", "arguments": {}}},
]


@pytest.mark.parametrize(
    ("results", "linked"),
    [
        pytest.param([{}, {}, {}], [("a", "f"), ("b", "g"), ("c", "f")], id="by order"),
        pytest.param([{"tool_name": n} for n in "gff"], [("b", "g"), ("a", "f"), ("c", "f")], id="by name, then order"),
        pytest.param([{"tool_call_id": i} for i in "cab"], [("c", "f"), ("a", "f"), ("b", "g")], id="by id"),
        pytest.param([{"tool_call_id": "a"}, {"tool_name": "f"}], [("a", "f"), ("c", "f")], id="id, then name"),
        pytest.param([{"tool_name": "h"}], [("a", "h")], id="unknown name goes to the first open call"),
    ],
)
def test_tool_results_find_their_calls(results: list[dict[str, str]], linked: list[tuple[str, str]]) -> None:
    turns = [
        {"role": "assistant", "tool_calls": CALLS},
        *({"role": "tool", "content": "x", **item} for item in results),
    ]
    found = [part for turn in ask(messages=turns).messages[1:] for part in turn.parts]
    assert [(part.id, part.name) for part in found if isinstance(part, ToolResult)] == linked


def test_a_tool_result_without_any_call_still_has_an_id() -> None:
    call = ask(messages=[{"role": "tool", "content": "x", "tool_name": "f"}])
    assert call.messages[0].parts == (ToolResult("call_0_0", (Text("x"),), "f"),)


def test_options_become_sampling_and_unknown_ones_are_ignored() -> None:
    call = ask(
        messages=user(),
        options={
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 40.0,
            "min_p": 0.1,
            "seed": 7,
            "num_predict": 20,
            "stop": ["END"],
            "presence_penalty": 1,
            "frequency_penalty": 0.5,
            "repeat_penalty": 1.1,
            "num_ctx": 2048,
            "max_tokens": "many",
            "mirostat": "x",
        },
    )
    sampling = call.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.9, 40, 0.1)
    assert (sampling.seed, sampling.max_tokens, sampling.stop) == (7, 20, ("END",))
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repeat_penalty) == (1, 0.5, 1.1)
    assert call.extras == {"options": {"num_ctx": 2048}}


@pytest.mark.parametrize("most", [-1, -2, 0])
def test_no_bound_is_no_bound(most: int) -> None:
    assert ask(messages=user(), options={"num_predict": most, "seed": -1}).sampling.max_tokens is None


@pytest.mark.parametrize(
    ("think", "enabled", "effort"),
    [(True, True, None), (False, False, None), ("low", True, "low"), ("max", True, "max"), (None, None, None)],
)
def test_think(think: Any, enabled: bool | None, effort: str | None) -> None:
    call = ask(messages=user(), think=think)
    assert (call.reasoning.enabled, call.reasoning.effort) == (enabled, effort)
    assert call.needs.reasoning is bool(enabled)


def test_format() -> None:
    schema = {"type": "object"}
    assert ask(messages=user(), format="json").response_format == ResponseFormat("json")
    call = ask(messages=user(), format=schema)
    assert call.response_format == ResponseFormat("schema", schema=schema)
    assert call.needs.schema
    assert ask(messages=user(), format="").response_format is None


def test_generate_is_a_chat_of_one_turn() -> None:
    call = ask("generate", prompt="hi", system="brief", images=[PNG], context=[1, 2], template="{{ .Prompt }}")
    assert call.kind == "chat"
    assert call.messages == (Message("system", (Text("brief"),)), Message("user", (Text("hi"), Image(data=PNG))))
    assert call.needs.prompt_bytes == 7


@pytest.mark.parametrize(("given", "untemplated"), [({"raw": True}, True), ({"suffix": "}"}, False)])
def test_raw_and_suffix_continue_a_text(given: dict[str, Any], untemplated: bool) -> None:
    call = ask("generate", prompt="def f(", **given)
    assert (call.kind, call.prompt, call.untemplated, call.messages) == ("text", "def f(", untemplated, ())
    assert call.suffix == given.get("suffix")


@pytest.mark.parametrize(
    ("op", "body", "inputs"),
    [
        ("embed", {"input": "a"}, ("a",)),
        ("embed", {"input": ["a", "b"]}, ("a", "b")),
        ("embed", {"input": ""}, ()),
        ("embeddings", {"prompt": "a"}, ("a",)),
    ],
)
def test_embeddings(op: str, body: dict[str, Any], inputs: tuple[str, ...]) -> None:
    call = ask(op, **body, options={"num_ctx": 9})
    assert (call.kind, call.inputs, call.include_usage) == ("embed", inputs, True)


GO = "json: cannot unmarshal {} into Go struct field {} of type {}"


@pytest.mark.parametrize(
    ("op", "body", "status", "text"),
    [
        ("chat", {"model": ""}, 400, "model is required"),
        ("chat", {"model": 5}, 400, GO.format("number", "ChatRequest.model", "string")),
        ("generate", {"model": ""}, 404, "model '' not found"),
        ("embed", {"model": None}, 404, "model '' not found"),
        ("chat", {"stream": "yes"}, 400, GO.format("string", "ChatRequest.stream", "bool")),
        ("chat", {"messages": {}}, 400, GO.format("object", "ChatRequest.messages", "[]api.Message")),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            400,
            GO.format("array", "ChatRequest.messages.content", "string"),
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            400,
            GO.format("string", "ChatRequest.messages.tool_calls.function.arguments", "api.ToolCallFunctionArguments"),
        ),
        (
            "chat",
            {"messages": [{"role": "robot", "content": ""}]},
            400,
            "invalid role: robot, must be one of [system, user, assistant, tool]",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "images": [f"data:image/png;base64,{PNG}"]}]},
            400,
            "illegal base64 data at input byte 4",
        ),
        ("generate", {"prompt": "x", "images": ["https://x/y.png"]}, 400, "illegal base64 data at input byte 5"),
        ("chat", {"options": {"stop": "END"}}, 400, 'option "stop" must be of type array'),
        ("chat", {"options": {"stop": [1]}}, 400, 'option "stop" must be of an array of strings'),
        ("chat", {"options": {"temperature": "hot"}}, 400, 'option "temperature" must be of type float32'),
        ("chat", {"options": {"num_ctx": True}}, 400, 'option "num_ctx" must be of type integer'),
        ("chat", {"options": {"use_mmap": 1}}, 400, 'option "use_mmap" must be of type boolean'),
        ("chat", {"options": []}, 400, GO.format("array", "ChatRequest.options", "map[string]interface {}")),
        ("chat", {"format": "xml"}, 400, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        (
            "chat",
            {"think": "none"},
            400,
            'invalid think value: "none" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            "chat",
            {"think": 1},
            400,
            'think must be a boolean or string ("high", "medium", "low", "max", true, or false)',
        ),
        ("chat", {"keep_alive": "300"}, 400, 'time: missing unit in duration "300"'),
        ("chat", {"keep_alive": "5x"}, 400, 'time: unknown unit "x" in duration "5x"'),
        ("chat", {"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ("chat", {"keep_alive": True}, 400, "Unsupported type: 'bool'"),
        ("chat", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("chat", {"top_logprobs": 1.5}, 400, GO.format("number 1.5", "ChatRequest.top_logprobs", "int")),
        ("chat", {"tools": {"type": "function"}}, 400, GO.format("object", "ChatRequest.tools", "api.Tools")),
        (
            "generate",
            {"prompt": "x", "raw": True, "system": "s"},
            400,
            "raw mode does not support template, system, or context",
        ),
        ("embed", {"input": [1, 2]}, 400, "invalid input type"),
        ("embed", {"input": 5}, 400, "invalid input type"),
    ],
)
def test_refusals_in_ollamas_words(op: str, body: dict[str, Any], status: int, text: str) -> None:
    with pytest.raises(SwitchyardError) as refused:
        ask(op, **body)
    assert isinstance(refused.value, (InvalidRequest, ModelNotFound))
    assert refused.value.status == status
    assert WIRE.write_error(refused.value, "req") == b'{"error":%b}' % _quoted(text)


def _quoted(text: str) -> bytes:
    return b'"%b"' % text.replace('"', '\\"').encode()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("300ms", 0.3),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("0", 0),
        ("+2s", 2),
        ("-1s", inf),
        (30, 30),
        (0.5, 0.5),
        (-1, inf),
        (0, 0),
        (None, None),
    ],
)
def test_keep_alive(given: Any, seconds: float | None) -> None:
    assert fields.keep_alive({"keep_alive": given}) == pytest.approx(seconds)


@pytest.mark.parametrize("bad", ["", "-", "s", "1", "-1", "1h2", "1..5s", "５m", "1 h", "1e3s", "."])
def test_durations_that_go_refuses(bad: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^time: "):
        fields.duration(bad)


@pytest.mark.parametrize(
    ("op", "body", "answer"),
    [
        ("chat", {}, b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}'),
        ("chat", {"messages": []}, b'"done_reason":"load"}'),
        ("chat", {"keep_alive": 0}, b'"done_reason":"unload"}'),
        ("chat", {"keep_alive": "0s"}, b'"done_reason":"unload"}'),
        ("generate", {"keep_alive": -1}, b'"response":"","done":true,"done_reason":"load"}'),
        ("generate", {"prompt": "", "keep_alive": 0}, b'"response":"","done":true,"done_reason":"unload"}'),
        ("embed", {}, b'{"model":"m","embeddings":[]}'),
        ("embeddings", {"prompt": ""}, b'{"embedding":[]}'),
    ],
)
def test_load_and_unload_are_answered_here(op: str, body: dict[str, Any], answer: bytes) -> None:
    found = load_answer(ask(op, **body), stamp())
    assert found is not None
    assert found.endswith(answer)
    assert b"\n" not in found


@pytest.mark.parametrize(
    ("op", "body"),
    [
        ("chat", {"messages": [{"role": "user", "content": ""}]}),
        ("generate", {"prompt": "x"}),
        ("embed", {"input": "x"}),
        ("embeddings", {"prompt": "x"}),
    ],
)
def test_other_calls_are_not_answered_here(op: str, body: dict[str, Any]) -> None:
    assert load_answer(ask(op, **body), stamp()) is None


def test_line_ends_in_images_are_tolerated() -> None:
    call = ask(messages=[{"role": "user", "images": [f"{PNG[:8]}\r\n{PNG[8:]}\n"]}])
    assert call.messages[0].parts == (Image(data=PNG),)
