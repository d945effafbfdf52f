"""A `Call` as a Gemini request body. Google refuses unknown fields, so only what is named here is ever sent.

Dropped, being hints or bookkeeping: logit_bias, min_p, repeat_penalty, user, metadata, keep_alive, truncate, `strict`
of a tool, `detail` of an image. Refused: what would change the answer's meaning (see the messages of
UnsupportedFeature below).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from providers.call import Call, ToolChoice
from providers.errors import UnsupportedFeature
from providers.wires.gemini.contents import contents_of
from providers.wires.gemini.models import Family, family, thinking
from providers.wires.gemini.names import safe_names
from providers.wires.gemini.schema import is_empty_object, to_schema
from providers.wires.gemini.signatures import Signatures

MAX_STOPS: Final = 5
MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}


def plain(model: str) -> str:
    """The model's id without the prefix that lists and SDKs carry."""
    return model.removeprefix("models/")


def write_chat(call: Call, sent_model: str, signatures: Signatures) -> dict[str, Any]:
    if call.suffix:
        raise UnsupportedFeature("Gemini cannot fill in the middle of a text", param="suffix")
    if call.untemplated:
        raise UnsupportedFeature("Gemini takes no raw prompts", param="raw")
    model = plain(sent_model)
    kind = family(model)
    names = safe_names(call)
    turns, system = contents_of(call, model, kind, names, signatures)
    body: dict[str, Any] = {"contents": turns}
    if system is not None:
        body["systemInstruction"] = system
    if call.tools:
        body["tools"] = [{"functionDeclarations": _declarations(call, kind, names)}]
        if call.tool_choice is not None:
            body["toolConfig"] = {"functionCallingConfig": _choice(call.tool_choice, names)}
    config = _config(call, model, kind)
    if config:
        body["generationConfig"] = config
    return body


def _declarations(call: Call, kind: Family, names: Mapping[str, str]) -> list[dict[str, Any]]:
    declared = []
    for index, tool in enumerate(call.tools):
        if tool.extras:
            raise UnsupportedFeature("Gemini takes only function tools here", param=f"tools[{index}]")
        said: dict[str, Any] = {"name": names[tool.name]}
        if tool.description:
            said["description"] = tool.description
        if tool.parameters and not is_empty_object(tool.parameters):
            if kind.json_schema:
                said["parametersJsonSchema"] = _bare(tool.parameters)
            else:
                said["parameters"] = to_schema(tool.parameters, param=f"tools[{index}].function.parameters")
        declared.append(said)
    return declared


def _bare(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "$schema"}


def _choice(choice: ToolChoice, names: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {"mode": MODES[choice.mode]}
    if choice.mode == "named" and choice.name:
        said["allowedFunctionNames"] = [names[choice.name]]
    return said


def _config(call: Call, model: str, kind: Family) -> dict[str, Any]:
    ask = call.sampling
    stops = [stop for stop in ask.stop if stop]
    if len(stops) > MAX_STOPS:
        raise UnsupportedFeature(f"Gemini takes at most {MAX_STOPS} stop sequences", param="stop")
    said: dict[str, Any] = {
        "temperature": ask.temperature,
        "topP": ask.top_p,
        "topK": ask.top_k,
        "maxOutputTokens": ask.max_tokens,
        "stopSequences": stops or None,
        "seed": None if ask.seed is None else _int32(ask.seed),
        # Zero is the default, and some models refuse the very name.
        "presencePenalty": ask.presence_penalty or None,
        "frequencyPenalty": ask.frequency_penalty or None,
        "candidateCount": ask.n if ask.n > 1 else None,
        "responseLogprobs": True if call.logprobs else None,
        "logprobs": call.top_logprobs if call.logprobs and call.top_logprobs else None,
        "thinkingConfig": thinking(model, call.reasoning, ask.max_tokens),
    }
    said |= _format(call, kind)
    return {key: value for key, value in said.items() if value is not None}


def _int32(seed: int) -> int:
    """The field is an int32; OpenAI's seed is any integer. The same seed stays the same."""
    return seed if -(2**31) <= seed < 2**31 else seed & 0x7FFFFFFF


def _format(call: Call, kind: Family) -> dict[str, Any]:
    wish = call.response_format
    if wish is None or wish.kind == "text":
        return {}
    if call.tools and kind.gemini and kind.version < (3, 0):
        raise UnsupportedFeature(
            "this Gemini model cannot do JSON output and function calling in one call", param="response_format"
        )
    said: dict[str, Any] = {"responseMimeType": "application/json"}
    if wish.schema is not None:
        if kind.json_schema:
            said["responseJsonSchema"] = _bare(wish.schema)
        else:
            said["responseSchema"] = to_schema(wish.schema, param="response_format.json_schema.schema")
    return said


def write_embed(call: Call, sent_model: str) -> dict[str, Any]:
    model = f"models/{plain(sent_model)}"
    requests: list[dict[str, Any]] = []
    for text in call.inputs:
        if not isinstance(text, str):
            raise UnsupportedFeature("Gemini embeds texts, not token ids", param="input")
        one: dict[str, Any] = {"model": model, "content": {"parts": [{"text": text}]}}
        if call.dimensions is not None:
            one["outputDimensionality"] = call.dimensions
        requests.append(one)
    return requests[0] if len(requests) == 1 else {"requests": requests}
