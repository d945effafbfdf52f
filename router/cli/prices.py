"""`switchyard prices`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table, read_config, snapshot_of

if TYPE_CHECKING:
    from router.prices import Entry, Price, Prices
    from router.snapshot import Snapshot

HEAD = ("model", "input", "cached", "output", "looked at", "source", "more")


def prices(
    model: Annotated[str | None, typer.Argument(help="A name that clients ask for, or provider/model.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what models cost: US dollars for a million tokens, with the page that says it and the day it was read.

    With MODEL the price at each place that the name leads to, now; without, the price lists. Ends with 1 when the
    price of a place is unknown, or the name leads nowhere. --json has the pages' whole addresses.
    """
    from router.prices import load_prices

    loaded = read_config(config)
    snapshot = snapshot_of(loaded)
    known = load_prices(loaded)
    if model is None:
        _show_lists(known, as_json)
    elif not _show_model(snapshot, known, model, as_json):
        raise typer.Exit(1)


def _show_lists(known: Prices, as_json: bool) -> None:
    rows = sorted(known.entries, key=lambda entry: (not entry.own, entry.provider or "", entry.vendor or ""))
    if as_json:
        print_json({"unit": "USD per million tokens", "prices": [_listed(entry) for entry in rows]})
    else:
        _print_entries(rows)


def _print_entries(rows: Iterable[Entry]) -> None:
    print_table(HEAD, (line for entry in rows for line in _lines(_name(entry), entry.price, _conditions(entry))))


def _show_model(snapshot: Snapshot, known: Prices, model: str, as_json: bool) -> bool:
    from providers.errors import ModelNotFound

    try:
        route = snapshot.route(model)
    except ModelNotFound as error:
        listed = [entry for entry in known.entries if _is_for(entry, model.lower())]
        if not listed:
            fail(error.message)
        if as_json:
            rows = [_listed(entry) for entry in listed]
            print_json({"model": model, "unit": "USD per million tokens", "targets": [], "listed": rows})
        else:
            _print_entries(listed)
        typer.echo(f"No provider of the config serves {model}; this is what the price lists say of it.", err=True)
        return False
    now = time.time()
    seen = [candidate.attempt.target for tier in (*route.tiers, route.fallback) for candidate in tier]
    found = [(target, known.find(target.provider, target.model, now)) for target in seen]
    if as_json:
        rows = [{"target": str(target), "price": _plain(price) if price else None} for target, price in found]
        print_json({"model": model, "unit": "USD per million tokens", "targets": rows})
    else:
        lines = (_lines(str(target), price) if price else [[str(target), *_UNKNOWN]] for target, price in found)
        print_table(HEAD, (line for some in lines for line in some))
    return all(price is not None for _, price in found)


_UNKNOWN = ("unknown", "", "", "", "", "nobody says what it costs")


def _is_for(entry: Entry, name: str) -> bool:
    """Whether an entry is for this name, which may have its vendor in front."""
    who, _, rest = name.partition("/")
    return entry.pattern.match(name) is not None or (
        who in (entry.vendor, entry.provider) and entry.pattern.match(rest) is not None
    )


def _name(entry: Entry) -> str:
    return f"{entry.provider or entry.vendor}/{entry.pattern.text}"


def _conditions(entry: Entry) -> Iterable[str]:
    """Where it holds, and what it costs outside its peak hours."""
    if entry.host:
        yield f"at {entry.host.text}"
    if entry.off_peak is not None:
        low = entry.off_peak.price
        yield f"off-peak: {_dollars(low.input)} / {_dollars(low.output)}"


def _lines(name: str, price: Price, conditions: Iterable[str] = ()) -> list[list[str]]:
    """A line of the table, and one more for each further condition."""
    more = [*conditions, *([] if price.free else _more(price)), *_span(price)]
    rates = ["free", "", ""]
    if not price.free:
        rates = [
            _dollars(price.input),
            _dollars(price.cached) if price.cached is not None else "",
            _dollars(price.output),
        ]
    first = [
        name,
        *rates,
        price.looked_at,
        (urlsplit(price.source).hostname or price.source).removeprefix("www."),
        *more[:1],
    ]
    return [[*first, *[""] * (len(HEAD) - len(first))], *([*[""] * (len(HEAD) - 1), one] for one in more[1:])]


def _more(price: Price) -> Iterable[str]:
    for name, amount in (("cache write", price.cache_write), ("reasoning", price.reasoning)):
        if amount is not None:
            yield f"{name} {_dollars(amount)}"
    if price.image:
        yield f"image {_dollars(price.image)}"
    if price.call:
        yield f"call {_dollars(price.call)}"
    for tier in price.tiers:
        answer = f", answer > {tier.output_above}" if tier.output_above else ""
        yield f"prompt > {tier.above}{answer}: {_dollars(tier.input)} / {_dollars(tier.output)}"


def _span(price: Price) -> Iterable[str]:
    """Its first and its last day."""
    found = " ".join(
        f"{word} {day}" for word, day in (("from", price.since), ("until", price.until)) if day is not None
    )
    return [found] if found else []


def _dollars(micro: int) -> str:
    """Dollars, to a hundredth of a cent; small amounts in full."""
    return f"{micro / 1_000_000:.{4 if micro >= 10_000 else 6}f}".rstrip("0").rstrip(".")


def _listed(entry: Entry) -> dict[str, Any]:
    return {
        "vendor": entry.vendor,
        "provider": entry.provider,
        "host": entry.host.text if entry.host else None,
        "model": entry.pattern.text,
        "currency": entry.currency,
        "own": entry.own,
        **_plain(entry.price),
        "off_peak": _plain(entry.off_peak.price) if entry.off_peak else None,
    }


def _plain(price: Price) -> dict[str, Any]:
    import msgspec

    def dollars(rates: Any) -> dict[str, Any]:
        return {name: rates[name] / 1_000_000 for name in _RATES if rates.get(name) is not None}

    values = msgspec.to_builtins(price)
    tiers = [
        {"above": tier["above"], "output_above": tier["output_above"], **dollars(tier)} for tier in values["tiers"]
    ]
    rest = {name: values[name] for name in ("source", "looked_at", "since", "until", "max_output", "image_tokens")}
    return {**dollars(values), "tiers": tiers, **rest}


_RATES = ("input", "output", "cached", "cache_write", "reasoning", "image", "call")
