"""What the official `openai` client is asked to do against the router, with whatever release of it is installed here.

`CHECKS` are called one by one by test_openai.py; `python -m tests.clients.openai_tour` runs them all in another
environment (the desk as JSON on standard input) and prints a JSON line for each: its name, and what went wrong or null.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import openai
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.desk import BACKENDS, REAL, Desk, at
from tests.clients.upstream import AFTER_TOOL, CITY, RESULT, THOUGHT_ANSWER, THOUGHTS, VECTORS
from tests.simulators.dialects import SECRET
from tests.simulators.scripts import ANSWER, PART

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
SECONDS = 60.0


class GetWeather(BaseModel):
    """The weather in a city."""

    model_config = ConfigDict(extra="forbid")
    city: str


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str = Field(max_length=12)
    people: int = Field(ge=0, le=99)


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def client_of(desk: Desk, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(
        **{"base_url": f"{desk.url}/v1", "api_key": desk.key, "max_retries": 0, "timeout": SECONDS, **more}
    )


def async_client_of(desk: Desk) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{desk.url}/v1", api_key=desk.key, max_retries=0, timeout=SECONDS)


def ask(client: openai.OpenAI, model: str, messages: list[Any] | None = None, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages or HELLO, **more)


def refused(kind: type[openai.APIError], call: Callable[[], Any]) -> Any:
    """The error of that very class that a call ends in."""
    found: Exception | None = None
    got = None
    try:
        got = call()
    except openai.APIError as error:
        found = error
    assert type(found) is kind, repr(found or got)
    assert SECRET not in str(found)
    return found


def chat(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            answer = ask(client, at(backend, "answer"), temperature=0.5, max_tokens=50, stop=["X"], seed=1)
            assert answer.object == "chat.completion"
            assert answer.choices[0].message.role == "assistant"
            assert answer.choices[0].message.content == ANSWER
            assert answer.choices[0].finish_reason == "stop"
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
            assert answer.usage.total_tokens == 10
            assert isinstance(answer.created, int)
            assert answer.id


def chat_in_real_words(desk: Desk) -> None:
    with client_of(desk) as client:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        answer = ask(client, REAL, question, temperature=0, seed=7)
        assert "Paris" in answer.choices[0].message.content
        chunks = list(ask(client, REAL, question, temperature=0, seed=7, stream=True))
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def many_turns(desk: Desk) -> None:
    turns = [
        {"role": "system", "content": "You are polite."},
        {"role": "user", "content": "My name is Tom."},
        {"role": "assistant", "content": "Hello Tom! Nice to meet you."},
        {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
    ]
    with client_of(desk) as client:
        for backend in BACKENDS:
            assert ask(client, at(backend, "answer"), turns).choices[0].message.content == ANSWER
        assert ask(client, REAL, turns).choices[0].message.content


def stream(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            chunks = list(ask(client, at(backend, "answer"), stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
            assert chunks[0].choices[0].delta.role == "assistant"
            assert len({chunk.id for chunk in chunks}) == 1
            assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
            assert all(chunk.usage is None for chunk in chunks)


def stream_with_usage(desk: Desk) -> None:
    with client_of(desk) as client:
        for model in (*(at(backend, "answer") for backend in BACKENDS), REAL):
            more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
            *chunks, last = list(ask(client, model, **more))
            assert last.choices == []
            assert last.usage.prompt_tokens > 0
            assert last.usage.completion_tokens > 0
            assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
            assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def stream_helper(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            with client.chat.completions.stream(model=at(backend, "answer"), messages=HELLO) as events:
                kinds = [event.type for event in events]
                final = events.get_final_completion()
            assert "content.delta" in kinds
            assert "content.done" in kinds
            assert final.choices[0].message.content == ANSWER


def tools(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            answer = ask(client, at(backend, "weather"), tools=TOOLS, tool_choice="auto")
            assert answer.choices[0].finish_reason == "tool_calls"
            call = answer.choices[0].message.tool_calls[0]
            assert call.id
            assert call.type == "function"
            assert call.function.name == "get_weather"
            assert json.loads(call.function.arguments) == {"city": "Paris"}
            turns = [*HELLO, answer.choices[0].message]
            turns.append({"role": "tool", "tool_call_id": call.id, "content": RESULT})
            after = ask(client, at(backend, "weather"), turns, tools=TOOLS)
            assert after.choices[0].message.content == AFTER_TOOL
            assert after.choices[0].finish_reason == "stop"


def parallel_tools(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            answer = ask(client, at(backend, "weather-twice"), tools=TOOLS)
            calls = answer.choices[0].message.tool_calls
            assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]
            assert len({call.id for call in calls}) == 2
            turns = [*HELLO, answer.choices[0].message]
            turns += [{"role": "tool", "tool_call_id": call.id, "content": RESULT} for call in calls]
            assert (
                ask(client, at(backend, "weather-twice"), turns, tools=TOOLS).choices[0].message.content == AFTER_TOOL
            )


def streamed_tools(desk: Desk) -> None:
    """Put together from the deltas as an application does, and by the client's own helper."""
    with client_of(desk) as client:
        for backend in BACKENDS:
            calls: dict[int, dict[str, str]] = {}
            finish = []
            for chunk in ask(client, at(backend, "weather-twice"), tools=TOOLS, stream=True):
                for choice in chunk.choices:
                    finish += [choice.finish_reason] if choice.finish_reason else []
                    for delta in choice.delta.tool_calls or ():
                        call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                        call["id"] += delta.id or ""
                        call["name"] += delta.function.name or ""
                        call["arguments"] += delta.function.arguments or ""
            assert finish == ["tool_calls"], backend
            assert sorted(calls) == [0, 1], backend
            assert [call["name"] for call in calls.values()] == ["get_weather"] * 2
            cities = [json.loads(call["arguments"])["city"] for call in calls.values()]
            assert cities == ["Paris", "Rome"]
            assert len({call["id"] for call in calls.values()} - {""}) == 2


