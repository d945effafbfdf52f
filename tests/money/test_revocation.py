"""A key that may no longer be used: refused on the very next request in both workers, its live streams ended within
five seconds, and nothing that is under way brings it back.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping

import pytest

from tests.money.bank import Account, Bank, chat, read_answer
from tests.router.test_serve import Connections
from tests.simulators.client import CLIENTS, OPENAI, ClientDialect, Reply
from tests.simulators.server import Simulator
from tests.simulators.waiting import Pulse, until

ENDS = 5.0
"""Seconds in which a live stream ends."""
BODY = json.dumps(OPENAI.body("cloud/answer", stream=False)).encode()


def state(name: str) -> Callable[[Bank, Account], None]:
    return lambda at, account: at.change(account, state=name)


def revoke(at: Bank, account: Account) -> None:
    assert at.admin.request("DELETE", f"/admin/api/keys/{account.id}").status == 200


def disable_team(at: Bank, account: Account) -> None:
    assert at.admin.request("PATCH", f"/admin/api/teams/{account.team}", {"state": "disabled"}).status == 200


def rotate(at: Bank, account: Account) -> None:
    """Without an overlap: the secret that leaked is worth nothing from now on."""
    made = at.admin.request("POST", f"/admin/api/keys/{account.id}/rotate", {"overlap": "0"})
    assert made.status == 200, made


def rotate_for_a_second(at: Bank, account: Account) -> None:
    made = at.admin.request("POST", f"/admin/api/keys/{account.id}/rotate", {"overlap": "1s"})
    assert made.status == 200, made
    time.sleep(1.1)  # the overlap, by the clock that both go by


def end_overlap(at: Bank, account: Account) -> None:
    made = at.admin.request("POST", f"/admin/api/keys/{account.id}/rotate", {"overlap": "24h"})
    assert made.status == 200, made
    assert account.client.ask(OPENAI, "cloud/answer", stream=False).status == 200
    assert at.admin.request("DELETE", f"/admin/api/keys/{account.id}/overlap").status == 200


def expire(at: Bank, account: Account) -> None:
    at.change(account, expires="1s")
    time.sleep(1.1)  # likewise


WAYS: Mapping[str, Callable[[Bank, Account], None]] = {
    "revoked": revoke,
    "disabled": state("disabled"),
    "expired": expire,
    "team disabled": disable_team,
    "rotated": rotate,
    "rotated, the overlap over": rotate_for_a_second,
    "rotated, the overlap ended": end_overlap,
}
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@EACH_WAY
def test_the_very_next_request_in_both_workers(pair: Bank, way: Callable[[Bank, Account], None]) -> None:
    account, other = pair.key(), pair.key()
    with Connections(pair.router) as both:
        for _ in range(2):
            assert both.statuses("POST", OPENAI.path, account.credential, BODY) == [200, 200]
        way(pair, account)
        assert both.statuses("POST", OPENAI.path, account.credential, BODY) == [401, 401]
        assert both.statuses("GET", "/v1/models", account.credential) == [401, 401]
        assert both.statuses("GET", "/v1/usage", account.credential) == [401, 401]
        assert both.statuses("POST", OPENAI.path, other.credential, BODY) == [200, 200]
    pair.at_rest(account.team)


@EACH_WAY
def test_live_streams_end(pair: Bank, cloud: Simulator, way: Callable[[Bank, Account], None]) -> None:
    """With an error event, in the dialect of each; another key's stream goes on."""
    account, other = pair.key(), pair.key()
    number = 4
    models = {
        dialect.name: [f"endless-slow@{account.id}{dialect.name}{n}" for n in range(number)] for dialect in CLIENTS
    }
    requests = [
        (dialect, model, chat(account.credential, dialect.body(f"cloud/{model}", stream=True), dialect.path))
        for dialect in CLIENTS
        for model in models[dialect.name]
    ]
    ended: dict[str, tuple[float, ClientDialect, bytes]] = {}

    async def stream(dialect: ClientDialect, model: str, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.router.port)
        writer.write(data)
        answer = await read_answer(reader)
        ended[model] = (time.monotonic(), dialect, answer.body)
        writer.close()

    async def all_streams() -> None:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(stream(*request))

    going = f"endless-slow@{other.id}"
    with (
        Connections(pair.router) as both,
        Pulse(lambda: both.statuses("GET", "/healthz", "")) as pulse,
        other.client.open("POST", OPENAI.path, OPENAI.body(f"cloud/{going}", stream=True)) as kept,
    ):
        assert kept.status == 200
        readers = threading.Thread(target=lambda: asyncio.run(all_streams()))
        readers.start()
        for _, model, _ in requests:
            cloud.wait_for(model)
        until(lambda: pair.holds(account.team) == len(requests))
        time.sleep(0.5)
        assert not ended
        way(pair, account)
        at = time.monotonic()
        readers.join(60)
        pulse.stop()
        assert len(ended) == len(requests)
        assert not cloud.asked(going)[0].peer.gone.is_set()
        kept.read1(100)
    last = max(moment for moment, _, _ in ended.values())
    print(f"ended after {last - at:.1f} s at most")
    assert last - at < ENDS + pulse.standstill(at, last)
    for model, (_, dialect, body) in ended.items():
        told = dialect.read(Reply(200, {}, body, 0), stream=True)
        assert told.error is not None, body[-300:]
        assert not told.complete
        assert cloud.asked(model)[0].left()
    pair.at_rest(account.team)
    usage = pair.usage(account.team)
    calls = len(requests) + (1 if way is end_overlap else 0)
    assert (usage["calls"], usage["errors"], usage.get("aborted", 0)) == (calls, len(requests), 0)
    lines = pair.wait_lines(account.id, calls)
    assert sum(line["outcome"] == "invalid_api_key" for line in lines) == len(requests)


