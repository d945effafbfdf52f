"""`switchyard serve`: the router in the foreground."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.common import ConfigOption, config_path, fail, read_config

if TYPE_CHECKING:
    from router.cli.workers import Workers
    from router.config import Config, Listen, MetricsListen
    from router.keys import Bootstrap
    from router.local_model import ModelState
    from router.output import Output
    from router.runtime import Runtime
    from router.slots import Slot, SlotDirectory

_log = logging.getLogger("switchyard.workers")


def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address of the first listener, in place of the config's.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the first listener, in place of the config's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes that serve.")] = None,
    log: Annotated[bool, typer.Option(help="Write a JSON line for each request to standard error.")] = True,
) -> None:
    """Run the router until Ctrl-C or SIGTERM. SIGHUP reads the config file again.

    The address, the first key and a command to try are printed on standard output, request logs go to standard error.
    """
    started = time.monotonic()
    from router.output import Output

    _fill_streams()
    out, lines = Output(1, requests=False), Output(2, requests=log)
    out.start()
    lines.start()
    try:
        code = _serve(config, host, port, workers, out, lines, started)
    finally:
        out.stop()
        lines.stop()
    raise typer.Exit(code)


def _fill_streams() -> None:
    """Give standard streams that were closed for us somewhere to go: else the next file or socket had their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one


