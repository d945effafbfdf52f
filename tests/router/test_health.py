"""The breaker and the cooldown of a deployment, on a clock of their own."""

from __future__ import annotations

import math

import pytest

from providers.errors import RateLimited, Unavailable
from router import health
from router.health import FAILURES, MAX_COOLDOWN, MAX_STATES, OPEN_SECONDS, Health, Probe

HERE = "cloud/m"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Patient:
    """A deployment's health with the clock at hand."""

    def __init__(self, jitter: float = 0.5) -> None:
        self.clock = Clock()
        self.health = Health(self.clock, lambda: jitter)

    def fail(self, times: int = 1, probe: Probe | None = None) -> None:
        for _ in range(times):
            self.health.failure(HERE, Unavailable("it fell over"), probe)

    def limit(self, retry_after: float | None = None) -> None:
        self.health.failure(HERE, RateLimited("too many", retry_after=retry_after))

    def pause(self) -> float:
        """Seconds until it is tried again; 0 when it is tried now."""
        block = self.health.block(HERE)
        return 0.0 if block is None else block.seconds

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def probe(self) -> Probe:
        assert self.pause() == 0
        probe = self.health.begin(HERE)
        assert probe is not None
        assert self.pause() == 1, "others wait for its outcome"
        return probe


def test_five_failures_in_a_row_open_it() -> None:
    patient = Patient()
    patient.fail(FAILURES - 1)
    assert patient.pause() == 0
    patient.fail()
    block = patient.health.block(HERE)
    assert block is not None
    assert (block.reason, block.seconds, block.cooldown) == ("unavailable", OPEN_SECONDS, False)
    assert block.error is not None
    # The provider's words may quote the call that failed; later callers are told ours.
    assert block.error.message == "the provider failed a moment ago (unavailable)"
    assert patient.health.block("cloud/other") is None


def test_each_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    pauses = []
    for _ in range(8):
        pauses.append(patient.pause())
        patient.wait(patient.pause())
        patient.fail(probe=patient.probe())
    assert pauses == [10, 20, 40, 80, 120, 120, 120, 120]


def test_one_probe_at_a_time() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    patient.wait(OPEN_SECONDS - 0.001)
    assert patient.pause() > 0
    patient.wait(0.001)
    patient.probe()
    patient.wait(1000)
    assert patient.pause() == 1, "however long it takes: every attempt has a deadline"
    patient.health.success(HERE)
    assert patient.pause() == 0
    patient.fail(FAILURES - 1)
    assert patient.pause() == 0, "a success forgets all failures"
    patient.fail()
    assert patient.pause() == OPEN_SECONDS, "and the doubling"


def test_asking_is_no_probe() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    patient.wait(OPEN_SECONDS)
    for _ in range(3):
        assert patient.pause() == 0


def test_a_probe_without_a_verdict_makes_room_at_once() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    patient.wait(OPEN_SECONDS)
    probe = patient.probe()
    patient.health.abandoned(HERE, Probe())
    assert patient.pause() == 1, "that was another one"
    patient.health.abandoned(HERE, probe)
    patient.probe()
    patient.health.abandoned("cloud/never-heard-of", probe)


def test_a_probe_of_a_breaker_that_was_forgotten_decides_nothing() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    patient.wait(OPEN_SECONDS)
    old = patient.probe()
    patient.health.recovered("cloud")
    patient.fail(FAILURES)
    patient.wait(OPEN_SECONDS)
    new = patient.probe()
    patient.fail(probe=old)
    assert patient.pause() == 1
    patient.fail(probe=new)
    assert patient.pause() == 2 * OPEN_SECONDS


def test_a_call_that_began_before_it_opened_is_no_probe() -> None:
    patient = Patient()
    assert not patient.health.begin(HERE)
    patient.fail(FAILURES)
    assert not patient.health.begin(HERE), "a last resort, in the middle of the pause"
    patient.wait(OPEN_SECONDS)
    assert patient.pause() == 0


def test_one_blip_opens_it_once_however_many_calls_met_it() -> None:
    patient = Patient()
    patient.fail(20)
    assert patient.pause() == OPEN_SECONDS
    patient.wait(OPEN_SECONDS - 1)
    patient.fail(20)
    assert patient.pause() == 1, "calls that were under way, or the last resort of somebody, do not draw it out"
    patient.wait(1)
    patient.fail(20)
    assert patient.pause() == 0, "and the probe is still to come"


def test_only_the_probe_decides() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    patient.wait(OPEN_SECONDS)
    assert patient.health.open() == {}, "nobody has tried since its time was over"
    probe = patient.probe()
    assert not patient.health.begin(HERE), "a second one at the same moment is none"
    patient.fail()
    assert patient.pause() == 1, "others wait for the probe, not for this one"
    assert patient.health.open() == {"cloud": 1}
    patient.wait(1000)
    assert patient.health.down() == {"cloud": "unavailable"}
    patient.fail(probe=probe)
    assert patient.pause() == 2 * OPEN_SECONDS
    assert patient.health.open() == {"cloud": 1}


