"""What the overview page is told: frozen rows, and how they are made of what the store holds.

Sums count calls and tokens; money is in micro-USD, of limits in micro-units of their own currency. Times are Unix
seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from router.recent import began
from router.standing import Standing


class Sums(msgspec.Struct, frozen=True):
    """What was used in some time. `aborted`, `estimated`, `unpriced`, `errors` and `fallbacks` are part of `calls`;
    `refused` (by a limit) are not."""

    calls: int = 0
    errors: int = 0
    fallbacks: int = 0
    aborted: int = 0
    estimated: int = 0
    unpriced: int = 0
    refused: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


FIELDS: Final[Mapping[bytes, int]] = {
    name: place
    for place, name in enumerate(
        (b"calls", b"errors", b"fallbacks", b"aborted", b"estimated", b"unpriced", b"refused", b"in", b"out", b"cost")
    )
}
"""The store's names of the sums, in their order."""
Amounts = list[int]
Where = tuple[str, str]
"""Model and provider; both empty for calls that a limit refused."""


class Hour(msgspec.Struct, frozen=True):
    """The hour that begins at `start`."""

    start: int
    sums: Sums


class ModelRow(msgspec.Struct, frozen=True):
    """What a provider's model was used for. provider: `none` where nobody answered."""

    model: str
    provider: str
    sums: Sums


class LimitBar(msgspec.Struct, frozen=True):
    """A limit, with what is spent and held of it. unit: usd, cny, tokens, requests or calls."""

    name: str
    unit: str
    limit: int
    spent: int
    held: int
    resets_at: int | None

    @property
    def share(self) -> float:
        """The part of it that is taken: 1 at the limit, more where calls used more than they had held."""
        return (self.spent + self.held) / self.limit if self.limit else 1.0


class KeyRow(msgspec.Struct, frozen=True):
    """A key: what it used today (of its team's time zone), and its limits, the fullest first."""

    id: str
    name: str
    team: str
    team_id: str
    sums: Sums
    limits: tuple[LimitBar, ...] = ()


class TeamRow(msgspec.Struct, frozen=True):
    """A team with limits, the fullest first."""

    id: str
    name: str
    limits: tuple[LimitBar, ...]


class RequestRow(msgspec.Struct, frozen=True):
    """A call. status: None while it runs. limit: what refused it. lost: its worker died with it."""

    id: str
    time: float
    team: str
    key: str | None
    key_id: str | None
    dialect: str | None
    op: str | None
    model: str | None
    answered_by: str | None
    status: int | None
    fallback: str | None
    ms: float | None
    first_content_ms: float | None
    tokens_in: int | None
    tokens_out: int | None
    cost: int | None
    mark: str | None
    outcome: str | None
    limit: str | None
    lost: bool
    stream: bool | None


class Board(msgspec.Struct, frozen=True):
    """The numbers of all teams. zone: IANA name of the time zone whose days these are (that of the team `default`).

    yesterday: until the same time of day. hours: the last 24, oldest first, this one included. models and keys: those
    that cost, or used, the most today. requests: newest first, running ones among them; `requests_per_minute` and
    `ttft_p95_ms` (milliseconds to the first content of streams) are those of the last ones.
    """

    as_of: float
    zone: str
    today: Sums
    yesterday: Sums
    hours: tuple[Hour, ...]
    models: tuple[ModelRow, ...]
    keys: tuple[KeyRow, ...]
    teams: tuple[TeamRow, ...]
    errors: tuple[RequestRow, ...]
    requests: tuple[RequestRow, ...]
    requests_per_minute: float
    ttft_p95_ms: float | None
    rate: float | None
    """CNY for one USD."""


class Own(msgspec.Struct, frozen=True):
    """The numbers of one key, for its holder."""

    as_of: float
    zone: str
    key: KeyRow
    team_limits: tuple[LimitBar, ...]
    today: Sums
    hours: tuple[Hour, ...]
    models: tuple[ModelRow, ...]
    requests: tuple[RequestRow, ...]
    rate: float | None


