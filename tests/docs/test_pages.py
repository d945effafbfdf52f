"""What the pages show is true: their configs load, the commands they name exist, every setting is described."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from providers import errors
from providers.errors import SwitchyardError
from router.config import Config, load_config
from router.metric_table import FAMILIES
from router.metrics import Metrics
from router.routing import compile_snapshot
from tests.router.test_metric_text import scraped
from tools import metrics_page
from tools.check_docs import ROOT, Page

PAGES = sorted(
    str(file.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "config/*.md") for file in ROOT.glob(pattern)
)
HEAVY = ("litellm", "fastapi", "uvicorn", "aiohttp", "httpx", "pydantic", "redis", "prometheus_client", "xllamacpp")


def configs() -> dict[str, str]:
    """The YAML blocks by where they stand."""
    return {
        f"{page}:{block.line}": block.text
        for page in PAGES
        for block in Page(Path(page)).blocks
        if block.language == "yaml"
    }


def commands() -> list[tuple[str, ...]]:
    """Every `switchyard VERB [VERB]` that a page names, in code or in backticks."""
    found: set[tuple[str, ...]] = set()
    for name in PAGES:
        page = Page(Path(name))
        code = [line for block in page.blocks for line in block.text.splitlines()]
        code += [span for _, line in page.prose for span in re.findall(r"`([^`]+)`", line)]
        for line in code:
            for words in re.findall(r"(?:^|[\s/])switchyard((?: [a-z][a-z-]*)+)", line):
                found.add(tuple(words.split()[:2]))
    return sorted(found)


@cache
def help_of(*verbs: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from router.cli.main import main; main()", *verbs, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, f"switchyard {' '.join(verbs)} --help: {done.stderr}"
    return done.stdout


def lists(text: str, verb: str) -> bool:
    return re.search(rf"^\W*{re.escape(verb)}\s", text, re.MULTILINE) is not None


@pytest.mark.parametrize("place", configs())
def test_a_config_on_a_page_is_valid(place: str, tmp_path: Path) -> None:
    file = tmp_path / "switchyard.yaml"
    file.write_text(configs()[place])
    assert compile_snapshot(load_config(file, {})) is not None  # the options of its vendors make sense, too


def test_the_rows_that_the_default_file_offers_are_valid(tmp_path: Path) -> None:
    lines = (ROOT / "config/switchyard.yaml").read_text().splitlines()
    offered = [line for line in lines if re.match(r"  # [\w-]+: \{vendor: ", line)]
    assert len(offered) > 8
    file = tmp_path / "switchyard.yaml"
    file.write_text("providers:\n" + "\n".join(line.replace("# ", "", 1) for line in offered))
    compiled = compile_snapshot(load_config(file, {}))
    assert len(compiled.providers) == len(offered)


def test_pages_name_commands() -> None:
    assert ("serve",) in {words[:1] for words in commands()}
    assert len(commands()) > 10


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_on_a_page_exists(words: tuple[str, ...]) -> None:
    assert lists(help_of(), words[0])
    if len(words) == 2 and "COMMAND" in help_of(words[0]):  # a group; else the second word is an argument
        assert lists(help_of(words[0]), words[1])


def test_nothing_advises_to_install_us_by_our_name() -> None:
    """We are on no registry, so whoever took the name there would be run."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    parts = [ROOT / part for part in ("router", "providers", "tests", "tools")]
    texts = [*(ROOT / page for page in PAGES), *(file for part in parts for file in part.rglob("*.py"))]
    assert [file for file in texts if re.search(rf"install\b.*{name}", file.read_text())] == []


def test_a_file_on_a_page_exists() -> None:
    named = re.compile(r"(?:router|providers|tests|tools|docs|config|docker)/[\w./-]*")
    paths = [
        (name, span)
        for name in PAGES
        for _, line in Page(Path(name)).prose
        for span in re.findall(r"`([^`]+)`", line)
        if named.fullmatch(span)
    ]
    assert len(paths) > 30
    assert [where for where in paths if not (ROOT / where[1]).exists()] == []


def words_of(page: str) -> set[str]:
    """The words that stand in backticks."""
    spans = [span for _, line in Page(Path(page)).prose for span in re.findall(r"`([^`]+)`", line)]
    return set(re.findall(r"[\w-]+", " ".join(spans)))


def test_every_error_code_is_described() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SwitchyardError)]
    codes = {kind.code for kind in kinds}
    assert {"invalid_api_key", "no_target", "provider_timeout"} <= codes
    for page in ("docs/operating.md", "README.md", "README.zh-CN.md"):
        short = {"internal_error", "request_timeout", "headers_too_large"} if page.startswith("README") else set()
        assert codes - short <= words_of(page), f"{page} lacks {sorted(codes - short - words_of(page))}"


def test_every_metric_is_described_and_every_described_metric_exists() -> None:
    names = set(re.findall(r"^# TYPE (\w+)", scraped(Metrics("1")), re.MULTILINE))
    assert {"switchyard_requests_total", "switchyard_config_reload_success"} <= names
    described = {word for word in words_of("docs/metrics.md") if word.startswith("switchyard_")}
    assert names == described
    parts = {f"{family.full}{end}" for family in FAMILIES if family.buckets for end in ("_bucket", "_count", "_sum")}
    recorded = (ROOT / "config/prometheus/recording.yml").read_text()
    parts |= set(re.findall(r"record: \w+:(\w+):\w+", recorded))  # a recorded name has the metric in its middle
    for page in PAGES:
        told = {word for word in words_of(page) if re.fullmatch(r"switchyard_[a-z0-9_]*[a-z0-9]", word)}
        told = {word for word in told if not word.endswith(("_pepper", "_token"))}
        assert told <= names | parts, f"{page} names what does not exist: {sorted(told - names - parts)}"


def test_the_page_of_metrics_is_current() -> None:
    assert (ROOT / metrics_page.PAGE).read_text(encoding="utf-8") == metrics_page.page()


def test_every_field_of_the_request_log_is_described() -> None:
    source = (ROOT / "router/runtime.py").read_text()
    block = source[source.index("self.log.write(") :]
    fields = set(re.findall(r'^ {16}"(\w+)":', block, re.MULTILINE))
    assert {"request_id", "tokens_in", "tags"} <= fields
    described = words_of("docs/operating.md")
    assert fields <= described, f"docs/operating.md lacks {sorted(fields - described)}"


def settings(model: type[BaseModel]) -> set[str]:
    """The names of all settings below a section, as they are written in the file."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        names.add(field.alias or name)
        for section in sections(field.annotation):
            names |= settings(section)
    return names


def sections(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inside = (*getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ()))
    return [section for part in inside for section in sections(part)]


def test_every_setting_is_described() -> None:
    described = words_of("config/README.md")
    names = settings(Config)
    assert {"listen", "drain_seconds", "api_key", "first_content", "weight", "schema"} <= names
    assert names <= described, f"config/README.md lacks {sorted(names - described)}"


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, router.cli.main; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