@pytest.mark.parametrize(
    ("told", "pause"),
    [(7.0, 7.0), (86_400.0, MAX_COOLDOWN), (math.inf, MAX_COOLDOWN), (0.25, 0.25)],
)
def test_a_rate_limit_pauses_as_long_as_it_says(told: float, pause: float) -> None:
    patient = Patient()
    patient.limit(told)
    block = patient.health.block(HERE)
    assert block is not None
    assert (block.reason, block.seconds, block.cooldown) == ("rate_limited", pause, True)
    patient.wait(pause)
    assert patient.pause() == 0
    patient.health.begin(HERE)
    assert patient.pause() == 0, "no probe: the provider has said when, so all may go"


@pytest.mark.parametrize("told", [None, 0.0, -1.0, math.nan])
def test_a_bare_rate_limit_pauses_longer_each_time_with_jitter(told: float | None) -> None:
    patient = Patient(jitter=0.5)
    pauses = []
    for _ in range(7):
        patient.limit(told)
        pauses.append(patient.pause())
        patient.wait(patient.pause())
    assert pauses == [0.25, 0.5, 1, 2, 4, 4, 4]
    patient.health.success(HERE)
    patient.limit(told)
    assert patient.pause() == 0.25


def test_a_pause_is_never_shortened_by_calls_that_were_under_way() -> None:
    patient = Patient()
    patient.limit(30)
    patient.limit()
    patient.limit(2)
    assert patient.pause() == 30
    patient.health.success(HERE)
    block = patient.health.block(HERE)
    assert block is not None
    assert (block.seconds, block.cooldown) == (30, True), "it had been asked before the provider said so"
    patient.limit(45)
    assert patient.pause() == 45


def test_a_burst_of_bare_rate_limits_is_one() -> None:
    patient = Patient(jitter=0.5)
    for _ in range(10):
        patient.limit()
    assert patient.pause() == 0.25


def test_a_rate_limit_of_the_probe_leaves_it_to_be_made_later() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    patient.wait(OPEN_SECONDS)
    patient.health.failure(HERE, RateLimited("too many", retry_after=3), patient.probe())
    assert patient.pause() == 3
    patient.wait(3)
    patient.probe()


def test_a_rate_limit_does_not_end_the_pause_of_an_open_breaker() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    patient.limit(3)
    block = patient.health.block(HERE)
    assert block is not None
    assert (block.reason, block.seconds, block.cooldown) == ("rate_limited", 3, True)
    patient.wait(3)
    block = patient.health.block(HERE)
    assert block is not None
    assert (block.reason, block.seconds, block.cooldown) == ("unavailable", OPEN_SECONDS - 3, False)


def test_rate_limits_are_no_failures() -> None:
    patient = Patient()
    for _ in range(20):
        patient.limit(1)
    patient.wait(1)
    patient.fail(FAILURES - 1)
    assert patient.pause() == 0


def test_a_failure_of_a_call_under_way_does_not_shorten_what_the_provider_asked_for() -> None:
    """Nor does it make the pause one that a caller without a fallback may ignore."""
    patient = Patient()
    patient.limit(40)
    patient.fail()
    block = patient.health.block(HERE)
    assert block is not None
    assert (block.reason, block.seconds, block.cooldown) == ("rate_limited", 40, True)
    patient.fail(FAILURES - 1)
    assert patient.pause() == 40
    patient.wait(40)
    patient.probe()
    block = patient.health.block(HERE)
    assert block is not None
    assert (block.reason, block.cooldown) == ("unavailable", False), "they counted all the same: one call tries first"


def test_recovered_ends_the_pauses_of_one_provider() -> None:
    patient = Patient()
    patient.fail(FAILURES)
    for _ in range(FAILURES):
        patient.health.failure("cloudy/m", Unavailable("another"))
    patient.health.failure("cloud/limited", RateLimited("too many", retry_after=30))
    patient.health.recovered("cloud")
    assert set(patient.health.snapshot()) == {"cloudy/m", "cloud/limited"}


def test_what_is_remembered_is_bounded_and_holds_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_STATES", 10)
    patient = Patient()
    for number in range(100):
        try:
            raise Unavailable("it fell over")
        except Unavailable as error:
            patient.health.failure(f"cloud/{number}", error)
    assert len(patient.health._states) == 10
    assert next(iter(patient.health._states)) == "cloud/90"
    assert all(
        state.error is not None and state.error.__traceback__ is None for state in patient.health._states.values()
    )
    assert MAX_STATES <= 10_000
