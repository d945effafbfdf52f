"""What boards and rules ask, read from the files that are shipped; a board's choices and intervals are filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import promql_parser
import yaml

ROOT: Final = Path(__file__).parents[2]
BOARDS: Final = ROOT / "config" / "grafana" / "dashboards"
RULES: Final = ROOT / "config" / "prometheus"
_SERIES: Final = re.compile(r"label_values\((?:(?P<of>.+),\s*)?(?P<label>\w+)\)")
_DEFAULT: Final = " or vector(0)"


@dataclass(frozen=True, slots=True)
class Asked:
    """A query of a panel. `instant`: of the moment, not of a time."""

    where: str
    text: str
    instant: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """What fills a list of choices: the values of `label` of these series."""

    where: str
    series: str
    label: str


@dataclass(frozen=True, slots=True)
class Table:
    """A panel that is filled by the router's own API: the path, where the rows are, and the members that are shown."""

    where: str
    path: str
    rows: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of Prometheus: `record` or `alert` is its name, the other is empty."""

    record: str
    alert: str
    text: str

    @property
    def selectors(self) -> tuple[str, ...]:
        """The series that it looks at, whatever it makes of them."""
        return tuple(dict.fromkeys(_selectors(promql_parser.parse(self.text))))


def boards() -> list[Path]:
    return sorted(BOARDS.glob("*.json"))


def of_board(path: Path, *, interval: str, span: str) -> Iterator[Asked]:
    """Its queries for Prometheus. `interval` stands for `$__rate_interval`, `span` for `$__range`."""
    board = json.loads(path.read_text())
    chosen = {"__rate_interval": interval, "__interval": interval, "__range": span}
    for name in _variables(board):
        # As Grafana fills in the choice `All`.
        chosen[name["name"]] = name.get("allValue") or ".+"
    for panel in _panels(board):
        for target in panel.get("targets", ()):
            if (text := target.get("expr")) is not None:
                # What a panel shows where nothing has happened yet is no answer.
                text = _filled(text, chosen).removesuffix(_DEFAULT)
                yield Asked(f"{path.name}: {panel['title']}", text, bool(target.get("instant")))


def choices(path: Path) -> Iterator[Choice]:
    board = json.loads(path.read_text())
    everything = {name["name"]: ".+" for name in _variables(board)}
    for name in _variables(board):
        found = _SERIES.fullmatch(_query(name))
        if found is not None:
            yield Choice(f"{path.name}: ${name['name']}", _filled(found["of"], everything), found["label"])


def tables(path: Path) -> Iterator[Table]:
    board = json.loads(path.read_text())
    for panel in _panels(board):
        for target in panel.get("targets", ()):
            if (url := target.get("url")) is not None:
                columns = tuple(column["selector"] for column in target["columns"])
                yield Table(f"{path.name}: {panel['title']}", url, target["root_selector"], columns)


def rules() -> list[Rule]:
    return [
        Rule(rule.get("record", ""), rule.get("alert", ""), rule["expr"])
        for path in sorted(RULES.glob("*.yml"))
        for group in (yaml.safe_load(path.read_text()) or {}).get("groups", ())
        for rule in group["rules"]
    ]


def _panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", ())


def _variables(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (name for name in board["templating"]["list"] if name["type"] == "query")


def _query(variable: dict[str, Any]) -> str:
    query = variable["query"]
    return str(query["query"] if isinstance(query, dict) else query)


def _filled(text: str, chosen: dict[str, str]) -> str:
    for name in sorted(chosen, key=len, reverse=True):
        text = text.replace(f"${{{name}}}", chosen[name]).replace(f"${name}", chosen[name])
    return text


def _selectors(node: Any) -> Iterator[str]:
    """The vector selectors below a node of a parsed query, without ranges and offsets."""
    match node:
        case promql_parser.VectorSelector():
            yield f"{node.name or ''}{node.matchers}"
        case promql_parser.MatrixSelector():
            yield from _selectors(node.vector_selector)
        case promql_parser.SubqueryExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from _selectors(node.expr)
        case promql_parser.AggregateExpr():
            yield from _selectors(node.expr)
            if node.param is not None:
                yield from _selectors(node.param)
        case promql_parser.BinaryExpr():
            yield from _selectors(node.lhs)
            yield from _selectors(node.rhs)
        case promql_parser.Call():
            for argument in node.args:
                yield from _selectors(argument)
        case _:
            pass
