"""The official `ollama` client, unmodified: with a key, and on the keyless door as on an Ollama."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from io import BytesIO
from typing import Any

import ollama
import pytest
from PIL import Image

from tests.clients.desk import BACKENDS, REAL, Desk, at
from tests.clients.openai_tour import City
from tests.clients.upstream import AFTER_TOOL, CITY, RESULT, THOUGHT_ANSWER, THOUGHTS, VECTORS
from tests.simulators.dialects import SECRET
from tests.simulators.scripts import ANSWER, PART
from tests.simulators.server import Request, Simulator

HELLO = [{"role": "user", "content": "Hello"}]
NAME = "gemma-3-270m"
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
BOTH_MODES = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def keyed(desk: Desk) -> Iterator[ollama.Client]:
    client = ollama.Client(host=desk.url, headers={"Authorization": f"Bearer {desk.key}"}, timeout=60)
    with client:
        yield client


@pytest.fixture(scope="module")
def keyless(desk: Desk) -> Iterator[ollama.Client]:
    with ollama.Client(host=desk.door, timeout=60) as client:
        yield client


def chatted(client: ollama.Client, model: str, stream: bool, messages: Any = None, **more: Any) -> list[Any]:
    """The chunks of a chat; one when it is whole."""
    given: dict[str, Any] = {"stream": stream, **more}
    answer: Any = client.chat(model, messages or HELLO, **given)
    return list(answer) if stream else [answer]


def text(chunks: list[Any]) -> str:
    return "".join(chunk.message.content or "" for chunk in chunks)


def refused(call: Callable[[], object]) -> ollama.ResponseError:
    with pytest.raises(ollama.ResponseError) as caught:
        call()
    assert SECRET not in str(caught.value)
    return caught.value


def test_list(keyed: ollama.Client, keyless: ollama.Client) -> None:
    listed = keyed.list().models
    names = [model.model for model in listed]
    assert {NAME, "chat", "llama3.2:latest"} <= set(names)
    assert len({model.digest for model in listed}) == len(listed)
    assert all(isinstance(model.modified_at, datetime) for model in listed)
    assert {model.model for model in keyless.list().models} == set(names) - {"chat"}  # no cloud for the guest


@EACH_BACKEND
@BOTH_MODES
def test_chat(backend: str, stream: bool, keyed: ollama.Client) -> None:
    model = at(backend, "answer")
    chunks = chatted(keyed, model, stream, options={"temperature": 0.5, "num_predict": 40, "stop": ["X"]})
    assert text(chunks) == ANSWER
    assert all(chunk.model == model for chunk in chunks)
    assert all(chunk.message.role == "assistant" for chunk in chunks)
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert last.done_reason == "stop"
    assert (last.prompt_eval_count, last.eval_count) == (7, 3)
    assert last.total_duration > 0
    assert last.created_at.endswith("Z")


@BOTH_MODES
def test_chat_in_real_words(stream: bool, keyless: ollama.Client) -> None:
    """On the keyless door, by the model's bare name, by its tag, and by one whose own server is down. A seed: the same
    answer each time."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    for model in (NAME, f"{NAME}:latest", "deepseek-r1:1.5b"):
        chunks = chatted(keyless, model, stream, question, options={"num_predict": 30, "temperature": 0, "seed": 7})
        assert "Paris" in text(chunks)
        assert chunks[-1].model == model
        assert chunks[-1].eval_count > 0
        assert len(chunks) > 2 or not stream


def test_ps(keyless: ollama.Client) -> None:
    keyless.chat(NAME, [{"role": "user", "content": "Hello"}], options={"num_predict": 1})
    loaded = {model.model: model for model in keyless.ps().models}
    assert {NAME, "llama3.2:latest"} <= set(loaded)
    assert isinstance(loaded[NAME].expires_at, datetime)


@pytest.mark.parametrize("name", [NAME, f"{NAME}:latest", "llama3.2", REAL, "deepseek-r1:1.5b"])
def test_show(name: str, keyless: ollama.Client) -> None:
    shown = keyless.show(name)
    assert shown.capabilities is not None
    assert "completion" in shown.capabilities
    info = shown.modelinfo or {}
    context = [value for key, value in info.items() if key.endswith(".context_length")]
    assert len(context) == 1
    assert context[0] > 0


