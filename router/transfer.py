"""Everything about teams and keys as text, to move it to another store: records with digests (never secrets), limits,
what was spent, and on request the usage. One JSON object on each line:

    {"switchyard_export": 1, "id", "pepper_check", "clock", "admin", "usage"}
    {"team", "record"}   then its {"key", "record", "used", "counters"}, {"counters"}, {"usage", "fields", "expires"}
    {"end": <team>, "keys": <number>}
    {"teams", "keys"}    last: the file is whole

Only routers with the same pepper recognise the keys, so another pepper is refused. An import is checked whole before
the first write. A team appears when its record is written, after everything else of it; an import that was interrupted
goes on when it is started again with the same file.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from providers.errors import InvalidRequest, StoreUnavailable
from router import functions
from router.cabinet import BATCH
from router.changes import Conflict
from router.credentials import new_id
from router.keys import Keys
from router.pepper import ADMIN, PEPPER_CHECK
from router.records import (
    DEFAULT_TEAM,
    TEAMS,
    Record,
    TeamRecord,
    counters_name,
    decode_key,
    decode_team,
    encode,
    is_key_id,
    is_team_id,
    key_name,
    keys_name,
    place_name,
    readable,
    split,
    team_name,
    unreadable,
    used_name,
)

FORMAT: Final = 1
CLOCK_SLACK: Final = 60
"""Seconds that two machines' clocks may differ without a warning."""
HOURS_KEPT: Final = 35 * 24 + 2
DAYS_KEPT: Final = 402
_MOST_TOLD: Final = 20

Line = dict[str, Any]


# --- out


async def export(keys: Keys, *, usage: bool = False) -> AsyncIterator[str]:
    """The lines of an export, each with its line feed. usage: also the sums by hour and day."""
    admin = await keys.cabinet.raw(ADMIN)
    yield _line(
        switchyard_export=FORMAT,
        id=new_id(),
        pepper_check=keys.pepper_check(),
        clock=int(keys.clock()),
        admin=admin.decode() if admin is not None else None,
        usage=usage,
    )
    teams = total = 0
    await keys.teams.ensure_default()
    for team in await keys.cabinet.team_ids():
        raw = await keys.cabinet.raw(team_name(team))
        if raw is None:
            continue  # a creation that was interrupted
        teams += 1
        yield _line(team=team, record=raw.decode())
        count = 0
        async for line in _key_lines(keys, team):
            count += 1
            yield line
        counters = await _counters(keys, team, ["team"])
        if counters[0]:
            yield _line(counters=counters[0])
        if usage:
            async for line in _usage_lines(keys, team):
                yield line
        yield _line(end=team, keys=count)
        total += count
    yield _line(teams=teams, keys=total)


async def missing(keys: Keys) -> list[str]:
    """What an export made now may lack."""
    teams = await keys.cabinet.team_ids()
    running = sum(await keys.cabinet.gather([("HLEN", f"sy:{{{team}}}:holds") for team in teams]))
    told = []
    if running:
        told.append(f"{running} calls are running (or were cut short): what they will cost is not in the file")
    if keys.cabinet.store.embedded and keys.cabinet.store.server_pid is None:
        told.append(
            "a router runs on this store: what is spent or changed from now on is not in the file; stop it first"
        )
    return told


async def _key_lines(keys: Keys, team: str) -> AsyncIterator[str]:
    ids = await keys.cabinet.key_ids(team)
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        raws = await keys.cabinet.keys(team, batch)
        used = await keys.cabinet.used(team, batch)
        counters = await _counters(keys, team, batch)
        for key_id, raw, when, counted in zip(batch, raws, used, counters, strict=True):
            if raw is None:
                continue
            record = readable(raw)
            if record is None:
                raise unreadable(f"Nothing was exported as a whole: the record of key {key_id}")
            if record.moving:  # let it arrive; it is exported with its new team, or with this one on the next try
                await keys.cabinet.find(key_id)
                raise StoreUnavailable("A key was just being moved to another team: export again.")
            yield _line(key=key_id, record=raw.decode(), used=when, counters=counted)


