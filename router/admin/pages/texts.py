"""Every word of the pages, in English and in Chinese side by side. Templates hold none of their own.

A text may have fields, `{name}`, which `text` fills in. The result is plain text: templates escape it like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from router.admin.pages.shapes import Shapes

Language = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = ("en", "zh")
TAGS: Final[Mapping[Language, str]] = {"en": "en", "zh": "zh-CN"}
"""For the `lang` attribute."""


def text(language: Language, key: str, /, **fields: object) -> str:
    """Raises KeyError for an unknown key or a missing field."""
    words = TEXTS[key][LANGUAGES.index(language)]
    if language == "en" and str(fields.get("n")) == "1":
        words = ONE.get(key, words)
    return words.format(**fields) if fields else words


def helpers(lang: str, zone: str, rate: float | None) -> Mapping[str, Any]:
    """What templates call: `t(key, **fields)` gives a text, `s` has the shapes of numbers, times and limits, `tag` is
    the language's tag. zone: an IANA name, raises ZoneInfoNotFoundError. rate: CNY for one US dollar."""
    language: Language = "zh" if lang == "zh" else "en"
    words = partial(text, language)
    shapes = Shapes(words, chinese=language == "zh", zone=ZoneInfo(zone), rate=rate)
    return {"t": words, "s": shapes, "tag": TAGS[language]}


def preferred(accept_language: str, default: Language = "en") -> Language:
    """The language that an Accept-Language header likes best. What cannot be read is skipped."""
    best, found = 0.0, default
    for item in accept_language[:500].split(","):
        tag, _, rest = item.strip().partition(";")
        primary = tag.strip().lower().partition("-")[0]
        if primary not in LANGUAGES:
            continue
        try:
            weight = float(rest.strip().removeprefix("q=")) if rest else 1.0
        except ValueError:
            continue
        if best < weight <= 1.0:
            best, found = weight, primary
    return found


ONE: Final[Mapping[str, str]] = {
    "keys.calls": "{n} request",
    "keys.tokens": "{n} token",
    "stat.unpriced": "{n} call without a price",
    "system.journal": "{n} settlement waits for it",
}
"""The English of one; Chinese has no plural. What scripts fill in reads well with any number."""

