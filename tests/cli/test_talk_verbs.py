"""`chat`, `env` and `doctor` as processes, against a scripted router over real sockets."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from router.cli.address import router_key, router_url, speaks_chinese
from router.cli.env import CLIENTS, PLACEHOLDER
from tests.simulators.ports import free_port
from tests.simulators.router import UNHURRIED

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "router.cli.main"]


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", **more}


def run(*words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=ROOT, env=environment(**env), input=stdin, capture_output=True, text=True, timeout=60
    )


def event(text: str | None = None, finish: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"
    )


GOOD = [event("Hel"), event("lo 你好"), event(finish="stop"), b"data: [DONE]\n\n"]


class Router(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = GOOD
        self.pause = 0.0
        self.seen: list[tuple[str | None, dict[str, Any]]] = []
        self.hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Router

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/chat/completions"
        self.server.seen.append((self.headers["authorization"], body))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in self.server.pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(self.server.pause)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def router() -> Iterator[Router]:
    with Router() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


# --- chat ----------------------------------------------------------------------------------------------------------


def test_one_question(router: Router) -> None:
    done = run("chat", "m", "Hi?", "--url", router.url + "/v1/", "--key", "k", "--system", "S", "--max-tokens", "5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello 你好\n", "")
    key, body = router.seen[0]
    assert key == "Bearer k"
    assert body["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi?"}]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 5, True)


def test_a_question_from_a_pipe_and_the_key_from_the_environment(router: Router) -> None:
    done = run("chat", "m", stdin="piped", SWITCHYARD_URL=router.url, SWITCHYARD_API_KEY="e")
    assert done.stdout == "Hello 你好\n"
    assert router.seen[0][0] == "Bearer e"
    assert router.seen[0][1]["messages"][0]["content"] == "piped"


def test_who_answered_instead_is_told_apart_from_the_text(router: Router) -> None:
    router.headers = {"x-switchyard-fallback": "rate_limited", "x-switchyard-provider": "demo"}
    done = run("chat", "m", "Hi", "--url", router.url)
    assert done.stdout == "Hello 你好\n"
    assert done.stderr == "[answered by demo: rate_limited]\n"


@pytest.mark.parametrize(
    ("status", "pieces", "said"),
    [
        pytest.param(404, [b'{"error": {"message": "model nope"}}'], "model nope", id="refused"),
        pytest.param(401, [b'{"error": {"message": "no key"}}'], "keys create", id="no key"),
        pytest.param(502, [b"<html>"], "status 502", id="not json"),
        pytest.param(200, [event("a"), b'data: {"error": {"message": "broke"}}\n\n'], "broke", id="error in stream"),
        pytest.param(200, [event("a")], "cut off", id="cut off"),
    ],
)
def test_no_answer_ends_with_1(router: Router, status: int, pieces: list[bytes], said: str) -> None:
    router.status, router.pieces = status, pieces
    done = run("chat", "m", "Hi", "--url", router.url)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_there_says_how_to_start_it() -> None:
    for words, env in ((("switchyard serve", "start it"), {}), (("没有响应",), {"LANG": "zh_CN.UTF-8"})):
        done = run("chat", "m", "Hi", "--url", "127.0.0.1:1", **env)
        assert done.returncode == 1
        assert all(word in done.stderr for word in words)


def test_ctrl_c_stops_the_answer_and_not_the_program(router: Router) -> None:
    router.pieces, router.pause = [event(f"word{n} ") for n in range(2000)], 0.02
    parent, child = pty.openpty()
    talk = subprocess.Popen(
        [*COMMAND, "chat", "m", "--url", router.url],
        stdin=child, stdout=child, stderr=child, env=environment(TERM="dumb"), start_new_session=True, cwd=ROOT,
        preexec_fn=_own_terminal,
    )  # fmt: skip
    os.close(child)
    try:
        _until(parent, b"> ")
        os.write(parent, b"Hi\n")
        _until(parent, b"word3 ")
        os.write(parent, b"\x03")
        _until(parent, b"\n> ")
        assert router.hung_up.wait(30)
        router.pieces, router.pause = GOOD, 0.0
        os.write(parent, b"Again\n")
        assert b"Hello " in _until(parent, b"\n> ")
        os.write(parent, b"/exit\n")
        assert talk.wait(60) == 0
    finally:
        talk.kill()
        talk.wait()
        os.close(parent)
    turns = router.seen[1][1]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"].startswith("word0 word1")


def _own_terminal() -> None:
    import fcntl
    import signal
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so would their children


def _until(handle: int, wanted: bytes, seconds: float = 60) -> bytes:
    seen, limit = b"", time.monotonic() + seconds
    while wanted not in seen.replace(b"\r", b""):
        assert time.monotonic() < limit, seen
        if select.select([handle], [], [], 0.2)[0]:
            seen += os.read(handle, 4096)
    return seen


# --- env -----------------------------------------------------------------------------------------------------------


def test_every_client_gets_address_key_and_model() -> None:
    for client in CLIENTS:
        done = run("env", client, "--url", "http://h:9/v1", "--key", "sk-1", "--model", "some/model")
        assert done.returncode == 0, done.stderr
        assert "http://h:9" in done.stdout
        assert "sk-1" in done.stdout
        assert "/v1/v1" not in done.stdout
        assert "$" not in done.stdout
    assert f'OPENAI_API_KEY="{PLACEHOLDER}"' in run("env", "openai").stdout


def test_the_lines_are_for_a_shell() -> None:
    done = subprocess.run(
        ["sh", "-c", 'eval "$(cat)"; echo $OPENAI_BASE_URL $OPENAI_API_KEY'],
        input=run("env", "openai", "--url", "h:9").stdout, env=environment(SWITCHYARD_API_KEY="mine"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "http://h:9/v1 mine\n"


def test_the_address_comes_from_the_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("server: {listen: [{host: 0.0.0.0, port: 7777}]}\n")
    assert "http://127.0.0.1:7777/v1" in run("env", "curl", "--config", str(tmp_path / "c.yaml")).stdout
    assert json.loads(run("env", "cline", "--config", "/no/file", "--json").stdout)["url"] == "http://127.0.0.1:8080"


def test_unknown_clients_are_wrong_usage() -> None:
    done = run("env", "opena")
    assert done.returncode == 2
    assert "did you mean openai?" in done.stderr
    assert all(client in run("env").stdout for client in CLIENTS)


def test_small_rules() -> None:
    assert router_url("https://x/", None, {}) == "https://x"
    assert router_url(None, None, {"SWITCHYARD_URL": "x:1/v1"}) == "http://x:1"
    assert router_key(None, {"SWITCHYARD_KEY": "b", "SWITCHYARD_API_KEY": ""}) == "b"
    assert speaks_chinese({"LC_ALL": "C", "LANG": "zh_CN"}) is False
    assert speaks_chinese({"LANG": "zh_TW.UTF-8"}) is True


# --- doctor --------------------------------------------------------------------------------------------------------


def config(folder: Path, port: int, more: str = "") -> str:
    file = folder / "c.yaml"
    file.write_text(
        f"server: {{listen: [{{port: {port}}}]}}\ndata_dir: {folder / 'data'}\n"
        f"providers: {{ollama: {{vendor: ollama, base_url: '127.0.0.1:1'}}, demo: {{vendor: demo}}}}\n{more}"
    )
    return str(file)


def findings(*words: str, **env: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    done = run("doctor", "--json", *words, **env)
    rows: dict[str, list[dict[str, str]]] = {}
    for row in json.loads(done.stdout)["findings"]:
        rows.setdefault(row["subject"], []).append(row)
    return done.returncode, rows


def test_a_healthy_machine(tmp_path: Path) -> None:
    code, rows = findings("--config", config(tmp_path, free_port()), **UNHURRIED)
    assert code == 0, rows
    assert {rows[name][0]["level"] for name in ("python", "packages", "config", "data_dir", "store", "port")} <= {
        "ok",
        "warn",
    }
    assert rows["provider ollama"][0]["level"] == "warn"
    assert "OLLAMA_HOST" in rows["provider ollama"][0]["fix"]
    assert rows["provider demo"][0]["level"] == "ok"
    assert not (tmp_path / "data").exists()


def test_what_is_wrong_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "gemma-3-270m-q4_k_m.gguf").write_bytes(b"not it")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, rows = findings("--config", config(tmp_path, port, "redis: {url: 'redis://127.0.0.1:1'}\n"))
    assert code == 1
    assert rows["port"][0]["level"] == "fail"
    assert str(port) in rows["port"][0]["fix"]
    assert rows["store"][0]["level"] == "fail"
    assert "damaged" in rows["provider demo"][0]["text"]


def test_a_bad_config_is_reported_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("serve: {}\nfallback: [nope/x]\n")
    code, rows = findings("--config", str(tmp_path / "c.yaml"))
    assert code == 1
    assert len(rows["config"]) == 2
    assert "c.yaml:1:1" in rows["config"][0]["text"]
    assert rows["python"][0]["level"] == "ok"


def test_connect_and_language(tmp_path: Path) -> None:
    file = config(tmp_path, free_port())
    code, rows = findings("--config", file, "--connect", LANG="zh_CN.UTF-8")
    assert code == 1
    assert rows["reach ollama"][0]["level"] == "fail"
    assert "没有 Ollama" in rows["provider ollama"][0]["text"]
