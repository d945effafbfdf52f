"""What operators and their tools ask every worker: /healthz, /readyz and /metrics, on the listeners of calls or on one
of their own."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from providers.errors import NotFound, SwitchyardError, Unauthorized
from providers.wires.openai import WIRE as OPENAI
from router.http import Receive, Scope, Send, header, internal_error, reply, reply_error, reply_json, require
from router.metric_text import CONTENT_TYPE
from router.networks import is_local
from router.runtime import Runtime

METRICS: Final = "/metrics"
OPENMETRICS: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"

_log = logging.getLogger("switchyard.app")

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


class Operators:
    """The three answers. Raise what the caller is to be told."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.paths: Mapping[str, Handler] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            METRICS: self._metrics,
        }

    async def _healthz(self, scope: Scope, receive: Receive, send: Send) -> None:
        await reply_json(send, 200, {"status": "ok", "version": self._runtime.version})

    async def _readyz(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready, state = await self._runtime.readiness()
        if not self._is_local(scope) or self._from_page(scope):
            # Strangers, and pages in somebody's browser, learn whether, not why.
            state = {"status": state["status"]}
        await reply_json(send, 200 if ready else 503, state)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._admit(scope)
        metrics = self._runtime.metrics
        if only_openmetrics(header(scope["headers"], b"accept") or ""):
            await reply(send, 200, await metrics.scrape_openmetrics(), OPENMETRICS)
        else:
            await reply(send, 200, await metrics.scrape(), CONTENT_TYPE)

    async def _admit(self, scope: Scope) -> None:
        """Raises Unauthorized for who may not read the metrics, and TooManyAttempts."""
        settings = self._runtime.config.server.metrics
        local = self._is_local(scope)
        if settings.token is None and (self._open(scope) or (local and not self._from_page(scope))):
            return
        shown = _bearer(header(scope["headers"], b"authorization") or "")
        if settings.token is not None and hmac.compare_digest(
            shown.encode(), settings.token.get_secret_value().encode()
        ):
            return
        if shown and await self._is_admin(shown, self._runtime.address(scope)):
            return
        raise Unauthorized(
            "metrics are open on loopback only, by the name localhost or an address; else send the admin token as a"
            " Bearer token"
            if settings.token is None
            else "send the token of server.metrics, or the admin token, as a Bearer token"
        )

    async def _is_admin(self, token: str, address: str) -> bool:
        """Raises TooManyAttempts: a wrong token counts as one that is shown to the admin API."""
        keys = self._runtime.keys
        async with keys.turn(token, address):
            found = await keys.is_admin(token)
            if not found:
                keys.throttle.failed(address)
        return found

    def _open(self, scope: Scope) -> bool:
        """Whether the listener that the request came in by is open to everybody."""
        listen = self._runtime.config.server.metrics.listen
        return bool(scope.get("metrics_listener")) and listen is not None and listen.allow_remote

    def _from_page(self, scope: Scope) -> bool:
        """Whether a page of another site asks through a browser on this machine. Pages that may make calls
        (`server.cors_origins`) have no business here either."""
        return self._runtime.refuses_page(scope, ())

    def _is_local(self, scope: Scope) -> bool:
        return is_local(scope, self._runtime.config.server.trusted_proxies)


def _bearer(text: str) -> str:
    """What is shown in `Authorization`: the name of the scheme has no case, and may be left out."""
    scheme, _, rest = text.strip().partition(" ")
    return (rest if scheme.lower() == "bearer" else text).strip()


def only_openmetrics(accept: str) -> bool:
    """Whether a scraper takes OpenMetrics and not the plain text."""
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    return OPENMETRICS.partition(b";")[0].decode() in kinds and not kinds & {"text/plain", "text/*", "*/*"}


class MetricsDoor:
    """The ASGI application of the metrics' own listener: nothing but the three."""

    def __init__(self, runtime: Runtime) -> None:
        self._paths = Operators(runtime).paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(12)
        scope["metrics_listener"] = True
        try:
            handler = self._paths.get(scope["path"])
            if handler is None:
                raise NotFound(f"this listener answers {', '.join(self._paths)} only")
            require(scope["method"], "GET", "HEAD")
            await handler(scope, receive, send)
        except SwitchyardError as error:
            await reply_error(send, OPENAI, error, request_id)
        except Exception as bug:  # noqa: BLE001 - a bug of ours: a clean 500 for the caller, the traceback for the log
            await reply_error(send, OPENAI, internal_error(_log, request_id, bug), request_id)
