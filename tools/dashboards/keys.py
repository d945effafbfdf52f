"""The board Keys & quota. Teams are labels; keys are not: there may be thousands, and names of people. What single keys
used is asked of the admin API, in a row of its own."""

from __future__ import annotations

from tools.dashboards.model import Board, Column, JsonTarget, Panel, Row, Target, Variable
from tools.dashboards.queries import Queries, zero

Q = Queries(frozenset({"team"}))
SERIES = "team, limit, unit"
NEEDS = (
    " Needs the Infinity data source plugin with the router's address and its admin token; see docs/dashboards.md."
    " Without them this panel alone stays empty."
)
SPENT = Q.shared("team_limit_spent", by=SERIES)
HELD = Q.shared("team_limit_held", by=SERIES)
LIMIT = Q.shared("team_limit", by=SERIES)
USED = f"({SPENT} + ({HELD} or {SPENT} * 0)) / ({LIMIT} > 0)"
NEARLY = ((0.8, "orange"), (0.95, "red"))

TEAMS = Row(
    "Limits of teams",
    (
        Panel(
            "bargauge",
            "Used up, the fullest",
            "What is spent and held of a limit, as a share of it: the ten fullest of all teams. At 100 % calls"
            " are refused.",
            "percentunit",
            (Target(f"topk(10, {USED})", "{{team}} {{limit}}", instant=True),),
            10,
            10,
            NEARLY,
            low=0,
            high=1,
        ),
        Panel(
            "table",
            "Limits",
            "What is spent, what running calls hold, and the limit; in the unit beside it. Read from the store"
            " at scrape"
            " time, the same for all routers.",
            "none",
            (
                Target(USED, instant=True),
                Target(SPENT, instant=True),
                Target(HELD, instant=True),
                Target(LIMIT, instant=True),
            ),
            14,
            10,
            NEARLY,
            columns={
                "team": "Team",
                "limit": "Limit",
                "unit": "Unit",
                "Value #A": "Used up",
                "Value #B": "Spent",
                "Value #C": "Held",
                "Value #D": "At most",
            },
            units={"Used up": "percentunit"},
            sort_by="Used up",
        ),
        Panel(
            "timeseries",
            "Used up over time",
            "What is spent and held of each limit, as a share of it. Calendar windows fall back to 0 when they"
            " begin anew.",
            "percentunit",
            (Target(USED, "{{team}} {{limit}}"),),
            20,
            low=0,
        ),
        Panel(
            "stat",
            "Teams not shown",
            "Teams with limits that are left out here and in the alerts: the metrics have 500 teams at most.",
            "none",
            (Target(Q.shared("team_limits_cut"), instant=True),),
            4,
            steps=((1, "orange"),),
            decimals=0,
        ),
    ),
)

REFUSED = Row(
    "Rejections and settlements",
    (
        Panel(
            "stat",
            "Rejected",
            "Calls of the time shown that a limit refused.",
            "none",
            (Target(zero(Q.increase("quota_rejections_total")), instant=True),),
            4,
            decimals=0,
        ),
        Panel(
            "timeseries",
            "Rejections by limit",
            "Calls for each second that a limit refused, by limit and by whose it is (key or team).",
            "reqps",
            (
                Target(
                    Q.rate("quota_rejections_total", by="limit, scope"),
                    "{{limit}} ({{scope}})",
                ),
            ),
            10,
            stacked=True,
        ),
        Panel(
            "timeseries",
            "Settlements by mark",
            "Calls for each second that were settled: with the provider's count, with the router's own estimate, after"
            " the call broke off, or with nothing used.",
            "reqps",
            (Target(Q.rate("settlements_total", by="mark"), "{{mark}}"),),
            10,
            stacked=True,
        ),
        Panel(
            "timeseries",
            "Estimated share",
            "Share of settlements of what was used that rest on the router's own count of tokens, because the provider"
            " told none.",
            "percentunit",
            (Target(Q.share("settlements_total", 'mark="estimated"', 'mark!="none"'), "estimated"),),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "Overshoots and lost records",
            "For each second: calls that used more than they had held, and what was lost of settlements, of the request"
            " log and of traces. Lost settlements are money: they should stay at 0.",
            "cps",
            (
                Target(zero(Q.rate("quota_overshoots_total")), "overshoots"),
                Target(zero(Q.rate("journal_lost_total")), "settlements lost"),
                Target(zero(Q.rate("log_lines_dropped_total")), "log lines lost"),
                Target(zero(Q.rate("telemetry_spans_lost_total")), "spans lost"),
            ),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "Holds",
            "Calls that hold a part of a quota now. More than the calls in flight: some wait to be given back.",
            "none",
            (
                Target(Q.total("holds"), "holds"),
                Target(Q.total("requests_in_flight"), "in flight"),
            ),
            8,
            low=0,
            decimals=0,
        ),
    ),
)

AMOUNTS = (
    Column("calls", "Calls", "number"),
    Column("errors", "Errors", "number"),
    Column("tokens_in", "Tokens in", "number"),
    Column("tokens_out", "Tokens out", "number"),
    Column("cost_micro_usd", "Cost", "number", "currencyUSD", 1_000_000),
)
BY_KEY = (Column("team", "Team"), Column("key", "Key"), Column("key_id", "Key id"), *AMOUNTS)

KEYS_ROW = Row(
    "Keys, from the admin API",
    (
        Panel(
            "table",
            "Keys today",
            "The keys that cost the most since midnight in the time zone of their team." + NEEDS,
            "none",
            JsonTarget("/admin/api/usage?since=today&group_by=team,key&limit=50", "data", BY_KEY),
            12,
            10,
            sort_by="Cost",
        ),
        Panel(
            "table",
            "Keys this month",
            "The keys that cost the most since the first of the month in the time zone of their team." + NEEDS,
            "none",
            JsonTarget("/admin/api/usage?since=month&group_by=team,key&limit=50", "data", BY_KEY),
            12,
            10,
            sort_by="Cost",
        ),
        Panel(
            "table",
            "Models by team this month",
            "What each team used of which model since the first of the month." + NEEDS,
            "none",
            JsonTarget(
                "/admin/api/usage?since=month&group_by=team,model&limit=50",
                "data",
                (Column("team", "Team"), Column("model", "Model"), *AMOUNTS),
            ),
            12,
            10,
            sort_by="Cost",
        ),
        Panel(
            "table",
            "Last failed calls",
            "The last calls that failed or were refused, with the key and the status. Of those that a limit refused"
            " (429) the first of a key by that limit in an hour is listed; Rejections by limit has all." + NEEDS,
            "none",
            JsonTarget(
                "/admin/api/requests?status=failed&limit=50",
                "data",
                (
                    Column("time", "Time", "timestamp"),
                    Column("team", "Team"),
                    Column("key", "Key"),
                    Column("status", "Status", "number"),
                    Column("id", "Request"),
                ),
            ),
            12,
            10,
            sort_by="Time",
        ),
    ),
)

KEYS = Board(
    "switchyard-keys",
    "Switchyard: Keys & quota",
    "Limits of teams and what is left of them, rejections, settlements, and what single keys used.",
    (Variable("team", "Team", "team_limit"),),
    (TEAMS, REFUSED, KEYS_ROW),
    reads_json=True,
)
