"""Every text of the boards in both languages, side by side. A legend that is nothing but labels needs no row."""

from __future__ import annotations

import re
from typing import Final

SAME: Final = frozenset({"p50", "p95", "p99", "{{provider}} p50", "{{provider}} p95"})
"""Read alike in both."""

WORDS: Final[dict[str, str]] = {
    # boards and rows
    "Switchyard: Overview": "Switchyard：总览",
    "Requests, errors, latency, tokens, cost and who answered.": "请求、错误、延迟、token、费用，以及由谁作答。",
    "Switchyard: Providers & GPU": "Switchyard：服务商与 GPU",
    "Which provider fails and why, whether the GPU is the bottleneck, the store and the processes.": (
        "哪个服务商出了问题、原因何在，GPU 是否成为瓶颈，以及存储和进程的状况。"
    ),
    "Switchyard: Keys & quota": "Switchyard：密钥与配额",
    "Limits of teams and what is left of them, rejections, settlements, and what single keys used.": (
        "各团队的限额与剩余量、被拒请求、结算，以及每个密钥的用量。"
    ),
    "At a glance": "一览",
    "Traffic and latency": "流量与延迟",
    "Models and cost": "模型与费用",
    "Fallbacks, limits and clients": "回退、限额与客户端",
    "Providers": "服务商",
    "Local GPU": "本地 GPU",
    "Store": "存储",
    "Processes": "进程",
    "Limits of teams": "团队限额",
    "Rejections and settlements": "拒绝与结算",
    "Keys, from the admin API": "密钥（来自管理 API）",
    # choices and links
    "Boards": "看板",
    "Data source": "数据源",
    "Admin API": "管理 API",
    "Job": "作业",
    "Instance": "实例",
    "Provider": "服务商",
    "Asked for": "所请求的模型",
    "Answered by": "作答的模型",
    "Answered by provider": "作答的服务商",
    "Answered by model": "作答的模型",
    " Of all calls, whoever is chosen as having answered: a failed call has no provider.": (
        "统计全部调用，不受所选作答者影响：失败的调用没有服务商。"
    ),
    "Team": "团队",
    # legends
    "failed (5xx)": "失败 (5xx)",
    "refused (4xx)": "被拒 (4xx)",
    "client left (499)": "客户端离开 (499)",
    "own deadline (504)": "超过自设时限 (504)",
    "journal": "日志中待结算",
    "holds": "预留",
    "in flight": "进行中",
    "estimated": "估算",
    "overshoots": "超出预留",
    "settlements lost": "丢失的结算",
    "log lines lost": "丢失的日志行",
    "calls refused": "被拒绝的调用",
    "spans lost": "丢失的跟踪数据",
    # states
    "up": "正常",
    "down": "停用",
    "fine": "正常",
    "refused": "被拒绝",
    # headings of tables
    "Fallback": "回退",
    "Calls": "调用数",
    "Reason": "原因",
    "From": "原定",
    "To": "改由",
    "Router": "路由器",
    "Version": "版本",
    "Limit": "限额",
    "Unit": "单位",
    "Used up": "已用比例",
    "Spent": "已用",
    "Held": "预留中",
    "At most": "上限",
    "Key": "密钥",
    "Key id": "密钥编号",
    "Model": "模型",
    "Errors": "错误",
    "Tokens in": "输入 token",
    "Tokens out": "输出 token",
    "Cost": "费用",
    "Time": "时间",
    "Status": "状态码",
    "Request": "请求编号",
    # Overview
    "Requests": "请求",
    "Calls that ended, for each second, whatever they ended with.": "每秒结束的调用数，不论结果如何。",
    "Error share": "错误占比",
    "Share of calls that failed with a status of 5xx, or broke off. Callers' own deadlines (504) are not in it.": (
        "以 5xx 失败或中途中断的调用占比。不含超过调用方自设时限的调用 (504)。"
    ),
    "Time to first token, p95": "首 token 时间 p95",
    "In 95 of 100 streams the first content came at least as fast. Streams alone are timed.": (
        "100 个流中有 95 个的首个内容不慢于此值。仅统计流式调用。"
    ),
    "Tokens": "Token(词元)",
    "Input and output tokens for each second, as they were billed.": "每秒的输入与输出 token，按计费口径。",
    "Cost today, USD": "今日费用（美元）",
    "What the calls since midnight cost by the price list, in US dollars. Midnight is that of the browser.": (
        "自零点起的调用按价目表计算的费用，单位为美元。零点以浏览器时区为准。"
    ),
    "Cost today, CNY": "今日费用（人民币）",
    "The same in yuan, by the rate `prices.usd_cny` of the configuration.": (
        "同一费用，按配置中的汇率 `prices.usd_cny` 折算为人民币。"
    ),
    "Fallback share": "回退占比",
    "Share of calls that another model answered than the one that was asked first.": (
        "并非由最初请求的模型作答的调用占比。"
    ),
    "In flight": "进行中",
    "Calls that run now, in all workers of all chosen routers.": "所选路由器的全部工作进程中正在进行的调用数。",
    "Own overhead, p95": "自身开销 p95",
    "Time that the router itself took before the answer began, without waiting for providers or for a place.": (
        "回答开始之前路由器自身所用的时间，不含等待服务商或排队的时间。"
    ),
    "Quota rejections": "配额拒绝",
    "Calls for each second that a limit of a key or a team refused.": "每秒因密钥或团队限额而被拒绝的调用数。",
    "Client disconnects": "客户端断开",
    "Calls for each second whose client left before the end.": "每秒在结束前客户端已离开的调用数。",
    "Providers up": "正常的服务商",
    "How many providers every worker of every router finds usable. Which are not, and why: see the board"
    " Providers & GPU.": (
        "所有路由器的每个工作进程都认为可用的服务商数量。哪些不可用、原因何在，见“服务商与 GPU”看板。"
    ),
    "Requests by status": "按状态的请求",
    "Calls for each second: 2xx answered, 4xx refused (the caller's mistake, or a limit), 5xx failed, 499 left by"
    " the client, 504 out of the caller's own time.": (
        "每秒调用数：2xx 已作答，4xx 被拒（调用方错误或限额），5xx 失败，499 客户端离开，504 超过调用方自设时限。"
    ),
    "Requests by dialect": "按接口的请求",
    "Calls for each second by the API that the client speaks.": "每秒调用数，按客户端所用的 API 分类。",
    "Errors and refusals, share": "错误与拒绝占比",
    "Shares of calls that failed (5xx), were refused (4xx), were left by their clients (499) and did not end in the"
    " caller's own time (504).": "失败 (5xx)、被拒 (4xx)、客户端离开 (499) 和超过调用方自设时限 (504) 的调用各占多少。",
    "Duration": "时长",
    "Whole time of calls, streams to their end. Of 100 calls 50, 95 and 99 were at least as fast.": (
        "调用的总时长，流式调用计到结束。100 次调用中分别有 50、95、99 次不慢于此值。"
    ),
    "Time to first token": "首 token 时间",
    "Time until the first content of a stream. Waiting for a place at the local model is in it.": (
        "到流的首个内容为止的时间，包括等待本地模型空位的时间。"
    ),
    "Time per output token": "每输出 token 用时",
    "Between tokens, in streams that ended well: the time from the first content to the end by tokens of output.": (
        "正常结束的流中 token 之间的时间：从首个内容到结束的时间除以输出 token 数。"
    ),
    "Own overhead": "自身开销",
    "Asked for and answered by": "请求的模型与作答的模型",
    "Calls of the time shown: the public name that was asked for, who answered, and why another one than asked."
    " `none` answered: nobody was asked, or the call failed. `other` stands for names that the configuration"
    " does not know.": (
        "所示时段内的调用：请求的公开名称、由谁作答，以及为何由他人作答。"
        "作答者为 `none` 表示未询问任何服务商或调用失败；`other` 代表配置中没有的名称。"
    ),
    "Tokens by type": "按类型的 token",
    "Tokens for each second as billed. Cached input and cache writes are parts of the input, reasoning is a part of"
    " the output.": "每秒计费的 token。缓存命中与缓存写入是输入的一部分，推理是输出的一部分。",
    "Cost per hour by model": "按模型的每小时费用",
    "What the traffic of the moment costs in an hour by the price list, in US dollars.": (
        "当前流量按价目表折算的每小时费用，单位为美元。"
    ),
    "Tokens by model": "按模型的 token",
    "Input and output tokens for each second by who answered.": "每秒的输入与输出 token，按作答者分类。",
    "Fallbacks by reason": "按原因的回退",
    "Calls for each second that another model answered, by what kept the first one from it.": (
        "每秒由其他模型作答的调用数，按原模型未能作答的原因分类。"
    ),
    "Quota rejections by limit": "按限额的拒绝",
    "Calls for each second that a limit refused, by limit and by whose it is (key or team).": (
        "每秒因限额被拒绝的调用数，按限额及其所属（密钥或团队）分类。"
    ),
    "Client disconnects by dialect": "按接口的客户端断开",
    "Calls for each second whose client left before the end. Many at once: clients time out before the answer.": (
        "每秒在结束前客户端已离开的调用数。突然增多说明客户端在得到回答前就超时了。"
    ),
    "In flight by router": "各路由器进行中的调用",
    "Calls that run at the same time on each router.": "每个路由器上同时进行的调用数。",
    "Teams not shown": "未显示的团队",
    "Teams with limits that are left out here and in the alerts: the metrics have 500 teams at most.": (
        "此处和告警中未包含的有限额团队数：指标最多包含 500 个团队。"
    ),
    # Providers & GPU
    "Whether calls are sent to a provider. Down where at least one worker of a router finds it so, though others may"
    " have it answer.": (
        "是否向该服务商发送调用。只要某个路由器有一个工作进程认为停用即显示停用，其他进程可能仍得到回答。"
    ),
    "Why a provider is down": "服务商停用的原因",
    "The reason for each provider that gets no calls now. Empty when all are up.": (
        "当前不接收调用的每个服务商的原因。全部正常时为空。"
    ),
    "Providers of the configuration": "配置中的服务商",
    "Of which kind each provider is, and whether it counts as local.": "每个服务商的类型，以及是否视为本地。",
    "Vendor": "类型",
    "Local": "本地",
    "Models with an open circuit": "熔断中的模型",
    "Models of a provider that are left out for a while because they failed several times in a row.": (
        "因连续失败多次而暂时停用的服务商模型数。"
    ),
    "Attempts by outcome": "按结果的尝试",
    "Calls to providers for each second by how they ended; one call of a client can make several.": (
        "每秒向服务商发出的调用数，按结果分类；客户端的一次调用可能引起多次尝试。"
    ),
    "Failed attempts by provider": "各服务商失败占比",
    "Share of the attempts at a provider that it failed. Not counted as failures: clients that left or whose own"
    " deadline passed, calls that were at fault themselves, and limits of the configuration.": (
        "对服务商的尝试中失败的占比。客户端离开或超过自设时限、调用本身有误、达到配置中的限额，均不算失败。"
    ),
    "Share of 429 by provider": "各服务商 429 占比",
    "Share of the attempts that a provider refused because too much was asked of it.": (
        "服务商因请求过多而拒绝的尝试占比。"
    ),
    " Time lost at providers that were tried before is in it: many Fallbacks make the one that answers look slow.": (
        "含在先前尝试的服务商上耗去的时间：回退多时，作答者会显得慢。"
    ),
    "Duration by provider, p95": "各服务商时长 p95",
    "Of 100 calls that the provider answered 95 took at most so long, streams to their end.": (
        "服务商作答的 100 次调用中有 95 次不超过此时长，流式调用计到结束。"
    ),
    "Time to first token by provider, p95": "各服务商首 token 时间 p95",
    "Of 100 streams 95 brought their first content at least as fast.": "100 个流中有 95 个的首个内容不慢于此值。",
    "Time per output token by provider, p50": "各服务商每输出 token 用时 p50",
    "Half of the streams that ended well brought their tokens at least as fast.": (
        "正常结束的流中有一半的 token 不慢于此值。"
    ),
    "Fallbacks": "回退",
    "Answers of the time shown that came from a fallback: who was planned first, who answered, and why.": (
        "所示时段内由回退给出的回答：原定的服务商、实际作答的服务商及原因。"
    ),
    "Queue": "队列",
    "Calls that wait for a place at a provider with a bound on calls at the same time, as the local model has.": (
        "在限制并发的服务商（例如本地模型）处等待空位的调用数。"
    ),
    "Wait in the queue": "排队等待",
    "Time that calls waited for a place. When it grows, the GPU is the bottleneck.": (
        "调用等待空位的时间。持续增长说明 GPU 是瓶颈。"
    ),
    "Loaded models": "已加载的模型",
    "Models that the local server holds in memory now. When it changes often, models push each other out.": (
        "本地服务当前驻留内存的模型数。频繁变化说明模型在互相挤出。"
    ),
    "Memory of the GPU by model": "各模型占用的显存",
    "Video memory that each loaded model takes, as the local server tells.": (
        "本地服务报告的每个已加载模型占用的显存。"
    ),
    "Whether the store (Redis or Valkey) answers every worker of every router.": (
        "存储（Redis 或 Valkey）是否对每个路由器的每个工作进程都有响应。"
    ),
    "Decision time": "判定用时",
    "Time until the store admitted or refused a call.": "存储准许或拒绝一次调用所用的时间。",
    "Errors of the store": "存储错误",
    "Questions to the store that failed, each second by kind, and calls refused without its decision.": (
        "每秒对存储的失败访问，按种类，以及未经存储判定而被拒绝的调用。"
    ),
    "Journal and holds": "结算日志与预留",
    "Settlements that wait on disk for the store, and calls that hold a part of a quota now.": (
        "在磁盘上等待写入存储的结算数，以及当前占有配额预留的调用数。"
    ),
    "Lag of the event loop, p99": "事件循环延迟 p99",
    "How late a worker gets to what is due. Above some 0.1 s a worker is overloaded or blocked.": (
        "工作进程处理到期任务的滞后时间。超过约 0.1 秒说明进程过载或被阻塞。"
    ),
    "CPU": "处理器",
    "Processor cores that all workers of a router use together.": "一个路由器的全部工作进程共占用的处理器核数。",
    "Memory": "内存",
    "Resident memory of all workers of a router.": "一个路由器的全部工作进程的常驻内存。",
    "Workers": "工作进程",
    "Processes that serve; one less for a moment while one is replaced.": (
        "正在服务的进程数；替换进程时会短暂少一个。"
    ),
    "Workers that ended": "意外结束的工作进程",
    "Workers that ended unasked in the hour before: killed, out of memory or crashed. The calls that they had are"
    " lost.": "此前一小时内意外结束的工作进程数：被杀、内存不足或崩溃。其正在进行的调用已丢失。",
    "Running since": "运行时长",
    "Time since the router started; replaced workers do not count.": "路由器启动以来的时间；替换工作进程不计。",
    "Connections to providers": "到服务商的连接",
    "Open connections to providers, used or kept for the next call.": "到服务商的已打开连接，使用中或留待下次调用。",
    "Configuration": "配置",
    "Whether the last reload of the configuration was taken; if not, the one before it serves on.": (
        "最近一次重新加载的配置是否被接受；若未被接受，则继续使用之前的配置。"
    ),
    "Age of the configuration": "配置的时长",
    "Time since the configuration in force was loaded.": "当前配置加载以来的时间。",
    "Versions": "版本一览",
    "Which version each router runs.": "每个路由器运行的版本。",
    # Keys & quota
    "Used up, the fullest": "已用比例最高的限额",
    "What is spent and held of a limit, as a share of it: the ten fullest of all teams. At 100 % calls are refused.": (
        "限额中已用与预留部分的占比：所有团队中最高的十个。达到 100% 时调用会被拒绝。"
    ),
    "Limits": "限额一览",
    "What is spent, what running calls hold, and the limit; in the unit beside it. Read from the store at scrape"
    " time, the same for all routers.": (
        "已用量、进行中调用的预留量和上限，单位见同一行。抓取指标时从存储读取，所有路由器相同。"
    ),
    "Used up over time": "已用比例的变化",
    "What is spent and held of each limit, as a share of it. Calendar windows fall back to 0 when they begin anew.": (
        "每个限额中已用与预留部分的占比。按日历计算的窗口在重新开始时归零。"
    ),
    "Rejected": "被拒绝",
    "Calls of the time shown that a limit refused.": "所示时段内因限额被拒绝的调用数。",
    "Rejections by limit": "各限额的拒绝",
    "Settlements by mark": "按标记的结算",
    "Calls for each second that were settled: with the provider's count, with the router's own estimate, after"
    " the call broke off, or with nothing used.": (
        "每秒结算的调用数：按服务商的计数、按路由器自己的估算、在调用中断之后，或没有用量。"
    ),
    "Estimated share": "估算占比",
    "Share of settlements of what was used that rest on the router's own count of tokens, because the provider"
    " told none.": "有用量的结算中，因服务商未报告而由路由器自行计数的占比。",
    "Overshoots and lost records": "超出预留与丢失的记录",
    "For each second: calls that used more than they had held, and what was lost of settlements, of the request"
    " log and of traces. Lost settlements are money: they should stay at 0.": (
        "每秒：用量超过预留的调用，以及丢失的结算、请求日志行和跟踪数据。丢失的结算是钱，应始终为 0。"
    ),
    "Holds": "预留数",
    "Calls that hold a part of a quota now. More than the calls in flight: some wait to be given back.": (
        "当前占有配额预留的调用数。多于进行中的调用时，说明有些预留在等待归还。"
    ),
    "Keys today": "今日各密钥",
    "The keys that cost the most since midnight in the time zone of their team.": (
        "自团队所在时区零点起费用最高的密钥。"
    ),
    "Keys this month": "本月各密钥",
    "The keys that cost the most since the first of the month in the time zone of their team.": (
        "自团队所在时区本月一日起费用最高的密钥。"
    ),
    "Models by team this month": "本月各团队的模型用量",
    "What each team used of which model since the first of the month.": "自本月一日起各团队使用各模型的用量。",
    "Last failed calls": "最近失败的调用",
    "The last calls that failed or were refused, with the key and the status. Of those that a limit refused (429) the"
    " first of a key by that limit in an hour is listed; Rejections by limit has all.": (
        "最近失败或被拒绝的调用，附密钥与状态码。被限额拒绝的调用（429），同一密钥同一限额每小时只列出第一次；全部次数见“各限额的拒绝”。"
    ),
    " Needs the Infinity data source plugin with the router's address and its admin token; see docs/dashboards.md."
    " Without them this panel alone stays empty.": (
        "需要 Infinity 数据源插件，并配置路由器地址和管理令牌，见 docs/dashboards.md。没有它们时仅此面板为空。"
    ),
}


def chinese(text: str) -> str:
    """Raises KeyError for a text that has no row. A description may end with a sentence that has one of its own."""
    if text in SAME or not re.sub(r"\{\{\w+\}\}", "", text).strip(" /()→-"):
        return text
    if text in WORDS:
        return WORDS[text]
    for ending in WORDS:
        if ending.startswith(" ") and text.endswith(ending):
            return WORDS[text.removesuffix(ending)] + WORDS[ending]
    raise KeyError(f"tools/dashboards/words.py has no Chinese for: {text}")
