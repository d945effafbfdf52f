"""Reading sums from a real store."""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import Any, cast

import pytest

from providers.errors import InvalidRequest, StoreUnavailable
from router import usage
from router.periods import DaysAgo, Span, span
from router.store import Store
from router.usage import METRICS, Query, Report, UsageReader, day_name, parse_by, parse_group_by
from router.usage_text import harmless, money, report_csv, row_json, to_cny
from tests.usage.conftest import NOON, Ledger, teams_of

WEEK = Span(DaysAgo(6))
HOUR = 3600.0
DAY = 86400.0


def shown(report: Report) -> list[dict[str, Any]]:
    return [row_json(report, row) for row in report.rows]


async def test_a_value_that_is_no_number_is_named_and_left_out(
    ledger: Ledger, reader: UsageReader, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.team("teamteam", "research")
    await ledger.key("teamteam", "k" * 12, "ann")
    await ledger.use("teamteam", "k" * 12, NOON, in_=100, out=20, cost=1500)
    name = day_name("teamteam", "2026-11-22")
    field = next(one for one in await reader.store.run("HKEYS", name) if one.endswith(b"\tin"))
    await reader.store.run("HSET", name, field, "many")
    (row,) = shown(await reader.read(Query(WEEK, ("team", "key")), await teams_of(reader)))
    assert (row["tokens_in"], row["tokens_out"], row["cost"]) == (0, 20, "0.0015")
    assert name in caplog.text
    assert field.decode() in caplog.text


async def test_sums_by_any_grouping(ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("teamteam", "research")
    await ledger.team("default", "default")
    await ledger.key("teamteam", "k" * 12, "ann")
    await ledger.key("default", "d" * 12, "ben", state="revoked")
    await ledger.use("teamteam", "k" * 12, NOON, in_=100, out=20, cost=1500)
    await ledger.use("teamteam", "k" * 12, NOON - DAY, "kimi-k2", "kimi", in_=10, out=2, cost=7, errors=1)
    await ledger.use("default", "d" * 12, NOON - DAY, in_=1, out=1, unpriced=1)
    await ledger.use("default", "d" * 12, NOON - 7 * DAY, in_=9999)  # before the week
    teams = await teams_of(reader)
    assert [team.name for team in teams] == ["default", "research"]

    by_key = shown(await reader.read(Query(WEEK, ("team", "key")), teams))
    assert [(row["team"], row["key"], row["key_id"], row["calls"], row["cost"]) for row in by_key] == [
        ("research", "ann", "k" * 12, 2, "0.001507"),
        ("default", "ben", "d" * 12, 1, "0.00"),
    ]
    assert by_key[0]["tokens_in"] == 110
    assert by_key[0]["cost_micro_usd"] == 1507
    assert by_key[1]["unpriced"] == 1
    by_day = await reader.read(Query(WEEK, ("day", "model")), teams)
    assert [row.group for row in by_day.rows] == [
        ("2026-11-21", "kimi-k2"),
        ("2026-11-21", "gpt-4o"),
        ("2026-11-22", "gpt-4o"),
    ]
    assert by_day.total[METRICS.index("calls")] == 3
    by_hour = await reader.read(Query(WEEK, ("hour",)), teams)
    assert [row.group[0] for row in by_hour.rows] == ["2026-11-21T12:00+00:00", "2026-11-22T12:00+00:00"]
    nothing = await reader.read(Query(WEEK, ("model",), model="claude*"), teams)
    assert nothing.rows == []
    assert sum(nothing.total) == 0


async def test_filters(ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    for key, model, provider in itertools.product(("a" * 12, "b" * 12), ("gpt-4o", "gpt-4o-mini"), ("openai", "azure")):
        await ledger.use("default", key, NOON, model, provider)
    teams = await teams_of(reader)

    async def calls(**filters: Any) -> int:
        report = await reader.read(Query(WEEK, (), **filters), teams)
        assert len(report.rows) == 1
        return report.rows[0].amounts[0]

    assert await calls() == 8
    assert await calls(key="a" * 12) == 4
    assert await calls(model="gpt-4o") == 4
    assert await calls(model="gpt-*", provider="az*", key="b" * 12) == 2
    assert (await reader.read(Query(WEEK, (), key="*"), teams)).rows == []


async def test_days_are_those_of_each_team(ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("shanghai", "shanghai", "Asia/Shanghai")
    await ledger.team("newyork0", "new york", "America/New_York")
    late = datetime.fromisoformat("2026-11-21T17:00+00:00").timestamp()  # the 22nd in Shanghai
    for team in ("shanghai", "newyork0"):
        await ledger.use(team, "k" * 12, late)
    teams = await teams_of(reader)
    for by in (None, "hour"):
        report = await reader.read(Query(WEEK, ("team", "day"), cast("Any", by)), teams)
        assert [(report.names[row.group[0]], row.group[1]) for row in report.rows] == [
            ("new york", "2026-11-21"),
            ("shanghai", "2026-11-22"),
        ]
    today = await reader.read(Query(span("today", None, NOON, default=DaysAgo(0)), ("team",)), teams)
    assert [report.names[row.group[0]] for row in today.rows] == ["shanghai"]
    # Hours are one instant for both, so they are told in UTC; a single team's in its own zone.
    both = await reader.read(Query(WEEK, ("hour",)), teams)
    assert [row.group for row in both.rows] == [("2026-11-21T17:00+00:00",)]
    one = await reader.read(Query(WEEK, ("hour",)), [team for team in teams if team.id == "shanghai"])
    assert [row.group for row in one.rows] == [("2026-11-22T01:00+08:00",)]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Shanghai", "UTC"])
async def test_hours_and_days_sum_to_the_same_over_a_change_of_clocks(ledger: Ledger, store: Store, zone: str) -> None:
    now = datetime.fromisoformat("2026-11-03T12:00+00:00").timestamp()
    reader = UsageReader(store, clock=lambda: now)
    await ledger.team("default", "default", zone)
    for number in range(120):
        await ledger.use("default", "k" * 12, now - number * HOUR, cost=number + 1, in_=2)
    teams = await teams_of(reader)
    found = [await reader.read(Query(Span(DaysAgo(3)), ("day",), parse_by(by)), teams) for by in ("day", "hour")]
    assert [row.group for row in found[0].rows] == [
        ("2026-10-31",), ("2026-11-01",), ("2026-11-02",), ("2026-11-03",)
    ]  # fmt: skip
    assert [(row.group, row.amounts) for row in found[0].rows] == [(row.group, row.amounts) for row in found[1].rows]
    assert found[0].total == found[1].total
    calls = {row.group[0]: row.amounts[0] for row in found[0].rows}
    assert calls["2026-11-01"] == (25 if zone == "America/New_York" else 24)


async def test_thousands_of_keys_are_read_without_searching(
    ledger: Ledger, store: Store, reader: UsageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.team("default", "default")
    name = day_name("default", "2026-11-22")
    keys = [f"{number:012d}" for number in range(3000)]
    fields = {f"{key}\tgpt-4o\topenai\t{metric}": 2 for key in keys for metric in ("calls", "in", "out", "cost")}
    await cast("Any", store.redis).hset(name, mapping=fields)
    for key in keys[:5]:
        await ledger.key("default", key, f"name {key}")
    # Keys of other things, which a search would have to pass.
    await store.redis.mset({f"sy:{{default}}:key:{number:06d}": "1.aaaaaa\n{}" for number in range(5000)})
    before = await commands(store)
    report = await reader.read(Query(WEEK, ("key",)), await teams_of(reader))
    used = {name: count - before.get(name, 0) for name, count in (await commands(store)).items()}
    assert len(report.rows) == 3000
    assert report.total[0] == 6000
    assert report.names[keys[0]] == f"name {keys[0]}"
    assert report.names.get(keys[2999], keys[2999]) == keys[2999]
    assert not {"scan", "keys"} & {name for name, count in used.items() if count}
    assert used["hscan"] >= 3
    assert used.get("hgetall", 0) == 0  # 12 000 fields at once would hold the store up
    one = await reader.read(Query(WEEK, ("key", "model"), key=keys[7]), await teams_of(reader))
    assert [(row.group, row.amounts[0]) for row in one.rows] == [((keys[7], "gpt-4o"), 2)]
    monkeypatch.setattr(usage, "MOST_ROWS", 100)
    with pytest.raises(InvalidRequest, match="more than 100 rows"):
        await reader.read(Query(WEEK, ("key",)), await teams_of(reader))


async def commands(store: Store) -> dict[str, int]:
    told = await store.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(found["calls"]) for name, found in told.items()}


async def test_a_field_told_twice_counts_once(
    ledger: Ledger, store: Store, reader: UsageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HSCAN may repeat fields while the hash grows."""
    await ledger.team("default", "default")
    name = day_name("default", "2026-11-22")
    await cast("Any", store.redis).hset(name, mapping={f"{n:012d}\tm\tp\tcalls": 1 for n in range(5000)})
    genuine = store.run
    last: dict[bytes, bytes] = {}

    async def repeating(*command: Any) -> Any:
        if command[0] != "HSCAN":
            return await genuine(*command)
        cursor, found = await genuine(*command)
        told = {**last, **found}
        last.clear()
        last.update(found)
        return cursor, told

    monkeypatch.setattr(store, "run", repeating)
    assert (await reader.read(Query(WEEK), await teams_of(reader))).total[0] == 5000


async def test_many_teams_cost_two_round_trips_for_each_two_hundred_hashes(
    ledger: Ledger, store: Store, reader: UsageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        await ledger.team(f"team{number:04d}", f"team {number}")
        await ledger.use(f"team{number:04d}", f"{number:012d}", NOON)
    teams = await teams_of(reader)
    report = await reader.read(Query(Span(DaysAgo(399)), ("team",)), teams)
    assert len(report.rows) == 20
    monkeypatch.setattr(usage, "MOST_HASHES", 1000)
    with pytest.raises(InvalidRequest, match="too much"):
        await reader.read(Query(Span(DaysAgo(399)), ("team",)), teams)


async def test_what_is_not_understood_is_skipped(ledger: Ledger, store: Store, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    name = day_name("default", "2026-11-22")
    odd = {"k\tm\tp\tcalls": 1, "k\tm\tp\tjoules": 7, "": 3, "calls": 1, "\udcff".encode("utf-8", "surrogateescape"): 1}
    await cast("Any", store.redis).hset(name, mapping=odd)
    await cast("Any", store.redis).hset(name, "k\tod\td\tp\tcalls", 5)
    report = await reader.read(Query(WEEK, ("key", "model", "provider")), await teams_of(reader))
    assert (("k", "m", "p"), 1) in [(row.group, row.amounts[0]) for row in report.rows]
    assert (("k", "od\td", "p"), 5) in [(row.group, row.amounts[0]) for row in report.rows]


async def test_names_of_moved_and_lost_keys(ledger: Ledger, store: Store, reader: UsageReader) -> None:
    await ledger.team("team0000", "old")
    await ledger.team("team0001", "new")
    await ledger.key("team0001", "m" * 12, "moved")
    await ledger.use("team0000", "m" * 12, NOON)
    await ledger.use("team0000", "l" * 12, NOON)
    report = await reader.read(
        Query(WEEK, ("team", "key")), [team for team in await teams_of(reader) if team.name == "old"]
    )
    assert {(row["team"], row["key"]) for row in shown(report)} == {("old", "moved"), ("old", "l" * 12)}


async def test_a_store_that_went_away_is_told(store: Store, ledger: Ledger, reader: UsageReader) -> None:
    await ledger.team("default", "default")
    teams = await teams_of(reader)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await reader.read(Query(WEEK), teams)


# --- text


def test_what_may_be_asked() -> None:
    assert parse_group_by("team, key,team") == ("team", "key")
    assert parse_group_by(None) == parse_group_by("") == ()
    for text in ("teams", "team;key", "*" * 1000, ",".join(["x"] * 100)):
        with pytest.raises(InvalidRequest):
            parse_group_by(text)
    with pytest.raises(InvalidRequest):
        parse_group_by("key", ("model",))
    assert (parse_by(None), parse_by("hour"), parse_by("day")) == (None, "hour", "day")
    with pytest.raises(InvalidRequest):
        parse_by("week")
    with pytest.raises(InvalidRequest):
        _ = Query(WEEK, ("hour",), "day").hourly


@pytest.mark.parametrize(
    ("micro", "text"),
    [(0, "0.00"), (1, "0.000001"), (1500, "0.0015"), (12_500_000, "12.50"), (-1_234_567, "-1.234567"),
     (10**15, "1000000000.00")],
)  # fmt: skip
def test_money_is_told_to_the_last_unit(micro: int, text: str) -> None:
    assert money(micro) == text


def test_cny() -> None:
    assert to_cny(1_000_000, 7.1) == 7_100_000
    assert to_cny(1, "7.1") == 7
    assert row_json(Report((), [], []), usage.Row((), [0] * 12 + [2_000_000]), 7.1)["cost_cny"] == "14.20"


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1", '=HYPERLINK("http://x";"y")'])
def test_no_cell_is_a_formula(name: str) -> None:
    assert harmless(name) == f"'{name}"
    report = Report(("key", "model"), [usage.Row(("id", name), [1] * 13)], [1] * 13, {"id": name})
    line = report_csv(report).split("\r\n", 1)[1]
    assert line.startswith(("'" + name[0], "\"'" + name[0]))
    assert "'" + name.replace('"', '""') in line


def test_cells_that_are_no_formulas_stay() -> None:
    assert [harmless(value) for value in ("a=1", "", None, -5, 1.5, "研究,组")] == ["a=1", "", "", -5, 1.5, "研究,组"]
    report = Report(("team",), [usage.Row(("id",), [0] * 13)], [0] * 13, {"id": '研究,"组"'})
    assert report_csv(report).split("\r\n")[1].startswith('"研究,""组""",id,0,')
