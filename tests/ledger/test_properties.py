"""The ledger's functions against their model, on real servers.

Every run plays the same scripts. To look further, play as many others as you like:

    LEDGER_RUNS=2000 .venv/bin/python -m pytest tests/ledger/test_properties.py -k scripts

A failure prints the shortest script that fails.
"""

from __future__ import annotations

import os

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ledger.books import Books
from tests.ledger.machine import against

RUNS = int(os.environ.get("LEDGER_RUNS", "0"))
USUAL = settings(
    max_examples=RUNS or 150,
    stateful_step_count=60,
    derandomize=not RUNS,
    database=None,
    deadline=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def test_the_ledger_does_what_its_model_does_in_all_scripts(client: redis.Redis) -> None:
    machine = against(Books(client))
    run_state_machine_as_test(machine, settings=USUAL)
    assert machine.steps > 3000


@pytest.mark.slow
def test_the_ledger_does_what_its_model_does_in_long_scripts(client: redis.Redis) -> None:
    machine = against(Books(client))
    run_state_machine_as_test(machine, settings=settings(USUAL, max_examples=RUNS or 100, stateful_step_count=150))
    assert machine.steps > 8_000
