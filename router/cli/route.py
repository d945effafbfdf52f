"""`switchyard route MODEL`: the plan of a call, without the call."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.common import ConfigOption, JsonOption, fail, print_json, read_config, snapshot_of

if TYPE_CHECKING:
    from providers.call import Needs
    from router.config import Config
    from router.limits import Limit
    from router.routing import Plan, Rights

NEEDS = ("vision", "audio", "files", "tools", "schema", "reasoning", "logprobs", "embeddings", "text")


def route(
    model: Annotated[str, typer.Argument(help="The name that a client would ask for.")],
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="Plan with the rights of this key.")] = None,
    needs: Annotated[
        str, typer.Option("--needs", metavar="LIST", help=f"What the call needs, by commas: {', '.join(NEEDS)}.")
    ] = "",
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="As with x-switchyard-no-fallback: 1.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which targets a model name leads to, in order, and for each target left out why.

    With --key also by the models that its team may use, and by prices where the key or its team has a limit in money.
    Health, and names that only a running router has found, are not known here. Ends with 1 when no target is left.
    """
    from providers.errors import SwitchyardError
    from router.prices import load_prices
    from router.routing import Rights, plan, priced, why_priced

    asked = _needs(needs)
    loaded = read_config(config)
    rights, limits = asyncio.run(_rights(loaded, key)) if key else (Rights(), ())
    try:
        found = plan(
            snapshot_of(loaded), model, asked, rights, lambda _provider, _model: None, lambda: 0.0, not no_fallback
        )
    except SwitchyardError as error:
        if as_json:
            print_json(
                {"model": model, "error": {"code": error.code, "status": error.status, "message": error.message}}
            )
        else:
            typer.echo(f"{error.status} {error.code}: {error.message}", err=True)
        raise typer.Exit(1) from error
    if why := why_priced(loaded.prices.unpriced == "refuse", limits):
        prices, now = load_prices(loaded), time.time()
        found = priced(found, lambda target: prices.find(target.provider, target.model, now) is not None, why)
    if as_json:
        print_json(plain(found))
    else:
        _print(found)
    if not found.attempts:
        raise typer.Exit(1)


def plain(found: Plan) -> dict[str, Any]:
    """A plan as JSON. The order among targets of one priority is drawn anew by every call."""
    refusal = None if found.attempts else found.refusal()
    return {
        "model": found.asked_model,
        "matched": found.matched,
        "attempts": [{"target": str(attempt.target), "role": attempt.role} for attempt in found.attempts],
        "skipped": [
            {"target": skip.target, "role": skip.role, "reason": skip.reason, "detail": skip.detail}
            for skip in found.skipped
        ],
        "error": refusal and {"code": refusal.code, "status": refusal.status, "message": refusal.message},
    }


def _print(found: Plan) -> None:
    typer.echo(f"{found.asked_model}  ({found.matched})")
    names = [str(attempt.target) for attempt in found.attempts] + [skip.target for skip in found.skipped]
    width = max(map(len, names), default=0)
    for number, attempt in enumerate(found.attempts, 1):
        typer.echo(f"  {number}. {str(attempt.target).ljust(width)}  {attempt.role}")
    for skip in found.skipped:
        typer.echo(f"  -  {skip.target.ljust(width)}  {skip.role} left out, {skip.reason}: {skip.detail}")
    if not found.attempts:
        refusal = found.refusal()
        typer.echo(f"  a call gets {refusal.status} {refusal.code}: {refusal.message}")


def _needs(text: str) -> Needs:
    from providers.call import Needs

    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in NEEDS]
    if unknown:
        fail(f"--needs does not know {', '.join(unknown)}; it knows {', '.join(NEEDS)}", 2)
    kinds = [word for word in words if word in ("embeddings", "text")]
    flags = {word: True for word in words if word not in ("embeddings", "text")}
    return Needs(kind={"embeddings": "embed", "text": "text"}[kinds[0]] if kinds else "chat", **flags)  # type: ignore[arg-type]  # names of Needs


async def _rights(config: Config, key: str) -> tuple[Rights, tuple[Limit, ...]]:
    """The rights of a stored key (by its id or name) in its team, and the limits of both."""
    from providers.errors import SwitchyardError
    from router.keys import open_keys
    from router.known import rights_in
    from router.store import StoreError, open_store

    data_dir = Path(config.data_dir)
    try:
        store = await open_store(config.redis.url.get_secret_value(), data_dir, role="command")
        try:
            # Reading a key has no use for an admin token, and must not fail for a bad one.
            keys = await open_keys(store, data_dir, {})
            found = (await keys.get(key)).key
            team = await keys.teams.get(found.team)
            return rights_in(found.rights, team), (*found.limits, *team.limits)
        finally:
            await store.close()
    except StoreError as error:
        fail(str(error))
    except SwitchyardError as error:
        fail(error.message)
