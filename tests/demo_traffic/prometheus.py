"""Debian's Prometheus beside a router: started, asked and ended."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.demo_traffic.sums import Sample
from tests.simulators.server import free_port

PROGRAM: Final = "prometheus"
RULES: Final = Path(__file__).parents[2] / "config" / "prometheus"
JOB: Final = "switchyard"
START_SECONDS: Final = 60.0


class Trouble(Exception):
    """Prometheus does not start, or refuses a question."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values by time (Unix seconds); NaN where a function has nothing to say."""

    labels: Mapping[str, str]
    values: tuple[tuple[float, float], ...]

    @property
    def numbers(self) -> list[float]:
        return [value for _, value in self.values if not math.isnan(value)]


class Prometheus:
    """A running Prometheus. Everything raises Trouble."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **parameters: object) -> Any:
        """`data` of an answer of the HTTP API."""
        query = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise Trouble(f"{path} {parameters}: {error.read().decode(errors='replace')[:500]}") from None
        except (OSError, ValueError) as error:
            raise Trouble(f"{path}: {error}") from None

    def now(self, query: str, at: float | None = None) -> list[Sample]:
        """An instant query. A scalar is a sample without labels."""
        found = self.ask("query", query=query, **({} if at is None else {"time": at}))
        if found["resultType"] == "scalar":
            return [Sample("", {}, float(found["result"][1]))]
        return [
            Sample(row["metric"].get("__name__", ""), _labels(row["metric"]), float(row["value"][1]))
            for row in found["result"]
        ]

    def over(self, query: str, start: float, end: float, step: float = 1.0) -> list[Series]:
        """A range query."""
        found = self.ask("query_range", query=query, start=start, end=end, step=step)
        return [
            Series(_labels(row["metric"]), tuple((float(at), float(value)) for at, value in row["values"]))
            for row in found["result"]
        ]

    def scraped_after(self, moment: float, seconds: float = 60.0) -> None:
        """Wait for a scrape that began after `moment` (Unix seconds)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.now('timestamp(switchyard_build_info) unless on () (up{job="switchyard"} == 0)')
            if found and max(sample.value for sample in found) > moment:
                return
            time.sleep(0.1)
        raise Trouble(f"no scrape within {seconds:g} s: {self.ask('targets', state='active')}")


def _labels(metric: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metric.items() if name != "__name__"}


def missing() -> str | None:
    """Why there is no Prometheus here, or None."""
    if shutil.which(PROGRAM) is None:
        return f"the program `{PROGRAM}` is not installed (Debian: apt-get install prometheus)"
    return None


def hurried(text: str) -> str:
    """Rules whose alerts fire at once: `for` is no longer than two seconds, and groups are evaluated each second."""
    text = re.sub(r"^(\s*(?:- )?for:).*$", r"\1 2s", text, flags=re.MULTILINE)
    return re.sub(r"^(\s*(?:- )?interval:).*$", r"\1 1s", text, flags=re.MULTILINE)


def rule_files() -> list[Path]:
    """The rules that the project ships."""
    return sorted(path for path in RULES.glob("*.y*ml") if re.search(r"^groups:", path.read_text(), re.MULTILINE))


@contextmanager
def running(
    directory: Path,
    target: str,
    token: str = "",
    *,
    interval: float = 1.0,
    hurry: bool = True,
    rules: Iterable[Path] | None = None,
    port: int | None = None,
) -> Iterator[Prometheus]:
    """Scrape `target` (host:port), with a token where one is given, until the block ends. `hurry`: alerts do not wait
    (see `hurried`)."""
    directory.mkdir(parents=True, exist_ok=True)
    copies = []
    for path in rule_files() if rules is None else rules:
        text = path.read_text()
        copies.append(directory / path.name)
        copies[-1].write_text(hurried(text) if hurry else text)
    seconds = f"{round(interval * 1000)}ms"
    job: dict[str, Any] = {"job_name": JOB, "static_configs": [{"targets": [target]}]}
    if token:
        (directory / "token").write_text(token)
        job["authorization"] = {"credentials_file": str(directory / "token")}
    config = {
        "global": {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": seconds},
        "rule_files": [str(path) for path in copies],
        "scrape_configs": [job],
    }
    path = directory / "prometheus.yml"
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML
    port = port or free_port()
    command = [
        PROGRAM, f"--config.file={path}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    log = directory / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=directory)
    try:
        made = Prometheus(port)
        _wait(made, process, log)
        yield made
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(made: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{made.url}/-/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise Trouble(f"Prometheus did not start: {log.read_text(errors='replace')[-1500:]}")
