"""Values of metrics in files that outlive the process: what several workers counted can be added up, also by one of
them after another was killed.

The files are prometheus-client's own multi-process files, which its MultiProcessCollector reads, with two differences.
They belong to a worker's number and not to its pid, so that a replaced worker goes on counting where the last one
stopped, and there are never more of them. And a value is a cell of the mapped file, so that counting is one store into
memory: no lock, for only the event loop's thread counts; no key to look up.

A file is a 4-byte length of what is used, 4 bytes of nothing, then entries: 4-byte length of the key, the key (JSON),
spaces up to a multiple of 8, the value and a time stamp (always 0) as doubles.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

KINDS: Final = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemin")
SMALLEST: Final = 1 << 16
"""Bytes of a new file; it doubles when it is full."""

_USED: Final = struct.Struct("=i")
_HEAD: Final = 8


class _File:
    """One mapped file. Raises OSError."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            # Complete from the first moment: other workers read whatever is there.
            made = path.with_name(f".{path.name}")
            made.write_bytes(_USED.pack(_HEAD).ljust(SMALLEST, b"\0"))
            made.replace(path)
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map(os.fstat(self._handle).st_size)
        self._places: dict[str, int] = {}
        self._used: int = _USED.unpack_from(self._bytes)[0]
        at = _HEAD
        while at < self._used:
            length = _USED.unpack_from(self._bytes, at)[0]
            key = self._bytes[at + 4 : at + 4 + length].decode()
            at += _padded(length)
            self._places[key] = at // 8
            at += 16

    def cell(self, key: str) -> tuple[memoryview[float], int]:
        """The doubles of the file and which of them is this key's value; it is added when it is new."""
        place = self._places.get(key)
        if place is None:
            data = key.encode()
            entry = (_USED.pack(len(data)) + data).ljust(_padded(len(data)), b" ") + bytes(16)
            if self._used + len(entry) > self._size:
                os.ftruncate(self._handle, self._size * 2)
                # Cells of the old mapping stay good: both show the same file.
                self._map(self._size * 2)
            self._bytes[self._used : self._used + len(entry)] = entry
            place = self._places[key] = (self._used + len(entry)) // 8 - 2
            # Last, so that a reader, or a successor if this process is killed now, sees whole entries only.
            self._used += len(entry)
            self._bytes[:4] = _USED.pack(self._used)
        return self._doubles, place

    def _map(self, size: int) -> None:
        self._size = size
        self._bytes = mmap.mmap(self._handle, size)
        self._doubles = memoryview(self._bytes).cast("d")


def _padded(length: int) -> int:
    """Bytes of an entry before its value: prometheus-client adds 1 to 8 spaces."""
    return 4 + length + 8 - (length + 4) % 8


class Value:
    """One number, in the shape that prometheus-client's metrics want. Not thread-safe."""

    __slots__ = ("_cells", "_place", "_value")

    def __init__(self, cells: memoryview[float], place: int) -> None:
        self._cells = cells
        self._place = place
        self._value: float = cells[place]

    def inc(self, amount: float) -> None:
        self._value += amount
        self._cells[self._place] = self._value

    def set(self, value: float, timestamp: float | None = None) -> None:
        self._value = value
        self._cells[self._place] = value

    def get(self) -> float:
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """The files hold none."""

    def get_exemplar(self) -> None:
        return None


class Files:
    """The files of worker `number` below `directory`, and the sum of all workers'. Raises OSError when made."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._files = {kind: _File(directory / f"{kind}_{number}.db") for kind in KINDS}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Metrics made inside, and new sets of labels of any metric, keep their values in these files."""
        before: Any = values.ValueClass
        values.ValueClass = self._value  # the library's own switch
        try:
            yield
        finally:
            values.ValueClass = before

    def _value(
        self,
        kind: str,
        metric: str,
        name: str,
        label_names: Sequence[str],
        label_values: Sequence[str],
        text: str,
        multiprocess_mode: str = "",
        **_: object,
    ) -> Value:
        """What the library calls for each number that it wants kept."""
        if kind == "gauge":
            kind = f"gauge_{multiprocess_mode}"
        key = mmap_key(metric, name, list(label_names), list(label_values), text)
        return Value(*self._files[kind].cell(key))

    def render(self) -> bytes:
        """The text format, all workers added up."""
        registry = CollectorRegistry(auto_describe=False)
        MultiProcessCollector(registry, str(self._directory))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
