"""Keys for a whole team at once, from a list of names or a CSV, and the CSV that hands them out.

Everything is read and checked before the first key is made, and every problem is told with its line. A cell that a
spreadsheet would take for a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from providers.errors import InvalidRequest, StoreUnavailable, SwitchyardError
from router import functions
from router.audit import brief
from router.cabinet import BATCH
from router.changes import Conflict, change_of, quoted, text
from router.descriptions import describe_key
from router.keys import Keys
from router.limit_text import limits_of_options, parse_limits
from router.limits import NAMES
from router.records import DEFAULT_TEAM, Key, Record, encode, key_name, key_of, keys_name, place_name, successor

MOST_KEYS: Final = 1000
MOST_TOLD: Final = 50
"""Problems that are written out."""

_TEXTS: Final = ("name", "owner", "expires")
_LISTS: Final = ("tags", "models", "deny", "networks")
_REPEATED: Final = ("max_requests", "max_tokens")
_SINGLE: Final = tuple(name for name in NAMES.values() if name not in _REPEATED)
COLUMNS: Final = (*_TEXTS, *_LISTS, *NAMES.values())
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
HEAD: Final = ("id", "name", "key", "owner", "team", "expires_at")
"""Columns of the CSV that hands keys out."""
_NAMES: Final = {"姓名": "name", "名称": "name", "名字": "name"}


class Row(NamedTuple):
    """One key to be made. line: where it stood, from 1. fields: as the admin API's JSON for one key."""

    line: int
    fields: Mapping[str, Any]


class Issued(NamedTuple):
    """New keys with their credentials, which exist in clear only here, and whether their team had to be made."""

    keys: Sequence[tuple[Key, str]]
    team_created: bool


def read_rows(content: str) -> list[Row]:
    """One name per line, or a CSV whose first line names its columns (`COLUMNS`; `name` must be one). Raises
    InvalidRequest with every problem and its line."""
    content = content.removeprefix("\ufeff")
    lines = content.splitlines()
    first = next((line for line in lines if line.strip()), "")
    mark = max(",;\t", key=first.count)
    head = _words(next(csv.reader([first], delimiter=mark), []))
    if "name" not in head:
        if len(head) > 1 or (head[:1] and head[0] in COLUMNS):
            raise InvalidRequest(f"the first line must name the columns, one of them `name`: {', '.join(COLUMNS)}")
        names = [(number, line.strip()) for number, line in enumerate(lines, 1)]
        return [Row(number, {"name": _unquoted(name)}) for number, name in names if name]
    if unknown := [cell for cell in head if cell not in COLUMNS]:
        raise InvalidRequest(f"there is no column {quoted(unknown[0])}; there are {', '.join(COLUMNS)}")
    if len(set(head)) != len(head):
        raise InvalidRequest("a column stands twice in the first line")
    rows: list[Row] = []
    problems: list[str] = []
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=mark)
    try:
        for cells in reader:
            number = reader.line_num
            if not any(cell.strip() for cell in cells) or (not rows and not problems and _is_head(cells, head)):
                continue
            if len(cells) > len(head):
                problems.append(f"line {number}: {len(cells)} cells under {len(head)} columns")
                continue
            given = {name: cell.strip() for name, cell in zip(head, cells, strict=False) if cell.strip()}
            try:
                rows.append(Row(number, _fields(given)))
            except InvalidRequest as error:
                problems.append(f"line {number}: {error.message}")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    _raise(problems)
    return rows


def _is_head(cells: Sequence[str], head: Sequence[str]) -> bool:
    return _words(cells) == list(head)


def _words(cells: Iterable[str]) -> list[str]:
    """Names of columns as we know them."""
    found = [cell.strip().removeprefix("\ufeff").casefold() for cell in cells]
    return [_NAMES.get(name, name) for name in found]


def _unquoted(line: str) -> str:
    """A line of a list, which a spreadsheet may have put in quotes."""
    return next(csv.reader([line]))[0].strip() if line.startswith('"') and line.endswith('"') else line


def _fields(given: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: given[name] for name in _TEXTS if name in given}
    fields |= {name: given[name].replace(",", " ").replace(";", " ").split() for name in _LISTS if name in given}
    single = {name: given.get(name) for name in _SINGLE}
    repeated = {name: [given[name]] for name in _REPEATED if name in given}
    if limits := limits_of_options(single, repeated):
        fields["limits"] = limits
    return fields


