"""Virtual environments for clients that cannot share ours: made on first use under .clients/ from a hashed lock, kept
as long as the lock stays as it is.

The first line of a lock says what was asked for. To make one again:

    echo 'openai>=3.54' | uv pip compile - --universal --python-version 3.11 --generate-hashes --no-emit-index-url \\
      --no-header --no-annotate
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.clients.desk import Desk
from tests.simulators.router import ROOT

HERE = Path(__file__).parent
KEPT = ROOT / ".clients"
INSTALL_SECONDS = 600.0


def environment(name: str) -> Path:
    """The Python of the environment with `requirements-NAME.lock` installed."""
    lock = HERE / f"requirements-{name}.lock"
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode() + str(ROOT).encode()).hexdigest()
    folder = KEPT / name
    stamp = folder / ".stamp"
    python = folder / "bin" / "python"
    KEPT.mkdir(exist_ok=True)
    with (KEPT / f"{name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if python.exists() and stamp.exists() and stamp.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "--disable-pip-version-check",
            "--no-input",
            "--retries=10",
        ]
        _run(*pip, "install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(lock))
        stamp.write_text(wanted)
    return python


def tour(name: str, desk: Desk, seconds: float = 400.0) -> Mapping[str, str | None]:
    """Run `tests.clients.NAME_tour` in the environment NAME: what each of its checks came to, None when it is well."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    done = subprocess.run(
        [environment(name), "-m", f"tests.clients.{name}_tour"],
        cwd=ROOT,
        env={**{key: os.environ[key] for key in kept if key in os.environ}, "PYTHONPATH": str(ROOT)},
        input=desk.to_json(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {found["check"]: found["problem"] for found in map(json.loads, done.stdout.splitlines())}


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
