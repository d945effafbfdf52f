"""Write docs/metrics.md from the table of metrics (router/metric_table.py).

python -m tools.metrics_page           write the page
python -m tools.metrics_page --check   write nothing; end with 1 when the page is not current (part of `make check`)
"""

import argparse
import sys
from pathlib import Path

from router.metric_table import FAMILIES, LABELS, Family
from tools.lock import ROOT

PAGE = Path("docs/metrics.md")
HEAD = """# Metrics

Made by `python -m tools.metrics_page` from `router/metric_table.py`; do not edit.

`/metrics` is in Prometheus's text format (in OpenMetrics for scrapers that take nothing else). Who may read it, and
what several workers show: [operating](operating.md#metrics).

## Families

| metric | kind, unit | labels | what | 说明 |
|---|---|---|---|---|
"""
MIDDLE = """
Of several workers, counters and histograms are added up; gauges are added up unless it says largest or smallest.

A call is counted when it ends. Calls that were running in a worker that was killed are counted nowhere here, while
the ledger charges what their last heartbeat said: after a `kill -9` usage reports may say a little more than these
sums.

## Labels

Every label is bounded: none of them ever holds a key, a user, or what a client made up.

| label | values | 取值 |
|---|---|---|
"""
BUCKETS = """
## Buckets

| histogram | upper bounds, in seconds |
|---|---|
"""
ACROSS = {"sum": "", "max": " (largest)", "min": " (smallest)"}


def page() -> str:
    """The whole page."""
    rows = "".join(map(_row, FAMILIES))
    labels = "".join(f"| `{name}` | {text} | {chinese} |\n" for name, (text, chinese) in LABELS.items())
    bounds: dict[tuple[float, ...], list[str]] = {}
    for family in FAMILIES:
        if family.buckets:
            bounds.setdefault(family.buckets, []).append(f"`{family.full}`")
    buckets = "".join(
        f"| {', '.join(names)} | {', '.join(f'{bound:g}' for bound in some)} |\n" for some, names in bounds.items()
    )
    return HEAD + rows + MIDDLE + labels + BUCKETS + buckets


def _row(family: Family) -> str:
    kind = ", ".join(filter(None, (family.kind, family.unit)))
    across = ACROSS[family.across] if family.kind == "gauge" else ""
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.full}` | {kind}{across} | {labels} | {family.text} | {family.chinese} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text, place = page(), ROOT / PAGE
    if place.exists() and place.read_text(encoding="utf-8") == text:
        print(f"{PAGE}: current")
        return 0
    if check:
        print(f"{PAGE}:1: is not what router/metric_table.py says: run python -m tools.metrics_page")
        return 1
    place.write_text(text, encoding="utf-8")
    print(f"{PAGE}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
