"""Adds up the numbers of all workers and writes them in Prometheus's text format (version 0.0.4).

What a line begins with is made once for each set of labels; a scrape then only adds doubles. A histogram's count is the
sum of its buckets as they are read, so the two always agree.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import nan
from typing import Final

from router.metric_table import FAMILIES, Across, Family
from router.metrics_files import Entry, Shelf

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
ABSENT: Final = nan
"""A gauge that has no value now."""

Row = tuple[tuple[str, ...], float]
"""Label values and the value."""


Values = Sequence[tuple[Sequence[str], Sequence[float]]]
"""Label values and numbers: one, or those of a histogram (its buckets, what is beyond them, and the sum)."""


def key_of(family: Family, labels: Sequence[str]) -> str:
    """How a set of labels is named in a file."""
    return "\0".join((_place(family), *(_text(label) for label in labels)))


def _place(family: Family) -> str:
    """A worker of another version may have begun the file, with other buckets: those are others' cells."""
    return f"{family.name}/{family.cells}"


def _text(label: str) -> str:
    """Without what no file or text can hold: zeros and half characters."""
    return label.replace("\0", "").encode(errors="replace").decode()


class Series:
    """One set of labels: where each worker has its numbers."""

    __slots__ = ("labels", "parts", "starts")

    def __init__(self, family: Family, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.parts: list[tuple[memoryview[float], int]] = []
        self.starts = tuple(_starts(family, labels))


class Board:
    """All series of all workers by family, kept from one look to the next."""

    def __init__(self, shelves: Iterable[Shelf], families: Sequence[Family] = FAMILIES) -> None:
        self._shelves = [_Half(shelf, {_place(family): family for family in families}) for shelf in shelves]
        self._families = families

    def look(self) -> None:
        """See what series there are now."""
        for half in self._shelves:
            half.look()

    def texts(self, more: Mapping[str, Sequence[Row]]) -> Iterator[str]:
        """The text, family by family. more: rows of gauges that are in no worker's numbers, by the family's name."""
        for family in self._families:
            lines = [f"# HELP {family.full} {_help(family.text)}\n# TYPE {family.full} {family.kind}\n"]
            series = [one for half in self._shelves for one in half.of(family.name)]
            if family.kind == "histogram":
                for one in series:
                    _histogram(one, family, lines)
            elif family.kind == "counter":
                lines += [f"{one.starts[0]}{_counted(one, family)!r}\n" for one in series]
            else:
                lines += [
                    f"{one.starts[0]}{value!r}\n" for one in series if (value := _gauge(one, family.across)) == value
                ]
            for labels, value in more.get(family.name, ()):
                lines.append(f"{_start(family.full, family.labels, labels)}{float(value)!r}\n")
            yield "".join(lines)

    def values(self, more: Mapping[str, Sequence[Row]]) -> Iterator[tuple[Family, Values]]:
        """The same as numbers."""
        for family in self._families:
            found: list[tuple[Sequence[str], list[float]]] = []
            for one in (one for half in self._shelves for one in half.of(family.name)):
                if family.kind == "histogram":
                    found.append((one.labels, _summed(one, family)))
                    continue
                value = _gauge(one, family.across) if family.kind == "gauge" else _counted(one, family)
                if value == value:
                    found.append((one.labels, [value]))
            yield family, [*found, *((labels, [float(value)]) for labels, value in more.get(family.name, ()))]

    def current(self, family: Family) -> dict[tuple[str, ...], float]:
        """The values of a gauge or a counter by its labels."""
        found: dict[tuple[str, ...], float] = {}
        for one in (one for half in self._shelves for one in half.of(family.name)):
            value = _gauge(one, family.across) if family.kind == "gauge" else _counted(one, family)
            if value == value:
                found[one.labels] = value
        return found


class _Half:
    """The series of one shelf."""

    def __init__(self, shelf: Shelf, families: Mapping[str, Family]) -> None:
        self._shelf = shelf
        self._families = families
        self._turns: tuple[int, ...] = ()
        self._read: list[int] = []
        self._series: dict[str, Series] = {}
        self._by_family: dict[str, list[Series]] = {}

    def of(self, family: str) -> Sequence[Series]:
        return self._by_family.get(family, ())

    def look(self) -> None:
        sources, turns = self._shelf.look()
        if turns != self._turns or not self._read:
            self._turns, self._read = turns, [0] * len(sources)
            self._series, self._by_family = {}, {}
        grown: set[str] = set()
        for index, source in enumerate(sources):
            known = self._read[index]
            if known < len(source.entries):
                new = source.entries[known:]
                self._read[index] += len(new)
                grown.update(filter(None, map(self._add, new)))
        for name in grown:
            self._by_family[name].sort(key=_labels)

    def _add(self, entry: Entry) -> str | None:
        """Take in an entry; the family's name when its set of labels was not known."""
        series = self._series.get(entry.key)
        if series is not None:
            series.parts.append((entry.cells, entry.place))
            return None
        place, *labels = entry.key.split("\0")
        family = self._families.get(place)
        if family is None:
            return None
        series = self._series[entry.key] = Series(family, tuple(labels))
        series.parts.append((entry.cells, entry.place))
        self._by_family.setdefault(family.name, []).append(series)
        return family.name


def _labels(series: Series) -> tuple[str, ...]:
    return series.labels


def _gauge(series: Series, across: Across) -> float:
    """The value over all workers; not a number when it has none."""
    values = [value for cells, place in series.parts if (value := cells[place]) == value]
    return _ACROSS[across](values) if values else ABSENT


_ACROSS: Final[Mapping[Across, Callable[[list[float]], float]]] = {"sum": sum, "max": max, "min": min}


def _counted(series: Series, family: Family) -> float:
    return sum([cells[place] for cells, place in series.parts]) / family.scale


def _summed(series: Series, family: Family) -> list[float]:
    """A histogram's numbers over all workers."""
    size = family.cells
    parts = [list(cells[place : place + size]) for cells, place in series.parts]
    return parts[0] if len(parts) == 1 else list(map(sum, zip(*parts, strict=True)))


def _histogram(series: Series, family: Family, lines: list[str]) -> None:
    *numbers, total = _summed(series, family)
    counts = list(accumulate(numbers))
    for start, value in zip(series.starts, (*counts, counts[-1], total), strict=True):
        lines.append(f"{start}{value!r}\n")


def _starts(family: Family, labels: tuple[str, ...]) -> Iterator[str]:
    """What the lines of a series begin with: buckets, count, sum; or the one line that there is."""
    if family.kind != "histogram":
        yield _start(family.full, family.labels, labels)
        return
    for bound in (*map(repr, family.buckets), "+Inf"):
        yield _start(f"{family.full}_bucket", (*family.labels, "le"), (*labels, bound))
    yield _start(f"{family.full}_count", family.labels, labels)
    yield _start(f"{family.full}_sum", family.labels, labels)


def _start(name: str, names: Sequence[str], labels: Sequence[str]) -> str:
    if not names:
        return f"{name} "
    pairs = ",".join(f'{label}="{_value(value)}"' for label, value in zip(names, labels, strict=True))
    return f"{name}{{{pairs}}} "


def _value(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
