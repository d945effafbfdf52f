"""W3C Trace Context: the trace that a caller says its call belongs to, and what providers are told of it. Pure.

Facts: https://www.w3.org/TR/trace-context-1/ (sections 3.2 and 3.3). What is not valid is dropped, never repaired:

- spaces and tabs around a value do not belong to it, and an empty `tracestate` says nothing
- more than one `traceparent`, one of the wrong form, or with an id of zeros: the call has no trace, and `tracestate`
  counts for nothing; a version above 00 is read by its first four fields
- a `tracestate` with a member of the wrong form, or with more than 32 of them, is dropped alone; of several with one
  key the first stays
- beyond 512 characters, members of more than 128 go first, then the last ones

Baggage is never passed on: it holds what a caller's own systems tell each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from router.http import Headers

MAX_STATE: Final = 512
"""Characters of a `tracestate` that are passed on; the recommendation asks for at least that many."""
LONG_MEMBER: Final = 128
MAX_MEMBERS: Final = 32
MAX_PARENT: Final = 512
"""Characters of a `traceparent` of a later version."""

_PARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]*)?")
_CHAR: Final = r"[a-z0-9_\-*/]"
_MEMBER: Final = re.compile(
    rf"([a-z]{_CHAR}{{0,255}}|[a-z0-9]{_CHAR}{{0,240}}@[a-z]{_CHAR}{{0,13}})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The trace of one call. Ids are hex digits, 32 of a trace and 16 of a span."""

    trace_id: str
    sampled: bool
    parent_id: str | None = None
    """The caller's span; None when the trace begins here."""
    traceparent: str = ""
    """As the caller sent it, without the spaces around it."""
    tracestate: str = ""
    span_id: str | None = None
    """The call's own span; None where no spans are made, and the caller's context is passed on as it came."""
    new_span: Callable[[], str] | None = None
    """Where ids of further spans come from."""

    def attempt(self) -> tuple[str | None, Mapping[str, str]]:
        """The id of a new attempt's span, if spans are made, and the headers that tell a provider of it."""
        span_id, parent = None, self.traceparent
        if self.new_span is not None:
            span_id = self.new_span()
            parent = f"00-{self.trace_id}-{span_id}-{'01' if self.sampled else '00'}"
        if self.tracestate:
            return span_id, {"traceparent": parent, "tracestate": self.tracestate}
        return span_id, {"traceparent": parent}


def incoming(headers: Headers) -> TraceContext | None:
    """The caller's context, None when it sent none, or none that is valid. Header names are lower case."""
    parent: bytes | None = None
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            if parent is not None:
                return None
            parent = value.strip(b" \t")
        elif name == b"tracestate":
            value = value.strip(b" \t")
            if value:
                states.append(value)
    if parent is None:
        return None
    found = _PARENT.fullmatch(parent) if len(parent) <= MAX_PARENT else None
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None) or not trace.strip(b"0") or not span.strip(b"0"):
        return None
    return TraceContext(
        trace_id=trace.decode(),
        sampled=bool(int(flags, 16) & 1),
        parent_id=span.decode(),
        traceparent=parent.decode(),
        tracestate=trace_state(states) if states else "",
    )


def trace_state(values: Sequence[bytes]) -> str:
    """One header value from all that came, empty when there is none or it is not valid."""
    text = ",".join(value.decode("latin-1") for value in values)
    members: dict[str, str] = {}
    whole = True
    for part in text.split(","):
        member = part.strip(" \t")
        if not member:
            continue
        found = _MEMBER.fullmatch(member)
        if found is None:
            return ""
        if found[1] in members:
            whole = False
        members.setdefault(found[1], member)
    if len(members) > MAX_MEMBERS or not members:
        return ""
    if whole and len(text) <= MAX_STATE:
        return text.strip(" \t")
    return _shortened(members.values())


def _shortened(members: Iterable[str]) -> str:
    kept = list(members)
    for index in [index for index, member in enumerate(kept) if len(member) > LONG_MEMBER][::-1]:
        if sum(map(len, kept)) + len(kept) - 1 <= MAX_STATE:
            break
        del kept[index]
    while sum(map(len, kept)) + len(kept) - 1 > MAX_STATE:
        kept.pop()
    return ",".join(kept)


class Tracer:
    """Gives each call its place in a trace. `random_bits(n)` gives n random bits; `ratio` is the share of the traces
    begun here that are recorded (those of callers are recorded as they say)."""

    def __init__(self, ratio: float, random_bits: Callable[[int], int]) -> None:
        self._bound = round(ratio * (1 << 64))
        self._bits = random_bits

    def begin(self, headers: Headers) -> TraceContext:
        """The context of a call that just came in, with a span of its own."""
        context = incoming(headers)
        if context is not None:
            return replace(context, span_id=self.new_span(), new_span=self.new_span)
        trace = self._bits(128) or 1
        return TraceContext(
            trace_id=f"{trace:032x}",
            sampled=trace & _LOW < self._bound,
            span_id=self.new_span(),
            new_span=self.new_span,
        )

    def new_span(self) -> str:
        return f"{self._bits(64) or 1:016x}"


_LOW: Final = (1 << 64) - 1
"""Sampling looks at these bits of a trace id, as OpenTelemetry's own ratio sampler does."""
