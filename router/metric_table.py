"""Every metric that the router has, in one table: the metrics are made from it, and so is docs/metrics.md
(`python -m tools.metrics_page`).

Names follow Prometheus's rules: one prefix, base units, `_total` for counters. Labels are bounded: see `LABELS`.
Words of providers' failures are those of `providers.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "switchyard_"
OTHER: Final = "other"
NONE: Final = "none"

Kind = Literal["counter", "gauge", "histogram"]
Across = Literal["sum", "max", "min"]
"""What a gauge of several workers shows."""

DURATION: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PER_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
SHORT: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `unit` is of its values; a histogram's buckets are upper bounds in that unit."""

    name: str
    """Without the prefix."""
    kind: Kind
    text: str
    chinese: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across: Across = "sum"
    scale: int = 1
    """How many of what is kept make 1 of what is shown: money is kept in micro-units, so that sums are exact."""

    @property
    def full(self) -> str:
        return PREFIX + self.name

    @property
    def cells(self) -> int:
        """Numbers that one set of labels needs: a histogram has one for each bucket, one beyond, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


LABELS: Final[Mapping[str, tuple[str, str]]] = {
    "dialect": ("the API that the client speaks: `openai`, `ollama` ...", "客户端使用的 API：`openai`、`ollama` 等"),
    "route": (
        "the name that was asked for: a name or pattern of `models`, a discovered name, or"
        " `provider/model` where `model` is a known one; anything else is `other`",
        "请求的模型名：`models` 中的名称或模式、自动发现的名称，或已知模型的 `provider/model`；其余为 `other`",
    ),
    "provider": (
        "a provider of the config; `none` where nobody was asked, as for Ollama's empty calls that load a model, or"
        " nobody answered",
        "配置中的服务商；未向任何服务商发送（如 Ollama 用于加载模型的空调用）或无人应答时为 `none`",
    ),
    "model": (
        "the model at the provider, by a name of the config, of the price lists or of a model list; anything else is"
        " `other`, and so are names of a model list after the first 256 that a worker has met since its start; `none`"
        " as for `provider`",
        "服务商的模型：配置、价目表或模型列表中的名称；其余为 `other`，"
        "模型列表的名称则限每个进程启动以来最先遇到的 256 个；`none` 同 `provider`",
    ),
    "status_class": (
        "`2xx`, `4xx`, `5xx` (also an answer that broke off after it began), `499`: the client left, or `504`: the"
        " caller's own `x-switchyard-timeout` passed (not in `5xx`)",
        "`2xx`、`4xx`、`5xx`（包括开始后中断的回答），`499`：客户端已离开，"
        "或 `504`：超过调用方自设的 `x-switchyard-timeout`（不计入 `5xx`）",
    ),
    "fallback": ("`none`, or why a fallback answered", "`none`，或由回退模型应答的原因"),
    "outcome": (
        "`ok`, `aborted`, `unsupported`, `unreachable`, `timeout`, `deadline`, `broken`, `unavailable`, `overloaded`,"
        " `rate_limited`, `auth`, `provider_quota`, `provider_limit`, `model_not_found`, `refused`, `context_length`,"
        " `content_filter`, `error`. `aborted`: it ended for a reason that is not the provider's (its client left, its"
        " key was revoked, the router stops or fails)",
        "`ok`，或失败原因（同英文栏）；`aborted` 为非服务商原因的中止（客户端离开、密钥被吊销、路由器停止或出错）",
    ),
    "from": ("the provider that was planned first", "原计划的首个服务商"),
    "to": ("the provider that answered", "实际应答的服务商"),
    "reason": (
        "for a fallback: an `outcome`, or why the first target was left out (`provider_off`, `no_vision`"
        " ...); for a provider that is down: `disabled`, `no_key`, `misconfigured`, or what its calls or its model list"
        " met (`unreachable`, `timeout`, `rate_limited`, `auth` ... as in `outcome`, else `other`)",
        "回退时：失败原因，或首个目标被跳过的原因；服务商不可用时：`disabled`（停用）、`no_key`（无密钥）、"
        "`misconfigured`（配置有误），或调用失败的原因",
    ),
    "type": (
        "`input` and `output`; parts of them: `input_cached`, `input_cache_write`, `output_reasoning`",
        "`input`、`output`；其中的部分：`input_cached`、`input_cache_write`、`output_reasoning`",
    ),
    "currency": ("`usd`", "`usd`"),
    "limit": (
        "`rpm`, `tpm`, `concurrency`, `budget_day` ...; a limit for some models has their pattern with it in the"
        " `team_limit` metrics, as in `rpm[gpt-*]`, and not in `quota_rejections_total`",
        "`rpm`、`tpm`、`concurrency`、`budget_day` 等；只限部分模型的限额在 `team_limit` 各指标中带模式，"
        "如 `rpm[gpt-*]`，在 `quota_rejections_total` 中不带",
    ),
    "scope": ("`key` or `team`: whose limit it is", "限额属于 `key` 还是 `team`"),
    "mark": (
        "`measured`, `estimated` or `aborted`; `none` for a call that used nothing",
        "`measured`（实测）、`estimated`（估算）或 `aborted`（中断）；`none` 为没有用量的调用",
    ),
    "kind": (
        "`not_sent` (the store was known to be away), `unanswered` (it was asked and did not answer in time), `refused`"
        " (it answered with an error)",
        "`not_sent`（存储不可用，未发送）、`unanswered`（未及时应答）、`refused`（返回错误）",
    ),
    "team": ("the team's name; of at most 500 teams with limits", "团队名称；最多 500 个有限额的团队"),
    "unit": ("`usd`, `cny`, `tokens`, `requests` or `calls`", "`usd`、`cny`、`tokens`、`requests` 或 `calls`"),
    "vendor": ("the provider's `vendor` in the config", "配置中该服务商的 `vendor`"),
    "local": ("`yes` for a provider that counts as local, else `no`", "视为本地的服务商为 `yes`，其余为 `no`"),
    "version": ("the router's version", "路由器版本"),
}
"""What values a label takes, in English and in Chinese."""

DOWN: Final = frozenset(
    {
        "disabled",
        "no_key",
        "misconfigured",
        "unreachable",
        "timeout",
        "deadline",
        "broken",
        "unavailable",
        "overloaded",
        "rate_limited",
        "auth",
        "provider_quota",
        "model_not_found",
        "refused",
        "error",
        OTHER,
    }
)
"""Why a provider is down: the words of `reason` in `provider_down`."""

FAMILIES: Final[tuple[Family, ...]] = (
    # -- calls
    Family(
        "requests_total",
        "counter",
        "Model calls that have ended.",
        "已结束的模型调用数。",
        "calls",
        ("dialect", "route", "provider", "model", "status_class", "fallback"),
    ),
    Family(
        "request_duration_seconds",
        "histogram",
        "Time from a call's arrival until its answer was out, with what was lost at providers that were tried before"
        " the one that answered.",
        "从收到调用到回答发送完毕的时间，含在作答者之前尝试的服务商上耗去的时间。",
        "seconds",
        ("dialect", "provider"),
        DURATION,
    ),
    Family(
        "ttft_seconds",
        "histogram",
        "Time from a call's arrival to the first content of its stream, with what was lost at providers that were tried"
        " before the one that answered.",
        "从收到调用到流式回答首个内容的时间，含在作答者之前尝试的服务商上耗去的时间。",
        "seconds",
        ("provider",),
        DURATION,
    ),
    Family(
        "time_per_output_token_seconds",
        "histogram",
        "Time between the tokens of a stream that ended well: from its first content to its end, by its output tokens"
        " but one. Reasoning that was not streamed does not count; calls with several choices are left out.",
        "正常结束的流中相邻 token 的间隔：首个内容到结束的时间除以（输出 token 数 - 1）。未以流式发出的推理 token"
        "不计；多候选（n > 1）的调用不计入。",
        "seconds",
        ("provider",),
        PER_TOKEN,
    ),
    Family(
        "overhead_seconds",
        "histogram",
        "Time that the router itself took before an answer began, waiting for providers left out.",
        "回答开始之前路由器自身所用的时间，不含等待服务商。",
        "seconds",
        ("dialect",),
        SHORT,
    ),
    Family(
        "requests_in_flight",
        "gauge",
        "Calls that run now.",
        "正在进行的调用数。",
        "calls",
    ),
    Family(
        "client_disconnects_total",
        "counter",
        "Calls whose client left before the end.",
        "客户端提前离开的调用数。",
        "calls",
        ("dialect",),
    ),
    Family(
        "store_refusals_total",
        "counter",
        "Calls that were refused without a decision of the store: it did not answer, a key was just being changed, or"
        " settlements could not be kept. They are in no sum of the usage.",
        "未经存储判定而被拒绝的调用数（存储无响应、密钥正在修改或结算无法保存），不计入用量统计。",
        "calls",
    ),
    # -- providers
    Family(
        "upstream_attempts_total",
        "counter",
        "Attempts to have a call answered by a provider.",
        "向服务商发出的尝试数。",
        "attempts",
        ("provider", "outcome"),
    ),
    Family(
        "fallbacks_total",
        "counter",
        "Calls that a fallback answered.",
        "由回退模型应答的调用数。",
        "calls",
        ("from", "to", "reason"),
    ),
    Family(
        "provider_up",
        "gauge",
        "1 when the provider takes calls, 0 when not, also where it is off (see provider_down for why). Of several"
        " workers the smallest: 0 when at least one finds it down, though others may have it answer. Absent until a"
        " local server was asked for its models for the first time.",
        "服务商可用为 1，不可用或未启用为 0（原因见 provider_down）；"
        "多个进程时取最小值：至少一个进程认为不可用即为 0，其他进程可能仍得到回答。"
        "本地服务器首次查询模型列表之前无此值。",
        "",
        ("provider",),
        across="min",
    ),
    Family(
        "provider_down",
        "gauge",
        "1 while that is why the provider takes no calls.",
        "服务商因该原因不可用时为 1。",
        "",
        ("provider", "reason"),
        across="max",
    ),
    Family(
        "provider_info",
        "gauge",
        "Always 1, for each provider of the config; what it is stands in the labels.",
        "恒为 1；配置中的每个服务商一条，其类型见标签。",
        "",
        ("provider", "vendor", "local"),
        across="max",
    ),
    Family(
        "circuit_open",
        "gauge",
        "Models of the provider whose breaker is open, or is being tried by a call; once its pause is over, not until"
        " the next call.",
        "该服务商熔断器已打开（或正由一次调用试探）的模型数；暂停结束后，下一次调用之前不计入。",
        "models",
        ("provider",),
        across="max",
    ),
    Family(
        "queue_depth",
        "gauge",
        "Calls that wait for a place at the provider.",
        "等待服务商空位的调用数。",
        "calls",
        ("provider",),
    ),
    Family(
        "queue_wait_seconds",
        "histogram",
        "Time that calls waited for a place at a provider with max_concurrency, also in vain.",
        "调用等待服务商空位的时间（包括未等到的），限设置了 max_concurrency 的服务商。",
        "seconds",
        ("provider",),
        DURATION,
    ),
    Family(
        "upstream_connections",
        "gauge",
        "Open connections to providers.",
        "到服务商的连接数。",
        "connections",
    ),
    Family(
        "ollama_loaded_models",
        "gauge",
        "Models that the Ollama server has in memory.",
        "Ollama 已载入内存的模型数。",
        "models",
        ("provider",),
        across="max",
    ),
    Family(
        "ollama_vram_bytes",
        "gauge",
        "Video memory that a loaded model of the Ollama server takes.",
        "Ollama 已载入模型占用的显存。",
        "bytes",
        ("provider", "model"),
        across="max",
    ),
    # -- money and limits
    Family(
        "tokens_total",
        "counter",
        "Tokens that calls were charged, as in the usage reports; without calls that ended with a killed worker.",
        "计费的 token 数，与用量报表一致；不含随被杀进程而终止的调用。",
        "tokens",
        ("provider", "model", "type"),
    ),
    Family(
        "cost_total",
        "counter",
        "What calls were charged, in US dollars, as in the usage reports; without calls that ended with a killed"
        " worker.",
        "计费金额（美元），与用量报表一致；不含随被杀进程而终止的调用。",
        "US dollars",
        ("currency", "provider", "model"),
        scale=1_000_000,
    ),
    Family(
        "settlements_total",
        "counter",
        "Calls that were settled, by what is known of their usage.",
        "已结算的调用数，按用量的来源区分。",
        "calls",
        ("mark",),
    ),
    Family(
        "quota_rejections_total",
        "counter",
        "Calls that a limit of a key or of a team refused.",
        "被密钥或团队限额拒绝的调用数。",
        "calls",
        ("limit", "scope"),
    ),
    Family(
        "quota_overshoots_total",
        "counter",
        "Calls that used more than they had held.",
        "实际用量超过预留的调用数。",
        "calls",
    ),
    Family("holds", "gauge", "Calls that hold a part of a quota now.", "正占用限额的调用数。", "calls"),
    Family(
        "team_limit",
        "gauge",
        "The limit of a team. Like the next three read from the store, at most every 5 s; absent while it is away.",
        "团队的限额。从存储读取，最多每 5 秒一次（下三项同此）；存储不可用时缺失。",
        "see label unit",
        ("team", "limit", "unit"),
        across="max",
    ),
    Family(
        "team_limit_spent",
        "gauge",
        "What of a team's limit is spent in the present window.",
        "当前周期内团队限额的已用部分。",
        "see label unit",
        ("team", "limit", "unit"),
        across="max",
    ),
    Family(
        "team_limit_held",
        "gauge",
        "What of a team's limit running calls hold.",
        "正在进行的调用所预留的团队限额。",
        "see label unit",
        ("team", "limit", "unit"),
        across="max",
    ),
    Family(
        "team_limits_cut",
        "gauge",
        "Teams with limits that the three metrics before leave out: they show 500 at most.",
        "上面三项最多显示 500 个团队，此为未显示的有限额团队数。",
        "teams",
        across="max",
    ),
    Family(
        "usd_cny",
        "gauge",
        "Yuan for one US dollar, as the config has it.",
        "配置中的美元兑人民币汇率。",
        "yuan",
        across="max",
    ),
    # -- the store
    Family("redis_up", "gauge", "1 when the store answers every worker.", "存储对所有进程可用为 1。", across="min"),
    Family(
        "redis_decision_seconds",
        "histogram",
        "Time of an answer by which the store admitted or refused a call, or until it failed to. A call whose key had"
        " just been changed takes two; the first look-up of a key by a worker is not counted here.",
        "存储对一次调用作出准入或拒绝（或失败）的时间。密钥刚被修改的调用需要两次；进程首次查找某密钥不计入。",
        "seconds",
        (),
        SHORT,
    ),
    Family(
        "redis_errors_total",
        "counter",
        "Questions to the store on the way of calls that failed.",
        "调用过程中对存储的失败请求数。",
        "questions",
        ("kind",),
    ),
    Family(
        "journal_entries",
        "gauge",
        "Settlements that wait in the journal for the store.",
        "日志中等待写入存储的结算数。",
        "settlements",
    ),
    Family(
        "journal_lost_total",
        "counter",
        "Settlements of earlier runs that were too old to be sent, or unreadable.",
        "过期或无法读取而丢失的结算数。",
        "settlements",
    ),
    # -- the router
    Family(
        "config_reload_success",
        "gauge",
        "1 when the config in force is the file's, 0 after a reload that was refused.",
        "生效的配置即为文件内容时为 1，重新加载被拒绝后为 0。",
        across="min",
    ),
    Family(
        "config_reload_timestamp_seconds",
        "gauge",
        "When the config in force was loaded, in Unix seconds; of several workers the earliest. A worker that is"
        " replaced does not change it.",
        "生效配置的加载时间（Unix 秒）；多个进程时取最早者。替换进程不会改变它。",
        "seconds",
        across="min",
    ),
    Family(
        "event_loop_lag_seconds",
        "histogram",
        "How late a timer of the event loop rings, sampled every 0.5 s.",
        "事件循环定时器的延迟，每 0.5 秒采样一次。",
        "seconds",
        (),
        LAG,
    ),
    Family("cpu_seconds_total", "counter", "CPU time of the workers.", "各进程的 CPU 时间。", "seconds"),
    Family("resident_memory_bytes", "gauge", "Memory of the workers (Linux).", "各进程的常驻内存（Linux）。", "bytes"),
    Family(
        "log_lines_dropped_total",
        "counter",
        "Lines of the log that were not written.",
        "未能写入的日志行数。",
        "lines",
    ),
    Family(
        "telemetry_spans_lost_total",
        "counter",
        "Spans that the OpenTelemetry collector did not get.",
        "未能送达 OpenTelemetry 采集端的 span 数。",
        "spans",
    ),
    Family("workers", "gauge", "Processes that serve.", "提供服务的进程数。", "processes"),
    Family(
        "worker_restarts_total",
        "counter",
        "Workers that ended unasked (killed, out of memory, a crash) and were replaced; the calls that they had are"
        " lost. 0 for a router that is one process.",
        "意外结束（被杀、内存不足、崩溃）并被替换的工作进程数，其正在进行的调用已丢失。单进程的路由器为 0。",
        "workers",
    ),
    Family(
        "start_time_seconds",
        "gauge",
        "When the router started, in Unix seconds; with several workers the process that keeps them.",
        "路由器的启动时间（Unix 秒）；多个工作进程时为管理它们的进程。",
        "seconds",
        across="min",
    ),
    Family(
        "build_info",
        "gauge",
        "Always 1; the version is in the label.",
        "恒为 1，版本见标签。",
        "",
        ("version",),
        across="max",
    ),
)

BY_NAME: Final[Mapping[str, Family]] = {family.name: family for family in FAMILIES}
