"""The load: C keep-alive connections, each sending its next request when the answer to the last is complete.

Run as `python -m tests.bench.load '<JSON of Job>'`. After the warm-up it prints `ready`, waits for a line on standard
input, runs, and prints one line with the JSON of `Result`. Every answer is verified: status, the text the upstream
sends, and for streams the number of chunks, the usage and the end mark. An answer that fails counts as an error and
never as a call.
"""

import asyncio
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, repeat
from pathlib import Path
from typing import Final, cast

import httptools
import msgspec
import uvloop

_STAMP: Final = re.compile(rb"@(\d{19})@")
_KEEP: Final = 2048  # bytes of a stream's end kept to look for usage and the end mark
_SAMPLES: Final = 3  # failed answers that are described
_GRACE: Final = 30.0  # seconds after the phase for answers under way


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to send and what a right answer holds."""

    port: int
    path: str
    headers: dict[str, str]
    body: str
    connections: int
    calls: int  # the phase ends after so many calls were begun, or
    seconds: float  # after so long
    warm_up: int  # calls before the phase, spread over the connections
    expect: tuple[str, ...]  # in the body of a whole answer, or at the end of a stream
    ends_with: str = ""  # the last bytes of the answer, spaces aside
    chunks: int = 0  # content chunks of a stream; 0 for a whole answer
    stagger: float = 0.0  # seconds between the first requests of two connections, so that paced streams interleave
    keys: str = ""  # a file with one key a line, for each call the next one, instead of that in `headers`


class Spread(msgspec.Struct, frozen=True):
    """A distribution in microseconds."""

    p50: float
    p90: float
    p99: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    calls: int
    errors: int
    samples: tuple[str, ...]  # the first few errors in words
    chunks: int
    seconds: float
    reconnects: int
    bytes_least: int
    bytes_most: int
    latency: Spread | None  # whole answer, or whole stream
    first: Spread | None  # until the first content of a stream
    chunk: Spread | None  # from the upstream's write to our read of a content chunk
    cpu: float  # seconds of CPU of this process


def spread(values: Sequence[int]) -> Spread | None:
    """Nearest-rank percentiles of nanoseconds, in microseconds."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p99 = (ordered[max(0, -(-len(ordered) * p // 100) - 1)] / 1000 for p in (50, 90, 99))
    return Spread(p50, p90, p99)


def fault(job: Job, status: int, body: bytes, chunks: int) -> str | None:
    """What is wrong with a complete answer, or None. `body` is the whole body, or the end of a stream."""
    if status != 200:
        return f"status {status}: {body[:200]!r}"
    if chunks != job.chunks:
        return f"{chunks} of {job.chunks} chunks: ...{body[-200:]!r}"
    for text in job.expect:
        if text.encode() not in body:
            return f"no {text!r} in {body[-300:]!r}"
    if not body.rstrip().endswith(job.ends_with.encode()):
        return f"ends with {body[-100:]!r} instead of {job.ends_with!r}"
    return None


class Tally:
    """What all connections of one phase have seen."""

    def __init__(self, job: Job, budget: int, deadline: float) -> None:
        self.job = job
        self.budget = budget  # calls still to begin
        self.deadline = deadline  # of time.monotonic()
        self.calls = self.errors = self.chunks = self.reconnects = 0
        self.bytes_least, self.bytes_most = sys.maxsize, 0
        self.samples: list[str] = []
        self.latencies: list[int] = []
        self.firsts: list[int] = []
        self.delays: list[int] = []
        self.idle = asyncio.Event()
        self.busy = 0

    def begin(self) -> bool:
        """Takes one call off the budget, if there is one left and time to make it."""
        if self.budget <= 0 or time.monotonic() >= self.deadline:
            return False
        self.budget -= 1
        self.busy += 1
        return True

    def end(self, problem: str | None) -> None:
        self.busy -= 1
        if problem is None:
            self.calls += 1
        else:
            self.errors += 1
            if len(self.samples) < _SAMPLES:
                self.samples.append(problem)

    def result(self, seconds: float, cpu: float) -> Result:
        return Result(
            calls=self.calls,
            errors=self.errors,
            samples=tuple(self.samples),
            chunks=self.chunks,
            seconds=seconds,
            reconnects=self.reconnects,
            bytes_least=self.bytes_least if self.calls else 0,
            bytes_most=self.bytes_most,
            latency=spread(self.latencies),
            first=spread(self.firsts),
            chunk=spread(self.delays),
            cpu=cpu,
        )


