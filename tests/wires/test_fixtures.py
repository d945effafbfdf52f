"""Every case folder of tests/fixtures/vendors, with the upstream body cut at every chunk size."""

from __future__ import annotations

import pytest

from providers.errors import UnsupportedFeature
from tests.wires.cases import CHUNKS, KEY, Case, cases, facts, run

ALL = [pytest.param(case, id=case.id) for case in cases()]


@pytest.mark.parametrize("case", ALL)
def test_case(case: Case) -> None:
    wanted = case.json("upstream_request")
    path = case.file("answer", "sse", "ndjson", "json")
    assert path is not None, f"{case.id} has no answer file: write it, or see `python -m tests.wires.regenerate`"
    expect = (case.json("case") or {}).get("expect", {})
    for chunk in CHUNKS:
        answer = run(case, chunk)
        if wanted is None:
            assert isinstance(answer.error, UnsupportedFeature), "no upstream_request.json, yet a request was made"
        else:
            assert answer.request is not None, answer.error
            assert answer.request["method"] == wanted.get("method", "POST")
            assert answer.request["path"] == wanted["path"]
            assert answer.request["body"] == wanted["body"]
            assert wanted.get("headers", {}).items() <= answer.request["headers"].items()
        assert answer.body.decode() == path.read_text(encoding="utf-8"), f"chunks of {chunk}"
        assert answer.ending == path.suffix.removeprefix("."), f"chunks of {chunk}"
        assert KEY not in answer.body.decode()
        seen = facts(answer)
        assert {name: seen[name] for name in expect} == expect, f"chunks of {chunk}"
