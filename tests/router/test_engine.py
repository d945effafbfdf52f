"""Who is blamed for what, and when a target is final: the engine in virtual time."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace

from providers.errors import NoTarget, RateLimited, TimedOut, Unauthorized, Unavailable
from router.health import FAILURES, OPEN_SECONDS, Block
from router.places import NoPlace
from router.routing import Attempt, Plan, Skipped, Target
from router.watch import ClientStalled
from tests.router.jobs import ANSWER, REFUSAL, Bench, Screen, Scripted, Step, Upstream, chunk
from tests.router.virtual import now, run


def whole() -> Scripted:
    return Scripted(200, [ANSWER])


def silence() -> Scripted:
    return Scripted(200, [b"data: ", math.inf])


def test_a_deadline_while_a_whole_answer_is_sent_does_not_answer_twice() -> None:
    async def test() -> None:
        upstream = Upstream(cloud=lambda: Scripted(200, [20.0, ANSWER]), box=whole)
        bench = Bench(upstream, stall=100)
        screen = Screen(slow=asyncio.Event().wait)  # type: ignore[arg-type]  # what it returns is not looked at
        trace, error = await bench.ask("chat", screen=screen)
        assert isinstance(error, TimedOut)
        assert now() == 30
        assert (screen.starts, upstream.asked) == (1, ["cloud"])
        assert trace.attempts[0].outcome == "ok", "the provider did its part"
        assert not bench.health._states

    run(test())


def test_a_client_that_takes_no_whole_answer() -> None:
    async def test() -> None:
        bench = Bench(Upstream(cloud=whole, box=whole))
        screen = Screen(slow=asyncio.Event().wait)  # type: ignore[arg-type]  # what it returns is not looked at
        _, error = await bench.ask("chat", screen=screen)
        assert isinstance(error, ClientStalled)
        assert screen.starts == 1
        assert not bench.health._states

    run(test())


def test_the_callers_own_deadline_opens_no_breaker() -> None:
    """Or one caller with a deadline of a millisecond could take a provider from all others."""

    async def test() -> None:
        bench = Bench(Upstream(cloud=silence, box=whole))
        for stream in (True, False) * FAILURES:
            trace, error = await bench.ask("chat", stream=stream, seconds=0.5)
            assert isinstance(error, TimedOut)
            assert len(trace.attempts) == 1
        assert bench.health.snapshot() == {}

    run(test())


def test_the_callers_deadline_holds_for_all_attempts_together() -> None:
    async def test() -> None:
        bench = Bench(Upstream(cloud=silence, box=silence))
        trace, error = await bench.ask("chat", stream=True, seconds=6)
        assert isinstance(error, TimedOut)
        assert now() == 6
        assert len(trace.attempts) == 2
        assert list(bench.health._states) == ["cloud/m"]

    run(test())


def test_a_silent_provider_is_a_failure_of_it_and_another_answers() -> None:
    async def test() -> None:
        bench = Bench(Upstream(cloud=silence, box=lambda: Scripted(200, [chunk("Hi"), chunk(None, "stop")])))
        for _ in range(FAILURES):
            trace, error = await bench.ask("chat", stream=True)
            assert error is None
            assert trace.fallback == "timeout"
        assert set(bench.health.snapshot()) == {"cloud/m"}

    run(test())


def test_a_refused_call_is_no_failure_and_frees_the_probe() -> None:
    async def test() -> None:
        answers = [Scripted(500, [b"{}"]) for _ in range(FAILURES)]
        bench = Bench(Upstream(cloud=lambda: answers.pop() if answers else Scripted(400, [REFUSAL]), box=whole))
        for _ in range(FAILURES):
            await bench.ask("chat")
        await asyncio.sleep(OPEN_SECONDS)
        assert bench.health.block("cloud/m") is None
        trace, error = await bench.ask("chat")
        assert error is not None
        assert (error.status, len(trace.attempts)) == (400, 1)
        assert bench.health.block("cloud/m") is None, "the next call may probe at once"
        for _ in range(FAILURES):
            await bench.ask("chat")
        assert bench.health.block("cloud/m") is None

    run(test())


def test_a_full_queue_is_no_failure_of_the_provider() -> None:
    async def test() -> None:
        bench = Bench(Upstream(box=lambda: Scripted(200, [5.0, ANSWER])))
        calls = [asyncio.create_task(bench.ask("own")) for _ in range(2 + FAILURES)]
        await asyncio.sleep(1)
        assert bench.engine.queued() == {"box": 1}
        assert bench.health.snapshot() == {}
        answers = [await call for call in calls]
        assert [error for _, error in answers[:2]] == [None, None]
        assert all(isinstance(error, NoPlace) and error.status == 503 for _, error in answers[2:])
        assert bench.health.snapshot() == {}
        assert bench.engine.queued() == {"box": 0}

    run(test())


def test_the_wait_for_a_place_is_bounded_and_not_taken_from_the_answers_time() -> None:
    async def test() -> None:
        bench = Bench(
            Upstream(box=lambda: Scripted(200, [8.0, chunk("Hi"), 1.0, chunk(None, "stop"), b"data: [DONE]\n\n"]))
        )
        first, second = (asyncio.create_task(bench.ask("own", stream=True)) for _ in range(2))
        assert (await first)[1] is None
        _, error = await second
        assert error is None, "9 s in the queue and 8 s until the content: each within its 10 s"
        steps: list[Step] = [chunk("Hi"), *(step for _ in range(10) for step in (2.0, chunk("Hi")))]
        slow = Upstream(box=lambda: Scripted(200, steps))
        bench = Bench(slow)
        first, second = (asyncio.create_task(bench.ask("own", stream=True)) for _ in range(2))
        _, error = await second
        assert isinstance(error, NoPlace)
        assert "no place" in error.message
        assert bench.health.snapshot() == {}
        await first

    run(test())


def test_a_client_that_leaves_frees_its_place_and_the_probe() -> None:
    async def test() -> None:
        bench = Bench(Upstream(box=silence))
        for _ in range(FAILURES):
            bench.health.failure("box/m", Unavailable("it fell over"))
        await asyncio.sleep(OPEN_SECONDS)
        call = asyncio.create_task(bench.ask("own", stream=True))
        await asyncio.sleep(1)
        assert bench.health.block("box/m") is not None, "one probe at a time"
        for task in asyncio.all_tasks() - {asyncio.current_task(), call}:
            task.cancel()  # the call's own task: what the server does when the connection is lost
        await asyncio.gather(call, return_exceptions=True)
        assert bench.health.block("box/m") is None
        bench.upstream.answers["box"] = whole
        assert (await bench.ask("own"))[1] is None

    run(test())


def test_the_reason_of_a_fallback_is_that_of_the_plan_though_the_pause_is_over_by_now() -> None:
    class Late(Bench):
        def plan(self, model: str) -> Plan:
            block = Block(RateLimited("too many"), 0.001, cooldown=True)
            left_out = Skipped("cloud/m", "unhealthy", str(block), "target", block)
            return Plan(
                model, "exact", (Attempt(Target(self.snapshot.providers["box"], "m"), "fallback"),), (left_out,)
            )

    async def test() -> None:
        bench = Late(Upstream(box=whole))
        trace, error = await bench.ask("chat")
        assert (error, trace.fallback) == (None, "rate_limited")
        assert bench.health.block("cloud/m") is None

    run(test())


def test_of_many_calls_at_once_one_is_the_probe_and_the_others_go_elsewhere() -> None:
    async def test() -> None:
        bench = Bench(Upstream(cloud=lambda: Scripted(500, [b"{}"]), box=whole))
        bench.engine.resize({})  # no queue at the box
        for _ in range(FAILURES):
            await bench.ask("chat")
        await asyncio.sleep(OPEN_SECONDS)
        bench.upstream.asked.clear()
        bench.upstream.answers["cloud"] = lambda: Scripted(200, [2.0, ANSWER])
        told = await asyncio.gather(*(bench.ask("chat") for _ in range(20)))
        assert Counter(bench.upstream.asked) == {"cloud": 1, "box": 19}
        assert Counter(trace.fallback for trace, _ in told) == {None: 1, "unavailable": 19}
        assert {error for _, error in told} == {None}
        assert bench.health.block("cloud/m") is None

    run(test())


def test_a_client_that_leaves_and_was_not_the_probe_frees_no_probe() -> None:
    async def test() -> None:
        bench = Bench(Upstream(box=lambda: Scripted(200, [20.0, ANSWER])))
        for _ in range(FAILURES):
            bench.health.failure("box/m", Unavailable("it fell over"))
        await asyncio.sleep(OPEN_SECONDS)
        probe = asyncio.create_task(bench.ask("own", stream=True))
        await asyncio.sleep(1)
        before = asyncio.all_tasks()
        other = asyncio.create_task(bench.ask("own", stream=True))  # nobody else is left: it waits for the place
        await asyncio.sleep(1)
        assert bench.engine.queued() == {"box": 1}
        for task in asyncio.all_tasks() - before - {other}:
            task.cancel()
        await asyncio.gather(other, return_exceptions=True)
        assert bench.health.block("box/m") is not None
        await probe

    run(test())


def test_a_call_that_the_router_cuts_says_nothing_of_the_provider() -> None:
    """A revoked key, or our own end: neither the provider's failure nor an attempt that runs for ever."""

    async def test() -> None:
        bench = Bench(Upstream(cloud=whole, box=silence))
        for _ in range(FAILURES):
            bench.health.failure("box/m", Unavailable("it fell over"))
        await asyncio.sleep(OPEN_SECONDS)
        asyncio.get_running_loop().call_later(1, lambda: bench.watches[-1].fire(Unauthorized("revoked")))
        trace, error = await bench.ask("own", stream=True)
        assert isinstance(error, Unauthorized)
        assert [record.outcome for record in trace.attempts] == ["aborted"]
        assert bench.health.block("box/m") is None, "the next call may probe at once"

    run(test())


