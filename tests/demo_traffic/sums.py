"""The same sums from three sides: what clients and providers know, what the ledger tells, what the metrics say.

Clients and providers know together what each answered call used. What had to be estimated (a client left, an answer
broke off, a provider told no usage) only the router knows: for these calls, and no others, its request log is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.demo_traffic import scene
from tests.demo_traffic.caller import Seen
from tests.demo_traffic.house import House
from tests.demo_traffic.vendors import Told

LIMIT_CODES: Final = frozenset({"rate_limit_exceeded", "insufficient_quota"})


class Sample(NamedTuple):
    """One value of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass
class Sums:
    """Each counter by its labels; money in micro-USD."""

    requests: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """By dialect and class of the status."""
    answers: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Calls that began to be answered, by provider and why a fallback did (`none`: it was the one asked for)."""
    tokens: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """By provider, model and type."""
    cost: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """By provider and model."""
    attempts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Requests that reached a provider, by its name."""
    fallbacks: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Calls that a fallback answered, by its provider and the reason."""
    marks: Counter[tuple[str, ...]] = field(default_factory=Counter)
    left: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """By dialect."""
    rejected: int = 0
    """Calls that a limit refused."""
    settled: int = 0
    """Calls that were admitted."""

    def add(self, provider: str, model: str, tokens: Mapping[str, int | None], cost: int) -> None:
        for kind, count in tokens.items():
            if count:
                self.tokens[provider, model, kind] += count
        if cost:
            self.cost[provider, model] += cost


OF_METRICS: Final = (
    *("requests", "answers", "attempts", "fallbacks", "tokens", "cost", "marks", "left", "rejected", "settled"),
)
"""The sums that the metrics have."""


def differences(one: Sums, other: Sums, names: Iterable[str]) -> list[str]:
    """Where two sides do not say the same, in words; of the sums with these names."""
    found = []
    for name in names:
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, Counter):
            keys = sorted({*left, *right})
            found += [f"{name} {key}: {left[key]} and {right[key]}" for key in keys if left[key] != right[key]]
        elif left != right:
            found.append(f"{name}: {left} and {right}")
    return found


# --- clients and providers


def of_clients(house: House, seen: Sequence[Seen]) -> Sums:
    """Raises ValueError when the books are open: a call without an end, or a log line that is missing."""
    sums = Sums()
    rows = {row["request_id"]: row for row in house.lines()}
    claimed = set()
    sums.attempts.update((told.provider,) for told in house.books.told)
    for one in seen:
        if one.failure is not None:
            raise ValueError(f"call {one.ask.number} ({one.ask.kind}) has no end: {one.failure}")
        sums.requests[one.ask.dialect, one.status_class] += 1
        if one.left:
            sums.left[(one.ask.dialect,)] += 1
        if one.provider is not None and (one.left or one.status == 200):
            sums.answers[one.provider, one.fallback or "none"] += 1
            if one.fallback is not None:
                sums.fallbacks[one.provider, one.fallback] += 1
            if one.provider not in house.providers:
                sums.attempts[(one.provider,)] += 1
        if one.status == 429 and _limited(one):
            sums.rejected += 1
        if one.request_id is None:
            continue  # it left before it was told its number
        row = rows.get(one.request_id)
        if row is None:
            raise ValueError(f"call {one.ask.number} ({one.ask.kind}) has no line in the log")
        claimed.add(one.request_id)
        _charge(sums, row, house.books.of(one.ask.number), *_known(house, one))
    unclaimed = [row for id_, row in rows.items() if id_ not in claimed]
    early = [one for one in seen if one.request_id is None]
    if len(unclaimed) != len(early):
        raise ValueError(f"{len(unclaimed)} calls of nobody in the log, where {len(early)} clients left early")
    for row in unclaimed:
        if row["status"] != 499:
            raise ValueError(f"a call of nobody did not end with its client: {row}")
        _charge(sums, row, (), None, False)
    return sums


def _limited(seen: Seen) -> bool:
    """A limit of the key or team refused it, as far as its client can tell."""
    return seen.error in LIMIT_CODES if seen.ask.dialect == "openai" else True


def _known(house: House, seen: Seen) -> tuple[Told | None, bool]:
    """The answer that a provider gave and the client got to its end, with the usage that was told; and whether that is
    all that the call used."""
    told = house.books.of(seen.ask.number)
    if not seen.complete or seen.provider is None:
        return None, False
    if seen.provider not in house.providers:  # the bundled model: what it told its client
        usage = Told(seen.ask.number, seen.provider, seen.model or "", 200, seen.input, seen.output, seen.cached)
        return (usage, True) if seen.input else (None, False)
    winners = [one for one in told if one.provider == seen.provider and one.ended and one.input is not None]
    others = [one for one in told if one not in winners and (one.status is None or one.status == 200)]
    return (winners[-1], not others) if winners else (None, False)


def _charge(sums: Sums, row: Mapping[str, Any], asked: Sequence[Told], winner: Told | None, all_of_it: bool) -> None:
    """Add what a call was charged. `asked`: what its providers know of it; none where its client left before it was
    told its number."""
    if row["mark"] is None:
        return
    sums.settled += 1
    rest = {"input": row["tokens_in"] or 0, "output": row["tokens_out"] or 0}
    paid = 0
    if winner is not None:
        tokens = {"input": winner.input, "output": winner.output}
        tokens |= {"input_cached": winner.cached, "output_reasoning": winner.reasoning}
        paid = scene.cost(winner)
        sums.add(winner.provider, winner.model, tokens, paid)
        if all_of_it:
            sums.marks[("measured",)] += 1
            return
        rest = {"input": rest["input"] - (winner.input or 0), "output": rest["output"] - (winner.output or 0)}
    used = row["tokens_in"] is not None
    sums.marks[(row["mark"] if used else "none",)] += 1
    # What is left belongs to a provider that took the call and did not end it well.
    took = [one for one in asked if one is not winner and one.status in (None, 200)]
    if took:
        provider, model = took[-1].provider, took[-1].model
    else:
        provider, _, model = row["attempts"][-1]["target"].partition("/") if row["attempts"] else ("", "", "")
    sums.add(provider, model, rest, (row["cost"] or 0) - paid)


# --- the ledger


def of_ledger(house: House) -> Sums:
    """What the usage reports say of all teams."""
    report = house.told("GET", "/admin/api/usage?group_by=provider,model&since=2d&limit=10000")
    sums = Sums(settled=report["total"]["calls"])
    for row in report["data"]:
        tokens = {
            "input": row["tokens_in"],
            "output": row["tokens_out"],
            "input_cached": row["tokens_cached"],
            "input_cache_write": row["tokens_cache_write"],
            "output_reasoning": row["tokens_reasoning"],
        }
        sums.add(row["provider"], row["model"], tokens, row["cost_micro_usd"])
    sums.marks[("estimated",)] = report["total"]["estimated"]
    return sums


# --- the metrics


def samples_of(text: str) -> Iterator[Sample]:
    """The samples of a page in Prometheus' text format."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield Sample(sample.name, sample.labels, sample.value)


