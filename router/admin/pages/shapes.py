"""Numbers, times and limits as the pages show them: short to the eye, exact in the title.

Pure: a `Shapes` knows a language, a time zone and a rate, and its methods give strings. Money comes in micro-units,
durations in milliseconds, moments in Unix seconds; `now` is the moment of the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime, tzinfo
from typing import Final, Literal, NamedTuple, Protocol

MICRO: Final = 1_000_000
NEAR: Final = 0.8
"""From this part of a limit on it counts as nearly used up."""
DASH: Final = "–"
_SIGN: Final = {"usd": "$", "cny": "¥"}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

Tone = Literal["ok", "near", "full"]
Words = Callable[..., str]
"""words(key, **fields): the text of a key in the page's language. Raises KeyError for an unknown one."""


class Limited(Protocol):
    """A limit as the overview reports it (router.overview.LimitBar)."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def limit(self) -> int: ...
    @property
    def spent(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def resets_at(self) -> int | None: ...


class Bar(NamedTuple):
    """A limit ready to be drawn. `spent` and `held` are per cent of the whole and fit beside each other."""

    title: str
    models: str
    spent: float
    held: float
    tone: Tone
    used: str
    limit: str
    holding: str
    """Empty when nothing is held."""
    resets: str
    """Empty when it never begins anew, or slides."""


class Change(NamedTuple):
    """Against yesterday: an arrow's direction and the words."""

    way: Literal["up", "down", "same"]
    words: str


