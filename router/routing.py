"""Which targets answer a call, in which order, and why the others do not.

`plan` is a pure function and runs on every call: names are resolved once per snapshot (`Snapshot.route`), what a
target cannot do is one bit mask, and what the call needs is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from providers.call import Needs
from providers.errors import (
    InvalidRequest,
    ModelNotAllowed,
    ModelNotFound,
    NotAllowed,
    NoTarget,
    SwitchyardError,
    UnsupportedFeature,
)
from router.health import Block
from router.limits import Limit
from router.provider import Provider, Running, Timeouts
from router.snapshot import (
    BIT,
    NEEDS,
    Attempt,
    Candidate,
    Entry,
    Role,
    Skipped,
    Snapshot,
    Target,
    compile_snapshot,
)

__all__ = [
    "Attempt",
    "Entry",
    "ModelNotFound",
    "Plan",
    "Provider",
    "Rights",
    "Role",
    "Running",
    "Skipped",
    "Snapshot",
    "Target",
    "Timeouts",
    "Unpriced",
    "compile_snapshot",
    "may",
    "plan",
    "priced",
    "visible",
    "why_priced",
]

MAX_ATTEMPTS: Final = 4
"""A call that failed this often is not saved by trying on; the last one is kept for the end of the fallback chain."""

LACKS: Final = {bit: (f"no_{name}", NEEDS[name]) for name, bit in BIT.items()}
_CAPABILITY_REASONS: Final = dict(LACKS.values())
_RIGHTS_REASONS: Final = frozenset({"denied", "local_only"})
_CONTEXT: Final = "context_too_small"
_UNPRICED: Final = "unpriced"
# The field of the request at fault, in OpenAI's words.
_PARAMS: Final = {
    "no_vision": "messages",
    "no_audio": "messages",
    "no_files": "messages",
    "no_image_urls": "messages",
    "no_tools": "tools",
    "no_schema": "response_format",
    "no_reasoning": "reasoning_effort",
    "no_token_inputs": "input",
    "no_choices": "n",
    "no_logprobs": "logprobs",
}


class Unpriced(NotAllowed):
    """Nobody knows what the model costs, and the call may only be made where that is known."""

    code = "model_unpriced"


@dataclass(frozen=True, slots=True)
class Rights:
    """What a key may do. Patterns as in `models`; empty `models` allows all."""

    allow_fallback: bool = True
    models: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    local_only: bool = False
    manage_local: bool = False
    admin: bool = False
    team_models: tuple[str, ...] = ()
    """What the key's team may use: both must allow it."""
    payable: Callable[[Target], bool] | None = field(default=None, compare=False)
    """Where only targets may be used whose price is known: whether it is. For lists of models; a call's own plan asks
    `priced`."""

    @property
    def restricted(self) -> bool:
        """Whether there are models that it may not use by name."""
        return bool(self.models or self.deny or self.team_models)


@dataclass(frozen=True, slots=True)
class Plan:
    """The attempts of a call in order, and the targets left out."""

    asked_model: str
    matched: str
    """exact, pattern:<the pattern>, written or discovered."""
    attempts: tuple[Attempt, ...]
    skipped: tuple[Skipped, ...]

    def refusal(self) -> SwitchyardError:
        """What to tell the caller when there is no attempt: the call's own fault first, then the key's, then ours."""
        if unpriced := next((skip for skip in self.skipped if skip.reason == _UNPRICED), None):
            return Unpriced(
                f"The price of {unpriced.target} is not known and {unpriced.detail}. An administrator can add it to the"
                " price file (see `switchyard prices`).",
                param="model",
            )
        targets = [skip for skip in self.skipped if skip.role == "target"]
        reasons = [skip.reason for skip in targets]
        if reasons and all(reason in _CAPABILITY_REASONS for reason in reasons):
            words = " and ".join(dict.fromkeys(_CAPABILITY_REASONS[reason] for reason in reasons))
            return UnsupportedFeature(
                f"model '{self.asked_model}' does not support {words}.", param=_PARAMS.get(reasons[0], "model")
            )
        if reasons and all(reason == _CONTEXT for reason in reasons):
            message = f"the prompt is too long for model '{self.asked_model}': {targets[0].detail}."
            return InvalidRequest(message, param="messages", native_code="context_length_exceeded")
        if reasons and all(reason in _RIGHTS_REASONS for reason in reasons):
            return ModelNotAllowed(
                f"this key may not use model '{self.asked_model}': {targets[0].detail}.", param="model"
            )
        left_out = "; ".join(f"{skip.target}: {skip.detail}" for skip in self.skipped[:8])
        return NoTarget(f"model '{self.asked_model}' cannot be answered now ({left_out or 'it has no target'}).")


