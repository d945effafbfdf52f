"""What a board is made of, in English. `render` turns it into Grafana's JSON, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stat", "timeseries", "table", "state-timeline", "bargauge"]
JSON_TYPE = "yesoreyeram-infinity-datasource"


@dataclass(frozen=True, slots=True)
class Target:
    """A PromQL query. `instant` asks for the present value alone, as tables do."""

    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A field of the rows that a JSON endpoint answers, and its heading."""

    selector: str
    text: str
    type: Literal["string", "number", "timestamp"] = "string"
    unit: str = ""
    divided_by: int = 1  # micro-units come as integers


@dataclass(frozen=True, slots=True)
class JsonTarget:
    """A GET of the admin API through Grafana's Infinity data source; `root` names the list of rows."""

    url: str
    root: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What is shown instead of a value."""

    value: str
    text: str
    color: str


@dataclass(frozen=True, slots=True)
class Panel:
    """`columns` (of tables) maps labels and `Value #A`, `Value #B`... to headings, in their order; others are hidden.
    `units` and `mapped` of a table are by heading. `steps` are thresholds: from which value on which color."""

    kind: Kind
    title: str
    description: str
    unit: str
    targets: tuple[Target, ...] | JsonTarget
    width: int = 8
    height: int = 8
    steps: tuple[tuple[float, str], ...] = ()
    mapped: tuple[Mapped, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    sort_by: str = ""
    no_value: str = ""
    time_from: str = ""
    stacked: bool = False
    low: float | None = None
    high: float | None = None
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of the board: the values of `label` of the family `of`."""

    name: str
    label: str
    of: str


@dataclass(frozen=True, slots=True)
class Board:
    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    reads_json: bool = False

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)
