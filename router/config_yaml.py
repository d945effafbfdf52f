"""YAML with positions: from text to plain values in which nothing surprises.

Rules of this reader, and why they are stricter than PyYAML's:

* The tree is built from parse events, not by `yaml.compose`: events come from a loop, so a thousand nested brackets
  cannot exhaust the stack, and the marks are ours to keep.
* Scalars follow the YAML 1.2 core schema. What 1.1 and 1.2 (so: two editors, two languages) read differently is
  refused with the spelling that both read alike: `on`/`off`/`yes`/`no`, `010`, `0o10`, `1_000`, `1:30`, `.inf`.
* A key written twice, a merge key, a tag and a second document are refused; PyYAML would keep the last one silently.
* Anchors and aliases work, but not inside themselves, and not beyond `MAX_NODES` after expansion.
* `${NAME}` is expanded here, after parsing and in string scalars only: a value cannot add structure to the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import yaml

MAX_DEPTH: Final = 24
MAX_NODES: Final = 100_000
MAX_REFERENCE_DEPTH: Final = 8

# The C loader is ten times faster and gives the same events; it is missing only where libyaml was.
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

KeyPath: TypeAlias = tuple[str | int, ...]


class Mark(NamedTuple):
    """A place in the file, counted from 1."""

    line: int
    column: int


class Expanded(str):
    """Text that came out of a `${...}` reference, so a number or a bool may be read from it."""

    __slots__ = ()


class Finding(NamedTuple):
    """A problem with the text itself, before anything is known about settings."""

    mark: Mark
    message: str


@dataclass(slots=True)
class Document:
    """Plain values (dict, list, str, int, float, bool, None) with the place of each."""

    value: Any = None
    values: dict[KeyPath, Mark] = field(default_factory=dict)
    keys: dict[KeyPath, Mark] = field(default_factory=dict)
    references: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict)
    """Names of the variables that a scalar refers to, in the order written."""
    literals: dict[KeyPath, str] = field(default_factory=dict)
    """String scalars as written, where nothing was expanded in them."""
    findings: list[Finding] = field(default_factory=list)


# -- tree ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    mark: Mark
    kind: str  # scalar, list, map
    text: str = ""
    plain: bool = False
    items: list[_Node] = field(default_factory=list)
    pairs: list[tuple[_Node, _Node]] = field(default_factory=list)
    open: bool = True
    size: int = 1
    height: int = 0


class _Stop(Exception):
    """The text cannot be read further; the finding says why."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.finding = Finding(mark, message)


def _mark(mark: Any) -> Mark:  # the C parser's marks and the Python one's share no class
    return Mark(1, 1) if mark is None else Mark(mark.line + 1, mark.column + 1)


def _within(text: str, mark: Mark) -> Mark:
    """libyaml puts what is missing at the end of the file on a line after the last one."""
    lines = text.split("\n")
    return mark if mark.line <= len(lines) else Mark(len(lines), len(lines[-1]) + 1)


