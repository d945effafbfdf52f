"""The audit log: every change of a key or a team, with who, from where and what, as a chain that shows tampering.

One JSON text for each entry in the list `sy:{audit}:log`. An entry's `hash` is HMAC-SHA-256 (key: derived from the
pepper) over the hash before it and its own canonical JSON, so that an entry that was edited, removed or moved breaks
the chain for everyone who has the pepper. `sy:{audit}:head` and `sy:audit-end` hold number and hash of a late entry
under the same key: a log that was cut at its end is shorter than that, and the entry that comes next leaves the gap
open. Where log and marks went together, keys and teams are left whose making stands nowhere. (Who puts back an older
copy of the whole store is found by comparing with a head that was noted elsewhere: `switchyard audit verify --expect`.)

An entry is written before its change is made; a second one follows when the change then fails. No entry holds a
secret or a digest: before and after are descriptions.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

from providers.errors import InvalidRequest, StoreUnavailable, SwitchyardError
from router.cabinet import BATCH, Cabinet
from router.credentials import ALPHABET
from router.origins import Origins
from router.pepper import Pepper
from router.records import AUDIT, AUDIT_END, AUDIT_HEAD, is_key_id

log = logging.getLogger("switchyard.audit")

TRIES: Final = 200
SWAP_TRIES: Final = 24
OVERTAKEN: Final = "changed by others meanwhile"
MOST_PROBLEMS: Final = 20
_HEAD: Final = re.compile(r"0:|[1-9][0-9]{0,14}:[0-9a-f]{64}", re.ASCII)
T = TypeVar("T")
MOST_SCANNED: Final = 5000
"""Entries that one question reads."""


class Actor(NamedTuple):
    """Who changes something. name: `admin token`, `key <id>`, `command line <user>` or `router`. address: the client's,
    empty for this machine."""

    name: str
    address: str = ""


ROUTER: Final = Actor("router")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an examination of the log found. head: number and hash of the last entry, to be noted elsewhere."""

    entries: int
    head: str
    problems: Sequence[str]

    @property
    def ok(self) -> bool:
        return not self.problems


