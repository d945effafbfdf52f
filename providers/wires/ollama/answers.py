"""What an Ollama server answers, as events: lines of a stream, a whole answer, embeddings.

One object shape serves both chat and generate. A chunk may carry thinking, content and tool calls together; tool
calls come whole, with or without an id, in any chunk before the last or in the last one; `index` cannot be trusted,
so calls are counted here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson
from msgspec import DecodeError, Raw, Struct, ValidationError
from msgspec.json import Decoder

from providers.call import Call
from providers.errors import Broken, UpstreamError
from providers.events import (
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
from providers.framing import LineReader
from providers.surrogates import loads, whole_characters
from providers.wire import Stamp
from providers.wires.ollama.failures import error_text, stream_error

FINISH: Final[dict[str | None, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "load": "stop",
    "unload": "stop",
    None: "stop",
    "": "stop",
}
"""`done_reason` to ours; a tool call seen in any chunk turns stop into tool_calls. Unknown reasons are stop."""

NOT_DONE: Final = "the provider's answer ended before it was done"


class _Function(Struct):
    name: str = ""
    arguments: Raw = Raw(b"{}")
    index: Any = None


class Use(Struct):
    function: _Function
    id: str | None = None


class _Message(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[Use] | None = None
    images: list[str] | None = None


class Line(Struct):
    """The fields that matter of any answer object; everything else is skipped unparsed."""

    model: str | None = None
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[Use] | None = None
    done: bool | None = None
    done_reason: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    error: Any = None
    embeddings: Raw = Raw()
    """Left unread: the splice lane has no use for the numbers. Empty when absent."""
    embedding: Raw = Raw()

    def usage(self) -> Usage | None:
        """None when the server counted nothing: an omitted count is unknown, not zero."""
        if self.prompt_eval_count is None and self.eval_count is None:
            return None
        return Usage(input=self.prompt_eval_count, output=self.eval_count)


_decode = Decoder(Line).decode


def read_line(data: bytes) -> tuple[Line, bytes]:
    """The object and the bytes that say it: `data`, or what it was mended to. Raises UpstreamError: the provider's own,
    or Broken for what is no answer object."""
    try:
        line = _decode(data)
    except ValidationError as bad:
        raise _odd(data, bad) from None
    except (DecodeError, UnicodeDecodeError, RecursionError):
        mended = whole_characters(data)
        if mended is not data:
            return read_line(mended)
        raise Broken("the provider sent something that is not JSON") from None
    if line.error:
        raise stream_error(line.error)
    return line, data


def _odd(data: bytes, bad: ValidationError) -> UpstreamError:
    try:
        value = loads(data)
    except orjson.JSONDecodeError:
        return Broken("the provider sent something that is not JSON")
    if error_text(value):
        return stream_error(value["error"])
    return Broken(f"the provider sent JSON of another shape than Ollama's: {str(bad)[:200]}")


def whole_lines(tail: Sequence[bytes]) -> list[bytes]:
    """The unfinished last line of a body, if its object is whole: half a one only says that the body was cut."""
    return [line for line in tail if line.rstrip().endswith(b"}")]


def tool_id(request_id: str, index: int) -> str:
    """`call_` and eight lower-case letters or digits, as Ollama makes them; the same call always gets the same id."""
    number = int.from_bytes(hashlib.blake2b(f"{request_id}/{index}".encode(), digest_size=8).digest())
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "call_" + "".join(letters[number // 36**place % 36] for place in range(8))


class Assembler:
    """Answer objects to events; remembers what the whole stream has shown."""

    __slots__ = ("_content", "_model", "_one_tool", "_request_id", "_tools", "finished")

    def __init__(self, call: Call, stamp: Stamp) -> None:
        self._request_id = stamp.request_id
        self._one_tool = call.parallel_tools is False
        self._model: str | None = None
        self._content = False
        self._tools = 0
        self.finished = False

    def events(self, line: Line) -> list[Event]:
        """Raises Broken for an end without a reason and without any content (an aborted run)."""
        found: list[Event] = []
        if self._model is None:
            self._model = line.model or ""
            found.append(Started(model=line.model))
        message = line.message
        thinking = line.thinking or (message.thinking if message else None)
        content = line.response or (message.content if message else None)
        uses = line.tool_calls or (message.tool_calls if message else None)
        if thinking:
            found.append(ReasoningDelta(thinking))
        if content:
            found.append(TextDelta(content))
        if message and message.images:
            found += [Media(data, "image/png") for data in message.images]
        for use in uses or ():
            if self._one_tool and self._tools:
                break  # the client asked for one call at a time
            found.append(ToolStart(self._tools, use.id or tool_id(self._request_id, self._tools), use.function.name))
            found.append(ToolArguments(self._tools, arguments_text(use.function.arguments)))
            self._tools += 1
        if line.logprobs:
            found.append(Logprobs(tuple(line.logprobs)))
        self._content = self._content or bool(thinking or content or uses)
        if line.done:
            if not line.done_reason and not self._content:
                raise Broken("the provider's run was aborted without an answer")
            usage = line.usage()
            if usage is not None:
                found.append(UsageSeen(usage))
            found.append(Finished(finish_of(line.done_reason, tools=self._tools > 0), line.done_reason))
            self.finished = True
        return found


def finish_of(reason: str | None, *, tools: bool) -> FinishReason:
    found = FINISH.get(reason, "stop")
    return "tool_calls" if tools and found == "stop" else found


def arguments_text(raw: Raw) -> str:
    """The object's JSON text; servers that send it as a string already hold the text."""
    text = bytes(raw)
    if text.startswith(b'"'):
        return str(orjson.loads(text))
    return "{}" if text == b"null" else text.decode()


