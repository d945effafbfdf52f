"""The benchmark's own parts: what the load accepts as an answer, the arithmetic, and the writer of the tables."""

import asyncio
import dataclasses
import datetime
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.bench import gateways, ledger, load, pairs, procs, profile, report
from tests.bench.gateways import Lane, Site
from tests.bench.load import Job, Result, Spread
from tests.bench.run import Cores, Phase, Row, Running, Sample, free_port, job, upstream
from tests.bench.upstream import MARKER
from tests.simulators.router import UNHURRIED

WHOLE = Phase("many", 4, 40, 10.0)
STREAM = Phase("streams", 2, 2, 10.0, stream=True)
OPENAI = Lane("")
OLLAMA = Lane("", "/api/chat")


@pytest.mark.parametrize(
    ("lane", "phase"),
    [
        pytest.param(OPENAI, WHOLE, id="openai whole"),
        pytest.param(OPENAI, STREAM, id="openai stream"),
        pytest.param(OLLAMA, WHOLE, id="ollama whole"),
        pytest.param(OLLAMA, STREAM, id="ollama stream"),
    ],
)
async def test_the_upstream_satisfies_the_load(lane: Lane, phase: Phase) -> None:
    with upstream(Cores()) as (port, _):
        result = await load.run(job(port, lane, "k", phase), False)
    assert (result.calls, result.errors, result.samples) == (phase.calls, 0, ())
    assert result.chunks == (200 if phase.stream else 0)
    assert result.bytes_least == result.bytes_most > 400
    assert result.latency is not None
    assert (result.chunk is not None) == phase.stream


