"""The verbs about config and routing, as processes: what they print, and with which code they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from router.cli.main import VERBS
from router.config_schema import schema_text
from tests.simulators.ports import refused_port

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
providers:
  local: {vendor: ollama, base_url: "127.0.0.1:1", headers: {x-secret: header-secret}, options: {}}
  gemini: {vendor: gemini, api_key: "${GEMINI_API_KEY:-}"}
  demo: {vendor: demo, models: [tiny]}
models:
  m: {targets: [{to: gemini/a, priority: 1}, {to: local/b, priority: 2}], capabilities: {tools: false}}
  "g-*": {targets: ["gemini/*"]}
  only-cloud: {targets: [gemini/a], fallback: []}
fallback: [demo/tiny]
"""


def run(*words: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", *words],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def good(tmp_path: Path) -> str:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    return str(file)


def test_help_names_every_verb_and_loads_none() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    code = (
        "import sys; from router.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith('router.') and not m.startswith('router.cli')], "
        "[m for m in ('pydantic', 'fastapi', 'litellm', 'rich', 'yaml', 'redis') if m in sys.modules], file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert loaded.stderr.strip() == "[] []"


def test_wrong_usage_ends_with_2() -> None:
    for words in (["chek"], ["check", "--nope"], ["route"], ["providers", "test"]):
        assert run(*words).returncode == 2, words
    assert "did you mean check?" in run("chek").stderr


def test_check_a_good_file(good: str) -> None:
    done = run("check", "--config", good)
    assert done.returncode == 0, done.stderr
    assert "GEMINI_API_KEY is not set" in done.stdout
    answer = json.loads(run("check", "--config", good, "--json").stdout)
    assert answer["ok"] is True
    assert [row["name"] for row in answer["providers"] if row["off"]] == ["gemini"]


def test_check_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("servr: {}\nfallback: [x/y]\n")
    done = run("check", "-c", str(file))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f'{file}:1:1: unknown setting "servr" at the top; did you mean "server"?',
        f'{file}:2:12: fallback[0]: unknown provider "x"',
        "2 problems",
    ]
    answer = json.loads(run("check", "-c", str(file), "--json").stdout)
    assert [(one["line"], one["column"]) for one in answer["problems"]] == [(1, 1), (2, 12)]


def test_the_file_is_found(tmp_path: Path, good: str) -> None:
    for words, env in (([], {"SWITCHYARD_CONFIG": good}), (["-c", good], {"SWITCHYARD_CONFIG": "/nonexistent"})):
        done = run(*words, "check", env=env)
        assert done.returncode == 0, done.stderr
        assert good in done.stdout
    assert "there is no such file" in run("check", "-c", "/nonexistent/c.yaml").stderr
    (tmp_path / "config").mkdir()
    (tmp_path / "config/switchyard.yaml").write_text("data_dir: here")
    assert "data_dir: here" in run("config", "show", cwd=tmp_path).stdout
    (tmp_path / "elsewhere").mkdir()
    assert "demo/gemma-3-270m" in run("config", "show", cwd=tmp_path / "elsewhere").stdout, "the built-in default"


def test_show_masks_secrets(good: str) -> None:
    env = {"GEMINI_API_KEY": "sk-very-secret"}
    done = run("config", "show", "--origin", "-c", good, env=env)
    assert done.returncode == 0, done.stderr
    assert "very-secret" not in done.stdout
    assert "header-secret" not in done.stdout
    assert "# providers.gemini.api_key: from GEMINI_API_KEY" in done.stdout
    shown = json.loads(run("config", "show", "--json", "-c", good, env=env).stdout)
    assert shown["providers"]["gemini"]["api_key"] == "**********"
    assert shown["server"]["limits"]["drain_seconds"] == 30
    assert shown["redis"]["url"] == "embedded"


def test_schema() -> None:
    assert run("config", "schema").stdout == schema_text()


def test_models(good: str) -> None:
    done = run("models", "-c", good)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["MODEL", "m", "tiny"]
    every = json.loads(run("models", "--all", "--json", "-c", good).stdout)
    assert [entry["id"] for entry in every["models"]] == ["m", "only-cloud", "tiny"]
    assert every["models"][0]["capabilities"]["tools"] is False
    assert every["patterns"] == {"g-*": ["gemini/*"]}


def test_route_prints_the_plan_with_reasons(good: str) -> None:
    done = run("route", "m", "-c", good)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["m", "(exact)"], ["1.", "local/b", "target"], ["2.", "demo/tiny", "fallback"], ["-", "gemini/a", "target"],
    ]  # fmt: skip
    assert "left out, provider_off: provider gemini is off: GEMINI_API_KEY is not set" in done.stdout
    plan = json.loads(run("route", "m", "--json", "-c", good, "--no-fallback").stdout)
    assert [attempt["target"] for attempt in plan["attempts"]] == ["local/b"]
    assert [skip["reason"] for skip in plan["skipped"]] == ["provider_off", "fallback_off"]


def test_route_says_what_a_call_would_get(good: str) -> None:
    tools = run("route", "m", "--needs", "tools", "--no-fallback", "-c", good, env={"GEMINI_API_KEY": "k"})
    assert tools.returncode == 1
    assert "400 unsupported_parameter: model 'm' does not support tools." in tools.stdout
    assert "503 no_target" in run("route", "only-cloud", "-c", good).stdout
    unknown = run("route", "only-clod", "-c", good)
    assert unknown.returncode == 1
    assert "404 model_not_found" in unknown.stderr
    assert "only-cloud" in unknown.stderr
    assert run("route", "m", "--needs", "wings", "-c", good).returncode == 2


