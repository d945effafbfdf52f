"""Traces and metrics for an OpenTelemetry collector, over OTLP/HTTP. The only file that imports opentelemetry, and only
where telemetry is on.

A call pays for its spans once, when it is over: they are made from what is known of it and put into the bounded queue
of the SDK's batch processor, whose thread sends them. Beyond the bound spans are dropped and counted, never waited
for; a collector that is away, slow or refusing costs a line in the log each minute and nothing else. Each worker sends
its own.

The SDK reads its standard variables itself: OTEL_EXPORTER_OTLP_* (endpoint, headers, timeout, compression,
certificates), OTEL_BSP_*, OTEL_METRIC_EXPORT_INTERVAL, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from router import otel_names as names
from router.config import Config, ConfigErrors, Telemetry
from router.otel_context import TraceContext, Tracer, incoming
from router.otel_spans import Ended, Span, points_of, spans_of

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from router.http import Headers

INSTALL: Final = "OpenTelemetry is not installed: pip install '.[otel]' in the repository, or take the image `full`"
QUEUE: Final = 4096
"""Spans that may wait to be sent."""
FLUSH_SECONDS: Final = 2.0
"""How long the end of the router waits for what is left to be sent."""
QUIET_SECONDS: Final = 60.0
"""At most one line about failures in this time."""

SHORTEST_SECRET: Final = 4
"""Characters; shorter values of headers are none, and would be found in every word."""

_log = logging.getLogger("switchyard.telemetry")

_SIGNALS: Final = ("", "TRACES_", "METRICS_", "LOGS_")
_HEADERS: Final = frozenset(f"OTEL_EXPORTER_OTLP_{signal}HEADERS" for signal in _SIGNALS)
_ENDPOINTS: Final = frozenset(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT" for signal in _SIGNALS)

_NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_LATEST: Final = "gen_ai_latest_experimental"
"""The word in OTEL_SEMCONV_STABILITY_OPT_IN that asks for the latest GenAI names."""


class Wanted(NamedTuple):
    """What is to be sent. `endpoint`: the config's; None: the environment's variables say where."""

    endpoint: str | None
    traces: bool
    metrics: bool
    names: names.Names


def installed() -> bool:
    """Whether the packages of the extra `otel` are there. Does not import them."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:
        return False


