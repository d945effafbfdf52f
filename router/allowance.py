"""What a caller is told of limits: the `x-ratelimit-*` headers, and the refusal when one is reached."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from providers.errors import QuotaExceeded, RateLimitExceeded, SwitchyardError
from router.checks import Amounts, Check

SPENT, TOO_LARGE, HELD, RATE = 1, 2, 3, 4
"""Why `reserve` refuses, in the words of `router/ledger.lua`."""

Headers = tuple[tuple[bytes, bytes], ...]
Standing = Sequence[tuple[Check, int, int]]
"""Checks, each with what is left and the milliseconds until it is whole again (0: never)."""

_FAMILY: Final = {1: b"requests", 2: b"tokens"}


def headers(standing: Standing) -> Headers:
    """The family of OpenAI's names, for the tightest limit on calls and the tightest on tokens.

    https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
    """
    tightest: dict[int, tuple[Check, int, int]] = {}
    for one in standing:
        measure = one[0].measure
        if measure in _FAMILY and (measure not in tightest or one[1] < tightest[measure][1]):
            tightest[measure] = one
    out: list[tuple[bytes, bytes]] = []
    for measure, (check, left, reset) in sorted(tightest.items()):
        family = _FAMILY[measure]
        out.append((b"x-ratelimit-limit-" + family, b"%d" % check.amount))
        out.append((b"x-ratelimit-remaining-" + family, b"%d" % left))
        if reset:
            out.append((b"x-ratelimit-reset-" + family, span(reset)))
    return tuple(out)


def span(milliseconds: int) -> bytes:
    """`350ms`, `12s`, `6m0s`, `3h0m0s`: as OpenAI writes it and its SDKs read it."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    seconds = -(-milliseconds // 1000)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minute, second)
    return b"%dm%ds" % (minute, second) if minutes else b"%ds" % second


def refusal(check: Check, amounts: Amounts, why: int, spent: int, held: int, retry: int, now: float) -> SwitchyardError:
    """The error for a call that `reserve` refused. retry: milliseconds, 0 when no time helps; now: Unix seconds."""
    wanted, limit = check.taken(amounts), check.amount
    name = f"The limit {check.title} of {quantity(check, limit)}"
    shown = headers([(check, max(limit - spent - held, 0), retry)])
    if why == TOO_LARGE and limit > 0:
        hint = {2: ": shorten the prompt or lower max_tokens", 3: ": lower max_tokens or choose a cheaper model"}
        text = (
            f"{name} is less than the {quantity(check, wanted)} that this call may take{hint.get(check.measure, '')}."
        )
    elif why == TOO_LARGE:
        text = f"{name} allows no calls."
    elif why == SPENT:
        ends = f" It begins anew at {_time(now + retry / 1000)}." if retry else " Ask an administrator to raise it."
        text = f"{name} is used up: {quantity(check, spent)} spent, this call may take {quantity(check, wanted)}.{ends}"
        if spent < limit and check.measure != 1:
            text = text.replace("is used up", "does not allow this call")
    else:
        if check.measure == 4:
            text = f"{name} is reached: wait until one of them has ended."
        elif why == RATE:
            text = f"{name} is reached: try again in {-(-retry // 1000)} s."
        else:
            text = (
                f"{name} is held by running calls: {quantity(check, spent)} spent, {quantity(check, held)} held, this"
                f" call may take {quantity(check, wanted)}. What they do not use is free again when they end."
            )
        return RateLimitExceeded(text, limit=check.title, headers=shown, retry_after=retry / 1000)
    return QuotaExceeded(text, limit=check.title, headers=shown, should_retry=False)


def quantity(check: Check, amount: int) -> str:
    """An amount of what the check counts, for people; money in the currency that the limit is written in."""
    if check.measure == 3 and check.limit.currency == "cny":
        return money(check.limit.amount if amount == check.amount else round(amount * check.per_dollar), "¥")
    if check.measure == 3:
        return money(amount)
    if check.measure == 2:
        return f"{amount:,} tokens" + (" a minute" if check.kind == "w" and amount == check.amount else "")
    noun = "call" if amount == 1 else "calls"
    if check.measure == 4:
        return f"{amount:,} {noun} at once"
    return f"{amount:,} {noun}" + (" a minute" if check.kind == "w" and amount == check.amount else "")


def money(micro: int, sign: str = "$") -> str:
    """`$5.00`, `¥0.000123`: micro-units of the sign's currency."""
    whole, rest = divmod(micro, 1_000_000)
    digits = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole:,}.{digits}"


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
