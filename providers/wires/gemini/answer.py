"""Gemini's answers as events. A stream is a row of whole response objects that each hold an increment.

Usage is cumulative: the last word counts. `finishReason` may come with the last content or alone, and some servers put
one on every chunk, so the end is told only when the body ends. A function call comes whole, maybe in an earlier chunk
than `STOP`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from providers.call import Call
from providers.errors import Broken, Unavailable, UpstreamError
from providers.events import (
    Annotation,
    Event,
    Failed,
    Finished,
    FinishReason,
    Logprobs,
    Media,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolArguments,
    ToolStart,
    Usage,
    UsageSeen,
    Vector,
)
from providers.scrub import clean
from providers.surrogates import whole_characters
from providers.wire import Stamp
from providers.wires.gemini.errors import error_of, read_error
from providers.wires.gemini.names import safe_names
from providers.wires.gemini.request import plain
from providers.wires.gemini.signatures import Signatures
from providers.wires.gemini.stream import Frames

FINISH: Final[dict[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(
        (
            "SAFETY",
            "RECITATION",
            "LANGUAGE",
            "BLOCKLIST",
            "PROHIBITED_CONTENT",
            "SPII",
            "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT",
            "IMAGE_RECITATION",
            "IMAGE_OTHER",
            "NO_IMAGE",
            "ESCALATION",
            "MODEL_ARMOR",
            "PUP_LIMITED_DISABLED",
        ),
        "content_filter",
    ),
}
"""All others (MALFORMED_FUNCTION_CALL, UNEXPECTED_TOOL_CALL, OTHER, what is yet to be invented) are a failure when
nothing was said, since another try may serve, and a `stop` with the native word otherwise."""


class _FunctionCall(Struct, rename="camel"):
    name: str = ""
    id: str | None = None
    args: Any = None


class _Blob(Struct, rename="camel"):
    mime_type: str = "application/octet-stream"
    data: str = ""


class _Code(Struct, rename="camel"):
    language: str | None = None
    code: str = ""


class _CodeResult(Struct, rename="camel"):
    outcome: str | None = None
    output: str | None = None


class _Part(Struct, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: _FunctionCall | None = None
    inline_data: _Blob | None = None
    executable_code: _Code | None = None
    code_execution_result: _CodeResult | None = None


class _Content(Struct, rename="camel"):
    parts: list[_Part] | None = None


class _Token(Struct, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class _Tops(Struct, rename="camel"):
    candidates: list[_Token] | None = None


class _LogprobsResult(Struct, rename="camel"):
    chosen_candidates: list[_Token] | None = None
    top_candidates: list[_Tops] | None = None


class _Web(Struct, rename="camel"):
    uri: str = ""
    title: str = ""


class _Source(Struct, rename="camel"):
    web: _Web | None = None


class _Grounding(Struct, rename="camel"):
    grounding_chunks: list[_Source] | None = None


class _Candidate(Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    index: int | None = None
    logprobs_result: _LogprobsResult | None = None
    grounding_metadata: _Grounding | None = None


class _Usage(Struct, rename="camel"):
    prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    total_token_count: int | None = None


class _Feedback(Struct, rename="camel"):
    block_reason: str | None = None


class _Values(Struct):
    values: tuple[float, ...] = ()


class _Chunk(Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: Any = None
    embedding: _Values | None = None
    embeddings: list[_Values] | None = None


_decode = msgspec.json.Decoder(_Chunk, strict=False).decode


def _chunk(data: bytes) -> _Chunk:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as bad:
        mended = whole_characters(data)
        if mended is not data:
            return _chunk(mended)
        raise Broken("the provider's answer is not the JSON it should be") from bad


def _usage(said: _Usage) -> Usage:
    """Output includes thinking. Some backends count thinking into `candidatesTokenCount`, some do not: the total
    decides.

    Zero counts are left out on the wire (protobuf JSON), so a missing output beside a total is a zero.
    """

    def count(value: int | None) -> int | None:
        return None if value is None else max(value, 0)

    fed_back = count(said.tool_use_prompt_token_count)
    prompt = count(said.prompt_token_count)
    if fed_back is not None:
        prompt = (prompt or 0) + fed_back
    output: int | None = None
    if said.total_token_count is not None and prompt is not None:
        output = max(said.total_token_count - prompt, 0)
    elif said.candidates_token_count is not None or said.thoughts_token_count is not None:
        output = (count(said.candidates_token_count) or 0) + (count(said.thoughts_token_count) or 0)
    return Usage(
        input=prompt,
        output=output,
        cached=count(said.cached_content_token_count),
        reasoning=count(said.thoughts_token_count),
    )


class _Choice:
    __slots__ = ("cited", "content", "message", "native", "seen", "tools")

    def __init__(self) -> None:
        self.tools = 0
        self.content = False
        self.native: str | None = None
        self.message: str | None = None
        self.cited: set[str] = set()
        self.seen: set[str] = set()
        """Call ids given out."""


class Answer:
    """The state of one answer, streamed or whole."""

    def __init__(self, call: Call, stamp: Stamp, signatures: Signatures) -> None:
        self._call = call
        self._stamp = stamp
        self._signatures = signatures
        self._model = plain(stamp.answered_by)
        self._names: Mapping[str, str] | None = None
        self._choices: dict[int, _Choice] = {}
        self._blocked: str | None = None
        self._started = False
        self._last: Usage | None = None

    def take(self, data: bytes) -> list[Event]:
        """The events of one response object. Raises UpstreamError for an error in it and for garbage."""
        chunk = _chunk(data)
        if chunk.error is not None:
            raise error_of(chunk.error, None)
        events: list[Event] = []
        if not self._started and (chunk.model_version or chunk.response_id):
            self._started = True
            events.append(Started(chunk.model_version, chunk.response_id))
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            self._blocked = chunk.prompt_feedback.block_reason
        for candidate in chunk.candidates or ():
            index = candidate.index or 0
            if 0 <= index < max(self._call.sampling.n, 1):
                self._candidate(index, candidate, events)
        if chunk.usage_metadata is not None:
            usage = _usage(chunk.usage_metadata)
            if usage != self._last:
                self._last = usage
                events.append(UsageSeen(usage))
        return events

    def end(self) -> list[Event]:
        """The body is over. Raises UpstreamError when the answer is not complete."""
        if not self._choices:
            if self._blocked is not None:
                return [Finished("content_filter", self._blocked, index) for index in range(self._call.sampling.n)]
            raise Broken("the provider's answer ended before it began")
        events: list[Event] = []
        for index, choice in sorted(self._choices.items()):
            if choice.native is None:
                if self._blocked is None:
                    raise Broken("the provider's answer was cut off")
                choice.native = self._blocked
            reason = FINISH.get(choice.native)
            if choice.native == self._blocked:
                reason = "content_filter"
            if reason is None:
                if not choice.content:
                    raise Unavailable(
                        clean(f"the provider gave no answer ({choice.native}) {choice.message or ''}"),
                        upstream_status=200,
                        native_code=choice.native[:80],
                    )
                reason = "stop"
            if reason == "stop" and choice.tools:
                reason = "tool_calls"
            events.append(Finished(reason, choice.native, index))
        return events

    def _candidate(self, index: int, candidate: _Candidate, events: list[Event]) -> None:
        choice = self._choices.setdefault(index, _Choice())
        before = len(events)
        parts = candidate.content.parts if candidate.content is not None else None
        for part in parts or ():
            self._part(index, choice, part, events)
        if candidate.logprobs_result is not None:
            entries = _logprobs(candidate.logprobs_result)
            if entries and self._call.logprobs:
                events.append(Logprobs(entries, index))
        if candidate.grounding_metadata is not None:
            self._cite(index, choice, candidate.grounding_metadata, events)
        choice.content = choice.content or len(events) > before
        if candidate.finish_reason and candidate.finish_reason != "FINISH_REASON_UNSPECIFIED":
            choice.native = candidate.finish_reason
            choice.message = candidate.finish_message

    def _part(self, index: int, choice: _Choice, part: _Part, events: list[Event]) -> None:
        if part.text:
            events.append(ReasoningDelta(part.text, choice=index) if part.thought else TextDelta(part.text, index))
        if part.function_call is not None:
            self._tool(index, choice, part.function_call, part.thought_signature, events)
        if part.inline_data is not None and part.inline_data.data and not part.thought:
            events.append(Media(part.inline_data.data, part.inline_data.mime_type, index))
        if part.executable_code is not None:
            code = part.executable_code
            events.append(TextDelta(f"\n```{(code.language or '').lower()}\n{code.code}\n```\n", index))
        if part.code_execution_result is not None and part.code_execution_result.output:
            events.append(TextDelta(f"\n```\n{part.code_execution_result.output}\n```\n", index))

    def _tool(
        self, index: int, choice: _Choice, call: _FunctionCall, signature: str | None, events: list[Event]
    ) -> None:
        if self._call.parallel_tools is False and choice.tools:
            return  # Gemini has no switch for it: the client asked for one call at most
        at, choice.tools = choice.tools, choice.tools + 1
        made = call.id if call.id and call.id not in choice.seen else self._id(index, at)
        choice.seen.add(made)
        if signature is not None:
            self._signatures.keep(self._model, made, signature)
        arguments = msgspec.json.encode({} if call.args is None else call.args).decode()
        events.append(ToolStart(at, made, self._name(call.name), signature, index))
        events.append(ToolArguments(at, arguments, index))

    def _id(self, index: int, at: int) -> str:
        """Unique among all answers, at most 40 characters: some clients and providers take no longer ones."""
        unique = "".join(filter(str.isalnum, self._stamp.request_id))[-24:]
        return f"call_{unique}_{index}_{at}" if index else f"call_{unique}_{at}"

    def _name(self, sent: str) -> str:
        """The client's own name for a function."""
        if self._names is None:
            self._names = {safe: name for name, safe in safe_names(self._call).items()}
        return self._names.get(sent, sent)

    def _cite(self, index: int, choice: _Choice, found: _Grounding, events: list[Event]) -> None:
        for source in found.grounding_chunks or ():
            web = source.web
            if web is not None and web.uri and web.uri not in choice.cited:
                choice.cited.add(web.uri)
                citation = {"url": web.uri, "title": web.title, "start_index": 0, "end_index": 0}
                events.append(Annotation({"type": "url_citation", "url_citation": citation}, index))