def test_no_fallback_is_told_where_nobody_answered() -> None:
    async def test() -> None:
        bench = Bench(Upstream(cloud=lambda: Scripted(500, [b"{}"]), box=lambda: Scripted(400, [REFUSAL])))
        trace, error = await bench.ask("chat")
        assert error is not None
        assert (error.status, len(trace.attempts), trace.fallback) == (400, 2, None)
        bench.upstream.answers["box"] = silence
        trace, error = await bench.ask("chat", seconds=5)
        assert isinstance(error, TimedOut)
        assert (len(trace.attempts), trace.fallback) == (2, None)

    run(test())


def test_the_providers_time_is_not_ours_whatever_it_is_spent_on() -> None:
    async def test() -> None:
        upstream = Upstream(cloud=lambda: Scripted(500, [2.0, b"{}"]), box=lambda: Scripted(200, [8.0, ANSWER]))
        bench = Bench(upstream)
        trace, _ = await bench.ask("chat", seconds=2.5)
        assert (now(), trace.upstream_seconds) == (2.5, 2.5), "an error's body that is slow"
        holder = asyncio.create_task(bench.ask("own"))
        await asyncio.sleep(1)
        trace, error = await bench.ask("own", seconds=3)
        assert isinstance(error, TimedOut)
        assert trace.upstream_seconds == 3, "a place that did not come in time"
        await holder
        bench.upstream.answers["cloud"] = silence
        trace = await bench.left("chat", after=3.5)
        assert (trace.upstream_seconds, trace.overhead(asyncio.get_running_loop().time())) == (3.5, 0), "a caller left"

    run(test())