class Shapes:
    """`rate` is CNY for one US dollar; None shows US dollars alone."""

    def __init__(self, words: Words, *, chinese: bool, zone: tzinfo, rate: float | None = None) -> None:
        self._words = words
        self._chinese = chinese
        self._zone = zone
        self._rate = rate

    # --- counts

    def compact(self, count: float | None) -> str:
        """987, 9,876, 12.3k, 1.23M, 4.5B."""
        if count is None:
            return DASH
        for size, mark in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            # 999,600 is 1M, not 1000k.
            if count >= size * 0.9995 and count >= 10_000:
                return f"{_three(count / size)}{mark}"
        return self.exact(count)

    def exact(self, count: float | None) -> str:
        return DASH if count is None else f"{count:,.0f}"

    def rate_of(self, count: float | None) -> str:
        """A rate: one decimal below ten, none above."""
        if count is None:
            return DASH
        return f"{count:.1f}" if 0 < count < 10 else self.compact(round(count))

    def percent(self, part: float, whole: float) -> str:
        """The share of `part` in `whole`; never 0% when there is something, never 100% when something is missing."""
        if whole <= 0:
            return DASH
        share = part / whole * 100
        if 0 < share < 0.1:
            return "<0.1%"
        if 99.9 < share < 100:
            return ">99.9%"
        return f"{share:.1f}%" if 0 < share < 10 else f"{share:.0f}%"

    # --- money

    def money(self, micro: int | None, currency: str = "usd") -> str:
        """$12.34; small sums keep the digits that matter."""
        if micro is None:
            return DASH
        sign = _SIGN.get(currency, "")
        amount = abs(micro) / MICRO
        minus = "-" if micro < 0 else ""
        if amount == 0 or amount >= 0.1:
            return f"{minus}{sign}{self.compact(amount)}" if amount >= 100_000 else f"{minus}{sign}{amount:,.2f}"
        return f"{minus}{sign}{amount:.4f}" if amount >= 0.0001 else f"{minus}<{sign}0.0001"

    def exact_money(self, micro: int | None, currency: str = "usd") -> str:
        """To the micro-unit."""
        if micro is None:
            return DASH
        whole, part = divmod(abs(micro), MICRO)
        return f"{'-' if micro < 0 else ''}{_SIGN.get(currency, '')}{whole:,}.{part:06d}"

    def yuan(self, micro: int | None) -> str:
        """US dollars (micro) as CNY; empty when the rate is not known."""
        if micro is None or self._rate is None:
            return ""
        return self.money(round(micro * self._rate), "cny")

    def cost(self, micro: int | None) -> str:
        """In the currency of the language: Chinese readers see CNY where the rate is known."""
        return (self._chinese and self.yuan(micro)) or self.money(micro)

    def other_cost(self, micro: int | None) -> str:
        """In the other currency; empty when the rate is not known."""
        if self._rate is None or micro is None:
            return ""
        return self.money(micro) if self._chinese else self.yuan(micro)

    @property
    def sign(self) -> str:
        """That of the language's currency."""
        return "¥" if self._chinese and self._rate is not None else "$"

    def shown(self, micro: int) -> float:
        """US dollars (micro) in units of the language's currency, for charts."""
        return round(micro * (self._rate if self._chinese and self._rate is not None else 1) / MICRO, 6)

    # --- times

    def duration(self, ms: float | None) -> str:
        """843 ms, 2.41 s, 34.1 s, 2 min 05 s."""
        if ms is None:
            return DASH
        if ms < 1000:
            return f"{ms:.0f} ms"
        seconds = ms / 1000
        if seconds < 59.95:
            return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"

    def clock(self, at: float) -> str:
        return self._local(at).strftime("%H:%M:%S")

    def hour(self, at: float) -> str:
        return self._local(at).strftime("%H:%M")

    def moment(self, at: float) -> str:
        """With the date and the zone's offset, for titles."""
        local = self._local(at)
        return f"{local:%Y-%m-%d %H:%M:%S} UTC{local:%z}"

    def when(self, at: float, now: float) -> str:
        """The clock time, with the date unless it is today."""
        local = self._local(at)
        return local.strftime("%H:%M:%S" if local.date() == self._local(now).date() else "%m-%d %H:%M")

    def stamp(self, at: float) -> str:
        """For the datetime attribute."""
        return self._local(at).isoformat(timespec="seconds")

    def age(self, at: float, now: float) -> str:
        """How long ago, in words of one unit."""
        seconds = max(0, round(now - at))
        for size, key in ((86_400, "age.days"), (3_600, "age.hours"), (60, "age.minutes")):
            if seconds >= size:
                return self._words(key, n=seconds // size)
        return self._words("age.seconds", n=seconds)

    def until(self, at: float, now: float) -> str:
        """A moment to come: today's clock time, or the day."""
        local = self._local(at)
        return local.strftime("%H:%M" if at - now < 86_400 else "%m-%d %H:%M")

    def _local(self, at: float) -> datetime:
        return datetime.fromtimestamp(at, self._zone)

    # --- the rest

    def vram(self, size: float) -> str:
        gib = size / (1 << 30)
        return f"{gib:.1f} GiB" if gib >= 0.1 or size == 0 else f"{size / (1 << 20):.0f} MiB"

    def plain(self, words: object, most: int = 160) -> str:
        """Words of others on one line: no control characters, at most `most` characters."""
        line = _CONTROL.sub(" ", str(words)).strip()
        return line if len(line) <= most else line[: most - 1] + "…"

    def word(self, family: str, word: str) -> str:
        """A word of a closed set in the page's language; one that no text is known for stays as it is."""
        try:
            return self._words(f"{family}.{word}")
        except KeyError:
            return self.plain(word)

    def change(self, now: float, before: float) -> Change | None:
        """None when there is nothing to compare with."""
        if before <= 0:
            return None
        share = (now - before) / before
        if abs(share) < 0.005:
            return Change("same", self._words("change.same"))
        amount = f"{abs(share) * 100:.0f}%" if abs(share) < 10 else f"{now / before:.0f}×"
        way: Literal["up", "down"] = "up" if share > 0 else "down"
        return Change(way, self._words(f"change.{way}", amount=amount))

    def limit_name(self, name: str) -> str:
        """`team.budget_day[gpt-*]` in words."""
        plain, _, models = name.removeprefix("team.").partition("[")
        words = self.word("limit", plain)
        if name.startswith("team."):
            words = self._words("limit.of_team", limit=words)
        return f"{words} ({self.plain(models.removesuffix(']'), 60)})" if models else words

    def bar(self, limit: Limited, now: float) -> Bar:
        name, _, models = limit.name.removeprefix("team.").partition("[")
        spent, held = max(0, limit.spent), max(0, limit.held)
        whole = max(limit.limit, spent + held)
        used = spent + held
        tone: Tone = "full" if used >= limit.limit else "near" if used >= NEAR * limit.limit else "ok"
        amount = self._amount(limit.unit)
        return Bar(
            title=self.word("limit", name),
            models=models.removesuffix("]"),
            spent=round(spent / whole * 100, 2) if whole else 100.0,
            held=round(held / whole * 100, 2) if whole else 0.0,
            tone=tone,
            used=amount(spent),
            limit=amount(limit.limit),
            holding=amount(held) if held else "",
            resets=self.until(limit.resets_at, now) if limit.resets_at else "",
        )

    def bars(self, limits: Iterable[Limited], now: float, most: int = 3) -> list[Bar]:
        """The tightest first."""

        def used(limit: Limited) -> float:
            return (limit.spent + limit.held) / limit.limit if limit.limit else 2.0

        return [self.bar(limit, now) for limit in sorted(limits, key=used, reverse=True)[:most]]

    def _amount(self, unit: str) -> Callable[[int], str]:
        if unit in _SIGN:
            return lambda micro: self.money(micro, unit)
        return self.compact


def _three(number: float) -> str:
    """Three digits: 1.23, 12.3, 123."""
    shown = f"{number:.2f}" if number < 9.995 else f"{number:.1f}" if number < 99.95 else f"{number:.0f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown
