"""A collector on a real socket: takes OTLP over HTTP, decodes it and keeps it. It may be told to refuse, or to be
slow."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Encoded

KINDS = {Encoded.SPAN_KIND_SERVER: "server", Encoded.SPAN_KIND_CLIENT: "client"}
ERROR = 2


@dataclass(frozen=True, slots=True)
class Received:
    """One span. Ids are hex digits; `parent` is empty for a root."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    state: str
    start: int
    end: int
    failed: bool
    remote_parent: bool
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Number:
    """The latest value of one series: of a histogram count, sum and bounds, of a counter its sum."""

    name: str
    unit: str
    count: int
    sum: float
    bounds: tuple[float, ...]
    attributes: Mapping[str, Any]
    instance: str


@dataclass
class Collector:
    """`with Collector() as collector:`; `status` and `seconds` are how the next requests are answered."""

    status: int = 200
    seconds: float = 0.0
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    spans: list[Received] = field(default_factory=list)
    numbers: dict[Any, Number] = field(default_factory=dict)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        outer = self
        self.news = threading.Condition()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if outer.seconds:
                    outer.closing.wait(outer.seconds)
                status = outer.status
                outer.take(self.path, dict(self.headers.items()), body, kept=status == 200)
                try:
                    self.send_response(status)
                    self.send_header("content-length", "0")
                    self.end_headers()
                except OSError:
                    pass  # it had no patience

            def log_message(self, *_: Any) -> None:
                pass

        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def take(self, path: str, headers: Mapping[str, str], body: bytes, *, kept: bool) -> None:
        with self.news:
            self.paths.append(path)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            self.bodies.append(body)
            if kept and path == "/v1/traces":
                self.spans += spans_in(body)
            elif kept and path == "/v1/metrics":
                for number in numbers_in(body):
                    key = (number.name, tuple(sorted(number.attributes.items())), number.instance)
                    self.numbers[key] = number
            self.news.notify_all()

    def trace(self, trace_id: str, count: int, seconds: float = 60.0) -> list[Received]:
        """The spans of a trace once there are that many, the call's own first."""
        self.until(lambda: len([span for span in self.spans if span.trace == trace_id]) >= count, seconds)
        found = [span for span in self.spans if span.trace == trace_id]
        assert len(found) == count, found
        return sorted(found, key=lambda span: (span.kind != "server", span.start))

    def sum_of(self, name: str, **attributes: str) -> float:
        return sum(number.sum for number in self.named(name, **attributes))

    def count_of(self, name: str, **attributes: str) -> int:
        return sum(number.count for number in self.named(name, **attributes))

    def named(self, name: str, **attributes: str) -> list[Number]:
        """The series of a metric whose attributes (with `_` for `.`) have these values; "" for absent."""
        with self.news:
            return [
                number
                for number in self.numbers.values()
                if number.name == name
                and all(
                    {key.replace(".", "_"): value for key, value in number.attributes.items()}.get(wanted, "") == value
                    for wanted, value in attributes.items()
                )
            ]

    def until(self, done: Any, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        with self.news:
            while not done():
                left = deadline - time.monotonic()
                assert left > 0, "the collector did not get it"
                self.news.wait(left)


def spans_in(body: bytes) -> Iterator[Received]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = plain(group.resource.attributes)
        for scope in group.scope_spans:
            assert scope.scope.name == "switchyard"
            for span in scope.spans:
                yield Received(
                    name=span.name,
                    kind=KINDS[span.kind],
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    state=span.trace_state,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    failed=span.status.code == ERROR,
                    remote_parent=bool(span.flags & 0x200),
                    attributes=plain(span.attributes),
                    resource=resource,
                )
                assert not span.status.message
                assert not span.events


def numbers_in(body: bytes) -> Iterator[Number]:
    for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        instance = plain(group.resource.attributes)["service.instance.id"]
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                for point in metric.histogram.data_points:
                    bounds = tuple(point.explicit_bounds)
                    attributes = plain(point.attributes)
                    yield Number(metric.name, metric.unit, point.count, point.sum, bounds, attributes, instance)
                for number in metric.sum.data_points:
                    assert metric.sum.is_monotonic
                    total = number.as_int or number.as_double
                    yield Number(metric.name, metric.unit, 0, total, (), plain(number.attributes), instance)


def plain(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes if isinstance(one, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    return getattr(value, str(kind))
