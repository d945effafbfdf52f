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

NEEDS: Final[Mapping[str, str]] = {
    "switchyard_cost_total": "a call that has a price was settled",
    "switchyard_tokens_total": "a call was settled",
    "switchyard_ttft_seconds_bucket": "a stream was answered",
    "switchyard_time_per_output_token_seconds_bucket": "a stream of two tokens or more ended well",
    "switchyard_usd_cny": "prices.usd_cny is set",
    "switchyard_fallbacks_total": "a fallback has answered",
    "switchyard_quota_rejections_total": "a limit has refused a call",
    "switchyard_client_disconnects_total": "a client has left before the end",
    "switchyard_provider_down": "a provider is down",
    "switchyard_queue_depth": "a provider has max_concurrency",
    "switchyard_queue_wait_seconds_bucket": "a provider with max_concurrency was called",
    "switchyard_ollama_loaded_models": "a local Ollama is there",
    "switchyard_ollama_vram_bytes": "a local Ollama has loaded a model",
    "switchyard_team_limit": "a team has a limit",
    "switchyard_team_limit_spent": "a team has a limit",
    "switchyard_team_limit_held": "a team has a limit",
    "job_limit_scope:switchyard_quota_rejections:rate10m": "a limit has refused a call",
    "job_team_limit_unit:switchyard_team_limit_used:ratio": "a team has a limit",
    "job_provider:switchyard_queue_wait_seconds:p95_rate10m": "a provider with max_concurrency was called",
}
"""What must have happened for a metric to be there; the others are there after any call."""


@dataclass(frozen=True, slots=True)
class Query:
    """`expr` is plain PromQL. `only_when`: what must have happened for it to return anything; empty: any call."""

    board: str
    panel: str
    expr: str
    only_when: str = ""


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
            plain = substituted(expr, rate, span)
            found.append(Query(uid, panel, plain, needs(plain)))
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
    found = []
    for file in ("recording.yml", "alerts.yml"):
        for rule in rules(file):
            name = rule.get("record") or rule["alert"]
            for expr in compared(promql_parser.parse(rule["expr"])):
                empty = "no target has the job" if expr.startswith("absent(") else needs(expr)
                found.append(Query(file, name, expr, empty))
    return found


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


def needs(expr: str) -> str:
    """What must have happened for the expression to return anything: by its metrics, unless it falls back to others."""
    if expr.endswith("or vector(0)"):
        return ""
    return "; ".join(dict.fromkeys(NEEDS[name] for name in sorted(metrics(expr)) if name in NEEDS))


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
