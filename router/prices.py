"""What a call costs: whole micro-dollars, from dated price lists.

Who says what a model costs, the first that knows: the operator's own file (`prices.file`), the list that is shipped
(`config/prices.yaml`), litellm's bundled list. A model that nobody names has no known price, which is never the same
as costing nothing: only local providers, and rows that say 0, cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from providers.events import Usage
from router import price_data
from router.config import Config
from router.patterns import Pattern
from router.price_file import IMAGES, Group, OffPeakRow, PriceRow, RateRow, TierRow, groups_of
from router.provider import Provider

MILLION: Final = 1_000_000
DAY: Final = 86_400
CACHE: Final = 4096
"""Names come from callers, so the number of remembered ones is bounded."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Micro-USD for a million tokens. None: `cached` and `cache_write` as `input`, `reasoning` as `output`."""

    input: int = 0
    output: int = 0
    cached: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None


class Tier(Rates, frozen=True, kw_only=True):
    """The rates of the whole call once its prompt has more than `above` tokens and its answer more than
    `output_above`."""

    above: int
    output_above: int = 0


class Price(Rates, frozen=True, kw_only=True):
    """What one model costs. `tiers` go from small prompts to large ones; the last that fits counts."""

    tiers: tuple[Tier, ...] = ()
    image: int = 0
    """Micro-USD for each image made."""
    image_tokens: int = 0
    """Tokens that the vendor counts as output for such an image: paid by `image`, not by `output`."""
    max_images: int = IMAGES
    """Images that one answer has at most, where each costs `image`."""
    call: int = 0
    """Micro-USD for each call."""
    source: str = ""
    """The page that says it; `litellm` for the bundled list, `local` for what costs nothing."""
    looked_at: str = ""
    """The day on which the page was read."""
    since: str | None = None
    until: str | None = None
    """First and last day (UTC) on which it holds."""
    max_output: int | None = None
    """Most tokens of one answer, where the list says so."""

    def rates(self, prompt: int, output: int) -> Rates:
        """The rates of a call with so many tokens."""
        found: Rates = self
        for tier in self.tiers:
            if prompt > tier.above and (output > tier.output_above or not tier.output_above):
                found = tier
        return found

    def cost(self, usage: Usage, images_out: int = 0) -> int:
        """Micro-USD, rounded up once. `cached` and `cache_write` are part of the input, `reasoning` of the output;
        what is unknown counts 0."""
        prompt, output = usage.input or 0, usage.output or 0
        rates = self.rates(prompt, output) if self.tiers else self
        dear = rates.input * prompt
        if usage.cached and rates.cached is not None:
            cached = min(usage.cached, prompt)
            dear += (rates.cached - rates.input) * cached
            prompt -= cached
        if usage.cache_write and rates.cache_write is not None:
            dear += (rates.cache_write - rates.input) * min(usage.cache_write, prompt)
        if images_out and self.image:
            output = max(0, output - images_out * self.image_tokens)
        dear += rates.output * output
        if usage.reasoning and rates.reasoning is not None:
            dear += (rates.reasoning - rates.output) * min(usage.reasoning, output)
        return -(-dear // MILLION) + self.call + images_out * self.image

    def bound(self, prompt_tokens: int, output_tokens: int, answers: int = 0) -> int:
        """Micro-USD that a call with at most so many tokens and answers can cost: the dearest tier it may reach,
        nothing cached, everything written to the cache, all of the answer reasoning or images, whichever costs more,
        and `max_images` in each answer."""
        dearest = _dearest(self, self, prompt_tokens, output_tokens)
        for tier in self.tiers:
            if prompt_tokens > tier.above and (output_tokens > tier.output_above or not tier.output_above):
                dearest = max(dearest, _dearest(self, tier, prompt_tokens, output_tokens))
        return -(-dearest // MILLION) + self.call + self.image * self.max_images * answers

    @property
    def free(self) -> bool:
        """It costs nothing, and somebody says so."""
        return not (self.input or self.output or self.image or self.call or self.tiers)


def _dearest(price: Price, rates: Rates, prompt: int, output: int) -> int:
    before = max(rates.input, rates.cached or 0, rates.cache_write or 0)
    after = max(rates.output, rates.reasoning or 0)
    if price.image_tokens:
        after = max(after, -(-price.image * MILLION // price.image_tokens))
    return before * prompt + after * output


FREE: Final = Price(source="local")
"""What runs on machines of one's own."""

SURCHARGE: Final[Mapping[str, int]] = {"priority": 250, "fast": 250, "ultrafast": 600}
"""Percent of the price that a call pays which asks for a `service_tier`: the dearest that OpenAI's page has for any
model (priority is 1.75 to 2.5 times the standard price, ultrafast 6 times). Cheaper tiers are not discounted."""


def percent_of(service_tier: object) -> int:
    """Percent of the standard price for a call with this `service_tier`."""
    return SURCHARGE.get(service_tier, 100) if isinstance(service_tier, str) else 100


@dataclass(frozen=True, slots=True)
class OffPeak:
    """When a lower price holds: outside `peak` (seconds of a UTC day), and at weekends where those are off-peak."""

    price: Price
    peak: tuple[tuple[int, int], ...]
    weekends: bool

    def at(self, now: float) -> tuple[float, float, bool]:
        """From when until when the answer holds (Unix seconds), and whether the lower price does."""
        midnight = now // DAY * DAY
        edges = [midnight, midnight + DAY, *(midnight + edge for span in self.peak for edge in span)]
        second = now - midnight
        weekday = (int(now // DAY) + 3) % 7  # 1970-01-01 was a Thursday
        busy = any(start <= second < end for start, end in self.peak) and not (self.weekends and weekday >= 5)
        return max(edge for edge in edges if edge <= now), min(edge for edge in edges if edge > now), not busy


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a list, compiled: for whom, for which names, and in which time (Unix seconds) the price holds."""

    vendor: str | None
    provider: str | None
    host: Pattern | None
    pattern: Pattern
    begins: float
    ends: float
    price: Price
    own: bool
    currency: str
    off_peak: OffPeak | None = None

    def fits(self, provider: Provider, vendor: str, host: str, model: str) -> bool:
        if self.vendor != vendor if self.provider is None else self.provider != provider.name:
            return False
        return (self.host is None or self.host.match(host) is not None) and self.pattern.match(model) is not None

    @property
    def rank(self) -> tuple[bool, bool, int, bool]:
        """The nearest row counts: the operator's own, for this provider by name, for these very models, this host."""
        return self.own, self.provider is not None, self.pattern.literal, self.host is not None


# Our vendors and profiles in litellm's list: its provider, the prefix of names there, and for which hosts its prices
# are meant (vendors whose mainland China prices differ from the international ones that it has).
_IN_LITELLM: Final[Mapping[str, tuple[tuple[str, ...], str, str]]] = {
    "openai": (("openai", "text-completion-openai"), "", "*"),
    "gemini": (("gemini",), "gemini/", "*"),
    "doubao": (("volcengine",), "volcengine/", "*"),
    "kimi": (("moonshot",), "moonshot/", "*.moonshot.ai"),
    "deepseek": (("deepseek",), "deepseek/", "*"),
    "qwen": (("dashscope",), "dashscope/", "dashscope-intl.*"),
    "zhipu": (("zai",), "zai/", "*.z.ai"),
    "minimax": (("minimax",), "minimax/", "*.minimax.io"),
    "groq": (("groq",), "groq/", "*"),
    "xai": (("xai",), "xai/", "*"),
    "mistral": (("mistral",), "mistral/", "*"),
    "azure": (("azure",), "azure/", "*"),
}


class Prices:
    """All known prices. Immutable but for what it remembers of earlier questions."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._known: dict[tuple[str, str], tuple[float, float, Price | None]] = {}

    def find(self, provider: Provider, model: str, now: float) -> Price | None:
        """The price of `model` (the name that is sent there) at `now` (Unix seconds). None: unknown.

        The first question about a name costs some 20 microseconds, the very first that goes to litellm's list 15
        milliseconds (`prepare` takes them at start); later ones a look into a dict.
        """
        key = (provider.name, model)
        known = self._known.get(key)
        if known is not None and known[0] <= now < known[1]:
            return known[2]
        found = self._look(provider, model, now)
        if len(self._known) >= CACHE:
            self._known.clear()
        self._known[key] = found
        return found[2]

    def names(self, provider: Provider) -> list[str]:
        """The models of a provider that our own lists name, patterns left out."""
        vendor, host = vendor_of(provider), _host(provider)
        texts = [(entry, entry.pattern.text) for entry in self.entries if "*" not in entry.pattern.text]
        return [text for entry, text in texts if entry.fits(provider, vendor, host, text)]

    def prepare(self, providers: Sequence[Provider]) -> None:
        """Read litellm's list now, where one of `providers` may need it: it takes 15 ms, once in a process."""
        if any(provider.off is None and not provider.local for provider in providers):
            price_data.rows()

    def _look(self, provider: Provider, model: str, now: float) -> tuple[float, float, Price | None]:
        """From when until when the answer holds, and the answer."""
        name = model.lower().removeprefix("models/")
        vendor, host = vendor_of(provider), _host(provider)
        begins, ends = -math.inf, math.inf
        best: Entry | None = None
        for entry in self.entries:
            if provider.local and entry.provider is None:
                continue
            if not entry.fits(provider, vendor, host, name):
                continue
            for edge in (entry.begins, entry.ends):
                if edge <= now:
                    begins = max(begins, edge)
                else:
                    ends = min(ends, edge)
            if entry.begins <= now < entry.ends and (best is None or entry.rank > best.rank):
                best = entry
        if best is not None:
            if best.off_peak is None:
                return begins, ends, best.price
            starts, stops, low = best.off_peak.at(now)
            return max(begins, starts), min(ends, stops), best.off_peak.price if low else best.price
        return begins, ends, FREE if provider.local else _from_litellm(provider, vendor, host, name)


def vendor_of(provider: Provider) -> str:
    """The name under which price lists know a provider: its vendor, its profile, or litellm's name of it."""
    settings = provider.settings
    if settings.vendor == "litellm":
        return settings.litellm_provider or ""
    if settings.vendor == "openai-compatible":
        return str(settings.options.get("profile") or "openai-compatible")
    return settings.vendor


def _host(provider: Provider) -> str:
    return (urlsplit(provider.base_url).hostname or "") if provider.base_url else ""


def _from_litellm(provider: Provider, vendor: str, host: str, model: str) -> Price | None:
    if provider.settings.vendor == "litellm":
        found = price_data.find((f"{vendor}/{model}", model), (vendor,))
    else:
        there = _IN_LITELLM.get(vendor)
        if there is None or Pattern(there[2]).match(host) is None:
            return None
        found = price_data.find((f"{there[1]}{model}", model), there[0])
    if found is None:
        return None
    rates: dict[str, Any] = dict(found.rates)
    return Price(
        **rates,
        tiers=tuple(Tier(above=above, **higher) for above, higher in found.tiers),
        call=found.call,
        source=price_data.SOURCE,
        max_output=found.max_output,
    )


# -- compiling ----------------------------------------------------------------------------------------------------


def load_prices(config: Config) -> Prices:
    """The lists that the config names and the one that is shipped. Raises ConfigErrors, with file, line and column."""
    rate = Decimal(repr(config.prices.usd_cny))
    return Prices(
        [
            entry
            for group, own in groups_of(config)
            for name, rows in group.models.items()
            for row in rows
            for entry in _entries(group, own, name, row, rate)
        ]
    )


def _entries(group: Group, own: bool, name: str, row: PriceRow, usd_cny: Decimal) -> list[Entry]:
    divisor = usd_cny if group.currency == "cny" else Decimal(1)
    price = Price(
        **_rates(row, divisor),
        tiers=tuple(_tier(tier, row, divisor) for tier in row.tiers),
        image=_micro(row.image, divisor) or 0,
        image_tokens=row.image_tokens,
        max_images=row.max_images,
        call=_micro(row.call, divisor) or 0,
        source=row.source or group.source,
        looked_at=row.looked_at or group.looked_at,
        since=row.from_,
        until=row.until,
        max_output=row.max_output,
    )
    begins = _midnight(row.from_, 0) if row.from_ else -math.inf
    ends = _midnight(row.until, 1) if row.until else math.inf
    return [
        Entry(
            vendor=group.vendor,
            provider=group.provider,
            host=Pattern(group.host) if group.host else None,
            pattern=Pattern(one.lower()),
            begins=begins,
            ends=ends,
            price=price,
            own=own,
            currency=group.currency,
            off_peak=_off_peak(row.off_peak, price),
        )
        for one in (name, *row.also)
    ]


def _tier(tier: TierRow, row: PriceRow, divisor: Decimal) -> Tier:
    rates = _rates(tier, divisor)
    if tier.output is None:
        rates["output"] = _micro(row.output, divisor) or 0
    return Tier(above=tier.above, output_above=tier.output_above, **rates)


def _off_peak(row: OffPeakRow | None, price: Price) -> OffPeak | None:
    if row is None:
        return None
    spans = tuple((_second(span[:5]), _second(span[6:])) for span in row.peak)
    low = {name: _share(getattr(price, name), row.percent) for name in (*Rates.__struct_fields__, "image", "call")}
    tiers = tuple(
        replace(tier, **{name: _share(getattr(tier, name), row.percent) for name in Rates.__struct_fields__})
        for tier in price.tiers
    )
    return OffPeak(replace(price, **low, tiers=tiers), spans, row.weekends == "off")


def _share(amount: int | None, percent: int) -> int | None:
    return None if amount is None else -(-amount * percent // 100)


def _second(clock: str) -> int:
    return int(clock[:2]) * 3600 + int(clock[3:]) * 60


def _rates(row: RateRow, divisor: Decimal) -> dict[str, int]:
    given = ((kind, _micro(getattr(row, kind), divisor)) for kind in Rates.__struct_fields__)
    return {kind: value for kind, value in given if value is not None}


def _micro(amount: float | None, divisor: Decimal) -> int | None:
    """Micro-dollars: `amount` dollars or yuan, as it is written in the file. What is not free never becomes free."""
    if amount is None:
        return None
    exact = Decimal(repr(amount)) * MILLION / divisor
    return max(int(exact.quantize(Decimal(1), ROUND_HALF_UP)), 1 if amount else 0)


def _midnight(day: str, later: int) -> float:
    moment = datetime.combine(date.fromisoformat(day) + timedelta(days=later), datetime.min.time(), UTC)
    return moment.timestamp()