def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
      city: Its name.
    """
    return f"{RESULT} in {city}"


@EACH_BACKEND
@BOTH_MODES
@pytest.mark.parametrize(("script", "cities"), [("weather", ["Paris"]), ("weather-twice", ["Paris", "Rome"])])
def test_tools(script: str, cities: list[str], backend: str, stream: bool, keyed: ollama.Client) -> None:
    """A function as the tool, its result sent back as the client's documentation shows it."""
    model = at(backend, script)
    chunks = chatted(keyed, model, stream, tools=[get_weather])
    calls = [call for chunk in chunks for call in chunk.message.tool_calls or ()]
    assert [call.function.name for call in calls] == ["get_weather"] * len(cities)
    assert [dict(call.function.arguments) for call in calls] == [{"city": city} for city in cities]
    assert chunks[-1].done_reason == "stop"
    turns: list[Any] = [*HELLO, {"role": "assistant", "content": "", "tool_calls": calls}]
    for call in calls:
        result = get_weather(**call.function.arguments)
        turns.append({"role": "tool", "content": result, "tool_name": call.function.name})
    assert text(chatted(keyed, model, stream, turns, tools=[get_weather])) == AFTER_TOOL


def picture() -> bytes:
    drawn = BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(drawn, format="PNG")
    return drawn.getvalue()


def sent_picture(request: Request) -> bytes:
    """The picture as the provider got it."""
    body = request.json
    if request.path == "/api/chat":
        return base64.b64decode(body["messages"][-1]["images"][0])
    if "contents" in body:
        found = [part["inlineData"] for part in body["contents"][-1]["parts"] if "inlineData" in part]
        assert found[0]["mimeType"] == "image/png"
        return base64.b64decode(found[0]["data"])
    found = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    head, _, data = found[0].partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data)


@EACH_BACKEND
def test_images(backend: str, keyed: ollama.Client, upstreams: Simulator) -> None:
    model = at(backend, f"answer@picture-for-{backend}")
    turns = [{"role": "user", "content": "What is this?", "images": [picture()]}]
    assert text(chatted(keyed, model, False, turns)) == ANSWER
    [request] = upstreams.asked(model.partition("/")[2])
    assert sent_picture(request) == picture()


def test_an_image_to_a_text_model(keyless: ollama.Client) -> None:
    turns = [{"role": "user", "content": "What is this?", "images": [picture()]}]
    error = refused(lambda: keyless.chat(NAME, turns))
    assert error.status_code == 400
    assert "image" in error.error


@EACH_BACKEND
@BOTH_MODES
def test_thinking(backend: str, stream: bool, keyed: ollama.Client) -> None:
    chunks = chatted(keyed, at(backend, "thinker"), stream, think=True)
    assert "".join(chunk.message.thinking or "" for chunk in chunks) == "".join(THOUGHTS)
    assert text(chunks) == THOUGHT_ANSWER


def test_thinking_of_a_model_that_cannot(keyless: ollama.Client) -> None:
    error = refused(lambda: keyless.chat(NAME, HELLO, think=True))
    assert error.status_code == 400
    assert "think" in error.error or "reason" in error.error


@EACH_BACKEND
@BOTH_MODES
def test_structured_output(backend: str, stream: bool, keyed: ollama.Client) -> None:
    chunks = chatted(keyed, at(backend, "city"), stream, format=City.model_json_schema())
    assert json.loads(text(chunks)) == CITY


def test_structured_output_for_real(keyless: ollama.Client) -> None:
    about = [{"role": "user", "content": "Tell me about Paris."}]
    told = keyless.chat(NAME, about, format=City.model_json_schema(), options={"num_predict": 80, "seed": 7})
    City.model_validate_json(told.message.content or "")


@EACH_BACKEND
@BOTH_MODES
def test_generate(backend: str, stream: bool, keyed: ollama.Client) -> None:
    more: dict[str, Any] = {"system": "You are polite.", "options": {"temperature": 0}, "stream": stream}
    answer: Any = keyed.generate(at(backend, "answer"), "Hello", **more)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.response for chunk in chunks) == ANSWER
    assert chunks[-1].done is True
    assert chunks[-1].eval_count == 3


def test_generate_for_real(keyless: ollama.Client) -> None:
    question = "What is the capital of France?"
    options = {"num_predict": 30, "temperature": 0, "seed": 7}
    answer = keyless.generate(NAME, question, options=options)
    assert "Paris" in (answer.response or "")
    pieces = list(keyless.generate(NAME, question, stream=True, options=options))
    assert "Paris" in "".join(piece.response or "" for piece in pieces)
    assert len(pieces) > 2


def test_load_and_unload(keyless: ollama.Client) -> None:
    assert keyless.generate(NAME).done_reason == "load"
    assert keyless.chat(NAME, []).done_reason == "load"
    assert keyless.generate(NAME, keep_alive=0).done_reason == "unload"
    assert refused(lambda: keyless.generate("nobody")).status_code == 404


@EACH_BACKEND
def test_embed(backend: str, keyed: ollama.Client) -> None:
    found = keyed.embed(at(backend, "embed"), ["a", "b", "c"])
    assert len(found.embeddings) == 3
    assert [tuple(row) for row in found.embeddings] == list(VECTORS)  # as the provider scaled them
    assert len(keyed.embed(at(backend, "embed"), "a").embeddings) == 1