def _serve(
    config: Path | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    out: Output,
    lines: Output,
    started: float,
) -> int:
    """The exit code, when the router has ended. `out` is what a person reads, `lines` is the log."""
    from router.output import Messages
    from router.slots import inherited_slot

    slot = inherited_slot(os.environ)
    found = read_config(config, slot.config_copy, lines.say)
    found = _with_listener(found, host, port)
    logging.basicConfig(
        level=found.server.log.level.upper(), format="%(levelname)s %(name)s: %(message)s", handlers=[Messages(lines)]
    )
    # uvicorn warns of what is no HTTP: anybody could fill the log with it.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    import uvloop

    from router.cli import workers as processes

    inherited = processes.inherited()
    sockets = inherited or _bind(found)
    count = 1 if inherited else workers or found.server.workers
    path = config_path(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if count > 1:
            return runner.run(_supervise(found, path, sockets, count, out, lines, started))
        return runner.run(_run(found, path, sockets, out, lines, started, slot if inherited else None))


def _with_listener(config: Config, host: str | None, port: int | None) -> Config:
    if host is None and port is None:
        return config
    first, *rest = config.server.listen
    changed = first.model_copy(update={k: v for k, v in (("host", host), ("port", port)) if v is not None})
    if changed.anonymous and host is not None:
        from router.config_hosts import is_loopback

        if not is_loopback(host) and not changed.allow_remote:
            fail(f"--host {host} would open the keyless listener to other machines; set allow_remote in the config", 2)
    origin = config.origin
    config = config.model_copy(update={"server": config.server.model_copy(update={"listen": (changed, *rest)})})
    config._origin = origin
    return config


def _bind(config: Config) -> list[socket.socket]:
    """The listening sockets, in the config's order, that of the metrics last. A port that is taken is said plainly."""
    sockets = []
    own = config.server.metrics.listen
    rows: list[Listen | MetricsListen] = [*config.server.listen, *([own] if own is not None else [])]
    for listen in rows:
        try:
            info = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            bound = socket.socket(info[0], socket.SOCK_STREAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if info[0] == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind(info[4])
            bound.listen(2048)
            bound.setblocking(False)
        except OSError as bad:
            why = bad.strerror or str(bad)
            other = "set server.metrics.listen" if listen is own else "choose another with --port"
            fail(f"cannot listen on {listen.host}:{listen.port}: {why.lower()} ({other})")
        sockets.append(bound)
    return sockets


async def _run(
    config: Config,
    path: Path,
    sockets: list[socket.socket],
    out: Output,
    lines: Output,
    started: float,
    slot: Slot | None,
) -> int:
    """Serve: as the only process, or as the worker in `slot`."""
    from router.app import App
    from router.runtime import Runtime
    from router.server import Server
    from router.slots import ALONE
    from router.store import StoreError

    stop, hurry = _signals()
    worker = slot is not None
    runtime = Runtime(config, config_path=path, log=lines, slot=slot or ALONE)

    def ready() -> None:
        say.ready()
        runtime.announce()
        if runtime.slot.behind(runtime.config.origin.data):
            # It was changed after this worker had read it and before it could be told so.
            runtime.reload(runtime.slot.config_copy)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, runtime.reload)
    say = _Console(runtime, sockets, out, started, quiet=worker)
    try:
        await runtime.start(_listeners(config, sockets), on_model=say.model, on_made=say.made, worker=worker)
        server = Server(App(runtime), config.server.limits)
        async with _metrics_door(runtime, sockets):
            _settle_garbage()
            await server.serve_until(stop, sockets[: len(config.server.listen)], ready)
            runtime.draining = True
            await _drain(runtime, hurry, config.server.limits.drain_seconds)
            await server.finish()
    except StoreError as bad:
        lines.say(f"switchyard: {bad}")
        return 1
    finally:
        await runtime.stop()
    return 0


@asynccontextmanager
async def _metrics_door(runtime: Runtime, sockets: list[socket.socket]) -> AsyncIterator[None]:
    """Serve the metrics on their own listener, if they have one: until running calls have ended."""
    from router.operators import MetricsDoor
    from router.server import Server

    config = runtime.config.server
    if config.metrics.listen is None:
        yield
        return
    door, over = Server(MetricsDoor(runtime), config.limits), asyncio.Event()
    serving = asyncio.create_task(door.serve_until(over, sockets[len(config.listen) :], lambda: None))
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(serving, return_exceptions=True)
        await door.finish()


def _settle_garbage() -> None:
    """What was made so far stays: the collector need not look at it again, nor as often as for a short script."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _supervise(
    config: Config,
    path: Path,
    sockets: list[socket.socket],
    count: int,
    out: Output,
    lines: Output,
    started: float,
) -> int:
    """Own the store and the demo model, and keep `count` workers running that serve."""
    from router.cli.workers import Workers
    from router.runtime import Runtime
    from router.slots import SlotDirectory
    from router.store import StoreError

    stop, hurry = _signals()
    runtime = Runtime(config, config_path=path, log=lines)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, runtime.reload)  # until there are workers
    say = _Console(runtime, sockets, out, started)
    for name, row in config.providers.items():
        if row.max_concurrency is not None and row.max_concurrency < count:
            lines.say(
                f"switchyard: providers.{name}.max_concurrency is {row.max_concurrency}, and {count} workers have one"
                f" place each; its limits.concurrency counts for all together"
            )
    async with AsyncExitStack() as undo:
        try:
            undo.push_async_callback(runtime.stop)
            await runtime.start(_listeners(config, sockets), on_model=say.model, on_made=say.made, serves=False)
            directory = SlotDirectory(runtime.data_dir)
            undo.callback(directory.close)
            directory.keep_config(runtime.config.origin.data, runtime.config_loaded_at, runtime.config_problem)
            workers = Workers(count, sockets, config.server.limits.drain_seconds, directory)
            undo.push_async_callback(workers.stop)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, runtime, directory, workers)
            await workers.start()
            say.ready()
            await workers.run(stop, hurry)
        except StoreError as bad:
            lines.say(f"switchyard: {bad}")
            return 1
        except OSError as bad:  # the directory cannot be made, or no process
            place = f" in data_dir {runtime.data_dir}" if bad.filename is not None else ""
            lines.say(f"switchyard: the workers cannot be started{place}: {bad.strerror}")
            return 1
    return 0


def _reload(runtime: Runtime, directory: SlotDirectory, workers: Workers) -> None:
    """Try the config file, and let the workers read it. One that serves later begins with what is in force, which
    is not the file when that was refused or has been changed since."""
    refused = runtime.reload()
    try:
        directory.keep_config(runtime.config.origin.data, runtime.config_loaded_at, refused)
    except OSError as bad:
        _log.warning("%s; workers that are replaced begin as if it had not been asked for", bad)
    workers.reload()


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events for the first Ctrl-C or SIGTERM (stop), and for the second (hurry)."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def ask_to_stop() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ask_to_stop)
    return stop, hurry


def _listeners(config: Config, sockets: list[socket.socket]) -> dict[tuple[str, int], str | None]:
    """The addresses that we listen on, with the name of the anonymous key."""
    found: dict[tuple[str, int], str | None] = {}
    for bound, listen in zip(sockets, config.server.listen, strict=False):  # the metrics' own comes last
        address = bound.getsockname()
        found[str(address[0]), int(address[1])] = listen.anonymous
    return found


async def _drain(runtime: Runtime, hurry: asyncio.Event, seconds: float) -> None:
    """Let running calls end; those that take too long get an error event."""
    calls = runtime.calls
    if calls.active:
        runtime.log.say(f"waiting up to {seconds:g} s for {calls.active} running call(s); once more to end them now")
        deadline = time.monotonic() + seconds
        while calls.active and not hurry.is_set() and time.monotonic() < deadline:
            try:
                async with asyncio.timeout(0.05):
                    await hurry.wait()
            except TimeoutError:
                pass
    calls.stop_all()
    for _ in range(40):
        if not calls.active:
            return
        await asyncio.sleep(0.05)


class _Console:
    """What a person at the terminal reads. The banner comes when the router serves and what a first start makes is
    known."""

    def __init__(
        self,
        runtime: Runtime,
        sockets: list[socket.socket],
        out: Output,
        started: float,
        *,
        quiet: bool = False,
    ) -> None:
        self._runtime = runtime
        self._out = out
        address = sockets[0].getsockname()
        self._host, self._port = str(address[0]), int(address[1])
        own = runtime.config.server.metrics.listen
        self._metrics = sockets[-1].getsockname() if own is not None else None
        self._started = started
        self._quiet = quiet
        self._last = ""
        self._shown = False

    def model(self, state: ModelState) -> None:
        """Progress of the demo model, a line for each step."""
        step = f"{state.state} {int(state.progress * 4)}"
        if step != self._last and not self._quiet:
            self._last = step
            done = f" {state.progress:4.0%}" if state.state in ("preparing", "loading") else ""
            self._runtime.log.say(f"demo model: {state.state}{done}{': ' + state.detail if state.detail else ''}")

    def made(self, made: Bootstrap) -> None:
        self._made = made
        if self._shown:
            # The store was down when the router began to serve.
            self._out.say("\n".join(self._secrets()))

    def ready(self) -> None:
        if not self._quiet:
            self._shown = True
            self.banner(time.monotonic() - self._started)

    _made: Bootstrap | None = None

    def _secrets(self) -> list[str]:
        """The key and the admin token, where they were made just now."""
        made = self._made
        if made is None:
            return ["  key          not made yet: the store is not there"]
        lines = ["  key          as issued before; another: switchyard keys create"]
        if made.key is not None:
            lines = [f"  key          {made.key}   (shown once; more: switchyard keys create)"]
        if made.admin_token is not None:
            lines.append(f"  admin token  {made.admin_token}   (shown once)")
        return lines

    def banner(self, seconds: float) -> None:
        """Where it listens, the key (shown this once), and a line to paste."""
        runtime, host, port = self._runtime, self._host, self._port
        base = f"http://{_host(host)}:{port}"
        providers = runtime.snapshot.providers.values()
        lines = [
            "",
            f"Switchyard {runtime.version} is ready after {seconds:.1f} s",
            "",
            f"  address      {base}/v1",
            f"  page         {base}/admin",
        ]
        if self._metrics is not None:
            lines.append(f"  metrics      http://{_host(self._metrics[0])}:{self._metrics[1]}/metrics")
        for (own, own_port), name in runtime.listeners.items():
            if name is not None:
                lines.append(f"  no key       http://{own}:{own_port} (rights of key {name})")
        lines += self._secrets()
        lines.append(f"  providers    on: {', '.join(p.name for p in providers if p.off is None) or 'none'}")
        lines += [f"               off: {p.name} ({p.off})" for p in providers if p.off is not None]
        if runtime.store.problem:
            lines.append(f"  store        {runtime.store.problem}")
        lines += [f"  store        {warning}" for warning in runtime.store.warnings]
        key = self._made.key if self._made is not None and self._made.key is not None else "$SWITCHYARD_API_KEY"
        quote = "'" if key.startswith("sk-") else '"'
        question = {"role": "user", "content": "Why is the sky blue?"}
        body = json.dumps({"model": _model_to_try(runtime), "messages": [question]})
        lines += [
            "",
            "Try it:",
            f"  curl {base}/v1/chat/completions -H {quote}Authorization: Bearer {key}{quote} "
            f"-H 'Content-Type: application/json' -d '{body}'",
            "",
        ]
        self._out.say("\n".join(lines))


_WILDCARDS = ("0.0.0.0", "::")  # compared, not bound


def _host(host: str) -> str:
    """A listener's address as it stands in an URL that can be asked."""
    if host in _WILDCARDS:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _model_to_try(runtime: Runtime) -> str:
    """A model that will answer: the demo model, else one of a provider that did not just refuse to say its list."""
    entries = [entry for entry in runtime.snapshot.listed if entry.capabilities.chat is not False]
    demo = [entry for entry in entries if any(name in runtime.local_models for name in entry.providers)]
    there = [entry for entry in entries if not any(name in runtime.discovery.problems for name in entry.providers)]
    chosen = demo or there or entries
    return chosen[0].id if chosen else "gpt-4o-mini"
