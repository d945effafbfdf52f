"""The store stands still, or the router dies while it does: every call is decided quickly, nothing that costs money is
made unmetered, and afterwards every book says the same.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from router.holds import LEASE
from router.ledger import OUTAGE_CALLS
from tests.conftest import Serve
from tests.money import bank as banks
from tests.money.bank import COST, Account, Bank, Gate, chat, crowd
from tests.router.test_serve import Connections
from tests.simulators.client import OLLAMA, OPENAI, Reply
from tests.simulators.router import journal
from tests.simulators.scripts import answer
from tests.simulators.server import Simulator
from tests.simulators.stores import Server
from tests.simulators.waiting import Pulse, until

DECIDED = 0.3
"""Seconds within which a call is answered or refused."""
BACK = 2.0
"""Seconds within which calls are admitted again."""
MONEY: Mapping[str, Any] = {"budget": {"total": "100000usd"}}


@pytest.fixture(scope="module")
def gate(cloud: Simulator, local: Simulator) -> Gate:
    made = Gate(answer)
    cloud.scripts["gate"] = local.scripts["gate"] = made
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server", {"appendonly": "yes"}, valkey=True) as running:
        yield running
        running.thaw()


Open = Callable[..., Bank]


@pytest.fixture
def open_bank(serve: Serve, store: Server, cloud: Simulator, local: Simulator, tmp_path: Path) -> Iterator[Open]:
    """open_bank(workers): a router on the store; paid models without a fallback, a local model `gate`."""
    opened: list[Bank] = []

    def make(workers: int = 1, data_dir: Path | None = None) -> Bank:
        config = {
            "providers": {"cloud": banks.cloud(cloud.url), "local": banks.local(local.url)},
            "models": {"paid": {"targets": ["cloud/answer"]}, "own": {"targets": ["local/gate"]}},
            "prices": {"file": banks.price_file(tmp_path, "cloud")},
            "redis": {"url": store.url()},
            **({"data_dir": str(data_dir)} if data_dir is not None else {}),
        }
        router = serve(config, {"SWITCHYARD_ADMIN_TOKEN": TOKEN}, ["--workers", str(workers)])
        router.admin_token = TOKEN
        bank = Bank(router, store.url())
        opened.append(bank)
        until(lambda: bank.admin.request("GET", "/readyz").status == 200)
        return bank

    yield make
    for bank in opened:
        bank.close()


TOKEN = "adm-0123456789abcdef0123456789abcdef"


@contextmanager
def frozen(store: Server) -> Iterator[None]:
    store.freeze()
    try:
        yield
    finally:
        store.thaw()


class Load(threading.Thread):
    """One caller after the other asks for a model: what came, how long it took, and when."""

    def __init__(self, account: Account, model: str) -> None:
        super().__init__()
        self._account = account
        self._model = model
        self._over = threading.Event()
        self.replies: list[tuple[float, Reply]] = []

    def run(self) -> None:
        number = 0
        while not self._over.wait(0.005):
            number += 1
            reply = self._account.client.ask(OPENAI, self._model, stream=bool(number % 2))
            self.replies.append((time.monotonic(), reply))

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(60)

    def statuses(self, since: float = 0.0) -> Counter[int]:
        return Counter(reply.status for at, reply in self.replies if at >= since)


def decided(account: Account, model: str) -> int:
    """The status of a call; the store, which is there, may be slow for a moment on a busy machine: then the next's."""
    seen = [503]

    def ask() -> bool:
        seen.append(account.client.ask(OPENAI, model, stream=False).status)
        return seen[-1] != 503

    until(ask)
    return seen[-1]