class Audit:
    """The log in one store. `append` is safe with any number of writers. Raises `StoreUnavailable`."""

    def __init__(self, cabinet: Cabinet, pepper: Pepper | bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._cabinet = cabinet
        self._pepper = pepper if isinstance(pepper, Pepper) else Pepper(pepper)
        self._clock = clock
        self._lock = asyncio.Lock()

    @property
    def _key(self) -> bytes:
        return hmac.digest(self._pepper.value, b"the audit log", "sha256")

    async def append(self, facts: Mapping[str, object]) -> int:
        """Write an entry; its number, from 1."""
        facts = {**facts, "id": "".join(random.choices(ALPHABET, k=8))}  # noqa: S311 - tells equal changes apart
        async with self._lock:
            await self._pepper.stamp(self._cabinet)
            for attempt in range(TRIES):
                tail, number, prev = await self._end()
                entry = {"n": number + 1, "time": _iso(self._clock()), **facts, "prev": prev}
                raw, mark = self._sealed(entry)
                if (await self._cabinet.call("audit", [AUDIT], [tail, raw, mark]))[0]:
                    head = self._head(number + 1, mark)
                    await self._cabinet.gather([("SET", AUDIT_HEAD, head), ("SET", AUDIT_END, head)])
                    log.info("audit entry %d:%s", number + 1, mark)
                    return number + 1
                await asyncio.sleep(random.uniform(0, 0.002 * min(attempt + 1, 10)))  # noqa: S311 - jitter
        raise StoreUnavailable("The audit log is being written by too many others, so nothing was changed: try again.")

    async def _end(self) -> tuple[str, int, str]:
        """The hash of the last entry, and number and hash that the next one follows. They differ from the last entry's
        for ever when the log's end was cut, or its marks removed: going on does not heal it."""
        raw, *marks = await self._cabinet.gather([("LINDEX", AUDIT, -1), ("GET", AUDIT_HEAD), ("GET", AUDIT_END)])
        last = {} if raw is None else _decoded(raw) or {}
        tail, number = last.get("hash", ""), last.get("n", 0)
        tail, number = tail if isinstance(tail, str) else "", number if type(number) is int else 0
        known = [found for mark in marks if (found := self._marked(mark)) is not None]
        if raw is None and not any(marks):  # the first of all: from now on a log without its marks is not whole
            nothing = self._head(0, "")
            await self._cabinet.gather([("SET", name, nothing, "NX") for name in (AUDIT_HEAD, AUDIT_END)])
        elif not known:
            return tail, number + 1, tail
        at, mark = max(known, default=(0, ""))
        return (tail, at, mark) if at > number else (tail, number, tail)

    def _marked(self, raw: bytes | None) -> tuple[int, str] | None:
        """Number and hash of a mark; None when it is not ours."""
        at, mark = _pair((raw or b"").decode("ascii", "replace"))
        return (at, mark) if raw == self._head(at, mark).encode() else None

    async def entries(
        self, *, limit: int = 100, before: int | None = None, q: str = ""
    ) -> tuple[list[Any], int | None]:
        """The newest entries first, and the cursor of those before them (None: there are none). before: such a cursor.
        q: a substring of an entry's text, without regard to case. Reads at most `MOST_SCANNED` entries; a page may be
        short of matches while its cursor leads on."""
        end = int(await self._cabinet.ask("LLEN", AUDIT))
        end = end if before is None else max(0, min(before, end))
        wanted = q.casefold()
        stop = max(0, end - MOST_SCANNED)
        found: list[Any] = []
        while end > stop and len(found) < limit:
            start = max(stop, end - BATCH)
            batch = cast("list[bytes]", await self._cabinet.ask("LRANGE", AUDIT, start, end - 1))
            for raw in reversed(batch):
                end -= 1
                entry = _shown(raw, end + 1)
                if not wanted or wanted in "\n".join(_text(entry.get(name)) for name in _SEARCHED):
                    found.append(entry)
                    if len(found) == limit:
                        break
            if not batch:
                break
        return found, end or None

    async def verify(self, expect: str | None = None) -> Verdict:
        """Read the whole log. expect: a head as an earlier verdict told it. Raises InvalidRequest when it is none."""
        wanted = None if not expect else _pair(expect)
        if wanted is not None and not (wanted[0] >= 0 and _HEAD.fullmatch(expect or "")):
            raise InvalidRequest(
                "expect is a head as `audit verify` prints it: a number, a colon and 64 hexadecimal digits",
                param="expect",
            )
        marks = await self._cabinet.gather([("GET", AUDIT_HEAD), ("GET", AUDIT_END)])
        known = [None if mark is None else self._marked(mark) for mark in marks]
        origins = await Origins.read(self._cabinet)
        sought = {at for at, _ in (*filter(None, known), *filter(None, (wanted,)))}
        chain = _Chain(sought)
        while batch := cast(
            "list[bytes]", await self._cabinet.ask("LRANGE", AUDIT, chain.place, chain.place + BATCH - 1)
        ):
            for raw in batch:
                entry = _decoded(raw)
                chain.add(entry, self._genuine(entry, raw))
                origins.add(entry)
        problems = chain.problems
        if chain.place and (marks[0] is None or not any(marks)):
            problems.append("the mark of the log's end is missing")
        for raw_mark, found in zip(marks, known, strict=True):
            if raw_mark is not None and found is None:
                problems.append("the mark of the log's end is not ours")
        missing = {at for found in known if found is not None for at, mark in (found,) if chain.heads.get(at) != mark}
        problems += [f"entry {at} is missing or another: the log was cut or replaced" for at in sorted(missing)]
        if wanted is not None and chain.heads.get(wanted[0]) != wanted[1]:
            problems.append(f"entry {wanted[0]} is not the one that was expected")
        if not problems and (lost := origins.lost()):
            problems.append(lost)
        if len(problems) > MOST_PROBLEMS:
            problems[MOST_PROBLEMS:] = [f"and {len(problems) - MOST_PROBLEMS} more problems"]
        return Verdict(chain.place, f"{chain.number}:{chain.mark}", tuple(problems))

    def _genuine(self, entry: Mapping[str, Any] | None, raw: bytes) -> bool:
        """Whether it is as somebody with the pepper wrote it."""
        if entry is None or not isinstance(entry.get("hash"), str) or type(entry.get("n")) is not int:
            return False
        if not isinstance(entry.get("prev"), str):
            return False
        try:
            sealed, right = self._sealed({name: value for name, value in entry.items() if name != "hash"})
        except ValueError:  # text that cannot be written
            return False
        return hmac.compare_digest(right.encode(), entry["hash"].encode("utf-8", "replace")) and sealed.encode() == raw

    def _sealed(self, entry: Mapping[str, object]) -> tuple[str, str]:
        content = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        mark = hmac.digest(self._key, f"{entry['prev']}\n{content}".encode(), "sha256").hex()
        return f'{content[:-1]},"hash":"{mark}"}}', mark

    def _head(self, number: int, mark: str) -> str:
        seal = hmac.digest(self._key, f"head {number} {mark}".encode(), "sha256").hex()[:32]
        return f"{number}:{mark}:{seal}"


class Plan(NamedTuple, Generic[T]):
    """One try of a change. result: what is there when it is made; name: what people call it; write: makes it, False
    when somebody else was faster, None when nothing is to be done."""

    result: T
    before: Mapping[str, object]
    after: Mapping[str, object]
    name: str
    write: Callable[[], Awaitable[bool]] | None


@dataclass(slots=True)
class _Chain:
    """Entries one after the other. What is wrong with one is told of that one alone: the next is compared with the last
    that was right."""

    sought: set[int]
    """Numbers whose hashes are kept in `heads`."""
    place: int = 0
    number: int = 0
    mark: str = ""
    damaged: int = 0
    """Entries since the last right one that cannot be told from others put in their place."""
    heads: dict[int, str] = field(default_factory=lambda: {0: ""})
    problems: list[str] = field(default_factory=list)

    def add(self, entry: Mapping[str, Any] | None, genuine: bool) -> None:
        self.place += 1
        if entry is None or not genuine:
            self.damaged += 1
            unreadable = entry is None or not isinstance(entry.get("hash"), str)
            self.problems.append(f"entry {self.place} {'cannot be read' if unreadable else 'was edited'}")
            return
        number, follows = entry["n"], entry["prev"] == self.mark
        if number <= self.number:
            self.problems.append(f"entry {self.place} (its number is {number}) was repeated, added or moved")
            return
        between = number - self.number - 1
        if not (follows and not between) and not 0 < between <= self.damaged:
            self.problems.append(f"entry {self.place}: entries before it were removed, added or moved")
        self.number, self.mark, self.damaged = number, entry["hash"], 0
        if number in self.sought:
            self.heads[number] = self.mark


@dataclass(slots=True)
class Written:
    """An entry that stands already. Setting `failed` says that its change was not made, and why."""

    number: int
    failed: str = field(default="")


class Trail:
    """The log as one actor writes it, and the changes that stand in it."""

    def __init__(self, audit: Audit, actor: Actor = ROUTER) -> None:
        self.audit = audit
        self.actor = actor

    @contextlib.asynccontextmanager
    async def entry(
        self,
        action: str,
        target: str,
        before: Mapping[str, object] | None,
        after: Mapping[str, object] | None,
        *,
        name: str = "",
    ) -> AsyncIterator[Written]:
        """Writes the entry, then lets the change be made. name: what people call the target. Raises StoreUnavailable
        when it cannot be written: then nothing may be changed."""
        facts = {"actor": self.actor.name, "address": self.actor.address, "action": action, "target": target}
        facts |= {"name": name} if name else {}
        if before is None and after is not None:  # something new: what is empty says nothing
            after = brief(after)
        number = await self.audit.append({**facts, "before": before, "after": after, "result": "accepted", "of": None})
        written = Written(number)
        try:
            yield written
        except BaseException as error:
            unknown = isinstance(error, StoreUnavailable) or not isinstance(error, SwitchyardError)
            told = "unknown: the store did not confirm it" if unknown else error.code  # type: ignore[attr-defined]  # a SwitchyardError
            written.failed = written.failed or told
            raise
        finally:
            if written.failed:
                await self._fail(facts, written)

    async def swap(self, action: str, target: str, plan: Callable[[], Awaitable[Plan[T]]]) -> T | None:
        """Make a change by compare-and-set, again when others were faster: `plan` reads and says what is to be written.
        One entry stands for all tries, unless what changes became another thing meanwhile. None: others were always
        faster."""
        told: tuple[object, object] | None = None
        async with contextlib.AsyncExitStack() as stack:
            entry: Written | None = None
            for attempt in range(SWAP_TRIES):
                step = await plan()
                if told is not None and (step.write is None or told != (step.before, step.after)):
                    assert entry is not None
                    entry.failed = OVERTAKEN
                    await stack.aclose()
                    told = None
                if step.write is None:
                    return step.result
                if told is None:
                    entry = await stack.enter_async_context(
                        self.entry(action, target, step.before, step.after, name=step.name)
                    )
                    told = (step.before, step.after)
                if await step.write():
                    return step.result
                await asyncio.sleep(random.uniform(0, 0.005 * min(attempt + 1, 10)))  # noqa: S311 - jitter
            if entry is not None:
                entry.failed = OVERTAKEN
        return None

    async def _fail(self, facts: Mapping[str, object], written: Written) -> None:
        try:
            result = f"failed: {written.failed}"
            await self.audit.append({**facts, "before": None, "after": None, "result": result, "of": written.number})
        except StoreUnavailable:
            log.warning("audit entry %d failed (%s), which could not be written", written.number, written.failed)


def brief(fields: Mapping[str, object]) -> Mapping[str, object]:
    """The fields that hold something."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}


def _decoded(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


_TEXTS: Final = ("time", "actor", "address", "action", "target", "name", "result", "prev", "hash", "id")
_SEARCHED: Final = ("actor", "action", "target", "name", "result", "before", "after")


def _shown(raw: bytes, place: int) -> dict[str, Any]:
    """An entry to be read. One that is not as we write them is told by its place alone."""
    entry = _decoded(raw)
    if (
        entry is None
        or not all(isinstance(entry.get(name, ""), str) for name in _TEXTS)
        or not all(isinstance(entry.get(name), dict | None) for name in ("before", "after"))
        or not all(type(entry.get(name)) in (int, type(None)) for name in ("n", "of"))
        or not _writable(entry)
    ):
        return {"n": place, "result": "damaged: it is not as it was written"}
    return entry


def _writable(entry: Mapping[str, Any]) -> bool:
    try:
        json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _text(value: object) -> str:
    """What a search looks at: the values, and of names of fields only ids."""
    if isinstance(value, Mapping):
        return "\n".join(
            f"{name.casefold() if is_key_id(name) else ''}\n{_text(inner)}" for name, inner in value.items()
        )
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return value.casefold() if isinstance(value, str) else ""


def _pair(text: str) -> tuple[int, str]:
    number, _, rest = text.partition(":")
    return int(number) if number.isdigit() and len(number) < 16 else -1, rest.partition(":")[0]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
