"""The options that describe keys and teams, and the admin API's fields that they become. A verb takes whole tables of
them: see `taking`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, get_type_hints

import typer

from providers.errors import InvalidRequest
from router.cli.common import fail

Fields = dict[str, Any]
Table = Mapping[str, Any]
"""Parameter names, each with its annotation. None where the option was not given."""


ONCE: Final = "once"
"""Marks an option that may be given once: read as a list, so that a second one is seen."""


def _text(option: str, metavar: str | None, told: str) -> Any:
    return Annotated[
        list[str] | None, typer.Option(option, metavar=metavar or "TEXT", help=told, show_default=False), ONCE, option
    ]


def _texts(option: str, metavar: str, told: str) -> Any:
    return Annotated[list[str] | None, typer.Option(option, metavar=metavar, help=told, show_default=False)]


COMMON: Final[Table] = {
    "owner": _text("--owner", None, "Who answers for it."),
    "tags": _text("--tags", "A,B", "Words to group by; '' for none."),
    "models": _text("--models", "A,B*", "Only these models; '' allows all again."),
    "deny": _text("--deny", "A,B*", "Not these models; '' lifts it."),
}
LIMITS: Final[Table] = {
    "rpm": _text("--rpm", "N", "Requests per minute. Here and below: 100k, 2m; `none` lifts, 0 refuses all."),
    "tpm": _text("--tpm", "N", "Tokens per minute."),
    "concurrency": _text("--concurrency", "N", "Calls at the same time."),
    "max_requests": _texts("--max-requests", "N[/day]", "Calls in total, or /day, /week, /month; repeatable."),
    "max_tokens": _texts("--max-tokens", "N[/day]", "Tokens in total, or /day, /week, /month; repeatable."),
    "budget_day": _text("--budget-day", "5usd", "Money for each day: 5usd, 1.5usd, 30cny."),
    "budget_week": _text("--budget-week", "5usd", "Money for each week; it begins on Monday."),
    "budget_month": _text("--budget-month", "5usd", "Money for each month."),
    "budget_total": _text("--budget-total", "5usd", "Money in total."),
    "model_limit": _texts(
        "--model-limit", "PATTERN:rpm=5,...", "Limits for some models: gpt-4*:rpm=5,budget_day=1usd; repeatable."
    ),
}
KEY: Final[Table] = {
    **COMMON,
    "team": _text("--team", "TEAM", "The team's name or id."),
    "expires": _text("--expires", "WHEN", "30d, 12h, 2027-01-31 or never."),
    "networks": _text("--networks", "CIDR,...", "Calls from these networks only; '' for all."),
    **LIMITS,
}
TEAM: Final[Table] = {
    **COMMON,
    "timezone": _text("--timezone", "ZONE", "Whose midnight begins days, weeks and months: Asia/Shanghai."),
    **LIMITS,
}
NEW_RIGHTS: Final[Table] = {
    "right": _texts("--right", "RIGHT", "manage_local or admin; repeatable."),
    "no_fallback": Annotated[bool, typer.Option("--no-fallback", help="The local model never stands in.")],
    "local_only": Annotated[bool, typer.Option("--local-only", help="Only local providers.")],
}
RIGHTS: Final = ("manage_local", "admin")
_PLAIN: Final = ("name", "owner", "team", "expires", "timezone")
_LISTS: Final = ("tags", "models", "deny", "networks")
_SINGLE: Final = ("rpm", "tpm", "concurrency", "budget_day", "budget_week", "budget_month", "budget_total")


def taking(*tables: Table) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb the options of the tables; their values arrive in its parameter `given`."""
    options = {name: annotation for table in tables for name, annotation in table.items()}

    def wrap(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(verb, include_extras=True)
        own = [part for part in inspect.signature(verb).parameters.values() if part.name != "given"]
        first = [part.replace(annotation=hints[part.name]) for part in own]
        more = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=_default(kind), annotation=kind)
            for name, kind in options.items()
        ]
        at = next((number for number, part in enumerate(first) if part.name == "url"), len(first))

        def run(**values: Any) -> None:
            given = {name: _single(options[name], values.pop(name)) for name in options}
            verb(**values, given=given)

        parameters = [*first[:at], *more, *first[at:]]
        run.__name__, run.__doc__ = verb.__name__, verb.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {part.name: part.annotation for part in parameters}
        return run

    return wrap


def _single(kind: Any, value: Any) -> Any:
    if ONCE not in kind.__metadata__:
        return value
    if value and len(value) > 1:
        fail(f"{kind.__metadata__[-1]} is given twice: which one counts?", 2)
    return value[0] if value else None


def _default(kind: Any) -> Any:
    return False if bool in (kind.__origin__, *getattr(kind.__origin__, "__args__", ())) else None


def fields_of(given: Fields) -> Fields:
    """The options that were given, as fields of the admin API."""
    from router.limit_text import limits_of_options

    fields: Fields = {name: given[name] for name in _PLAIN if given.get(name) is not None}
    fields |= {name: words(given[name]) for name in _LISTS if given.get(name) is not None}
    single = {name: given.get(name) for name in _SINGLE}
    repeated = {name: given[name] for name in ("max_requests", "max_tokens") if given.get(name)}
    try:
        limits = limits_of_options(single, repeated, given.get("model_limit") or ())
    except InvalidRequest as error:
        fail(error.message, 2)
    if limits:
        fields["limits"] = limits
    rights = dict.fromkeys(known(given.get("right") or []), True)
    rights |= {"allow_fallback": False} if given.get("no_fallback") else {}
    rights |= {"local_only": True} if given.get("local_only") else {}
    return fields | ({"rights": rights} if rights else {})


def known(rights: list[str]) -> list[str]:
    """Rights by the names of the admin API."""
    named = [right.replace("-", "_") for right in rights]
    for right in named:
        if right not in RIGHTS:
            fail(f"there is no right {right}: {' or '.join(RIGHTS)}", 2)
    return named


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
