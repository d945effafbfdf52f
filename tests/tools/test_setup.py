"""The lock files are what pyproject.toml asks for, and make says what is missing."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import setup_env
from tools.check_docs import ROOT

LOCKS = ("requirements.lock", "docker/requirements-slim.lock")
REFUSED = {"1.82.7", "1.82.8", "1.107.0"}  # litellm: two with stolen credentials, one broken


def entries(lock: str) -> Iterator[tuple[str, str, int]]:
    """Name, version and number of hashes of each package in a lock."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if found := re.match(r"([a-z0-9-]+)==(\S+)", line):
            yield found[1], found[2], line.count("--hash=sha256:")
        else:
            assert line.startswith("#"), line


def wanted() -> tuple[set[str], set[str]]:
    """The names that pyproject.toml asks for: at run time, and for everything else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    more = [*project["project"]["optional-dependencies"]["demo"], *project["dependency-groups"]["dev"]]
    return _names(project["project"]["dependencies"]), _names(more)


def _names(lines: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in lines}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_with_hashes(lock: str) -> None:
    locked = list(entries(lock))
    assert len(locked) > 20
    assert [name for name, _, hashes in locked if not hashes] == []
    assert "://" not in (ROOT / lock).read_text()


def test_the_locks_are_current() -> None:
    runtime, more = wanted()
    full, slim = ({name: version for name, version, _ in entries(lock)} for lock in LOCKS)
    assert runtime | more <= full.keys(), "run make lock"
    assert runtime - {"litellm"} <= slim.keys(), "run make lock"
    assert "litellm" not in slim
    assert slim.items() <= full.items()


def test_litellm_is_a_release_that_may_be_used() -> None:
    versions = {version for name, version, _ in entries("requirements.lock") if name == "litellm"}
    assert len(versions) == 1
    assert not versions & REFUSED


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_help_lists_the_targets() -> None:
    said = make()
    assert said.returncode == 0
    for target in ("serve", "test", "check", "bench", "lock", "clean", "help"):
        assert re.search(rf"^  {target} +\w", said.stdout, re.MULTILINE), target


def test_a_missing_python_is_named() -> None:
    said = make("serve", "PYTHON=")
    assert said.returncode != 0
    assert "Python 3.11 is missing" in said.stderr
    assert "make PYTHON=/path/to/python3.11 serve" in said.stderr


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The set-up tool pointed at an empty folder that has a whole environment, made from `a` and `b`."""
    for name, place in {
        "VENV": ".venv",
        "PYTHON": ".venv/python",
        "STAMP": ".venv/stamp",
        "INCOMPLETE": "half",
    }.items():
        monkeypatch.setattr(setup_env, name, tmp_path / place)
    (tmp_path / ".venv").mkdir()
    setup_env.PYTHON.touch()
    setup_env.STAMP.write_text("a\nb")
    return tmp_path


def test_a_whole_environment_is_left_alone(environment: Path) -> None:
    assert setup_env.installed() == ("a", "b")


@pytest.mark.parametrize("lost", ["stamp", "python"])
def test_an_environment_that_is_not_whole_counts_as_none(environment: Path, lost: str) -> None:
    (environment / ".venv" / lost).unlink()
    assert setup_env.installed() == ()


@pytest.mark.parametrize(("failures", "whole"), [(0, True), (2, True), (3, False)])
def test_a_download_that_breaks_is_tried_again(
    environment: Path, monkeypatch: pytest.MonkeyPatch, failures: int, whole: bool
) -> None:
    tries = 0

    def pip(*_: str, packages: int) -> None:
        nonlocal tries
        tries += 1
        if tries <= failures:
            raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(setup_env, "works", lambda _: True)
    monkeypatch.setattr(setup_env, "pip", pip)
    monkeypatch.setattr(setup_env, "PAUSES", (0.0, 0.0))
    if whole:
        setup_env.install_lock()
    else:
        with pytest.raises(subprocess.CalledProcessError):
            setup_env.install_lock()
    assert tries == min(failures + 1, 3)
    assert setup_env.INCOMPLETE.exists(), "it is whole once the project is installed, too"


def test_an_interrupted_install_counts_as_none(environment: Path) -> None:
    setup_env.INCOMPLETE.touch()
    assert setup_env.installed() == ()
