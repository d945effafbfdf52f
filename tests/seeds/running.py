"""Runs a program of the documents as its reader would, with the text of the file untouched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    pieces: Sequence[tuple[float, bytes]]
    """Standard output as it came: seconds since the start, bytes."""


def run_python(program: Path, *, internet: str = "", fragment: bool = False, seconds: float = 90.0) -> Printed:
    given = ["-c", FRAGMENT, str(program)] if fragment else [str(program)]
    return _run([sys.executable, *given], internet, seconds)


def run_shell(program: Path, *, seconds: float = 90.0) -> Printed:
    need("curl")
    return _run(["bash", str(program)], "", seconds)


def _run(command: Sequence[str], internet: str, seconds: float) -> Printed:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"PYTHONPATH": str(STAND_INS), "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    if internet:
        env["SEEDS_INTERNET"] = internet
    began = time.monotonic()
    pieces: list[tuple[float, bytes]] = []
    limited = ["timeout", f"{seconds:.0f}", *command]
    with subprocess.Popen(limited, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        while data := os.read(running.stdout.fileno(), 65536):
            pieces.append((time.monotonic() - began, data))
        err = running.stderr.read()
    out = b"".join(data for _, data in pieces)
    return Printed(out.decode(), err.decode(), running.returncode, pieces)
