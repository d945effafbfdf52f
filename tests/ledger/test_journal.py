"""The journal of settlements: what was kept comes back after a kill, once; full disks, torn lines and old entries."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from router import journal as journals
from router.functions import fcall, name
from router.journal import LONGEST_WAIT, Journal
from tests.simulators.router import ROOT

NOW = 1_900_000_000.0


def entry(number: int) -> tuple[str, bytes]:
    return "t", fcall("settle", ("sy:{t}:settle",), ("sy:{t}:", f"call{number}", "1", b"\x90", b"\xc0" * 40, ""))


def opened(folder: Path, now: float = NOW) -> Journal:
    made = Journal(folder, lambda: now)
    made.open()
    return made


def files(folder: Path) -> list[Path]:
    return sorted((folder / "journal").iterdir())


def entries(journal: Journal) -> list[tuple[str, bytes]]:
    return [kept for _, kept in journal.waiting(10_000)]


def test_an_end_in_good_order_leaves_what_waits_and_nothing_else(tmp_path: Path) -> None:
    first = opened(tmp_path)
    numbers = [first.add(entry(number)) for number in range(3)]
    first.done(numbers[1])
    assert entries(first) == [entry(0), entry(2)]
    first.close()
    second = opened(tmp_path)
    # What the file says was sent already may come twice: the store knows.
    assert entries(second) == [entry(0), entry(1), entry(2)]
    for number, _ in second.waiting(10):
        second.done(number)
    assert len(second) == 0
    second.close()
    assert files(tmp_path) == []


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.add(entry(0))
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in files(tmp_path)] == [0o600]
    journal.close()


def test_a_file_that_cannot_be_locked_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    journal = opened(tmp_path)
    journal.add(entry(0))
    assert entries(journal) == [entry(0)]
    assert files(tmp_path) == []


PROGRAM = """
import sys, time
from pathlib import Path
from router.journal import Journal
from tests.ledger.test_journal import entry
journal = Journal(Path(sys.argv[1]))
journal.open()
for number in range(int(sys.argv[2])):
    journal.add(entry(number))
print(len(journal), flush=True)
time.sleep(600)
"""


@contextmanager
def elsewhere(folder: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """Another process with that many settlements in its journal."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(count)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == str(count)
            yield process
        finally:
            process.kill()


def test_what_a_killed_process_kept_is_taken_over_by_one(tmp_path: Path) -> None:
    with elsewhere(tmp_path, 5) as process:
        alive = Journal(tmp_path)
        alive.open()
        assert len(alive) == 0, "its process lives"
        process.send_signal(signal.SIGKILL)
        process.wait()
        heir = Journal(tmp_path)
        heir.open()
        assert entries(heir) == [entry(number) for number in range(5)]
        late = Journal(tmp_path)
        late.open()
        assert len(late) == 0, "one takes it over"
        # An heir that dies as well leaves it to the next.
        heir.close()
        next_one = Journal(tmp_path)
        next_one.open()
        assert len(next_one) == 5
        for number, _ in next_one.waiting(10):
            next_one.done(number)
        for journal in (alive, late, next_one):
            journal.close()
    assert files(tmp_path) == []


