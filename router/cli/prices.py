"""`switchyard prices`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, print_table, read_config, snapshot_of

if TYPE_CHECKING:
    from router.prices import Entry, Price, Prices
    from router.snapshot import Snapshot

HEAD = ("model", "input", "cached", "output", "more", "holds", "looked at", "source")


def prices(
    model: Annotated[str | None, typer.Argument(help="A name that clients ask for, or provider/model.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what models cost: US dollars for a million tokens, with the page that says it and the day it was read.

    With MODEL the price at each place that the name leads to, now; without, the price lists. Ends with 1 when the
    price of a place is unknown.
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
        print_table(HEAD, ([_name(entry), *_cells(entry.price, _lower(entry))] for entry in rows))


def _show_model(snapshot: Snapshot, known: Prices, model: str, as_json: bool) -> bool:
    from providers.errors import ModelNotFound

    try:
        route = snapshot.route(model)
    except ModelNotFound as error:
        fail(error.message)
    now = time.time()
    seen = [candidate.attempt.target for tier in (*route.tiers, route.fallback) for candidate in tier]
    found = [(target, known.find(target.provider, target.model, now)) for target in seen]
    if as_json:
        rows = [{"target": str(target), "price": _plain(price) if price else None} for target, price in found]
        print_json({"model": model, "unit": "USD per million tokens", "targets": rows})
    else:
        print_table(HEAD, ([str(target), *(_cells(price) if price else _UNKNOWN)] for target, price in found))
    return all(price is not None for _, price in found)


_UNKNOWN = ("unknown", "", "", "", "", "", "nobody says what it costs")


def _name(entry: Entry) -> str:
    host = f" at {entry.host.text}" if entry.host else ""
    return f"{entry.provider or entry.vendor}/{entry.pattern.text}{host}"


def _lower(entry: Entry) -> str:
    """What it costs outside its peak hours."""
    low = entry.off_peak.price if entry.off_peak else None
    return f"off-peak {_dollars(low.input)} and {_dollars(low.output)}" if low else ""


def _cells(price: Price, lower: str = "") -> tuple[str, ...]:
    if price.free:
        return "free", "", "", "", _span(price), price.looked_at, price.source
    cached = _dollars(price.cached) if price.cached is not None else ""
    return (
        _dollars(price.input),
        cached,
        _dollars(price.output),
        ", ".join([*_more(price), *([lower] if lower else [])]),
        _span(price),
        price.looked_at,
        price.source,
    )


def _more(price: Price) -> Iterable[str]:
    for name, amount in (("cache write", price.cache_write), ("reasoning", price.reasoning)):
        if amount is not None:
            yield f"{name} {_dollars(amount)}"
    if price.image:
        yield f"image {_dollars(price.image)}"
    if price.call:
        yield f"call {_dollars(price.call)}"
    for tier in price.tiers:
        answer = f" and answer above {tier.output_above}" if tier.output_above else ""
        yield f"prompt above {tier.above}{answer}: {_dollars(tier.input)} and {_dollars(tier.output)}"


def _span(price: Price) -> str:
    return " ".join(f"{word} {day}" for word, day in (("from", price.since), ("until", price.until)) if day is not None)


def _dollars(micro: int) -> str:
    return f"{micro / 1_000_000:.6f}".rstrip("0").rstrip(".")


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
