"""Sending: what is asked for, what happens without the extra, and collectors that are away, slow or refuse."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from router import otel
from router import otel_names as names
from router.config import Config, ConfigErrors, Telemetry, load_config
from router.otel import Sender, check, open_telemetry, secrets_of, wanted
from tests.conftest import Serve
from tests.otel.calls import ended
from tests.otel.conftest import QUICK, UNHURRIED, config, post
from tests.simulators.client import Client
from tests.simulators.router import ROOT
from tests.simulators.server import Simulator, refused_port

if TYPE_CHECKING:
    from tests.otel.collector import Collector

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HERE = "http://127.0.0.1:4318"


@pytest.fixture
def own() -> Iterator[Collector]:
    """A collector of the test's own."""
    pytest.importorskip("opentelemetry.proto")
    pytest.importorskip("opentelemetry.sdk")
    from tests.otel.collector import Collector

    with Collector() as running:
        yield running


@pytest.fixture
def needs_extra() -> None:
    if not otel.installed():
        pytest.skip("the extra otel is not installed")


def opened(monkeypatch: pytest.MonkeyPatch, url: str, *, patient: bool = True, **settings: Any) -> Sender:
    """patient: it may take as long as a busy machine needs to send."""
    for name, value in {**QUICK, "OTEL_EXPORTER_OTLP_TIMEOUT": "20" if patient else "1"}.items():
        monkeypatch.setenv(name, value)
    if patient:
        monkeypatch.setattr(otel, "FLUSH_SECONDS", 60.0)
    sender = open_telemetry(Telemetry(otlp_endpoint=url, **settings), {}, version="1")
    assert sender is not None
    return sender


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of our own log."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("switchyard")]


def load(tmp_path: Path, text: str, env: Mapping[str, str] | None = None) -> Config:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return load_config(file, env or {})


# -- what is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "environ", "traces", "metrics"),
    [
        ({}, {}, False, False),
        ({"otlp_endpoint": HERE}, {}, True, True),
        ({"otlp_endpoint": HERE, "traces": False}, {}, False, True),
        ({}, {ENDPOINT: HERE}, True, True),
        ({}, {ENDPOINT: " "}, False, False),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": HERE}, True, False),
        ({"metrics": False}, {ENDPOINT: HERE}, True, False),
        ({"otlp_endpoint": HERE}, {"OTEL_TRACES_EXPORTER": "none"}, False, True),
        ({"otlp_endpoint": HERE}, {"OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({"otlp_endpoint": HERE}, {"OTEL_SDK_DISABLED": "true"}, False, False),
    ],
)
def test_what_is_wanted(settings: dict[str, Any], environ: dict[str, str], traces: bool, metrics: bool) -> None:
    found = wanted(Telemetry(**settings), environ)
    assert (found is not None and found.traces, found is not None and found.metrics) == (traces, metrics)
    assert found is None or found.endpoint == settings.get("otlp_endpoint")


@pytest.mark.parametrize(
    ("setting", "variable", "chosen"),
    [
        (None, "", "published"),
        (None, "http, gen_ai_latest_experimental", "latest"),
        ("published", "gen_ai_latest_experimental", "published"),
        ("latest", "", "latest"),
    ],
)
def test_the_state_of_the_names(setting: names.Names | None, variable: str, chosen: str) -> None:
    found = wanted(Telemetry(otlp_endpoint=HERE, names=setting), {"OTEL_SEMCONV_STABILITY_OPT_IN": variable})
    assert found is not None
    assert found.names == chosen


def test_settings(tmp_path: Path) -> None:
    text = 'telemetry: {otlp_endpoint: "${WHERE:-}", headers: {x-key: "${KEY}"}, sample: "${SHARE}", names: latest}'
    found = load(tmp_path, text, {"KEY": "canary-key", "SHARE": "0.25"}).telemetry
    assert (found.otlp_endpoint, found.sample, found.names) == (None, 0.25, "latest")
    assert found.headers["x-key"].get_secret_value() == "canary-key"
    assert "canary" not in repr(found)
    with pytest.raises(ConfigErrors) as caught:
        load(
            tmp_path,
            'telemetry: {otlp_endpoint: "127.0.0.1:4318", sample: 2, name: x, names: newest, headers: {a: "1\\n"}}',
        )
    said = "\n".join(str(problem).partition(": ")[2] for problem in caught.value.problems)
    assert said.splitlines() == [
        "telemetry.otlp_endpoint must be a URL such as https://collector.example.com:4318",
        "telemetry.sample must be at most 1, not 2",
        'unknown setting "name" in telemetry; did you mean "names"?',
        "telemetry.names must be 'published' or 'latest', not \"newest\"; known: published, latest",
        "telemetry.headers.a must be one line of Latin-1 text",
    ]
    literal = load(tmp_path, "telemetry: {headers: {authorization: Bearer 0123456789abcdef0123}}")
    assert "telemetry.headers.authorization holds a secret in plain text" in str(literal.warnings[0])


@pytest.mark.parametrize("url", [HERE, f"{HERE}/", f"{HERE}/v1/traces", f" {HERE}/v1/metrics "])
def test_the_address_may_be_pasted_with_its_path(url: str) -> None:
    assert otel._endpoint(url, "traces") == f"{HERE}/v1/traces"


# -- without the extra --------------------------------------------------------------------------------------------


def test_without_the_extra_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "installed", lambda: False)
    found = load(tmp_path, f"data_dir: x\ntelemetry:\n  otlp_endpoint: {HERE}\n")
    with pytest.raises(ConfigErrors, match=r"c\.yaml:3:18: .*pip install '\.\[otel\]'"):
        check(found, {})
    check(found, {"OTEL_SDK_DISABLED": "true"})
    check(load(tmp_path, "telemetry: {sample: 0.5}"), {ENDPOINT: HERE})