async def issue(keys: Keys, team: str, rows: Sequence[Row], defaults: Mapping[str, Any]) -> Issued:
    """Make a key for each row, in one team. defaults: fields for all rows; a row's own win, limits one by one.

    Raises InvalidRequest with all problems; Conflict; StoreUnavailable, also when the store was lost meanwhile: what
    had been written is then revoked as far as the store can be reached, since nobody has seen those secrets.
    """
    if not rows:
        raise InvalidRequest("there is no name to make a key for")
    if len(rows) > MOST_KEYS:
        raise InvalidRequest(f"at most {MOST_KEYS} keys can be made at once; there are {len(rows)}")
    ready = _checked(keys, rows, defaults)
    await keys.refuse_ids(fields["name"] for fields in ready)
    found, created = await keys.teams.find_or_make(text(team, "team") or DEFAULT_TEAM)
    made = [keys.new_record(fields, found) for fields in ready]
    records = [record for record, _ in made]
    first = brief(describe_key(key_of(records[0], found.name), None, keys.clock()))
    after = {"count": len(made), "keys": {record.id: record.name for record in records}, "first": first}
    async with keys.trail.entry("key.issue", f"team {found.id}", None, after, name=found.name):
        await _write(keys, found.id, records)
    return Issued([(key_of(record, found.name), credential) for record, credential in made], created)


def _checked(keys: Keys, rows: Sequence[Row], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    ready: list[dict[str, Any]] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    common = parse_limits(defaults["limits"]) if defaults.get("limits") is not None else ()
    plain = {name: value for name, value in defaults.items() if name not in ("limits", "name", "team")}
    for row in rows:
        try:
            own = {name: value for name, value in row.fields.items() if value is not None and name != "team"}
            rights = {**(plain.get("rights") or {}), **(own.get("rights") or {})}
            change = change_of({**plain, **own, "rights": rights}, keys.clock())
            steps = (*common, *(parse_limits(own["limits"]) if "limits" in own else ()))
            fields = keys.examined(msgspec.structs.replace(change, limits=steps))
            before = lines.setdefault(fields["name"], row.line)
            if before != row.line:
                raise InvalidRequest(f"the name {quoted(fields['name'])} stands in line {before} already")
            ready.append(fields)
        except InvalidRequest as error:
            problems.append(f"line {row.line}: {error.message}")
    _raise(problems)
    return ready


def _raise(problems: Sequence[str]) -> None:
    if problems:
        more = f"\nand {len(problems) - MOST_TOLD} more" if len(problems) > MOST_TOLD else ""
        raise InvalidRequest("no key was made:\n" + "\n".join(problems[:MOST_TOLD]) + more)


async def _write(keys: Keys, team: str, records: Sequence[Record]) -> None:
    cabinet = keys.cabinet
    try:
        await cabinet.gather([("SET", place_name(record.id), team, "NX") for record in records])
        if not await cabinet.add(records[0]):  # alone: it loads the library where it is missing
            raise Conflict("this id is taken")
        for start in range(1, len(records), BATCH):
            await cabinet.gather([_put(record) for record in records[start : start + BATCH]])
    except SwitchyardError:
        await _withdraw(keys, records)
        raise


def _put(record: Record) -> tuple[str | bytes | int, ...]:
    names = (key_name(record.team, record.id), keys_name(record.team))
    return ("FCALL", functions.name("put"), len(names), *names, "", encode(record), record.id)


async def _withdraw(keys: Keys, records: Iterable[Record]) -> None:
    """Revoke what was written of keys that nobody will ever see."""
    try:
        for record in records:
            revoked = successor(record, msgspec.structs.replace(record, state="revoked"))
            await keys.cabinet.replace(record, revoked)
    except StoreUnavailable:
        pass  # it is gone: the secrets are as lost as the keys, and the audit log names the ids


def inert(cell: str) -> str:
    """The cell as text for every spreadsheet."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def write_csv(issued: Issued) -> str:
    """The keys for handing out, under a line with the names of the columns."""
    return csv_of({**describe_key(key, None, 0), "key": credential} for key, credential in issued.keys)


def csv_of(keys: Iterable[Mapping[str, Any]]) -> str:
    """Keys with the fields of `HEAD` as a CSV."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    for key in keys:
        writer.writerow([inert(str(key[name] or "")) for name in HEAD])
    return out.getvalue()