def _logprobs(found: _LogprobsResult) -> tuple[dict[str, Any], ...]:
    def entry(token: _Token) -> dict[str, Any]:
        return {"token": token.token, "logprob": token.log_probability, "bytes": list(token.token.encode())}

    tops = found.top_candidates or []
    return tuple(
        {**entry(token), "top_logprobs": [entry(top) for top in (tops[at].candidates or ())] if at < len(tops) else []}
        for at, token in enumerate(found.chosen_candidates or ())
    )


class Reader:
    """Stream bytes to events (see `providers.wire.EventReader`)."""

    def __init__(self, call: Call, stamp: Stamp, signatures: Signatures) -> None:
        self.done = False
        self._answer = Answer(call, stamp, signatures)
        self._frames = Frames()

    def feed(self, data: bytes) -> Iterable[Event]:
        if self.done:
            return ()
        events: list[Event] = []
        try:
            for item in self._frames.feed(data):
                events += self._answer.take(item)
        except UpstreamError as error:
            return self._failed(events, error)
        return events

    def close(self) -> Iterable[Event]:
        if self.done:
            return ()
        events: list[Event] = []
        try:
            for item in self._frames.close():
                events += self._answer.take(item)
            events += self._answer.end()
        except UpstreamError as error:
            return self._failed(events, error)
        self.done = True
        return events

    def _failed(self, events: list[Event], error: UpstreamError) -> Iterable[Event]:
        self.done = True
        return [*events, Failed(error)]


