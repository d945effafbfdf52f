"""How fast a stream's tokens came. Pure."""

from __future__ import annotations

from router.settlement import Bill
from router.trace import Trace


def seconds_per_token(trace: Trace, bill: Bill | None, now: float) -> float | None:
    """Time from a stream's first content to its end at `now`, by the tokens that came in it but one. None where a
    stream did not end well, or nobody can tell how many tokens came in that time.

    Tokens are those of the bill, without reasoning that was not streamed: it was made before the first content. Of
    several choices (`n`) a bill has the sum, and nobody says how many ran at once. Where output had to be counted
    here, reasoning cannot be told from it.
    """
    first, call, meter = trace.content_at, trace.call, trace.meter
    if first is None or meter is None or call is None or not call.stream or call.sampling.n != 1:
        return None
    if trace.outcome != "ok" or bill is None or not bill.parts:
        return None
    last = bill.parts[-1]
    tokens, reasoning = last.usage.output, last.usage.reasoning
    if last.target is not trace.answered or tokens is None:
        return None
    if reasoning and not meter.thought:
        if not last.exact:
            return None
        tokens -= reasoning
    return max(0.0, now - first) / (tokens - 1) if tokens > 1 else None
