"""The bundled demo model, run as a process of its own and kept alive: started, watched, restarted, stopped with the
router.

Rules. llama.cpp is never imported here (memory, crashes): `router.local_process` does, in a child that ends when we
do, however we end. One process per data directory: the first router to take the lock owns it, others with the same
directory (more workers) use the owner's and take over when it is gone. A sign of life is an answer of the inference
loop, not an open port. A child that dies or hangs is replaced after a pause that doubles up to half a minute; every
child is waited for, so none stays as a zombie.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast
from urllib.parse import urlsplit

from providers.errors import Unavailable
from router import local_weights
from router.local_process import KEY_VARIABLE

State = Literal["off", "preparing", "loading", "ready", "failed"]
"""off: not installed or not started. preparing: joining or checking the weights. loading: starting, also after a
crash. failed: it could not start; it is tried again every minute."""

_log = logging.getLogger(__name__)
_FOLDER = "demo"
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""All of our environment that the child gets: provider keys stay here."""
_TAIL = 4096
"""Bytes of the child's last prints that are kept for messages."""


@dataclass(frozen=True, slots=True)
class ModelState:
    state: State
    progress: float
    """0 to 1, where 1 is ready."""
    detail: str


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds. The defaults suit people; tests shorten them."""

    look: float = 2.0
    """Between signs of life."""
    answer: float = 10.0
    """How long one may take: a step of the inference loop on a busy machine takes up to a few seconds."""
    misses: int = 2
    """Failed signs of life in a row after which the child is replaced."""
    start: float = 300.0
    """From start to ready; a slow disk joins and reads 2 x 240 MB."""
    retry_first: float = 0.5
    retry_most: float = 30.0
    steady: float = 60.0
    """Ready for this long: the pause starts small again."""
    failed: float = 60.0
    """Before the next try after a failure that the child explained (checksum, disk)."""
    follow: float = 0.5
    """Between looks at the owner's process, when another router owns it."""


