"""The board Overview: how the router as a whole is doing."""

from __future__ import annotations

from tools.dashboards.model import Board, Panel, Row, Target, Variable
from tools.dashboards.queries import Queries, zero

Q = Queries(frozenset({"provider", "model", "route"}))
ALL = Queries(frozenset({"route"}))
"""For what failed, too: it has no provider and no model."""
WHOEVER = " Of all calls, whoever is chosen as having answered: a failed call has no provider."
ERROR = 'status_class="5xx"'
FALLBACK = 'fallback!="none"'
USD = 'currency="usd"'
WHOLE = 'type=~"input|output"'
GREEN_TO_RED = ((0.01, "orange"), (0.05, "red"))


def _percentiles(family: str) -> tuple[Target, ...]:
    return tuple(Target(Q.quantile(q, family), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99))


GLANCE = Row(
    "At a glance",
    (
        Panel(
            "stat",
            "Requests",
            "Calls that ended, for each second, whatever they ended with.",
            "reqps",
            (Target(Q.rate("requests_total")),),
            4,
            4,
        ),
        Panel(
            "stat",
            "Error share",
            "Share of calls that failed with a status of 5xx, or broke off. Callers' own deadlines (504) are not in it."
            + WHOEVER,
            "percentunit",
            (Target(ALL.share("requests_total", ERROR)),),
            4,
            4,
            GREEN_TO_RED,
            low=0,
            decimals=2,
        ),
        Panel(
            "stat",
            "Time to first token, p95",
            "In 95 of 100 streams the first content came at least as fast. Streams alone are timed.",
            "s",
            (Target(Q.quantile(0.95, "ttft_seconds")),),
            4,
            4,
            ((5, "orange"), (10, "red")),
            no_value="-",
        ),
        Panel(
            "stat",
            "Tokens",
            "Input and output tokens for each second, as they were billed.",
            "none",
            (Target(Q.rate("tokens_total", WHOLE)),),
            4,
            4,
            no_value="0",
            decimals=1,
        ),
        Panel(
            "stat",
            "Cost today, USD",
            "What the calls since midnight cost by the price list, in US dollars. Midnight is that of the browser.",
            "currencyUSD",
            (Target(zero(Q.increase("cost_total", USD)), instant=True),),
            4,
            4,
            time_from="now/d",
            decimals=2,
        ),
        Panel(
            "stat",
            "Cost today, CNY",
            "The same in yuan, by the rate `prices.usd_cny` of the configuration.",
            "currencyJPY",  # the sign of both is ¥, and the list of units that the linter knows has no yuan
            (
                Target(
                    zero(f"{Q.increase('cost_total', USD)} * scalar({Q.shared('usd_cny')})"),
                    instant=True,
                ),
            ),
            4,
            4,
            time_from="now/d",
            decimals=2,
        ),
        Panel(
            "stat",
            "Fallback share",
            "Share of calls that another model answered than the one that was asked first.",
            "percentunit",
            (Target(Q.share("requests_total", FALLBACK)),),
            4,
            4,
            ((0.1, "orange"), (0.3, "red")),
            low=0,
            decimals=1,
        ),
        Panel(
            "stat",
            "In flight",
            "Calls that run now, in all workers of all chosen routers.",
            "none",
            (Target(Q.total("requests_in_flight")),),
            4,
            4,
        ),
        Panel(
            "stat",
            "Own overhead, p95",
            "Time that the router itself took before the answer began, without waiting for providers or for a place.",
            "s",
            (Target(Q.quantile(0.95, "overhead_seconds")),),
            4,
            4,
            ((0.05, "orange"), (0.25, "red")),
            no_value="-",
        ),
        Panel(
            "stat",
            "Quota rejections",
            "Calls for each second that a limit of a key or a team refused.",
            "reqps",
            (Target(zero(Q.rate("quota_rejections_total"))),),
            4,
            4,
        ),
        Panel(
            "stat",
            "Client disconnects",
            "Calls for each second whose client left before the end.",
            "reqps",
            (Target(zero(Q.rate("client_disconnects_total"))),),
            4,
            4,
        ),
        Panel(
            "stat",
            "Providers up",
            "How many providers every worker of every router finds usable. Which are not, and why: see the board"
            " Providers & GPU.",
            "none",
            (Target(f"sum ({Q.least('provider_up', by='provider')})"),),
            4,
            4,
        ),
    ),
)

