"""Starts the upstream and the gateways, runs the phases in interleaved rounds, and returns what was measured."""

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import procs
from tests.bench.gateways import ROOT, Gateway, Lane, Site
from tests.bench.load import Job, Result
from tests.bench.upstream import CHUNKS, MARKER, PACE
from tests.simulators.ports import free_port as free_port

DIRECT: Final = "direct"  # the row without a gateway
_REST: Final = 2.0  # seconds without calls that are watched


class Trouble(RuntimeError):
    """A gateway did not start or answers wrongly; the message says what it printed."""


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    connections: int
    calls: int  # ends after so many calls,
    seconds: float  # or after so long
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One phase of one round of one row."""

    result: Result
    router_cpu: float  # seconds
    store_cpu: float
    memory: procs.Memory  # of the router's processes, half way through
    others: float  # cores that neither this row, the load nor the upstream used, on average


@dataclass(slots=True)
class Row:
    """What is known of one lane of one gateway."""

    gateway: str
    lane: str
    release: str = ""
    checks_keys: bool = False
    rest: procs.Memory | None = None
    store_rest: procs.Memory | None = None
    errors: int = 0  # wrong answers in all phases, the warm-up's too, and phases that failed altogether
    rest_cpu: float | None = None  # seconds of CPU per second without calls, its store included
    samples: dict[str, list[Sample]] = field(default_factory=dict)  # by phase

    @property
    def name(self) -> str:
        return f"{self.gateway}: {self.lane}" if self.lane else self.gateway

    def median(self, phase: str, measure: Callable[[Sample], float | None]) -> float | None:
        values = self.values(phase, measure)
        return statistics.median(values) if values else None

    def noise(self, phase: str, measure: Callable[[Sample], float | None]) -> float | None:
        """Half the distance of the extremes, as a share of the median."""
        values = self.values(phase, measure)
        if len(values) < 2 or not statistics.median(values):
            return None
        return (max(values) - min(values)) / 2 / statistics.median(values)

    def values(self, phase: str, measure: Callable[[Sample], float | None]) -> list[float]:
        return [value for sample in self.samples.get(phase, []) if (value := measure(sample)) is not None]


@dataclass(frozen=True, slots=True)
class Cores:
    """Which CPUs the gateway may use, and which the load and the upstream share; None leaves it to the kernel."""

    gateway: frozenset[int] | None = None
    harness: frozenset[int] | None = None

    @staticmethod
    def pinned() -> "Cores":
        every = sorted(os.sched_getaffinity(0))
        return Cores(frozenset(every[-1:]), frozenset(every[:-1])) if len(every) > 1 else Cores()


def _on(cores: frozenset[int] | None) -> Callable[[], None] | None:
    return (lambda: os.sched_setaffinity(0, cores)) if cores else None


@contextlib.contextmanager
def upstream(cores: Cores) -> Iterator[tuple[int, int]]:
    """The simulator's port and process."""
    command = [sys.executable, "-m", "tests.bench.upstream"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=_on(cores.harness)
    ) as process:
        if process.stdout is None or process.stdin is None:
            raise Trouble("the upstream has no pipes")
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.stdin.close()


def get(
    port: int, path: str, method: str = "GET", body: str | None = None, key: str | None = None
) -> tuple[int, bytes]:
    """Status and body of one plain request; status 0 when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


class Running:
    """A started gateway."""

    def __init__(self, gateway: Gateway, site: Site, cores: Cores) -> None:
        self.gateway = gateway
        self.site = site
        self.mark = f"{gateway.name}-{os.getpid()}-{site.port}"
        self.log = site.folder / "output.log"
        command = gateway.start(site)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command.argv,
                cwd=ROOT,
                env={**os.environ, **command.env, procs.MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_on(cores.gateway),
            )
        try:
            self._wait()
            self.key = gateway.key(site)
            self._check()
        except BaseException:
            self.stop()
            raise

    def processes(self) -> procs.Processes:
        return procs.find(self.mark, self._process.pid, self.site.folder)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def _wait(self) -> None:
        give_up = time.monotonic() + self.gateway.patience
        while get(self.site.port, self.gateway.ready)[0] != 200:
            if self._process.poll() is not None:
                raise Trouble(f"{self.gateway.name} ended with {self._process.returncode}:\n{self._tail()}")
            if time.monotonic() > give_up:
                raise Trouble(f"{self.gateway.name} not ready after {self.gateway.patience:g} s:\n{self._tail()}")
            time.sleep(0.1)

    def _check(self) -> None:
        """One call in each lane succeeds, and without the key it does not."""
        for lane in self.gateway.lanes:
            body = request_body(lane, stream=False)
            status, answer = get(self.site.port, lane.path, "POST", body, self.key)
            if status != 200 or MARKER.encode() not in answer:
                raise Trouble(f"{self.gateway.name} answers {status} {answer[:500]!r} to {lane}\n{self._tail()}")
            refused, _ = get(self.site.port, lane.path, "POST", body)
            if self.gateway.checks_keys and refused < 400:  # litellm says 500
                raise Trouble(f"{self.gateway.name} answers {refused} to a call without a key")

    def stop(self) -> None:
        """Ends the process and what it started."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        left = self.processes()
        for pid in left.router | left.store:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                os.kill(pid, signal.SIGTERM)