@EACH_BACKEND
def test_embeddings(backend: str, keyed: ollama.Client) -> None:
    assert tuple(keyed.embeddings(at(backend, "embed"), "a").embedding) == VECTORS[0]


@BOTH_MODES
def test_pull_of_a_served_name(stream: bool, keyless: ollama.Client) -> None:
    given: dict[str, Any] = {"stream": stream}
    for name in ("llama3.2", "deepseek-r1:1.5b"):  # installed; answered by its fallback
        told: Any = keyless.pull(name, **given)
        assert (list(told)[-1] if stream else told).status == "success"


def test_management_is_refused(keyed: ollama.Client, keyless: ollama.Client, upstreams: Simulator) -> None:
    for client in (keyed, keyless):
        for call in (
            lambda client=client: client.delete("llama3.2"),
            lambda client=client: client.copy("llama3.2", "mine"),
            lambda client=client: client.create("mine", from_="llama3.2"),
            lambda client=client: client.push("mine"),
            lambda client=client: client.pull("not-here"),
            lambda client=client: list(client.pull("not-here", stream=True)),
        ):
            error = refused(call)
            assert error.status_code == 403
            assert "manage_local" in error.error
    verbs = ("/api/delete", "/api/copy", "/api/create", "/api/push", "/api/pull")
    assert not [request for request in upstreams.requests if request.path in verbs]


def test_errors(desk: Desk, keyed: ollama.Client, keyless: ollama.Client) -> None:
    unknown = refused(lambda: keyed.chat("nobody", HELLO))
    assert unknown.status_code == 404
    assert unknown.error.startswith("model 'nobody' not found")
    assert refused(lambda: list(keyed.chat("nobody", HELLO, stream=True))).status_code == 404
    assert refused(lambda: keyed.show("nobody")).status_code == 404
    assert refused(lambda: keyed.embed("nobody", "a")).status_code == 404
    assert refused(lambda: keyed.chat("chat", HELLO, options={"temperature": "hot"})).status_code == 400
    assert refused(lambda: keyed.embed(REAL, "a")).status_code == 400
    with ollama.Client(host=desk.url) as without:
        bare = refused(lambda: without.chat(NAME, HELLO))
        assert bare.status_code == 401
        assert "key" in bare.error
    forbidden = refused(lambda: keyless.chat("cloud/answer", HELLO))
    assert forbidden.status_code == 403


@EACH_BACKEND
@BOTH_MODES
def test_a_provider_fails(backend: str, stream: bool, keyed: ollama.Client) -> None:
    error = refused(lambda: chatted(keyed, at(backend, f"500@ollama-{stream}"), stream))
    assert error.status_code == 502
    assert error.error


@EACH_BACKEND
def test_an_error_in_the_stream(backend: str, keyed: ollama.Client) -> None:
    seen: list[Any] = []

    def read() -> None:
        for chunk in keyed.chat(at(backend, "content-then-error@ollama"), HELLO, stream=True):
            seen.append(chunk)

    error = refused(read)
    assert error.status_code == -1
    assert error.error
    assert text(seen) == PART


@EACH_BACKEND
def test_leaving_mid_stream(backend: str, keyed: ollama.Client, upstreams: Simulator) -> None:
    model = at(backend, "endless-slow@ollama")
    chunks: Any = keyed.chat(model, HELLO, stream=True)
    next(chunks)
    chunks.close()
    assert upstreams.wait_for(model.partition("/")[2]).left()


def test_on_the_keyless_door_any_key_will_do(desk: Desk) -> None:
    """Clients send dummies there; a real key still counts."""
    for key, sees_cloud in (("ollama", False), ("sk-whatever", False), (desk.key, True)):
        with ollama.Client(host=desk.door, headers={"Authorization": f"Bearer {key}"}) as client:
            assert ("chat" in [model.model for model in client.list().models]) is sees_cloud


async def test_asynchronous(desk: Desk) -> None:
    client = ollama.AsyncClient(host=desk.url, headers={"Authorization": f"Bearer {desk.key}"}, timeout=30)
    async with client:

        async def whole(model: str) -> str:
            return text([await client.chat(model, HELLO)])

        async def streamed(model: str) -> str:
            return text([chunk async for chunk in await client.chat(model, HELLO, stream=True)])

        names = [at(backend, "answer") for backend in BACKENDS] * 4
        told = await asyncio.gather(*(way(model) for model in names for way in (whole, streamed)))
        assert set(told) == {ANSWER}
        assert (await client.list()).models
        assert (await client.embed(at("local", "embed"), "a")).embeddings
