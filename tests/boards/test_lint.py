"""The rules of Grafana's dashboard-linter over the committed boards, but for what .lint beside them lets pass.

The rules are those of grafana/dashboard-linter (`lint/rule_*.go`) for boards that read Prometheus; its rules for Loki
have nothing to look at here. Where it only warns (labels of variables), the boards in English keep to it as well."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import promql_parser
import pytest
import yaml

from tests.boards.queries import BOARDS, boards, panels, selectors, substituted

Board = Mapping[str, Any]
Found = Iterator[tuple[str, str]]
"""The panel (or nothing) and what is wrong."""

LOOKED_AT: Final = {"stat", "singlestat", "graph", "table", "timeseries", "gauge"}
"""The linter leaves other kinds of panels alone; ours keep the rules all the same."""
KINDS: Final = LOOKED_AT | {"bargauge", "state-timeline"}
UNITS: Final = {
    *("none", "short", "percent", "percentunit", "currencyUSD", "currencyJPY", "bytes", "decbytes", "s", "ms"),
    *("reqps", "ops", "cps", "rps", "bool", "bool_yes_no", "bool_on_off", "dateTimeFromNow"),
}
"""Of the linter's list those that a board of ours may want."""
MAGIC: Final = "3671s"
"""What stands for $__rate_interval, so that it is told from other ranges."""


def targets(board: Board) -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel["title"], target


def variables(board: Board, kind: str) -> list[dict[str, Any]]:
    return [variable for variable in board["templating"]["list"] if variable["type"] == kind]


def parsed(target: Mapping[str, Any]) -> Any:
    return promql_parser.parse(substituted(target.get("expr", ""), rate=MAGIC))


def template_datasource(board: Board) -> Found:
    found = variables(board, "datasource")
    if not found:
        yield "", "has no variable for the data source"
    for variable in found:
        alone = len(found) == 1 and variable["name"] == "datasource"
        if not alone and variable["name"] != f"{variable['query']}_datasource":
            yield "", f"the variable {variable['name']} has another name than the linter's"
        if alone and not board["uid"].endswith("-zh") and variable["label"] != "Data source":
            yield "", f"the variable {variable['name']} has the label {variable['label']}"


def template_of(name: str) -> Callable[[Board], Found]:
    def check(board: Board) -> Found:
        found = [variable for variable in variables(board, "query") if variable["name"] == name]
        if not found:
            yield "", f"has no query variable {name}"
        for variable in found:
            if variable["datasource"]["uid"] not in ("$datasource", "${datasource}"):
                yield "", f"{name} asks another source than $datasource"
            if not variable["multi"] or variable["allValue"] != ".+":
                yield "", f"{name} does not take several values, or all"
            if not board["uid"].endswith("-zh") and variable["label"] != name.title():
                yield "", f"{name} has the label {variable['label']}"

    return check


def template_label_promql(board: Board) -> Found:
    for variable in variables(board, "query"):
        form = re.fullmatch(r"(label_values|label_names|metrics|query_result)\((.+), (\w+)\)", variable["query"])
        if form is None:
            yield "", f"{variable['name']} is no query for values"
        else:
            try:
                promql_parser.parse(substituted(form[2]))
            except ValueError as error:
                yield "", f"{variable['name']}: {error}"


def template_reload(board: Board) -> Found:
    for variable in variables(board, "query"):
        if variable["refresh"] != 2:
            yield "", f"{variable['name']} is not read anew when the time changes"


def panel_datasource(board: Board) -> Found:
    known = {f"${{{variable['name']}}}" for variable in variables(board, "datasource")}
    for panel in panels(board):
        for place in (panel, *panel["targets"]):
            if place["datasource"]["uid"] not in known:
                yield panel["title"], f"asks {place['datasource']['uid']}"


def panel_title_description(board: Board) -> Found:
    for panel in panels(board):
        if not panel.get("title") or not panel.get("description"):
            yield panel.get("title", ""), "has no title or no description"


def panel_units(board: Board) -> Found:
    for panel in panels(board):
        units = [panel["fieldConfig"]["defaults"].get("unit")]
        for override in panel["fieldConfig"]["overrides"]:
            units += [setting["value"] for setting in override["properties"] if setting["id"] == "unit"]
        if not set(units) <= UNITS:
            yield panel["title"], f"has units {units}"


def panel_no_targets(board: Board) -> Found:
    for panel in panels(board):
        if not panel.get("targets"):
            yield panel["title"], "asks nothing"


def target_promql(board: Board) -> Found:
    for title, target in targets(board):
        try:
            parsed(target)
        except ValueError as error:
            yield title, str(error)


def target_rate_interval(board: Board) -> Found:
    for title, expr in readable(board):
        for call, ranged in calls(expr):
            magic = str(ranged).endswith(f"[{promql_parser.display_duration(promql_parser.parse_duration(MAGIC))}]")
            if not magic and (call is None or call in ("rate", "irate")):
                yield title, f"{ranged} does not use $__rate_interval"


def target_matcher(name: str) -> Callable[[Board], Found]:
    def check(board: Board) -> Found:
        for title, target in targets(board):
            text = target.get("expr")
            if text is None:
                continue
            for selector in selectors(
                promql_parser.parse(text.replace("$__rate_interval", "1m").replace("$__range", "1h"))
            ):
                if f'{name}=~"${name}"' not in str(selector):
                    yield title, f"{selector} has no {name} matcher"

    return check