def test_a_new_number_of_places_holds_for_the_calls_under_way() -> None:
    async def test() -> None:
        bench = Bench(Upstream(box=lambda: Scripted(200, [5.0, ANSWER])))
        first, second = (asyncio.create_task(bench.ask("own")) for _ in range(2))
        await asyncio.sleep(1)
        assert (len(bench.upstream.asked), bench.engine.queued()) == (1, {"box": 1})
        row = replace(bench.snapshot.providers["box"], queue=3)
        bench.engine.resize({"box": row})
        third, fourth = (asyncio.create_task(bench.ask("own")) for _ in range(2))  # by plans of the old config
        await asyncio.sleep(1)
        assert (len(bench.upstream.asked), bench.engine.queued()) == (1, {"box": 3})
        bench.engine.resize({"box": replace(row, max_concurrency=3)})
        await asyncio.sleep(1)
        assert (len(bench.upstream.asked), bench.engine.queued()) == (3, {"box": 1})
        await asyncio.gather(first, second, third, fourth)

    run(test())


def test_a_limit_that_is_lifted_lets_in_who_waits_and_one_that_comes_back_counts_who_is_there() -> None:
    async def test() -> None:
        bench = Bench(Upstream(box=lambda: Scripted(200, [5.0, ANSWER])))
        rows = bench.snapshot.providers
        calls = [asyncio.create_task(bench.ask("own")) for _ in range(2)]
        await asyncio.sleep(1)
        bench.engine.resize({"box": replace(rows["box"], max_concurrency=None)})
        calls.append(asyncio.create_task(bench.ask("own")))
        await asyncio.sleep(1)
        assert len(bench.upstream.asked) == 3
        bench.engine.resize({})  # as when the provider is taken out of the config
        bench.engine.resize(rows)
        calls.append(asyncio.create_task(bench.ask("own")))
        await asyncio.sleep(2)
        assert (len(bench.upstream.asked), bench.engine.queued()) == (3, {"box": 1}), "one place, and three have it"
        assert [error for _, error in await asyncio.gather(*calls)] == [None] * 4
        assert len(bench.upstream.asked) == 4
        bench.engine.resize({})
        assert bench.engine.queued() == {}

    run(test())