def _compose(text: str, findings: list[Finding]) -> _Node | None:
    """The node tree of the only document, or None for an empty one. Raises `_Stop` or `yaml.YAMLError`."""
    root: _Node | None = None
    stack: list[_Node] = []
    waiting: list[_Node | None] = []  # per open map: the key that still lacks its value
    anchors: dict[str, _Node] = {}
    documents = 0

    def attach(node: _Node) -> None:
        nonlocal root
        if not stack:
            root = node
            return
        parent = stack[-1]
        if parent.kind == "list":
            parent.items.append(node)
        elif (key := waiting[-1]) is None:
            waiting[-1] = node
        else:
            parent.pairs.append((key, node))
            waiting[-1] = None

    def close() -> None:
        node = stack.pop()
        waiting.pop()
        node.open = False
        # After expansion: an alias counts as many nodes as what it stands for.
        node.size = 1 + sum(item.size for item in node.items) + sum(k.size + v.size for k, v in node.pairs)
        children = [*node.items, *(value for _, value in node.pairs)]
        node.height = 1 + max((child.height for child in children), default=0)
        if len(stack) + node.height > MAX_DEPTH:
            raise _Stop(node.mark, f"nested deeper than {MAX_DEPTH} levels once its aliases are expanded")
        if node.size > MAX_NODES:
            raise _Stop(node.mark, f"the file holds more than {MAX_NODES} values once its aliases are expanded")

    for event in yaml.parse(text, Loader=_Loader):
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _Stop(mark, "a second YAML document starts here; only one is read")
        elif isinstance(event, yaml.AliasEvent):
            target = anchors.get(event.anchor or "")
            if target is None:
                raise _Stop(mark, f"alias *{event.anchor} names no anchor")
            if target.open:
                raise _Stop(mark, f"alias *{event.anchor} stands inside its own anchor: a cycle")
            attach(target)
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.ScalarEvent):
                plain = event.style is None or event.style == ""
                node = _Node(mark, "scalar", event.value, plain=plain, open=False)
            else:
                node = _Node(mark, "map" if isinstance(event, yaml.MappingStartEvent) else "list")
            tag = getattr(event, "tag", None)  # both kinds of node event have it; the type stubs do not say so
            if tag is not None:
                findings.append(Finding(mark, f"tags are not read here: {tag}"))
            if event.anchor is not None:
                anchors[event.anchor] = node
            attach(node)
            if node.open:
                if len(stack) >= MAX_DEPTH:
                    raise _Stop(mark, f"nested deeper than {MAX_DEPTH} levels")
                stack.append(node)
                waiting.append(None)
        elif isinstance(event, yaml.CollectionEndEvent):
            close()
    return root


# -- scalars ------------------------------------------------------------------------------------------------------

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})\Z")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SURPRISES: Final = (
    (
        re.compile(r"(?i:on|off|yes|no)\Z"),
        "YAML 1.1 reads {0} as a bool and 1.2 as text: write true or false, or quote it",
    ),
    (re.compile(r"[-+]?0[0-9_]+\Z"), "{0} is octal in YAML 1.1 and decimal in 1.2: drop the leading zero, or quote it"),
    (re.compile(r"[-+]?0[obxOBX][0-9a-fA-F_]+\Z"), "{0} is not a number everywhere: write it in decimal, or quote it"),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?\Z"),
        "YAML 1.1 reads {0} as a number in base 60: write the seconds, or quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*_[0-9_.]*\Z"),
        "{0} is a number only in YAML 1.1: drop the underscores, or quote it",
    ),
    (re.compile(r"[-+]?\.(?i:inf|nan)\Z"), "{0} is not a usable number"),
)
_SUSPECT: Final = frozenset("0123456789+-.oOyYnN")


def _scalar(node: _Node, findings: list[Finding]) -> str | int | float | bool | None:
    text = node.text
    if not node.plain:
        return text
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] not in _SUSPECT:
        return text
    if _INT.match(text):
        return int(text)
    for pattern, message in _SURPRISES:
        if pattern.match(text):
            findings.append(Finding(node.mark, message.format(text)))
            return text
    if _FLOAT.match(text):
        number = float(text)
        if math.isinf(number):
            findings.append(Finding(node.mark, f"{text} is too large a number"))
        return number
    return text


# -- references ---------------------------------------------------------------------------------------------------

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class BadReference(ValueError):
    """A `${...}` that cannot be expanded."""


