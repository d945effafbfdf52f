"""Programs of the machine that some tests run."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str) -> None:
    """Skip the test on a machine without the program; where CI is set, its absence is a failure."""
    if shutil.which(program) is not None:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI has to install {program}")
    pytest.skip(f"needs the program {program}")
