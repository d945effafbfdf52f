"""What a finished call is charged: one `Bill`, whatever happened. Pure.

| what happened | tokens charged | mark |
|---|---|---|
| answer complete, the provider's counts are sane | the provider's | measured |
| answer complete, a count missing, 0 or absurd | counted, the sane ones kept | estimated |
| answer broken off after it began | the larger of counted and reported | estimated |
| client left before the answer's end | the same; before the first content: the prompt | aborted |
| client left before a provider was asked | none | measured |
| provider refused, or its answer is an error without any reported usage | none | measured |
| provider out of reach, no place free, connection lost before an answer began | none | measured |
| provider took the call, then failed or kept silent to a deadline | what it said, at least the prompt | estimated |
| embeddings | the prompt, never any output | as above |

Every attempt of a call is charged by its own row; the bill is their sum. Counted means: the prompt as
`estimate.prompt_estimate` sees it, and the characters of content that came (`estimate.text_tokens`). The text of a
provider's error is no content. Cached, cache-written and reasoning tokens cost their own prices as parts of input and
output; cached tokens beyond the input are ignored, reasoning beyond the output was counted apart and is added. Images
are charged by number where the price list says so. A call that asked for a dearer `service_tier` pays what
`prices.SURCHARGE` says.

Absurd: an input beyond INPUT_FACTOR times the prompt's bound plus INPUT_SLACK (providers add prompts and search
results of their own), an output beyond OUTPUT_FACTOR times the output's bound plus OUTPUT_SLACK, and an output of
fewer tokens than one for each BYTES_PER_TOKEN bytes that came. An input of 0 is missing, an output of 0 is missing
where content came.

An attempt that was not the one that answered is charged at most the bound of its prompt, in tokens and in money, since
that is what the call's hold has for it: such a provider's word on output that nobody got counts no further.

`requests` is 1 when something was answered, or anything is charged; else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from providers.call import Call
from providers.events import Usage
from providers.wire import Meter
from router.estimate import output_bound, prompt_bound, prompt_estimate, text_tokens
from router.prices import Price, percent_of
from router.snapshot import Attempt, Target
from router.trace import AttemptRecord, Trace

Mark = Literal["measured", "estimated", "aborted"]
PriceOf = Callable[[Target], Price | None]

INPUT_FACTOR: Final = 4
INPUT_SLACK: Final = 262_144
OUTPUT_FACTOR: Final = 2
OUTPUT_SLACK: Final = 131_072
BYTES_PER_TOKEN: Final = 128
"""The longest tokens of common vocabularies are runs of spaces or dashes of this length."""

REFUSED: Final = frozenset(
    {
        "rate_limited",
        "overloaded",
        "auth",
        "provider_quota",
        "model_not_found",
        "refused",
        "context_length",
        "content_filter",
        "unavailable",
        "error",
        "unsupported",
    }
)
"""Outcomes in which a provider said no (or was not asked): it bills nothing for that."""
SILENT: Final = frozenset({"timeout", "deadline", "aborted", "running"})
"""Outcomes in which a provider may be working on the call although it has not answered yet."""


class Part(msgspec.Struct, frozen=True):
    """What one attempt is charged."""

    target: Target
    usage: Usage
    images: int
    cost: int
    unpriced: bool
    exact: bool
    """The provider's own counts."""


class Bill(msgspec.Struct, frozen=True):
    """What a call is charged in all."""

    mark: Mark
    requests: int
    tokens: int
    """Input and output."""
    cost: int
    """Micro-USD; parts without a known price add nothing."""
    unpriced: bool
    usage: Usage
    """Summed over the parts; a detail is None where no part knows it."""
    metrics: Mapping[str, int]
    """What is added to the usage tables, by metric; zeros are left out."""
    parts: tuple[Part, ...] = ()


def settle(trace: Trace, price: PriceOf, *, metered: bool = True) -> Bill:
    """The bill of a call that has ended. `price` gives the price of a target now, None for unknown. Never raises.

    `metered` False: the call asked no provider (loading a model), or belongs to nobody.
    """
    call = trace.call
    parts: list[Part] = []
    cost = images = 0
    exact, unpriced = True, False
    if call is not None and metered:
        for record in trace.attempts:
            part = _part(call, trace, record, price)
            if part is not None:
                parts.append(part)
                cost += part.cost
                images += part.images
                exact = exact and part.exact
                unpriced = unpriced or part.unpriced
    failed = trace.error is not None
    answered = trace.committed
    last = trace.attempts[-1] if trace.attempts else None
    left = trace.client_gone and not (answered and _complete(trace, last))
    mark: Mark = "measured"
    if parts and left:
        mark = "aborted"
    elif not exact:
        mark = "estimated"
    usage = _summed(parts)
    requests = 1 if answered or parts else 0
    metrics = {
        "calls": 1,
        "errors": failed and not left,
        "fallbacks": trace.fallback is not None and answered,
        "aborted": left,
        "estimated": mark == "estimated",
        "unpriced": unpriced,
        "in": usage.input,
        "cached": usage.cached,
        "cache_write": usage.cache_write,
        "out": usage.output,
        "reasoning": usage.reasoning,
        "media": images,
        "cost": cost,
    }
    return Bill(
        mark=mark,
        requests=requests,
        tokens=(usage.input or 0) + (usage.output or 0),
        cost=cost,
        unpriced=unpriced,
        usage=usage,
        metrics={name: int(value) for name, value in metrics.items() if value},
        parts=tuple(parts),
    )