class Reader:
    """A stream of lines. Ends at `done: true`; whatever follows is not read."""

    __slots__ = ("_assembler", "_lines", "done")

    def __init__(self, call: Call, stamp: Stamp) -> None:
        self._assembler = Assembler(call, stamp)
        self._lines = LineReader()
        self.done = False

    def feed(self, data: bytes) -> Iterable[Event]:
        if self.done:
            return ()
        try:
            lines = self._lines.feed(data)
        except Broken as bad:
            self.done = True
            return (Failed(bad),)
        return self._events(lines)

    def close(self) -> Iterable[Event]:
        if self.done:
            return ()
        found = self._events(whole_lines(self._lines.close()))
        if not self.done:
            self.done = True
            found.append(Failed(Broken(NOT_DONE)))
        return found

    def _events(self, lines: Sequence[bytes]) -> list[Event]:
        found: list[Event] = []
        for data in lines:
            try:
                found += self._assembler.events(read_line(data)[0])
            except UpstreamError as error:
                self.done = True
                found.append(Failed(error))
                break
            if self._assembler.finished:
                self.done = True
                break
        return found


_floats = Decoder(tuple[float, ...]).decode
_float_lists = Decoder(list[tuple[float, ...]]).decode


def read_answer(call: Call, body: bytes, stamp: Stamp) -> list[Event]:
    """Events of a whole answer. Raises UpstreamError when it is no complete one."""
    line, _ = read_line(body)
    check_whole(call, line)
    if call.kind != "embed":
        return Assembler(call, stamp).events(line)
    found: list[Event] = [Started(model=line.model)]
    try:
        many = bytes(line.embeddings)
        vectors = _float_lists(many) if many else [_floats(line.embedding)]
    except DecodeError as bad:
        raise Broken(f"the provider's embeddings are not lists of numbers: {str(bad)[:200]}") from None
    found += [Vector(index, values) for index, values in enumerate(vectors)]
    usage = line.usage()
    if usage is not None:
        found.append(UsageSeen(usage))
    found.append(Finished("stop"))
    return found


def check_whole(call: Call, line: Line) -> None:
    """Raises Broken when the object does not answer this call."""
    if call.kind == "embed":
        if not bytes(line.embeddings) and not bytes(line.embedding):
            raise Broken("the provider's answer holds no embeddings")
        return
    if not line.done:
        raise Broken(NOT_DONE)
    if line.message is None and line.response is None:
        raise Broken("the provider's answer holds no message")
