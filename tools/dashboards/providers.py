"""The board Providers & GPU: which provider fails and why, the local model, the store, the processes."""

from __future__ import annotations

from tools.dashboards.model import Board, Mapped, Panel, Row, Target, Variable
from tools.dashboards.queries import FAILED, Queries

Q = Queries(frozenset({"provider"}))
BEFORE = " Time lost at providers that were tried before is in it: many Fallbacks make the one that answers look slow."
UP = (Mapped("1", "up", "green"), Mapped("0", "down", "red"))
FINE = (Mapped("1", "fine", "green"), Mapped("0", "refused", "red"))

STATE = Row(
    "Providers",
    (
        Panel(
            "state-timeline",
            "Providers up",
            "Whether calls are sent to a provider. Down where at least one worker of a router finds it so,"
            " though others may have it answer.",
            "bool_yes_no",
            (Target(Q.least("provider_up", by="provider"), "{{provider}}"),),
            12,
            mapped=UP,
        ),
        Panel(
            "table",
            "Why a provider is down",
            "The reason for each provider that gets no calls now. Empty when all are up.",
            "none",
            (
                Target(
                    f"{Q.shared('provider_down', by='provider, reason')} == 1",
                    instant=True,
                ),
            ),
            6,
            columns={"provider": "Provider", "reason": "Reason"},
        ),
        Panel(
            "timeseries",
            "Models with an open circuit",
            "Models of a provider that are left out for a while because they failed several times in a row.",
            "none",
            (Target(Q.shared("circuit_open", by="provider"), "{{provider}}"),),
            6,
            low=0,
            decimals=0,
        ),
        Panel(
            "table",
            "Providers of the configuration",
            "Of which kind each provider is, and whether it counts as local.",
            "none",
            (Target(Q.shared("provider_info", by="provider, vendor, local"), instant=True),),
            8,
            columns={"provider": "Provider", "vendor": "Vendor", "local": "Local"},
        ),
        Panel(
            "timeseries",
            "Attempts by outcome",
            "Calls to providers for each second by how they ended; one call of a client can make several.",
            "reqps",
            (Target(Q.rate("upstream_attempts_total", by="outcome"), "{{outcome}}"),),
            8,
            stacked=True,
        ),
        Panel(
            "timeseries",
            "Failed attempts by provider",
            "Share of the attempts at a provider that it failed. Not counted as failures: clients that left or whose"
            " own deadline passed, calls that were at fault themselves, and limits of the configuration.",
            "percentunit",
            (Target(Q.share("upstream_attempts_total", FAILED, by="provider"), "{{provider}}"),),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "Share of 429 by provider",
            "Share of the attempts that a provider refused because too much was asked of it.",
            "percentunit",
            (Target(Q.share("upstream_attempts_total", 'outcome="rate_limited"', by="provider"), "{{provider}}"),),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "Duration by provider, p95",
            "Of 100 calls that the provider answered 95 took at most so long, streams to their end." + BEFORE,
            "s",
            (Target(Q.quantile(0.95, "request_duration_seconds", by="provider"), "{{provider}}"),),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "Time to first token by provider, p95",
            "Of 100 streams 95 brought their first content at least as fast." + BEFORE,
            "s",
            (Target(Q.quantile(0.95, "ttft_seconds", by="provider"), "{{provider}}"),),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "Time per output token by provider, p50",
            "Half of the streams that ended well brought their tokens at least as fast.",
            "s",
            (Target(Q.quantile(0.5, "time_per_output_token_seconds", by="provider"), "{{provider}}"),),
            8,
            low=0,
        ),
        Panel(
            "table",
            "Fallbacks",
            "Answers of the time shown that came from a fallback: who was planned first, who answered, and why.",
            "none",
            (
                Target(
                    f"sort_desc({Q.increase('fallbacks_total', by='from, to, reason')} > 0)",
                    instant=True,
                ),
            ),
            16,
            columns={"from": "From", "to": "To", "reason": "Reason", "Value": "Calls"},
            sort_by="Calls",
            decimals=0,
        ),
    ),
)

GPU = Row(
    "Local GPU",
    (
        Panel(
            "timeseries",
            "Queue",
            "Calls that wait for a place at a provider with a bound on calls at the same time, as the local model has.",
            "none",
            (Target(Q.total("queue_depth", by="provider"), "{{provider}}"),),
            6,
            low=0,
            decimals=0,
        ),
        Panel(
            "timeseries",
            "Wait in the queue",
            "Time that calls waited for a place. When it grows, the GPU is the bottleneck.",
            "s",
            tuple(
                Target(
                    Q.quantile(q, "queue_wait_seconds", by="provider"),
                    f"{{{{provider}}}} p{q * 100:.0f}",
                )
                for q in (0.5, 0.95)
            ),
            6,
            low=0,
        ),
        Panel(
            "timeseries",
            "Loaded models",
            "Models that the local server holds in memory now. When it changes often, models push each other out.",
            "none",
            (Target(Q.shared("ollama_loaded_models", by="provider"), "{{provider}}"),),
            6,
            low=0,
            decimals=0,
        ),
        Panel(
            "timeseries",
            "Memory of the GPU by model",
            "Video memory that each loaded model takes, as the local server tells.",
            "bytes",
            (
                Target(
                    Q.shared("ollama_vram_bytes", by="provider, model"),
                    "{{provider}}/{{model}}",
                ),
            ),
            6,
            low=0,
            stacked=True,
        ),
    ),
)