def so_far(meter: Meter | None, prompt: int, price: Price | None) -> tuple[int, int]:
    """Tokens and micro-USD that a running call has used until now. `prompt`: its `prompt_estimate`."""
    if meter is None:
        return prompt, price.cost(Usage(prompt, 0)) if price is not None else 0
    output = (2 * meter.chars + 3 * meter.wide + 7) >> 3
    usage = meter.usage
    if usage is not None:
        if usage.input and usage.input < prompt + INPUT_SLACK:
            prompt = usage.input
        if usage.output and output < usage.output < output * OUTPUT_FACTOR + OUTPUT_SLACK:
            output = usage.output
    if price is None:
        return prompt + output, 0
    return prompt + output, price.cost(Usage(prompt, output), meter.images)


# -- one attempt --------------------------------------------------------------------------------------------------


def _part(call: Call, trace: Trace, record: AttemptRecord, price: PriceOf) -> Part | None:
    """What an attempt is charged; None for nothing."""
    meter, status = record.meter, record.status
    if meter is None or not record.asked:
        return None
    winner = trace.committed and trace.answered is record.target
    if not winner:
        if status is not None and status >= 300:
            return None
        if status is None and record.outcome not in SILENT:
            return None
        if record.outcome in REFUSED and not meter.frames and not _told(meter):
            return None
    known = price(record.target)
    if known is None and meter.model and meter.model != record.target.model:
        known = price(Target(record.target.provider, meter.model))  # an endpoint of Ark names its model only now
    usage, exact = _usage(call, trace, record, meter, known, winner and _complete(trace, record))
    most = 0
    if not winner:
        most = prompt_bound(call, _attempt(trace, record.target))
        usage = _within(usage, most)
    images = meter.images
    percent = percent_of(call.raw.get("service_tier"))
    cost = 0
    if known is not None:
        cost = known.cost(usage, images)
        if not winner:
            cost = min(cost, known.bound(most, 0))
        cost = -(-cost * percent // 100)
    return Part(record.target, usage, images, cost, known is None, exact)


def _told(meter: Meter) -> bool:
    """The provider reported tokens."""
    usage = meter.usage
    return usage is not None and ((usage.input or 0) > 0 or (usage.output or 0) > 0)


def _within(usage: Usage, most: int) -> Usage:
    """The same with at most so many tokens of prompt and answer together."""
    prompt, output = usage.input or 0, usage.output or 0
    if prompt + output <= most:
        return usage
    prompt = min(prompt, most)
    output = min(output, most - prompt)
    return Usage(
        prompt,
        output,
        _inside(usage.cached, prompt),
        _inside(usage.cache_write, prompt),
        _inside(usage.reasoning, output),
        usage.media,
    )


def _complete(trace: Trace, record: AttemptRecord | None) -> bool:
    """The provider has said everything, and we understood it."""
    if record is None or record.outcome != "ok" or record.meter is None:
        return False
    call = trace.call
    if call is None or call.kind == "embed" or not call.stream:
        return trace.committed
    return record.meter.finish is not None


def _usage(
    call: Call, trace: Trace, record: AttemptRecord, meter: Meter, price: Price | None, complete: bool
) -> tuple[Usage, bool]:
    """The usage to charge, and whether it is the provider's own word throughout."""
    said, chars, wide = meter.usage, meter.chars, meter.wide
    counted_out = 0 if call.kind == "embed" else text_tokens(chars, wide)
    if said is None:
        return Usage(prompt_estimate(call), counted_out), False
    given, spoken, exact = said.input, said.output, complete
    if not given or given < 0 or given > INPUT_FACTOR * prompt_bound(call) + INPUT_SLACK:
        given, exact = prompt_estimate(call), False
    most = OUTPUT_FACTOR * output_bound(call, _attempt(trace, record.target), price) + OUTPUT_SLACK
    if call.kind == "embed":
        spoken = 0
    else:
        least = (chars + wide) // BYTES_PER_TOKEN
        if spoken is None or spoken < least or spoken > most or (not spoken and counted_out):
            spoken, exact = counted_out, False
    reasoning = said.reasoning if said.reasoning and said.reasoning > 0 else None
    if reasoning is not None and reasoning > spoken:
        exact = False
        if reasoning <= most:
            spoken += reasoning
        else:
            reasoning = None
    if not complete:
        spoken = max(spoken, counted_out)
    cached = _inside(said.cached, given)
    written = _inside(said.cache_write, given - (cached or 0))
    return Usage(given, spoken, cached, written, reasoning, said.media), exact


def _attempt(trace: Trace, target: Target) -> Attempt:
    """The plan's step for a target, with what is known of its longest answer."""
    for attempt in trace.plan.attempts if trace.plan is not None else ():
        if attempt.target is target:
            return attempt
    return Attempt(target, "target")


def _inside(part: int | None, whole: int) -> int | None:
    """A part that is not larger than the whole it belongs to."""
    return part if part is not None and 0 <= part <= whole else None


def _summed(parts: list[Part]) -> Usage:
    if len(parts) == 1:
        return parts[0].usage
    totals: dict[str, int | None] = {}
    for name in Usage.__struct_fields__:
        values = [value for part in parts if (value := getattr(part.usage, name)) is not None]
        totals[name] = sum(values) if values else None
    return Usage(**totals)