TRAFFIC = Row(
    "Traffic and latency",
    (
        Panel(
            "timeseries",
            "Requests by status",
            "Calls for each second: 2xx answered, 4xx refused (the caller's mistake, or a limit), 5xx failed,"
            " 499 left by the client, 504 out of the caller's own time." + WHOEVER,
            "reqps",
            (Target(ALL.rate("requests_total", by="status_class"), "{{status_class}}"),),
            12,
            stacked=True,
        ),
        Panel(
            "timeseries",
            "Requests by dialect",
            "Calls for each second by the API that the client speaks.",
            "reqps",
            (Target(Q.rate("requests_total", by="dialect"), "{{dialect}}"),),
            12,
            stacked=True,
        ),
        Panel(
            "timeseries",
            "Errors and refusals, share",
            "Shares of calls that failed (5xx), were refused (4xx), were left by their clients (499) and did not end in"
            " the caller's own time (504)." + WHOEVER,
            "percentunit",
            (
                Target(ALL.share("requests_total", ERROR), "failed (5xx)"),
                Target(ALL.share("requests_total", 'status_class="4xx"'), "refused (4xx)"),
                Target(ALL.share("requests_total", 'status_class="499"'), "client left (499)"),
                Target(ALL.share("requests_total", 'status_class="504"'), "own deadline (504)"),
            ),
            12,
            low=0,
        ),
        Panel(
            "timeseries",
            "Duration",
            "Whole time of calls, streams to their end. Of 100 calls 50, 95 and 99 were at least as fast.",
            "s",
            _percentiles("request_duration_seconds"),
            12,
            low=0,
        ),
        Panel(
            "timeseries",
            "Time to first token",
            "Time until the first content of a stream. Waiting for a place at the local model is in it.",
            "s",
            _percentiles("ttft_seconds"),
            low=0,
        ),
        Panel(
            "timeseries",
            "Time per output token",
            "Between tokens, in streams that ended well: the time from the first content to the end by tokens"
            " of output.",
            "s",
            _percentiles("time_per_output_token_seconds"),
            low=0,
        ),
        Panel(
            "timeseries",
            "Own overhead",
            "Time that the router itself took before the answer began, without waiting for providers or for a place.",
            "s",
            _percentiles("overhead_seconds"),
            low=0,
        ),
    ),
)

MODELS = Row(
    "Models and cost",
    (
        Panel(
            "table",
            "Asked for and answered by",
            "Calls of the time shown: the public name that was asked for, who answered, and why another one than asked."
            " `none` answered: nobody was asked, or the call failed. `other` stands for names that the configuration"
            " does not know.",
            "none",
            (
                Target(
                    f"sort_desc({Q.increase('requests_total', by='route, provider, model, fallback')} > 0)",
                    instant=True,
                ),
            ),
            14,
            10,
            columns={
                "route": "Asked for",
                "provider": "Provider",
                "model": "Answered by",
                "fallback": "Fallback",
                "Value": "Calls",
            },
            sort_by="Calls",
            decimals=0,
        ),
        Panel(
            "timeseries",
            "Tokens by type",
            "Tokens for each second as billed. Cached input and cache writes are parts of the input, reasoning"
            " is a part of"
            " the output.",
            "none",
            (Target(Q.rate("tokens_total", by="type"), "{{type}}"),),
            10,
            10,
        ),
        Panel(
            "timeseries",
            "Cost per hour by model",
            "What the traffic of the moment costs in an hour by the price list, in US dollars.",
            "currencyUSD",
            (Target(f"{Q.rate('cost_total', USD, by='provider, model')} * 3600", "{{provider}}/{{model}}"),),
            12,
            low=0,
        ),
        Panel(
            "timeseries",
            "Tokens by model",
            "Input and output tokens for each second by who answered.",
            "none",
            (Target(Q.rate("tokens_total", WHOLE, by="provider, model"), "{{provider}}/{{model}}"),),
            12,
            low=0,
        ),
    ),
)

TROUBLE = Row(
    "Fallbacks, limits and clients",
    (
        Panel(
            "timeseries",
            "Fallbacks by reason",
            "Calls for each second that another model answered, by what kept the first one from it.",
            "reqps",
            (Target(Q.rate("fallbacks_total", by="reason"), "{{reason}}"),),
            stacked=True,
        ),
        Panel(
            "timeseries",
            "Quota rejections by limit",
            "Calls for each second that a limit refused, by limit and by whose it is (key or team).",
            "reqps",
            (
                Target(
                    Q.rate("quota_rejections_total", by="limit, scope"),
                    "{{limit}} ({{scope}})",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "timeseries",
            "Client disconnects by dialect",
            "Calls for each second whose client left before the end. Many at once: clients time out before the answer.",
            "reqps",
            (Target(Q.rate("client_disconnects_total", by="dialect"), "{{dialect}}"),),
            stacked=True,
        ),
        Panel(
            "timeseries",
            "In flight by router",
            "Calls that run at the same time on each router.",
            "none",
            (Target(Q.total("requests_in_flight", by="instance"), "{{instance}}"),),
            24,
            6,
            stacked=True,
        ),
    ),
)

OVERVIEW = Board(
    "switchyard-overview",
    "Switchyard: Overview",
    "Requests, errors, latency, tokens, cost and who answered.",
    (
        Variable("route", "Asked for", "requests_total"),
        Variable("provider", "Answered by provider", "requests_total"),
        Variable("model", "Answered by model", "requests_total"),
    ),
    (GLANCE, TRAFFIC, MODELS, TROUBLE),
)
