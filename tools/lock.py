"""Write the lock files from pyproject.toml: every package, direct or not, with its version and its files' hashes.

`requirements.lock` is the whole development environment (runtime, the extras, the `dev` group); `make serve`,
`make test` and CI install exactly it with `pip --require-hashes`. `docker/requirements-slim.lock` and `-full.lock` are
what the images install, without litellm and with it (and with `otel`), at the same versions; `-build.lock` is what
builds the wheel. None names the index it was resolved from.

    python -m tools.lock            keep the versions that are locked, add and drop what pyproject.toml asks for
    python -m tools.lock --upgrade  move everything to the newest release that pyproject.toml allows
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FULL = Path("requirements.lock")
SLIM = Path("docker/requirements-slim.lock")
IMAGE = Path("docker/requirements-full.lock")
BUILD = Path("docker/requirements-build.lock")
HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"
LEFT_OUT_OF_SLIM = ("litellm",)  # 300 MB with what it brings


def resolve(source: str, output: Path, extra: Sequence[str], text: str | None = None) -> None:
    """Let uv resolve `source` for every platform and Python we support, then put our header on the result."""
    command = ["uv", "pip", "compile", source, "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-emit-index-url", "--no-header", "--no-annotate", "--quiet", "--output-file", str(output), *extra]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, text=True, input=text)
    path = ROOT / output
    body = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")) + "\n"
    path.write_text(HEADER + body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="move to the newest releases allowed")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []

    resolve("pyproject.toml", FULL, ["--extra", "demo", "--extra", "otel", "--group", "dev", *upgrade])

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted: list[str] = project["project"]["dependencies"]
    parts = {
        SLIM: [line for line in wanted if not line.startswith(LEFT_OUT_OF_SLIM)],
        IMAGE: [*wanted, *project["project"]["optional-dependencies"]["otel"]],
        BUILD: project["build-system"]["requires"],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:  # the same versions as in the full lock
        pins.write("\n".join(_pins(ROOT / FULL)))
        pins.flush()
        for path, lines in parts.items():
            resolve("-", path, ["--constraint", pins.name, *upgrade], "\n".join(lines))
    for path in (FULL, *parts):
        print(f"{path}: {len(_pins(ROOT / path))} packages")


def _pins(lock: Path) -> list[str]:
    """The `name==version ; marker` lines of a lock, without hashes."""
    return [line.removesuffix("\\").strip() for line in lock.read_text().splitlines() if line and line[0] not in " #"]


if __name__ == "__main__":
    main()
