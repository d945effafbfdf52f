"""Two real workers: either one shows what both counted, and a killed one takes nothing with it but itself."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.checks import pack_value
from router.functions import account_keys, fcall
from router.journal import Journal
from tests.router.test_metric_text import promtool
from tests.router.test_serve import Connections, failed, workers_of
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator, free_port
from tests.simulators.waiting import until

Serve = Callable[..., RouterProcess]
CHAT = json.dumps(OPENAI.body("chat", stream=False)).encode()


@pytest.fixture(scope="module")
def config(cloud: Simulator, local: Simulator) -> dict[str, Any]:
    return providers(cloud.url, local.url)


@pytest.fixture(scope="module")
def running(module_serve: Serve, config: Mapping[str, Any]) -> RouterProcess:
    return module_serve(config, UNHURRIED, ["--workers", "2", "--no-log"])


@pytest.fixture
def shared(running: RouterProcess) -> RouterProcess:
    """Two workers that serve."""
    until(lambda: len(told(running)) == 2)
    return running


@pytest.fixture
def pair(serve: Serve, config: Mapping[str, Any]) -> RouterProcess:
    """Two workers that serve, for one test: those that die young are replaced later and later."""
    router = serve(config, UNHURRIED, ["--workers", "2", "--no-log"])
    until(lambda: len(told(router)) == 2)
    return router


def state(router: RouterProcess) -> dict[str, Any]:
    found: dict[str, Any] = Client(router.port, router.key).request("GET", "/readyz").json
    return found


def told(router: RouterProcess) -> dict[str, Any]:
    found: dict[str, Any] = state(router)["workers"]
    return found


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(text: str, name: str, **labels: str) -> float:
    return sum(value for (found, given), value in samples(text).items() if found == name and labels.items() <= given)


def scrape(router: RouterProcess) -> str:
    return Client(router.port, router.key).request("GET", "/metrics").body.decode()


def each(both: Connections) -> list[str]:
    """What each worker shows."""
    found = []
    for link in both.of.values():
        link.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, text = link.recv(1 << 20).partition(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(text) < size:
            text += link.recv(1 << 20)
        found.append(text.decode())
    return found


class Scraper(threading.Thread):
    """Scrapes all the time: no counter may go back, whichever worker answers."""

    def __init__(self, router: RouterProcess, pause: float = 0.0) -> None:
        super().__init__()
        self.router = router
        self.pause = pause
        self.over = threading.Event()
        self.back: list[str] = []
        self.scrapes = 0

    def run(self) -> None:
        last: dict[Any, float] = {}
        while not self.over.wait(self.pause):
            try:
                now = samples(scrape(self.router))
            except (OSError, HTTPException):
                continue  # the worker that was to answer has just been killed
            self.scrapes += 1
            for name, value in last.items():
                if name[0].endswith(("_total", "_count", "_sum", "_bucket")) and now.get(name, -1.0) < value:
                    self.back.append(f"{name}: {value} -> {now.get(name)}")
            last = now

    def __enter__(self) -> Scraper:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join(60)


def both_count(both: Connections, calls: float) -> bool:
    return [total(text, "switchyard_requests_total", route="chat") for text in each(both)] == [calls, calls]


def more_than(found: list[int], number: int) -> bool:
    return len(found) > number


def kill_one(router: RouterProcess) -> int:
    victim = min(workers_of(router))
    seen = len(router.err)
    os.kill(victim, signal.SIGKILL)
    router.wait_line(f"worker {victim} ended", router.err, since=seen)
    return victim


def test_the_sum_of_both_and_nothing_lost_with_a_killed_one(shared: RouterProcess) -> None:
    with Scraper(shared) as scraper:
        made = total(scrape(shared), "switchyard_requests_total", route="chat")
        for _ in range(2):
            with Connections(shared) as both:
                for _ in range(10):
                    assert both.statuses("POST", OPENAI.path, shared.key, CHAT) == [200, 200]
                    made += 2
                until(partial(both_count, both, made))
                for text in each(both):
                    assert total(text, "switchyard_upstream_attempts_total", provider="cloud", outcome="ok") == made
                    assert total(text, "switchyard_request_duration_seconds_count", provider="cloud") == made
                    assert total(text, "switchyard_workers") == 2
            kill_one(shared)
            until(lambda: len(told(shared)) == 2)
            assert total(scrape(shared), "switchyard_requests_total", route="chat") == made
        until(lambda: scraper.scrapes > 10)
    assert scraper.back == []


def test_a_worker_is_killed_under_load(shared: RouterProcess) -> None:
    """Every call that was answered is counted, and none twice."""
    before = total(scrape(shared), "switchyard_requests_total", status_class="2xx")
    over = threading.Event()
    answered: list[int] = []
    lost: list[str] = []

    def load() -> None:
        client = Client(shared.port, shared.key)
        while not over.is_set():
            try:
                answered.append(client.ask(OPENAI, "chat", stream=False).status)
            except (OSError, HTTPException) as error:
                lost.append(str(error))

    threads = [threading.Thread(target=load) for _ in range(4)]
    with Scraper(shared) as scraper:
        for thread in threads:
            thread.start()
        try:
            until(partial(more_than, answered, 50))
            kill_one(shared)
            until(lambda: len(told(shared)) == 2)
            until(partial(more_than, answered, len(answered) + 50))
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
    assert scraper.back == []
    good = answered.count(200)
    until(lambda: total(scrape(shared), "switchyard_requests_in_flight") == 0)
    counted = total(scrape(shared), "switchyard_requests_total", status_class="2xx") - before
    # A call is counted when its answer is out: the worker may be killed between the two, in each of its calls.
    assert good - len(threads) <= counted <= good + len(lost)


def test_a_gauge_is_the_sum_and_a_killed_workers_part_goes(shared: RouterProcess) -> None:
    with Scraper(shared, pause=0.05) as scraper, Connections(shared) as both:
        body = json.dumps(OPENAI.body("cloud/endless-slow@gauges", stream=True)).encode()
        for link in both.of.values():
            link.sendall(
                f"POST {OPENAI.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {shared.key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            assert link.recv(12) == b"HTTP/1.1 200"
        assert total(scrape(shared), "switchyard_requests_in_flight") == 2
        until(lambda: total(scrape(shared), "switchyard_upstream_connections") >= 2)
        kill_one(shared)
        assert total(scrape(shared), "switchyard_requests_in_flight") == 1
        until(lambda: len(told(shared)) == 2)
        assert total(scrape(shared), "switchyard_workers") == 2
        assert promtool(scrape(shared).encode()) == ""
        until(lambda: scraper.scrapes > 10)
    until(lambda: total(scrape(shared), "switchyard_requests_in_flight") == 0)
    assert scraper.back == []


def test_a_replaced_worker_begins_with_the_config_in_force(pair: RouterProcess, config: Mapping[str, Any]) -> None:
    """Not with what the file holds by now: nobody has asked for that yet, or it was refused."""
    digests = {one["config"] for one in told(pair).values()}
    assert digests == {state(pair)["config_digest"]}
    for text in (json.dumps({**config, "models": {}}), "nonsense: ["):
        pair.config_path.write_text(text)
        victim = kill_one(pair)
        until(lambda: len(told(pair)) == 2)
        assert {one["config"] for one in told(pair).values()} == digests
        assert victim not in {one["pid"] for one in told(pair).values()}
        with Connections(pair) as both:
            assert both.statuses("POST", OPENAI.path, pair.key, CHAT) == [200, 200]
    pair.process.send_signal(signal.SIGHUP)
    with Connections(pair) as both:
        until(lambda: [total(text, "switchyard_config_reload_success") for text in each(both)] == [0, 0])
        assert both.statuses("POST", OPENAI.path, pair.key, CHAT) == [200, 200]
    pair.wait_line("config not reloaded", pair.err)


def test_a_refused_file_is_told_until_another_is_taken(serve: Serve, config: Mapping[str, Any]) -> None:
    """By workers that began when it was refused, and after: they have read what is in force."""
    pair = serve(config, UNHURRIED, ["--workers", "2", "--no-log"])
    pair.config_path.write_text("nonsense: [")
    pair.process.send_signal(signal.SIGHUP)  # whether workers listen for it yet or not
    pair.wait_line("config not reloaded", pair.err)
    until(lambda: len(told(pair)) == 2)
    for _ in range(3):
        with Connections(pair) as both:
            until(lambda: [total(text, "switchyard_config_reload_success") for text in each(both)] == [0, 0])
        assert "switchyard.yaml" in state(pair)["config"]
        victim = kill_one(pair)
        until(lambda: len(told(pair)) == 2)
        assert victim not in {one["pid"] for one in told(pair).values()}
    pair.write_config(config)
    pair.process.send_signal(signal.SIGHUP)
    until(lambda: state(pair)["config"] == "ok")
    with Connections(pair) as both:
        until(lambda: [total(text, "switchyard_config_reload_success") for text in each(both)] == [1, 1])


def ages(router: RouterProcess) -> set[tuple[float, float]]:
    """When the router started, and when its config came into force, as each worker tells."""
    with Connections(router) as both:
        return {
            (
                total(text, "switchyard_start_time_seconds"),
                total(text, "switchyard_config_reload_timestamp_seconds"),
            )
            for text in each(both)
        }


def replace_both(router: RouterProcess) -> None:
    for victim in workers_of(router):
        os.kill(victim, signal.SIGKILL)
        router.wait_line(f"worker {victim} ended", router.err)
    until(lambda: len(told(router)) == 2)


def test_killed_workers_are_counted_and_start_nothing_anew(pair: RouterProcess, config: Mapping[str, Any]) -> None:
    def ended() -> list[float]:
        with Connections(pair) as both:
            return [total(text, "switchyard_worker_restarts_total") for text in each(both)]

    assert ended() == [0, 0]
    ((started, loaded),) = ages(pair)
    with Scraper(pair, pause=0.05) as scraper:
        replace_both(pair)
        assert ended() == [2, 2]
        until(lambda: scraper.scrapes > 10)
    assert scraper.back == []
    assert ages(pair) == {(started, loaded)}

    pair.write_config({**config, "models": {**config["models"], "later": {"targets": ["cloud/answer"]}}})
    pair.process.send_signal(signal.SIGHUP)
    until(lambda: {since for _, since in ages(pair)}.isdisjoint({loaded}))
    by_then = time.time()
    pair.config_path.write_text("nonsense: [")
    pair.process.send_signal(signal.SIGHUP)
    pair.wait_line("config not reloaded", pair.err)
    until(lambda: len(told(pair)) == 2)
    replace_both(pair)
    ((still, since),) = ages(pair)
    assert still == started
    assert loaded < since <= by_then, "neither the workers nor the refused file are as old as the config"
    assert ended() == [4, 4]


def test_a_reload_that_meets_a_worker_being_started_reaches_it(pair: RouterProcess, config: Mapping[str, Any]) -> None:
    pair.write_config({**config, "models": {**config["models"], "later": {"targets": ["cloud/answer"]}}})
    old = state(pair)["config_digest"]
    seen = len(pair.err)
    victim = kill_one(pair)
    until(lambda: len(workers_of(pair) - {victim}) == 2)
    pair.process.send_signal(signal.SIGHUP)
    until(lambda: len(told(pair)) == 2 and old not in {one["config"] for one in told(pair).values()})
    assert len({one["config"] for one in told(pair).values()}) == 1
    assert sum("ended with" in line for line in pair.err[seen:]) == 1, "the signal has killed none that starts"


def test_too_few_places_are_said(serve: Serve, config: Mapping[str, Any]) -> None:
    rows = {**config["providers"], "local": {**config["providers"]["local"], "max_concurrency": 1}}
    router = serve({**config, "providers": rows}, None, ["--workers", "2"])
    router.wait_line("providers.local.max_concurrency is 1, and 2 workers have one place each", router.err)
    assert [line for line in router.err if "places" in line or "place each" in line][1:] == []
    directory = Path(router.directory / "data" / "workers")
    assert len(list(directory.iterdir())) == 1
    assert router.stop() == 0
    assert list(directory.iterdir()) == []


def test_what_an_earlier_run_left_in_the_journal_is_sent_once_and_counted(
    serve: Serve, config: Mapping[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    left = Journal(data)
    left.open()
    for number in range(3):
        bill = pack_value([0, 0, 0, "", [], "1", "1", ""])
        left.add(("t", fcall("settle", account_keys("sy:{t}:"), ("sy:{t}:", f"c{number}", "1", b"\x90", bill, ""))))
    left.close()
    (file,) = (data / "journal").iterdir()
    file.write_bytes(file.read_bytes() + b"torn\n" * 4)
    router = serve({**config, "data_dir": str(data)}, UNHURRIED, ["--workers", "2", "--no-log"])
    until(lambda: len(told(router)) == 2)
    until(lambda: not file.exists())
    with Connections(router) as both:
        until(lambda: [total(text, "switchyard_journal_lost_total") for text in each(both)] == [4, 4])
        until(lambda: [total(text, "switchyard_journal_entries") for text in each(both)] == [0, 0])
    assert [line for line in router.err if "of an earlier run" in line] == [
        "WARNING switchyard.ledger: 3 settlements of an earlier run are sent to the store"
    ]
    assert len(list((data / "journal").iterdir())) == 2, "the workers' own"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "workers").write_text("in the way")
    listen = {"listen": [{"host": "127.0.0.1", "port": free_port()}]}
    code, said = failed(tmp_path, {"server": listen, "data_dir": str(data), "providers": {}}, None, "--workers", "2")
    assert code == 1
    assert f"the workers cannot be started in data_dir {data}: File exists" in said