STORE = Row(
    "Store",
    (
        Panel(
            "stat",
            "Store",
            "Whether the store (Redis or Valkey) answers every worker of every router.",
            "bool_yes_no",
            (Target(Q.least("redis_up")),),
            4,
            mapped=UP,
        ),
        Panel(
            "timeseries",
            "Decision time",
            "Time until the store admitted or refused a call.",
            "s",
            tuple(Target(Q.quantile(q, "redis_decision_seconds"), f"p{q * 100:.0f}") for q in (0.5, 0.99)),
            7,
            low=0,
        ),
        Panel(
            "timeseries",
            "Errors of the store",
            "Questions to the store that failed, each second by kind, and calls refused without its decision.",
            "ops",
            (
                Target(Q.rate("redis_errors_total", by="kind"), "{{kind}}"),
                Target(Q.rate("store_refusals_total"), "calls refused"),
            ),
            6,
            low=0,
        ),
        Panel(
            "timeseries",
            "Journal and holds",
            "Settlements that wait on disk for the store, and calls that hold a part of a quota now.",
            "none",
            (
                Target(Q.total("journal_entries"), "journal"),
                Target(Q.total("holds"), "holds"),
            ),
            7,
            low=0,
            decimals=0,
        ),
    ),
)

PROCESS = Row(
    "Processes",
    (
        Panel(
            "timeseries",
            "Lag of the event loop, p99",
            "How late a worker gets to what is due. Above some 0.1 s a worker is overloaded or blocked.",
            "s",
            (Target(Q.quantile(0.99, "event_loop_lag_seconds", by="instance"), "{{instance}}"),),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "CPU",
            "Processor cores that all workers of a router use together.",
            "none",
            (Target(Q.rate("cpu_seconds_total", by="instance"), "{{instance}}"),),
            8,
            low=0,
            decimals=2,
        ),
        Panel(
            "timeseries",
            "Memory",
            "Resident memory of all workers of a router.",
            "bytes",
            (Target(Q.total("resident_memory_bytes", by="instance"), "{{instance}}"),),
            8,
            low=0,
        ),
        Panel(
            "timeseries",
            "Workers",
            "Processes that serve; one less for a moment while one is replaced.",
            "none",
            (Target(Q.total("workers", by="instance"), "{{instance}}"),),
            8,
            low=0,
            decimals=0,
        ),
        Panel(
            "timeseries",
            "Workers that ended",
            "Workers that ended unasked in the hour before: killed, out of memory or crashed. The calls that they"
            " had are lost.",
            "none",
            (Target(f"sum by (instance) (increase({Q.of('worker_restarts_total')}[1h]))", "{{instance}}"),),
            8,
            low=0,
            decimals=0,
        ),
        Panel(
            "timeseries",
            "Connections to providers",
            "Open connections to providers, used or kept for the next call.",
            "none",
            (Target(Q.total("upstream_connections", by="instance"), "{{instance}}"),),
            8,
            low=0,
            decimals=0,
        ),
        Panel(
            "stat",
            "Configuration",
            "Whether the last reload of the configuration was taken; if not, the one before it serves on.",
            "bool_yes_no",
            (Target(Q.least("config_reload_success", by="instance"), "{{instance}}"),),
            6,
            mapped=FINE,
        ),
        Panel(
            "stat",
            "Age of the configuration",
            "Time since the configuration in force was loaded.",
            "s",
            (
                Target(
                    f"time() - {Q.shared('config_reload_timestamp_seconds', by='instance')}",
                    "{{instance}}",
                    instant=True,
                ),
            ),
            6,
        ),
        Panel(
            "stat",
            "Running since",
            "Time since the router started; replaced workers do not count.",
            "s",
            (
                Target(
                    f"time() - {Q.shared('start_time_seconds', by='instance')}",
                    "{{instance}}",
                    instant=True,
                ),
            ),
            6,
        ),
        Panel(
            "table",
            "Versions",
            "Which version each router runs.",
            "none",
            (Target(f"sum by (instance, version) ({Q.of('build_info')})", instant=True),),
            6,
            columns={"instance": "Router", "version": "Version"},
        ),
    ),
)

PROVIDERS = Board(
    "switchyard-providers",
    "Switchyard: Providers & GPU",
    "Which provider fails and why, whether the GPU is the bottleneck, the store and the processes.",
    (Variable("provider", "Provider", "provider_up"),),
    (STATE, GPU, STORE, PROCESS),
)