@pytest.fixture
def server() -> Iterator[str]:
    """A server that has an empty model list in Ollama's dialect, and refuses all else."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = b'{"models":[]}' if self.path == "/api/tags" else b"{}"
            self.send_response(200 if self.path == "/api/tags" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_providers_are_reached(tmp_path: Path, server: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        f"providers:\n  up: {{vendor: ollama, base_url: '{server}'}}\n"
        f"  down: {{vendor: ollama, base_url: '127.0.0.1:{refused_port()}'}}\n  dark: {{vendor: gemini}}\n"
    )
    path = str(file)
    up = run("providers", "test", "up", "-c", path)
    assert up.returncode == 0, up.stdout + up.stderr
    assert "0 models at" in up.stdout
    for name, said in (("down", "down: "), ("dark", "dark: is off: it has no api_key")):
        failed = run("providers", "test", name, "-c", path)
        assert failed.returncode == 1
        assert said in failed.stdout
    assert run("providers", "test", "upp", "-c", path).returncode == 2
    checked = json.loads(run("check", "--connect", "--json", "-c", path).stdout)
    assert {row["name"]: row.get("reached") for row in checked["providers"]} == {
        "up": True,
        "down": False,
        "dark": None,
    }
    assert checked["ok"] is False
    assert run("check", "--connect", "-c", path).returncode == 1
    listed = json.loads(run("providers", "--json", "-c", path).stdout)
    assert [row["on"] for row in listed] == [True, True, False]


def test_version() -> None:
    assert run("version").stdout == run("--version").stdout
    assert run("version").stdout.startswith("switchyard ")


def test_a_reader_that_leaves_early_is_no_error(good: str) -> None:
    pipe = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m router.cli.main config schema | head -n 1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert pipe.stdout == "{\n"
    assert "Traceback" not in pipe.stderr


def test_route_with_the_rights_of_a_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"data_dir: {tmp_path}/data\nproviders: {{local: {{vendor: ollama}}, demo: {{vendor: demo}}}}")
    made = run("keys", "create", "bob", "--models", "local/*", "-c", str(file))
    assert made.returncode == 0, made.stderr
    assert run("route", "local/m", "--key", "bob", "-c", str(file)).returncode == 0
    denied = run("route", "demo/m", "--key", "bob", "-c", str(file))
    assert denied.returncode == 1
    assert "403 model_not_allowed" in denied.stderr
    assert "there is no key 'nobody'" in run("route", "demo/m", "--key", "nobody", "-c", str(file)).stderr


PRICES = """
data_dir: {data}
providers:
  openai: {{vendor: openai, api_key: k}}
  paid: {{vendor: openai-compatible, base_url: "http://paid.test/v1", api_key: k, models: [mystery]}}
models:
  either: {{targets: [paid/mystery, openai/gpt-4o-mini]}}
fallback: []
"""


def test_route_leaves_out_what_has_no_price(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(PRICES.format(data=tmp_path / "data"))
    assert run("teams", "create", "class", "--budget-day", "5cny", "-c", str(file)).returncode == 0
    for name, more in (("own", ("--budget-day", "1usd")), ("shared", ("--team", "class")), ("free", ("--rpm", "5"))):
        made = run("keys", "create", name, *more, "-c", str(file))
        assert made.returncode == 0, made.stderr
    for name in ("own", "shared"):
        found = json.loads(run("route", "either", "--key", name, "--json", "-c", str(file)).stdout)
        assert [row["target"] for row in found["attempts"]] == ["openai/gpt-4o-mini"]
        (left_out,) = found["skipped"]
        assert (left_out["target"], left_out["reason"]) == ("paid/mystery", "unpriced")
        assert "limit in money" in left_out["detail"]
        alone = run("route", "mystery", "--key", name, "-c", str(file))
        assert alone.returncode == 1
        assert "403 model_unpriced" in alone.stdout
    free = json.loads(run("route", "either", "--key", "free", "--json", "-c", str(file)).stdout)
    assert len(free["attempts"]) == 2

    file.write_text(PRICES.format(data=tmp_path / "data") + "prices: {unpriced: refuse}\n")
    refused = json.loads(run("route", "either", "--json", "-c", str(file)).stdout)
    assert [row["reason"] for row in refused["skipped"]] == ["unpriced"]
    listed = json.loads(run("models", "--json", "-c", str(file)).stdout)["models"]
    assert "mystery" not in {row["id"] for row in listed}
    assert "either" in {row["id"] for row in listed}


def test_route_knows_what_the_team_may_use(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(PRICES.format(data=tmp_path / "data"))
    assert run("teams", "create", "class", "--models", "gpt-*,either", "-c", str(file)).returncode == 0
    assert run("keys", "create", "pupil", "--team", "class", "-c", str(file)).returncode == 0
    assert run("route", "either", "--key", "pupil", "-c", str(file)).returncode == 0
    assert "403 model_not_allowed" in run("route", "mystery", "--key", "pupil", "-c", str(file)).stderr