def of_metrics(samples: Iterable[Sample]) -> Sums:
    """From the router's counters. Raises ValueError for a count that is no whole number."""
    sums = Sums()
    for name, labels, value in samples:
        match name:
            case "switchyard_requests_total":
                sums.requests[labels["dialect"], labels["status_class"]] += _whole(name, value)
                if labels["provider"] != "none":
                    sums.answers[labels["provider"], labels["fallback"]] += _whole(name, value)
            case "switchyard_upstream_attempts_total":
                # Who is out of reach has got nothing, and the GPU is only ever overloaded by our own queue.
                queued = labels["provider"] == "gpu" and labels["outcome"] == "overloaded"
                if labels["outcome"] != "unreachable" and not queued:
                    sums.attempts[(labels["provider"],)] += _whole(name, value)
            case "switchyard_fallbacks_total":
                sums.fallbacks[labels["to"], labels["reason"]] += _whole(name, value)
            case "switchyard_tokens_total":
                sums.tokens[labels["provider"], labels["model"], labels["type"]] += _whole(name, value)
            case "switchyard_cost_total":
                # Dollars, added up as floating point: exact to far less than a millionth.
                sums.cost[labels["provider"], labels["model"]] += round(value * 1_000_000)
            case "switchyard_settlements_total":
                sums.marks[(labels["mark"],)] += _whole(name, value)
                sums.settled += _whole(name, value)
            case "switchyard_client_disconnects_total":
                sums.left[(labels["dialect"],)] += _whole(name, value)
            case "switchyard_quota_rejections_total":
                sums.rejected += _whole(name, value)
            case _:
                pass
    return sums


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ValueError(f"{name} is {value}")
    return int(value)