GOOD = '{"choices":[{"message":{"content":"' + MARKER + '"}}],"usage":{"total_tokens":3}}'


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A server that sends these bytes for each read, and its port."""

    loop = asyncio.get_running_loop()
    open_ones: set[asyncio.Transport] = set()
    all_closed = asyncio.Event()
    all_closed.set()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            open_ones.add(transport)
            all_closed.clear()

        def connection_lost(self, exc: Exception | None) -> None:
            open_ones.discard(self.transport)
            if not open_ones:
                all_closed.set()

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)
            if b"close" in answer:
                self.transport.close()

    server = await loop.create_server(Server, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for transport in list(open_ones):
            transport.abort()
        await asyncio.wait_for(all_closed.wait(), 10)


def http(body: str, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "phase", "said"),
    [
        pytest.param(http(GOOD), WHOLE, None, id="right"),
        pytest.param(http(GOOD, extra="Connection: close\r\n"), WHOLE, None, id="right, then closed"),
        pytest.param(http("{}", "429 Too Many Requests"), WHOLE, "status 429", id="refused"),
        pytest.param(http(GOOD.replace(MARKER, "")), WHOLE, MARKER, id="another text"),
        pytest.param(http(GOOD.replace("total_tokens", "x")), WHOLE, "total_tokens", id="no usage"),
        pytest.param(http(GOOD + "\n\nmore"), WHOLE, "ends with", id="something behind it"),
        pytest.param(http("data: [DONE]\n\n"), STREAM, "0 of 100 chunks", id="a stream without chunks"),
        pytest.param(http("@0000000000000000001@" * 100 + "total_tokens"), STREAM, "ends with", id="no end mark"),
        pytest.param(b"garbage\r\n\r\n", WHOLE, "not HTTP", id="not HTTP"),
        pytest.param(b"close", WHOLE, "not HTTP", id="nothing of HTTP and closed"),
    ],
)
async def test_only_right_answers_count_as_calls(answer: bytes, phase: Phase, said: str | None) -> None:
    async with answering(answer) as port:
        result = await load.run(job(port, OPENAI, "k", phase, warm_up=0), False)
    if said is None:
        assert (result.calls, result.errors) == (phase.calls, 0)
    else:
        assert result.calls == 0
        assert result.errors == phase.calls
        assert said in result.samples[0]


async def test_a_chunk_split_anywhere_is_counted_once() -> None:
    work = Job(port=0, path="/", headers={}, body="", connections=1, calls=1, seconds=1, warm_up=0, expect=(), chunks=2)
    text = b"a@0000000000000000001@b@0000000000000000002@c"
    for cut in range(1, len(text)):
        tally = load.Tally(work, 1, time.monotonic() + 1)
        connection = load.Connection(iter(()))
        connection._tally = tally
        connection.on_body(text[:cut])
        connection.on_body(text[cut:])
        assert connection._chunks == len(tally.delays) == 2


def test_percentiles_are_nearest_rank() -> None:
    assert load.spread([]) is None
    assert load.spread([5000]) == Spread(5.0, 5.0, 5.0)
    assert load.spread([n * 1000 for n in range(100, 0, -1)]) == Spread(50.0, 90.0, 99.0)


def test_cpu_and_memory_of_a_process_and_its_child_are_found(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, threading\n"
        "work = lambda: sum(range(3_000_000))\n"
        "worker = threading.Thread(target=work); worker.start(); worker.join()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], start_new_session=True, stdin=0)\n"
        "print('done', flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, procs.MARK: str(tmp_path)},
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        found = procs.find(str(tmp_path), process.pid, tmp_path / "none")
        assert process.pid in found.router
        assert len(found.router) == 2  # the child left the session, but has the mark
        assert procs.find("another", process.pid, tmp_path / "none").router == {process.pid}
        assert procs.find("another", -1, tmp_path).router == found.router
        used = procs.cpu(found.router)
        assert 0.01 < used[process.pid] < 60  # the work of a thread that has ended counts
        memory = procs.memory(found.router)
        assert memory.processes == 2
        assert 1 < memory.pss <= memory.rss < 1000
        process.communicate(b"\n")


def sample(calls: int, cpu: float, *, chunks: int = 0) -> Sample:
    result = Result(
        calls=calls,
        errors=0,
        samples=(),
        chunks=chunks,
        seconds=2.0,
        reconnects=0,
        bytes_least=1,
        bytes_most=1,
        latency=Spread(1000.0, 2000.0, 3000.0),
        first=None,
        chunk=Spread(10.0, 20.0, 30.0) if chunks else None,
        cpu=0.1,
    )
    return Sample(result, cpu, 0.0, procs.Memory(1, 20.0, 10.0), 0.25)


@pytest.fixture
def rows() -> list[Row]:
    direct = Row("direct", "", samples={"one": [sample(100, 0)], "many": [sample(100, 0)]})
    nginx = Row("nginx", "", "1.22", rest=procs.Memory(2, 11.0, 4.0))
    nginx.samples = {"one": [sample(100, 0.005)], "many": [sample(100, cpu) for cpu in (0.001, 0.002, 0.003)]}
    other = Row("switchyard", "", "0.1", checks_keys=True, rest=procs.Memory(1, 60.0, 50.0))
    other.samples = {"one": [sample(100, 0.03)], "many": [sample(100, 0.02)], "streams": [sample(1, 0.004, chunks=100)]}
    return [direct, nginx, other]


def cells(table: str, first: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_tables_show_medians_ratios_and_noise(rows: list[Row]) -> None:
    assert cells(report.calls(rows), "nginx")[2:4] == ["20.0 ±50%", "1.00"]
    assert cells(report.calls(rows), "switchyard")[1:5] == ["yes", "200", "10.00", "–"]
    assert cells(report.streams(rows), "switchyard")[1] == "40.0"
    assert cells(report.memory(rows), "nginx")[1:4] == ["2", "11.0", "4.0"]


def test_writing_replaces_only_the_figures(rows: list[Row], tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    figures = report.text(rows, {"processor": r"a \1 b"}, "Method.", datetime.date(2026, 1, 2))
    report.write(page, figures)
    report.write(page, figures)
    written = page.read_text()
    assert written.startswith(f"before\n{report.BEGIN}\n\nMeasured on 2026-01-02 (processor: a \\1 b). nginx 1.22, ")
    assert written.endswith(f"{report.END}\nafter\n")
    assert "old" not in written
    assert written.count("Measured on") == 1
    page.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        report.write(page, figures)


def test_the_page_here_can_be_written() -> None:
    page = Path(report.__file__).with_name("README.md").read_text()
    assert page.count(report.BEGIN) == page.count(report.END) == 1
    assert [page.count(mark) for mark in report.LEDGER] == [1, 1]


async def test_each_call_has_the_next_key(tmp_path: Path) -> None:
    listed = tmp_path / "keys"
    listed.write_text("one\ntwo\n")
    work = msgspec.structs.replace(job(1, OPENAI, "none", WHOLE), keys=str(listed))
    sent = load.requests(work)
    for key in (b"one", b"two", b"one"):
        assert b"\r\nAuthorization: Bearer " + key + b"\r\n" in next(sent)


async def test_a_call_asks_the_store_once_before_and_once_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("router.ledger.DECISION_LIMIT", "router.link_node.PATIENCE"):
        monkeypatch.setattr(limit, 20.0)  # what is asked counts here, not how long a busy machine takes
    found = await pairs.measure(tmp_path, 64, 1)
    assert [(pair.kind, pair.before, pair.after) for pair in found] == [(kind, 1, 1) for kind in pairs.KINDS]
    assert all(20 < pair.tombstone < 500 for pair in found)


def test_the_ledger_s_part_is_the_difference_of_each_round(rows: list[Row]) -> None:
    _, nginx, _ = rows
    less = Row("less", "", samples={"many": [sample(100, cpu) for cpu in (0.0005, 0.001, 0.001)]})
    table = ledger.whole([rows[0], nginx, nginx, less, less])
    assert cells(table, "nginx")[1:4] == ["20.0 ±50%", "10.0", "0.0"]


@pytest.mark.parametrize("part", ["ledger", "accounts"])
async def test_the_router_without_a_part_serves(part: str, tmp_path: Path) -> None:
    plain = gateways.UNMETERED if part == "ledger" else gateways.UNBILLED

    def start(site: Site) -> gateways.Command:
        command = plain.start(site)
        return dataclasses.replace(command, env={**command.env, **UNHURRIED})

    gateway = dataclasses.replace(plain, start=start)
    with upstream(Cores()) as (port, _):
        running = await asyncio.to_thread(Running, gateway, Site(free_port(), port, tmp_path), Cores())
        try:
            result = await load.run(job(running.site.port, OPENAI, running.key, WHOLE), False)
        finally:
            await asyncio.to_thread(running.stop)
    assert (result.calls, result.errors, result.samples) == (WHOLE.calls, 0, ())


def test_profiles_count_a_function_once_per_stack() -> None:
    total, own, within = profile.heaviest(["process 7:x;main (a.py:1);f (a.py:2);f (a.py:2) 3", "main (a.py:1) 2", ""])
    assert total == 5
    assert own == {"f (a.py:2)": 3, "main (a.py:1)": 2}
    assert within == {"f (a.py:2)": 3, "main (a.py:1)": 5}