def request_body(lane: Lane, *, stream: bool) -> str:
    """A request of about 600 bytes in the client's dialect."""
    message = "Say in one sentence why a benchmark needs a floor, a peer and a stated noise. " * 4
    body: dict[str, object] = {
        "model": lane.model,
        "messages": [
            {"role": "system", "content": "You are a terse assistant. Answer in plain text, without lists."},
            {"role": "user", "content": message.strip()},
        ],
        "stream": stream,
    }
    if lane.path.startswith("/api/"):
        body["options"] = {"temperature": 0.2, "num_predict": 256}
    else:
        body |= {"temperature": 0.2, "max_tokens": 256}
        if stream:
            body["stream_options"] = {"include_usage": True}
    return json.dumps(body)


def job(port: int, lane: Lane, key: str, phase: Phase, warm_up: int | None = None) -> Job:
    """What the load sends in this phase, and what a right answer holds in this lane's dialect."""
    ollama = lane.path.startswith("/api/")
    usage = "eval_count" if ollama else "total_tokens"
    end = ("}" if ollama else "data: [DONE]") if phase.stream else "}"
    return Job(
        port=port,
        path=lane.path,
        headers={"Authorization": f"Bearer {key}"},
        body=request_body(lane, stream=phase.stream),
        connections=phase.connections,
        calls=phase.calls,
        seconds=phase.seconds,
        warm_up=(0 if phase.stream else phase.connections) if warm_up is None else warm_up,
        expect=(usage,) if phase.stream else (MARKER, usage),
        ends_with=end,
        chunks=CHUNKS if phase.stream else 0,
        # an odd share of the pace, so that the streams' chunks spread over it
        stagger=PACE * 0.37 if phase.stream else 0.0,
    )


