"""Each documentation check finds what it is for, and is quiet about a good tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import check_docs

README = """# Product

## Quick start

```sh
make serve
```

```sh
make test
```

## Use

See [the guide](docs/guide.md#one-more), [above](#quick-start) and [the web](https://example.com/x).

| a | b |
|---|---|
| 1 | 2 |
"""
ZH = README.replace("Quick start", "快速开始").replace("#quick-start", "#快速开始").replace("## Use", "## 使用")
MAKEFILE = "serve: setup ## run\ntest: setup ## test\nsetup:\n"
GUIDE = "# Guide\n\n## One more\n\n```yaml\na: 1\n```\n\nRun `make test`.\n"
REGISTRY = "https://" + "pypi" + ".org/simple"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name, text in {
        "README.md": README,
        "README.zh-CN.md": ZH,
        "Makefile": MAKEFILE,
        "docs/guide.md": GUIDE,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    return tmp_path


def test_a_good_tree_has_no_problems(tree: Path) -> None:
    assert check_docs.problems() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "place", "what"),
    [
        pytest.param("README.md", "docs/guide.md", "docs/gone.md", "README.md:15", "leads nowhere", id="dead link"),
        pytest.param("docs/guide.md", "## One", "## No", "README.md:15", "no heading for #one-more", id="dead anchor"),
        pytest.param("README.zh-CN.md", "## 使用", "### 使用", "README.zh-CN.md:13", "another outline", id="outline"),
        pytest.param("README.zh-CN.md", "make test", "make tests", "README.zh-CN.md:9", "differs from", id="code"),
        pytest.param("README.zh-CN.md", "| 1 | 2 |\n", "", "README.zh-CN.md:1", "its table 1 has 2", id="table"),
        pytest.param("README.md", "make test", "make test all", "README.md:3", "must be make serve", id="quick start"),
        pytest.param("Makefile", "test:", "tests:", "README.md:9", "no target test", id="target"),
        pytest.param("docs/guide.md", "`make test`", "`make tset`", "docs/guide.md:9", "no target tset", id="in prose"),
        pytest.param("docs/guide.md", "a: 1", "a: [1", "docs/guide.md:5", "yaml cannot be read", id="yaml"),
        pytest.param("docs/guide.md", "a: 1", "a: 1 ", "docs/guide.md:6", "blanks at the end", id="blanks"),
        pytest.param("docs/guide.md", "Run", REGISTRY, "docs/guide.md:9", "names pypi", id="registry"),
        pytest.param("docs/guide.md", "`.\n", "`.", "docs/guide.md:9", "no newline", id="last newline"),
    ],
)
def test_a_problem_is_found(tree: Path, file: str, old: str, new: str, place: str, what: str) -> None:
    path = tree / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    said = [str(problem) for problem in check_docs.problems()]
    assert any(line.startswith(place + ":") and what in line for line in said), said
