"""Keys for a whole team at once: what lists are read, that all is checked first, and that the CSV is inert."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import pytest

from providers.errors import InvalidRequest, StoreUnavailable
from router.issue import MOST_KEYS, Row, inert, issue, read_rows, write_csv
from router.keys import Keys
from router.limit_text import limits_json


def fields(content: str) -> list[tuple[int, dict[str, object]]]:
    return [(row.line, dict(row.fields)) for row in read_rows(content)]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("ann\nbob\n", [(1, "ann"), (2, "bob")]),
        ("\ufeffann\r\n\r\n  bob  \r\n", [(1, "ann"), (3, "bob")]),
        ("name\nann\n", [(2, "ann")]),
        ("Name;Owner\nann;x\n", [(2, "ann")]),
        ("owner\tname\nx\tann\n", [(2, "ann")]),
        ('name\n"ann, the first"\n', [(2, "ann, the first")]),
        ("王小明\n", [(1, "王小明")]),
    ],
)
def test_names_are_read(content: str, rows: list[tuple[int, str]]) -> None:
    assert [(line, found["name"]) for line, found in fields(content)] == rows


def test_columns_become_fields() -> None:
    content = (
        "name,owner,tags,models,expires,rpm,budget_day,max_requests,max_tokens_day,networks\n"
        'ann,Ann,"a b;c",gpt-*,30d,60,5usd,50/day,2m,10.0.0.0/8\n'
        "bob,,,,,,,,,\n"
    )
    assert fields(content) == [
        (
            2,
            {
                "name": "ann",
                "owner": "Ann",
                "expires": "30d",
                "tags": ["a", "b", "c"],
                "models": ["gpt-*"],
                "networks": ["10.0.0.0/8"],
                "limits": {
                    "rpm": "60",
                    "budget": {"day": "5usd"},
                    "max_tokens": {"day": "2m"},
                    "max_requests": {"day": "50"},
                },
            },
        ),
        (3, {"name": "bob"}),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("ann,bob\n", "first line must name the columns"),
        ("name,colour\nann,red\n", "no column 'colour'"),
        ("name,name\nann,bob\n", "stands twice"),
        ("name,owner\nann,x,y\n", "line 2: 3 cells under 2 columns"),
        ("name,max_requests\nann,5/hour\n", "line 2: max_requests"),
    ],
)
def test_what_is_no_list_is_refused(content: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read_rows(content)


async def test_each_row_gets_its_key(keys: Keys) -> None:
    rows = read_rows("name,owner,rpm,budget_day\nann,Ann,5,\nbob,,,none\n")
    defaults = {"limits": {"rpm": 60, "budget": {"day": "1usd"}}, "expires": "30d", "rights": {"allow_fallback": False}}
    made = await issue(keys, "search", rows, defaults)
    assert made.team_created
    (ann, secret), (bob, _) = made.keys
    assert limits_json(ann.limits) == {"rpm": 5, "budget": {"day": "1usd"}}
    assert limits_json(bob.limits) == {"rpm": 60}
    assert (ann.owner, ann.team_name, ann.rights.allow_fallback) == ("Ann", "search", False)
    assert ann.expires_at is not None
    assert await keys.authenticate(secret) == ann
    assert {listed.key.id for listed in await keys.list(team="search")} == {ann.id, bob.id}
    (entry, *_), _ = await keys.audit.entries()
    assert (entry["action"], entry["after"]["count"]) == ("key.issue", 2)
    assert (await issue(keys, "search", [Row(1, {"name": "eve"})], {})).team_created is False


async def test_nothing_is_made_when_one_row_is_wrong(keys: Keys) -> None:
    content = "name,rpm,expires\nann,5x,\n,5,\nbob,5,soon\nbob2,-1,\ncarl,5,\ncarl,6,\n"
    with pytest.raises(InvalidRequest) as caught:
        await issue(keys, "search", read_rows(content), {})
    told = caught.value.message
    assert [line for line in range(1, 9) if f"line {line}:" in told] == [2, 3, 4, 5, 7]
    assert "'carl' stands in line 6 already" in told
    assert await keys.list() == []
    assert [team.name for team in await keys.teams.list()] == ["default"]


@pytest.mark.parametrize("count", [0, MOST_KEYS + 1])
async def test_there_is_a_least_and_a_most(keys: Keys, count: int) -> None:
    with pytest.raises(InvalidRequest):
        await issue(keys, "search", [Row(number, {"name": f"k{number}"}) for number in range(count)], {})


async def test_a_thousand_are_made_at_once(keys: Keys) -> None:
    made = await issue(keys, "search", [Row(number, {"name": f"k{number}"}) for number in range(MOST_KEYS)], {})
    assert len({secret for _, secret in made.keys}) == MOST_KEYS
    for key, secret in made.keys[:: MOST_KEYS // 5]:
        assert await keys.authenticate(secret) == key
    assert len(await keys.list()) == MOST_KEYS


async def test_keys_whose_secrets_nobody_saw_are_revoked(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    real = keys.cabinet.gather

    async def failing(commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        if commands and commands[0][0] == "FCALL":
            raise StoreUnavailable("gone")
        return await real(commands)

    monkeypatch.setattr(keys.cabinet, "gather", failing)
    with pytest.raises(StoreUnavailable):
        await issue(keys, "search", [Row(number, {"name": f"k{number}"}) for number in range(3)], {})
    monkeypatch.undo()
    assert {listed.key.state for listed in await keys.list()} == {"revoked"}
    (entry, *_), _ = await keys.audit.entries()
    assert entry["result"].startswith("failed")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "=HYPERLINK(1)"])
async def test_a_spreadsheet_sees_text(keys: Keys, name: str) -> None:
    made = await issue(keys, "search", [Row(1, {"name": name, "owner": name})], {})
    (head, row) = list(csv.reader(io.StringIO(write_csv(made))))
    cells = dict(zip(head, row, strict=True))
    assert (cells["name"], cells["owner"]) == (f"'{name}", f"'{name}")
    assert cells["key"].startswith("sk-sy-")
    assert head[:3] == ["id", "name", "key"]


def test_what_is_no_formula_stays() -> None:
    assert [inert(cell) for cell in ("", "a=1", "1-2", "\tx", "\rx")] == ["", "a=1", "1-2", "'\tx", "'\rx"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("姓名\n张三\n李四\n", ["张三", "李四"]),
        ("名称,rpm\nann,5\n", ["ann"]),
        ("\ufeffName\nann\n", ["ann"]),
        ("ann\nbob\n", ["ann", "bob"]),
        ('"ann b"\n"bob"\n', ["ann b", "bob"]),
    ],
)
def test_a_heading_is_told_from_a_name(content: str, names: list[str]) -> None:
    assert [row.fields["name"] for row in read_rows(content)] == names


def test_a_heading_without_names_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="one of them `name`"):
        read_rows("owner\nann\n")