async def _counters(keys: Keys, team: str, scopes: Sequence[str]) -> list[dict[str, str]]:
    """What was spent; holds of running calls (fields that end in `:h`) are not of another store's concern."""
    found = await keys.cabinet.gather([("HGETALL", counters_name(team, scope)) for scope in scopes])
    return [{name: value for name, value in _texts(one).items() if not name.endswith(":h")} for one in found]


async def _usage_lines(keys: Keys, team: str) -> AsyncIterator[str]:
    from datetime import UTC, datetime, timedelta

    now = datetime.fromtimestamp(keys.clock(), UTC)
    hour = int(now.timestamp()) // 3600
    names = [f"uh:{hour + 1 - back}" for back in range(HOURS_KEPT)]
    names += [f"ud:{(now + timedelta(days=1 - back)).date().isoformat()}" for back in range(DAYS_KEPT)]
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        places = [f"sy:{{{team}}}:{name}" for name in batch]
        fields = await keys.cabinet.gather([("HGETALL", place) for place in places])
        until = await keys.cabinet.gather([("EXPIRETIME", place) for place in places])
        for name, found, expires in zip(batch, fields, until, strict=True):
            if found:
                yield _line(usage=name, fields=_texts(found), expires=int(expires) if int(expires) > 0 else None)


