"""A real router process with its own data directory, and what tests want to know of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.simulators.dialects import SECRET
from tests.simulators.server import free_port, refused_port

ROOT = Path(__file__).parents[2]
KEY_VARIABLE = "SIMULATED_KEY"
"""The environment variable in which every router finds the simulated provider's key."""
READY_SECONDS = 60.0
UNHURRIED: Mapping[str, str] = {"PYTHONPATH": str(ROOT / "tests" / "simulators" / "patience")}
"""Environment of routers that wait for their store as long as it takes, for tests that count calls."""
PATIENT: Mapping[str, float] = {"connect": 10.0, "first_content": 10.0, "idle": 10.0, "total": 30.0}
"""Deadlines (seconds) of providers whose answers are awaited, also on a busy machine."""
HASTY: Mapping[str, float] = {**PATIENT, "first_content": 0.3, "total": 0.4}
"""Deadlines of the provider `hasty`, for scripts that say nothing."""
BUSTLING: Mapping[str, float] = {**PATIENT, "idle": 0.15}
"""Deadlines of the provider `bustling`, for scripts that begin and say no more."""


class RouterProcess:
    """`switchyard serve`, from start to SIGTERM. `config` is what the YAML file says, without `data_dir`."""

    def __init__(
        self,
        directory: Path,
        config: Mapping[str, Any],
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.config_path = directory / "switchyard.yaml"
        self.key = ""
        self.admin_token = ""
        self.command = [sys.executable, "-m", "router.cli.main", "serve", "--config", str(self.config_path)]
        self.cwd = ROOT
        self.out: list[str] = []
        """Lines of standard output."""
        self.err: list[str] = []
        """Lines of standard error: messages and the request log."""
        self.code: int | None = None
        self._env = {**_clean_environment(), KEY_VARIABLE: SECRET, **(env or {})}
        self._arguments = tuple(arguments)
        self._news = threading.Condition()
        self.write_config(config)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write_config(self, config: Mapping[str, Any]) -> None:
        server = {"listen": [{"host": "127.0.0.1", "port": self.port}], **config.get("server", {})}
        whole = {"data_dir": str(self.directory / "data"), **config, "server": server}
        # JSON is YAML; it needs no quoting rules.
        self.config_path.write_text(json.dumps(whole, indent=1), "utf-8")

    def start(self) -> RouterProcess:
        self.process = subprocess.Popen(
            [*self.command, *self._arguments],
            cwd=self.cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.wait_line("Try it:", self.out, READY_SECONDS)
        except AssertionError:
            self.process.kill()
            self.wait(15)
            raise
        text = "\n".join(self.out)
        if found := re.search(r"^  key +(sk-\S+)", text, re.MULTILINE):
            self.key = found[1]
        if found := re.search(r"^  admin token +(\S+)", text, re.MULTILINE):
            self.admin_token = found[1]
        return self

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Send the signal and wait for the end. Gives the exit code; kills what does not end."""
        if self.code is None:
            if self.process.poll() is None:
                self.process.send_signal(number)
            self.wait(seconds)
        assert self.code is not None
        return self.code

    def wait(self, seconds: float) -> int:
        """Wait for the process to end by itself."""
        try:
            self.code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.code = -9
            raise AssertionError(f"the router did not end within {seconds} s:\n{self.tail()}") from None
        finally:
            for reader in self._readers:
                reader.join(5)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        return self.code

    def __enter__(self) -> RouterProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tail(self) -> str:
        return "\n".join([*self.out[-10:], *self.err[-40:]])

    def wait_line(self, text: str, lines: list[str], seconds: float = 60.0, since: int = 0) -> str:
        """The first line with `text`, once it is there. `since` skips lines that were there before."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for line in lines[since:]:
                    if text in line:
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._alive()):
                    raise AssertionError(f"no line with {text!r}:\n{self.tail()}")
                self._news.wait(min(left, 0.1))

    def log_of(self, asked_model: str, seconds: float = 60.0) -> dict[str, Any]:
        """The request log line of the last call for a model."""
        needle = json.dumps(asked_model)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in reversed(self.err):
                if line.startswith("{") and f'"model":{needle}' in line:
                    found: dict[str, Any] = json.loads(line)
                    return found
            time.sleep(0.01)
        raise AssertionError(f"no log line for {asked_model}:\n{self.tail()}")

    def rss(self) -> float:
        """Resident memory of the router process, in MB (without the store's)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")

    def worked(self) -> float:
        """Seconds of processor time that the router process has taken so far: waiting for a busy machine is none."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def family(self) -> list[int]:
        """The ids of all processes in the router's session that are alive."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                found.append(int(entry.name))
        return found

    def _alive(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def _read(self, pipe: Any, lines: list[str]) -> None:
        for line in pipe:
            with self._news:
                lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()


def journal(data: Path) -> list[bytes]:
    """The settlements that wait in the journals of a data directory. Its routers rename files there, and remove them
    when they are sent."""
    lines: list[bytes] = []
    for path in (data / "journal").glob("*"):
        with suppress(FileNotFoundError):
            lines += path.read_bytes().splitlines(keepends=True)
    return lines


def _clean_environment() -> dict[str, str]:
    """The environment without what would change a router's behaviour: keys, proxies, settings of ours."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SWITCHYARD_", "OLLAMA_", "OPENAI_"))
        and not name.endswith("_API_KEY")
        and not name.lower().endswith("_proxy")
    }


def providers(cloud_url: str, local_url: str, **more: Any) -> dict[str, Any]:
    """The config of the tests.

    `cloud`, `hasty` and `bustling` (short deadlines) are one simulated provider, nothing listens at `down`, and `local`
    is an Ollama that every call may fall back to. `more` are further providers.
    """

    def cloud(url: str, timeouts: Mapping[str, float]) -> dict[str, Any]:
        key = f"${{{KEY_VARIABLE}}}"
        return {"vendor": "openai-compatible", "base_url": f"{url}/v1", "api_key": key, "timeouts": dict(timeouts)}

    return {
        "providers": {
            "cloud": cloud(cloud_url, PATIENT),
            "hasty": cloud(cloud_url, HASTY),
            "bustling": cloud(cloud_url, BUSTLING),
            "down": cloud(f"http://127.0.0.1:{refused_port()}", PATIENT),
            "local": {"vendor": "ollama", "base_url": local_url, "local": True, "timeouts": dict(PATIENT)},
            **more,
        },
        "models": {"chat": {"targets": ["cloud/answer"]}},
        "fallback": ["local/llama3.2"],
    }
