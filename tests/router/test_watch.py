"""One timer for all deadlines of a call: which one rings, when, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from providers.errors import Overloaded, SwitchyardError, TimedOut
from router.watch import ClientStalled, Watch
from tests.router.virtual import now, run, timers, turns

STALL = 5.0


async def ended(script: Callable[[Watch], Awaitable[None]]) -> tuple[float, SwitchyardError | None]:
    """When a call that does `script` and then waits for ever is cancelled, and why."""
    made: list[Watch] = []

    async def call() -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, STALL)
        made.append(watch)
        await script(watch)
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(call())
    moment, error = now(), made[0].fired
    made[0].close()
    assert timers() == 0
    return moment, error


@pytest.mark.parametrize(
    ("phase", "said"),
    [("first_content", "no content within 12 seconds"), ("whole", "no answer within 12"), ("idle", "nothing for 12")],
)
def test_a_phase_ends(phase: str, said: str) -> None:
    async def script(watch: Watch) -> None:
        watch.attempt(600)
        watch.phase(phase, 12)

    async def test() -> None:
        moment, error = await ended(script)
        assert moment == pytest.approx(12, abs=0.01)
        assert isinstance(error, TimedOut)
        assert said in error.message

    run(test())


def test_content_puts_it_off_and_the_timer_arms_itself_again() -> None:
    """`seen` is only written; the timer looks at it when it rings."""

    async def script(watch: Watch) -> None:
        watch.attempt(600)
        watch.phase("idle", 3)
        for _ in range(20):
            await asyncio.sleep(2)
            watch.seen = asyncio.get_running_loop().time()
            assert timers() <= 2, "one timer of the watch, however many chunks came"

    async def test() -> None:
        moment, error = await ended(script)
        assert moment == pytest.approx(43, abs=0.01)
        assert isinstance(error, TimedOut)

    run(test())


def test_a_shorter_phase_after_a_longer_one() -> None:
    async def script(watch: Watch) -> None:
        watch.attempt(600)
        watch.phase("first_content", 100)
        await asyncio.sleep(1)
        watch.phase("idle", 2)

    async def test() -> None:
        moment, _ = await ended(script)
        assert moment == pytest.approx(3, abs=0.01)

    run(test())


def test_the_total_ends_what_goes_on_talking() -> None:
    async def script(watch: Watch) -> None:
        watch.attempt(30)
        watch.phase("idle", 3)
        while True:
            await asyncio.sleep(1)
            watch.seen = asyncio.get_running_loop().time()

    async def test() -> None:
        moment, error = await ended(script)
        assert moment == pytest.approx(30, abs=0.01)
        assert isinstance(error, TimedOut)
        assert "in total" in error.message

    run(test())


def test_each_attempt_has_its_own_total_and_the_callers_limit_holds_for_all() -> None:
    async def script(watch: Watch) -> None:
        watch.limit(52)
        for _ in range(9):
            watch.attempt(30)
            watch.phase("first_content", 20)
            await asyncio.sleep(15)

    async def test() -> None:
        moment, error = await ended(script)
        assert moment == pytest.approx(52, abs=0.01)
        assert isinstance(error, TimedOut)
        assert error.scope == "request", "no provider is to blame, and no other one is tried"

    run(test())


def test_a_client_that_takes_nothing() -> None:
    """While a send waits the provider's deadlines rest; the client has `stall` seconds."""

    async def script(watch: Watch) -> None:
        watch.attempt(600)
        watch.phase("idle", 2)
        await asyncio.sleep(1)
        watch.sending = asyncio.get_running_loop().time()

    async def test() -> None:
        moment, error = await ended(script)
        assert moment == pytest.approx(1 + STALL, abs=0.01)
        assert turns() < 30, "the timer sleeps meanwhile, it does not spin"
        assert isinstance(error, ClientStalled)

    run(test())


def test_a_stall_is_seen_under_a_long_deadline_of_the_provider() -> None:
    async def script(watch: Watch) -> None:
        watch.attempt(600)
        watch.phase("idle", 500)
        await asyncio.sleep(100)
        watch.sending = asyncio.get_running_loop().time()

    async def test() -> None:
        moment, error = await ended(script)
        assert 100 + STALL <= moment <= 100 + 2 * STALL
        assert isinstance(error, ClientStalled)

    run(test())


def test_a_slow_client_is_no_silent_provider() -> None:
    async def script(watch: Watch) -> None:
        watch.attempt(600)
        watch.phase("idle", 2)
        for _ in range(5):
            watch.sending = asyncio.get_running_loop().time()
            await asyncio.sleep(STALL - 1)
            watch.sending = None
            watch.seen = asyncio.get_running_loop().time()

    async def test() -> None:
        moment, error = await ended(script)
        assert moment == pytest.approx(5 * (STALL - 1) + 2, abs=0.01)
        assert isinstance(error, TimedOut)

    run(test())


async def cancelled(*, fire: bool, client: bool) -> tuple[SwitchyardError | None, int]:
    """What `take` gives after these cancellations, and how many are left on the task."""
    found: list[SwitchyardError | None] = []

    async def call() -> int:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, STALL)
        if fire:
            watch.fire(Overloaded("first"))
            watch.fire(Overloaded("second"))
        if client:
            task.cancel()
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            found.append(watch.take())
            assert watch.take() is None, "it is taken once"
        return task.cancelling()

    left = await asyncio.create_task(call())
    return found[0], left


def test_take() -> None:
    async def test() -> None:
        ours, left = await cancelled(fire=True, client=False)
        assert isinstance(ours, Overloaded)
        assert ours.message == "first"
        assert left == 0, "the task goes on as if nothing had happened"
        assert await cancelled(fire=False, client=True) == (None, 1)
        assert await cancelled(fire=True, client=True) == (None, 1), "the client's own cancellation wins"

    run(test())


def test_close_leaves_no_timer() -> None:
    async def test() -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(task, STALL)
        watch.close()
        watch.attempt(60)
        for _ in range(3):
            watch.phase("idle", 2)
        assert timers() == 1
        watch.close()
        assert timers() == 0
        await asyncio.sleep(1000)

    run(test())