def test_of_those_that_start_at_once_one_takes_over_and_each_keeps_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the first has sent and removed is nothing that the others may trip over; nor is a file just being made."""
    for turn in range(12):
        folder = tmp_path / str(turn)
        for number in range(6):
            left = opened(folder)
            left.add(entry(number))
            left.close()
        ready = threading.Barrier(6)

        def start(folder: Path = folder, ready: threading.Barrier = ready) -> tuple[Journal, list[tuple[str, bytes]]]:
            journal = Journal(folder, lambda: NOW)
            ready.wait(60)
            journal.open()
            found = entries(journal)
            for number, _ in journal.waiting(10):
                journal.done(number)
            journal.add(entry(99))
            return journal, found

        with ThreadPoolExecutor(6) as pool:
            started = [future.result(120) for future in [pool.submit(start) for _ in range(6)]]
        taken = [one for _, found in started for one in found if one != entry(99)]
        assert sorted(taken) == [entry(number) for number in range(6)]
        assert len(files(folder)) == 6, "each has its own"
        assert {path.read_bytes().count(b"\n") for path in files(folder)} == {1}
        for journal, _ in started:
            journal.close()
    assert caplog.messages == [message for message in caplog.messages if "of an earlier run" in message]


def test_torn_and_foreign_lines(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for number in range(3):
        first.add(entry(number))
    first.close()
    (path,) = files(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[1][: len(lines[1]) // 2]
    junk = [b"\x00\xff\n", b"[]\n", b"null\n", b"7\n", b'{"t": 1}\n', b"\n", b'{"t":"x","tag":"t","command":"AAAA"}\n']
    path.write_bytes(lines[0] + torn + b"\n" + b"".join(junk) + lines[2] + lines[1][:20])
    second = opened(tmp_path)
    assert entries(second) == [entry(0), entry(2)]
    assert second.lost == len(junk) + 2
    second.close()


def test_what_is_too_old_is_told_and_not_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = opened(tmp_path)
    first.add(entry(0))
    first.close()
    second = opened(tmp_path, NOW + LONGEST_WAIT - 1)
    assert len(second) == 1
    second.close()
    third = opened(tmp_path, NOW + LONGEST_WAIT + 1)
    assert (len(third), third.lost) == (0, 1)
    assert "not sent again" in caplog.text
    third.close()
    assert files(tmp_path) == []


def test_an_entry_of_another_version_calls_this_ones_function(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir()
    own = str(name("settle")).encode() if not isinstance(name("settle"), bytes) else name("settle")
    command = entry(0)[1].replace(own, b"settle_0123abcd")
    assert command != entry(0)[1]
    line = {"t": int(NOW), "tag": "t", "command": b64encode(command).decode()}
    (folder / "1-old.jsonl").write_text(json.dumps(line) + "\n")
    journal = opened(tmp_path)
    assert entries(journal) == [entry(0)]
    journal.close()


FULL = """
import json, resource, sys
from pathlib import Path
from router import journal as journals
from tests.ledger.test_journal import entries, entry, opened
journals.MOST_IN_MEMORY = 3
journal = opened(Path(sys.argv[1]))
journal.add(entry(0))
size = sum(path.stat().st_size for path in Path(sys.argv[1], "journal").iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 + size // 2, resource.RLIM_INFINITY))
told = []
for number in range(1, 5):
    journal.add(entry(number))
    told.append([len(journal), journal.full])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
numbers = [number for number, _ in journal.waiting(10)]
for number in numbers:
    journal.done(number)
told.append([len(journal), journal.full])
journal.add(entry(7))
print(json.dumps(told))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """What does not fit waits in memory, to a bound; what lies on the disk stays readable to the last line."""
    said = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    told = json.loads(said.stdout)
    assert told == [[2, False], [3, False], [4, False], [5, True], [0, False]]
    heir = opened(tmp_path)
    assert entries(heir) == [entry(7)]
    assert heir.lost == 0
    heir.close()


def test_half_of_a_line_is_cut_off_again(tmp_path: Path) -> None:
    """Killed while the disk is full: the whole lines are there, and no half one between them."""
    program = FULL.partition("resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY")[0]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, timeout=120, check=True)
    heir = opened(tmp_path)
    assert entries(heir) == [entry(0), entry(1)]
    assert heir.lost == 0
    heir.close()


ROOM_AGAIN = (
    FULL.partition("resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY")[0]
    + """
at = sys.argv[2]
if at != "never":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if at == "pace":
    import asyncio
    asyncio.run(journal.sync())
    journal.add(entry(5))
else:
    journal.close()
print(json.dumps([len(journal), journal.full, journal.lost]))
"""
)
UNWRITTEN = "the settlement journal cannot be written (No space left on device): it is kept in memory"
AGAIN = "the settlement journal is written again"


@pytest.mark.parametrize(
    ("at", "told", "kept", "said"),
    [
        pytest.param("pace", [6, False, 0], [0, 1, 2, 3, 4, 5], [UNWRITTEN, AGAIN], id="while it runs, then killed"),
        pytest.param("end", [5, False, 0], [0, 1, 2, 3, 4], [UNWRITTEN, AGAIN], id="just before the end"),
        pytest.param(
            "never",
            [5, True, 3],
            [0, 1],
            [UNWRITTEN, "3 settlements are lost: the store is away, and the disk is full"],
            id="never",
        ),
    ],
)
def test_a_disk_that_has_room_again(
    tmp_path: Path, at: str, told: list[object], kept: list[int], said: list[str]
) -> None:
    """What waited in memory is written, in its order and with its time, and nothing is lost without a word."""
    program = [sys.executable, "-c", ROOM_AGAIN, str(tmp_path), at]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(ran.stdout) == told
    assert ran.stderr.splitlines() == said
    heir = opened(tmp_path)
    assert entries(heir) == [entry(number) for number in kept]
    assert heir.lost == 0
    heir.close()


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "journal").write_text("a file")
    journal = opened(tmp_path)
    assert "kept in memory" in caplog.text
    journal.add(entry(0))
    assert entries(journal) == [entry(0)]
    assert not journal.full
    (tmp_path / "journal").unlink()
    asyncio.run(journal.sync())
    journal.close()
    assert entries(opened(tmp_path)) == [entry(0)]


def test_beyond_the_bound_calls_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "MOST_IN_MEMORY", 2)
    (tmp_path / "journal").write_text("a file")
    journal = opened(tmp_path)
    numbers = [journal.add(entry(number)) for number in range(2)]
    full = [journal.full]
    for number in numbers:
        journal.done(number)
    full.append(journal.full)
    assert full == [True, False]
    journal.close()


def test_one_that_the_server_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    first, second = (journal.add(("t", command)) for command in (b"refused", b"good"))
    journal.defer(first)
    assert entries(journal) == [("t", b"good"), ("t", b"refused")]
    journal.defer(99)
    journal.done(second)
    assert entries(journal) == [("t", b"refused")]
    journal.close()
