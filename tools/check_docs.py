"""Check what a reader relies on in the documentation, without running the router. Part of `make check`.

Prints every problem as `file:line: what` and ends with 1 if there is any. What needs the program itself (commands that
the README names, settings that config/README.md describes, snippets that must be valid configs) is in tests/docs.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
README, README_ZH = Path("README.md"), Path("README.zh-CN.md")
# recorded traffic, and programs of others, stay as they are
BYTE_EXACT = ("tests/fixtures/", "tests/seeds/", "router/admin/pages/static/vendor/")
GENERATED = (
    "requirements.lock",
    "docker/requirements-slim.lock",
    "docker/requirements-full.lock",
    "docker/requirements-build.lock",
    "LICENSE",
)

LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()]*\))?)\)")
HEADING = re.compile(r"^(#{1,6}) +(.*?) *#*$")
FENCE = re.compile(r"^( *)(```+|~~~+) *([\w+-]*)")
MAKE_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
# Split so that this file does not hold what it looks for.
REGISTRIES = re.compile("|".join(("pypi" r"\.org", "pythonhosted" r"\.org", "registry\\.npmjs", "proxy\\.golang")))
OWN_PATHS = re.compile(
    "(?<![\\w.])/(?:" + "|".join(("work/main", "work/shared", "home/[a-z]", "Users/[a-z]", "root/")) + ")"
)


class Problem(NamedTuple):
    file: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


class Block(NamedTuple):
    """A fenced block of code."""

    line: int
    language: str
    text: str


class Page:
    """A Markdown file, read once: its lines outside of code, its headings, its code."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.prose: list[tuple[int, str]] = []
        self.headings: list[tuple[int, int, str]] = []  # line, level, text
        self.blocks: list[Block] = []
        fence, start, language, inside = "", 0, "", list[str]()
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1):
            found = FENCE.match(line)
            if fence:
                if found and found[2].startswith(fence) and not found[3]:
                    self.blocks.append(Block(start, language, "\n".join(inside) + "\n"))
                    fence = ""
                else:
                    inside.append(line)
            elif found:
                fence, start, language, inside = found[2], number, found[3], []
            else:
                self.prose.append((number, line))
                if heading := HEADING.match(line):
                    self.headings.append((number, len(heading[1]), heading[2]))

    def anchors(self) -> set[str]:
        """The ids that headings get, as GitHub makes them."""
        seen: dict[str, int] = {}
        ids = set()
        for _, _, text in self.headings:
            name = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", text).lower()).replace(" ", "-")
            ids.add(f"{name}-{seen[name]}" if name in seen else name)
            seen[name] = seen.get(name, 0) + 1
        return ids


