"""The audit log: every change of a key or a team, with who, from where and what, as a chain that shows tampering.

One JSON text for each entry in the list `sy:{audit}:log`. An entry's `hash` is HMAC-SHA-256 (key: derived from the
pepper) over the hash before it and its own canonical JSON, so that an entry that was edited, removed or moved breaks
the chain for everyone who has the pepper. `sy:{audit}:head` holds number and hash of a late entry under the same key:
a log that was cut at its end is shorter than that, and the entry that comes next leaves the gap open. (Who puts back an
older copy of the whole store is found by comparing with a head that was noted elsewhere: `switchyard audit verify
--expect`.)

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
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from providers.errors import StoreUnavailable, SwitchyardError
from router.cabinet import BATCH, Cabinet
from router.credentials import ALPHABET
from router.records import AUDIT, AUDIT_HEAD

log = logging.getLogger("switchyard.audit")

TRIES: Final = 200
MOST_PROBLEMS: Final = 20
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

    def __init__(self, cabinet: Cabinet, pepper: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._cabinet = cabinet
        self._key = hmac.digest(pepper, b"the audit log", "sha256")
        self._clock = clock
        self._lock = asyncio.Lock()

    async def append(self, facts: Mapping[str, object]) -> int:
        """Write an entry; its number, from 1."""
        facts = {**facts, "id": "".join(random.choices(ALPHABET, k=8))}  # noqa: S311 - tells equal changes apart
        async with self._lock:
            for attempt in range(TRIES):
                tail, number, prev = await self._end()
                entry = {"n": number + 1, "time": _iso(self._clock()), **facts, "prev": prev}
                raw, mark = self._sealed(entry)
                if (await self._cabinet.call("audit", [AUDIT], [tail, raw, mark]))[0]:
                    await self._cabinet.ask("SET", AUDIT_HEAD, self._head(number + 1, mark))
                    log.info("audit entry %d:%s", number + 1, mark)
                    return number + 1
                await asyncio.sleep(random.uniform(0, 0.002 * min(attempt + 1, 10)))  # noqa: S311 - jitter
        raise StoreUnavailable("The audit log is being written by too many others, so nothing was changed: try again.")

    async def _end(self) -> tuple[str, int, str]:
        """The hash of the last entry, and number and hash that the next one follows. They differ from the last entry's
        for ever when the log's end was cut, or its mark removed: going on does not heal it."""
        raw, anchor = await self._cabinet.gather([("LINDEX", AUDIT, -1), ("GET", AUDIT_HEAD)])
        last = {} if raw is None else _decoded(raw) or {}
        tail, number = str(last.get("hash", "")), last.get("n", 0)
        number = number if isinstance(number, int) else 0
        at, mark = _pair((anchor or b"").decode("ascii", "replace"))
        if anchor != self._head(at, mark).encode():
            return tail, number + (number > 1), tail
        return (tail, at, mark) if at > number else (tail, number, tail)

    async def entries(
        self, *, limit: int = 100, before: int | None = None, q: str = ""
    ) -> tuple[list[Any], int | None]:
        """The newest entries first, and the cursor of those before them (None: there are none). before: such a cursor.
        q: a substring of actor, action, target or result. Reads at most `MOST_SCANNED` entries; a page may be short of
        matches while its cursor leads on."""
        end = int(await self._cabinet.ask("LLEN", AUDIT))
        end = end if before is None else max(0, min(before, end))
        stop = max(0, end - MOST_SCANNED)
        found: list[Any] = []
        while end > stop and len(found) < limit:
            start = max(stop, end - BATCH)
            batch = cast("list[bytes]", await self._cabinet.ask("LRANGE", AUDIT, start, end - 1))
            for raw in reversed(batch):
                end -= 1
                entry = _decoded(raw) or {"result": "unreadable"}
                if not q or any(q in str(entry.get(name)) for name in ("actor", "action", "target", "result")):
                    found.append(entry)
                    if len(found) == limit:
                        break
            if not batch:
                break
        return found, end or None

    async def verify(self, expect: str | None = None) -> Verdict:
        """Read the whole log. expect: a head as an earlier verdict told it."""
        anchor = cast("bytes | None", await self._cabinet.ask("GET", AUDIT_HEAD))
        number, prev = 0, ""
        problems: list[str] = []
        heads: dict[int, str] = {}
        wanted = [text for text in ((anchor or b"").decode("ascii", "replace"), expect or "") if text]
        numbers = {int(text.partition(":")[0]) for text in wanted if text.partition(":")[0].isdigit()}
        while batch := cast("list[bytes]", await self._cabinet.ask("LRANGE", AUDIT, number, number + BATCH - 1)):
            for raw in batch:
                number += 1
                problem, prev = self._examined(raw, number, prev)
                if problem and len(problems) < MOST_PROBLEMS:
                    problems.append(problem)
                if number in numbers:
                    heads[number] = prev
        if number > 1 and anchor is None:
            problems.append("the mark of the log's end is missing")
        if anchor is not None:
            at, mark = _pair(anchor.decode("ascii", "replace"))
            if anchor != self._head(at, mark).encode():
                problems.append("the mark of the log's end is not ours")
            elif heads.get(at) != mark:
                problems.append(f"entry {at} is missing or another: the log was cut or replaced")
        if expect:
            at, mark = _pair(expect)
            if heads.get(at) != mark:
                problems.append(f"entry {at} is not the one that was expected")
        return Verdict(number, f"{number}:{prev}", tuple(problems))

    def _examined(self, raw: bytes, number: int, prev: str) -> tuple[str | None, str]:
        """What is wrong with an entry, and its hash."""
        entry = _decoded(raw)
        if entry is None or not isinstance(entry.get("hash"), str):
            return f"entry {number} cannot be read", prev
        mark = entry.pop("hash")
        sealed, right = self._sealed(entry)
        if not hmac.compare_digest(right.encode(), str(mark).encode()) or sealed.encode() != raw:
            return f"entry {number} was edited", mark
        if entry["n"] != number or entry["prev"] != prev:
            return f"entry {number}: entries before it were removed, added or moved", mark
        return None, mark

    def _sealed(self, entry: Mapping[str, object]) -> tuple[str, str]:
        content = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        mark = hmac.digest(self._key, f"{entry['prev']}\n{content}".encode(), "sha256").hex()
        return f'{content[:-1]},"hash":"{mark}"}}', mark

    def _head(self, number: int, mark: str) -> str:
        seal = hmac.digest(self._key, f"head {number} {mark}".encode(), "sha256").hex()[:32]
        return f"{number}:{mark}:{seal}"


