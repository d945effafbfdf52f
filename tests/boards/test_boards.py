"""The boards are what tools/dashboards makes, say everything in both languages, and ask for what exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from router.admin.usage import RequestRow, UsageRow
from router.metric_table import BY_NAME
from tests.boards.queries import ROOT, board_queries, boards, json_queries, panels, rule_queries, rules, selectors
from tools.dashboards import files, words
from tools.dashboards.__main__ import main

SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("",), "gauge": ("",)}
KNOWN = {family.full + suffix: family for family in BY_NAME.values() for suffix in SUFFIXES[family.kind]}
FOREIGN = {"job", "instance", "le"}
CHINESE = re.compile("[一-龥]")
UIDS = [board.uid for board in files.BOARDS]


def texts(board: dict[str, Any]) -> Iterator[str]:
    """Everything that a reader sees and that is no query."""
    yield from (board["title"], board["description"], *(link["title"] for link in board["links"]))
    yield from (variable["label"] for variable in board["templating"]["list"])
    for panel in board["panels"]:
        yield panel["title"]
        if panel["type"] == "row":
            continue
        yield panel["description"]
        for mapping in panel["fieldConfig"]["defaults"].get("mappings", []):
            yield from (shown["text"] for shown in mapping["options"].values())
        for target in panel["targets"]:
            if target.get("legendFormat", "__auto") != "__auto":
                yield target["legendFormat"]
            hidden = {name for step in panel["transformations"] for name in step["options"].get("excludeByName", {})}
            yield from (column["text"] for column in target.get("columns", []) if column["text"] not in hidden)
        for step in panel["transformations"]:
            yield from step["options"].get("renameByName", {}).values()
            yield from filter(None, [step["options"].get("alias")])


def test_the_committed_files_are_what_the_code_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_drift_is_found_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    place = files.FOLDER / "switchyard-keys.json"
    before = place.read_text("utf-8")
    made = [(path, text.replace("Spent", "Gone")) for path, text in files.files()]
    monkeypatch.setattr("tools.dashboards.__main__.files", lambda: made)
    assert main(["--check"]) == 1
    assert "config/grafana/dashboards/switchyard-keys.json: not what tools/dashboards makes" in capsys.readouterr().err
    assert place.read_text("utf-8") == before
    assert main(["--chekc"]) == 2


def test_no_board_is_left_over() -> None:
    assert set(boards()) == {board.uid + suffix for board in files.BOARDS for suffix in ("", "-zh")}


@pytest.mark.parametrize("uid", UIDS)
def test_every_text_has_its_chinese_twin(uid: str) -> None:
    english, chinese = boards()[uid], boards()[f"{uid}-zh"]
    pairs = list(zip(texts(english), texts(chinese), strict=True))
    assert len(pairs) > 50
    for said, told in pairs:
        assert told == words.chinese(said)
        assert not CHINESE.search(said)
        assert CHINESE.search(told) or told == said in words.SAME or re.fullmatch(r"({{\w+}}|[ /()])+", said), said
    assert english["title"] != chinese["title"]
    asked = [[target.get("expr", target.get("url")) for target in panel["targets"]] for panel in panels(english)]
    assert asked == [
        [target.get("expr", target.get("url")) for target in panel["targets"]] for panel in panels(chinese)
    ]


def test_no_translation_is_left_over() -> None:
    said = [text for uid in UIDS for text in texts(boards()[uid])]
    for english in words.WORDS:
        assert any(english in text for text in said), english


def test_a_missing_translation_is_an_error() -> None:
    with pytest.raises(KeyError, match="no Chinese for: Weather"):
        words.chinese("Weather")


@pytest.mark.parametrize("query", [*board_queries(), *rule_queries()], ids=lambda query: f"{query.board}:{query.panel}")
def test_a_query_asks_for_what_exists(query: Any) -> None:
    recorded = {rule["record"] for rule in rules("recording.yml")}
    for selector in selectors(promql_parser.parse(query.expr)):
        assert selector.name is not None
        if selector.name in recorded:
            labels = set(selector.name.partition(":")[0].split("_")) | {"unit", "status_class"}
        elif selector.name == "up":
            labels = set()
        else:
            assert selector.name in KNOWN, f"{selector.name} is no metric of the router"
            labels = set(KNOWN[selector.name].labels)
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= labels | FOREIGN, f"{selector} has labels that the metric lacks"
    for labels_of in re.findall(r"by \(([^)]*)\)", query.expr):
        every = {label for family in BY_NAME.values() for label in family.labels} | FOREIGN
        assert {label.strip() for label in labels_of.split(",")} <= every


def test_every_metric_is_on_a_board() -> None:
    shown = {selector.name for query in board_queries() for selector in selectors(promql_parser.parse(query.expr))}
    assert {KNOWN[name].full for name in shown if name} == {family.full for family in BY_NAME.values()}


def test_a_chosen_provider_hides_no_failure() -> None:
    """Who was not answered has no provider and no model."""
    asked = [
        selector
        for query in board_queries()
        for selector in selectors(promql_parser.parse(query.expr))
        if selector.name == "switchyard_requests_total" and "status_class" in query.expr
    ]
    assert asked
    assert not [found for found in asked if {"provider", "model"} & {one.name for one in found.matchers.matchers}]


def test_every_recorded_metric_is_described() -> None:
    page = (ROOT / "docs/dashboards.md").read_text("utf-8")
    described = set(re.findall(r"`(\w+:\w+:\w+)`", page))
    assert described == {rule["record"] for rule in rules("recording.yml")}


def test_no_query_asks_for_a_key() -> None:
    for query in board_queries():
        assert not re.search(r"\b(key|key_id|user)\b *(=|,|\))", query.expr), query


def test_json_queries_name_fields_that_the_admin_api_has() -> None:
    assert len(json_queries()) == 4
    for query in json_queries():
        fields = UsageRow.model_fields if query.url.startswith("/admin/api/usage?") else RequestRow.model_fields
        assert set(query.columns) <= set(fields), query
        assert query.root == "data"


def test_grafana_is_provisioned_with_what_the_boards_ask() -> None:
    folder = ROOT / "config/grafana/provisioning"
    sources = yaml.safe_load((folder / "datasources/switchyard.yaml").read_text("utf-8"))["datasources"]
    wanted = {
        variable["query"]
        for board in boards().values()
        for variable in board["templating"]["list"]
        if variable["type"] == "datasource"
    }
    assert {source["type"] for source in sources} == wanted
    for source in sources:
        for name, value in source.get("secureJsonData", {}).items():
            assert re.fullmatch(r"\$[A-Z_]+", value), f"{name} is a secret in a file"
    (provider,) = yaml.safe_load((folder / "dashboards/switchyard.yaml").read_text("utf-8"))["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_the_command_is_silent_when_nothing_differs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.dashboards", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((files.FOLDER / "switchyard-overview.json").read_text("utf-8"))["uid"] == "switchyard-overview"
