"""Calls made through the litellm library, shown as HTTP answers in OpenAI's shape. The only file that imports litellm.

The import takes seconds and much memory, so it happens when a litellm provider is first used. It and all of the
library's work run on an event loop of its own, in its own thread: some of its adapters look up credentials with
blocking calls (boto3, Google's auth) in the middle of a coroutine, and that must not stop everybody's streams.

What the library would do on its own and may not: fetch prices or tokenizers from the network, report, call back, cache,
retry, fall back, count tokens, log (it logs keys at some levels), finish a cut stream as if it were complete.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import importlib.util
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final

import orjson

from providers.errors import Broken, SwitchyardError, Unreachable, UnsupportedFeature
from providers.framing import DONE, sse
from providers.scrub import clean
from providers.vendor import UpstreamRequest
from router.litellm_errors import answer_of, is_refused_connection, unwrap
from router.transport import HIGH_WATER, Response, Route

INSTALL: Final = "litellm is not installed: pip install 'litellm==1.106.2'"

ENVIRONMENT: Final = {
    # Both are read while the library is being imported.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no price list from the network
    "LITELLM_MODE": "PRODUCTION",  # no .env file is loaded
}
SETTINGS: Final[Mapping[str, Any]] = {
    "telemetry": False,
    "suppress_debug_info": True,  # it prints advice to stdout otherwise
    "set_verbose": False,
    "turn_off_message_logging": True,
    "disable_streaming_logging": True,
    "disable_token_counter": True,
    "disable_hf_tokenizer_download": True,
    "REPEATED_STREAMING_CHUNK_LIMIT": 10**9,  # it would end an answer that says one thing a hundred times
    "cache": None,
    "num_retries": 0,
    "num_retries_per_request": 0,
    "default_fallbacks": None,
    "modify_params": False,
    "drop_params": True,  # sampling hints that a provider does not know; see ESSENTIAL
}
LISTS: Final = (
    "callbacks",
    "input_callback",
    "success_callback",
    "failure_callback",
    "service_callback",
    "_async_success_callback",
    "_async_failure_callback",
    "_async_input_callback",
)
LOGGERS: Final = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai")

ESSENTIAL: Final = frozenset({"tools", "response_format", "logprobs", "n"})
"""Fields that change what the answer is: a provider that does not take them is not asked at all."""

TOTAL_SECONDS: Final = 3600.0
"""The library wants a timeout of its own; the router's deadlines end a call long before."""


def missing() -> str | None:
    """Why litellm providers are off; None when the library is there. Does not import it."""
    return None if importlib.util.find_spec("litellm") is not None else INSTALL


