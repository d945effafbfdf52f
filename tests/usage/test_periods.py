"""Calendar windows and spans: time zones, days on which clocks change, and what people write."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import InvalidRequest
from router.limits import Window
from router.periods import (
    DAYS_KEPT,
    HOUR,
    DaysAgo,
    Span,
    begin,
    day_of,
    hour_day,
    parse_edge,
    span,
    window,
    zone_of,
)

NOW = datetime(2026, 11, 22, 12, 30, tzinfo=UTC).timestamp()
ZONES = ("UTC", "Asia/Shanghai", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati", "Australia/Lord_Howe")
moments = st.floats(datetime(2020, 1, 1, tzinfo=UTC).timestamp(), datetime(2035, 1, 1, tzinfo=UTC).timestamp())


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


@pytest.mark.parametrize(
    ("name", "zone", "moment", "start", "end"),
    [
        ("day", "Asia/Shanghai", "2026-11-22T16:00Z", "2026-11-23T00:00+08:00", "2026-11-24T00:00+08:00"),
        ("day", "Asia/Shanghai", "2026-11-22T15:59Z", "2026-11-22T00:00+08:00", "2026-11-23T00:00+08:00"),
        # 25 hours, 23 hours
        ("day", "America/New_York", "2026-11-01T12:00Z", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"),
        ("day", "America/New_York", "2026-03-08T12:00Z", "2026-03-08T00:00-05:00", "2026-03-09T00:00-04:00"),
        # There was no midnight: the clocks went from 24:00 to 1:00.
        ("day", "America/Sao_Paulo", "2018-11-04T12:00Z", "2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"),
        # There were two: from 1:00 back to 0:00.
        ("day", "America/Havana", "2026-11-01T12:00Z", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"),
        ("week", "UTC", "2026-11-22T12:00Z", "2026-11-16T00:00Z", "2026-11-23T00:00Z"),
        ("week", "UTC", "2026-11-16T00:00Z", "2026-11-16T00:00Z", "2026-11-23T00:00Z"),
        ("month", "UTC", "2026-12-31T23:59Z", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
        ("month", "Europe/Berlin", "2026-10-31T23:30Z", "2026-11-01T00:00+01:00", "2026-12-01T00:00+01:00"),
        ("month", "Europe/Berlin", "2026-10-25T12:00Z", "2026-10-01T00:00+02:00", "2026-11-01T00:00+01:00"),
    ],
)
def test_windows_begin_and_end_with_the_calendar(name: Window, zone: str, moment: str, start: str, end: str) -> None:
    assert window(name, at(moment), ZoneInfo(zone)) == (at(start), at(end))


def test_what_has_no_calendar_has_no_window() -> None:
    assert window("total", NOW, UTC) == window("now", NOW, UTC) == window("minute", NOW, UTC) == (0, 0)


@given(moments, st.sampled_from(ZONES), st.sampled_from(["day", "week", "month"]))
def test_a_moment_lies_in_its_window_and_windows_meet(moment: float, zone_name: str, name: Window) -> None:
    zone = ZoneInfo(zone_name)
    start, end = window(name, moment, zone)
    assert start <= moment < end
    assert window(name, end, zone)[0] == end
    assert window(name, start, zone) == (start, end)


@given(moments, st.sampled_from(ZONES), st.integers(0, 30))
def test_every_hour_belongs_to_one_day(moment: float, zone_name: str, days: int) -> None:
    zone = ZoneInfo(zone_name)
    whole = Span(DaysAgo(days))
    hours = whole.hours(moment, zone)
    assert sorted({hour_day(hour, zone) for hour in hours}) == list(whole.days(moment, zone))
    for day in whole.days(moment, zone):
        own = Span(day, day).hours(moment, zone)
        assert [hour for hour in hours if hour_day(hour, zone) == day] == list(own)


def test_days_on_which_clocks_change_have_23_and_25_hours() -> None:
    zone = ZoneInfo("America/New_York")
    now = at("2026-11-03T12:00Z")
    assert len(Span(date(2026, 11, 1), date(2026, 11, 1)).hours(now, zone)) == 25
    now = at("2026-03-10T12:00Z")
    assert len(Span(date(2026, 3, 8), date(2026, 3, 8)).hours(now, zone)) == 23
    assert [day.day for day in Span(date(2026, 3, 7)).days(now, zone)] == [7, 8, 9, 10]


@pytest.mark.parametrize(
    ("since", "until", "zone", "first", "last", "count"),
    [
        ("7d", None, "UTC", "2026-11-16", "2026-11-22", 7),
        ("1d", None, "UTC", "2026-11-22", "2026-11-22", 1),
        ("2w", "yesterday", "UTC", "2026-11-09", "2026-11-21", 13),
        ("month", None, "UTC", "2026-11-01", "2026-11-22", 22),
        ("2026-11-01", "2026-11-03", "UTC", "2026-11-01", "2026-11-03", 3),
        ("today", "2099-01-01", "UTC", "2026-11-22", "2026-11-22", 1),
        ("today", None, "Pacific/Kiritimati", "2026-11-23", "2026-11-23", 1),
        ("400d", None, "UTC", "2025-10-19", "2026-11-22", 400),
    ],
)
def test_spans_of_days(since: str, until: str | None, zone: str, first: str, last: str, count: int) -> None:
    days = span(since, until, NOW, default=DaysAgo(6)).days(NOW, ZoneInfo(zone))
    assert (days[0].isoformat(), days[-1].isoformat(), len(days)) == (first, last, count)


def test_instants_count_to_the_hour() -> None:
    asked = span("24h", None, NOW, default=DaysAgo(6))
    assert asked.exact
    hours = asked.hours(NOW, UTC)
    assert (hours[0], hours[-1], len(hours)) == (at("2026-11-21T12:00Z") // HOUR, int(NOW // HOUR), 25)
    asked = span("2026-11-20T08:00+08:00", "2026-11-20T10:00+08:00", NOW, default=DaysAgo(6))
    assert list(asked.hours(NOW, ZoneInfo("Asia/Tokyo"))) == [at("2026-11-20T00:00Z") // HOUR + n for n in (0, 1)]


@pytest.mark.parametrize(
    "text",
    ["", "x", "7", "d", "-7d", "0d", "401d", "99999d", "58w", "841h", "0h", "٣d", "2026-13-01", "2026-02-30", "1e9",
     "0001-01-01", "9999-12-31", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00+14:00", "2026-11-01T", "now()", "\0",
     "9" * 500],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_edge(text, NOW, "since")
    assert refused.value.param == "since"


def test_more_than_is_kept_is_refused_not_cut() -> None:
    with pytest.raises(InvalidRequest, match="400 days"):
        span("2020-01-01", None, NOW, default=DaysAgo(6)).days(NOW, UTC)
    with pytest.raises(InvalidRequest, match="35 days"):
        Span(DaysAgo(60)).hours(NOW, UTC)
    with pytest.raises(InvalidRequest, match="future"):
        span("2027-01-01", None, NOW, default=DaysAgo(6))
    assert len(Span(DaysAgo(DAYS_KEPT - 1)).days(NOW, UTC)) == DAYS_KEPT


@pytest.mark.parametrize(
    ("since", "until", "fine"),
    [
        ("2026-11-22", "2026-11-21", False),
        ("2026-11-22", "2026-11-22", True),
        ("today", "yesterday", False),
        ("1h", "2h", False),
        ("2026-11-20T10:00Z", "2026-11-20T09:59Z", False),
        ("month", "2026-10-30", False),
        ("yesterday", "2026-11-20", True),  # that is yesterday, where it is still the 21st
        ("yesterday", "2026-11-19", False),
        ("1h", "yesterday", True),
        ("1h", "3d", False),
    ],
)
def test_an_end_before_the_beginning(since: str, until: str, fine: bool) -> None:
    with nullcontext() if fine else pytest.raises(InvalidRequest, match="until lies before since"):
        span(since, until, NOW, default=DaysAgo(6))


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_a_clear_refusal(text: str) -> None:
    try:
        asked = span(text, text, NOW, default=DaysAgo(6))
        asked.days(NOW, UTC)
        asked.hours(NOW, UTC)
    except InvalidRequest:
        pass


def test_unknown_zones_are_utc() -> None:
    for name in ("", "Mars/Olympus", "../../etc/passwd", "\0"):
        assert zone_of(name) is UTC
    assert begin(date(2026, 11, 1), zone_of("Asia/Shanghai")) == at("2026-11-01T00:00+08:00")
    assert day_of(NOW, zone_of("Pacific/Kiritimati")) == date(2026, 11, 22) + timedelta(days=1)
