"""What the committed boards and rules ask, ready to be run against a live Prometheus or router."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import promql_parser
import yaml

ROOT: Final = Path(__file__).resolve().parent.parent.parent
BOARDS: Final = ROOT / "config/grafana/dashboards"
RULES: Final = ROOT / "config/prometheus"


@dataclass(frozen=True, slots=True)
class Query:
    """`expr` is plain PromQL."""

    board: str
    panel: str
    expr: str


@dataclass(frozen=True, slots=True)
class JsonQuery:
    """A GET of the admin API with its token. `root` names the list in the answer, `columns` fields of its rows."""

    board: str
    panel: str
    url: str
    root: str
    columns: tuple[str, ...]


@cache
def boards() -> Mapping[str, Any]:
    """The committed boards by their uids. Do not change what is in them."""
    return {value["uid"]: value for value in map(_json, sorted(BOARDS.glob("*.json")))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Without rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def substituted(text: str, rate: str = "1m", span: str = "1h") -> str:
    """With Grafana's variables filled in, and everything chosen."""
    known = {"__rate_interval": rate, "__range": span, "__interval": "15s"}
    return re.sub(r"\$\{?(\w+)\}?", lambda found: known.get(found[1], ".+"), text)


def board_queries(rate: str = "1m", span: str = "1h", suffix: str = "") -> list[Query]:
    """Of every panel and variable. rate, span: for `$__rate_interval` and `$__range`; suffix: `-zh` for the Chinese."""
    found = []
    for uid, board in boards().items():
        if uid.endswith("-zh") != (suffix == "-zh"):
            continue
        asked = [
            (panel["title"], query["expr"]) for panel in panels(board) for query in panel["targets"] if "expr" in query
        ]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]  # a test checks the form
                asked.append((f"variable {variable['name']}", f"group by ({label}) ({metric})"))
        for panel, expr in asked:
            found.append(Query(uid, panel, substituted(expr, rate, span)))
    return found


def json_queries() -> list[JsonQuery]:
    """Of the panels that ask the admin API."""
    return [
        JsonQuery(
            uid,
            panel["title"],
            query["url"],
            query["root_selector"],
            tuple(column["selector"] for column in query["columns"]),
        )
        for uid, board in boards().items()
        if not uid.endswith("-zh")
        for panel in panels(board)
        for query in panel["targets"]
        if "url" in query
    ]


def rule_queries() -> list[Query]:
    """Of recording rules the expression; of alerts what they compare, without the comparison, so that it returns data
    while nothing is wrong. `board` is the file, `panel` the name of the rule."""
    return [
        Query(file, rule.get("record") or rule["alert"], expr)
        for file in ("recording.yml", "alerts.yml")
        for rule in rules(file)
        for expr in compared(promql_parser.parse(rule["expr"]))
    ]


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / file).read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def compared(expr: Any) -> Iterator[str]:
    """What stands on the left of comparisons with a number; of `and` both sides, of `unless`, and of
    `or` between comparisons, the left one."""
    if isinstance(expr, promql_parser.ParenExpr):
        yield from compared(expr.expr)
    elif isinstance(expr, promql_parser.BinaryExpr) and str(expr.op) in {">", "<", ">=", "<=", "==", "!="}:
        yield from compared(expr.lhs)
    elif isinstance(expr, promql_parser.BinaryExpr) and str(expr.op) in {"and", "unless"}:
        yield from compared(expr.lhs)
        if str(expr.op) == "and":
            yield from compared(expr.rhs)
    elif (
        isinstance(expr, promql_parser.BinaryExpr)
        and str(expr.op) == "or"
        and list(compared(expr.lhs)) != [str(expr.lhs)]
    ):
        yield from compared(expr.lhs)
    else:
        yield str(expr)


def metrics(expr: str) -> set[str]:
    """Names of the metrics in an expression. Raises ValueError for one that is none."""
    return {vector.name for vector in selectors(promql_parser.parse(expr)) if vector.name}


def selectors(expr: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every selector below an expression."""
    if isinstance(expr, promql_parser.VectorSelector):
        yield expr
    elif isinstance(expr, promql_parser.MatrixSelector):
        yield expr.vector_selector
    else:
        for name in ("expr", "lhs", "rhs", "param"):
            child = getattr(expr, name, None)
            if child is not None:
                yield from selectors(child)
        for child in getattr(expr, "args", None) or ():
            yield from selectors(child)


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))
