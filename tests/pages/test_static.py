"""What the pages are made of, without a browser: vendored files as they were released, no text outside of texts.py, and
nothing inline that the Content-Security-Policy would stop."""

from __future__ import annotations

import ast
import hashlib
import re
import string
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, get_args

import pytest
from hatchling.builders.wheel import WheelBuilder
from jinja2 import Environment, nodes

from providers.errors import UpstreamError
from router import routing, snapshot
from router.admin.pages.render import THEMES
from router.admin.pages.texts import LANGUAGES, ONE, TEXTS, preferred, text
from router.limits import NAMES
from router.local_model import State
from router.metric_table import DOWN
from tests.simulators.router import ROOT

PAGES: Final = ROOT / "router" / "admin" / "pages"
STATIC: Final = PAGES / "static"
TEMPLATES: Final = sorted((PAGES / "templates").glob("*.html"))
SCRIPTS: Final = sorted(STATIC.glob("*.js"))
FAMILIES: Final = (
    "age.",
    "change.",
    "limit.",
    "reason.",
    "code.",
    "local.",
    "state.",
    "bar.",
    "theme.",
    "language.",
    "sign_in.",
    "message.",
    "chart.",
)
"""Beginnings of keys that are put together from a word."""


def test_vendored_files_are_those_that_were_released() -> None:
    folder = STATIC / "vendor"
    lines = [line.split() for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    del found["SHA256SUMS"]
    assert found == sums
    for name in found:
        if not name.endswith(".txt"):
            assert f"{name.partition('-')[0]}-LICENSE.txt" in found


def test_the_wheel_has_templates_and_static_files() -> None:
    shipped = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    wanted = [*TEMPLATES, *(path for path in STATIC.rglob("*") if path.is_file())]
    assert len(wanted) > 20
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= shipped


def _outside(source: str) -> str:
    """A template without comments, tags of the template language, and expressions; those become a mark."""
    source = re.sub(r"\{#.*?#\}", "", source, flags=re.DOTALL)
    source = re.sub(r"\{%.*?%\}", "", source, flags=re.DOTALL)
    return re.sub(r"\{\{.*?\}\}", "\x00", source, flags=re.DOTALL)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_text_of_their_own(path: Path) -> None:
    source = _outside(path.read_text("utf-8"))
    between = re.sub(r"<[^>]*>", "\n", source)
    assert not re.findall(r"[^\W\d_]{2,}", between), "words between tags belong into texts.py"
    for name, value in re.findall(
        r'\b(title|alt|aria-label|placeholder|data-words|data-live|data-stale)="([^"]*)"', source
    ):
        assert not re.search(r"[^\W\d_]", value) or value.startswith("/"), (name, value)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_nothing_inline(path: Path) -> None:
    source = path.read_text("utf-8")
    assert not re.search(r"\sstyle\s*=|<style|\son\w+\s*=|javascript:|\|\s*safe\b.*(row|board|own)", _outside(source))
    for script in re.findall(r"<script[^>]*>", source):
        assert 'src="{{ asset(' in script
    assert "|safe" not in source.replace(" ", "").replace("""'aria-invalid="true"'|safe""", "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_need_no_eval_and_hold_no_words(path: Path) -> None:
    source = path.read_text("utf-8")
    assert not re.search(r"\beval\b|new Function|\bFunction\(|document\.write|insertAdjacentHTML", source)
    assert source.count("innerHTML =") == (1 if path.name == "overview.js" else 0), "only rows that the server escaped"
    spoken = [word for word in re.findall(r'"([^"\n]*)"', source) if re.fullmatch(r"[A-Z][a-z]+( [a-z]+)+", word)]
    assert not spoken


def _kinds(kind: type[UpstreamError]) -> Iterator[type[UpstreamError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


def _fields(words: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(words) if name is not None}


@pytest.mark.parametrize("key", TEXTS)
def test_texts_are_there_in_both_languages(key: str) -> None:
    english, chinese = TEXTS[key]
    assert english.strip()
    assert chinese.strip()
    assert _fields(english) == _fields(chinese)
    assert not re.search(r"[\u4e00-\u9fff]", english) or key == "language.zh"
    assert not re.search(r"[<>]", english + chinese)


def _asked() -> Iterator[str]:
    """Keys that templates and shapes ask for by their whole name."""
    environment = Environment(autoescape=True)
    for path in TEMPLATES:
        for call in environment.parse(path.read_text("utf-8")).find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == "t" and isinstance(call.args[0], nodes.Const):
                yield call.args[0].value
    for node in ast.walk(ast.parse((PAGES / "shapes.py").read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in TEXTS:
            yield node.value


def test_every_text_is_used_and_every_used_text_is_there() -> None:
    asked = set(_asked())
    assert asked <= set(TEXTS)
    unused = {key for key in set(TEXTS) - asked if not key.startswith(FAMILIES)}
    assert not unused


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("reason", DOWN),
        ("reason", {kind.reason for kind in _kinds(UpstreamError)}),
        ("code", {kind.code for kind in _kinds(UpstreamError)}),
        ("limit", set(NAMES.values())),
        ("local", set(get_args(State))),
        ("theme", THEMES),
        ("language", LANGUAGES),
    ],
)
def test_every_word_of_a_closed_set_has_a_text(family: str, words: Collection[str]) -> None:
    assert {word for word in words if f"{family}.{word}" not in TEXTS} == set()


def _skip_reasons() -> set[str]:
    """Why routing leaves targets out: its tables, and what it writes out where it does."""
    found = {reason for reason, _ in routing.LACKS.values()} | routing._RIGHTS_REASONS
    for module in (routing, snapshot):
        assert module.__file__
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Skipped":
                told = node.args[1]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in (
                "(reason, detail)",
                "reason, detail",
            ):
                assert isinstance(node.value, ast.Tuple)
                told = node.value.elts[0]
            else:
                continue
            if isinstance(told, ast.Name) and told.id.isupper():
                found.add(getattr(module, told.id))
            elif isinstance(told, ast.Constant):
                found.add(str(told.value))
    return found


def test_every_reason_of_a_fallback_has_a_text() -> None:
    found = _skip_reasons()
    assert {"unpriced", "context_too_small", "weight_zero", "local_only", "unhealthy", "no_vision"} <= found
    assert {reason for reason in found if f"reason.{reason}" not in TEXTS} == set()


def test_texts_fill_in_their_fields() -> None:
    assert text("en", "age.minutes", n=3) == "3 min ago"
    assert text("zh", "age.minutes", n=3) == "3 分钟前"
    with pytest.raises(KeyError):
        text("en", "no such text")


def test_one_is_no_plural() -> None:
    assert text("en", "keys.calls", n="1") == "1 request"
    assert text("en", "keys.tokens", n=1) == "1 token"
    assert text("en", "keys.calls", n="0") == "0 requests"
    assert text("en", "keys.calls", n="1.23M") == "1.23M requests"
    assert text("zh", "keys.calls", n="1") == "1 次请求"
    plural = {key for key, (english, _) in TEXTS.items() if re.search(r"\{n\} (new )?[a-z]{2,}s\b", english)}
    assert plural == set(ONE)
    assert all(_fields(words) == {"n"} for words in ONE.values())


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("fr,zh;q=0.5", "zh"),
        ("zh;q=0, en;q=0.1", "en"),
        ("zh;q=x", "en"),
        ("de", "en"),
        ("," * 10_000, "en"),
    ],
)
def test_the_language_is_the_browsers(header: str, language: str) -> None:
    assert preferred(header) == language
    assert language in LANGUAGES
