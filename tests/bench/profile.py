"""Where the router's CPU goes: py-spy watches it under load, and the heaviest functions are printed.

py-spy samples from outside and hardly slows the router, unlike cProfile. It needs the
right to trace the process: root, or `sysctl kernel.yama.ptrace_scope=0`.
"""

import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.bench import procs
from tests.bench.gateways import PEERS, Gateway, Site
from tests.bench.report import table
from tests.bench.run import Cores, Phase, Running, cpu_per_call, cpu_per_chunk, free_port, job, measure, upstream

_PY_SPY: Final = PEERS / "tools/bin/py-spy"
_RATE: Final = 250  # samples per second
_SHOWN: Final = 45
_LOADS: Final = {  # name -> (lane, connections, whether it streams)
    "calls": (0, 32, False),
    "streams": (0, 50, True),
    "translate": (1, 50, True),
}


def heaviest(folded: Iterable[str]) -> tuple[int, Counter[str], Counter[str]]:
    """Samples in all, by the function that ran, and by every function on the stack, of py-spy's raw format."""
    total, own, within = 0, Counter[str](), Counter[str]()
    for line in folded:
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if frame and not frame.startswith("process ")]
        if not frames:
            continue
        total += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    return total, own, within


def _print(title: str, total: int, counts: Counter[str]) -> None:
    lines = [(frame, f"{count / total:.1%}") for frame, count in counts.most_common(_SHOWN)]
    print(f"\n{table((title, 'of samples'), lines)}")


def profile(load: str, gateway: Gateway, folder: Path, seconds: float) -> int:
    """Prints two tables; the exit code says whether it worked."""
    lane_index, connections, stream = _LOADS[load]
    reason = gateway.missing() or (None if _PY_SPY.exists() else "py-spy is missing: run with --set-up")
    if reason:
        print(reason, file=sys.stderr)
        return 1
    seconds = max(seconds, 6.0)
    output = folder / "stacks.txt"
    with contextlib.ExitStack() as stack:
        port, upstream_pid = stack.enter_context(upstream(Cores()))
        site = Site(free_port(), port, folder)
        running = Running(gateway, site, Cores())
        stack.callback(running.stop)
        lane = gateway.lanes[lane_index]
        work = job(site.port, lane, running.key, Phase(load, connections, 10**9, seconds, stream=stream))
        workers = procs.cpu(running.processes().router)
        busiest = max(workers, key=lambda pid: workers[pid])
        plain = measure(work, running, upstream_pid, Cores(), 0.0)
        command = [str(_PY_SPY), "record", "--pid", str(busiest), "--format", "raw", "--output", str(output)]
        command += ["--rate", str(_RATE), "--duration", str(int(seconds) - 1), "--function", "--gil", "--nonblocking"]
        spy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        measure(work, running, upstream_pid, Cores(), 0.0)
        said, _ = spy.communicate(timeout=60)
    if spy.returncode or not output.exists():
        print(f"py-spy failed: {said.strip()}", file=sys.stderr)
        return 1
    total, own, within = heaviest(output.read_text().splitlines())
    each = cpu_per_chunk(plain) if stream else cpu_per_call(plain)
    print(f"{load}: {each or 0:.1f} µs of CPU per {'chunk' if stream else 'call'} unprofiled; {total} samples")
    _print("function itself", total, own)
    _print("function and what it calls", total, within)
    return 0