def wanted(settings: Telemetry, environ: Mapping[str, str]) -> Wanted | None:
    """What the config and the environment ask for, None for nothing."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None

    def sends(kind: str, on: bool) -> bool:
        if not on or environ.get(f"OTEL_{kind}_EXPORTER", "").strip().lower() == "none":
            return False
        places = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{kind}_ENDPOINT")
        return settings.otlp_endpoint is not None or any(environ.get(name, "").strip() for name in places)

    traces, metrics = sends("TRACES", settings.traces), sends("METRICS", settings.metrics)
    if not traces and not metrics:
        return None
    chosen = settings.names
    if chosen is None:
        asked = environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").replace(" ", "").split(",")
        chosen = "latest" if _LATEST in asked else "published"
    return Wanted(settings.otlp_endpoint, traces, metrics, chosen)


def check(config: Config, environ: Mapping[str, str]) -> None:
    """Raises ConfigErrors when the config wants telemetry, and the extra is not installed."""
    if config.telemetry.otlp_endpoint is not None and wanted(config.telemetry, environ) and not installed():
        raise ConfigErrors([config.problem(f"telemetry.otlp_endpoint: {INSTALL}", "telemetry", "otlp_endpoint")])


def open_telemetry(
    settings: Telemetry,
    environ: Mapping[str, str],
    *,
    version: str,
    random_bits: Callable[[int], int] = random.getrandbits,
    monotonic: Callable[[], float] = time.monotonic,
) -> Sender | None:
    """What sends telemetry, None where none is wanted. Where it cannot be had, a line in the log says why: calls are
    served all the same."""
    want = wanted(settings, environ)
    if want is None:
        return None
    if not installed():
        _log.error("telemetry is off: %s", INSTALL)
        return None
    if want.endpoint is None and environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() == "grpc":
        _log.warning("OTEL_EXPORTER_OTLP_PROTOCOL is grpc; telemetry is sent as http/protobuf all the same")
    try:
        return Sender(settings, want, version, Tracer(settings.sample, random_bits), monotonic, environ)
    except Exception as bad:  # noqa: BLE001 - the SDK refuses a variable of its own: that must not keep calls away
        _log.error("telemetry is off: %s", _Quiet.scrubbed(str(bad), secrets_of(settings, environ)))
        return None


class Sender:
    """Sends spans and measurements of ended calls. `close` it when the last call is over."""

    def __init__(
        self,
        settings: Telemetry,
        want: Wanted,
        version: str,
        tracer: Tracer,
        monotonic: Callable[[], float],
        environ: Mapping[str, str],
    ) -> None:
        self.begin: Callable[[Headers], TraceContext | None] = tracer.begin if want.traces else incoming
        """Gives a call that came in its place in a trace."""
        self.dropped = 0
        """Spans for which the queue had no room."""
        self.broken = 0
        """Calls that could not be described: bugs."""
        self._renamed = names.RENAMED[want.names]
        self._quiet = _Quiet(secrets_of(settings, environ), monotonic)
        self._quiet.attach()
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()} or None
        resource = _resource(settings.service_name, version)
        self._spans: _Spans | None = None
        self._points: _Points | None = None
        try:
            if want.traces:
                self._spans = _Spans(_endpoint(want.endpoint, "traces"), headers, resource, version)
            if want.metrics:
                self._points = _Points(_endpoint(want.endpoint, "metrics"), headers, resource, version, want.names)
        except BaseException:
            self._quiet.detach()
            raise

    @property
    def lost(self) -> int:
        """Spans that were not sent: dropped, or refused by the collector."""
        return self.dropped + (self._spans.exporter.failed if self._spans is not None else 0)

    def ended(self, ended: Ended) -> None:
        """A call is over. Never raises, never waits."""
        try:
            context = ended.trace.context
            if self._spans is not None and context is not None and context.sampled and context.span_id is not None:
                for span in spans_of(ended, self._renamed):
                    if not self._spans.put(span, context):
                        self.dropped += 1
                self._quiet.lost = self.lost
            if self._points is not None:
                for point in points_of(ended):
                    self._points.put(point.measure, point.value, point.attributes)
        except Exception:  # noqa: BLE001 - a bug here must not cost the call its settlement or its log line
            self.broken += 1
            if self.broken == 1:
                _log.exception("request %s could not be described for telemetry", ended.trace.request_id)

    async def close(self) -> None:
        """Send what is left, for at most FLUSH_SECONDS."""
        loop = asyncio.get_running_loop()
        ends = [part.close for part in (self._spans, self._points) if part is not None]
        left = len(ends)
        done = asyncio.Event()

        def one_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        def run(end: Callable[[], None]) -> None:
            try:
                end()
            except Exception as bad:  # noqa: BLE001 - the SDK's own, at the very end
                _log.warning("telemetry: %s", type(bad).__name__)
            try:
                loop.call_soon_threadsafe(one_done)
            except RuntimeError:
                pass  # it took too long, and the loop is closed

        for end in ends:
            # Threads of their own: the loop's executor would be waited for at the end of the process.
            threading.Thread(target=run, args=(end,), name="telemetry-end", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await done.wait()
        except TimeoutError:
            _log.warning("telemetry: what was left could not be sent within %g s", FLUSH_SECONDS)
        self._quiet.detach()


class _Exporter:
    """The SDK's exporter, counted: how many spans it took, and how many it could not send."""

    def __init__(self, inner: SpanExporter, success: SpanExportResult) -> None:
        self.taken = 0
        self.failed = 0
        self._inner = inner
        self._success = success

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._inner.export(spans)
        if result is not self._success:
            self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Spans:
    """Spans on their way to the collector."""

    def __init__(self, endpoint: str | None, headers: dict[str, str] | None, resource: Resource, version: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

        self.exporter = _Exporter(OTLPSpanExporter(endpoint, headers=headers), SpanExportResult.SUCCESS)
        self._processor = BatchSpanProcessor(self.exporter, max_queue_size=QUEUE)  # type: ignore[arg-type]  # all that it calls is there
        self._put = 0
        self._resource = resource
        self._scope = InstrumentationScope(names.SCOPE, version)
        self._span, self._context, self._state = ReadableSpan, SpanContext, TraceState
        self._kinds = {True: SpanKind.SERVER, False: SpanKind.CLIENT}
        self._statuses = {True: Status(StatusCode.ERROR), False: Status(StatusCode.UNSET)}
        self._sampled = TraceFlags(TraceFlags.SAMPLED)

    def put(self, span: Span, context: TraceContext) -> bool:
        """False when the queue is full."""
        if self._put - self.exporter.taken >= QUEUE:
            return False
        self._put += 1
        trace = int(context.trace_id, 16)
        state = self._state.from_header([context.tracestate]) if context.tracestate else None
        parent = None
        if span.parent_id is not None:
            parent = self._context(trace, int(span.parent_id, 16), span.server, self._sampled, state)
        self._processor.on_end(
            self._span(
                name=span.name,
                context=self._context(trace, int(span.span_id, 16), False, self._sampled, state),
                parent=parent,
                resource=self._resource,
                attributes=span.attributes,
                kind=self._kinds[span.server],
                status=self._statuses[span.failed],
                start_time=span.start,
                end_time=span.end,
                instrumentation_scope=self._scope,
            )
        )
        return True

    def close(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the library has no annotation there


class _Points:
    """Metrics, added up here and sent every minute."""

    def __init__(
        self,
        endpoint: str | None,
        headers: dict[str, str] | None,
        resource: Resource,
        version: str,
        chosen: names.Names,
    ) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint, headers=headers))
        self._provider = MeterProvider([reader], resource, AlwaysOffExemplarFilter(), shutdown_on_exit=False)
        meter = self._provider.get_meter(names.SCOPE, version)
        made: dict[str, Callable[..., None]] = {}
        self._records: dict[str, list[tuple[Callable[..., None], dict[str, Any]]]] = {}
        for measure, instruments in names.METRICS[chosen].items():
            for row in instruments:
                if row.name not in made:
                    if row.buckets is None:
                        made[row.name] = meter.create_counter(row.name, row.unit, row.text).add
                    else:
                        made[row.name] = meter.create_histogram(
                            row.name, row.unit, row.text, explicit_bucket_boundaries_advisory=row.buckets
                        ).record
                self._records.setdefault(measure, []).append((made[row.name], dict(row.adds)))

    def put(self, measure: str, value: float, attributes: dict[str, Any]) -> None:
        for record, adds in self._records.get(measure, ()):
            record(value, {**attributes, **adds} if adds else attributes)

    def close(self) -> None:
        self._provider.shutdown()


