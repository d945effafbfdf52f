"""The command itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo_traffic.__main__ import main

ROOT = Path(__file__).parents[2]


def test_it_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--seconds", "--keep", "--prometheus", "make demo-traffic"):
        assert word in said


@pytest.mark.parametrize(
    "arguments", [["--seconds", "5"], ["--seconds", "nan"], ["--pace", "0"], ["--port", "http"], ["--port", "0"]]
)
def test_what_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_beginning_to_end() -> None:
    command = [sys.executable, "-m", "tests.demo_traffic", "--seconds", "15", "--no-demo-model"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    assert "/admin" in made.stdout
    assert "say the same" in made.stdout
    assert "Traceback" not in made.stderr
