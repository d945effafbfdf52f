"""Settlements that the store could not take: kept in a file until it does, and then sent again, once.

One file per process under `data_dir/journal`, one JSON line per settlement, written before anything else happens. The
file of a process that died is taken over by the next one that starts (an flock tells which are in use). Sending one
twice does no harm: the store's functions know the call's id for 24 hours.

When the disk takes no more, settlements wait in memory and are written when it does again, up to a bound; beyond it
`full` says so and no call is admitted that would have to be settled.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import re
import secrets
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson

from router.functions import name

log = logging.getLogger("switchyard.ledger")

MOST_IN_MEMORY: Final = 10_000
"""Settlements that may wait without being on the disk."""
LONGEST_WAIT: Final = 23 * 3600
"""Seconds. An older settlement is not sent again, since the store may have forgotten that it had it; the log tells."""

Entry = tuple[str, bytes]
"""The hash tag of the account, and the packed command."""


class Journal:
    """Open it before the first call; `close` it after the last settlement."""

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = data_dir / "journal"
        self._clock = clock
        self._path: Path | None = None
        self._file = -1
        self._waiting: dict[int, Entry] = {}
        self._number = 0
        self._unwritten: dict[int, bytes] = {}
        """The lines of those of `_waiting` that are in no file."""
        self._writable = True
        self._adopted: list[tuple[Path, int]] = []
        """Files of processes that died, with their locks: removed when everything has been sent."""
        self.lost = 0
        """Settlements that were too old to be sent again, could not be read, or could not be kept at the end."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._unwritten) >= MOST_IN_MEMORY

    def open(self) -> None:
        """Make this process's file and take over those of the dead. A disk that takes nothing is no reason to fail."""
        try:
            self._adopt()
            self._create()
        except OSError as error:
            self._ill(error)

    def add(self, entry: Entry) -> int:
        """Keep a settlement until `done`. Gives its number."""
        self._number += 1
        self._waiting[self._number] = entry
        line = orjson.dumps({"t": int(self._clock()), "tag": entry[0], "command": b64encode(entry[1]).decode()}) + b"\n"
        self._unwritten[self._number] = line
        self._write()
        return self._number

    def waiting(self, most: int) -> list[tuple[int, Entry]]:
        """The oldest settlements that are still to be sent."""
        return [item for item, _ in zip(self._waiting.items(), range(most), strict=False)]

    def done(self, number: int) -> None:
        """The store has it."""
        self._waiting.pop(number, None)
        self._unwritten.pop(number, None)
        if not self._waiting:
            self._emptied()

    def defer(self, number: int) -> None:
        """Not now: behind the others with it."""
        if (entry := self._waiting.pop(number, None)) is not None:
            self._waiting[number] = entry

    async def sync(self) -> None:
        """Have the disk keep what waits, also over a power cut."""
        self._write()
        if self._file >= 0 and self._waiting:
            await asyncio.to_thread(_sync, self._file)

    def close(self) -> None:
        """What still waits stays in the file for the next start; what the file does not take is lost, and told."""
        self._write()
        if self._unwritten:
            self.lost += len(self._unwritten)
            log.error("%d settlements are lost: the store is away, and the disk is full", len(self._unwritten))
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self._waiting and self._path is not None:
                self._path.unlink(missing_ok=True)
        for _, handle in self._adopted:
            os.close(handle)
        self._adopted = []

    # --- details

    def _write(self) -> None:
        """Write what is in no file yet, the oldest first, as far as the disk takes it."""
        try:
            while self._unwritten:
                number, line = next(iter(self._unwritten.items()))
                if self._file < 0:
                    self._create()
                # One write, whole or not at all: what a full disk took of it is cut off again.
                size = os.lseek(self._file, 0, os.SEEK_END)
                if os.write(self._file, line) < len(line):
                    os.ftruncate(self._file, size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                del self._unwritten[number]
                if not self._writable:
                    self._writable = True
                    log.warning("the settlement journal is written again")
        except OSError as error:
            self._ill(error)

    def _ill(self, error: OSError) -> None:
        """Tell it once, until it is well again."""
        if self._writable:
            log.warning("the settlement journal cannot be written (%s): it is kept in memory", error.strerror)
        self._writable = False

    def _create(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        made = path.with_suffix(".new")  # not found by processes that start now: it is nobody's until it is locked
        handle = os.open(made, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.rename(path)
        except OSError:
            os.close(handle)
            made.unlink(missing_ok=True)
            raise
        self._file, self._path = handle, path

    def _adopt(self) -> None:
        for path in sorted(self._folder.glob("*.jsonl")):
            try:
                handle = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue  # a process that starts just now has taken it over, and sent what was in it
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)  # its process lives
                continue
            if os.fstat(handle).st_nlink == 0:
                os.close(handle)  # removed between the two
                continue
            self._read(path)
            self._adopted.append((path, handle))
        if self._waiting:
            log.warning("%d settlements of an earlier run are sent to the store", len(self._waiting))
        else:
            self._emptied()

    def _read(self, path: Path) -> None:
        for line in path.read_bytes().splitlines():
            try:
                told = orjson.loads(line)
                entry = (str(told["tag"]), _current(b64decode(told["command"], validate=True)))
                late = self._clock() - float(told["t"]) > LONGEST_WAIT
            except (ValueError, KeyError, TypeError):
                self.lost += 1  # the last line of a process that was killed while it wrote
                continue
            if late:
                self.lost += 1
                log.error("a settlement of more than a day ago in %s is not sent again; usage misses it", path.name)
                continue
            self._number += 1
            self._waiting[self._number] = entry

    def _emptied(self) -> None:
        for path, handle in self._adopted:
            path.unlink(missing_ok=True)
            os.close(handle)
        self._adopted = []
        if self._file >= 0:
            os.ftruncate(self._file, 0)


def _current(command: bytes) -> bytes:
    """With the names of this version's functions: another version of the router may have written it."""
    return re.sub(rb"settle_[0-9a-f]{8}", name("settle"), command, count=1)


def _sync(file: int) -> None:
    try:
        os.fsync(file)
    except OSError:
        log.debug("the settlement journal could not be synced")