def measure(work: Job, running: Running | None, upstream_pid: int, cores: Cores, half_way: float) -> Sample:
    """Runs the load once. CPU is read just before it begins and just after the last answer."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.load", msgspec.json.encode(work).decode()],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=_on(cores.harness),
    ) as load:
        if load.stdin is None or load.stdout is None:
            raise Trouble("the load has no pipes")
        if load.stdout.readline() != b"ready\n":
            raise Trouble("the load did not get ready; its error is above")
        own = running.processes() if running else procs.Processes(frozenset(), frozenset())
        aside = frozenset({upstream_pid, load.pid})
        busy, start = procs.machine_busy(), time.monotonic()
        before = [procs.cpu(pids) for pids in (own.router, own.store, aside)]
        load.stdin.write(b"go\n")
        load.stdin.flush()
        time.sleep(half_way)
        memory = procs.memory(own.router)
        line = load.stdout.readline()
        after = [procs.cpu(pids) for pids in (own.router, own.store, aside)]
        used = [procs.difference(*pair) for pair in zip(before, after, strict=True)]
        took = time.monotonic() - start
        others = (procs.machine_busy() - busy - sum(used)) / took
    if not line:
        raise Trouble("the load ended without a result; its error is above")
    return Sample(msgspec.json.decode(line, type=Result), used[0], used[1], memory, max(0.0, others))


@dataclass(frozen=True, slots=True)
class Entrant:
    """A row with the way to load it."""

    row: Row
    lane: Lane
    running: Running | None  # None for the upstream itself
    port: int

    def takes(self, phase: Phase) -> bool:
        return self.running is None or self.running.gateway.streams or not phase.stream

    def job(self, phase: Phase) -> Job:
        return job(self.port, self.lane, self.running.key if self.running is not None else "none", phase)


@dataclass(frozen=True, slots=True)
class Plan:
    gateways: Sequence[Gateway]
    phases: Sequence[Phase]
    rounds: int
    cores: Cores
    folder: Path
    say: Callable[[str], None]


def _started(plan: Plan, port: int, stack: contextlib.ExitStack) -> dict[str, Running]:
    running = {}
    for gateway in plan.gateways:
        reason = gateway.missing()
        if reason:
            plan.say(f"{gateway.name} left out: {reason}")
            continue
        folder = plan.folder / gateway.name
        folder.mkdir()
        try:
            started = Running(gateway, Site(free_port(), port, folder), plan.cores)
        except (Trouble, OSError, ValueError, KeyError) as error:
            plan.say(f"{gateway.name} left out: {error}")
            continue
        stack.callback(started.stop)
        plan.say(f"{gateway.name} {gateway.release()} is ready")
        running[gateway.name] = started
    return running


def run(plan: Plan) -> list[Row]:
    """All rounds: in each, every row runs each phase once, the rows taking turns phase by phase."""
    with contextlib.ExitStack() as stack:
        port, upstream_pid = stack.enter_context(upstream(plan.cores))
        running = _started(plan, port, stack)
        entrants = [Entrant(Row(DIRECT, ""), Lane(""), None, port)]
        for name, one in running.items():
            own = one.processes()
            rest, store_rest = procs.memory(own.router), procs.memory(own.store)
            for lane in one.gateway.lanes:
                row = Row(name, lane.name, one.gateway.release(), one.gateway.checks_keys, rest, store_rest)
                entrants.append(Entrant(row, lane, one, one.site.port))
        for entrant in entrants:  # once, so that what only happens at the first calls is not measured
            for phase in filter(entrant.takes, plan.phases):
                calls = phase.connections if phase.stream else 200
                _sample(plan, entrant, dataclasses.replace(phase, calls=calls, seconds=10.0), upstream_pid)
        _watch_rest(entrants)
        for number in range(plan.rounds):
            for phase in plan.phases:
                for entrant in entrants:
                    if not entrant.takes(phase):
                        continue
                    sample = _sample(plan, entrant, phase, upstream_pid)
                    if sample is not None:
                        entrant.row.samples.setdefault(phase.name, []).append(sample)
            plan.say(f"round {number + 1} of {plan.rounds} done")
        return [entrant.row for entrant in entrants]


def _sample(plan: Plan, entrant: Entrant, phase: Phase, upstream_pid: int) -> Sample | None:
    """One measurement; trouble is said and counted, and the other rows go on."""
    half_way = min(phase.seconds, 2.0) / 4
    try:
        sample = measure(entrant.job(phase), entrant.running, upstream_pid, plan.cores, half_way)
    except Trouble as trouble:
        plan.say(f"{entrant.row.name}, {phase.name}: {trouble}")
        entrant.row.errors += 1
        return None
    if sample.result.errors:
        plan.say(f"{entrant.row.name}, {phase.name}: {sample.result.errors} errors, {sample.result.samples}")
        entrant.row.errors += sample.result.errors
    return sample


def _watch_rest(entrants: Sequence[Entrant]) -> None:
    """All gateways at once: what they use while nobody calls."""
    idle = [(entrant.row, entrant.running.processes()) for entrant in entrants if entrant.running is not None]
    start = time.monotonic()
    before = [procs.cpu(own.router | own.store) for _, own in idle]
    time.sleep(_REST)
    after = [procs.cpu(own.router | own.store) for _, own in idle]
    took = time.monotonic() - start
    for (row, _), *readings in zip(idle, before, after, strict=True):
        row.rest_cpu = procs.difference(*readings) / took


def cpu_per_call(sample: Sample) -> float | None:
    """Microseconds."""
    return sample.router_cpu / sample.result.calls * 1e6 if sample.result.calls else None


def cpu_per_chunk(sample: Sample) -> float | None:
    return sample.router_cpu / sample.result.chunks * 1e6 if sample.result.chunks else None


def store_per_call(sample: Sample) -> float | None:
    return sample.store_cpu / sample.result.calls * 1e6 if sample.result.calls else None


def store_per_chunk(sample: Sample) -> float | None:
    return sample.store_cpu / sample.result.chunks * 1e6 if sample.result.chunks else None


def machine() -> Mapping[str, str]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GiB",
        "system": f"{os.uname().sysname} {os.uname().release.split('-')[0]}",
        "python": sys.version.split()[0],
    }


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def plain(row: Row) -> dict[str, object]:
    """Every sample of a row as JSON values."""
    return {
        "row": row.name,
        "release": row.release,
        "rest": msgspec.to_builtins(row.rest),
        "rest_cpu": row.rest_cpu,
        "samples": {
            phase: [msgspec.to_builtins(sample) for sample in samples] for phase, samples in row.samples.items()
        },
    }
