"""Carries out a Dockerfile without a container engine: each RUN in a copy-on-write copy of this machine's root.

What differs from `docker build`: the base image is this machine's Debian with this Python at /usr/local, not
python:3.11-slim; /root, /home and the directory with the checkout are empty inside. What is the same: the steps, their
order, their paths, their user, what .dockerignore lets through, and what the result may write.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar

from tests.deploy import dockerfile
from tests.deploy.dockerfile import Dockerfile, Stage, Step

BOX = Path(__file__).with_name("box.py")
PASSED_ON = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""Variables of this machine that a build needs to reach its package index; docker passes the proxies on by itself."""
BASE_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/root",
    "LD_LIBRARY_PATH": "/usr/local/lib",
}
"""As in the official Python images, whose ldconfig knows /usr/local/lib."""
STEP_SECONDS = 1200.0
Bind: TypeAlias = tuple[str, str, str]
"""Outside, inside, `ro` or `rw`."""


@dataclass(slots=True)
class Image:
    """What a stage leaves: layers and settings."""

    layers: list[str]
    """Directories, the topmost first; this machine's root is below them."""
    env: dict[str, str] = field(default_factory=dict)
    user: int | None = None
    cwd: str = "/"
    labels: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    def copy(self) -> Image:
        plain = {name: getattr(self, name) for name in self.__slots__}
        return Image(**{name: value.copy() if hasattr(value, "copy") else value for name, value in plain.items()})


def why_not() -> str | None:
    """Why this machine cannot build, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux and root, for namespaces and an overlay"
    if shutil.which("unshare") is None or shutil.which("apt-get") is None:
        return "needs unshare and apt-get"
    with tempfile.TemporaryDirectory(dir=memory()) as place:
        work = Workshop(Path(place), Path(place), {})
        done = work.run(Image([]), Path(place) / "up", ["true"])
    return None if done.returncode == 0 else f"this kernel or sandbox refuses an overlay: {done.stderr.strip()}"


def memory() -> str | None:
    """An overlay cannot lie on another one, as a container's root is; memory always serves."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Workshop:
    """Builds below `place`, from the files `tracked` of `source`."""

    def __init__(self, place: Path, source: Path, arguments: Mapping[str, str], tracked: Sequence[Path] = ()) -> None:
        self.place = place
        self._source = source
        self._arguments = dict(arguments)
        self._context = dockerfile.context(source, tracked) if tracked else set[PurePosixPath]()
        self._images: dict[str, Image] = {}
        self._numbers = count(1)
        self.log: list[str] = []

    def build(self, file: Dockerfile, target: str) -> Image:
        if target in self._images:
            return self._images[target]
        stage = file.stage(target)
        assert stage is not None, f"no stage {target}"
        image = self.build(file, stage.base).copy() if file.stage(stage.base) else Image([])
        arguments: dict[str, str | None] = {}
        for step in stage.steps:
            self._step(file, stage, step, image, arguments)
        self._images[target] = image
        return image

    def _step(self, file: Dockerfile, stage: Stage, step: Step, image: Image, arguments: dict[str, str | None]) -> None:
        known = {**arguments, **image.env}
        text = dockerfile.expand(step.text, known) if step.word in dockerfile.EXPANDED else step.text
        match step.word:
            case "ARG":
                name, equals, default = text.partition("=")
                arguments[name] = self._arguments.get(name, default if equals else None)
            case "ENV":
                image.env |= dockerfile.pairs(text)
            case "LABEL":
                image.labels |= dockerfile.pairs(text)
            case "RUN":
                layer = self.layer(image)
                env = {**image.env, **{name: value for name, value in arguments.items() if value is not None}}
                done = self.run(image, layer, ["/bin/sh", "-c", text], env=env)
                self.log.append(done.stdout + done.stderr)
                assert done.returncode == 0, f"{stage.name}, line {step.line}: {text}\n{done.stdout}{done.stderr}"
            case "COPY":
                self._copy(file, step, text, image)
            case "WORKDIR":
                image.cwd = str(PurePosixPath(image.cwd) / text)
                (Path(self.layer(image)) / image.cwd.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = int(text.partition(":")[0])
            case "VOLUME":
                image.volumes.append(text)
            case "ENTRYPOINT":
                image.entrypoint, image.command = step.json, []
            case "CMD":
                image.command = step.json
            case "HEALTHCHECK":
                image.health = Step(step.line, "HEALTHCHECK", text.partition("CMD ")[2]).json
            case "STOPSIGNAL":
                image.stop_signal = text
            case "EXPOSE":
                assert 0 < int(text) < 65536
            case _:
                raise AssertionError(step.word)

    def layer(self, image: Image) -> str:
        """A new topmost layer."""
        path = self.place / f"layer{next(self._numbers)}"
        path.mkdir()
        image.layers.insert(0, str(path))
        return str(path)

    def _copy(self, file: Dockerfile, step: Step, text: str, image: Image) -> None:
        words = text.split()
        origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
        *sources, goal = words
        inside = PurePosixPath(image.cwd) / goal
        base = Path(self.layer(image)) / str(inside).lstrip("/")
        if origin is not None:
            (source,) = sources
            found = self.find(self.build(file, origin), source)
            for part in reversed(found):  # the topmost layer last: it wins
                shutil.copytree(part, base, symlinks=True, dirs_exist_ok=True, copy_function=_link)
            return
        for source in sources:
            files = {path for path in self._context if PurePosixPath(source) in (path, *path.parents)}
            assert files, f"line {step.line}: nothing of {source} is let in by .dockerignore"
            for path in files:
                whole = path == PurePosixPath(source)
                to = base / path.name if whole and goal.endswith("/") else base
                to = to if whole else base / path.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._source / path, to)

    @staticmethod
    def find(image: Image, path: str) -> list[Path]:
        """Where a directory of the image lies in its layers, the topmost first."""
        found = [at for layer in image.layers if (at := Path(layer) / path.lstrip("/")).is_dir()]
        assert found, f"no {path} in the stage that is copied from"
        return found

    def argv(
        self,
        image: Image,
        upper: str | Path,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        binds: Sequence[Bind] = (),
        read_only: bool = False,
        tmpfs: Sequence[str] = (),
        own_network: bool = False,
        user: int | None = None,
        groups: Sequence[int] = (),
    ) -> list[str]:
        """The command line that runs `argv` in the image. What it writes goes to `upper`."""
        mount, work = (self.place / f"{name}{next(self._numbers)}" for name in ("mount", "work"))
        for directory in (mount, work):
            directory.mkdir(parents=True)
        Path(upper).mkdir(exist_ok=True)
        below = [layer for layer in image.layers if layer != str(upper)]
        prefix = sys.base_prefix
        python = [] if prefix in ("/usr", "/usr/local") else [(prefix, "/usr/local", "ro")]
        top = f"/{Path(__file__).resolve().parts[1]}"
        wanted = {
            "layers": [*below, "/"],
            "upper": str(upper),
            "work": str(work),
            "mount": str(mount),
            "hide": sorted({"/root", "/home", *([top] if top not in ("/usr", "/opt", "/tmp") else [])}),
            "binds": [*python, *binds],
            "read_only": read_only,
            "tmpfs": list(tmpfs),
            "own_network": own_network,
            "user": image.user if user is None else user,
            "groups": list(groups),
            "cwd": image.cwd,
            "env": {**BASE_ENV, **(env or image.env)},
            "argv": list(argv),
        }
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        command += ["--net"] if own_network else []
        return [*command, "--", sys.executable, "-I", str(BOX), json.dumps(wanted)]

    def run(
        self,
        image: Image,
        upper: str | Path,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        binds: Sequence[Bind] = (),
    ) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        return subprocess.run(
            self.argv(image, upper, argv, env={**outside, **(env or {})}, binds=binds),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=STEP_SECONDS,
            check=False,
        )


