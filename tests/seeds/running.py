"""Runs a program of the documents as its reader would, with the text of the file untouched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from tests.simulators.programs import need

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
STAND_INS = HERE / "stand_ins"

FRAGMENT = """
import base64, json, sys
from io import BytesIO
import requests
from PIL import Image
exec(compile(open(sys.argv[1], encoding="utf-8").read(), sys.argv[1], "exec"))
test_image()
"""
"""The document shows the image program as functions alone: this supplies the imports and the call."""


@dataclass(frozen=True, slots=True)
class Printed:
    out: str
    err: str
    code: int
    pieces: Sequence[tuple[float, int]] = ()
    """What a Python program wrote to standard output piece by piece: by its monotonic clock, in bytes."""


def run_python(program: Path, *, internet: str = "", fragment: bool = False, seconds: float = 300.0) -> Printed:
    given = ["-c", FRAGMENT, str(program)] if fragment else [str(program)]
    return _run([sys.executable, *given], internet, seconds)


def run_shell(program: Path, *, seconds: float = 300.0) -> Printed:
    need("curl")
    return _run(["bash", str(program)], "", seconds)


def _run(command: Sequence[str], internet: str, seconds: float) -> Printed:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"PYTHONPATH": str(STAND_INS), "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    if internet:
        env["SEEDS_INTERNET"] = internet
    with NamedTemporaryFile("r") as told:
        env["SEEDS_WRITES"] = told.name
        done = subprocess.run(["timeout", f"{seconds:.0f}", *command], env=env, capture_output=True, check=False)
        pieces = [(float(at), int(size)) for at, size in map(str.split, told) if int(size)]
    return Printed(done.stdout.decode(), done.stderr.decode(), done.returncode, pieces)