def test_a_request_in_flight_does_not_bring_it_back(pair: Bank, cloud: Simulator) -> None:
    """Calls that are under way while the key is revoked settle afterwards, in both workers."""
    account = pair.key(limits={"max_requests": 1000})
    with Connections(pair.router) as both:
        assert both.statuses("POST", OPENAI.path, account.credential, BODY) == [200, 200]
        bodies = [OPENAI.body(f"cloud/slow@{account.id}{n}", stream=True) for n in range(8)]
        replies: list[Reply] = []

        def call(body: Mapping[str, object]) -> None:
            replies.append(account.client.request("POST", OPENAI.path, body))

        threads = [threading.Thread(target=call, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for body in bodies:
            cloud.wait_for(str(body["model"]).partition("/")[2])
        revoke(pair, account)
        assert both.statuses("POST", OPENAI.path, account.credential, BODY) == [401, 401]
        for thread in threads:
            thread.join(60)
        pair.at_rest(account.team)
        # What had begun was answered or cut, and charged; and the key is as dead as before.
        assert len(replies) == len(bodies)
        for _ in range(3):
            assert both.statuses("POST", OPENAI.path, account.credential, BODY) == [401, 401]
    found = pair.admin.request("GET", f"/admin/api/keys/{account.id}").json
    assert found["state"] == "revoked"
    assert pair.counter(account, "max_requests") == (2 + len(bodies), 0)
    assert pair.usage(account.team)["calls"] == 2 + len(bodies)


def test_a_change_of_rights_ends_no_stream(pair: Bank, cloud: Simulator) -> None:
    """Limits and models of a running call are those that it was admitted by; the next call has the new ones."""
    account = pair.key()
    model = f"slow@{account.id}"
    found: list[Reply] = []
    call = threading.Thread(target=lambda: found.append(account.client.ask(OPENAI, f"cloud/{model}", stream=True)))
    call.start()
    cloud.wait_for(model)
    pair.change(account, deny=["cloud/*"], limits={"rpm": 0})
    call.join(60)
    assert OPENAI.read(found[0], stream=True).complete
    assert account.client.ask(OPENAI, "cloud/answer", stream=False).status == 403
    pair.at_rest(account.team)
