"""Joining and checking, with small parts in place of the real ones."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from router import local_weights
from router.local_weights import FILE, Source, WeightsError, ensure

PIECES = (b"a" * 3000, b"b" * 5000, b"c")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, piece in enumerate(PIECES):
        (folder / str(number)).write_bytes(piece)
    whole = b"".join(PIECES)
    return Source(tuple(folder / str(n) for n in range(3)), len(whole), hashlib.sha256(whole).hexdigest())


def quiet(share: float, what: str) -> None:
    assert 0 <= share <= 1
    assert what


def test_the_parts_are_joined_in_order(tmp_path: Path, source: Source) -> None:
    path = ensure(tmp_path / "demo", source, quiet)
    assert path.read_bytes() == b"".join(PIECES)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [FILE, f"{FILE}.checked", "weights.lock"]


def test_a_second_start_reads_nothing(tmp_path: Path, source: Source) -> None:
    path = ensure(tmp_path / "demo", source, quiet)
    for part in source.parts:
        part.unlink()
    calls: list[float] = []
    assert ensure(tmp_path / "demo", source, lambda share, _: calls.append(share)) == path
    assert calls == []


def test_a_changed_file_is_made_anew(tmp_path: Path, source: Source) -> None:
    path = ensure(tmp_path / "demo", source, quiet)
    path.write_bytes(b"x" * source.size)
    ensure(tmp_path / "demo", source, quiet)
    assert path.read_bytes() == b"".join(PIECES)


def test_a_copied_file_is_checked_and_kept(tmp_path: Path, source: Source) -> None:
    path = ensure(tmp_path / "demo", source, quiet)
    (tmp_path / "demo" / f"{FILE}.checked").unlink()
    for part in source.parts:
        part.unlink()
    assert ensure(tmp_path / "demo", source, quiet) == path


def test_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path: Path, source: Source) -> None:
    source.parts[1].write_bytes(b"B" * 5000)
    with pytest.raises(WeightsError, match=r"checksum is wrong.*force-reinstall"):
        ensure(tmp_path / "demo", source, quiet)
    assert [entry.name for entry in (tmp_path / "demo").iterdir()] == ["weights.lock"]


def test_a_full_disk_is_named(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(WeightsError, match=r"not enough disk space in .*need 16 MB, 0 MB are free"):
        ensure(tmp_path / "demo", source, quiet)


def test_rests_of_a_killed_start_are_removed(tmp_path: Path, source: Source) -> None:
    (tmp_path / "demo").mkdir()
    rest = tmp_path / "demo" / f"{FILE}.123.tmp"
    rest.write_bytes(b"half")
    ensure(tmp_path / "demo", source, quiet)
    assert not rest.exists()


def test_starts_at_the_same_time_agree(tmp_path: Path, source: Source) -> None:
    program = (
        "import sys; from pathlib import Path; from router.local_weights import Source, ensure\n"
        "parts = tuple(map(Path, sys.argv[4:]))\n"
        "ensure(Path(sys.argv[1]), Source(parts, int(sys.argv[2]), sys.argv[3]), lambda *_: None)\n"
    )
    words = [str(tmp_path / "demo"), str(source.size), source.sha256, *map(str, source.parts)]
    starts = [subprocess.Popen([sys.executable, "-c", program, *words], env={**os.environ}) for _ in range(4)]
    assert [start.wait(120) for start in starts] == [0, 0, 0, 0]
    assert (tmp_path / "demo" / FILE).read_bytes() == b"".join(PIECES)


def test_the_installed_parts_are_the_pinned_ones() -> None:
    source = local_weights.packaged()
    assert local_weights.missing() is None
    assert sum(part.stat().st_size for part in source.parts) == local_weights.SIZE
