"""What a demo run shows on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from tests.demo_traffic.caller import Seen
from tests.demo_traffic.house import House
from tests.demo_traffic.sums import Sums


def where(house: House) -> str:
    """How to look at it."""
    lines = [
        ("overview page", f"{house.router.url}/admin"),
        ("  sign in with", f"{house.router.admin_token}   (the admin token)"),
        ("  or as a key", f"{house.credentials['class-a']}   (class-a of the team course, near its budget)"),
        ("metrics", f"{house.router.url}/metrics"),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in lines)


def calls(seen: Sequence[Seen]) -> Table:
    """What was sent, and how it ended for its clients."""
    table = Table(title="what was sent", title_justify="left")
    table.add_column("kind")
    for name in ("calls", "2xx", "4xx", "5xx", "left", "by a fallback", "broke off"):
        table.add_column(name, justify="right")
    kinds = list(dict.fromkeys(one.ask.kind for one in seen))
    groups = [(kind, [one for one in seen if one.ask.kind == kind]) for kind in kinds]
    for kind, some in [*groups, ("all", list(seen))]:
        classes = Counter(one.status_class for one in some)
        fallbacks = sum(one.fallback is not None and one.status == 200 for one in some)
        broken = sum(one.status == 200 and not one.complete for one in some)
        numbers = (len(some), *(classes[name] for name in ("2xx", "4xx", "5xx", "499")), fallbacks, broken)
        table.add_row(kind, *(str(number or "") for number in numbers), style="bold" if kind == "all" else "")
    return table


def answers(seen: Sequence[Seen]) -> Table:
    """Who answered, and for what others."""
    table = Table(title="who answered", title_justify="left")
    for name in ("provider", "model"):
        table.add_column(name)
    for name in ("calls", "as a fallback", "because"):
        table.add_column(name, justify="right")
    found: dict[tuple[str, str], list[Seen]] = {}
    for one in seen:
        if one.provider is not None and one.status == 200:
            found.setdefault((one.provider, one.model or ""), []).append(one)
    for (provider, model), some in sorted(found.items()):
        reasons = Counter(one.fallback for one in some if one.fallback is not None)
        shown = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        table.add_row(provider, model, str(len(some)), str(reasons.total() or ""), shown)
    return table


def books(clients: Sums, ledger: Sums, metrics: Sums) -> Table:
    """The sums of the three sides."""
    table = Table(title="three books", title_justify="left")
    table.add_column("")
    for name in ("clients and providers", "ledger", "/metrics"):
        table.add_column(name, justify="right")
    sides = (clients, ledger, metrics)
    table.add_row("calls", f"{clients.requests.total():,}", "", f"{metrics.requests.total():,}")
    table.add_row("of them admitted", *(f"{side.settled:,}" for side in sides))
    table.add_row("refused by a limit", f"{clients.rejected:,}", "", f"{metrics.rejected:,}")
    for kind in ("input", "output", "input_cached", "output_reasoning"):
        sums = (sum(count for key, count in side.tokens.items() if key[2] == kind) for side in sides)
        table.add_row(f"tokens, {kind}", *(f"{count:,}" for count in sums))
    table.add_row("cost, micro-USD", *(f"{side.cost.total():,}" for side in sides))
    for mark in ("measured", "estimated", "aborted", "none"):
        told = (f"{side.marks[(mark,)]:,}" if side is not ledger or mark == "estimated" else "" for side in sides)
        table.add_row(f"settled as {mark}", *told)
    return table