def test_a_hung_provider_has_one_probe_at_a_time() -> None:
    """Each is over when its own deadline passes, and only then comes the next, after a longer pause."""

    async def test() -> None:
        bench = Bench(Upstream(cloud=silence, box=whole))
        for _ in range(FAILURES):
            bench.health.failure("cloud/m", Unavailable("it fell over"))
        calls = []
        for _ in range(90):
            calls.append(asyncio.create_task(bench.ask("chat")))
            await asyncio.sleep(1)
        asked = [
            round(trace.attempts[0].started - trace.attempts[0].started % 1 - 1000)
            for trace, _ in await asyncio.gather(*calls)
            if str(trace.attempts[0].target) == "cloud/m"
        ]
        # Whole answers have 24 s here.
        assert asked == [10, 54], "10; and 24 s and a pause of 20 s later"

    run(test())


def test_the_last_failure_is_told_not_that_of_a_target_that_was_passed_over() -> None:
    class Late(Bench):
        def plan(self, model: str) -> Plan:
            return replace(super().plan(model), skipped=())

    async def test() -> None:
        bench = Late(Upstream(box=lambda: Scripted(500, [b"{}"])))
        for _ in range(FAILURES):
            bench.health.failure("cloud/m", TimedOut("it was slow"))
        trace, error = await bench.ask("chat")
        assert isinstance(error, Unavailable)
        assert [str(record.target) for record in trace.attempts] == ["box/m"]

    run(test())


def test_where_no_target_of_the_model_was_tried_the_whole_plan_is_told() -> None:
    """The failure of a fallback that nobody asked for is not the reason."""

    class Fixed(Bench):
        def plan(self, model: str) -> Plan:
            off = Skipped("asked/m", "provider_off", "provider asked is off: ASKED_KEY is not set", "target")
            lacking = Skipped("demo/m", "no_tools", "it does not support tools", "fallback")
            cloud = Target(self.snapshot.providers["cloud"], "m")
            return Plan(model, "exact", (Attempt(cloud, "fallback"),), (off, lacking))

    async def test() -> None:
        trace, error = await Fixed(Upstream(cloud=lambda: Scripted(500, [b"{}"]), box=whole)).ask("chat")
        assert isinstance(error, NoTarget)
        assert trace.fallback is None
        for part in ("ASKED_KEY is not set", "demo/m: it does not support tools", "cloud/m: unavailable"):
            assert part in error.message

    run(test())