def target_counter_agg(board: Board) -> Found:
    for title, expr in readable(board):
        taken = {str(ranged.vector_selector) for call, ranged in calls(expr) if call in ("rate", "irate", "increase")}
        for selector in selectors(expr):
            if (selector.name or "").endswith("_total") and str(selector) not in taken:
                yield title, f"{selector} is a counter that is not aggregated"


def uneditable(board: Board) -> Found:
    if board["editable"]:
        yield "", "is editable"


def readable(board: Board) -> Iterator[tuple[str, Any]]:
    """Expressions that parse; others are another rule's."""
    for title, target in targets(board):
        if "expr" in target:
            yield title, parsed(target)


def calls(expr: Any, call: str | None = None) -> Iterator[tuple[str | None, Any]]:
    """Every range below an expression, with the function that it stands in."""
    if isinstance(expr, promql_parser.MatrixSelector):
        yield call, expr
    elif isinstance(expr, promql_parser.Call):
        for argument in expr.args:
            yield from calls(argument, expr.func.name)
    else:
        for name in ("expr", "lhs", "rhs", "param"):
            child = getattr(expr, name, None)
            if child is not None:
                yield from calls(child)


RULES: Final[Mapping[str, Callable[[Board], Found]]] = {
    "template-datasource-rule": template_datasource,
    "template-job-rule": template_of("job"),
    "template-instance-rule": template_of("instance"),
    "template-label-promql-rule": template_label_promql,
    "template-on-time-change-reload-rule": template_reload,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": panel_title_description,
    "panel-units-rule": panel_units,
    "panel-no-targets-rule": panel_no_targets,
    "target-promql-rule": target_promql,
    "target-rate-interval-rule": target_rate_interval,
    "target-job-rule": target_matcher("job"),
    "target-instance-rule": target_matcher("instance"),
    "target-counter-agg-rule": target_counter_agg,
    "uneditable-dashboard": uneditable,
}


def excluded() -> dict[str, list[dict[str, str]]]:
    rules = yaml.safe_load((BOARDS / ".lint").read_text("utf-8"))["exclusions"]
    return {name: rule["entries"] for name, rule in rules.items()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("uid", boards())
def test_a_board_keeps_the_rule(uid: str, rule: str) -> None:
    board = boards()[uid]
    entries = excluded().get(rule, [])
    wrong = [
        (panel, what)
        for panel, what in RULES[rule](board)
        if not any(
            entry.get("dashboard", board["title"]) == board["title"] and entry.get("panel", panel) == panel
            for entry in entries
        )
    ]
    assert wrong == []


def test_nothing_is_excluded_that_keeps_its_rule() -> None:
    for rule, entries in excluded().items():
        found = [(board["title"], panel) for board in boards().values() for panel, _ in RULES[rule](board)]
        for entry in entries:
            assert any(
                entry.get("dashboard", title) == title and entry.get("panel", panel) == panel for title, panel in found
            ), (rule, entry)


def test_panels_are_of_known_kinds_and_do_not_overlap() -> None:
    for board in boards().values():
        taken: set[tuple[int, int]] = set()
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(numbers) == len(set(numbers))
        assert {panel["type"] for panel in panels(board)} <= KINDS
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, (board["uid"], panel["title"])
            assert place["x"] + place["w"] <= 24
            taken |= cells


BROKEN: Final[Mapping[str, Callable[[dict[str, Any]], object]]] = {
    "template-datasource-rule": lambda b: b["templating"]["list"].pop(0),
    "template-job-rule": lambda b: b["templating"]["list"][1].update(multi=False),
    "template-instance-rule": lambda b: b["templating"]["list"][2].update(allValue=".*"),
    "template-label-promql-rule": lambda b: b["templating"]["list"][1].update(query="label_values(a b, job)"),
    "template-on-time-change-reload-rule": lambda b: b["templating"]["list"][1].update(refresh=1),
    "panel-datasource-rule": lambda b: b["panels"][1].update(datasource={"uid": "mine"}),
    "panel-title-description-rule": lambda b: b["panels"][1].update(description=""),
    "panel-units-rule": lambda b: b["panels"][1]["fieldConfig"]["defaults"].update(unit="parsecs"),
    "panel-no-targets-rule": lambda b: b["panels"][1].update(targets=[]),
    "target-promql-rule": lambda b: b["panels"][1]["targets"][0].update(expr="sum by"),
    "target-rate-interval-rule": lambda b: b["panels"][1]["targets"][0].update(expr="rate(a_total[5m])"),
    "target-job-rule": lambda b: b["panels"][1]["targets"][0].update(expr='a{instance=~"$instance"}'),
    "target-instance-rule": lambda b: b["panels"][1]["targets"][0].update(expr='a{job=~"$job"}'),
    "target-counter-agg-rule": lambda b: b["panels"][1]["targets"][0].update(expr="sum(a_total)"),
    "uneditable-dashboard": lambda b: b.update(editable=True),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_board_is_found(rule: str) -> None:
    board = copy.deepcopy(boards()["switchyard-overview"])
    assert list(RULES[rule](board)) == []
    BROKEN[rule](board)
    assert list(RULES[rule](board)) != []