def _texts(found: Any) -> dict[str, str]:  # the client's answer to HGETALL
    pairs = found.items() if isinstance(found, Mapping) else zip(found[::2], found[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}


def _line(**fields: object) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"


# --- in


@dataclass(slots=True)
class Team:
    """A team as a file has it."""

    record: TeamRecord
    keys: list[tuple[Record, int | None, dict[str, str]]] = field(default_factory=list)
    counters: dict[str, str] = field(default_factory=dict)
    usage: list[tuple[str, dict[str, str], int | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Export:
    """A whole file, read and checked."""

    id: str
    pepper_check: str
    clock: int
    admin: str | None
    teams: Sequence[Team]


@dataclass(slots=True)
class Summary:
    """What an import did."""

    teams: int = 0
    keys: int = 0
    present: int = 0
    """Keys that were there already, just as they are in the file."""
    warnings: list[str] = field(default_factory=list)


def read_export(lines: Iterable[str]) -> Export:
    """Raises InvalidRequest, naming the line, when it is not a whole export of this format."""
    head: Line | None = None
    teams: list[Team] = []
    current: Team | None = None
    whole = False
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = cast("Line", json.loads(text))
            if head is None:
                head = _head(line)
            elif whole:
                raise ValueError
            elif "team" in line:
                if current is not None:
                    raise ValueError
                current = Team(_team_record(line))
            elif current is None:
                whole = line["teams"] == len(teams) and line["keys"] == sum(len(team.keys) for team in teams)
                if not whole:
                    raise ValueError
            elif "end" in line:
                if line["end"] != current.record.id or line["keys"] != len(current.keys):
                    raise ValueError
                teams.append(current)
                current = None
            else:
                _add(current, line)
        except InvalidRequest:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, StoreUnavailable):
            raise InvalidRequest(f"line {number} is not what an export has there: the file is damaged") from None
    if head is None:
        raise InvalidRequest("the file is empty")
    if not whole:
        raise InvalidRequest("the file ends too early: it is not a whole export")
    return Export(str(head["id"]), str(head["pepper_check"]), int(head["clock"]), head.get("admin"), teams)


def _head(line: Line) -> Line:
    if "switchyard_export" not in line:
        raise InvalidRequest("this is no file of `switchyard keys export`")
    if line["switchyard_export"] != FORMAT:
        raise InvalidRequest(f"the file has format {line['switchyard_export']}; this version reads format {FORMAT}")
    if not is_key_id(line["id"]):
        raise ValueError
    return line


def _team_record(line: Line) -> TeamRecord:
    record = decode_team(line["record"].encode())
    if record.id != line["team"] or not is_team_id(record.id):
        raise ValueError
    return record


def _add(team: Team, line: Line) -> None:
    if "key" in line:
        record = decode_key(line["record"].encode())
        if record.id != line["key"] or not is_key_id(record.id) or record.team != team.record.id:
            raise ValueError
        used = line["used"]
        team.keys.append((record, None if used is None else int(used), _plain(line["counters"])))
    elif "usage" in line:
        name = line["usage"]
        if not name.startswith(("uh:", "ud:")) or not name[3:].replace("-", "").isdigit():
            raise ValueError
        team.usage.append((name, _plain(line["fields"]), line["expires"]))
    else:
        team.counters = _plain(line["counters"])


def _plain(fields: Mapping[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in fields.values()):
        raise ValueError
    return dict(fields)


async def bring(keys: Keys, export: Export, *, replace: bool = False) -> Summary:
    """Write what is in the file. replace: also where the store has something else under the same ids.

    Raises InvalidRequest for another pepper, Conflict for ids and names that are taken, and while calls run: then
    nothing was written.
    """
    if await keys.cabinet.raw(PEPPER_CHECK) is None:
        keys.peppers.adopt(export.pepper_check)  # of two ways to read the setting, the one that the file means
    if export.pepper_check != keys.pepper_check():
        raise InvalidRequest(
            "the file was made under another pepper, so none of its keys would be recognised: give this router the"
            " SWITCHYARD_PEPPER (or data_dir/pepper) of the other one"
        )
    summary = Summary()
    ahead = export.clock - keys.clock()
    if ahead > CLOCK_SLACK:
        summary.warnings.append(
            f"the file is from {int(ahead)} seconds in the future: one of the two clocks is wrong, and budgets"
            " of a day, week or month may begin at another time"
        )
    plans = [await _plan(keys, export, team, replace, summary) for team in export.teams]
    if problems := [problem for plan in plans for problem in plan.problems]:
        more = f"\nand {len(problems) - _MOST_TOLD} more" if len(problems) > _MOST_TOLD else ""
        raise Conflict(
            "nothing was imported (--replace overwrites what is there):\n" + "\n".join(problems[:_MOST_TOLD]) + more
        )
    await _refuse_while_running(keys, plans)
    await keys.peppers.stamp(keys.cabinet)
    async with keys.cabinet.errors():
        await functions.load(keys.cabinet.store)
    for plan in plans:
        if plan.keys or plan.with_team:
            await _write(keys, export, plan)
            summary.teams += 1
            summary.keys += len(plan.keys)
    if export.admin is not None:
        await keys.cabinet.ask("SET", ADMIN, export.admin, "NX")
    return summary


@dataclass(slots=True)
class _Plan:
    team: Team
    keys: list[tuple[Record, int | None, dict[str, str]]]
    with_team: bool
    elsewhere: list[tuple[str, str]]
    """Keys that leave another team: (team, key)."""
    problems: list[str]


async def _plan(keys: Keys, export: Export, team: Team, replace: bool, summary: Summary) -> _Plan:
    cabinet, record = keys.cabinet, team.record
    begun = await cabinet.raw(_mark(record.id)) == export.id.encode()
    plan = _Plan(team, [], True, [], [])
    present = await cabinet.team(record.id)
    if present is not None and not begun and not replace:
        if present.etag == record.etag:
            plan.with_team = False
        elif record.id != DEFAULT_TEAM:
            plan.problems.append(f"there is another team with the id {record.id} ('{present.name}')")
        elif present.version > 1:
            plan.with_team = False
            summary.warnings.append("the team 'default' is kept as it is in this store")
    bearer = await keys.teams.find(record.name)
    if bearer is not None and bearer.id != record.id:
        plan.problems.append(f"there is another team named '{record.name}' ({bearer.id}): rename one of them first")
    places = await cabinet.gather([("GET", place_name(key.id)) for key, _, _ in team.keys])
    names = [
        key_name(place.decode() if place is not None else record.id, key.id)
        for (key, _, _), place in zip(team.keys, places, strict=True)
    ]
    raws = await cabinet.gather([("GET", name) for name in names])
    for one, place, raw in zip(team.keys, places, raws, strict=True):
        key = one[0]
        home = None if place is None else place.decode()
        if raw is None or home is None or begun or replace:
            plan.keys.append(one)
            if raw is not None and home is not None and home != record.id:
                plan.elsewhere.append((home, key.id))
        elif home == record.id and split(raw)[0] == key.etag:
            summary.present += 1
        else:
            plan.problems.append(f"there is another key with the id {key.id}")
    return plan


async def _refuse_while_running(keys: Keys, plans: Sequence[_Plan]) -> None:
    """Raises Conflict while calls run in a team that is written: what they hold belongs to the counters of now."""
    teams = {plan.team.record.id: plan.team.record.name for plan in plans if plan.keys or plan.with_team}
    for plan in plans:
        teams |= {home: home for home, _ in plan.elsewhere if home not in teams}
    alive = int((keys.clock() - CLOCK_SLACK) * 1000)  # earlier ones are of routers that were killed
    found = await keys.cabinet.gather([("ZCOUNT", f"sy:{{{team}}}:leases", alive, "+inf") for team in teams])
    if busy := [name for name, running in zip(teams.values(), found, strict=True) if running]:
        raise Conflict(
            f"nothing was imported: calls are running in team {', '.join(busy[:_MOST_TOLD])}. Stop the routers (or the"
            " callers), wait until the calls have ended, two minutes after a router was killed, and import again"
        )


async def _write(keys: Keys, export: Export, plan: _Plan) -> None:
    """One team. Its record comes last: without it, its keys open nothing."""
    cabinet, team = keys.cabinet, plan.team.record.id
    after = {"keys": len(plan.keys), "export": export.id, "exported_at": export.clock}
    name = plan.team.record.name
    async with keys.trail.entry("keys.import", f"team {team}", None, after, name=name):
        await cabinet.ask("SET", _mark(team), export.id)
        for start in range(0, len(plan.keys), BATCH):
            batch = plan.keys[start : start + BATCH]
            await cabinet.gather([command for one in batch for command in _key_commands(team, one[0], one[1])])
            await _write_counters(keys, team, {key.id: counters for key, _, counters in batch})
        if plan.with_team:
            await _write_counters(keys, team, {"team": plan.team.counters})
        for name, fields, expires in plan.team.usage:
            await cabinet.gather(_hash_commands(f"sy:{{{team}}}:{name}", fields, expires))
        for home, key_id in plan.elsewhere:
            await cabinet.ask("SREM", keys_name(home), key_id)
            await cabinet.ask("DEL", key_name(home, key_id))
        await cabinet.gather([("SET", place_name(key.id), team) for key, _, _ in plan.keys])
        if plan.with_team:
            await keys.teams.take_name(plan.team.record)
            await cabinet.ask("SADD", TEAMS, team)
            await cabinet.put(team_name(team), "*", encode(plan.team.record))
        await cabinet.ask("DEL", _mark(team))


def _key_commands(team: str, key: Record, used: int | None) -> Iterable[Sequence[str | bytes | int]]:
    names = (key_name(team, key.id), keys_name(team))
    yield ("FCALL", functions.name("put"), len(names), *names, "*", encode(key), key.id)
    if used is not None:
        yield ("HSET", used_name(team), key.id, used)


async def _write_counters(keys: Keys, team: str, scopes: Mapping[str, Mapping[str, str]]) -> None:
    """What was spent in each scope, and in which windows, in place of what is there. What running calls hold (`:h`) is
    not touched: it is theirs to give back."""
    names = [counters_name(team, scope) for scope in scopes]
    present = await keys.cabinet.gather([("HKEYS", name) for name in names])
    commands: list[Sequence[str | bytes | int]] = []
    for name, there, counters in zip(names, present, scopes.values(), strict=True):
        wanted = {field: value for field, value in counters.items() if field.endswith(_SPENT)}
        gone = [field for field in map(bytes.decode, there) if field.endswith(_SPENT) and field not in wanted]
        if gone:
            commands.append(("HDEL", name, *gone))
        if wanted:
            commands.append(("HSET", name, *(part for pair in wanted.items() for part in pair)))
    if commands:
        await keys.cabinet.gather(commands)


_SPENT: Final = (":w", ":e", ":s")
"""Ends of the names of a counter's fields: when its window begins and ends, and what was spent in it."""


def _hash_commands(name: str, fields: Mapping[str, str], expires: int | None) -> list[Sequence[str | bytes | int]]:
    commands: list[Sequence[str | bytes | int]] = [("DEL", name)]
    if fields:
        commands.append(("HSET", name, *(part for pair in fields.items() for part in pair)))
        if expires is not None:
            commands.append(("EXPIREAT", name, expires))
    return commands


def _mark(team: str) -> str:
    """Says which import is under way in the team."""
    return f"sy:{{{team}}}:import"