class LocalModel:
    """`base_url` and `api_key` are to be read when a call is made: the port may change when the process is replaced."""

    def __init__(
        self,
        data_dir: Path,
        *,
        on_state: Callable[[ModelState], None] | None = None,
        slots: int = 2,
        context: int = 4096,
        threads: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._folder = data_dir.resolve() / _FOLDER
        self._on_state = on_state
        self._slots = slots
        self._context = context
        self._threads = threads or default_threads()
        self._pace = pace or Pace()
        self._key = secrets.token_urlsafe(24)
        self._url: str | None = None
        self._port = 0
        self._state = ModelState("off", 0.0, "not started")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starts = 0

    @property
    def state(self) -> ModelState:
        return self._state

    @property
    def base_url(self) -> str | None:
        """`http://127.0.0.1:PORT/v1` while ready, else None."""
        return f"{self._url}/v1" if self._url and self._state.state == "ready" else None

    @property
    def api_key(self) -> str:
        return self._key

    @property
    def pid(self) -> int | None:
        """Of the process we own; None when there is none or another router owns it."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def starts(self) -> int:
        """Processes started so far; more than one means that it was replaced."""
        return self._starts

    async def start(self) -> None:
        """Begin in the background. Never raises: what goes wrong is the state."""
        reason = local_weights.missing()
        if reason:
            self._say("off", 0.0, reason)
        elif self._task is None:
            self._say("preparing", 0.0, "starting")
            self._task = asyncio.create_task(self._run(), name="demo model")

    async def stop(self) -> None:
        """End the process and wait for it. Safe to call at any time, more than once."""
        task, self._task = self._task, None
        if task:
            self._say("off", 0.0, "stopped")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def wait_ready(self, timeout: float) -> bool:  # noqa: ASYNC109 - part of the outcome, not a cancellation
        """True when ready within `timeout` seconds; False at once when it is off or failed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._state.state not in ("ready", "off", "failed"):
                    self._changed.clear()
                    await self._changed.wait()
        return self._state.state == "ready"

    async def wait(self) -> tuple[str, str]:
        """For the engine: base URL and key, once it is ready. The caller brings the deadline.

        Raises Unavailable when it is off or has failed.
        """
        while (state := self._state).state != "ready":
            if state.state in ("off", "failed"):
                raise Unavailable(f"the demo model is {state.state}: {state.detail}")
            self._changed.clear()
            await self._changed.wait()
        return f"{self._url}/v1", self._key

    # --- one owner per data directory -----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self._folder / "owner.lock").open("a") as lock:
                while not _taken(lock):
                    self._follow()
                    await asyncio.sleep(self._pace.follow)
                await self._own()
        except OSError as error:
            self._say("failed", 0.0, f"cannot use {self._folder}: {error.strerror or error}")

    def _follow(self) -> None:
        """Another router owns the process: say what it says."""
        try:
            note = json.loads((self._folder / "running.json").read_bytes())
            self._url, self._key = note["url"], note["key"]
            self._say(note["state"], note["progress"], note["detail"])
        except (OSError, ValueError, KeyError, TypeError):
            self._say("loading", 0.0, "another router is starting the model")

    def _note(self) -> None:
        """Tell the routers that follow. The key is in it, so it is readable by this user alone."""
        path = self._folder / "running.json"
        temporary = path.with_suffix(".tmp")
        seen = self._state
        note: dict[str, object] = {"url": self._url, "key": self._key, "pid": self.pid, "router": os.getpid()}
        note |= {"state": seen.state, "progress": seen.progress, "detail": seen.detail}
        with contextlib.suppress(OSError):  # a full disk must not end a model that runs; followers wait
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(note, file)
            temporary.replace(path)

    async def _own(self) -> None:
        # one that followed forgets where the old owner's process was
        self._url, self._key = None, secrets.token_urlsafe(24)
        self._tell("preparing", 0.0, "starting")
        pause = self._pace.retry_first
        clock = asyncio.get_running_loop().time
        try:
            while True:
                began = clock()
                explained = await self._one_life()
                if clock() - began > self._pace.steady:
                    pause = self._pace.retry_first
                if explained:
                    await asyncio.sleep(self._pace.failed)
                    self._tell("loading", 0.0, "trying again")
                else:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, self._pace.retry_most)
        finally:
            with contextlib.suppress(OSError):
                (self._folder / "running.json").unlink(missing_ok=True)

    # --- one process ----------------------------------------------------------------------------------------------

    async def _one_life(self) -> bool:
        """Start a process and stay with it to its end. True when it failed for a reason that it told."""
        tail = bytearray()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(),
                env=self._environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the router, which then stops it in order
            )
        except OSError as error:
            self._tell("failed", 0.0, f"cannot start the model's process: {error.strerror or error}")
            return True
        self._process = process
        self._starts += 1
        reader = asyncio.create_task(_keep_tail(cast("asyncio.StreamReader", process.stderr), tail))
        try:
            return await self._attend(process, tail)
        finally:
            self._url_off()
            await _end(process)
            reader.cancel()

    async def _attend(self, process: asyncio.subprocess.Process, tail: bytearray) -> bool:
        listener = asyncio.create_task(self._listen(cast("asyncio.StreamReader", process.stdout)))
        died = asyncio.create_task(process.wait())
        watcher: asyncio.Task[str] | None = None
        try:
            await asyncio.wait({listener, died}, timeout=self._pace.start, return_when=asyncio.FIRST_COMPLETED)
            if listener.done() and self._state.state == "ready":
                watcher = asyncio.create_task(self._watch(process.pid))
                await asyncio.wait({died, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if self._state.state == "failed":
                return True
            why = watcher.result() if watcher and watcher.done() else _ending(died, process, tail)
            _log.warning("the demo model's process ended and will be started again: %s", why)
            self._tell("loading", 0.0, f"starting again: {why}")
            return False
        finally:
            for task in (listener, died, watcher):
                if task:
                    task.cancel()

    async def _listen(self, stdout: asyncio.StreamReader) -> None:
        """What the child says of itself, until it is ready or has failed."""
        while line := await stdout.readline():
            try:
                said = json.loads(line)
                self._url = said.get("url")
                self._tell(said["state"], float(said["progress"]), str(said["detail"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # not one of our lines
            if self._state.state in ("ready", "failed"):
                self._port = urlsplit(self._url or "").port or self._port
                return

    async def _watch(self, pid: int) -> str:
        """Look for signs of life. Returns why the process must be replaced."""
        missed = stopped = 0
        while True:
            await asyncio.sleep(self._pace.look)
            stopped = stopped + 1 if _is_stopped(pid) else 0
            if stopped >= 2:  # once may be a debugger or a job control key
                return "it was stopped (SIGSTOP)"
            missed = 0 if await self._lives() else missed + 1
            if missed >= self._pace.misses:
                return f"no sign of life for {missed} times {self._pace.answer:g} s"

    async def _lives(self) -> bool:
        parts = urlsplit(self._url or "")
        headers = (f"Host: {parts.netloc}", f"Authorization: Bearer {self._key}", "Connection: close")
        request = "\r\n".join(("GET /slots HTTP/1.1", *headers, "", ""))
        writer = None
        try:
            async with asyncio.timeout(self._pace.answer):
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                writer.write(request.encode())
                return b" 200 " in await reader.readline()
        except (OSError, TimeoutError, ValueError):
            return False
        finally:
            if writer:
                writer.close()

    def _command(self) -> list[str]:
        options = {
            "folder": self._folder,
            "parent": os.getpid(),
            "port": self._port,
            "slots": self._slots,
            "context": self._context,
            "threads": self._threads,
        }
        # -P: what lies in the working directory is not imported
        return [
            sys.executable,
            "-P",
            "-m",
            "router.local_process",
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        own = str(Path(__file__).resolve().parent.parent)  # first, so that the child runs the code that we run
        places = os.pathsep.join([own, *filter(None, sys.path)])
        return {**kept, "PYTHONPATH": places, KEY_VARIABLE: self._key}

    # --- state ----------------------------------------------------------------------------------------------------

    def _say(self, state: State, progress: float, detail: str) -> None:
        new = ModelState(state, progress, detail)
        if new == self._state:
            return
        self._state = new
        self._changed.set()
        if self._on_state:
            self._on_state(new)

    def _tell(self, state: State, progress: float, detail: str) -> None:
        self._say(state, progress, detail)
        self._note()

    def _url_off(self) -> None:
        self._url = None
        if self._state.state == "ready":
            self._tell("loading", 0.0, "starting again")


def default_threads() -> int:
    """Half the processors: llama.cpp's threads wait for each other in a busy loop, and one that shares its processor
    stops them all."""
    return max(1, min(4, (os.cpu_count() or 2) // 2))


def _taken(lock: IO[Any]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_stopped(pid: int) -> bool:
    """Linux; elsewhere the missing answers tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def _ending(died: Awaitable[int], process: asyncio.subprocess.Process, tail: bytearray) -> str:
    lines = [line for line in tail.decode(errors="replace").splitlines() if line.strip()]
    last = f"; its last words: {lines[-1].strip()[:200]}" if lines else ""
    if process.returncode is None:
        return f"not ready in time{last}"
    return f"exit status {process.returncode}{last}"


async def _keep_tail(stream: asyncio.StreamReader, tail: bytearray) -> None:
    while chunk := await stream.read(_TAIL):
        tail += chunk
        del tail[:-_TAIL]


async def _end(process: asyncio.subprocess.Process) -> None:
    """It has nothing to save: ended the hard way, which also works when it is stopped or stuck, and waited for."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