class _Quiet(logging.Handler):
    """Stands in for what the SDK would log: a line of ours, at most one in QUIET_SECONDS, without secrets."""

    def __init__(self, secrets: Sequence[str], monotonic: Callable[[], float]) -> None:
        super().__init__(logging.WARNING)
        self.lost = 0
        self._secrets = secrets
        self._monotonic = monotonic
        self._next = 0.0
        self._logger = logging.getLogger("opentelemetry")
        self._propagated = self._logger.propagate

    def attach(self) -> None:
        self._logger.addHandler(self)
        self._logger.propagate = False

    def detach(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated

    def emit(self, record: logging.LogRecord) -> None:
        now = self._monotonic()
        if now < self._next:
            return
        self._next = now + QUIET_SECONDS
        text = self.scrubbed(record.getMessage(), self._secrets)
        _log.warning("telemetry is not sent: %s (%d spans lost so far; no more of this for a minute)", text, self.lost)

    @staticmethod
    def scrubbed(text: str, secrets: Sequence[str]) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text.replace("\n", " ")[:300]


def secrets_of(settings: Telemetry, environ: Mapping[str, str]) -> list[str]:
    """What no line of the log may show: the values of the collector's headers and passwords in its addresses, from the
    config and from the SDK's variables, in each form that a message can have them in. The longest first."""
    values = [value.get_secret_value() for value in settings.headers.values()]
    addresses = [settings.otlp_endpoint or ""]
    for name, text in environ.items():
        if name in _HEADERS:
            for piece in text.split(","):
                name_and_value = piece.partition("=")
                value = name_and_value[2] if name_and_value[1] else piece  # without a name the SDK shows all of it
                values += [value, unquote(value)]
        elif name in _ENDPOINTS:
            addresses.append(text)
    for address in addresses:
        user = address.partition("://")[2].partition("/")[0].rpartition("@")[0]
        password = user.partition(":")[2]
        values += [password, unquote(password)]
    forms: set[str] = set()
    for value in values:
        for part in (value, value.strip(), *value.split()):
            forms |= {part, repr(part)[1:-1], repr(part.encode("utf-8", "replace"))[2:-1]}
    return sorted((form for form in forms if len(form) >= SHORTEST_SECRET), key=len, reverse=True)


def _endpoint(base: str | None, signal: str) -> str | None:
    """Where a signal goes; None leaves it to the variables."""
    if base is None:
        return None
    base = base.strip().rstrip("/").removesuffix("/v1/traces").removesuffix("/v1/metrics")
    return f"{base}/v1/{signal}"


def _resource(name: str | None, version: str) -> Resource:
    """Who sends: workers are told apart by `service.instance.id`."""
    from opentelemetry.sdk.resources import Resource

    own = {"service.version": version, "service.instance.id": uuid.uuid4().hex}
    found = Resource.create({**own, "service.name": name} if name is not None else own)
    if name is None and str(found.attributes.get("service.name", "")).startswith("unknown_service"):
        found = found.merge(Resource({"service.name": names.SCOPE}))
    return found