def needs_mask(needs: Needs) -> int:
    """What the call needs, as bits of `BIT`."""
    mask = _KIND_BITS[needs.kind]
    if needs.vision:
        mask |= _VISION
    if needs.audio:
        mask |= _AUDIO
    if needs.files:
        mask |= _FILES
    if needs.tools:
        mask |= _TOOLS
    if needs.schema:
        mask |= _SCHEMA
    if needs.reasoning:
        mask |= _REASONING
    if needs.image_urls:
        mask |= _IMAGE_URLS
    if needs.token_inputs:
        mask |= _TOKEN_INPUTS
    if needs.choices > 1:
        mask |= _CHOICES
    if needs.logprobs:
        mask |= _LOGPROBS
    return mask


_KIND_BITS: Final = {"chat": BIT["chat"], "text": BIT["text"], "embed": BIT["embeddings"]}
_VISION, _AUDIO, _FILES, _TOOLS = BIT["vision"], BIT["audio"], BIT["files"], BIT["tools"]
_SCHEMA, _REASONING, _IMAGE_URLS = BIT["schema"], BIT["reasoning"], BIT["image_urls"]
_TOKEN_INPUTS, _CHOICES, _LOGPROBS = BIT["token_inputs"], BIT["choices"], BIT["logprobs"]


def plan(
    snapshot: Snapshot,
    asked_model: str,
    needs: Needs,
    rights: Rights,
    unhealthy: Callable[[Provider, str], Block | None],
    roll: Callable[[], float],
    fallback: bool = True,
) -> Plan:
    """The plan of one call. Raises ModelNotFound (with near names) and ModelNotAllowed.

    `unhealthy(provider, sent_model)` says why a target gets no calls now, or None. `roll()` gives a number in [0, 1)
    and is asked only where weights decide. `fallback` is False when the caller asked for none.
    """
    if rights.restricted and not may(snapshot, rights, asked_model):
        raise ModelNotAllowed(f"this key may not use model '{asked_model[:100]}'.", param="model")
    route = snapshot.route(asked_model)
    mask = needs_mask(needs)
    attempts: list[Attempt] = []
    skipped: list[Skipped] = []
    for tier in route.tiers:
        usable = []
        for candidate in tier:
            skip = _why_not(candidate, snapshot, mask, needs, rights, unhealthy)
            if skip is None:
                usable.append(candidate)
            else:
                skipped.append(skip)
        attempts += [candidate.attempt for candidate in (usable if len(usable) < 2 else _shuffle(usable, roll))]
    without = _why_no_fallback(rights, fallback)
    for candidate in route.fallback:
        if without is not None:
            skipped.append(Skipped(candidate.name, "fallback_off", without, "fallback"))
        elif mask & BIT["embeddings"] and not candidate.same_vectors:
            detail = "embeddings of another model cannot be compared with those of this one"
            skipped.append(Skipped(candidate.name, "embeddings_differ", detail, "fallback"))
        else:
            skip = _why_not(candidate, snapshot, mask, needs, rights, unhealthy)
            if skip is None:
                attempts.append(candidate.attempt)
            else:
                skipped.append(skip)
    if len(attempts) > MAX_ATTEMPTS:
        attempts = _trim(attempts, skipped)
    return Plan(asked_model, route.matched, tuple(attempts), tuple(skipped))


def why_priced(refuse: bool, limits: Iterable[Limit]) -> str | None:
    """Why calls may only be made where the price is known; None when they may anywhere. `refuse`: the config says so;
    `limits`: those of the key and its team."""
    if refuse:
        return "calls without a known price are refused here"
    if any(limit.measure == "cost" for limit in limits):
        return "this key or its team has a limit in money"
    return None


