"""A collector and a router that sends to it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Serve
from tests.simulators import router as routers
from tests.simulators.router import RouterProcess
from tests.simulators.server import Simulator

if TYPE_CHECKING:
    from tests.otel.collector import Collector

QUICK: Mapping[str, str] = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
UNHURRIED: Mapping[str, str] = {**QUICK, **routers.UNHURRIED}
"""Environment of routers that send."""
COLLECTOR_KEY = "collector-canary-0123456789abcdef"


def config(cloud: Simulator, local: Simulator, **telemetry: Any) -> dict[str, Any]:
    found = routers.providers(cloud.url, local.url)
    found["models"]["vectors"] = {"targets": ["cloud/embed-1"]}
    return {**found, "telemetry": telemetry} if telemetry else found


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.proto")
    pytest.importorskip("opentelemetry.sdk")
    from tests.otel.collector import Collector

    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(module_serve: Serve, collector: Collector, cloud: Simulator, local: Simulator) -> RouterProcess:
    headers = {"x-collector-key": COLLECTOR_KEY}
    return module_serve(config(cloud, local, otlp_endpoint=collector.url, headers=headers), UNHURRIED)


def post(
    router: RouterProcess, path: str, body: Mapping[str, Any], headers: Sequence[tuple[str, str]] = (), key: str = ""
) -> tuple[int, bytes]:
    """Headers may come more than once."""
    data = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=60)
    try:
        connection.putrequest("POST", path)
        always = [("authorization", f"Bearer {key or router.key}"), ("content-type", "application/json")]
        for name, value in (*always, ("content-length", str(len(data))), *headers):
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
