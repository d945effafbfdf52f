"""The places at a provider and the queue in front of them."""

from __future__ import annotations

import asyncio

import pytest

from providers.errors import Busy, UpstreamError
from router.places import Places
from tests.router.virtual import run


class Calls:
    """Calls that hold a place until they are let go, in the order in which they got it."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.inside: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}

    def start(self, name: str) -> asyncio.Task[None]:
        self.doors[name] = asyncio.Event()
        return asyncio.create_task(self._call(name))

    async def _call(self, name: str) -> None:
        async with self.places.one():
            self.inside.append(name)
            await self.doors[name].wait()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


def test_first_come_first_served() -> None:
    async def test() -> None:
        calls = Calls(Places(2, 3))
        tasks = []
        for name in "abcde":
            tasks.append(calls.start(name))
            await calls.settle()
        assert calls.inside == ["a", "b"]
        assert calls.places.waiting == 3
        for name, seen in (("b", "abc"), ("a", "abcd"), ("d", "abcde")):
            calls.doors[name].set()
            await calls.settle()
            assert calls.inside == list(seen)
        assert calls.places.waiting == 0
        for door in calls.doors.values():
            door.set()
        await asyncio.gather(*tasks)

    run(test())


def test_a_full_queue_refuses_and_takes_again() -> None:
    async def test() -> None:
        calls = Calls(Places(1, 1))
        holder, waiter = calls.start("a"), calls.start("b")
        await calls.settle()
        with pytest.raises(Busy, match="is full") as refused:
            await calls.start("c")
        assert isinstance(refused.value, UpstreamError), "another target may take the call"
        assert refused.value.retry_after
        calls.doors["a"].set()
        await holder
        late = calls.start("d")
        await calls.settle()
        assert calls.places.waiting == 1
        for name in "bd":
            calls.doors[name].set()
        await asyncio.gather(waiter, late)
        assert calls.inside == ["a", "b", "d"]

    run(test())


def test_no_queue_at_all() -> None:
    async def test() -> None:
        calls = Calls(Places(1, 0))
        holder = calls.start("a")
        await calls.settle()
        with pytest.raises(Busy):
            await calls.start("b")
        calls.doors["a"].set()
        await holder

    run(test())


def test_who_leaves_the_queue_makes_room_in_it() -> None:
    async def test() -> None:
        calls = Calls(Places(1, 2))
        holder = calls.start("a")
        first, second = calls.start("b"), calls.start("c")
        await calls.settle()
        first.cancel()
        await calls.settle()
        assert calls.places.waiting == 1
        third = calls.start("d")
        await calls.settle()
        assert calls.places.waiting == 2
        calls.doors["a"].set()
        await calls.settle()
        assert calls.inside == ["a", "c"], "the place goes to the next one who still waits"
        for door in calls.doors.values():
            door.set()
        await asyncio.gather(holder, second, third)
        assert first.cancelled()

    run(test())


def test_who_is_cancelled_just_as_the_place_comes_gives_it_on() -> None:
    async def test() -> None:
        calls = Calls(Places(1, 2))
        holder, first, second = (calls.start(name) for name in "abc")
        await calls.settle()
        calls.doors["a"].set()
        await holder
        first.cancel()
        await calls.settle()
        assert "c" in calls.inside
        calls.doors["c"].set()
        await second
        after = calls.start("d")
        await calls.settle()
        assert calls.inside[-1] == "d"
        calls.doors["d"].set()
        await after
        assert calls.places.waiting == 0

    run(test())


def test_those_who_left_are_not_kept() -> None:
    async def test() -> None:
        calls = Calls(Places(1, 1))
        holder = calls.start("a")
        for _ in range(50):
            task = calls.start("b")
            await calls.settle()
            task.cancel()
            await calls.settle()
        assert not calls.places._line
        assert calls.places.busy
        calls.doors["a"].set()
        await holder
        assert not calls.places.busy

    run(test())


def test_more_places_are_given_to_those_who_wait() -> None:
    async def test() -> None:
        calls = Calls(Places(1, 3))
        tasks = [calls.start(name) for name in "abcd"]
        await calls.settle()
        calls.places.resize(3, 1)
        await calls.settle()
        assert calls.inside == ["a", "b", "c"]
        with pytest.raises(Busy):
            await calls.start("e")
        for name in "abcd":
            calls.doors[name].set()
        await asyncio.gather(*tasks)

    run(test())


def test_fewer_places_hold_as_soon_as_enough_calls_have_ended() -> None:
    async def test() -> None:
        calls = Calls(Places(3, 3))
        tasks = [calls.start(name) for name in "abcde"]
        await calls.settle()
        calls.places.resize(1, 0)
        assert calls.places.waiting == 2, "who waits stays"
        for name, seen in (("a", "abc"), ("b", "abc"), ("c", "abcd"), ("d", "abcde")):
            calls.doors[name].set()
            await calls.settle()
            assert calls.inside == list(seen)
        calls.doors["e"].set()
        await asyncio.gather(*tasks)

    run(test())


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_a_failed_call_gives_its_place_back(error: type[BaseException]) -> None:
    async def test() -> None:
        places = Places(1, 0)
        for _ in range(3):
            with pytest.raises(error):
                async with places.one():
                    raise error

    run(test())
