"""A router, providers and a collector over real sockets: the spans and metrics of calls, and the caller's trace."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Serve
from tests.otel.conftest import COLLECTOR_KEY, UNHURRIED, config, post
from tests.simulators.client import Client
from tests.simulators.dialects import SECRET
from tests.simulators.router import RouterProcess
from tests.simulators.scripts import ANSWER, PART
from tests.simulators.server import Simulator

if TYPE_CHECKING:
    from tests.otel.collector import Collector, Received

CHAT = "/v1/chat/completions"
PROMPT = "prompt-canary 密语 0123456789"
SPAN = "00f067aa0ba902b7"
ROUNDING = 10
"""Nanoseconds."""
Fresh = Callable[[str], str]


def new_trace() -> str:
    return secrets.token_hex(16)


def parent(trace: str, flags: str = "01") -> tuple[str, str]:
    return ("traceparent", f"00-{trace}-{SPAN}-{flags}")


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}


def told(simulator: Simulator, model: str) -> dict[str, str]:
    """The headers of the last request for a model."""
    return simulator.asked(model)[-1].headers


def assert_in_order(call: Received, *attempts: Received) -> None:
    for attempt in attempts:
        assert attempt.parent == call.id
        assert not attempt.remote_parent
        assert call.start <= attempt.start <= attempt.end <= call.end + ROUNDING
    assert all(first.end <= second.start + ROUNDING for first, second in pairwise(attempts))


def test_a_stream_in_the_trace_of_its_caller(
    traced: RouterProcess, collector: Collector, cloud: Simulator, fresh: Fresh
) -> None:
    trace, model = new_trace(), fresh("answer")
    headers = [parent(trace), ("tracestate", "a=1"), ("tracestate", "b=2"), ("baggage", "user=canary")]
    more = {"stream": True, "max_tokens": 50, "temperature": 0.5, "stop": ["stop-canary"], "user": "user-canary"}
    assert post(traced, CHAT, chat(f"cloud/{model}", **more), headers)[0] == 200
    call, attempt = collector.trace(trace, 2)
    assert (call.kind, call.parent, call.remote_parent, call.failed) == ("server", SPAN, True, False)
    assert (attempt.kind, attempt.failed) == ("client", False)
    assert_in_order(call, attempt)
    assert call.state == attempt.state == "a=1,b=2"
    assert call.name == "chat other"
    sent = told(cloud, model)
    assert sent["traceparent"] == f"00-{trace}-{attempt.id}-01"
    assert sent["tracestate"] == "a=1,b=2"
    assert "baggage" not in sent
    log = traced.log_of(f"cloud/{model}")
    assert log["trace_id"] == trace
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai_compatible",
        "gen_ai.request.model": f"cloud/{model}",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": pytest.approx(log["first_content_ms"] / 1000, abs=0.001),
        "http.response.status_code": 200,
        "switchyard.request.id": log["request_id"],
        "switchyard.dialect": "openai",
        "switchyard.operation": "chat",
        "switchyard.route": "other",
        "switchyard.provider": "cloud",
        "switchyard.outcome": "ok",
        "switchyard.attempts": 1,
        "switchyard.overhead": pytest.approx(log["overhead_ms"] / 1000, abs=0.001),
        "switchyard.usage.mark": "measured",
    }
    first = attempt.attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < first < call.attributes["gen_ai.response.time_to_first_chunk"]
    assert attempt.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai_compatible",
        "gen_ai.request.model": model,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": first,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": cloud.port,
        "switchyard.provider": "cloud",
        "switchyard.usage.mark": "measured",
    }
    assert call.resource["service.name"] == "switchyard"
    assert len(call.resource["service.instance.id"]) == 32


def test_a_whole_answer_begins_a_trace(traced: RouterProcess, collector: Collector, cloud: Simulator) -> None:
    assert post(traced, CHAT, chat("chat"))[0] == 200
    trace = traced.log_of("chat")["trace_id"]
    call, attempt = collector.trace(trace, 2)
    assert (call.name, call.parent, attempt.name) == ("chat chat", "", "chat answer")
    assert told(cloud, "answer")["traceparent"] == f"00-{trace}-{attempt.id}-01"
    assert "gen_ai.response.time_to_first_chunk" not in {*call.attributes, *attempt.attributes}
    assert call.attributes["switchyard.route"] == "chat"


def test_a_fallback_is_a_second_child(traced: RouterProcess, collector: Collector, local: Simulator) -> None:
    trace = new_trace()
    assert post(traced, CHAT, chat("down/any", stream=True), [parent(trace)])[0] == 200
    call, first, second = collector.trace(trace, 3)
    assert_in_order(call, first, second)
    assert not call.failed
    assert call.attributes["switchyard.fallback.reason"] == "unreachable"
    assert call.attributes["switchyard.attempts"] == 2
    assert call.attributes["switchyard.cost.usd"] == 0, "the local model is free"
    assert (first.failed, first.attributes["error.type"]) == (True, "unreachable")
    assert not {"http.response.status_code", "gen_ai.usage.input_tokens"} & {*first.attributes}
    assert (second.failed, second.attributes["gen_ai.provider.name"]) == (False, "ollama")
    assert second.name == "chat llama3.2"
    assert told(local, "llama3.2")["traceparent"] == f"00-{trace}-{second.id}-01"


def test_a_failure_that_nobody_mends(traced: RouterProcess, collector: Collector, fresh: Fresh) -> None:
    trace = new_trace()
    headers = [parent(trace), ("x-switchyard-no-fallback", "1")]
    status, _ = post(traced, CHAT, chat(f"cloud/{fresh('500')}"), headers)
    assert status == 502
    call, attempt = collector.trace(trace, 2)
    assert call.failed
    assert attempt.failed
    assert call.attributes["http.response.status_code"] == 502
    assert attempt.attributes["http.response.status_code"] == 500
    assert attempt.attributes["error.type"] == "unavailable"
    assert call.attributes["error.type"] == call.attributes["switchyard.outcome"]
    assert call.attributes["gen_ai.provider.name"] == "switchyard"


def test_a_stream_that_breaks(traced: RouterProcess, collector: Collector, fresh: Fresh) -> None:
    trace = new_trace()
    assert post(traced, CHAT, chat(f"cloud/{fresh('content-then-reset')}", stream=True), [parent(trace)])[0] == 200
    call, attempt = collector.trace(trace, 2)
    assert call.failed
    assert call.attributes["http.response.status_code"] == 200
    assert attempt.attributes["error.type"] == "broken"
    assert attempt.attributes["switchyard.usage.mark"] == "estimated"


def test_embeddings(traced: RouterProcess, collector: Collector) -> None:
    trace = new_trace()
    body = {"model": "vectors", "input": [PROMPT, "b"]}
    assert post(traced, "/v1/embeddings", body, [parent(trace)])[0] == 200
    call, attempt = collector.trace(trace, 2)
    assert (call.name, attempt.name) == ("embeddings vectors", "embeddings embed-1")
    assert attempt.attributes["gen_ai.operation.name"] == "embeddings"
    assert attempt.attributes["gen_ai.usage.input_tokens"] == 7


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "name"),
    [
        pytest.param(CHAT, chat("chat"), "sk-wrong-canary", 401, "chat chat", id="a wrong key"),
        pytest.param(CHAT, chat("no-such-model"), "", 404, "chat other", id="an unknown model"),
        pytest.param("/api/embed", {"model": 7}, "", 400, "embeddings other", id="a body that makes no sense"),
    ],
)
def test_a_refused_call_has_no_child(
    traced: RouterProcess, collector: Collector, path: str, body: Any, key: str, status: int, name: str
) -> None:
    trace = new_trace()
    assert post(traced, path, body, [parent(trace)], key)[0] == status
    (call,) = collector.trace(trace, 1)
    assert (call.name, call.failed) == (name, False), "the caller's fault is none of the router's"
    assert call.attributes["http.response.status_code"] == status
    assert call.attributes["error.type"] == call.attributes["switchyard.outcome"] != "ok"
    assert call.attributes["switchyard.attempts"] == 0


def test_a_client_that_leaves(traced: RouterProcess, collector: Collector, cloud: Simulator, fresh: Fresh) -> None:
    trace, model = new_trace(), fresh("endless-slow")
    data = json.dumps(chat(f"cloud/{model}", stream=True)).encode()
    request = Client(traced.port, traced.key).post_bytes(CHAT, data)
    head = f"traceparent: {parent(trace)[1]}\r\n".encode()
    with socket.create_connection(("127.0.0.1", traced.port), timeout=60) as link:
        link.sendall(request.replace(b"Content-Type:", head + b"Content-Type:", 1))
        seen = b""
        while PART.encode() not in seen:
            seen += link.recv(65536)
    call, attempt = collector.trace(trace, 2)
    assert (call.failed, attempt.failed) == (False, False)
    assert call.attributes["error.type"] == "aborted"
    assert attempt.attributes["gen_ai.usage.output_tokens"] > 0
    assert call.attributes["switchyard.usage.mark"] == "aborted"


def test_a_caller_may_leave_its_trace_unsampled(
    traced: RouterProcess, collector: Collector, cloud: Simulator, fresh: Fresh
) -> None:
    quiet, loud, model = new_trace(), new_trace(), fresh("answer")
    assert post(traced, CHAT, chat(f"cloud/{model}"), [parent(quiet, "00")])[0] == 200
    sent = told(cloud, model)["traceparent"]
    assert sent.startswith(f"00-{quiet}-")
    assert sent.endswith("-00")
    assert SPAN not in sent
    assert post(traced, CHAT, chat(f"cloud/{model}"), [parent(loud)])[0] == 200
    collector.trace(loud, 2)
    assert [span for span in collector.spans if span.trace == quiet] == []


def test_a_trace_that_is_not_valid_counts_for_nothing(
    traced: RouterProcess, collector: Collector, cloud: Simulator, fresh: Fresh
) -> None:
    trace, model = new_trace(), fresh("answer")
    assert post(traced, CHAT, chat(f"cloud/{model}"), [parent(trace), parent(trace), ("tracestate", "a=1")])[0] == 200
    sent = told(cloud, model)
    ours = traced.log_of(f"cloud/{model}")["trace_id"]
    assert sent["traceparent"].split("-")[1] == ours != trace
    assert "tracestate" not in sent
    collector.trace(ours, 2)


def test_metrics(module_serve: Serve, collector: Collector, cloud: Simulator, local: Simulator) -> None:
    router = module_serve(config(cloud, local, otlp_endpoint=collector.url, service_name="metrics"), UNHURRIED)
    for _ in range(3):
        assert post(router, CHAT, chat("chat", stream=True))[0] == 200
    assert post(router, CHAT, chat("cloud/client-string-canary"))[0] == 200
    assert post(router, CHAT, chat("down/x"))[0] == 200
    assert post(router, CHAT, chat("chat"), key="sk-wrong")[0] == 401
    assert post(router, "/v1/embeddings", {"model": "vectors", "input": "a"})[0] == 200
    router.stop()
    instance = next(span for span in reversed(collector.spans) if span.resource["service.name"] == "metrics")
    of_it = instance.resource["service.instance.id"]
    numbers = [number for number in collector.numbers.values() if number.instance == of_it]

    def count(name: str, **wanted: str) -> tuple[int, float]:
        rows = [
            number
            for number in numbers
            if number.name == name
            and all(number.attributes.get(key.replace("__", "."), "") == value for key, value in wanted.items())
        ]
        return sum(row.count for row in rows), sum(row.sum for row in rows)

    usage = "gen_ai.client.token.usage"
    chats = {"gen_ai__operation__name": "chat"}
    assert count(usage, gen_ai__token__type="input", **chats) == (5, 35)
    assert count(usage, gen_ai__token__type="output", **chats) == (5, 15)
    assert count(usage, gen_ai__operation__name="embeddings") == (1, 7)
    assert count("gen_ai.client.operation.duration", error__type="", **chats)[0] == 5
    assert count("gen_ai.client.operation.duration", error__type="unreachable")[0] == 1
    assert count("gen_ai.client.operation.time_to_first_chunk")[0] == 3
    assert count("gen_ai.server.time_to_first_token")[0] == 3
    assert count("gen_ai.server.time_per_output_token")[0] == 3
    assert count("gen_ai.server.request.duration", gen_ai__request__model="chat")[0] == 4, "one had a wrong key"
    assert count("gen_ai.server.request.duration", error__type="invalid_api_key")[0] == 1
    assert count("gen_ai.server.request.duration")[0] == 7
    from router import otel_names as names

    rows = {row.name: row for some in names.METRICS["published"].values() for row in some}
    for number in numbers:
        assert (number.unit, number.bounds) == (rows[number.name].unit, rows[number.name].buckets)
        assert set(number.attributes) <= set(names.METRIC_ATTRIBUTES)
    models = {number.attributes["gen_ai.request.model"] for number in numbers}
    assert models == {"answer", "chat", "embed-1", "vectors", "llama3.2", "other"}, "no client's word is a label"


def test_the_latest_names(module_serve: Serve, collector: Collector, cloud: Simulator, local: Simulator) -> None:
    environ = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http, gen_ai_latest_experimental", "OTEL_SERVICE_NAME": "latest"}
    environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
    router = module_serve(config(cloud, local), {**UNHURRIED, **environ})
    assert post(router, CHAT, chat("chat", stream=True))[0] == 200
    router.stop()
    span = next(span for span in reversed(collector.spans) if span.resource["service.name"] == "latest")
    of_it = span.resource["service.instance.id"]
    numbers = {number.name: number for number in collector.numbers.values() if number.instance == of_it}
    assert numbers["gen_ai.client.inference.usage.input_tokens"].sum == 7
    assert numbers["gen_ai.client.inference.operation.output_tokens"].sum == 3
    assert numbers["gen_ai.client.inference.duration"].count == 1
    assert "gen_ai.client.token.usage" not in numbers


def test_workers_tell_themselves_apart(
    module_serve: Serve, collector: Collector, cloud: Simulator, local: Simulator
) -> None:
    telemetry = {"otlp_endpoint": collector.url, "service_name": "pair"}
    router = module_serve({**config(cloud, local, **telemetry), "server": {"workers": 2}}, UNHURRIED)
    traces: list[str] = []

    def ask(trace: str) -> int:
        return post(router, CHAT, chat("chat"), [parent(trace)])[0]

    def instances() -> set[str]:
        return {span.resource["service.instance.id"] for span in collector.spans if span.trace in traces}

    with ThreadPoolExecutor(8) as pool:
        while len(instances()) < 2 and len(traces) < 800:  # which worker takes a call is the kernel's choice
            more = [new_trace() for _ in range(8)]
            traces += more
            assert set(pool.map(ask, more)) == {200}
            collector.trace(more[-1], 2)
    last = new_trace()
    traces.append(last)
    assert post(router, CHAT, chat("chat"), [parent(last)])[0] == 200
    router.stop()
    assert len(instances()) == 2
    assert len([span for span in collector.spans if span.trace in traces]) == 2 * len(traces), "all were sent"


def test_without_telemetry_the_callers_trace_goes_on_as_it_came(
    router: RouterProcess, cloud: Simulator, fresh: Fresh
) -> None:
    trace, model = new_trace(), fresh("answer")
    headers = [parent(trace, "00"), ("tracestate", "a=1"), ("tracestate", "b=2"), ("baggage", "user=canary")]
    assert post(router, CHAT, chat(f"cloud/{model}"), headers)[0] == 200
    sent = told(cloud, model)
    assert (sent["traceparent"], sent["tracestate"]) == (parent(trace, "00")[1], "a=1,b=2")
    assert "baggage" not in sent
    assert router.log_of(f"cloud/{model}")["trace_id"] == trace
    model = fresh("answer")
    bad = [("traceparent", f"ff-{trace}-{SPAN}-01"), ("tracestate", "a=1")]
    assert post(router, CHAT, chat(f"cloud/{model}"), bad)[0] == 200
    assert not {"traceparent", "tracestate"} & {*told(cloud, model)}
    assert router.log_of(f"cloud/{model}")["trace_id"] is None


def test_nothing_secret_is_sent(traced: RouterProcess, collector: Collector, fresh: Fresh) -> None:
    """Last, so that the bytes of all tests above are looked at."""
    trace = new_trace()
    assert post(traced, CHAT, chat("chat"))[0] == 200
    tool = {"type": "function", "function": {"name": "tool_canary", "parameters": {"type": "object"}}}
    body = chat(f"cloud/{fresh('401')}", tools=[tool], metadata={"m": "meta-canary"}, seed=2**60)
    post(traced, CHAT, body, [parent(trace), ("x-switchyard-tags", "tags-canary")])
    collector.trace(trace, 3)
    for secret in (traced.key, traced.admin_token):
        misplaced = new_trace()
        assert post(traced, CHAT, chat(secret), [parent(misplaced)])[0] == 404
        (call,) = collector.trace(misplaced, 1)
        shown = call.attributes["gen_ai.request.model"]
        assert shown.endswith("-***")
        assert traced.log_of(shown)["status"] == 404
    sent = b"".join(collector.bodies)
    key_id = traced.log_of("chat")["key"]
    assert b"gen_ai.request.model" in sent
    for word in (
        traced.key,
        traced.admin_token,
        SECRET,
        COLLECTOR_KEY,
        PROMPT,
        ANSWER,
        PART,
        "prompt-canary",
        "stop-canary",
        "user-canary",
    ):
        assert word.encode() not in sent, word
    for word in ("tool_canary", "meta-canary", "tags-canary", "sk-wrong-canary", "user=canary"):
        assert word.encode() not in sent, word
    assert f'"{key_id}"'.encode() not in sent
    assert any(headers.get("x-collector-key") == COLLECTOR_KEY for headers in collector.headers)
    lines = "\n".join(traced.err)
    for word in (COLLECTOR_KEY, traced.key, traced.admin_token):
        assert word not in lines
    assert "telemetry is not sent" not in lines