def tracked() -> list[Path]:
    """What git has or would add: the repository, without what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return sorted(path for name in listed.split("\0") if name and (ROOT / (path := Path(name))).is_file())


def links(pages: dict[Path, Page]) -> Iterator[Problem]:
    """Every relative link leads to a file of the repository, and to a heading in it where one is named."""
    files = set(tracked())
    folders = {parent for file in files for parent in file.parents}
    for page in pages.values():
        for number, line in page.prose:
            for link in LINK.findall(re.sub(r"`[^`]*`", "", line)):
                if re.match(r"[a-z][a-z0-9+.-]*:", link):
                    continue
                target, _, anchor = link.partition("#")
                path = Path(*_normal((page.file.parent / target).parts)) if target else page.file
                if path not in files and path not in folders:
                    yield Problem(page.file, number, f"the link to {link} leads nowhere")
                elif anchor and path in pages and anchor not in pages[path].anchors():
                    yield Problem(page.file, number, f"{path} has no heading for #{anchor}")


def _normal(parts: tuple[str, ...]) -> list[str]:
    done: list[str] = []
    for part in parts:
        if part == ".." and done:
            done.pop()
        elif part != ".":
            done.append(part)
    return done


def twins(pages: dict[Path, Page]) -> Iterator[Problem]:
    """Both READMEs have the same outline and the same code."""
    one, two = pages[README], pages[README_ZH]
    outlines = [[level for _, level, _ in page.headings] for page in (one, two)]
    if outlines[0] != outlines[1]:
        for index, (_, level, text) in enumerate(one.headings):
            if index >= len(two.headings) or two.headings[index][1] != level:
                line = two.headings[index][0] if index < len(two.headings) else 1
                yield Problem(README_ZH, line, f"has another outline than {README} from its heading {text!r} on")
                break
        else:
            yield Problem(README_ZH, two.headings[len(one.headings)][0], f"has a heading that {README} lacks")
    for a, b in zip(one.blocks, two.blocks, strict=False):
        if (a.language, a.text) != (b.language, b.text):
            yield Problem(README_ZH, b.line, f"this code differs from {README}:{a.line}")
    if len(one.blocks) != len(two.blocks):
        yield Problem(README_ZH, 1, f"has {len(two.blocks)} blocks of code, {README} has {len(one.blocks)}")
    for row, (a_count, b_count) in enumerate(zip(_tables(one), _tables(two), strict=False), 1):
        if a_count != b_count:
            yield Problem(README_ZH, 1, f"its table {row} has {b_count} lines, that of {README} {a_count}")


def _tables(page: Page) -> list[int]:
    """How many lines each table has."""
    sizes, before = list[int](), -1
    for number, line in page.prose:
        if line.startswith("|"):
            if number == before + 1:
                sizes[-1] += 1
            else:
                sizes.append(1)
            before = number
    return sizes


def quick_start(pages: dict[Path, Page]) -> Iterator[Problem]:
    """The quick start is two commands, one a block, and both are targets of the Makefile."""
    targets = set(MAKE_TARGET.findall((ROOT / "Makefile").read_text()))
    for file in (README, README_ZH):
        page = pages[file]
        starts = [number for number, level, text in page.headings if level == 2 and text in ("Quick start", "快速开始")]
        if not starts:
            yield Problem(file, 1, "has no quick start")
            continue
        end = min((number for number, level, _ in page.headings if level <= 2 and number > starts[0]), default=10**9)
        shell = [block for block in page.blocks if starts[0] < block.line < end and block.language == "sh"]
        commands = [line for block in shell for line in block.text.splitlines() if line.startswith("make ")]
        if commands != ["make serve", "make test"]:
            yield Problem(file, starts[0], f"the quick start must be make serve and make test, and is {commands}")
    for file, page in pages.items():
        for block in page.blocks:
            for target in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE):
                if target not in targets:
                    yield Problem(file, block.line, f"the Makefile has no target {target}")
        for number, line in page.prose:
            for target in re.findall(r"`make ([a-z-]+)", line):
                if target not in targets:
                    yield Problem(file, number, f"the Makefile has no target {target}")


def snippets(pages: dict[Path, Page]) -> Iterator[Problem]:
    """YAML parses; Python compiles."""
    for page in pages.values():
        for block in page.blocks:
            try:
                if block.language in ("yaml", "yml"):
                    yaml.safe_load(block.text)
                elif block.language == "python":
                    compile(block.text, str(page.file), "exec")
            except (yaml.YAMLError, SyntaxError) as error:
                reason = str(error).splitlines()[0]
                yield Problem(page.file, block.line, f"this {block.language} cannot be read: {reason}")


def text_rules(pages: dict[Path, Page]) -> Iterator[Problem]:
    """No trailing blanks, a last newline, LF; no package registry by name, no path of someone's machine."""
    for file in tracked():
        if str(file).startswith(BYTE_EXACT):
            continue
        data = (ROOT / file).read_bytes()
        if b"\0" in data[:8192]:
            continue
        text = data.decode("utf-8", "replace")
        if text and not text.endswith("\n"):
            yield Problem(file, text.count("\n") + 1, "has no newline at its end")
        if "\r" in text:
            yield Problem(file, 1, "has CR line ends")
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip() and str(file) not in GENERATED:
                yield Problem(file, number, "has blanks at the end of the line")
            if found := REGISTRIES.search(line) or OWN_PATHS.search(line):
                yield Problem(file, number, f"names {found[0]}, a package registry or a path of one machine")


CHECKS: tuple[Callable[[dict[Path, Page]], Iterator[Problem]], ...] = (links, twins, quick_start, snippets, text_rules)


def problems() -> list[Problem]:
    pages = {file: Page(file) for file in tracked() if file.suffix == ".md" and not str(file).startswith(BYTE_EXACT)}
    return [problem for check in CHECKS for problem in check(pages)]


def main() -> int:
    found = problems()
    for problem in found:
        print(problem)
    print(f"documentation: {len(found)} problems" if found else "documentation: no problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