def _link(source: str, target: str) -> None:
    """Layers that are done do not change, so a copy may be the same file."""
    Path(target).unlink(missing_ok=True)
    os.link(source, target, follow_symlinks=False)


Result = TypeVar("Result")
_containers = count(1)
_CLONE_NEWNET = 0x40000000


class Container:
    """An image that runs: read-only root, /tmp in memory, a network of its own, only `env` of the environment."""

    def __init__(
        self,
        workshop: Workshop,
        image: Image,
        command: Sequence[str] = (),
        *,
        entrypoint: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        binds: Sequence[Bind] = (),
        tmpfs: Sequence[str] = (),
        user: int | None = None,
        groups: Sequence[int] = (),
        network: Container | None = None,
    ) -> None:
        """network: share this one's."""
        self._image = image
        self.out = workshop.place / f"out{next(_containers)}"
        argv = workshop.argv(
            image,
            self.out.with_suffix(".top"),
            [*(image.entrypoint if entrypoint is None else entrypoint), *(command or image.command)],
            env={**image.env, **(env or {})},
            binds=binds,
            read_only=True,
            tmpfs=tmpfs,
            user=user,
            groups=groups,
            own_network=network is None,
        )
        if network is not None:
            argv = ["nsenter", "--target", str(network.first), "--net", "--", *argv]
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def text(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def first(self) -> int:
        """Process 1, by its number outside."""

        def child() -> int | None:
            here = self.process.pid
            found = Path(f"/proc/{here}/task/{here}/children").read_text().split()
            return int(found[0]) if found else None

        return self.until(child)

    def until(self, question: Callable[[], Result | None], seconds: float = 60.0) -> Result:
        """The first answer that is not None or False."""
        deadline = time.monotonic() + seconds
        while not (answer := question()):
            assert time.monotonic() < deadline, self.text()
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            time.sleep(0.02)
        return answer

    def started(self, program: str | None = None) -> Container:
        """Once process 1 is `program`: what the image says it is, unless it is named."""
        name = program or Path(self._image.entrypoint[0]).name
        self.until(lambda: Path(f"/proc/{self.first}/comm").read_text().strip() == name)
        return self

    def execute(self, argv: Sequence[str], user: int | None = None) -> subprocess.CompletedProcess[str]:
        """As `docker exec`: in its namespaces, as its user."""
        who = str(self._image.user if user is None else user)
        enter = ["nsenter", "--target", str(self.first), "--mount", "--pid", "--net", "--root", "--wd"]
        enter += ["--setuid", who, "--setgid", who, "--"]
        env = {**BASE_ENV, **self._image.env}
        return subprocess.run(
            [*enter, *argv], env=env, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )

    def stop(self, seconds: float = 60.0) -> int:
        """`docker stop`: the image's signal to process 1. The exit code of process 1."""
        os.kill(self.first, signal.Signals[self._image.stop_signal])
        return self.process.wait(seconds)

    def family(self) -> dict[int, tuple[str, str]]:
        """Its processes: name and state by number outside."""
        space = os.readlink(f"/proc/{self.first}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.readlink(entry / "ns/pid") == space:
                        name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                        found[int(entry.name)] = (name, rest.split()[0])
                except OSError:
                    continue
        return found

    def inside(self, work: Callable[[], Result]) -> Result:
        """Run `work` in a thread that sees the container's network; so do the threads that it starts."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with open(f"/proc/{self.first}/ns/net") as space:
                    if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                results.append(work())
            except BaseException as error:  # it rises in the thread that asked
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]
