"""Name patterns in which `*` stands for any text, also none, and every other character for itself.

No regular expressions: names come from callers, and a pattern with several stars would let a long name cost minutes.
Matching takes each literal part at its first place, which finds a match whenever there is one.
"""

from __future__ import annotations

from collections.abc import Iterable


class Pattern:
    """One compiled pattern. `literal` is the length of its literal part: of two that fit, the longer is nearer."""

    __slots__ = ("_first", "_last", "_middle", "literal", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._first, *rest = text.split("*")
        self._last = rest.pop() if rest else None
        self._middle = tuple(rest)
        self.literal = len(text) - text.count("*")

    def match(self, name: str) -> tuple[str, ...] | None:
        """What each `*` stands for, or None."""
        if self._last is None:
            return () if name == self.text else None
        if not name.startswith(self._first) or not name.endswith(self._last) or len(name) < self.literal:
            return None
        at, end = len(self._first), len(name) - len(self._last)
        found: list[str] = []
        for part in self._middle:
            place = name.find(part, at, end)
            if place < 0:
                return None
            found.append(name[at:place])
            at = place + len(part)
        found.append(name[at:end])
        return tuple(found)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def nearest(name: str, patterns: Iterable[Pattern]) -> tuple[Pattern, tuple[str, ...]] | None:
    """The pattern that fits `name` with the longest literal part, of equals the first, and what its stars stand for."""
    best: tuple[Pattern, tuple[str, ...]] | None = None
    for pattern in patterns:
        if best is None or pattern.literal > best[0].literal:
            found = pattern.match(name)
            if found is not None:
                best = pattern, found
    return best


def fill(target: str, name: str, found: tuple[str, ...]) -> str:
    """A target's model under a pattern: `*` alone is the whole asked name; inside a longer text the stars stand for
    what the pattern's stars matched, in order (the last one serves for those left over)."""
    if target == "*":
        return name
    first, *rest = target.split("*")
    out = [first]
    for index, part in enumerate(rest):
        out += (found[min(index, len(found) - 1)] if found else "", part)
    return "".join(out)