class LitellmTransport:
    """Same face as `HttpTransport`. Cheap to make: nothing happens before the first `open`."""

    def __init__(self) -> None:
        self._worker: _Worker | None = None

    async def open(
        self, route: Route, request: UpstreamRequest, *, body: AsyncIterator[bytes] | None = None
    ) -> Response:
        """Make the call and wait for its first sign. Raises Unreachable when the provider, or the library, cannot be
        had, and UnsupportedFeature when the provider does not take what the call needs. Cancellation ends the upstream
        call."""
        if body is not None:
            raise UnsupportedFeature("a litellm provider takes no streamed body")
        if self._worker is None or self._worker.failed:
            self._worker = _Worker()
        worker = self._worker
        await worker.ready()
        exchange = _Exchange(asyncio.get_running_loop(), worker)
        exchange.run(_serve(worker.library(), exchange, route, request))
        try:
            await exchange.head()
        except BaseException:
            exchange.abort()
            raise
        return exchange

    async def close(self) -> None:
        """Cancel what runs and end the thread."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.stop)


class _Worker:
    """The library's thread and event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._imported: concurrent.futures.Future[ModuleType] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._main, name="litellm", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        return self._imported.done() and self._imported.exception() is not None

    async def ready(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._imported))

    def library(self) -> ModuleType:
        return self._imported.result(timeout=0)

    def stop(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
        except RuntimeError:
            pass  # the import failed, and the loop is closed already
        self._thread.join(timeout=5)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self._imported.set_result(_import())
        except ImportError as bad:
            self._imported.set_exception(Unreachable(clean(f"{missing() or 'litellm cannot be imported'} ({bad})")))
            self.loop.close()
            return
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()


def _import() -> ModuleType:
    for name, value in ENVIRONMENT.items():
        os.environ[name] = value
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings(), _no_collector():
        warnings.simplefilter("ignore")
        import litellm
    # Its models warn about one another while they answer; nobody here can act on that.
    warnings.filterwarnings("ignore", module=r"(pydantic|litellm)\b")
    for name, value in SETTINGS.items():
        setattr(litellm, name, value)
    for name in LISTS:
        setattr(litellm, name, [])
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.handlers.clear()
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    library: ModuleType = litellm
    _remember_responses(library)
    return library


_RESPONSES: Final[ContextVar[list[Any] | None]] = ContextVar("responses", default=None)
"""The open HTTP answers of the call that runs in this context."""


def _remember_responses(library: ModuleType) -> None:
    """Have the library's HTTP client note the answers it opens.

    Most of its adapters keep only a generator of lines, so a stream that is left between two lines leaves its
    connection, and the provider's work, running. (An answer that is closed by its call costs nothing to close again.)
    """
    client = library.httpx.AsyncClient
    send = client.send

    @functools.wraps(send)
    async def noting(self: Any, request: Any, **options: Any) -> Any:
        response = await send(self, request, **options)
        opened = _RESPONSES.get()
        if opened is not None and options.get("stream"):
            opened.append(response)
        return response

    client.send = noting


@contextmanager
def _no_collector() -> Iterator[None]:
    """No garbage collections while a million objects are made, and none that look at these objects later: they hold the
    interpreter for hundreds of milliseconds. (Measured on two busy cores: the import took 4.7 s instead of 9.6, the
    longest stop of the other loop 0.13 s instead of 0.29.)"""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


class _Exchange:
    """One call: written by the library's loop, read by ours."""

    def __init__(self, loop: asyncio.AbstractEventLoop, worker: _Worker) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._loop = loop
        self._worker = worker
        self._call: concurrent.futures.Future[None] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._complete = False
        self._error: SwitchyardError | None = None
        self._news = asyncio.Event()
        # The library's side
        self._waiting_bytes = 0
        self._room: asyncio.Event | None = None

    def run(self, call: Coroutine[Any, Any, None]) -> None:
        self._call = asyncio.run_coroutine_threadsafe(call, self._worker.loop)

    # Called on the library's loop.

    def begin(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self._tell(self._begun, status, {**(headers or {}), "content-type": content_type})

    async def send(self, data: bytes) -> None:
        self._tell(self._came, data)
        self._waiting_bytes += len(data)
        while self._waiting_bytes > HIGH_WATER:
            self._room = asyncio.Event()
            await self._room.wait()

    def end(self, error: SwitchyardError | None = None) -> None:
        self._tell(self._ended, error)

    def _tell(self, what: Any, *values: Any) -> None:  # call_soon's own signature
        try:
            self._loop.call_soon_threadsafe(what, *values)
        except RuntimeError:
            # Our loop is closed: the router is gone, and nobody listens.
            pass

    def _taken(self, size: int) -> None:
        self._waiting_bytes -= size
        if self._room is not None:
            self._room.set()
            self._room = None

    # Called on our loop.

    def _begun(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers
        self._news.set()

    def _came(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        self._news.set()

    def _ended(self, error: SwitchyardError | None) -> None:
        self._complete = True
        self._error = self._error or error
        self._news.set()

    async def head(self) -> None:
        while not self.status:
            if self._error is not None:
                raise self._error
            if self._complete:
                raise Broken("the provider gave no answer")
            self._news.clear()
            await self._news.wait()

    async def read(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        if not self._complete:
            self._worker.loop.call_soon_threadsafe(self._taken, len(data))
        return data

    async def relay(self, sink: Callable[[bytes], bool]) -> None:
        while data := await self.read():
            if not sink(data):
                return

    async def read_all(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                raise Broken(f"the provider's answer is longer than {limit} bytes")
            parts.append(data)
        return b"".join(parts)

    def finish(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._call is not None and not self._call.done():
            self._call.cancel()


async def _serve(library: ModuleType, exchange: _Exchange, route: Route, request: UpstreamRequest) -> None:
    """One call on the library's loop, its outcome told to the exchange."""
    wanted = orjson.loads(request.body)
    call, provider = wanted["call"], wanted["provider"]
    secrets = [value for value in (_key(request), *request.headers.values()) if value and len(value) >= 8]
    begun = False
    opened: list[Any] = []
    _RESPONSES.set(opened)
    try:
        options = _options(library, wanted, route, request)
        if request.path == "/embeddings":
            answer = await library.aembedding(**call, **options)
        else:
            _check(library, call, provider)
            answer = await library.acompletion(**call, **options)
        if not call.get("stream"):
            exchange.begin(200, "application/json")
            await exchange.send(orjson.dumps(_dump(answer)))
        else:
            try:
                async for frame in _frames(answer):
                    if not begun:
                        begun = True
                        exchange.begin(200, "text/event-stream")
                    await exchange.send(frame)
            finally:
                await answer.aclose()
                for response in opened:
                    await response.aclose()
            if not begun:
                raise Broken("the provider's stream was empty")
        exchange.end()
    except SwitchyardError as error:
        exchange.end(error)
    except Exception as raised:  # noqa: BLE001  # the library lets through whatever its hundred adapters throw
        cause = unwrap(raised)
        if not begun and is_refused_connection(cause):
            exchange.end(Unreachable("the provider cannot be reached"))
            return
        status, body, headers = answer_of(cause, secrets)
        if begun:
            await exchange.send(sse(body))
        else:
            exchange.begin(status, "application/json", headers)
            await exchange.send(body)
        exchange.end()


def _key(request: UpstreamRequest) -> str | None:
    return request.headers.get("authorization", "").removeprefix("Bearer ") or None


def _options(library: ModuleType, wanted: Mapping[str, Any], route: Route, request: UpstreamRequest) -> dict[str, Any]:
    """Everything about the call that is the operator's and not the client's."""
    options: dict[str, Any] = {
        **wanted["options"],
        "custom_llm_provider": wanted["provider"],
        "api_key": _key(request),
        "api_base": route.base_url or None,
        "timeout": library.httpx.Timeout(TOTAL_SECONDS, connect=route.connect),
        "max_retries": 0,
        "num_retries": 0,
        "caching": False,
    }
    if wanted["call"].get("tools"):
        options["_skip_mcp_handler"] = True  # its MCP gateway: not ours to offer, and it needs packages of the proxy
    extra = {name: value for name, value in request.headers.items() if name not in ("authorization", "content-type")}
    if extra:
        options["extra_headers"] = extra
    if wanted["call"].get("stream"):
        options["stream_options"] = {"include_usage": True}
    return options


def _check(library: ModuleType, call: Mapping[str, Any], provider: str) -> None:
    supported = library.get_supported_openai_params(model=call["model"], custom_llm_provider=provider)
    for field in ESSENTIAL & call.keys():
        if supported is not None and field not in supported and call[field] not in (False, 1):
            raise UnsupportedFeature(f"this provider does not take {field}", param=field)


async def _frames(stream: Any) -> AsyncIterator[bytes]:  # litellm's CustomStreamWrapper
    """A stream's chunks as OpenAI's events. The library ends a stream that was cut with a `stop` of its own making;
    what the provider itself said stands in `received_finish_reason`."""
    async for chunk in stream:
        value = _dump(chunk)
        for choice in value.get("choices") or ():
            if choice.get("finish_reason") and not (
                stream.received_finish_reason or getattr(stream, "intermittent_finish_reason", None)
            ):
                raise Broken("the provider's answer was cut off")
        yield sse(orjson.dumps(value))
    yield DONE


_OWN_FIELDS: Final = ("provider_specific_fields", "citations", "thinking_blocks")
"""What the library adds to messages for its own use."""


def _dump(answer: Any) -> dict[str, Any]:  # one of litellm's pydantic models
    value: dict[str, Any] = answer.model_dump(mode="json", exclude_none=True, warnings=False)
    for choice in value.get("choices") or ():
        for holder in (choice, choice.get("delta"), choice.get("message")):
            if isinstance(holder, dict):
                for field in _OWN_FIELDS:
                    holder.pop(field, None)
    usage = value.get("usage")
    if isinstance(usage, dict) and not usage.get("prompt_tokens") and not usage.get("completion_tokens"):
        del value["usage"]  # not known: its counter of tokens is off
    return value