def priced(found: Plan, known: Callable[[Target], bool], why: str) -> Plan:
    """The plan without the targets whose price is not known (`known`), with `why` as the reason."""
    kept = tuple(attempt for attempt in found.attempts if known(attempt.target))
    left_out = (attempt for attempt in found.attempts if not known(attempt.target))
    skipped = tuple(Skipped(str(attempt.target), _UNPRICED, why, attempt.role) for attempt in left_out)
    return replace(found, attempts=kept, skipped=(*found.skipped, *skipped))


def may(snapshot: Snapshot, rights: Rights, name: str) -> bool:
    """Whether a key may use a model by that name."""
    return snapshot.allows(rights.models, rights.deny, name) and (
        not rights.team_models or snapshot.allows(rights.team_models, (), name)
    )


def _why_no_fallback(rights: Rights, fallback: bool) -> str | None:
    if not fallback:
        return "the request asked for no fallback"
    return None if rights.allow_fallback else "this key allows no fallback"


def _why_not(
    candidate: Candidate,
    snapshot: Snapshot,
    mask: int,
    needs: Needs,
    rights: Rights,
    unhealthy: Callable[[Provider, str], Block | None],
) -> Skipped | None:
    """Why a candidate is left out, or None. Rights come first: a key is not told what it may not use. Then what would
    be so even if all were well: the call's own fault is told before ours."""
    target = candidate.attempt.target
    reason: str
    if rights.local_only and not target.provider.local:
        reason, detail = "local_only", "this key may use local models only"
    elif rights.deny and not snapshot.allows((), rights.deny, candidate.name):
        reason, detail = "denied", "this key may not use it"
    elif lacking := candidate.cannot & mask:
        reason, words = LACKS[lacking & -lacking]
        detail = f"it does not support {words}"
    elif needs.prompt_bytes > candidate.max_prompt_bytes:
        reason, detail = _CONTEXT, f"{needs.prompt_bytes} bytes cannot fit into {candidate.context} tokens"
    elif candidate.off is not None:
        return candidate.off
    elif (block := unhealthy(target.provider, target.model)) is not None:
        return Skipped(candidate.name, "unhealthy", str(block), candidate.attempt.role, block)
    else:
        return None
    return Skipped(candidate.name, reason, detail, candidate.attempt.role)


def _shuffle(candidates: Sequence[Candidate], roll: Callable[[], float]) -> list[Candidate]:
    """A random order in which each place goes to one of those left, with chances as their weights."""
    left, order = list(candidates), []
    while len(left) > 1:
        point = roll() * sum(candidate.weight for candidate in left)
        chosen = len(left) - 1  # where rounding leaves the point beyond the last one
        for index, candidate in enumerate(left):
            point -= candidate.weight
            if point < 0:
                chosen = index
                break
        order.append(left.pop(chosen))
    return [*order, *left]


def _trim(attempts: list[Attempt], skipped: list[Skipped]) -> list[Attempt]:
    """At most MAX_ATTEMPTS; the local end of the fallback chain keeps its place, the last resort."""
    last = attempts[-1]
    keeps_last = last.role == "fallback" and last.target.provider.local
    kept = [*attempts[: MAX_ATTEMPTS - 1], last] if keeps_last else attempts[:MAX_ATTEMPTS]
    dropped = attempts[MAX_ATTEMPTS - 1 : -1] if keeps_last else attempts[MAX_ATTEMPTS:]
    detail = f"{MAX_ATTEMPTS} attempts come before it"
    skipped += [Skipped(str(attempt), "attempts_limit", detail, attempt.role) for attempt in dropped]
    return kept


def visible(snapshot: Snapshot, rights: Rights) -> tuple[Entry, ...]:
    """The entries of the model list that a key may use. Without restrictions: the snapshot's own tuple."""
    if not (rights.restricted or rights.local_only or rights.payable):
        return snapshot.listed
    return tuple(
        entry
        for entry in snapshot.listed
        if (entry.local or not rights.local_only)
        and may(snapshot, rights, entry.id)
        and (rights.payable is None or _payable(snapshot, rights, rights.payable, entry.id))
    )


def _payable(snapshot: Snapshot, rights: Rights, known: Callable[[Target], bool], name: str) -> bool:
    """Whether one of those who answer to a name has a known price."""
    route = snapshot.route(name)
    tiers = (*route.tiers, route.fallback if rights.allow_fallback else ())
    return any(candidate.off is None and known(candidate.attempt.target) for tier in tiers for candidate in tier)
