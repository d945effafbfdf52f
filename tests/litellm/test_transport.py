"""Runs `case_transport.py` in a process of its own: litellm takes seconds and 160 MB, warns, and starts threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_litellm_for_real() -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.endswith(("_API_KEY", "_proxy", "_PROXY"))
    }
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "default",
            "-p",
            "no:cacheprovider",
            "tests/litellm/case_transport.py",
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=900,
    )
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