def test_without_the_extra_the_environment_is_no_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otel, "installed", lambda: False)
    assert open_telemetry(Telemetry(), {ENDPOINT: HERE}, version="1") is None
    assert "pip install '.[otel]'" in caplog.text
    assert open_telemetry(Telemetry(), {}, version="1") is None


def test_without_the_packages_everything_imports(tmp_path: Path) -> None:
    """In a process of its own where no part of OpenTelemetry can be imported."""
    file = tmp_path / "c.yaml"
    file.write_text(f"telemetry: {{otlp_endpoint: '{HERE}'}}\n")
    code = "import sys; sys.modules['opentelemetry'] = None; import router.runtime, router.cli.main as cli; cli.main()"
    for verb in ("check", "serve"):
        done = subprocess.run(
            [sys.executable, "-c", code, verb, "--config", str(file)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
        assert done.returncode == 1
        assert "c.yaml:1:28: telemetry.otlp_endpoint: OpenTelemetry is not installed: pip install" in done.stderr
        assert "Traceback" not in done.stderr


def test_nothing_is_imported_where_telemetry_is_off() -> None:
    # (The redis package imports the SDK by itself where it is installed.)
    code = "import sys, router.runtime; print('opentelemetry.exporter.otlp.proto.http' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "False"


# -- collectors ---------------------------------------------------------------------------------------------------


async def test_everything_is_sent_at_the_end(monkeypatch: pytest.MonkeyPatch, own: Collector) -> None:
    sender = opened(monkeypatch, own.url)
    for _ in range(50):
        sender.ended(ended(sender))
    await sender.close()
    assert len(own.spans) == 150
    assert (sender.lost, sender.broken) == (0, 0)
    assert own.count_of("gen_ai.server.request.duration") == 50
    assert own.sum_of("gen_ai.client.token.usage", gen_ai_token_type="input") > 0
    first, second = [span for span in own.spans if span.kind == "client"][:2]
    assert (first.failed, second.failed) == (True, False)


async def test_values_that_the_protocol_cannot_carry(monkeypatch: pytest.MonkeyPatch, own: Collector) -> None:
    sender = opened(monkeypatch, own.url)
    sender.ended(ended(sender, model="half\ud800", said="\udfff" * 300, seed=(1 << 63) - 1))
    sender.ended(ended(sender))
    await sender.close()
    assert len(own.spans) == 6
    assert {span.attributes["gen_ai.request.model"] for span in own.spans} == {"half?", "chat"}
    assert max(len(str(span.attributes.get("gen_ai.response.model"))) for span in own.spans) <= 200


async def test_a_share_of_the_calls(monkeypatch: pytest.MonkeyPatch, own: Collector) -> None:
    sender = opened(monkeypatch, own.url, sample=0.0)
    sender.ended(ended(sender))
    await sender.close()
    assert own.spans == []
    assert own.count_of("gen_ai.server.request.duration") == 1, "metrics count every call"


async def test_metrics_alone(monkeypatch: pytest.MonkeyPatch, own: Collector) -> None:
    sender = opened(monkeypatch, own.url, traces=False)
    call = ended(sender)
    assert call.trace.context is None, "no trace is begun where none is sent"
    sender.ended(call)
    await sender.close()
    assert set(own.paths) == {"/v1/metrics"}
    assert own.count_of("gen_ai.client.operation.duration") == 2


async def test_traces_alone(monkeypatch: pytest.MonkeyPatch, own: Collector) -> None:
    sender = opened(monkeypatch, own.url, metrics=False)
    sender.ended(ended(sender))
    await sender.close()
    assert set(own.paths) == {"/v1/traces"}


async def test_a_collector_that_refuses(
    monkeypatch: pytest.MonkeyPatch, own: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    own.status = 400
    sender = opened(monkeypatch, own.url, headers={"authorization": "collector-canary"}, metrics=False)
    for _ in range(4):
        sender.ended(ended(sender))
    own.until(lambda: len(own.bodies) > 0)
    await sender.close()
    assert sender.lost == 12
    assert len(ours(caplog)) == 1, "one line, whatever happens in a minute"
    assert own.headers[0]["authorization"] == "collector-canary"


async def test_a_collector_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, needs_extra: None, caplog: pytest.LogCaptureFixture
) -> None:
    sender = opened(monkeypatch, f"http://127.0.0.1:{refused_port()}", patient=False)
    began = time.monotonic()
    for _ in range(300):
        sender.ended(ended(sender))
    assert time.monotonic() - began < 15
    began = time.monotonic()
    await sender.close()
    assert time.monotonic() - began < otel.FLUSH_SECONDS + 25
    assert len([line for line in ours(caplog) if line.startswith("telemetry is not sent")]) == 1


async def test_a_slow_collector_costs_spans_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, own: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    own.seconds = 30.0
    monkeypatch.setattr(otel, "QUEUE", 64)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    sender = opened(monkeypatch, own.url, patient=False)
    calls = [ended(sender) for _ in range(200)]
    began = time.monotonic()
    for call in calls:
        sender.ended(call)
    assert time.monotonic() - began < 15
    assert 300 < sender.dropped <= 600 - 64
    began = time.monotonic()
    await sender.close()
    assert time.monotonic() - began < otel.FLUSH_SECONDS + 25


async def test_a_bug_costs_the_call_nothing(
    monkeypatch: pytest.MonkeyPatch, own: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    sender = opened(monkeypatch, own.url)
    call = ended(sender)
    call.trace.attempts[0].outcome = None  # type: ignore[assignment]  # what no code should do
    for record in call.trace.attempts:
        record.target = None  # type: ignore[assignment]
    sender.ended(call)
    sender.ended(call)
    sender.ended(ended(sender))
    await sender.close()
    assert sender.broken == 2
    assert caplog.text.count("could not be described") == 1
    assert len(own.spans) == 3


def test_the_sdk_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    quiet = otel._Quiet(["header-canary"], lambda: now[0])
    quiet.attach()
    log = logging.getLogger("opentelemetry.exporter.whatever")
    try:
        quiet.lost = 5
        for _ in range(1000):
            log.error("no route to %s\nwith header-canary", "host")
        now[0] += otel.QUIET_SECONDS
        log.warning("again")
    finally:
        quiet.detach()
    first, second = ours(caplog)
    assert first.startswith("telemetry is not sent: no route to host with *** (5 spans lost so far")
    assert "again" in second
    assert logging.getLogger("opentelemetry").propagate, "from then on as ever"


def test_a_variable_that_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, needs_extra: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")
    assert open_telemetry(Telemetry(otlp_endpoint=HERE), {}, version="1") is None
    assert "telemetry is off: max_export_batch_size" in caplog.text
    assert logging.getLogger("opentelemetry").propagate


def test_calls_of_a_router_whose_collector_is_away(
    serve: Serve, needs_extra: None, cloud: Simulator, local: Simulator
) -> None:
    quick = {**UNHURRIED, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    router = serve(config(cloud, local, otlp_endpoint=f"http://127.0.0.1:{refused_port()}"), quick)
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
    for _ in range(20):
        assert post(router, "/v1/chat/completions", body)[0] == 200
    assert router.log_of("chat")["ms"] < 10_000
    deadline = time.monotonic() + 60
    while b"\nswitchyard_telemetry_spans_lost_total 40" not in Client(router.port, "").request("GET", "/metrics").body:
        assert time.monotonic() < deadline, "what was lost is not counted"
        time.sleep(0.1)
    router.write_config(config(cloud, local, otlp_endpoint=HERE))
    router.process.send_signal(1)
    router.wait_line("telemetry has changed in the config file: that takes effect at the next start", router.err)
    assert router.stop() == 0
    assert len([line for line in router.err if "telemetry is not sent" in line]) == 1
    assert "Traceback" not in "\n".join(router.err)


def test_the_headers_of_the_variables_are_in_no_line(
    monkeypatch: pytest.MonkeyPatch, needs_extra: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As they stand there, decoded, and as an exception quotes them."""
    environ = {
        ENDPOINT: "http://me:door-canary@127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20first%0Acanary, nameless-canary",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": 'x-key=it\'s a "quoted\\canary" with é-canary',
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x-key=a-b",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    hidden = secrets_of(Telemetry(), environ)
    values = ["Bearer first\ncanary", 'it\'s a "quoted\\canary" with é-canary', "nameless-canary", "door-canary"]
    for value in values:
        for form in (value, repr(value), repr(value.encode()), value.split()[-1], f"x{value.strip()}y"):
            assert "canary" not in otel._Quiet.scrubbed(f"bad header {form}", hidden), form
    assert otel._Quiet.scrubbed("Bearer%20first%0Acanary: a-b is short", hidden) == "***: a-b is short"
    assert otel._Quiet.scrubbed("ab: the text of others", hidden) == "ab: the text of others"
    sender = open_telemetry(Telemetry(), environ, version="1")  # the SDK quotes the piece without a name
    assert sender is not None
    sender._quiet.detach()
    assert ours(caplog)
    assert "canary" not in caplog.text
