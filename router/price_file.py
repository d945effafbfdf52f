"""A file of prices: its form, and how it is read. What the settings mean is in `docs/billing.md`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from router.config import Config, ConfigErrors, Int, Number, Problem, Settings, Text, Texts
from router.config_check import KeyOf, place_of, read_text, validate
from router.config_yaml import KeyPath, read

IMAGES: Final = 4
"""Images in one answer at most, unless its price says another number. Models that draw in chats give one, seldom a few
(https://ai.google.dev/gemini-api/docs/image-generation); settlement charges what came."""
PACKAGE: Final = Path(__file__).resolve().parent
_SPAN: Final = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]-(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)")


def _day(value: str) -> str:
    try:
        if date.fromisoformat(value).isoformat() == value:
            return value
    except ValueError:
        pass
    raise PydanticCustomError("day", 'must be a day such as "2026-11-22"')


def _web(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise PydanticCustomError("web", "must be the address of the page that says it")
    return value


def _periods(value: object) -> object:
    """One price, or several that follow each other."""
    return value if isinstance(value, list | tuple) else [value]


Day = Annotated[str, AfterValidator(_day)]
Source = Annotated[str, AfterValidator(_web)]
Amount = Annotated[Number, Field(ge=0, le=1_000_000)]


class RateRow(Settings):
    """Prices of a million tokens, in the group's currency."""

    input: Amount | None = None
    output: Amount | None = None
    cached: Amount | None = None
    cache_write: Amount | None = None
    reasoning: Amount | None = None


class TierRow(RateRow):
    """Other prices for the whole call, once its prompt has more than `above` tokens (and its answer more than
    `output_above`)."""

    above: Annotated[Int, Field(ge=0)]
    output_above: Annotated[Int, Field(ge=0)] = 0


def _span(value: str) -> str:
    if _SPAN.fullmatch(value) and value[:5] < value[6:]:
        return value
    raise PydanticCustomError("span", 'must be hours of a day in UTC such as "01:00-04:00"')


class OffPeakRow(Settings):
    """A vendor that is cheaper outside its peak hours."""

    percent: Annotated[Int, Field(ge=1, le=100)]
    peak: Annotated[tuple[Annotated[str, AfterValidator(_span)], ...], Field(strict=False, min_length=1)]
    weekends: Literal["off", "peak"] = "peak"


class PriceRow(RateRow):
    """The price of one model, or of all whose names fit a pattern."""

    also: Texts = ()
    image: Amount = 0
    image_tokens: Annotated[Int, Field(ge=0)] = 0
    max_images: Annotated[Int, Field(ge=1, le=64)] = IMAGES
    call: Amount = 0
    tiers: Annotated[tuple[TierRow, ...], Field(strict=False)] = ()
    off_peak: OffPeakRow | None = None
    from_: Annotated[Day | None, Field(alias="from")] = None
    until: Day | None = None
    max_output: Annotated[Int, Field(ge=1)] | None = None
    source: Source | None = None
    looked_at: Day | None = None


class Group(Settings):
    """Prices of one vendor, or of one provider of the config, from one page."""

    vendor: Text | None = None
    provider: Text | None = None
    host: Text | None = None
    currency: Literal["usd", "cny"]
    source: Source
    looked_at: Day
    models: Annotated[
        dict[Text, Annotated[tuple[PriceRow, ...], Field(strict=False, min_length=1), BeforeValidator(_periods)]],
        Field(min_length=1),
    ]


class PriceFile(Settings):
    prices: Annotated[tuple[Group, ...], Field(strict=False)]


def read_price_file(path: Path) -> PriceFile:
    """The prices in the file at `path`. Raises ConfigErrors with everything that is wrong, each with its place."""
    text, _ = read_text(path)
    document = read(text, {})
    file = str(path)
    problems = [Problem(file, *finding.mark, finding.message) for finding in document.findings]
    found: PriceFile | None = None

    def report(place: KeyPath, message: str) -> None:
        problems.append(Problem(file, *place_of(document, place), message))

    if not isinstance(document.value, dict):
        if not problems:
            report((), "must be a mapping with the key prices")
    else:
        found = validate(document.value, document, report, PriceFile)
        if found is not None:
            _cross_check(found, document.value, report)
    if problems or found is None:
        raise ConfigErrors(sorted(set(problems)))
    return found


def _cross_check(file: PriceFile, raw: dict[str, Any], report: Any) -> None:
    taken: dict[tuple[object, ...], list[tuple[str, str]]] = {}
    for index, group in enumerate(file.prices):
        place: KeyPath = ("prices", index)
        if (group.vendor is None) == (group.provider is None):
            report(place, f"prices[{index}] needs either a vendor or a provider")
        for name, rows in group.models.items():
            where: KeyPath = (*place, "models", name)
            several = isinstance(raw["prices"][index]["models"][name], list)
            for number, row in enumerate(rows):
                here = (*where, number) if several else where
                if "**" in name:
                    report(KeyOf(where), 'one "*" already stands for any text')
                _check_row(row, here, report)
                period = (row.from_ or "", row.until or "9999-12-31")
                for one in (name, *row.also):
                    key = (group.vendor, group.provider, group.host, one.lower())
                    others = taken.setdefault(key, [])
                    if any(begin <= period[1] and period[0] <= end for begin, end in others):
                        report(here, f"{one} has two prices for the same day")
                    others.append(period)


def _check_row(row: PriceRow, here: KeyPath, report: Any) -> None:
    if row.from_ and row.until and row.until < row.from_:
        report(here, f"ends on {row.until}, before it begins")
    if row.input is None:
        report(here, "needs an input price: 0 only where the vendor says that it is free")
    last = (-1, -1)
    for number, tier in enumerate(row.tiers):
        size = (tier.above, tier.output_above)
        if size <= last:
            report((*here, "tiers", number), "tiers go from small prompts to large ones")
        last = size
        if tier.input is None or (tier.output is None and row.output is not None):
            report((*here, "tiers", number), "needs the prices that the row itself has")


def shipped() -> Path:
    """The price list that comes with the router, in a wheel or in a checkout."""
    inside = PACKAGE / "default" / "prices.yaml"
    return inside if inside.is_file() else PACKAGE.parent / "config" / "prices.yaml"


def own_file(config: Config) -> Path | None:
    """The file that the config names, relative to the config."""
    if config.prices.file is None:
        return None
    return Path(config.origin.file).parent / config.prices.file


@lru_cache(maxsize=4)
def _read(path: Path, _modified: int, _size: int) -> PriceFile:
    return read_price_file(path)


def groups_of(config: Config) -> Sequence[tuple[Group, bool]]:
    """Every group, with whether it is the operator's own. Raises ConfigErrors, also when the file is missing."""
    groups: list[tuple[Group, bool]] = []
    own = own_file(config)
    for path in (own, shipped()):
        if path is None:
            continue
        try:
            stat = path.stat()
        except (OSError, ValueError):
            what = f"prices.file: there is no file {path}" if path == own else f"the price list {path} is missing"
            raise ConfigErrors([config.problem(what, "prices", "file")]) from None
        groups += [(group, path == own) for group in _read(path, stat.st_mtime_ns, stat.st_size).prices]
    return groups