def read_chat(call: Call, body: bytes, stamp: Stamp, signatures: Signatures) -> Sequence[Event]:
    """A whole answer; also one that came as an array although it was not asked for so."""
    if _is_error(body):
        raise read_error(200, {}, body)
    answer = Answer(call, stamp, signatures)
    events: list[Event] = []
    frames = Frames()
    for item in (*frames.feed(body), *frames.close()):
        events += answer.take(item)
    return [*events, *answer.end()]


def _is_error(body: bytes) -> bool:
    """An answer that is nothing but `[{"error": ...}]`."""
    return body.lstrip()[:1] == b"[" and b'"error"' in body[:200]


def read_vectors(call: Call, body: bytes) -> Sequence[Event]:
    """Vectors shorter than the model's own are not of length 1; clients of every other API expect them to be."""
    chunk = _chunk(body)
    if chunk.error is not None:
        raise error_of(chunk.error, None)
    found = chunk.embeddings if chunk.embeddings is not None else [chunk.embedding] if chunk.embedding else []
    if len(found) != len(call.inputs) or not all(item.values for item in found):
        raise Broken(f"the provider gave {len(found)} vectors for {len(call.inputs)} inputs")
    events: list[Event] = [
        Vector(index, _unit(item.values) if call.dimensions is not None else item.values)
        for index, item in enumerate(found)
    ]
    if chunk.usage_metadata is not None:
        events.append(UsageSeen(Usage(input=_usage(chunk.usage_metadata).input)))
    return events


def _unit(values: tuple[float, ...]) -> tuple[float, ...]:
    length = sum(value * value for value in values) ** 0.5
    return tuple(value / length for value in values) if length > 0 else values
