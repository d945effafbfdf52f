"""Where the numbers of metrics are: in memory, or with several workers in files that outlive the process, so that what
all of them counted can be added up by any of them, also after another one was killed.

A file belongs to a worker's number and not to its pid: a worker that replaces another goes on counting where that one
stopped, there are never more files, and a pid that is used again means nothing. The file of gauges (`gauge_N.db`) is
removed by the parent when worker N has ended; that of counters and histograms (`counter_N.db`) stays while the router
runs.

A number is a cell of the mapped file: counting is one load and one store of 8 aligned bytes, without a lock, for only
the event loop's thread of one process writes. A file is a 4-byte length of what is used, 4 bytes of nothing, then
entries: two 4-byte numbers (bytes of the key, how many cells), the key, zeros up to a multiple of 8, the cells as
doubles. The length grows after an entry is whole: readers, and a successor of who was killed just then, never see a
part of one.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

SMALLEST: Final = 1 << 16
"""Bytes of a new file; it doubles when it is full."""
KINDS: Final = ("counter", "gauge")

_log = logging.getLogger("switchyard.metrics")

_USED: Final = struct.Struct("=i")
_ENTRY: Final = struct.Struct("=ii")
_HEAD: Final = 8
_CHUNK: Final = 1 << 12
_LOOKS: Final = 5
"""A file may grow, or be replaced, while it is looked at."""


class Entry(NamedTuple):
    """The cells of one set of labels: `cells[place:place + size]`."""

    key: str
    cells: memoryview[float]
    place: int


class Source(Protocol):
    """Where entries are read: they come to be and stay."""

    entries: list[Entry]


class Memory:
    """Numbers of a process that is alone."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._known: dict[str, Entry] = {}
        self._free: memoryview[float] = memoryview(bytearray(8 * _CHUNK)).cast("d")
        self._used = 0

    def entry(self, key: str, size: int) -> Entry:
        found = self._known.get(key)
        if found is None:
            if self._used + size > _CHUNK:
                self._free, self._used = memoryview(bytearray(8 * _CHUNK)).cast("d"), 0
            found = self._known[key] = Entry(key, self._free, self._used)
            self._used += size
            self.entries.append(found)
        return found


class File:
    """One mapped file that this process writes. Raises OSError."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            # Complete from the first moment: other workers read whatever is there.
            made = path.with_name(f".{path.name}")
            made.touch(0o600)
            made.write_bytes(_USED.pack(_HEAD).ljust(SMALLEST, b"\0"))
            made.replace(path)
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map(os.fstat(self._handle).st_size)
        self._used: int = _USED.unpack_from(self._bytes)[0]
        self.entries = list(_entries(self._bytes, self._doubles, _HEAD, self._used))
        self._known = {entry.key: entry for entry in self.entries}
        self._nowhere = Memory()

    def entry(self, key: str, size: int) -> Entry:
        """The cells of a key; they are added, with zeros in them, when it is new."""
        found = self._known.get(key)
        if found is None:
            data = key.encode(errors="replace")
            head = (_ENTRY.pack(len(data), size) + data).ljust(_padded(len(data)), b"\0")
            whole = len(head) + 8 * size
            while self._used + whole > self._size:
                try:
                    _extend(self._handle, self._size, self._size * 2)
                except OSError as error:  # the disk is full: calls go on, this set of labels is not counted
                    if not self._nowhere.entries:
                        _log.warning("some metrics are not counted, their file cannot grow: %s", error.strerror)
                    found = self._known[key] = self._nowhere.entry(key, size)
                    return found
                # Cells of the old mapping stay good: both show the same file.
                self._map(self._size * 2)
            self._bytes[self._used : self._used + whole] = head + bytes(8 * size)
            found = self._known[key] = Entry(key, self._doubles, (self._used + len(head)) // 8)
            self._used += whole
            self._bytes[:4] = _USED.pack(self._used)
            self.entries.append(found)
        return found

    def _map(self, size: int) -> None:
        self._size = size
        self._bytes = mmap.mmap(self._handle, size)
        self._doubles = memoryview(self._bytes).cast("d")


class Other:
    """The file of another worker, read on from where the last look stopped. One that was removed has no entries; one
    that was made anew is read from its beginning. `turn` counts these changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self._read = _HEAD
        self._bytes: mmap.mmap | None = None
        self._doubles: memoryview[float] = memoryview(b"").cast("d")
        self.entries: list[Entry] = []
        self.turn = 0

    def look(self) -> None:
        """Read what is new."""
        for _ in range(_LOOKS):
            try:
                found = os.stat(self._path)
            except OSError:
                self._forget(None)
                return
            if (found.st_dev, found.st_ino) != self._identity:
                self._forget((found.st_dev, found.st_ino))
            if found.st_size != self._size and not self._map(found):
                continue
            assert self._bytes is not None
            used: int = _USED.unpack_from(self._bytes)[0]
            if used <= self._size:  # else it has grown since
                self.entries += _entries(self._bytes, self._doubles, self._read, used)
                self._read = used
                return

    def _map(self, found: os.stat_result) -> bool:
        """Whether the file is still the one that was found."""
        try:
            with open(self._path, "rb") as file:
                if os.fstat(file.fileno()).st_ino != found.st_ino:
                    return False
                self._bytes = mmap.mmap(file.fileno(), found.st_size, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            return False
        self._doubles = memoryview(self._bytes).cast("d")
        self._size = found.st_size
        return True

    def _forget(self, identity: tuple[int, int] | None) -> None:
        if identity is None and self._identity is None:
            return
        self._identity, self._size, self._read, self._bytes = identity, 0, _HEAD, None
        self.entries = []
        self.turn += 1


def _entries(data: mmap.mmap, doubles: memoryview[float], at: int, end: int) -> Iterator[Entry]:
    while at < end:
        length, size = _ENTRY.unpack_from(data, at)
        key = data[at + 8 : at + 8 + length].decode(errors="replace")
        at += _padded(length)
        yield Entry(key, doubles, at // 8)
        at += 8 * size


def _extend(handle: int, old: int, new: int) -> None:
    """With room on the disk, where the system can say so: a write into a mapped hole of a full disk kills the process.
    Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, old, new - old)
    else:
        os.ftruncate(handle, new)


def _padded(length: int) -> int:
    """Bytes of an entry before its cells."""
    return 8 + -(-length // 8) * 8


class Shelf:
    """All numbers of one kind (`counter` or `gauge`): this worker's own, which it writes, and those of the others."""

    def __init__(self, kind: str, directory: Path | None, number: int, count: int) -> None:
        """Raises OSError when the file cannot be made."""
        self._others: list[Other] = []
        self.own: Memory | File
        if directory is None:
            self.own = Memory()
            return
        self.own = File(directory / f"{kind}_{number}.db")
        self._others = [Other(directory / f"{kind}_{other}.db") for other in range(count) if other != number]

    def look(self) -> tuple[Sequence[Source], tuple[int, ...]]:
        """Where to read, and marks that change when entries that were read before count no longer."""
        for other in self._others:
            other.look()
        return [self.own, *self._others], tuple(other.turn for other in self._others)
