"""Grafana's JSON of a board, in one of two languages.

The file format is that of Grafana 10; newer ones read it. Every panel asks through the variable `datasource`, and those
of the admin API through `infinity`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.dashboards.model import JSON_TYPE, Board, JsonTarget, Kind, Panel, Target
from tools.dashboards.queries import PREFIX

Say = Callable[[str], str]
"""A text in the language of the board."""

AnyPanel = stat.Panel | timeseries.Panel | table.Panel | statetimeline.Panel | bargauge.Panel

_KINDS: Final[dict[Kind, Callable[[], AnyPanel]]] = {
    "stat": lambda: stat.Panel().color_mode(commons.BigValueColorMode.VALUE).reduce_options(_last()),
    "timeseries": lambda: (
        timeseries.Panel()
        .fill_opacity(10)
        .show_points(commons.VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI).sort(commons.SortOrder.DESCENDING))
        .legend(_legend())
    ),
    "table": lambda: table.Panel().show_header(True),
    "state-timeline": lambda: (
        statetimeline.Panel().show_value(commons.VisibilityMode.AUTO).merge_values(True).legend(_legend())
    ),
    "bargauge": lambda: (
        bargauge.Panel()
        .display_mode(commons.BarGaugeDisplayMode.BASIC)
        .orientation(commons.VizOrientation.HORIZONTAL)
        .reduce_options(_last())
    ),
}
_JOB: Final = f"label_values({PREFIX}build_info, job)"
_INSTANCE: Final = f'label_values({PREFIX}build_info{{job=~"$job"}}, instance)'


@dataclass(frozen=True, slots=True)
class Language:
    """`suffix` makes the uid and the file name; boards of a language link to each other by `tag`."""

    tag: str
    suffix: str
    say: Say


def render(board: Board, language: Language) -> str:
    """The file. Raises KeyError for a text that the language lacks."""
    say = language.say
    built = (
        dashboard.Dashboard(say(board.title))
        .uid(board.uid + language.suffix)
        .description(say(board.description))
        .tags(["switchyard", language.tag])
        .readonly()
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("30s")
        .link(
            dashboard.DashboardLink(say("Boards"))
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["switchyard", language.tag])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .variables(_variables(board, say))
    )
    number = 0
    for row in board.rows:
        number += 1
        built.with_row(dashboard.Row(say(row.title)).id(number))
        for panel in row.panels:
            number += 1
            built.with_panel(_panel(panel, say).id(number))
    value = json.loads(json.dumps(built.build(), cls=JSONEncoder))
    return json.dumps(_fitted(value), ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def _fitted(value: dict[str, Any]) -> dict[str, Any]:
    """Panels side by side from left to right; the next line begins below the tallest of one that is full."""
    x = y = tallest = 0
    for panel in value["panels"]:
        place = panel["gridPos"]
        if x + place["w"] > 24 or panel["type"] == "row":
            x, y, tallest = 0, y + tallest, 0
        place["x"], place["y"] = x, y
        x, tallest = x + place["w"], max(tallest, place["h"])
    return value


def _variables(board: Board, say: Say) -> list[Builder[models.VariableModel]]:
    found: list[Builder[models.VariableModel]] = [
        dashboard.DatasourceVariable("datasource").label(say("Data source")).type("prometheus")
    ]
    if board.reads_json:
        found.append(dashboard.DatasourceVariable("infinity").label(say("Admin API")).type(JSON_TYPE))
    found += [_choice("job", say("Job"), _JOB), _choice("instance", say("Instance"), _INSTANCE)]
    for variable in board.variables:
        family = f'{PREFIX}{variable.of}{{job=~"$job", instance=~"$instance"}}'
        found.append(_choice(variable.name, say(variable.label), f"label_values({family}, {variable.name})"))
    return found


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(_PROMETHEUS)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel, say: Say) -> AnyPanel:
    made = (
        _KINDS[panel.kind]()
        .title(say(panel.title))
        .description(say(panel.description))
        .unit(panel.unit)
        .span(panel.width)
        .height(panel.height)
        .thresholds(_thresholds(panel))
    )
    if panel.time_from:
        made.time_from(panel.time_from)
    if panel.no_value:
        made.no_value(panel.no_value)
    if panel.low is not None:
        made.min(panel.low)
    if panel.high is not None:
        made.max(panel.high)
    if panel.decimals is not None:
        made.decimals(panel.decimals)
    if panel.mapped:
        made.mappings([_mapping(panel, say)])
    if panel.stacked and isinstance(made, timeseries.Panel):
        made.stacking(common.StackingConfig().mode(commons.StackingMode.NORMAL)).fill_opacity(40)
    if isinstance(made, timeseries.Panel | statetimeline.Panel | bargauge.Panel) and not panel.steps:
        made.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    if isinstance(made, statetimeline.Panel | stat.Panel):
        made.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    if isinstance(panel.targets, JsonTarget):
        made.datasource(_INFINITY).with_target(_Built(_JsonQuery("A", panel.targets, say)))
    else:
        made.datasource(_PROMETHEUS)
        for ref, target in zip("ABCDEF", panel.targets, strict=False):
            made.with_target(_query(ref, target, panel.kind, say))
    if isinstance(made, table.Panel):
        _as_table(made, panel, say)
    return made


def _query(ref: str, target: Target, kind: Kind, say: Say) -> prometheus.Dataquery:
    query = prometheus.Dataquery().ref_id(ref).expr(target.expr).datasource(_PROMETHEUS)
    query = query.instant() if target.instant else query.range()
    form = PromQueryFormat.TABLE if kind == "table" else PromQueryFormat.TIME_SERIES
    return query.format(form).legend_format(say(target.legend) if target.legend else "__auto")


def _as_table(made: table.Panel, panel: Panel, say: Say) -> None:
    targets = panel.targets
    if isinstance(targets, JsonTarget):
        headings = {column.text: column.text for column in targets.columns}
        units = {column.text: column.unit for column in targets.columns if column.unit}
        for column in targets.columns:
            if column.divided_by != 1:
                _divide(made, column.selector, say(column.text), column.divided_by)
    else:
        headings, units = dict(panel.columns), dict(panel.units)
        if len(targets) > 1:
            made.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        made.with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True, **({} if "Value" in headings else {"Value": True})},
                    "indexByName": {name: place for place, name in enumerate(headings)},
                    "renameByName": {name: say(text) for name, text in headings.items()},
                },
            )
        )
    for heading, unit in units.items():
        settings = [models.DynamicConfigValue(id_val="unit", value=unit)]
        if unit == "percentunit":  # a bar
            bar = {"custom.cellOptions": {"type": "gauge", "mode": "basic"}, "min": 0, "max": 1}
            settings += [models.DynamicConfigValue(id_val=name, value=value) for name, value in bar.items()]
        made.override_by_name(say(heading), settings)
    if panel.sort_by:
        made.sort_by([common.TableSortByFieldState().display_name(say(panel.sort_by)).desc(True)])


def _divide(made: table.Panel, raw: str, name: str, by: int) -> None:
    """A column `name` with the quotient in place of the column `raw`."""
    binary = {"left": raw, "operator": "/", "right": str(by)}
    made.with_transformation(
        models.DataTransformerConfig(
            id_val="calculateField",
            options={"alias": name, "mode": "binary", "binary": binary, "reduce": {"reducer": "sum"}},
        )
    )
    made.with_transformation(
        models.DataTransformerConfig(
            id_val="organize", options={"excludeByName": {raw: True}, "indexByName": {}, "renameByName": {}}
        )
    )


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    first = [models.Threshold(value=None, color="green" if panel.steps else "text")]
    steps = first + [models.Threshold(value=value, color=color) for value, color in panel.steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _mapping(panel: Panel, say: Say) -> models.ValueMap:
    return models.ValueMap(
        options={
            mapped.value: models.ValueMappingResult(text=say(mapped.text), color=mapped.color, index=place)
            for place, mapped in enumerate(panel.mapped)
        }
    )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(commons.LegendDisplayMode.LIST)
        .placement(commons.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


_PROMETHEUS: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_INFINITY: Final = models.DataSourceRef(type_val=JSON_TYPE, uid="${infinity}")


class _JsonQuery(Dataquery):
    """A query of the Infinity data source (`src/types/query.types.ts` of grafana/grafana-infinity-datasource)."""

    def __init__(self, ref: str, target: JsonTarget, say: Say) -> None:
        self.ref, self.target, self.say = ref, target, say

    def to_json(self) -> dict[str, object]:
        return {
            "refId": self.ref,
            "datasource": _INFINITY,
            "type": "json",
            "parser": "backend",
            "source": "url",
            "format": "table",
            "url": self.target.url,
            "url_options": {"method": "GET"},
            "root_selector": self.target.root,
            "columns": [
                {
                    "selector": column.selector,
                    "text": self.say(column.text) if column.divided_by == 1 else column.selector,
                    "type": column.type,
                }
                for column in self.target.columns
            ],
            "filters": [],
        }


class _Built(Builder[Dataquery]):
    def __init__(self, query: Dataquery) -> None:
        self._query = query

    def build(self) -> Dataquery:
        return self._query