@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(30.0, marks=pytest.mark.slow), pytest.param(40.0, marks=pytest.mark.slow)]
)
def test_a_frozen_store_under_load(
    open_bank: Open, store: Server, cloud: Simulator, gate: Gate, seconds: float
) -> None:
    """Also for longer than a lease lasts: streams that ran on are charged once."""
    bank = open_bank(2)
    gate.release()
    paying = [bank.key("frozen", limits=MONEY) for _ in range(3)]
    own = bank.key("frozen own", limits=MONEY)
    team, streams = paying[0].team, 6
    model = f"cloud/slow@{team}"
    long_calls: list[Reply] = []

    def long_call() -> None:
        long_calls.append(paying[0].client.ask(OPENAI, model, stream=True))

    loads = [Load(one, "paid") for one in paying]
    local_load = Load(own, "own")
    endless = f"cloud/endless-slow@{team}"
    through = paying[1].client.open("POST", OPENAI.path, OPENAI.body(endless, stream=True))
    with (
        Connections(bank.router) as both,
        Pulse(lambda: both.statuses("GET", "/healthz", "")) as pulse,
        loads[0],
        loads[1],
        loads[2],
        local_load,
        through as outlives,
    ):
        assert outlives.status == 200
        until(lambda: all(load.statuses()[200] > 10 for load in (*loads, local_load)))
        threads = [threading.Thread(target=long_call) for _ in range(streams)]
        for thread in threads:
            thread.start()
        until(lambda: len(cloud.asked(f"slow@{team}")) == streams)
        began = time.monotonic()
        with frozen(store):
            frozen_at = time.monotonic()
            time.sleep(seconds)
            for thread in threads:
                thread.join(60)
        thawed = time.monotonic()
        until(lambda: all(load.statuses(thawed)[200] > 3 for load in loads))
        pulse.stop()
        time.sleep(0.2 if seconds < LEASE else LEASE / 4)  # heartbeats and sweeps have met
        assert b"and on" in outlives.read(50_000 if seconds > 20 else 5_000)

    # Decisions.
    during = [reply for load in (*loads, local_load) for at, reply in load.replies if began < at < thawed]
    slow = sorted(reply.seconds for reply in during)
    first = [min(at for at, reply in load.replies if at > thawed and reply.status == 200) for load in loads]
    print(f"{len(during)} calls while frozen, slowest {slow[-1]:.3f} s, median {slow[len(slow) // 2]:.4f} s;"
          f" back after {max(first) - thawed:.2f} s")  # fmt: skip
    still = pulse.standstill(began, max(first))
    assert slow[int(len(slow) * 0.98)] < DECIDED
    assert slow[-1] < 3 * DECIDED + still, "a busy machine has more time"
    assert max(first) - thawed < BACK + still
    for load in loads:
        asked = [(at - reply.seconds, at, reply) for at, reply in load.replies]
        while_frozen = Counter(reply.status for since, at, reply in asked if frozen_at + 0.5 < since and at < thawed)
        assert set(while_frozen) == {503}, while_frozen
    assert len(long_calls) == streams
    assert all(OPENAI.read(reply, stream=True).complete for reply in long_calls)
    degraded = [reply for _, reply in local_load.replies if "x-switchyard-degraded" in reply.headers]
    assert degraded
    assert {reply.status for _, reply in local_load.replies} <= {200, 503}

    # Books.
    paid = sum(load.statuses()[200] for load in loads) + streams
    until(lambda: any(line["model"] == endless for line in bank.lines()), what=bank.router.tail)
    (left,) = [line for line in bank.lines() if line["model"] == endless]
    assert (left["outcome"], left["mark"]) == ("aborted", "aborted")
    sums = {
        "calls": paid + 1, "aborted": 1, "in": 7 * paid + left["tokens_in"], "out": 3 * paid + left["tokens_out"],
        "cost": COST * paid + left["cost"],
    }  # fmt: skip
    until(lambda: bank.usage(team) == sums, what=lambda: f"{bank.usage(team)} in place of {sums}")
    bank.at_rest(team)
    bank.at_rest(own.team)
    assert sum(bank.counter(one, "budget_total")[0] for one in paying) == sums["cost"]
    answered = local_load.statuses()[200]
    until(lambda: bank.usage(own.team).get("calls") == answered, what=lambda: f"{bank.usage(own.team)}, {answered}")
    assert bank.counter(own, "budget_total") == (0, 0)
    assert cloud_calls(cloud, team) == streams
    # Nothing of it stays in the journals.
    until(lambda: journal(bank.router.directory / "data") == [])
    said = "\n".join(line for line in bank.router.err if not line.startswith("{"))
    assert "Traceback" not in said, said[-3000:]
    rows = {row["id"] for row in bank.recent(team) if "status" not in row}
    assert rows <= {row["id"] for row in bank.recent(team) if "status" in row}, "what began has ended"


def cloud_calls(cloud: Simulator, team: str) -> int:
    return len(cloud.asked(f"slow@{team}"))