def nothing() -> Amounts:
    return [0] * len(FIELDS)


def add(into: Amounts, amounts: Sequence[int], part: float = 1.0) -> None:
    """Add sums, or a part of them."""
    for place, amount in enumerate(amounts):
        into[place] += amount if part == 1.0 else round(amount * part)


def total(some: Iterable[Sequence[int]]) -> Amounts:
    """All of them together."""
    found = nothing()
    for amounts in some:
        add(found, amounts)
    return found


def number(value: bytes | None) -> int:
    """A counter's value; 0 where there is none, or somebody else wrote something there."""
    try:
        return int(value or 0)
    except ValueError:
        return 0


def sums_of_hour(fields: Mapping[bytes, bytes]) -> dict[Where, Amounts]:
    """The fields `<model>\\t<provider>\\t<name>` of an hour."""
    found: dict[Where, Amounts] = {}
    for field, value in fields.items():
        where, _, name = field.rpartition(b"\t")
        place = FIELDS.get(name)
        if place is None:
            continue
        model, _, provider = where.decode("utf-8", "replace").rpartition("\t")
        amounts = found.get((model, provider))
        if amounts is None:
            amounts = found[model, provider] = nothing()
        amounts[place] += number(value)
    return found


def packed(sums: Mapping[Where, Amounts]) -> bytes:
    """Sums for the store."""
    return msgspec.json.encode([(*where, amounts) for where, amounts in sums.items()])


def unpacked(raw: bytes | None) -> dict[Where, Amounts] | None:
    """What `packed` has made; None for nothing, and for what another version has made."""
    try:
        found = _decode(raw) if raw is not None else None
    except msgspec.DecodeError:
        return None
    if found is None or any(len(amounts) != len(FIELDS) for _, _, amounts in found):
        return None
    return {(model, provider): amounts for model, provider, amounts in found}


_decode: Final = msgspec.json.Decoder(list[tuple[str, str, Amounts]]).decode


def model_rows(found: Mapping[Where, Amounts], most: int) -> tuple[ModelRow, ...]:
    """Those that cost, then used, the most."""
    rows = [ModelRow(model, provider, Sums(*amounts)) for (model, provider), amounts in found.items() if provider]
    rows.sort(key=lambda row: (-row.sums.cost, -row.sums.tokens, -row.sums.calls, row.model, row.provider))
    return tuple(rows[:most])


def bars(found: Sequence[Standing]) -> tuple[LimitBar, ...]:
    """The fullest first."""
    shown = [LimitBar(one.name, one.unit, one.limit.amount, one.spent, one.held, one.resets_at) for one in found]
    return tuple(sorted(shown, key=lambda bar: -bar.share))


def request_row(row: Mapping[str, Any], team: str, names: Mapping[str, str]) -> RequestRow:
    """A row as `router.recent` reads it. `names`: of keys by their ids. What has another type than it should is left
    out: the store may hold rows of other versions."""
    key = _text(row.get("key"))
    return RequestRow(
        id=str(row["id"]),
        time=began(row),
        team=team,
        key=names.get(key, key) if key is not None else None,
        key_id=key,
        status=_whole(row.get("status")),
        lost=bool(row.get("lost")),
        stream=row["stream"] if isinstance(row.get("stream"), bool) else None,
        dialect=_text(row.get("dialect")),
        op=_text(row.get("op")),
        model=_text(row.get("model")),
        answered_by=_text(row.get("answered_by")),
        fallback=_text(row.get("fallback")),
        mark=_text(row.get("mark")),
        outcome=_text(row.get("outcome")),
        limit=_text(row.get("limit")),
        tokens_in=_whole(row.get("tokens_in")),
        tokens_out=_whole(row.get("tokens_out")),
        cost=_whole(row.get("cost")),
        ms=_decimal(row.get("ms")),
        first_content_ms=_decimal(row.get("first_content_ms")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _decimal(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