def stream_helper_with_tools(desk: Desk) -> None:
    parsed: Any = openai.pydantic_function_tool(GetWeather, name="get_weather")
    with client_of(desk) as client:
        for backend in BACKENDS:
            with client.chat.completions.stream(
                model=at(backend, "weather-twice"), messages=HELLO, tools=[parsed], parallel_tool_calls=True
            ) as events:
                done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
                final = events.get_final_completion()
            assert [event.name for event in done] == ["get_weather"] * 2
            calls = final.choices[0].message.tool_calls or []
            assert [call.function.parsed_arguments for call in calls] == [
                GetWeather(city="Paris"),
                GetWeather(city="Rome"),
            ]


def structured_output(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            answer = client.chat.completions.parse(model=at(backend, "city"), messages=HELLO, response_format=City)
            assert answer.choices[0].message.parsed == City(**CITY), backend
            with client.chat.completions.stream(
                model=at(backend, "city"), messages=HELLO, response_format=City
            ) as events:
                assert events.get_final_completion().choices[0].message.parsed == City(**CITY), backend


def structured_output_for_real(desk: Desk) -> None:
    """The demo model keeps the schema by grammar, whatever it thinks."""
    about: list[Any] = [{"role": "user", "content": "Tell me about Paris."}]
    with client_of(desk) as client:
        answer = client.chat.completions.parse(model=REAL, messages=about, response_format=City, max_tokens=80, seed=7)
        assert isinstance(answer.choices[0].message.parsed, City)
        loose = ask(client, REAL, about, response_format={"type": "json_object"}, max_tokens=200, seed=7)
        if loose.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(loose.choices[0].message.content), dict)