def test_local_models_for_keys_that_were_seen(open_bank: Open, store: Server, gate: Gate) -> None:
    """Not for strangers, not past a limit in calls or tokens, and only so many at once."""
    bank = open_bank()
    gate.release()
    plain, rich = bank.key(), bank.key(limits=MONEY)
    limited = [bank.key(limits=limits) for limits in ({"rpm": 1000}, {"max_tokens": "1m"}, {"concurrency": 9})]
    bank.team("bounded", limits={"max_requests": 1000})
    limited.append(bank.key("bounded"))
    unseen, disabled = bank.key(), bank.key()
    for account in (plain, rich, disabled, *limited):
        assert decided(account, "own") == 200
        bank.at_rest(account.team)
    bank.change(disabled, state="disabled")
    assert decided(disabled, "own") == 401
    with frozen(store):
        assert (
            plain.client.ask(OPENAI, "paid", stream=False).status == 503
        )  # and from now on the store is known to be away
        for account in (plain, rich):
            for dialect in (OPENAI, OLLAMA):
                reply = account.client.ask(dialect, "own", stream=True)
                assert (reply.status, reply.headers["x-switchyard-degraded"]) == (200, "store"), reply
                assert dialect.read(reply, stream=True).complete
            paid = account.client.ask(OPENAI, "paid", stream=False)
            assert (paid.status, paid.json["error"]["code"]) == (503, "quota_store")
            assert int(paid.headers["retry-after"]) >= 1
        for account in (*limited, unseen):
            assert account.client.ask(OPENAI, "own", stream=False).status == 503
        assert disabled.client.ask(OPENAI, "own", stream=False).status in (401, 503)
        gate.close()
        more = 3
        data = chat(plain.credential, OPENAI.body("own", stream=False))
        answers = crowd(
            bank.router.port,
            [data] * (OUTAGE_CALLS + more),
            lambda answered: answered + gate.arrived == OUTAGE_CALLS + more,
            gate.release,
        )
        assert Counter(reply.status for reply in answers) == {200: OUTAGE_CALLS, 503: more}
        # They give their places back.
        assert plain.client.ask(OPENAI, "own", stream=False).status == 200
    until(lambda: bank.usage(plain.team).get("calls") == 1 + 2 + OUTAGE_CALLS + 1, what=lambda: bank.usage(plain.team))
    until(lambda: bank.usage(rich.team).get("calls") == 3)
    assert bank.counter(rich, "budget_total") == (0, 0)
    assert decided(plain, "paid") == 200
    for account in (plain, rich, *limited):
        bank.at_rest(account.team)
        ended = Counter(row["id"] for row in bank.recent(account.team) if "status" in row)
        begun = Counter(row["id"] for row in bank.recent(account.team) if "status" not in row)
        assert set(begun) <= set(ended)
        assert set(begun.values()) <= {1}
        answered = {row["id"] for row in bank.recent(account.team) if row.get("status") == 200}

        def logged(account: Account = account) -> set[str]:
            return {line["request_id"] for line in bank.lines() if line["key"] == account.id and line["status"] == 200}

        until(lambda answered=answered, logged=logged: logged() == answered)  # type: ignore[misc]  # bound at once
    time.sleep(0.5)  # a second replay would have come by now
    assert bank.usage(plain.team)["calls"] == 1 + 2 + OUTAGE_CALLS + 2


@pytest.mark.parametrize("lost", [False, True], ids=["executed when it woke up", "lost with the store"])
def test_a_kill_between_the_answer_and_its_settlement(
    open_bank: Open, store: Server, cloud: Simulator, tmp_path: Path, lost: bool
) -> None:
    """The journal of the dead is sent by the next start: charged once, whatever became of what was sent before."""
    data = tmp_path / "data"
    bank = open_bank(1, data)
    account = bank.key(limits={**MONEY, "max_requests": 100, "concurrency": 50})
    number = 5
    model = f"cloud/slow@{account.id}"
    found: list[Reply] = []
    threads = [
        threading.Thread(target=lambda: found.append(account.client.ask(OPENAI, model, stream=True)))
        for _ in range(number)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(cloud.asked(f"slow@{account.id}")) == number)
    store.freeze()
    for thread in threads:
        thread.join(60)
    assert len(found) == number
    assert all(OPENAI.read(reply, stream=True).complete for reply in found)
    # A settlement waits for the store before it is kept.
    until(lambda: sum(line.endswith(b"\n") for line in journal(data)) == number)
    os.killpg(bank.router.process.pid, signal.SIGKILL)
    bank.router.wait(60)
    if lost:
        store.restart()
        assert bank.usage(account.team) == {}
        assert bank.counter(account, "max_requests") == (0, number)
    else:
        store.thaw()
    second = open_bank(1, data)
    wanted = {"calls": number, "in": 7 * number, "out": 3 * number, "cost": COST * number}
    took = until(lambda: journal(data) == [])
    until(lambda: second.usage(account.team) == wanted, what=lambda: second.usage(account.team))
    second.at_rest(account.team)
    assert second.counter(account, "budget_total") == (COST * number, 0)
    assert second.counter(account, "max_requests") == (number, 0)
    assert second.counter(account, "concurrency") == (0, 0)
    assert any(re.search(r"5 settlements of an earlier run", line) for line in second.router.err)
    print(f"sent {took:.1f} s after the next start")
