"""docker/systemd: valid and tight by systemd's own judgement, and a router that runs under its strictest rule."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from router.config import Limits
from tests.deploy.test_init import init
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator
from tools.check_docs import ROOT

UNIT: Final = ROOT / "docker/systemd/switchyard.service"
PROGRAM: Final = "/opt/switchyard/bin/switchyard"
UNDER_MDWE: Final = (
    "import ctypes, os, sys\n"
    "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit('PR_SET_MDWE is not known')\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)
"""No memory that is written and then run, from here on and for all children: what MemoryDenyWriteExecute= asks for."""


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_the_unit_is_valid_and_leaves_little_open(tmp_path: Path) -> None:
    file = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert text.count(PROGRAM) == 1
    file.write_text(text.replace(PROGRAM, sys.executable))  # verify wants a program that is there
    done = systemd_analyze("verify", str(file))
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr, done.stderr
    judged = systemd_analyze("security", "--offline=yes", "--threshold=15", str(file))
    assert judged.returncode == 0, judged.stdout
    file.write_text(file.read_text().replace("ProtectSystem=strict", "ProtectSystemz=strict"))
    assert "ProtectSystemz" in systemd_analyze("verify", str(file)).stderr


def test_stopping_leaves_time_to_drain_and_tells_the_first_process_alone() -> None:
    found = settings()
    assert found["KillMode"] == ["mixed"]
    assert int(found["TimeoutStopSec"][0]) >= Limits().drain_seconds + 15
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_a_router_runs_as_the_unit_starts_it(tmp_path: Path, cloud: Simulator, local: Simulator) -> None:
    found = settings()
    place = tmp_path / "secrets"
    assert init("secrets", "--dir", str(place)).exit_code == 0
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for credential in found["LoadCredential"]:
        name, _, source = credential.partition(":")
        shutil.copy(source.replace("/etc/switchyard/secrets", str(place)), credentials / name)
    env = {}
    for line in found["Environment"]:
        name, _, value = line.partition("=")
        env[name] = value.replace("%d", str(credentials)).replace("%S", str(tmp_path))
    assert env.pop("SWITCHYARD_CONFIG") == "/etc/switchyard/switchyard.yaml"
    config = {**providers(cloud.url, local.url), "server": {"metrics": {"token": "${SWITCHYARD_METRICS_TOKEN}"}}}
    (tmp_path / "router").mkdir()
    process = RouterProcess(tmp_path / "router", config, {**env, **UNHURRIED}, ["--workers", "2"])
    process.command = [sys.executable, "-c", UNDER_MDWE, *process.command]
    with process as router:
        token = (place / "router/admin_token").read_text().strip()
        assert Client(router.port, router.key).ask(OPENAI, "chat", stream=True).status == 200
        assert Client(router.port, token).request("GET", "/admin/api/keys").status == 200
        scrape = (place / "metrics/switchyard_metrics_token").read_text().strip()
        assert Client(router.port, scrape).request("GET", "/metrics").status == 200
        assert Client(router.port, "").request("GET", "/metrics").status == 401
        assert router.admin_token == ""
        assert not (router.directory / "data/pepper").exists()
