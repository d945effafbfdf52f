"""CPU and memory of a gateway's processes, read from the kernel.

CPU is the process's own CPU-time clock (`clock_getcpuclockid`): user and system time of all its threads, the ended ones
too, in nanoseconds. `/proc/PID/stat` has the same sum in ticks of 10 ms, and `/proc/PID/schedstat` only the main
thread's. The processes of a gateway are those of the session it was started in, those with a variable in their
environment, which children inherit, and those that work under the gateway's folder: a store has a session and an
environment of its own, but keeps its data there.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MARK: Final = "SWITCHYARD_BENCH_ROW"  # the variable; its value is unique to one gateway of one run
_STORES: Final = frozenset({"valkey-server", "redis-server"})  # a gateway's store, counted apart from it
_TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Processes:
    router: frozenset[int]
    store: frozenset[int]


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB. PSS shares pages between the processes that map them; RSS counts them in each."""

    processes: int
    rss: float
    pss: float


def find(mark: str, session: int, folder: Path) -> Processes:
    """The gateway's processes: of the session its first one leads, with the mark, or working under its folder."""
    needle = f"{MARK}={mark}".encode()
    folder = folder.resolve()
    router: set[int] = set()
    store: set[int] = set()
    for pid in _pids():
        try:
            if (
                os.getsid(pid) != session
                and not Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(folder)
                and needle not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ):
                continue
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except OSError:  # ended meanwhile, or another user's
            continue
        if not command:  # ended and not yet waited for
            continue
        (store if Path(command.split(" ")[0]).name in _STORES else router).add(pid)
    return Processes(frozenset(router), frozenset(store))


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def cpu(pids: frozenset[int]) -> Mapping[int, float]:
    """CPU seconds used so far, by process."""
    used = {}
    for pid in pids:
        try:
            used[pid] = time.clock_gettime_ns((~pid << 3) | 2) / 1e9  # CPUCLOCK_SCHED of another process, see time.h
        except OSError:  # ended meanwhile
            continue
    return used


def difference(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """CPU seconds between two readings; a process that started between them counts from zero."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def memory(pids: frozenset[int]) -> Memory:
    rss = pss = 0
    count = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss:", "Pss:"))}
        rss += sizes.get("Rss", 0)
        pss += sizes.get("Pss", 0)
        count += 1
    return Memory(count, rss / 1024, pss / 1024)


def machine_busy() -> float:
    """CPU seconds the whole machine has been busy since boot (all but idle and waiting for disks)."""
    with open("/proc/stat", encoding="ascii") as stat:
        fields = [int(value) for value in stat.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICK
