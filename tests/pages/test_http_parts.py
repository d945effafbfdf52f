"""Parts of the pages' server by themselves: the tail's fan-out, the states, files, and who speaks HTTPS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from providers.errors import Overloaded, StoreUnavailable
from router.admin.pages import live
from router.admin.pages.assets import Assets
from router.admin.pages.live import News, Tail, Watch
from router.admin.pages.overview_page import LATELY, OWNERS_AT_ONCE, Current, Facts, Sights
from router.admin.pages.security import MOST_COOKIES, ours, session_name, sessions_of, takes_gzip
from router.metrics import Metrics
from router.networks import client_scheme
from router.overview import Overviews
from router.overview_rows import RequestRow, request_row
from router.records import Key, Record, key_of
from router.slots import Slot

PROXIES = ("10.0.0.0/8",)


def row(name: str, key: str = "k1", **more: Any) -> RequestRow:
    found = request_row({"id": name, "time": time.time(), "key": key, **more}, "team", {})
    assert found.status == more.get("status")
    return found


class Store:
    """What the tail reads from."""

    def __init__(self) -> None:
        self.rows: list[RequestRow] = []
        self.reads = 0
        self.fails: Exception | None = None
        self.more = self.skipped = False

    def begin(self) -> None:
        pass

    async def newest(self, key: str | None) -> Sequence[RequestRow]:
        """What was read last."""
        return [row for row in reversed(self.rows) if key in (None, row.key_id)]

    async def read(self) -> News:
        self.reads += 1
        if self.fails is not None:
            raise self.fails
        return News(list(self.rows), self.more, self.skipped)


async def heard(watch: Watch, names: Sequence[str]) -> list[RequestRow]:
    """All rows until those have come."""
    found: list[RequestRow] = []
    async with asyncio.timeout(10):
        while not set(names) <= {one.id for one in found}:
            told = await watch.next(0.05)
            found += [*reversed(told.newest or ()), *told.rows]
    return found


async def test_one_reading_serves_all_who_watch_and_nobody_reads_for_nobody() -> None:
    store = Store()
    tail = Tail(store, store.newest, pace=0.005)
    store.rows = [row("a"), row("b", "k2")]
    with tail.watch(None) as everything, tail.watch("k1") as one, tail.watch("k3") as none:
        assert [found.id for found in await heard(everything, ["a", "b"])] == ["a", "b"]
        assert [found.id for found in await heard(one, ["a"])] == ["a"]
        # Once only, until there is something new of it.
        store.rows = [row("b", "k2"), msgspec.structs.replace(store.rows[0], status=200)]
        again = await heard(everything, ["a"])
        assert [found.status for found in again if found.id == "a"] == [200]
        assert (await none.next(0.01)).rows == []
    reads = store.reads
    await asyncio.sleep(0.05)
    assert store.reads == reads
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "live requests"]


async def test_who_takes_nothing_is_cut_off_and_holds_nobody_up() -> None:
    store = Store()
    tail = Tail(store, store.newest, pace=0.001)
    with tail.watch(None) as slow, tail.watch(None) as quick:
        for number in range(live.MOST_WAITING + 3):
            store.rows = [row(str(number))]
            await heard(quick, [str(number)])
        assert slow.behind
        assert not quick.behind
        assert len((await slow.next(0)).rows) == live.MOST_WAITING


async def test_a_tail_outlives_the_stores_absence_and_a_bug() -> None:
    store = Store()
    tail = Tail(store, store.newest, pace=0.001)
    with tail.watch(None) as watch:
        for trouble, stale in ((StoreUnavailable("away"), True), (None, False), (RuntimeError("a bug"), False)):
            store.fails = trouble
            async with asyncio.timeout(10):
                reads = store.reads
                while watch.stale != stale or store.reads < reads + 3:
                    await watch.next(0.01)
        store.fails, store.rows = None, [row("after")]
        await heard(watch, ["after"])


async def test_what_fails_at_each_reading_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    class Unreadable(Store):
        shown, trouble = 0, Exception

        async def newest(self, key: str | None) -> Sequence[RequestRow]:
            self.shown += 1
            raise self.trouble("a row that nobody can read")

    now, store = 1000.0, Unreadable()
    tail = Tail(store, store.newest, pace=0.001, monotonic=lambda: now)

    async def logged() -> int:
        """After some more failures."""
        shown = store.shown
        async with asyncio.timeout(10):
            while store.shown < shown + 5:
                await watch.next(0.001)
        return [record.name for record in caplog.records].count("switchyard.pages")

    with tail.watch(None) as watch:
        assert await logged() == 1
        now += live.LOGGED - 1
        assert await logged() == 1
        store.rows = [row("after")]
        await heard(watch, ["after"])
        now += 2
        assert await logged() == 2
        store.trouble = ValueError
        assert await logged() == 3


async def test_holders_leave_places_for_each_other_and_for_administrators() -> None:
    store = Store()
    tail = Tail(store, store.newest)
    with ExitStack() as watching:
        for _ in range(live.MOST_OF_KEY):
            watching.enter_context(tail.watch("k1"))
        with pytest.raises(Overloaded), tail.watch("k1"):
            pass
        for number in range(live.MOST_HOLDERS - live.MOST_OF_KEY):
            watching.enter_context(tail.watch(f"other {number}"))
        with pytest.raises(Overloaded), tail.watch("one more"):
            pass
        for _ in range(live.MOST_VIEWERS - live.MOST_HOLDERS):
            watching.enter_context(tail.watch(None))
        with pytest.raises(Overloaded), tail.watch(None):
            pass
    with tail.watch("k1"):
        pass


async def test_of_very_many_calls_come_the_newest_and_the_ends_of_those_that_were_shown() -> None:
    store = Store()
    tail = Tail(store, store.newest, pace=0.001)
    crowd = [row(f"{number}", "other", status=200) for number in range(3 * live.MOST_ROWS)]
    with tail.watch(None) as everything, tail.watch("k1") as holder:
        store.rows = [row("long")]
        await heard(everything, ["long"])
        await heard(holder, ["long"])
        store.rows = [row("mine", status=200), row("long", status=200), *crowd]
        found = await heard(everything, ["long", crowd[-1].id])
        assert len(found) == live.MOST_ROWS + 1
        assert [one.status for one in found if one.id == "long"] == [200]
        assert {one.id for one in await heard(holder, ["mine", "long"])} == {"mine", "long"}


async def test_while_there_is_much_several_readings_are_told_at_once() -> None:
    store = Store()
    store.more = store.skipped = True
    tail = Tail(store, store.newest, pace=0.001)
    with tail.watch("k1") as watch:
        store.rows = [row("a")]
        await heard(watch, ["a"])
        assert store.reads % live.READS == 0
        assert watch.skipped


# --- states


def sights(
    told: Mapping[str, Any],
    gauges: Mapping[str, Mapping[tuple[str, ...], float]] | Current,
    numbers: object = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Sights:
    whole = {
        "status": "ready",
        "store": "ok",
        "store_warnings": ["no append-only file"],
        "config": "ok",
        "workers": {"0": {"pid": 11, "config": "aa"}, "1": {"pid": 12, "config": "aa"}},
        "local_models": {},
        "providers": {},
        "unhealthy": {},
        **told,
    }

    async def describe() -> tuple[bool, Mapping[str, Any]]:
        return True, whole

    variables = {"none": ("OPENAI_API_KEY", "OTHER_KEY"), "gone": ("GONE_KEY",)}
    facts = Facts("switchyard.yaml", "aa", 5.0, None, frozenset({"gpu"}), variables)
    current = gauges if callable(gauges) else lambda name: gauges.get(name, {})
    return Sights(cast("Overviews", numbers), describe, current, lambda: facts, monotonic)


async def test_states_of_providers() -> None:
    found = await sights(
        {
            "providers": {
                "fine": "on",
                "gone": "on",
                "tired": "on",
                "none": "OPENAI_API_KEY and OTHER_KEY are not set",
                "quiet": "enabled is false",
                "wrong": "it has no base_url",
                "new": "not known yet",
                "gpu": "on",
            },
            "unhealthy": {"tired/some/model": "503 twice"},
        },
        {
            "provider_up": {("fine",): 1, ("gone",): 0, ("tired",): 1, ("gpu",): 1},
            "provider_down": {
                ("gone", "unreachable"): 1,
                ("gone", "auth"): 0,
                ("fine", "timeout"): 0,
                ("none", "no_key"): 1,
                ("quiet", "disabled"): 1,
                ("wrong", "misconfigured"): 1,
            },
            "circuit_open": {("tired",): 2},
            "queue_depth": {("gpu",): 3, ("fine",): 9},
            "ollama_vram_bytes": {("gpu", "b"): 2.0, ("gpu", "a"): 3.0},
            "requests_in_flight": {(): 4},
            "journal_entries": {(): 6},
        },
    ).states()
    shown = [(one.name, one.state, one.reason, one.detail, one.open_models, one.queue) for one in found.providers]
    assert shown == [
        ("fine", "up", None, None, 0, 9),
        ("gone", "down", "unreachable", None, 0, 0),
        ("tired", "degraded", None, None, 2, 0),
        ("none", "off", "no_key", "OPENAI_API_KEY, OTHER_KEY", 0, 0),
        ("quiet", "off", "disabled", None, 0, 0),
        ("wrong", "off", "misconfigured", "it has no base_url", 0, 0),
        ("new", "off", "not known yet", None, 0, 0),
        ("gpu", "up", None, None, 0, 3),
    ]
    assert [one.name for one in found.providers if one.local] == ["gpu"]
    assert found.providers[2].models == (("some/model", "503 twice"),)
    gpu, router = found.gpu, found.router
    assert (gpu.loaded, gpu.vram_bytes, gpu.queue, gpu.in_flight) == ((("gpu", "a", 3), ("gpu", "b", 2)), 5, 3, 4)
    assert gpu.known
    assert (router.store, router.warnings, router.journal) == (None, ("no append-only file",), 6)
    assert router.workers == ((0, 11, "aa"), (1, 12, "aa"))


async def test_what_is_loaded_on_a_server_that_told_nothing_is_not_known() -> None:
    async def read(
        loaded: Mapping[tuple[str, ...], float], *names: str, **providers: str
    ) -> tuple[bool, Sequence[str]]:
        info: dict[tuple[str, ...], float] = {(name, "ollama", "yes"): 1.0 for name in names}
        info |= {("cloud", "ollama", "no"): 1.0, ("own", "vllm", "yes"): 1.0}
        on = dict.fromkeys((*names, "cloud", "own"), "on") | providers
        gauges = {"provider_info": info, "ollama_loaded_models": loaded}
        gpu = (await sights({"providers": on}, gauges).states()).gpu
        return gpu.heard, gpu.unknown

    assert await read({("gpu",): 0.0}, "gpu") == (True, ())
    assert await read({}, "gpu") == (False, ("gpu",))
    assert await read({("one",): 2.0}, "one", "two") == (True, ("two",))
    assert await read({}, "gpu", gpu="enabled is false") == (False, ())
    assert await read({}) == (False, ())


async def test_that_the_store_did_not_decide_is_lately_for_an_hour() -> None:
    now, counts = 5.0, dict[tuple[str, ...], float]()  # a machine that has just started
    seen = sights({}, {"store_refusals_total": counts}, monotonic=lambda: now)

    async def read(later: float, *refused: float) -> tuple[int, bool]:
        nonlocal now
        now += later
        counts.update(zip([()], refused, strict=False))
        router = (await seen.states()).router
        return router.refused, router.refused_lately

    assert await read(0) == (0, False)
    assert await read(2, 0) == (0, False)
    assert await read(2, 613) == (613, True)
    assert await read(LATELY - 2) == (613, True)
    assert await read(4) == (613, False)
    assert await read(2, 614) == (614, True)


async def test_each_worker_shows_what_all_of_them_know(tmp_path: Path) -> None:
    workers = [Metrics("1.2", Slot(number, 2, tmp_path)) for number in range(2)]
    loaded: dict[tuple[str, ...], float] = {}
    workers[0].gauges("ollama_loaded_models", lambda: loaded)  # one asks for all
    for number, worker in enumerate(workers):
        worker.gauges("provider_info", lambda: {("gpu", "ollama", "yes"): 1.0})
        worker.counter("store_refusals_total").of().inc(number + 1)
    for known in (False, True, False):
        loaded = {("gpu",): 1.0} if known else {}
        for worker in workers:
            worker.publish()
        for worker in workers:
            found = await sights({"providers": {"gpu": "on"}}, worker.current).states()
            assert (found.gpu.heard, found.gpu.unknown) == ((True, ()) if known else (False, ("gpu",)))
            assert found.router.refused == 3


async def test_many_holders_at_once_wait_for_each_other_and_are_all_answered() -> None:
    most = running = 0

    class Numbers:
        async def own(self, key: Key) -> Any:
            nonlocal most, running
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            return key

    found = sights({}, {}, Numbers())
    holders = [key_of(Record(id=f"k{number}", name="holder", created=0, team="t")) for number in range(50)]
    answers: list[Any] = await asyncio.gather(*(found.own(key) for key in holders))
    assert answers == [(key, False) for key in holders]
    assert most == OWNERS_AT_ONCE


async def test_a_holder_is_not_told_where_the_store_is() -> None:
    found = await sights(
        {"store": "the store at redis.internal:6379 does not answer", "status": "not ready"}, {}
    ).states()
    assert found.router.store == "the store at redis.internal:6379 does not answer"
    assert (found.for_holders.store, found.for_holders.status) == ("down", "not ready")


# --- small parts


def scope(peer: str, told: str | None, scheme: str = "http") -> dict[str, Any]:
    headers = [] if told is None else [(b"x-forwarded-proto", told.encode())]
    return {"client": (peer, 1), "headers": headers, "scheme": scheme}


@pytest.mark.parametrize(
    ("peer", "told", "scheme"),
    [
        ("10.1.2.3", "https", "https"),
        ("10.1.2.3", "HTTPS, http", "https"),
        ("10.1.2.3", "http", "http"),
        ("10.1.2.3", "nonsense", "http"),
        ("10.1.2.3", None, "http"),
        ("192.0.2.1", "https", "http"),
        ("", "https", "http"),
    ],
)
def test_who_speaks_https(peer: str, told: str | None, scheme: str) -> None:
    assert client_scheme(scope(peer, told), PROXIES) == scheme
    assert client_scheme(scope(peer, told), ()) == "http"


def test_every_cookie_of_the_right_shape_is_tried() -> None:
    good, other = "A" * 43, "B" * 43
    name = session_name("0123456789abcdef", https=False)
    for text, found in (
        (f"{name}={good}", (good,)),
        (f"a=b; {name}={good}; c=d", (good,)),
        (f"{name}={good}; {name}={other}", (good, other)),
        (f"{name}=junk; {name}={good}; {name}={good}", (good,)),
        (f"{name}={good}x", ()),
        (f"x{name}={good}", ()),
        (f"__Secure-{name}={good}", ()),
        (f"{session_name('fedcba9876543210', https=False)}={good}", ()),
        (f"switchyard_session={good}", ()),
        (name, ()),
        ("", ()),
    ):
        assert sessions_of([(b"cookie", text.encode())], name) == found, text
    many = "; ".join(f"{name}={number:043}" for number in range(100))
    assert len(sessions_of([(b"cookie", many.encode())], name)) == MOST_COOKIES


def test_an_origin_is_compared_whole() -> None:
    for origin, fits in (
        ("http://router.lan:8080", True),
        ("https://router.lan:8080", True),  # a proxy that is not listed may end HTTPS
        ("http://ROUTER.lan:8080", True),
        ("http://router.lan", False),
        ("http://router.lan:8080.evil.example", False),
        ("ftp://router.lan:8080", False),
        ("router.lan:8080", False),
        ("", False),
    ):
        assert ours([(b"host", b"router.lan:8080"), (b"origin", origin.encode())]) == fits, origin
    assert not ours([(b"origin", b"http://")])
    for host, origin, fits in (
        ("x:443", "https://x", True),
        ("x", "https://x:443", True),
        ("x:80", "http://x", True),
        ("x:80", "https://x", False),
        ("x:443", "http://x", False),
        ("x:8443", "https://x:443", False),
        ("[::1]:443", "https://[::1]", True),
    ):
        assert ours([(b"host", host.encode()), (b"origin", origin.encode())]) == fits, (host, origin)


@pytest.mark.parametrize(
    ("told", "takes"),
    [("gzip, deflate, br", True), ("gzip;q=1.0", True), ("gzip;q=0", False), ("br", False), ("", False)],
)
def test_who_takes_gzip(told: str, takes: bool) -> None:
    assert takes_gzip([(b"accept-encoding", told.encode())]) is takes


def test_files_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "x.min.js").write_text("let a = 1" * 100)
    (tmp_path / "SHA256SUMS").write_text("no page's file")
    first = Assets(tmp_path).url("vendor/x.min.js")
    assert first.startswith("/admin/static/vendor/x.min.")
    (tmp_path / "vendor" / "x.min.js").write_text("let a = 2" * 100)
    assets = Assets(tmp_path)
    assert assets.url("vendor/x.min.js") != first
    assert assets.find(first) is None
    found = assets.find(assets.url("vendor/x.min.js"))
    assert found
    assert found.packed
    assert len(found.packed) < len(found.data)
    with pytest.raises(KeyError):
        assets.url("SHA256SUMS")
