"""Make .venv from the hashed lock, once, and leave it alone while it is current.

Run by `make` with the machine's own Python 3.11; needs the standard library alone. The lock is installed with
`pip --require-hashes`, so a changed file on the index is refused; then the project itself is installed editable, which
gives `.venv/bin/switchyard`.

What a stranger must be able to rely on:

- Nothing to do costs milliseconds and no network: `.venv/.switchyard-stamp` holds the digests of the lock and of
  pyproject.toml.
- An interrupted install heals: `.venv-incomplete` is there from before an environment of ours is touched until it is
  whole, and while it is there the next run starts over. An environment that someone else made is added to, never
  deleted.
- A download that breaks is tried again, twice.
- Two runs at once wait for each other (a lock on `.venv.lock`).
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".switchyard-stamp"
INCOMPLETE = ROOT / ".venv-incomplete"
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
PAUSES = (5.0, 20.0)
"""Seconds before each further try to download: an index may be out of reach for a moment, a connection may break."""


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def digest(path: Path) -> str:
    # With the place: an environment does not survive being moved.
    return hashlib.sha256(path.read_bytes() + str(ROOT).encode()).hexdigest()


def installed() -> tuple[str, ...]:
    """The digests of what the environment was made from, or nothing where there is no whole environment of ours."""
    whole = STAMP.is_file() and PYTHON.exists() and not INCOMPLETE.exists()
    return tuple(STAMP.read_text().split()) if whole else ()


def works(python: Path) -> bool:
    """Whether the environment's Python starts and has pip; a moved or upgraded base Python leaves one that does not."""
    if not python.exists():
        return False
    return subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def pip(*arguments: str, packages: int = 0) -> None:
    """Run pip, showing what it is at instead of its several hundred lines; those are printed when it fails."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    said: list[str] = []
    done = 0
    wide = sys.stderr.isatty()
    with subprocess.Popen(
        [*command, "--progress-bar", "off"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            said.append(line)
            if line.startswith("Collecting "):
                done += 1
                name = line.split()[1]
                if wide:
                    print(f"\r\033[Ksetup: {done}/{packages} {name}", end="", file=sys.stderr, flush=True)
                elif done % 20 == 0:
                    say(f"{done}/{packages} {name}")
            elif line.startswith("Installing collected packages"):
                print("\r\033[K" if wide else "", end="", file=sys.stderr)
                say("all downloaded and checked; unpacking")
    if running.returncode:
        print("".join(said[-40:]), file=sys.stderr)
        raise subprocess.CalledProcessError(running.returncode, command)


def install_lock() -> None:
    if INCOMPLETE.exists() or not works(PYTHON):
        if VENV.exists():
            say("the environment in .venv is not whole; making it again")
            shutil.rmtree(VENV)
        INCOMPLETE.touch()
        say(f"making .venv with Python {sys.version.split()[0]}")
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
        if made.returncode:
            print(made.stdout, made.stderr, file=sys.stderr)
            raise SystemExit(
                "setup: this Python cannot make a virtual environment. "
                "On Debian and Ubuntu install the package python3-venv, then run make again."
            )
    elif STAMP.exists():  # ours; half an upgrade is no environment either
        INCOMPLETE.touch()
    packages = sum(1 for line in LOCK.read_text().splitlines() if line and line[0] not in " #")
    say(f"installing {packages} packages with checked hashes (the first time: about 500 MB and a few minutes)")
    wanted = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(LOCK))
    for pause in (*PAUSES, None):
        try:
            pip(*wanted, packages=packages)
            break
        except subprocess.CalledProcessError:
            if pause is None:
                raise
            say(f"trying again in {pause:g} s; what has come already is kept")
            time.sleep(pause)


def build(wanted: tuple[str, str]) -> None:
    started = time.monotonic()
    if installed()[:1] != wanted[:1]:
        install_lock()
    say("installing switchyard itself (editable)")
    pip("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
    STAMP.write_text("\n".join(wanted))
    INCOMPLETE.unlink(missing_ok=True)
    say(f"ready after {time.monotonic() - started:.0f} s")


def main() -> None:
    wanted = (digest(LOCK), digest(PROJECT))
    if installed() == wanted:
        return
    with (ROOT / ".venv.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if installed() == wanted:  # another run made it while we waited
            return
        try:
            build(wanted)
        except subprocess.CalledProcessError as failed:
            raise SystemExit(
                f"setup: pip ended with {failed.returncode}; what it said is above. "
                "The first set-up needs to reach the package index; run make again to go on."
            ) from failed


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nsetup: interrupted; the next make starts over") from None