TEXTS: Final[Mapping[str, tuple[str, str]]] = {
    # --- around the page
    "product": ("Switchyard", "Switchyard"),
    "title.overview": ("Overview", "总览"),
    "title.own": ("My usage", "我的用量"),
    "title.sign_in": ("Sign in", "登录"),
    "skip": ("Skip to the numbers", "跳到主要内容"),
    "nav.settings": ("Display and session", "显示与会话"),
    "theme": ("Theme", "外观"),
    "theme.auto": ("Auto", "自动"),
    "theme.light": ("Light", "浅色"),
    "theme.dark": ("Dark", "深色"),
    "language": ("Language", "语言"),
    "language.en": ("English", "English"),
    "language.zh": ("中文", "中文"),
    "sign_out": ("Sign out", "退出"),
    "no_script": (
        "Without JavaScript this page does not refresh by itself.",
        "未启用 JavaScript，页面不会自动刷新。",
    ),
    "refresh": ("Refresh", "刷新"),
    "live.live": ("Live", "实时"),
    "live.connecting": ("Connecting", "正在连接"),
    "live.stale": ("No news since {time}. Trying again", "自 {time} 起没有新数据，正在重试"),
    "as_of": ("As of {time}", "截至 {time}"),
    "version": ("Version {version}", "版本 {version}"),
    "age.seconds": ("{n} s ago", "{n} 秒前"),
    "age.minutes": ("{n} min ago", "{n} 分钟前"),
    "age.hours": ("{n} h ago", "{n} 小时前"),
    "age.days": ("{n} d ago", "{n} 天前"),
    # --- sign-in
    "sign_in.lead": ("See what the router does right now.", "查看路由器此刻的运行情况。"),
    "sign_in.secret": ("Admin token or API key", "管理令牌或 API 密钥"),
    "sign_in.hint": (
        "The admin token opens the whole overview. An API key shows its own usage and limits.",
        "管理令牌可查看完整总览；API 密钥只能查看自己的用量和限额。",
    ),
    "sign_in.button": ("Sign in", "登录"),
    "sign_in.wrong": ("This token or key is not known.", "令牌或密钥不正确。"),
    "sign_in.too_many": ("Too many attempts. Try again in {seconds} s.", "尝试次数过多，请在 {seconds} 秒后重试。"),
    "sign_in.cross_site": ("The form came from another site. Please sign in here.", "表单来自其他站点，请在此页登录。"),
    "sign_in.store_down": (
        "The store does not answer, so nobody can sign in right now.",
        "存储无响应，暂时无法登录。",
    ),
    "sign_in.sign_out_late": (
        "You are signed out in this browser. The store does not answer: the session ends there as soon as it is back.",
        "已在此浏览器退出登录。存储无响应：恢复后会话将在存储中失效。",
    ),
    "sign_in.too_large": ("That is too long for a token or a key.", "输入过长，不是有效的令牌或密钥。"),
    # --- messages in place of a page
    "message.not_found": ("There is no such page.", "页面不存在。"),
    "message.title": ("Not shown", "无法显示"),
    "message.method_not_allowed": ("This address cannot be used like that.", "该地址不支持此操作。"),
    "message.cross_site": (
        "The form came from another site, so nothing was done.",
        "表单来自其他站点，未执行任何操作。",
    ),
    "message.too_large": ("What was sent is too large.", "提交的内容过大。"),
    "message.store_down": (
        "The store does not answer. The numbers return by themselves when it does.",
        "存储无响应。恢复后数字会自动更新。",
    ),
    "message.failed": ("The page could not be made. The router's log says why.", "页面生成失败，原因见路由器日志。"),
    "message.home": ("To the overview", "返回总览"),
    # --- today's numbers
    "today": ("Today", "今日"),
    "today.lead": ("Since midnight, {zone}", "自零点起，{zone}"),
    "stat.requests": ("Requests", "请求数"),
    "stat.errors": ("Error share", "错误率"),
    "stat.errors.title": (
        "Of the calls that were admitted. Those refused before (wrong key, unknown model, bad request) are in /metrics",
        "在已受理的请求中所占比例；受理前被拒绝的请求（密钥错误、模型不存在、请求无效）见 /metrics",
    ),
    "stat.errors.count": ("{n} failed", "失败 {n} 次"),
    "stat.aborted": ("Broken off: {n} ({share})", "中途断开 {n} 次（{share}）"),
    "stat.aborted.title": (
        "Their callers left before the answer was out, or the router's process was killed: not in the share of errors",
        "回答完成前调用方已断开，或路由器进程被强制终止；不计入错误率",
    ),
    "stat.ttft": ("P95 first token", "P95 首字延迟"),
    "stat.ttft.title": (
        "Time to first token: 95 of 100 streams among the last requests began to answer within it",
        "首个 token 的等待时间：最近的流式请求中 95% 不超过此值",
    ),
    "stat.ttft.note": ("Recent streams", "最近的流式请求"),
    "stat.cost": ("Cost", "费用"),
    "stat.tokens_in": ("Tokens in", "输入 token"),
    "stat.tokens_out": ("Tokens out", "输出 token"),
    "stat.fallbacks": ("Fallbacks", "回退次数"),
    "stat.fallbacks.title": ("Answered by another model than the one planned first", "由备用模型回答的请求"),
    "stat.refused": ("Refused", "被拒绝"),
    "stat.refused.title": ("Calls that a limit refused", "因超出限额而被拒绝的请求"),
    "stat.refused.note": ("By limits", "因超出限额"),
    "stat.now": ("Right now", "此刻"),
    "stat.in_flight": ("In flight", "进行中"),
    "stat.in_flight.title": ("Calls that run right now", "此刻正在处理的请求"),
    "stat.rpm": ("Requests/min", "每分钟请求"),
    "stat.share": ("{share} of requests", "占请求的 {share}"),
    "stat.unpriced": ("{n} calls without a price", "{n} 次请求无价格"),
    "change.up": ("{amount} above yesterday", "较昨日同期 +{amount}"),
    "change.down": ("{amount} below yesterday", "较昨日同期 −{amount}"),
    "change.same": ("As yesterday", "与昨日同期持平"),
    "change.yesterday": ("Yesterday by this time: {value}", "昨日同期：{value}"),
    "change.none": ("None yesterday by this time", "昨日同期无请求"),
    # --- charts
    "chart.requests": ("Requests per hour", "每小时请求数"),
    "chart.tokens": ("Tokens per hour", "每小时 token 数"),
    "chart.cost": ("Cost per hour", "每小时费用"),
    "chart.errors": ("errors", "错误"),
    "chart.calls": ("requests", "请求"),
    "chart.money": ("cost", "费用"),
    "chart.in": ("in", "输入"),
    "chart.out": ("out", "输出"),
    "chart.hour": ("Hour", "时段"),
    "chart.sum": ("{value} in 24 hours", "24 小时共 {value}"),
    "chart.table": ("Data table", "数据表"),
    "chart.label": (
        "Bar chart: {title}, last 24 hours; {sum}. The data table has the same numbers.",
        "柱状图：{title}，最近 24 小时；{sum}。数据表中有相同的数字。",
    ),
    # --- providers
    "providers": ("Providers", "服务商"),
    "providers.none": ("No provider is configured.", "尚未配置服务商。"),
    "providers.summary": ("{up} of {all} available", "{all} 个中 {up} 个可用"),
    "providers.open": ("breaker open for {n}", "{n} 个模型熔断中"),
    "providers.queue": ("{n} waiting", "{n} 个排队"),
    "providers.local": ("local", "本地"),
    "state.up": ("Available", "可用"),
    "state.degraded": ("Impaired", "部分可用"),
    "state.down": ("Down", "不可用"),
    "state.off": ("Off", "未启用"),
    # why a provider takes no calls, why a fallback answered
    "reason.unreachable": ("cannot be reached", "无法连接"),
    "reason.timeout": ("no answer in time", "响应超时"),
    "reason.deadline": ("the caller's time was over", "超过调用方时限"),
    "reason.broken": ("broken answer", "应答中断"),
    "reason.unavailable": ("server error", "服务器错误"),
    "reason.overloaded": ("overloaded", "过载"),
    "reason.rate_limited": ("asked for a pause (rate limit)", "触发服务商限流"),
    "reason.auth": ("refuses our key", "密钥被拒绝"),
    "reason.provider_quota": ("account out of credit", "账户额度用尽"),
    "reason.provider_limit": ("limit set for this account", "达到账户限额"),
    "reason.model_not_found": ("model not found", "模型不存在"),
    "reason.refused": ("request refused", "请求被拒绝"),
    "reason.context_length": ("prompt too long", "上下文超长"),
    "reason.content_filter": ("content filter", "内容过滤"),
    "reason.unhealthy": ("failed several times in a row", "连续多次失败"),
    "reason.unsupported": ("feature not supported", "功能不支持"),
    "reason.no_target": ("no target for this model", "没有可用目标"),
    "reason.provider_off": ("provider is off", "服务商未启用"),
    "reason.not_installed": ("not installed", "未安装"),
    "reason.no_key": ("no API key", "没有 API 密钥"),
    "reason.disabled": ("switched off in the config", "已在配置中关闭"),
    "reason.misconfigured": ("wrong in the config", "配置有误"),
    # why it was passed over when the call was planned
    "reason.no_chat": ("no chat model", "非对话模型"),
    "reason.no_text": ("no plain completion", "不支持文本补全"),
    "reason.no_embeddings": ("no embeddings", "不支持嵌入"),
    "reason.no_vision": ("takes no images", "不支持图片"),
    "reason.no_audio": ("takes no audio", "不支持音频"),
    "reason.no_files": ("takes no files", "不支持文件"),
    "reason.no_tools": ("takes no tools", "不支持工具调用"),
    "reason.no_schema": ("no JSON schema output", "不支持 JSON Schema 输出"),
    "reason.no_reasoning": ("does not reason", "不支持推理"),
    "reason.no_image_urls": ("takes no image URLs", "不支持图片链接"),
    "reason.no_token_inputs": ("takes no token ids", "不支持 token 数组输入"),
    "reason.no_choices": ("one choice only", "仅支持单个候选"),
    "reason.no_logprobs": ("no log probabilities", "不提供对数概率"),
    "reason.context_too_small": ("prompt too long for it", "上下文窗口不足"),
    "reason.unpriced": ("price not known", "价格未知"),
    "reason.weight_zero": ("weight is 0", "权重为 0"),
    "reason.denied": ("denied to this key", "此密钥禁用该模型"),
    "reason.local_only": ("key is for local models", "此密钥仅限本地模型"),
    "reason.fallback_off": ("no fallback allowed", "不允许回退"),
    "reason.embeddings_differ": ("other embeddings", "嵌入不兼容"),
    "reason.attempts_limit": ("too many attempts", "尝试次数已满"),
    "reason.error": ("failed", "出错"),
    "reason.other": ("takes no calls", "暂不接受请求"),
    # --- codes of errors: how calls end
    "code.client_stalled": ("client stopped reading", "客户端停止读取"),
    "code.content_filter": ("content filter", "内容过滤"),
    "code.context_length_exceeded": ("prompt too long", "上下文超长"),
    "code.deadline_exceeded": ("the caller's time was over", "超过调用方时限"),
    "code.internal_error": ("bug in the router", "路由器内部错误"),
    "code.invalid_api_key": ("key ended meanwhile", "密钥中途失效"),
    "code.invalid_request": ("request not valid", "请求无效"),
    "code.overloaded": ("router overloaded", "路由器过载"),
    "code.provider_auth": ("provider refuses our key", "服务商拒绝密钥"),
    "code.provider_broken": ("answer broke off", "应答中断"),
    "code.provider_error": ("provider failed", "服务商出错"),
    "code.provider_model_not_found": ("provider lacks the model", "服务商无此模型"),
    "code.provider_overloaded": ("provider overloaded", "服务商过载"),
    "code.provider_quota": ("provider account out of credit", "服务商账户额度用尽"),
    "code.provider_rate_limited": ("provider's rate limit", "服务商限流"),
    "code.provider_timeout": ("no answer in time", "服务商响应超时"),
    "code.provider_unreachable": ("provider cannot be reached", "服务商无法连接"),
    "code.quota_store": ("store did not answer", "存储无响应"),
    "code.unsupported_parameter": ("parameter not supported", "参数不支持"),
    "code.aborted": ("client left", "客户端断开"),
    # --- GPU
    "gpu": ("Local models", "本地模型"),
    "gpu.none": ("No local model is loaded.", "没有已加载的本地模型。"),
    "gpu.unknown": (
        "What is loaded on {servers} is not known.",
        "{servers} 已加载的模型未知。",
    ),
    "gpu.unheard": (
        "What is loaded is not known: only Ollama can be asked.",
        "无法得知已加载的模型：仅支持查询 Ollama。",
    ),
    "gpu.vram": ("GPU memory", "显存"),
    "gpu.queue": ("Waiting", "排队"),
    "gpu.model": ("Model", "模型"),
    "gpu.server": ("Server", "服务器"),
    "local.off": ("off", "未启用"),
    "local.preparing": ("preparing", "准备中"),
    "local.loading": ("loading", "加载中"),
    "local.ready": ("ready", "就绪"),
    "local.failed": ("failed", "失败"),
    # --- keys, models, teams
    "keys": ("Top keys today", "今日用量最高的密钥"),
    "keys.none": ("No key was used today.", "今日还没有密钥被使用。"),
    "keys.calls": ("{n} requests", "{n} 次请求"),
    "keys.tokens": ("{n} tokens", "{n} token"),
    "models": ("Top models today", "今日用量最高的模型"),
    "models.none": ("No model answered today.", "今日还没有模型被调用。"),
    "models.model": ("Model", "模型"),
    "models.requests": ("Requests", "请求"),
    "models.tokens": ("Tokens in / out", "输入 / 输出 token"),
    "models.cost": ("Cost", "费用"),
    "teams": ("Team limits", "团队限额"),
    "teams.none": ("No team has a limit.", "没有设置限额的团队。"),
    "own.team": ("Limits of my team", "所在团队的限额"),
    "own.limits": ("My limits", "我的限额"),
    "own.none": ("This key has no limit of its own.", "此密钥没有单独的限额。"),
    "own.team_none": ("My team has no limit.", "所在团队没有限额。"),
    "own.models": ("My models today", "我今日使用的模型"),
    "bar.of": ("{used} of {limit}", "{used} / {limit}"),
    "bar.held": ("{held} held by running calls", "进行中的请求占用 {held}"),
    "bar.resets": ("begins anew {time}", "{time} 重置"),
    "bar.full": ("At its limit", "已达上限"),
    "bar.near": ("Nearly used up", "即将用尽"),
    "bar.models": ("for {models}", "仅限 {models}"),
    "limit.rpm": ("Requests per minute", "每分钟请求"),
    "limit.tpm": ("Tokens per minute", "每分钟 token"),
    "limit.concurrency": ("At once", "并发"),
    "limit.budget_day": ("Budget, day", "日预算"),
    "limit.budget_week": ("Budget, week", "周预算"),
    "limit.budget_month": ("Budget, month", "月预算"),
    "limit.budget_total": ("Budget, in all", "总预算"),
    "limit.max_requests_day": ("Requests, day", "每日请求"),
    "limit.max_requests_week": ("Requests, week", "每周请求"),
    "limit.max_requests_month": ("Requests, month", "每月请求"),
    "limit.max_requests": ("Requests, in all", "总请求"),
    "limit.max_tokens_day": ("Tokens, day", "每日 token"),
    "limit.max_tokens_week": ("Tokens, week", "每周 token"),
    "limit.max_tokens_month": ("Tokens, month", "每月 token"),
    "limit.max_tokens": ("Tokens, in all", "总 token"),
    "limit.of_team": ("Team: {limit}", "团队：{limit}"),
    # --- errors, config, workers
    "errors": ("Last errors", "最近错误"),
    "errors.none": ("No errors.", "没有错误。"),
    "system": ("Config and store", "配置与存储"),
    "system.config": ("Config", "配置"),
    "system.config.ok": ("In force", "已生效"),
    "system.config.problem": ("The file was changed, but refused", "文件已修改，但未通过检查"),
    "system.config.kept": ("The earlier config keeps serving.", "继续使用之前的配置。"),
    "system.digest": ("Digest", "摘要"),
    "system.loaded": ("Loaded", "加载于"),
    "system.workers": ("Workers", "工作进程"),
    "system.store": ("Store", "存储"),
    "system.store.ok": ("Answers", "正常"),
    "system.store.bad": ("Does not answer", "无响应"),
    "system.refused": (
        "Refused without a decision of the store, since the router's start: {n}",
        "自启动以来未经存储判定而拒绝 {n} 次",
    ),
    "system.refused.title": (
        "Mostly because it did not answer. They are in no other number of this page: only the store could count them",
        "多因存储无响应；不计入本页其他数字：无存储则无法统计",
    ),
    "system.journal": ("{n} settlements wait for it", "{n} 条结算待写入"),
    "system.draining": ("The router is shutting down.", "路由器正在停止。"),
    # --- live tail
    "tail": ("Requests", "请求记录"),
    "tail.lead": ("Newest first", "最新在前"),
    "tail.none": ("No requests yet.", "还没有请求。"),
    "tail.pause": ("Pause", "暂停"),
    "tail.paused": ("Paused: {n} new", "已暂停：{n} 条新记录"),
    "tail.new": ("New requests: {n}", "{n} 条新请求"),
    "tail.time": ("Time", "时间"),
    "tail.key": ("Key", "密钥"),
    "tail.model": ("Asked for → answered by", "请求 → 应答模型"),
    "tail.answered_by": ("answered by", "由以下模型应答"),
    "tail.status": ("Status", "状态"),
    "tail.ttft": ("First token", "首字"),
    "tail.duration": ("Duration", "用时"),
    "tail.tokens": ("In / out", "输入 / 输出"),
    "tail.cost": ("Cost", "费用"),
    "tail.running": ("Running", "进行中"),
    "tail.lost": ("Lost", "丢失"),
    "tail.ok": ("OK", "成功"),
    "tail.client_gone": ("Client left", "客户端断开"),
    "tail.refused": ("Refused", "已拒绝"),
    "tail.failed": ("Failed", "失败"),
    "tail.fallback": ("Fallback: {reason}", "回退：{reason}"),
    "tail.estimated": ("estimated", "估算"),
    "tail.nobody": ("nobody", "无"),
}
"""Key: English, Chinese."""
