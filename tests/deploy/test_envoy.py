"""docker/envoy/switchyard.yaml: every field by Envoy's own protobuf schema, and what matters for streams. Envoy itself
is in no package registry, so it was not run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from router.server import KEEP_ALIVE_SECONDS
from tools.check_docs import ROOT

FILE: Final = ROOT / "docker/envoy/switchyard.yaml"
SCHEMA: Final = "xds-protos==1.85.0 --hash=sha256:e1e7bfd9936389936b2c85660d9db0dae380f12678a594b983da40dd472f1760\n"
"""The schema as Python modules; needs the protobuf package, which is part of the environment."""
PARSE: Final = """
import importlib, pathlib, re, sys, yaml
place, text = pathlib.Path(sys.argv[1]), sys.stdin.read()
sys.path.insert(0, str(place))
from google.protobuf import json_format
from envoy.config.bootstrap.v3 import bootstrap_pb2
for name in sorted(set(re.findall(r"type.googleapis.com/([\\w.]+)", text))):
    package = name.rpartition(".")[0]
    for file in place.joinpath(*package.split(".")).glob("*_pb2.py"):
        importlib.import_module(f"{package}.{file.stem}")
json_format.ParseDict(yaml.safe_load(text), bootstrap_pb2.Bootstrap())
"""


def config() -> Any:
    return yaml.safe_load(FILE.read_text())["static_resources"]


def manager() -> Any:
    (listener,) = config()["listeners"]
    (chain,) = listener["filter_chains"]
    (found,) = chain["filters"]
    return found["typed_config"]


@pytest.mark.slow
def test_every_field_is_one_of_envoys(tmp_path: Path) -> None:
    wanted = tmp_path / "schema.txt"
    wanted.write_text(SCHEMA)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    place = tmp_path / "schema"
    subprocess.run([*pip, "--target", str(place), "-r", str(wanted)], check=True, timeout=300)

    def parse(text: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PARSE, str(place)]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)

    done = parse(FILE.read_text())
    assert done.returncode == 0, done.stderr
    for old, new in (("stream_idle_timeout:", "stream_idle:"), ("max_request_bytes:", "max_bytes:"), ("AUTO", "ANY")):
        text = FILE.read_text().replace(old, new)
        assert parse(text).returncode != 0, f"{new} passed"


def test_streams_are_not_cut_and_posts_not_repeated() -> None:
    found = manager()
    (host,) = found["route_config"]["virtual_hosts"]
    *others, route = host["routes"]
    assert (found["request_timeout"], route["route"]["timeout"]) == ("0s", "0s")
    assert (found["stream_idle_timeout"], route["route"]["idle_timeout"]) == ("900s", "900s")
    assert route["route"]["retry_policy"]["retry_on"] == "connect-failure"
    assert {one["match"]["prefix"]: one["direct_response"]["status"] for one in others} == {
        "/metrics": 404,
        "/readyz": 404,
    }
    names = [one["name"] for one in found["http_filters"]]
    assert names == ["envoy.filters.http.rbac", "envoy.filters.http.buffer", "envoy.filters.http.router"]
    assert found["http_filters"][1]["typed_config"]["max_request_bytes"] >= 50_000_000
    assert found["use_remote_address"] is True


def test_connections_are_closed_before_the_router_closes_them() -> None:
    (cluster,) = config()["clusters"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    idle = re.fullmatch(r"(\d+)s", options["common_http_protocol_options"]["idle_timeout"])
    assert idle is not None
    assert int(idle[1]) < KEEP_ALIVE_SECONDS
    assert cluster["health_checks"][0]["http_health_check"]["path"] == "/readyz"
