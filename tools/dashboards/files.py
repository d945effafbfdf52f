"""The files that are generated, with their texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from tools.dashboards.keys import KEYS
from tools.dashboards.overview import OVERVIEW
from tools.dashboards.providers import PROVIDERS
from tools.dashboards.render import Language, render
from tools.dashboards.words import chinese

ROOT: Final = Path(__file__).resolve().parent.parent.parent
BOARDS: Final = (OVERVIEW, PROVIDERS, KEYS)
LANGUAGES: Final = (Language("en", "", str), Language("zh", "-zh", chinese))
FOLDER: Final = ROOT / "config/grafana/dashboards"
ALERTS: Final = ROOT / "config/prometheus/alerts.yml"
PAGE: Final = ROOT / "docs/dashboards.md"
_BEGIN, _END = "<!-- alerts: generated from config/prometheus/alerts.yml by `make dashboards` -->", "<!-- /alerts -->"


def files() -> Iterator[tuple[Path, str]]:
    """The boards, and the page with its list of alerts anew."""
    for board in BOARDS:
        for language in LANGUAGES:
            yield FOLDER / f"{board.uid}{language.suffix}.json", render(board, language)
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    yield PAGE, f"{before}{_BEGIN}\n\n{alerts_text()}{_END}{after}"


def alerts_text() -> str:
    """Each alert of the rule file: a heading to link to, when it fires and what to do."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]
    return "".join(
        f"### {rule['alert']}\n\n"
        f"{rule['labels']['severity'].capitalize()}. {_plain(rule['annotations']['summary'])}\n\n"
        f"{_plain(rule['annotations']['description'])}\n\n"
        f"中文：{_plain(rule['annotations']['summary_zh'])} {_plain(rule['annotations']['description_zh'])}\n\n"
        f"```text\n{rule['expr'].strip()}\nfor: {rule.get('for', '0m')}\n```\n\n"
        for rule in rules
    )


def _plain(text: str) -> str:
    """The names of labels, and the word value, in place of what Prometheus fills in."""
    text = re.sub(r"\{\{\s*\$labels\.(\w+)\s*\}\}", r"*\1*", text)
    return re.sub(r"\{\{\s*\$value[^}]*\}\}", "*value*", text).strip()
