"""Limits as people write them: on the command line, in JSON, in a CSV. What they mean is in `router.limits`.

JSON: {"rpm": 60, "tpm": "100k", "concurrency": 4, "budget": {"day": "5usd", "total": "20usd"}, "max_requests": 50,
"max_tokens": {"month": "2m"}, "models": {"gpt-4*": {"rpm": 5}}}. Sent as a change it is merged field by field: what is
not named stays, null lifts. Amounts are exact: no floats, no rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple, cast

from providers.errors import InvalidRequest
from router.limits import LARGEST, MICRO, NAMES, Currency, Limit, Measure, Window

MOST_LIMITS: Final = 64
"""On one key or team: all of them are checked in each call."""
LONGEST_PATTERN: Final = 200
LARGEST_RUNNING: Final = 1_000_000

_WINDOWS: Final[tuple[Window, ...]] = ("day", "week", "month", "total")
_SINGLE: Final[Mapping[str, tuple[Measure, Window]]] = {
    "rpm": ("requests", "minute"),
    "tpm": ("tokens", "minute"),
    "concurrency": ("running", "now"),
}
_CALENDAR: Final[Mapping[str, Measure]] = {"budget": "cost", "max_requests": "requests", "max_tokens": "tokens"}
_BY_NAME: Final[Mapping[str, tuple[Measure, Window]]] = {
    **{name: place for place, name in NAMES.items()},
    "max_requests_total": ("requests", "total"),
    "max_tokens_total": ("tokens", "total"),
}
_ORDER: Final = {place: number for number, place in enumerate(NAMES)}
_SIGNS: Final[Mapping[str, Currency]] = {
    "usd": "usd",
    "$": "usd",
    "us$": "usd",
    "cny": "cny",
    "rmb": "cny",
    "¥": "cny",
    "￥": "cny",
    "元": "cny",
}
_TIMES: Final[Mapping[str, int]] = {"": 1, "k": 1_000, "m": 1_000_000}
_COUNT: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([km]?)", re.IGNORECASE | re.ASCII)
_MONEY: Final = re.compile(r"([^0-9.+\-\s]*)\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([^0-9.+\-\s]*)", re.ASCII)


class Lift(NamedTuple):
    """Takes limits away. None: whatever measure, window or pattern."""

    measure: Measure | None
    windows: tuple[Window, ...] | None
    models: str | None

    def hits(self, limit: Limit) -> bool:
        return (
            (self.measure is None or limit.measure == self.measure)
            and (self.windows is None or limit.window in self.windows)
            and (self.models is None or limit.models == self.models)
        )


Step = Limit | Lift
"""One step of a change: sets a limit, or lifts some."""


def merge(limits: Iterable[Limit], steps: Iterable[Step]) -> tuple[Limit, ...]:
    """The limits after a change, in the order of `NAMES`, those of all models first. Raises InvalidRequest when there
    are too many."""
    found = {(limit.measure, limit.window, limit.models): limit for limit in limits}
    for step in steps:
        if isinstance(step, Limit):
            found[step.measure, step.window, step.models] = step
        else:
            found = {place: limit for place, limit in found.items() if not step.hits(limit)}
    if len(found) > MOST_LIMITS:
        raise InvalidRequest(f"at most {MOST_LIMITS} limits are possible", param="limits")
    return tuple(sorted(found.values(), key=lambda limit: (limit.models, _ORDER[limit.measure, limit.window])))


# --- amounts


def parse_count(value: object, param: str, measure: Measure) -> int:
    """`60`, "60", "100k", "1.5m". Raises InvalidRequest, naming `param`."""
    what = {"requests": "calls", "tokens": "tokens", "running": "calls at once"}.get(measure, "")
    if isinstance(value, int) and not isinstance(value, bool):
        amount = value
        if amount < 0:
            raise InvalidRequest(f"{param}: a limit is not negative (0 refuses every call)", param=param)
    else:
        text = value.strip() if isinstance(value, str) else ""
        if isinstance(value, str) and text.startswith("-"):
            raise InvalidRequest(f"{param}: a limit is not negative (0 refuses every call)", param=param)
        match = _COUNT.fullmatch(text)
        if match is None:
            raise InvalidRequest(
                f"{param} is a whole number of {what}, such as 60, 100k or 2m; null (none) lifts it", param=param
            )
        exact = Decimal(match[1]) * _TIMES[match[2].lower()]
        if exact != int(exact):
            raise InvalidRequest(f"{param}: {text[:20]} is not a whole number of {what}", param=param)
        amount = int(exact)
    most = LARGEST_RUNNING if measure == "running" else LARGEST
    if amount > most:
        raise InvalidRequest(f"{param} is at most {most}; null (none) lifts it", param=param)
    return amount


def parse_money(value: object, param: str) -> tuple[int, Currency]:
    """ "5usd", "5 usd", "$5", "30cny", "¥30", "1.5usd" as micro-units and currency. Raises InvalidRequest, naming
    `param`."""
    how = "write 5usd or 30cny"
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise InvalidRequest(f"{param} lacks its currency: {how}", param=param)
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"\D{0,3}-.*|-.*", text):
        raise InvalidRequest(f"{param}: a budget is not negative (0usd refuses every call)", param=param)
    match = _MONEY.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"{param} is an amount with its currency: {how}; null (none) lifts it", param=param)
    before, number, after = match[1].lower(), match[2], match[3].lower()
    sign = before or after
    if not sign:
        raise InvalidRequest(f"{param} lacks its currency: {how}", param=param)
    if sign not in _SIGNS or (before and after):
        raise InvalidRequest(f"{param}: the currency is usd or cny: {how}", param=param)
    exact = Decimal(number) * MICRO
    if exact != int(exact):
        raise InvalidRequest(f"{param}: an amount has at most six decimal places", param=param)
    if exact > LARGEST:
        raise InvalidRequest(f"{param} is at most {LARGEST // MICRO} {_SIGNS[sign]}; null (none) lifts it", param=param)
    return int(exact), _SIGNS[sign]


def _limit(place: tuple[Measure, Window], value: object, param: str, models: str) -> Step:
    measure, window = place
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return Lift(measure, (window,), models)
    if measure == "cost":
        amount, currency = parse_money(value, param)
        return Limit(measure=measure, window=window, amount=amount, currency=currency, models=models)
    return Limit(measure=measure, window=window, amount=parse_count(value, param, measure), models=models)


# --- JSON


def parse_limits(value: object, param: str = "limits") -> tuple[Step, ...]:
    """A change of limits, from JSON. Raises InvalidRequest naming the field (`limits.budget.day`)."""
    if value is None:
        return (Lift(None, None, None),)
    steps: list[Step] = []
    for name, inner in _object(value, param).items():
        if name != "models":
            steps += _section(name, inner, f"{param}.{name}", "")
        elif inner is None:
            raise InvalidRequest(f"{param}.models: name the pattern to lift", param=f"{param}.models")
        else:
            for pattern, section in _object(inner, f"{param}.models").items():
                place = f"{param}.models.{_pattern(pattern, f'{param}.models')}"
                if section is None:
                    steps.append(Lift(None, None, pattern))
                    continue
                for inner_name, innermost in _object(section, place).items():
                    steps += _section(inner_name, innermost, f"{place}.{inner_name}", pattern)
    return tuple(steps)


def _section(name: str, value: object, param: str, models: str) -> list[Step]:
    if name in _SINGLE:
        return [_limit(_SINGLE[name], value, param, models)]
    if name not in _CALENDAR:
        known = ", ".join([*_SINGLE, *_CALENDAR] + ([] if models else ["models"]))
        raise InvalidRequest(f"{param[:100]}: there is no such limit; there are {known}", param=param[:100])
    measure = _CALENDAR[name]
    if value is None:
        return [Lift(measure, _WINDOWS, models)]
    if not isinstance(value, Mapping):
        if measure == "cost":
            raise InvalidRequest(f'{param} needs a window: {{"day": "5usd"}}', param=param)
        value = {"total": value}
    steps = []
    for window, amount in value.items():
        if window not in _WINDOWS:
            raise InvalidRequest(f"{param}: the windows are {', '.join(_WINDOWS)}", param=param)
        steps.append(_limit((measure, window), amount, f"{param}.{window}", models))
    return steps


def _object(value: object, param: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{param} is an object of limits", param=param)
    if len(value) > MOST_LIMITS:
        raise InvalidRequest(f"{param} holds at most {MOST_LIMITS} entries", param=param)
    return cast("Mapping[str, Any]", value)


def _pattern(text: str, param: str) -> str:
    if not text or len(text) > LONGEST_PATTERN or not text.isprintable() or any(mark in text for mark in " ,[]"):
        raise InvalidRequest(
            f"{param}: a pattern is 1 to {LONGEST_PATTERN} characters without spaces, commas or brackets",
            param=param,
        )
    return text


def limits_json(limits: Iterable[Limit]) -> dict[str, Any]:
    """The JSON that `parse_limits` reads. Counts are numbers, money is text ("5usd")."""
    out: dict[str, Any] = {}
    for limit in limits:
        section = out.setdefault("models", {}).setdefault(limit.models, {}) if limit.models else out
        amount = amount_text(limit) if limit.measure == "cost" else limit.amount
        single = NAMES[limit.measure, limit.window]
        if single in _SINGLE:
            section[single] = amount
        else:
            name = next(name for name, measure in _CALENDAR.items() if measure == limit.measure)
            section.setdefault(name, {})[limit.window] = amount
    return out


def amount_text(limit: Limit) -> str:
    """`5usd`, `1.5cny`, `60`."""
    if limit.measure != "cost":
        return str(limit.amount)
    whole, rest = divmod(limit.amount, MICRO)
    return f"{whole}{f'.{rest:06}'.rstrip('0') if rest else ''}{limit.currency}"


def limits_words(limits: Iterable[Limit]) -> list[str]:
    """For tables: `rpm=60`, `budget_day=5usd`, `tpm[gpt-4*]=1000`."""
    return [f"{limit.name}={amount_text(limit)}" for limit in limits]


# --- the command line


def limits_of_options(
    single: Mapping[str, str | None],
    repeated: Mapping[str, Sequence[str]],
    for_models: Sequence[str] = (),
) -> dict[str, Any]:
    """The JSON of the options that were given. single: names such as `rpm` and `budget_day` with their text, None when
    not given; repeated: `max_requests` and `max_tokens` with texts such as `50` and `100/day`; for_models: texts like
    `gpt-4*:rpm=5,budget_day=1usd`. `none` lifts. Raises InvalidRequest; amounts are read later."""
    out: dict[str, Any] = {}
    for name, text in single.items():
        if text is not None:
            _put(out, name, text)
    for name, texts in repeated.items():
        for text in texts:
            amount, _, window = text.partition("/")
            window = window.strip().lower()
            if window not in ("", *_WINDOWS):
                raise InvalidRequest(f"{name}: write 50, or 50/day, /week, /month or /total", param=name)
            every = not window and amount.strip().lower() == "none"
            if name in out and (every or out[name] is None or (window or "total") in out[name]):
                raise _twice(name if every else f"{name} for the same time ({window or 'total'})", name)
            out[name] = None if every else {**out.get(name, {}), window or "total": _null(amount)}
    given: set[tuple[str, tuple[Measure, Window]]] = set()
    for text in for_models:
        pattern, colon, rest = text.rpartition(":")
        if not colon or not pattern:
            raise InvalidRequest("a limit for models looks like gpt-4*:rpm=5,budget_day=1usd", param="model_limit")
        section = out.setdefault("models", {})
        if rest.strip().lower() == "none":
            if pattern in section:
                raise _twice(f"{pattern[:50]}:none", "model_limit")
            section[pattern] = None
            continue
        if pattern in section and section[pattern] is None:
            raise _twice(f"{pattern[:50]}:none", "model_limit")
        for pair in rest.split(","):
            name, equals, amount = pair.strip().partition("=")
            if not equals or name not in _BY_NAME:
                raise InvalidRequest(
                    f"a limit for models names one of {', '.join(NAMES.values())}: gpt-4*:rpm=5", param="model_limit"
                )
            known = section.setdefault(pattern, {})
            if (pattern, _BY_NAME[name]) in given:
                raise _twice(f"{pattern[:50]}:{name}", "model_limit")
            given.add((pattern, _BY_NAME[name]))
            _put(known, name, amount)
    return out


def _twice(what: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"{what} is given twice: which one counts?", param=param)


def _put(out: dict[str, Any], name: str, text: str) -> None:
    measure, window = _BY_NAME[name]
    if name in _SINGLE:
        out[name] = _null(text)
        return
    section = next(section for section, found in _CALENDAR.items() if found == measure)
    out[section] = {**(out.get(section) or {}), window: _null(text)}


def _null(text: str) -> str | None:
    return None if text.strip().lower() == "none" else text.strip()
