"""What an OpenAI client may send, what it may not, and which field it is told about."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from providers.call import Audio, File, Image, Message, Reasoning, Text, Tool, ToolChoice, ToolResult, ToolUse
from providers.errors import InvalidRequest, NotFound
from providers.jsontext import read_object
from providers.wires.openai import WIRE

REFUSED = orjson.loads((Path(__file__).parent.parent / "fixtures/wires/openai/refused.json").read_bytes())
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row['op']} {row['param']} {n}") for n, row in enumerate(REFUSED)]
)
def test_refused(row: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        WIRE.read_call(row["op"], row["body"])
    assert caught.value.param == row["param"]
    assert orjson.loads(WIRE.write_error(caught.value, "req_1"))["error"]["code"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"messages": HELLO["messages"] * 2049}, id="messages"),
        pytest.param({"messages": HELLO["messages"] * 100_000}, id="very many messages"),
        pytest.param({"tools": [TOOL] * 10_000}, id="tools"),
        pytest.param({"logit_bias": {str(token): 1 for token in range(100_000)}}, id="logit_bias"),
        pytest.param({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]}, id="parts"),
    ],
)
def test_bounds_are_checked_before_work(body: dict[str, Any]) -> None:
    begun = time.thread_time()
    with pytest.raises(InvalidRequest):
        WIRE.read_call("chat", {**HELLO, **body})
    assert time.thread_time() - begun < 0.1


def test_nulls_are_absent_everywhere() -> None:
    names = "stream stream_options tools tool_choice n stop seed temperature user logit_bias response_format max_tokens"
    nulls = dict.fromkeys(f"{names} reasoning_effort metadata functions thinking".split())
    call = WIRE.read_call("chat", {**HELLO, **nulls})
    assert call == WIRE.read_call("chat", HELLO)
    assert call.raw == HELLO


def test_nulls_inside_messages_do_not_go_upstream() -> None:
    echoed = {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "audio": None}
    call = WIRE.read_call("chat", {"model": "m", "messages": [echoed, *HELLO["messages"]]})
    assert call.raw["messages"][0] == {"role": "assistant", "content": None}


def test_the_clients_own_body_is_not_changed() -> None:
    body = {**HELLO, "tools": [], "tool_choice": "auto", "user": None}
    before = orjson.dumps(body)
    call = WIRE.read_call("chat", body)
    assert orjson.dumps(body) == before
    assert call.raw == HELLO, "empty tools and what hangs on them are not sent"


def test_numbers_may_come_in_either_form() -> None:
    call = WIRE.read_call("chat", {**HELLO, "n": 2.0, "temperature": 1, "max_tokens": 7.0})
    assert (call.sampling.n, call.sampling.temperature, call.sampling.max_tokens) == (2, 1.0, 7)


def test_parts() -> None:
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}", "detail": "low"}},
        {"type": "image_url", "image_url": "https://img.example/pier.jpg"},
        {"type": "input_audio", "input_audio": {"data": "UklGRiQAAABXQVZF", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0xLjcK"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]
    call = WIRE.read_call("chat", {"model": "m", "messages": [{"role": "user", "content": content}]})
    assert call.messages[0].parts == (
        Text("look"),
        Image(data=png, media_type="image/png", detail="low"),
        Image(url="https://img.example/pier.jpg"),
        Audio("UklGRiQAAABXQVZF", "wav"),
        File(data="JVBERi0xLjcK", media_type="application/pdf", name="a.pdf"),
        File(file_id="file-1"),
    )
    needs = call.needs
    assert (needs.vision, needs.image_urls, needs.audio, needs.files) == (True, True, True, True)


def test_history_with_tools_and_reasoning() -> None:
    use = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{not json"}}
    call = WIRE.read_call(
        "chat",
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [use], "partial": True},
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "14:05"}]},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    )
    assert call.messages[1] == Message(
        "assistant", (Reasoning("hm"), ToolUse("c1", "f", "{not json")), None, {"partial": True}
    )
    assert call.messages[2].parts == (ToolResult("c1", (Text("14:05"),), "f"),), "the name comes from the history"
    assert call.tools == (Tool("f", parameters={"type": "object"}),)
    assert call.tool_choice == ToolChoice("named", "f")
    assert call.needs.tools


def test_allowed_tools_narrow_the_list() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [other]}}
    call = WIRE.read_call("chat", {**HELLO, "tools": [TOOL, other], "tool_choice": allowed})
    assert [tool.name for tool in call.tools] == ["g"]
    assert call.tool_choice == ToolChoice("required")


@pytest.mark.parametrize(
    ("fields", "enabled", "effort", "budget"),
    [
        ({}, None, None, None),
        ({"reasoning_effort": "none"}, False, None, None),
        ({"reasoning_effort": "xhigh"}, None, "max", None),
        ({"thinking": {"type": "enabled", "budget_tokens": 900}}, True, None, 900),
        ({"thinking": {"type": "disabled"}}, False, None, None),
        ({"thinking": {"type": "auto"}}, None, None, None),
        ({"enable_thinking": True, "thinking_budget": 5}, True, None, 5),
        ({"reasoning": {"effort": "low", "enabled": True}}, True, "low", None),
    ],
)
def test_reasoning_in_every_dialect(
    fields: dict[str, Any], enabled: bool | None, effort: str | None, budget: int | None
) -> None:
    ask = WIRE.read_call("chat", {**HELLO, **fields}).reasoning
    assert (ask.enabled, ask.effort, ask.budget) == (enabled, effort, budget)


def test_unknown_fields_ride_along() -> None:
    call = WIRE.read_call("chat", {**HELLO, "provider": {"order": ["a"]}})
    assert call.extras == {"provider": {"order": ["a"]}}
    assert call.raw["provider"] == {"order": ["a"]}


def test_embedding_inputs() -> None:
    def read(value: Any) -> tuple[Any, ...]:
        return WIRE.read_call("embeddings", {"model": "m", "input": value}).inputs

    assert read("a") == ("a",)
    assert read(["a", "b"]) == ("a", "b")
    assert read([1, 2]) == ((1, 2),)
    assert read([[1], [2, 3]]) == ((1,), (2, 3))
    assert WIRE.read_call("embeddings", {"model": "m", "input": [[1]]}).needs.token_inputs


def test_an_operation_that_is_not_there() -> None:
    with pytest.raises(NotFound):
        WIRE.read_call("images", HELLO)


def test_write_call_is_read_back_the_same() -> None:
    """A call written for an OpenAI-like provider says what the client's body said."""
    image = {"type": "image_url", "image_url": {"url": "https://x/y"}}
    use = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    spec = {"name": "x", "schema": {"type": "object"}, "strict": True}
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
            {"role": "assistant", "content": None, "tool_calls": [use]},
            {"role": "tool", "tool_call_id": "c", "content": "ok"},
        ],
        "tools": [TOOL],
        "tool_choice": "required",
        "response_format": {"type": "json_schema", "json_schema": spec},
        "temperature": 0.5,
        "stop": ["a", "b"],
        "max_tokens": 9,
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "user": "u",
        "stream": True,
    }
    first = WIRE.read_call("chat", body)
    written = WIRE.write_call(first, "m")
    assert written == body
    assert read_object(orjson.dumps(written)) == body


@pytest.mark.parametrize("tail", ["A", "AAA", "AA=A", "====", "AA!A", "AA-_", "AA A"])
def test_images_whose_base64_is_broken(tail: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'iVBO' * 40}{tail}"}}
    with pytest.raises(InvalidRequest) as caught:
        WIRE.read_call("chat", {**HELLO, "messages": [{"role": "user", "content": [part]}]})
    assert caught.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("tail", ["", "AAA=", "AA==", "\nAAAA\r\n"])
def test_images_whose_base64_is_sound(tail: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'iVBO' * 40}{tail}"}}
    call = WIRE.read_call("chat", {**HELLO, "messages": [{"role": "user", "content": [part]}]})
    assert call.messages[0].parts == (Image(data="iVBO" * 40 + tail, media_type="image/png"),)