def expand(text: str, env: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """`text` with its references replaced, and the names they refer to.

    `${NAME}` must be set, `${NAME:-default}` falls back when the variable is unset or empty (the default may hold
    references itself), `$$` is one dollar sign. A dollar sign before anything else stands for itself.
    """
    names: list[str] = []
    out, _ = _expand(text, 0, env, names, depth=0, live=True)
    return out, tuple(dict.fromkeys(names))


def _expand(text: str, at: int, env: Mapping[str, str], names: list[str], *, depth: int, live: bool) -> tuple[str, int]:
    """Expands from `at` to the end, or, inside a default (depth > 0), to its closing brace.

    `live` is False in a default that is not used: it must be well formed, but its variables need not be set.
    """
    if depth > MAX_REFERENCE_DEPTH:
        raise BadReference(f"references are nested deeper than {MAX_REFERENCE_DEPTH} levels")
    out: list[str] = []
    while at < len(text):
        char = text[at]
        if char == "}" and depth:
            return "".join(out), at
        if char != "$":
            out.append(char)
            at += 1
        elif text.startswith("$$", at):
            out.append("$")
            at += 2
        elif not text.startswith("${", at):
            out.append("$")
            at += 1
        else:
            name = _NAME.match(text, at + 2)
            if name is None:
                raise BadReference("after ${ comes the name of a variable, as in ${NAME} or ${NAME:-default}")
            value = env.get(name[0])
            names.append(name[0])
            at = name.end()
            if text.startswith(":-", at):
                default, at = _expand(text, at + 2, env, names, depth=depth + 1, live=live and not value)
                value = value or default
            if not text.startswith("}", at):
                raise BadReference(f"${{{name[0]} must be closed: write ${{{name[0]}}} or ${{{name[0]}:-default}}")
            at += 1
            if value is None:
                if live:
                    raise BadReference(f"{name[0]} is not set and has no default: set it, or write ${{{name[0]}:-}}")
                value = ""
            out.append(value)
    if depth:
        raise BadReference("a default is not closed: a } is missing")
    return "".join(out), at


# -- values -------------------------------------------------------------------------------------------------------


def _build(node: _Node, path: KeyPath, document: Document, env: Mapping[str, str]) -> Any:  # a plain tree
    document.values[path] = node.mark
    if node.kind == "list":
        return [_build(item, (*path, index), document, env) for index, item in enumerate(node.items)]
    if node.kind == "map":
        return _build_map(node, path, document, env)
    value = _scalar(node, document.findings)
    if not isinstance(value, str):
        return value
    if "$" not in value:
        document.literals[path] = value
        return value
    try:
        text, names = expand(value, env)
    except BadReference as error:
        document.findings.append(Finding(node.mark, str(error)))
        return Expanded("")
    if names:
        document.references[path] = names
        return Expanded(text)
    document.literals[path] = text
    return text


def _build_map(node: _Node, path: KeyPath, document: Document, env: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key_node, value_node in node.pairs:
        if key_node.kind != "scalar":
            document.findings.append(Finding(key_node.mark, "a key must be text"))
            continue
        key = _scalar(key_node, document.findings)
        if key_node.plain and key_node.text == "<<":
            message = "merge keys (<<) are not read here: write the settings out"
            document.findings.append(Finding(key_node.mark, message))
            continue
        if not isinstance(key, str):
            document.findings.append(Finding(key_node.mark, f'a key must be text: quote it, as in "{key_node.text}"'))
            continue
        inner = (*path, key)
        if key in out:
            line = document.keys[inner].line
            document.findings.append(
                Finding(key_node.mark, f'"{shorten(key)}" stands here twice, first on line {line}')
            )
            continue
        document.keys[inner] = key_node.mark
        out[key] = _build(value_node, inner, document, env)
    return out


def shorten(text: str, limit: int = 60) -> str:
    """One line of `text` for a message, cut at `limit` characters."""
    flat = "".join(char if char.isprintable() else " " for char in text[: limit + 1])
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def read(text: str, env: Mapping[str, str]) -> Document:
    """Reads one YAML document; whatever is wrong with the text is in `findings`, never raised."""
    document = Document()
    try:
        root = _compose(text, document.findings)
    except _Stop as stop:
        document.findings.append(stop.finding)
        return document
    except yaml.MarkedYAMLError as error:
        mark = _within(text, _mark(error.problem_mark or error.context_mark))
        document.findings.append(Finding(mark, f"not valid YAML: {error.problem or error.context}"))
        return document
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        document.findings.append(Finding(Mark(line, 1), f"not valid YAML: {error.reason}"))
        return document
    except (yaml.YAMLError, UnicodeError) as error:
        document.findings.append(Finding(Mark(1, 1), f"not valid YAML: {shorten(str(error))}"))
        return document
    if root is not None:
        document.value = _build(root, (), document, env)
    return document
