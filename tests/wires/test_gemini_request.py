"""Calls written for Gemini: turns, calls and their answers, signatures, settings, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from providers.call import (
    Audio,
    Call,
    File,
    Image,
    ReasoningAsk,
    ResponseFormat,
    Sampling,
    Tool,
    ToolChoice,
    ToolResult,
    ToolUse,
)
from providers.call import Text as T
from providers.errors import ModelNotFound, UnsupportedFeature
from providers.events import ToolStart
from providers.wires.gemini import GeminiWire
from providers.wires.gemini.signatures import BYPASS, Signatures
from tests.wires.gemini_calls import chat, chunk, read, said

FLASH, PRO = "gemini-2.5-flash", "gemini-2.5-pro"
FLASH3, PRO3, PRO31 = "gemini-3-flash-preview", "gemini-3-pro-preview", "gemini-3.1-pro-preview"
OLD = "gemini-2.0-flash"
PNG = "iVBORw0KGgoAAAANSUhEUg=="
WEATHER = Tool("weather", "Now", {"$schema": "x", "type": "object", "properties": {"city": {"type": "string"}}})


def body(call: Call, model: str = FLASH) -> dict[str, Any]:
    return GeminiWire().write_call(call, model)


def turns(call: Call, model: str = FLASH) -> list[tuple[str, list[Any]]]:
    return [(turn["role"], turn["parts"]) for turn in body(call, model)["contents"]]


def config(model: str = FLASH, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = body(chat(**fields), model).get("generationConfig", {})
    return found


# --- turns --------------------------------------------------------------------------------------------------------


def test_text_and_system() -> None:
    written = body(chat(said("system", "Be brief."), said("user", "Hi"), said("developer", "In verse.")))
    assert written == {
        "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "In verse."}]},
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
    }


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([("user", "a"), ("user", "b")], [("user", ["a", "b"])], id="neighbours merge"),
        pytest.param([("user", "a"), ("assistant", ""), ("user", "b")], [("user", ["a", "b"])], id="no empty parts"),
        pytest.param([("assistant", "a")], [("user", [" "]), ("model", ["a"])], id="the user begins"),
        pytest.param([("system", "s")], [("user", [" "])], id="only a system message"),
        pytest.param([("user", "")], [("user", [" "])], id="an empty message"),
    ],
)
def test_turns_alternate(messages: list[tuple[Any, str]], expected: list[tuple[str, list[str]]]) -> None:
    found = turns(chat(*(said(role, text) for role, text in messages)))
    assert [(role, [part["text"] for part in parts]) for role, parts in found] == expected


def test_media_go_by_value() -> None:
    found = turns(
        chat(said("user", "See", Image(data=PNG), Audio("UklGRg==", "mp3"), File(data="JVBERi0xLjc=", name="a.pdf")))
    )
    assert [part.get("inlineData", {}).get("mimeType") for part in found[0][1]] == [
        None,
        "image/png",
        "audio/mp3",
        "application/pdf",
    ]


def test_own_files_go_by_address() -> None:
    uri = "https://generativelanguage.googleapis.com/v1beta/files/abc"
    assert turns(chat(said("user", File(url=uri, media_type="video/mp4"))))[0][1] == [
        {"fileData": {"fileUri": uri, "mimeType": "video/mp4"}}
    ]


@pytest.mark.parametrize(
    ("call", "param"),
    [
        pytest.param(chat(said("user", Image(url="https://example.com/a.png"))), "messages[0]", id="image address"),
        pytest.param(chat(said("user", Image(url="http://[bad"))), "messages[0]", id="no address at all"),
        pytest.param(chat(said("user", File(file_id="file-1"))), "messages[0]", id="file id"),
        pytest.param(chat(said("system", Image(data=PNG))), "messages[0]", id="picture in a system message"),
        pytest.param(chat(sampling=Sampling(stop=tuple("abcdef"))), "stop", id="six stops"),
        pytest.param(chat(tools=(Tool("$web", extras={"type": "builtin_function"}),)), "tools[0]", id="foreign tool"),
        pytest.param(chat(kind="text", messages=(), prompt="a", suffix="b"), "suffix", id="fill in the middle"),
        pytest.param(chat(kind="text", messages=(), prompt="a", untemplated=True), "raw", id="raw prompt"),
        pytest.param(chat(kind="embed", inputs=("a", (1, 2))), "input", id="token ids"),
        pytest.param(
            chat(tools=(WEATHER,), response_format=ResponseFormat("json")), "response_format", id="JSON beside tools"
        ),
    ],
)
def test_refuses_what_cannot_be_said(call: Call, param: str) -> None:
    with pytest.raises(UnsupportedFeature) as refused:
        body(call)
    assert refused.value.param == param


# --- tools --------------------------------------------------------------------------------------------------------


def asked(*uses: ToolUse) -> Any:
    return said("assistant", *uses)


def test_parallel_answers_stand_in_one_turn_in_the_order_of_the_calls() -> None:
    call = chat(
        said("user", "Weather?"),
        said("assistant", "Looking.", ToolUse("a", "weather", '{"city": "Lisbon"}'), ToolUse("b", "weather", "")),
        said("tool", ToolResult("b", (T("17 C"),))),
        said("tool", ToolResult("a", (T('{"c": 21}'),))),
        said("user", "And?"),
    )
    assert turns(call) == [
        ("user", [{"text": "Weather?"}]),
        (
            "model",
            [
                {"text": "Looking."},
                {"functionCall": {"name": "weather", "args": {"city": "Lisbon"}}},
                {"functionCall": {"name": "weather", "args": {}}},
            ],
        ),
        (
            "user",
            [
                {"functionResponse": {"name": "weather", "response": {"c": 21}}},
                {"functionResponse": {"name": "weather", "response": {"output": "17 C"}}},
            ],
        ),
        ("user", [{"text": "And?"}]),
    ]


@pytest.mark.parametrize(
    ("result", "response"),
    [
        pytest.param(ToolResult("a", (T("[1]"),)), {"output": "[1]"}, id="an array is wrapped"),
        pytest.param(ToolResult("a", (T("{half"),)), {"output": "{half"}, id="broken JSON is text"),
        pytest.param(ToolResult("a", (T("no"),), is_error=True), {"error": "no"}, id="an error"),
        pytest.param(ToolResult("", (T("x"),), name="weather"), {"output": "x"}, id="by name, as Ollama says it"),
        pytest.param(ToolResult("", (T("x"),)), {"output": "x"}, id="by order, as old Ollama clients say it"),
        pytest.param(None, {"error": "no result"}, id="no answer came"),
    ],
)
def test_an_answer_is_an_object(result: ToolResult | None, response: dict[str, Any]) -> None:
    messages = [said("user", "hi"), asked(ToolUse("a", "weather", "{}"))]
    if result is not None:
        messages.append(said("tool", result))
    assert turns(chat(*messages))[-1] == (
        "user",
        [{"functionResponse": {"name": "weather", "response": response}}],
    )


def test_an_answer_without_its_call_becomes_text() -> None:
    found = turns(chat(said("tool", ToolResult("gone", (T("42"),))), said("user", "so?")))
    assert found == [("user", [{"text": "Result of the tool gone: 42"}, {"text": "so?"}])]


def test_pictures_in_an_answer() -> None:
    messages = [
        said("user", "hi"),
        asked(ToolUse("a", "weather", "{}")),
        said("tool", ToolResult("a", (T("map"), Image(data=PNG)))),
    ]
    inline = {"inlineData": {"mimeType": "image/png", "data": PNG}}
    assert turns(chat(*messages), FLASH)[-1] == ("user", [inline])  # a turn of its own
    assert turns(chat(*messages), FLASH3)[-1][1][0]["functionResponse"]["parts"] == [inline]


@pytest.mark.parametrize(
    ("arguments", "args"),
    [('{"a": 1}', {"a": 1}), ("", {}), ("[1]", {"arguments": "[1]"}), ('{"a": ', {"arguments": '{"a": '})],
)
def test_arguments_are_an_object(arguments: str, args: dict[str, Any]) -> None:
    found = turns(chat(said("user", "x"), asked(ToolUse("a", "weather", arguments))))
    assert found[1][1][0]["functionCall"]["args"] == args


def test_declarations() -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    call = chat(tools=(WEATHER, Tool("now", parameters={"type": "object", "properties": {}})))
    assert body(call)["tools"] == [
        {
            "functionDeclarations": [
                {"name": "weather", "description": "Now", "parametersJsonSchema": parameters},
                {"name": "now"},
            ]
        }
    ]
    old = body(call, OLD)["tools"][0]["functionDeclarations"][0]
    assert old["parameters"] == {
        "type": "OBJECT",
        "properties": {"city": {"type": "STRING"}},
        "propertyOrdering": ["city"],
    }


@pytest.mark.parametrize(
    ("choice", "said_choice"),
    [
        (ToolChoice("auto"), {"mode": "AUTO"}),
        (ToolChoice("none"), {"mode": "NONE"}),
        (ToolChoice("required"), {"mode": "ANY"}),
        (ToolChoice("named", "weather"), {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
    ],
)
def test_tool_choice(choice: ToolChoice, said_choice: dict[str, Any]) -> None:
    assert body(chat(tools=(WEATHER,), tool_choice=choice))["toolConfig"] == {"functionCallingConfig": said_choice}
    assert "toolConfig" not in body(chat(tool_choice=choice))


def test_names_are_changed_and_changed_back() -> None:
    call = chat(tools=(Tool("get weather!"), Tool("get_weather_"), Tool("9lives"), Tool("x" * 80)))
    names = [tool["name"] for tool in body(call)["tools"][0]["functionDeclarations"]]
    assert names == ["get_weather__2", "get_weather_", "_9lives", "x" * 64]
    events = read(GeminiWire(), call, chunk({"functionCall": {"name": "get_weather__2"}}, finish="STOP"))
    assert [event.name for event in events if isinstance(event, ToolStart)] == ["get weather!"]


# --- signatures ---------------------------------------------------------------------------------------------------


def signatures(call: Call, model: str, wire: GeminiWire | None = None) -> list[str | None]:
    written = (wire or GeminiWire()).write_call(call, model)["contents"]
    return [part.get("thoughtSignature") for turn in written for part in turn["parts"] if "functionCall" in part]


def test_a_signature_comes_back_in_its_place() -> None:
    call = chat(said("user", "x"), asked(ToolUse("a", "weather", "{}", "U0lH"), ToolUse("b", "weather", "{}")))
    assert signatures(call, FLASH3) == ["U0lH", None]
    assert signatures(call, FLASH) == ["U0lH", None]


def test_a_call_that_was_never_signed_gets_the_bypass_where_it_is_checked() -> None:
    call = chat(
        said("user", "x"),
        asked(ToolUse("a", "weather", "{}"), ToolUse("b", "weather", "{}")),
        said("tool", ToolResult("a", (T("1"),)), ToolResult("b", (T("2"),))),
        asked(ToolUse("c", "weather", "{}")),
    )
    assert signatures(call, PRO3) == [BYPASS, None, BYPASS]
    assert signatures(call, "gemini-flash-latest") == [BYPASS, None, BYPASS]
    assert signatures(call, FLASH) == [None, None, None]


def test_ids_go_to_models_that_know_them() -> None:
    call = chat(said("user", "x"), asked(ToolUse("a", "weather", "{}")), said("tool", ToolResult("a", (T("1"),))))
    new, old = turns(call, FLASH3), turns(call, FLASH)
    assert new[1][1][0]["functionCall"]["id"] == new[2][1][0]["functionResponse"]["id"] == "a"
    assert "id" not in old[1][1][0]["functionCall"]


def test_a_client_that_drops_signatures_is_remembered_for() -> None:
    wire = GeminiWire()
    signed = chunk({"functionCall": {"name": "weather"}, "thoughtSignature": "U0lH"}, finish="STOP")
    events = read(wire, chat(tools=(WEATHER,)), signed, model=FLASH3)
    start = next(event for event in events if isinstance(event, ToolStart))
    assert start.signature == "U0lH"
    call = chat(said("user", "x"), asked(ToolUse(start.id, "weather", "{}")))
    assert signatures(call, FLASH3, wire) == ["U0lH"]
    assert signatures(call, PRO3, wire) == [BYPASS]  # another model would call it corrupt


def test_the_memory_is_bounded() -> None:
    kept = Signatures(limit=2000)
    for number in range(100):
        kept.keep("m", f"call_{number}", "s" * 100)
    kept.keep("m", "huge", "s" * 3000)
    assert kept.find("m", "call_99") == "s" * 100
    assert kept.find("m", "call_0") is None
    assert kept.find("m", "huge") is None
    assert sum(kept.find("m", f"call_{number}") is not None for number in range(100)) < 10


# --- settings -----------------------------------------------------------------------------------------------------


def test_sampling() -> None:
    ask = Sampling(
        temperature=0.0,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=2**40 + 5,
        stop=("a", "", "b"),
        presence_penalty=0.5,
        frequency_penalty=0.0,
        repeat_penalty=1.1,
        logit_bias={"1": 2.0},
        n=2,
        max_tokens=300,
    )
    assert config(sampling=ask, logprobs=True, top_logprobs=3, user="u", metadata={"a": 1}) == {
        "temperature": 0.0,
        "topP": 0.9,
        "topK": 40,
        "maxOutputTokens": 300,
        "stopSequences": ["a", "b"],
        "seed": 5,
        "presencePenalty": 0.5,
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 3,
    }
    assert "generationConfig" not in body(chat())


SCHEMA = {"$schema": "x", "type": "object", "properties": {"a": {"type": ["string", "null"]}}}


@pytest.mark.parametrize(
    ("model", "wish", "written"),
    [
        (FLASH, ResponseFormat("text"), {}),
        (FLASH, ResponseFormat("json"), {"responseMimeType": "application/json"}),
        (
            FLASH,
            ResponseFormat("schema", SCHEMA),
            {
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
            },
        ),
        (
            OLD,
            ResponseFormat("schema", SCHEMA),
            {
                "responseMimeType": "application/json",
                "responseSchema": {
                    "type": "OBJECT",
                    "properties": {"a": {"type": "STRING", "nullable": True}},
                    "propertyOrdering": ["a"],
                },
            },
        ),
    ],
)
def test_response_format(model: str, wish: ResponseFormat, written: dict[str, Any]) -> None:
    assert config(model, response_format=wish) == written


def test_json_beside_tools_is_for_the_third_generation() -> None:
    call = chat(tools=(WEATHER,), response_format=ResponseFormat("json"))
    assert body(call, FLASH3)["generationConfig"] == {"responseMimeType": "application/json"}


ON, OFF = ReasoningAsk(enabled=True), ReasoningAsk(enabled=False)
LOW, MEDIUM, MAX = ReasoningAsk(effort="low"), ReasoningAsk(effort="medium"), ReasoningAsk(effort="max")
SHOWN = {"includeThoughts": True}


@pytest.mark.parametrize(
    ("model", "ask", "most", "thinking"),
    [
        (FLASH, ReasoningAsk(), None, None),
        (FLASH, ReasoningAsk(), 16, {"thinkingBudget": 0}),
        (FLASH3, ReasoningAsk(), 16, {"thinkingLevel": "MINIMAL"}),
        (FLASH, ON, None, SHOWN | {"thinkingBudget": -1}),
        (FLASH3, ON, None, SHOWN),
        (FLASH, OFF, None, {"thinkingBudget": 0}),
        (PRO, OFF, None, {"thinkingBudget": 128}),
        (FLASH3, OFF, None, {"thinkingLevel": "MINIMAL"}),
        (PRO31, OFF, None, {"thinkingLevel": "LOW"}),
        (FLASH, LOW, None, SHOWN | {"thinkingBudget": 1024}),
        (FLASH, MAX, None, SHOWN | {"thinkingBudget": 24576}),
        (PRO, MAX, None, SHOWN | {"thinkingBudget": 32768}),
        (PRO3, MEDIUM, None, SHOWN | {"thinkingLevel": "HIGH"}),
        (PRO31, MEDIUM, None, SHOWN | {"thinkingLevel": "MEDIUM"}),
        (FLASH3, MEDIUM, None, SHOWN | {"thinkingLevel": "MEDIUM"}),
        (FLASH, ReasoningAsk(budget=2000), None, SHOWN | {"thinkingBudget": 2000}),
        (FLASH, ReasoningAsk(budget=0), None, {"thinkingBudget": 0}),
        ("gemini-2.5-flash-lite", ReasoningAsk(budget=5), None, SHOWN | {"thinkingBudget": 512}),
        (FLASH3, ReasoningAsk(budget=2000), None, SHOWN | {"thinkingLevel": "MEDIUM"}),
        ("gemini-flash-latest", LOW, None, SHOWN | {"thinkingBudget": 1024}),
        (OLD, LOW, 16, None),
        ("gemma-3-27b-it", OFF, None, None),
        ("gemini-2.5-flash-image", OFF, None, None),
    ],
)
def test_thinking(model: str, ask: ReasoningAsk, most: int | None, thinking: dict[str, Any] | None) -> None:
    assert config(model, reasoning=ask, sampling=Sampling(max_tokens=most)).get("thinkingConfig") == thinking


# --- paths, text, embeddings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "call", "path"),
    [
        (FLASH, chat(), "/models/gemini-2.5-flash:generateContent"),
        ("models/gemini-2.5-flash", chat(stream=True), "/models/gemini-2.5-flash:streamGenerateContent?alt=sse"),
        ("tunedModels/mine-1", chat(), "/tunedModels/mine-1:generateContent"),
        ("vendor/model", chat(), "/models/vendor/model:generateContent"),
        ("a?key=b#c d", chat(), "/models/a%3Fkey%3Db%23c%20d:generateContent"),
        ("e", chat(kind="embed", inputs=("a",)), "/models/e:embedContent"),
        ("e", chat(kind="embed", inputs=("a", "b")), "/models/e:batchEmbedContents"),
    ],
)
def test_path(model: str, call: Call, path: str) -> None:
    assert GeminiWire().path(call, model) == path


@pytest.mark.parametrize("model", ["../files", "a/../../b", "a//b", "."])
def test_a_model_name_does_not_leave_its_place(model: str) -> None:
    with pytest.raises(ModelNotFound):
        GeminiWire().path(chat(), model)


def test_a_bare_prompt_is_a_user_turn() -> None:
    assert turns(chat(kind="text", messages=(), prompt="Once")) == [("user", [{"text": "Once"}])]


def test_embeddings() -> None:
    one = {"model": "models/e", "content": {"parts": [{"text": "a"}]}, "outputDimensionality": 3}
    assert body(chat(kind="embed", inputs=("a",), dimensions=3), "models/e") == one
    assert body(chat(kind="embed", inputs=("a", "a"), dimensions=3), "e") == {"requests": [one, one]}