class Connection(asyncio.Protocol):
    """One client of the gateway. Method names with `on_` are called by httptools."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._tally: Tally | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._chunks = 0
        self._began = 0
        self._first = 0

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # asyncio types the argument more widely than it is

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish(f"connection lost: {exc}")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def run(self, tally: Tally) -> None:
        """Sends requests until the tally says stop."""
        if self._transport is None or not tally.begin():
            self._tally = None
            if tally.busy == 0:
                tally.idle.set()
            return
        self._tally = tally
        self._parts.clear()
        self._size, self._chunks, self._first, self._tail = 0, 0, 0, b""
        self._began = time.monotonic_ns()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            self._finish(f"not HTTP: {error} in {data[:200]!r}")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        tally = self._tally
        if tally is None or not tally.job.chunks:
            self._parts.append(body)
            return
        now = time.monotonic_ns()
        text = self._tail + body
        end = 0
        for found in _STAMP.finditer(text):
            tally.delays.append(now - int(found[1]))
            end = found.end()
            self._chunks += 1
        if end and not self._first:
            self._first = now - self._began
        self._tail = text[max(end, len(text) - _KEEP) :]

    def on_message_complete(self) -> None:
        took = time.monotonic_ns() - self._began
        tally = self._tally
        if tally is None:
            return
        body = self._tail if tally.job.chunks else b"".join(self._parts)
        status = self._parser.get_status_code()
        problem = fault(tally.job, status, body, self._chunks)
        if problem is None:
            tally.latencies.append(took)
            tally.chunks += self._chunks
            tally.bytes_least = min(tally.bytes_least, self._size)
            tally.bytes_most = max(tally.bytes_most, self._size)
            if self._first:
                tally.firsts.append(self._first)
        if not self._parser.should_keep_alive():
            self.close()
        self._finish(problem)

    def _finish(self, problem: str | None) -> None:
        tally, self._tally = self._tally, None
        if tally is None:
            return
        tally.end(problem)
        if self.usable:
            self.run(tally)
        elif tally.busy == 0:
            tally.idle.set()


def request_bytes(job: Job, headers: Mapping[str, str]) -> bytes:
    body = job.body.encode()
    lines = [f"POST {job.path} HTTP/1.1", f"Host: 127.0.0.1:{job.port}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def requests(job: Job) -> Iterator[bytes]:
    """What is sent, without end."""
    if not job.keys:
        return repeat(request_bytes(job, job.headers))
    keys = Path(job.keys).read_text().split()
    return cycle([request_bytes(job, job.headers | {"Authorization": f"Bearer {key}"}) for key in keys])


class Load:
    """The connections, kept between the warm-up and the phase."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = requests(job)
        self._connections: list[Connection] = []

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self._requests), "127.0.0.1", self._job.port)
        return connection

    async def _reconnect(self, tally: Tally) -> None:
        for index, connection in enumerate(self._connections):
            if not connection.usable:
                tally.reconnects += 1
                self._connections[index] = await self._connect()
                self._connections[index].run(tally)

    async def phase(self, calls: int, seconds: float, stagger: float) -> Tally:
        """At most `calls` calls begun within `seconds`; returns when each has its answer or the grace is over."""
        start = time.monotonic()
        tally = Tally(self._job, calls, start + seconds)
        while len(self._connections) < self._job.connections:
            self._connections.append(await self._connect())
        for index, connection in enumerate(self._connections):
            if not connection.usable:
                self._connections[index] = await self._connect()
        for connection in self._connections:
            connection.run(tally)
            if stagger:
                await asyncio.sleep(stagger)
        while time.monotonic() < start + seconds + _GRACE:
            more = tally.budget > 0 and time.monotonic() < tally.deadline
            if not more and not tally.busy:
                break
            if more:
                await self._reconnect(tally)
            tally.idle.clear()
            try:
                await asyncio.wait_for(tally.idle.wait(), 0.05)
            except TimeoutError:
                continue  # look again for connections that the gateway closed
        if tally.busy:
            tally.errors += tally.busy
            tally.samples.append(f"{tally.busy} calls had no answer {_GRACE:g} s after the phase")
        return tally

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


async def run(job: Job, wait_for_go: bool) -> Result:
    load = Load(job)
    warm = await load.phase(job.warm_up, _GRACE, 0.0)
    if wait_for_go:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    start, cpu = time.monotonic(), time.process_time()
    tally = await load.phase(job.calls, job.seconds, job.stagger)
    result = tally.result(time.monotonic() - start, time.process_time() - cpu)
    load.close()
    await asyncio.sleep(0)  # the connections are closed in the loop's next turn
    if warm.errors and not result.samples:
        return msgspec.structs.replace(result, samples=tuple(warm.samples))
    return result


if __name__ == "__main__":
    print(msgspec.json.encode(uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Job), True))).decode(), flush=True)