@dataclass(slots=True)
class Written:
    """An entry that stands already. Setting `failed` says that its change was not made, and why."""

    number: int
    failed: str = field(default="")


class Trail:
    """The log as one actor writes it."""

    def __init__(self, audit: Audit, actor: Actor = ROUTER) -> None:
        self.audit = audit
        self.actor = actor

    @contextlib.asynccontextmanager
    async def entry(
        self, action: str, target: str, before: Mapping[str, object] | None, after: Mapping[str, object] | None
    ) -> AsyncIterator[Written]:
        """Writes the entry, then lets the change be made. Raises StoreUnavailable when it cannot be written: then
        nothing may be changed."""
        facts = {"actor": self.actor.name, "address": self.actor.address, "action": action, "target": target}
        if before is None and after is not None:  # something new: what is empty says nothing
            after = brief(after)
        number = await self.audit.append({**facts, "before": before, "after": after, "result": "accepted", "of": None})
        written = Written(number)
        try:
            yield written
        except BaseException as error:
            unknown = isinstance(error, StoreUnavailable) or not isinstance(error, SwitchyardError)
            written.failed = "unknown: the store did not confirm it" if unknown else error.code  # type: ignore[attr-defined]  # a SwitchyardError
            raise
        finally:
            if written.failed:
                await self._fail(facts, written)

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
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _pair(text: str) -> tuple[int, str]:
    number, _, rest = text.partition(":")
    return int(number) if number.isdigit() and len(number) < 16 else -1, rest.partition(":")[0]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