def reasoning(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            message = ask(client, at(backend, "thinker"), reasoning_effort="low").choices[0].message
            assert message.content == THOUGHT_ANSWER, backend
            assert message.reasoning_content == "".join(THOUGHTS), backend
            chunks = ask(client, at(backend, "thinker"), reasoning_effort="low", stream=True)
            deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
            assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "".join(THOUGHTS)
            assert "".join(delta.content or "" for delta in deltas) == THOUGHT_ANSWER


def completions(desk: Desk) -> None:
    with client_of(desk) as client:
        answer = client.completions.create(model=REAL, prompt="One, two, three, four,", max_tokens=4, temperature=0)
        assert "five" in answer.choices[0].text
        pieces = client.completions.create(
            model=REAL, prompt="One, two, three, four,", max_tokens=4, temperature=0, stream=True
        )
        assert "five" in "".join(piece.choices[0].text for piece in pieces if piece.choices)


def embeddings(desk: Desk) -> None:
    """The client asks for base64 unless told otherwise, and reads float32 from it."""
    with client_of(desk) as client:
        for backend in BACKENDS:
            found = client.embeddings.create(model=at(backend, "embed"), input=["a", "b", "c"])
            assert [tuple(row.embedding) for row in found.data] == list(VECTORS), backend
            assert [row.index for row in found.data] == [0, 1, 2]
            one = client.embeddings.create(model=at(backend, "embed"), input="a", encoding_format="float")
            assert [tuple(row.embedding) for row in one.data] == [VECTORS[0]], backend
            raw = client.embeddings.with_raw_response.create(
                model=at(backend, "embed"), input="a", encoding_format="base64"
            )
            assert isinstance(json.loads(raw.http_response.content)["data"][0]["embedding"], str), backend


def models(desk: Desk) -> None:
    with client_of(desk) as client:
        listed = {model.id: model for model in client.models.list()}
        assert listed["chat"].owned_by == "cloud"
        assert listed["chat"].object == "model"
        assert client.models.retrieve("chat").id == "chat"
        assert client.models.retrieve("llama3.2:latest").id == "llama3.2:latest"
        for name in (REAL, "deepseek-r1:1.5b", "gemini/gemini-2.5-pro"):  # in no list, but answered
            assert name not in listed
            assert client.models.retrieve(name).id == name
        unknown = refused(openai.NotFoundError, lambda: client.models.retrieve("chart"))
        assert unknown.code == "model_not_found"
        assert "chat" in unknown.message


def other_roots(desk: Desk) -> None:
    """Base URLs as people write them."""
    for root in ("", "/", "/v1/", "/api/v3"):
        with client_of(desk, base_url=desk.url + root) as client:
            assert ask(client, "chat").choices[0].message.content == ANSWER
            assert any(model.id == "chat" for model in client.models.list())


def says_who_answered(desk: Desk) -> None:
    with client_of(desk) as client:
        raw = client.chat.completions.with_raw_response.create(model="deepseek-r1:1.5b", messages=HELLO, max_tokens=5)
        assert raw.headers["x-switchyard-provider"] == "demo"
        assert raw.headers["x-switchyard-fallback"]
        assert raw.parse().choices[0].message.content
        assert raw.headers["x-request-id"]


def wrong_key(desk: Desk) -> None:
    for key in ("sk-wrong", desk.key[:-4] + "AAAA", "ollama"):
        with client_of(desk, api_key=key) as client:
            error = refused(openai.AuthenticationError, lambda client=client: ask(client, "chat"))  # type: ignore[misc]
            assert error.status_code == 401
            assert error.code == "invalid_api_key"
            assert "key" in error.message
            assert key not in str(error.body)
            refused(openai.AuthenticationError, lambda client=client: list(client.models.list()))  # type: ignore[misc]


def unknown_model(desk: Desk) -> None:
    """The error names what is near."""
    with client_of(desk) as client:
        error = refused(openai.NotFoundError, lambda: ask(client, "deepseek-r1:1.6b"))
        assert error.code == "model_not_found"
        assert error.param == "model"
        assert "deepseek-r1:1.5b" in error.message
        same = refused(openai.NotFoundError, lambda: ask(client, "deepseek-r1:1.6b", stream=True))
        assert same.body["message"] == error.body["message"]


def bad_requests(desk: Desk) -> None:
    with client_of(desk) as client:
        hot = refused(openai.BadRequestError, lambda: ask(client, "chat", temperature="hot"))
        assert hot.param == "temperature"
        assert "temperature" in hot.message
        assert hot.type == "invalid_request_error"
        refused(openai.BadRequestError, lambda: ask(client, "chat", extra_body={"messages": "Hello"}))
        refused(openai.BadRequestError, lambda: ask(client, "chat", extra_body={"messages": [{"role": "king"}]}))
        blind = [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
        ]
        picture = refused(openai.BadRequestError, lambda: ask(client, REAL, blind))
        assert "image" in picture.message


def provider_errors(desk: Desk) -> None:
    """What a provider says: a refusal of the request comes through, what is between it and us does not."""
    with client_of(desk) as client:
        for backend in BACKENDS:
            told = refused(openai.BadRequestError, lambda b=backend: ask(client, at(b, f"400@{desk.tag}")))  # type: ignore[misc]
            assert "simulated trouble" in told.message
            for stream in (False, True):
                model = at(backend, f"401@{desk.tag}{stream}")
                ours = refused(
                    openai.InternalServerError,
                    lambda model=model, stream=stream: ask(client, model, stream=stream),  # type: ignore[misc]
                )
                assert ours.status_code == 502, ours
                assert ours.code
            busy = refused(openai.InternalServerError, lambda b=backend: ask(client, at(b, f"429-2s@{desk.tag}")))  # type: ignore[misc]
            assert busy.status_code == 503
            assert busy.response.headers["retry-after"]


def error_in_the_stream(desk: Desk) -> None:
    with client_of(desk) as client:
        for backend in BACKENDS:
            text = ""
            found: Exception | None = None
            try:
                for chunk in ask(client, at(backend, f"content-then-error@{desk.tag}"), stream=True):
                    text += chunk.choices[0].delta.content or ""
            except openai.APIError as error:
                found = error
            assert type(found) is openai.APIError, (backend, found)
            assert found.message
            assert SECRET not in str(found)
            assert text == PART, backend


def leave_mid_stream(desk: Desk) -> None:
    """Closes the stream after its first words; test_openai.py looks whether the providers notice."""
    with client_of(desk) as client:
        for backend in BACKENDS:
            with ask(client, at(backend, f"endless-slow@{desk.tag}"), stream=True) as chunks:
                for chunk in chunks:
                    if chunk.choices[0].delta.content:
                        break
        assert ask(client, "chat").choices[0].message.content == ANSWER


async def asynchronous(desk: Desk) -> None:
    async with async_client_of(desk) as client:

        async def whole(model: str) -> str:
            answer = await client.chat.completions.create(model=model, messages=HELLO)
            return answer.choices[0].message.content or ""

        async def streamed(model: str) -> str:
            chunks = await client.chat.completions.create(model=model, messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        names = [at(backend, "answer") for backend in BACKENDS] * 4
        texts = await asyncio.gather(*(way(model) for model in names for way in (whole, streamed)))
        assert set(texts) == {ANSWER}
        assert [model.id async for model in client.models.list()]


async def cancelled(desk: Desk) -> None:
    """Tasks that wait for whole answers are cancelled; test_openai.py looks whether the providers notice."""
    async with async_client_of(desk) as client:
        models = [at(backend, f"silent@{desk.tag}-gone") for backend in BACKENDS]
        asked = [asyncio.ensure_future(client.chat.completions.create(model=one, messages=HELLO)) for one in models]
        done, waiting = await asyncio.wait(asked, timeout=2)  # in which the providers have been asked
        assert not done, "a silent provider answered"
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


CHECKS: tuple[Callable[[Desk], Awaitable[None] | None], ...] = (
    chat,
    chat_in_real_words,
    many_turns,
    stream,
    stream_with_usage,
    stream_helper,
    tools,
    parallel_tools,
    streamed_tools,
    stream_helper_with_tools,
    structured_output,
    structured_output_for_real,
    reasoning,
    completions,
    embeddings,
    models,
    other_roots,
    says_who_answered,
    wrong_key,
    unknown_model,
    bad_requests,
    provider_errors,
    error_in_the_stream,
    leave_mid_stream,
    asynchronous,
    cancelled,
)


def run(check: Callable[[Desk], Awaitable[None] | None], desk: Desk) -> None:
    """Call one check; an asynchronous one in a loop of its own."""
    done = check(desk)
    if done is not None:

        async def wait() -> None:
            await done

        asyncio.run(wait())


def main() -> None:
    desk = Desk.from_json(sys.stdin.read())
    for check in CHECKS:
        problem = None
        try:
            run(check, desk)
        except Exception:  # whatever it is, it is the finding
            problem = traceback.format_exc()
        print(json.dumps({"check": check.__name__, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
