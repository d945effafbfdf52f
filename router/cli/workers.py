"""Several processes that serve on the same sockets, kept running by one that owns the store and the demo model."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time

from router.embedded import die_with_parent
from router.slots import VARIABLE as SLOT
from router.slots import SlotDirectory

log = logging.getLogger("switchyard.workers")

VARIABLE = "SWITCHYARD_WORKER_SOCKETS"
"""Set for a worker: the numbers of the listening sockets that it inherits."""
STEADY_SECONDS = 10.0
"""A worker that lived this long is replaced at once; one that dies sooner after a pause that grows."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0


def inherited() -> list[socket.socket]:
    """The listening sockets that a parent handed over; empty when this is no worker."""
    numbers = os.environ.pop(VARIABLE, "")
    sockets = [socket.socket(fileno=int(number)) for number in numbers.split(",") if number]
    for one in sockets:
        one.setblocking(False)
    return sockets


class Workers:
    """`count` workers, numbered from 0. One that dies is replaced by another with its number."""

    def __init__(
        self, count: int, sockets: list[socket.socket], drain_seconds: float, directory: SlotDirectory
    ) -> None:
        self._count = count
        self._sockets = sockets
        self._drain_seconds = drain_seconds
        self._directory = directory
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        for number in range(self._count):
            process = await self._spawn(number)
            self._keepers.append(asyncio.create_task(self._keep(number, process)))

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Until `stop`; then the workers drain, and `hurry` ends them at once."""
        await stop.wait()
        self._stopping.set()
        self.pass_on(signal.SIGTERM)
        ended = asyncio.gather(*self._keepers)
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait((ended, hurried), timeout=self._drain_seconds + 5, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            self.pass_on(signal.SIGTERM)
            await asyncio.wait((ended,), timeout=5)
        hurried.cancel()

    async def stop(self) -> None:
        """End what is left, hard."""
        self._stopping.set()
        self.pass_on(signal.SIGKILL)
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def pass_on(self, signal_number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(signal_number)

    def reload(self) -> None:
        """Let those that serve read the config again. The others are about to, and the signal would end them: they do
        not listen for it yet."""
        serving = self._directory.serving()
        for process in self._processes.values():
            if process.returncode is None and process.pid in serving:
                process.send_signal(signal.SIGHUP)

    async def _keep(self, number: int, process: asyncio.subprocess.Process) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            code = await process.wait()
            self._processes.pop(number, None)
            self._directory.clear(number)
            if not self._stopping.is_set():
                self._directory.ended_unasked()
            why = f"worker {process.pid} ended with {code}"
            started = None
            while started is None:
                if self._stopping.is_set():
                    return
                log.warning("%s; starting another", why)
                steady = time.monotonic() - began > STEADY_SECONDS
                pause = FIRST_PAUSE if steady else min(pause * 2, LONGEST_PAUSE)
                try:
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                    return
                except TimeoutError:
                    pass
                try:
                    started = await self._spawn(number)
                except OSError as bad:
                    why = f"no worker could be started ({bad.strerror})"
            process = started
            if self._stopping.is_set():
                # The signal to end was sent while this one was being started.
                process.terminate()

    async def _spawn(self, number: int) -> asyncio.subprocess.Process:
        numbers = [one.fileno() for one in self._sockets]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "router.cli.main",
            *sys.argv[1:],
            env={
                **os.environ,
                VARIABLE: ",".join(map(str, numbers)),
                SLOT: self._directory.slot(number, self._count).variable(),
            },
            pass_fds=numbers,
            preexec_fn=die_with_parent(),
        )
        self._processes[number] = process
        return process
