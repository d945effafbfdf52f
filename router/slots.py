"""The places of worker processes: their numbers, the directory that they share, and what each says of its config.

A worker keeps its number for as long as the router runs: one that replaces another takes over its number and its files.
The directory is `data_dir/workers/<random>`, private, made and removed by the process that starts the workers:

    lock              held by that process, and as old; a directory whose lock is free was left by one that was killed
    config.yaml       the config in force, as the file held it and as old as it is in force: a worker started later
                      begins with the same
    refused           why the file was refused when it was last read, for all workers; empty when it was not
    ended             how many workers have ended unasked since the router's start
    worker-N.json     {"pid", "config" (digest)}: what worker N says once it serves, removed when it ends
    <kind>_N.db       numbers of metrics (see router.metrics_files); those of gauges go when worker N ends
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "SWITCHYARD_WORKER"
"""Set for a worker: its number, how many there are, and the directory, as `0/4/path`."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker says of itself. config: digest of the config in force."""

    pid: int
    config: str


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one worker: `number` of `count`, from 0. A router that is one process has no directory."""

    number: int = 0
    count: int = 1
    directory: Path | None = None

    def share(self, amount: int) -> int:
        """This worker's part of `amount` places. All parts make up the amount; where there are fewer places than
        workers each has one all the same, so that none is cut off."""
        part, rest = divmod(amount, self.count)
        return max(1, part + (self.number < rest))

    def tell(self, told: Told) -> None:
        """Say that this worker serves, and with which config."""
        if self.directory is not None:
            with contextlib.suppress(OSError):  # a full disk: the worker serves all the same
                _write(self.directory / f"worker-{self.number}.json", json.dumps(asdict(told)).encode())

    def told(self) -> dict[int, Told]:
        """What the workers that serve now say, by number. Empty for a router that is one process."""
        return told_in(self.directory) if self.directory is not None else {}

    @property
    def config_copy(self) -> Path | None:
        return self.directory / "config.yaml" if self.directory is not None else None

    def behind(self, data: bytes) -> bool:
        """Whether the config in force is not the file's text `data` any more."""
        try:
            return self.config_copy is not None and self.config_copy.read_bytes() != data
        except OSError:  # the parent is ending
            return False

    def refused(self) -> str | None:
        """Why the parent refused the file when it last read it."""
        if self.directory is not None:
            with contextlib.suppress(OSError):  # the parent is ending
                return (self.directory / _REFUSED).read_text("utf-8") or None
        return None

    def ended(self) -> int | None:
        """How many workers have ended unasked since the router's start; None where that cannot be read."""
        if self.directory is None:
            return 0
        with contextlib.suppress(OSError, ValueError):  # the parent is ending
            return int((self.directory / _ENDED).read_bytes())
        return None

    def router_since(self) -> float | None:
        """When the first process made the directory."""
        return _age(self.directory / _LOCK) if self.directory is not None else None

    def config_since(self) -> float | None:
        """Since when the config is in force that a worker begins with."""
        return _age(self.config_copy) if self.config_copy is not None else None

    def variable(self) -> str:
        return f"{self.number}/{self.count}/{self.directory}"


ALONE: Final = Slot()


def inherited_slot(environ: MutableMapping[str, str]) -> Slot:
    """The place that a parent gave this process. What this one starts has none."""
    text = environ.pop(VARIABLE, "")
    if not text:
        return ALONE
    number, count, directory = text.split("/", 2)
    return Slot(int(number), int(count), Path(directory))


def told_in(directory: Path) -> dict[int, Told]:
    found = {}
    for path in sorted(directory.glob("worker-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # removed just now
            found[int(path.stem.rpartition("-")[2])] = Told(**json.loads(path.read_bytes()))
    return found


def disagreement(told: Mapping[int, Told]) -> str | None:
    """That workers have different configs in force, in words."""
    configs = {one.config for one in told.values()}
    if len(configs) < 2:
        return None
    each = ", ".join(f"{number}: {one.config}" for number, one in sorted(told.items()))
    return f"the workers have different configs ({each}): reload with SIGHUP"


class SlotDirectory:
    """The parent's side: makes the directory, and clears up after workers that ended. Raises OSError when made."""

    def __init__(self, data_dir: Path) -> None:
        home = Path(os.path.abspath(data_dir)) / "workers"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(home)
        made = Path(tempfile.mkdtemp(prefix=_NEW, dir=home))
        _write(made / _ENDED, b"0")
        self._ended = 0
        self._lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = made.rename(home / made.name.removeprefix(_NEW))

    def slot(self, number: int, count: int) -> Slot:
        return Slot(number, count, self.path)

    def keep_config(self, data: bytes, since: float, refused: str | None = None) -> None:
        """Workers that start from now on begin with this config, in force since then; refused: why a later one is not,
        which all workers tell from now on. Raises OSError."""
        _write(self.path / "config.yaml", data, since)
        _write(self.path / _REFUSED, (refused or "").encode(errors="replace"))

    def serving(self) -> frozenset[int]:
        """Process ids of the workers that said they serve."""
        return frozenset(one.pid for one in told_in(self.path).values())

    def clear(self, number: int) -> None:
        """Worker `number` has ended: what it said of the present holds no longer. What it counted stays."""
        for path in (self.path / f"worker-{number}.json", self.path / f"gauge_{number}.db"):
            with contextlib.suppress(OSError):
                path.unlink()

    def ended_unasked(self) -> None:
        """A worker has ended that nobody had asked to: all workers tell how many that were."""
        self._ended += 1
        with contextlib.suppress(OSError):  # a full disk: the next time tells of this one, too
            _write(self.path / _ENDED, str(self._ended).encode())

    def close(self) -> None:
        """Remove it. Workers have ended."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


_NEW: Final = "new-"
_LOCK: Final = "lock"
_REFUSED: Final = "refused"
_ENDED: Final = "ended"


def _age(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # the parent is ending
        return None


def _write(path: Path, data: bytes, since: float | None = None) -> None:
    """Whole or not at all, for this user alone, and as old as is said."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        if since is not None:
            os.utime(name, (since, since))
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _sweep(home: Path) -> None:
    """Remove what parents left that were killed: nobody holds the lock."""
    for left in home.iterdir():
        if left.name.startswith(_NEW):
            continue  # another parent is making it just now
        try:
            handle = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # none of ours
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # its parent lives
        finally:
            os.close(handle)
