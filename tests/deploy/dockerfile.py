"""A Dockerfile as values, and what `.dockerignore` lets into the build. Reads the instructions that ours uses; another
one is an error, so that nothing is skipped silently. https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

EXPANDED: Final = frozenset({"COPY", "ENV", "EXPOSE", "FROM", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"})
"""Where ${NAME} is replaced by the builder. In RUN the shell does it, CMD and its like stay as they are."""
KNOWN: Final = EXPANDED - {"FROM"} | {"ARG", "CMD", "ENTRYPOINT", "HEALTHCHECK", "RUN"}


@dataclass(frozen=True, slots=True)
class Step:
    line: int
    word: str
    text: str
    """What stands after the instruction, continuation lines joined."""

    @property
    def json(self) -> list[str]:
        """The exec form. Raises ValueError for the shell form."""
        found = json.loads(self.text)
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise ValueError(f"line {self.line}: {self.word} is not a list of words")
        return found


@dataclass(slots=True)
class Stage:
    name: str
    base: str
    steps: list[Step] = field(default_factory=list)


@dataclass(slots=True)
class Dockerfile:
    arguments: dict[str, str | None]
    """ARG before the first FROM: they count in FROM alone."""
    stages: list[Stage]

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)


def parse(text: str, arguments: Mapping[str, str] | None = None) -> Dockerfile:
    """Raises ValueError with the line for what is not understood. `arguments`: --build-arg."""
    found = Dockerfile({}, [])
    for line, joined in _logical(text):
        word, _, rest = joined.partition(" ")
        word, rest = word.upper(), rest.strip()
        if word == "ARG" and not found.stages:
            name, equals, default = rest.partition("=")
            found.arguments[name] = (arguments or {}).get(name, default if equals else None)
        elif word == "FROM":
            shape = re.fullmatch(r"(\S+)(?: AS (\S+))?", expand(rest, found.arguments), re.IGNORECASE)
            if shape is None:
                raise ValueError(f"line {line}: FROM {rest}")
            found.stages.append(Stage(shape[2] or str(len(found.stages)), shape[1]))
        elif word not in KNOWN:
            raise ValueError(f"line {line}: no {word} here")
        elif not found.stages:
            raise ValueError(f"line {line}: {word} before FROM")
        else:
            found.stages[-1].steps.append(Step(line, word, rest))
    return found


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end in a backslash joined with the next; each with the number of its first."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        begun = begun if parts else number
        parts.append(line.rstrip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            yield begun, " ".join(part for part in parts if part)
            parts = []
    if parts:
        raise ValueError(f"line {begun}: the last line ends in a backslash")


def expand(text: str, values: Mapping[str, str | None]) -> str:
    """${NAME}, ${NAME:-default} and $NAME, as the builder replaces them."""

    def value(shape: re.Match[str]) -> str:
        return values.get(shape[1] or shape[3]) or shape[2] or ""

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)", value, text)


def pairs(text: str) -> dict[str, str]:
    """NAME=value NAME="value", of ENV and LABEL."""
    found = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"NAME=value is meant, not {word}")
        found[name] = value
    return found


class Ignored:
    """`.dockerignore`: the last pattern that fits a path or a directory above it decides; `!` takes it back in."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in lines:
            text = line.strip()
            if text and not text.startswith("#"):
                pattern = text.removeprefix("!").strip("/")
                self._rules.append((re.compile(_regex(pattern)), not text.startswith("!")))

    def __call__(self, path: PurePosixPath) -> bool:
        places = [str(path), *(str(parent) for parent in path.parents if str(parent) != ".")]
        out = False
        for pattern, leaves_out in self._rules:
            if any(pattern.fullmatch(place) for place in places):
                out = leaves_out
        return out


def _regex(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.sub(r"\*\*/|\*\*|\*|\?|[^*?]+", lambda shape: parts.get(shape[0], re.escape(shape[0])), pattern)


def context(root: Path, tracked: Iterable[Path]) -> set[PurePosixPath]:
    """The files that a build from `root` sees, of those that `tracked` names."""
    ignored = Ignored((root / ".dockerignore").read_text().splitlines())
    return {path for name in tracked if not ignored(path := PurePosixPath(name.as_posix()))}
