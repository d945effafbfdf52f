"""The ASGI entry. Model routes are plain ASGI (FastAPI's request handling costs more than the call itself); FastAPI
serves `/admin`, and is imported when the first such request comes."""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from providers.errors import NotAllowed, NotFound, SwitchyardError
from providers.wire import Wire
from providers.wires.ollama import WIRE as OLLAMA
from providers.wires.openai import WIRE as OPENAI
from router import billing, ollama_door
from router.http import (
    ClientGone,
    Receive,
    Scope,
    Send,
    header,
    internal_error,
    reply,
    reply_error,
    reply_json,
    require,
)
from router.lists import find_entry, model_entry, model_list
from router.networks import client_address, client_scheme, is_local
from router.ollama_routes import OllamaRoutes
from router.operators import METRICS, Handler, Operators
from router.records import Key
from router.routing import Rights, visible
from router.runtime import Runtime

if TYPE_CHECKING:
    from router.admin.pages.routes import Setup

OPENAI_ROOTS = ("/v1", "", "/api/v3")
"""OpenAI's own prefix, none (SDKs given the bare host), and the Ark SDK's."""

MODEL_ROUTES: Mapping[str, tuple[Wire, str]] = {
    **{f"{root}/chat/completions": (OPENAI, "chat") for root in OPENAI_ROOTS},
    **{f"{root}/completions": (OPENAI, "completions") for root in OPENAI_ROOTS},
    **{f"{root}/embeddings": (OPENAI, "embeddings") for root in OPENAI_ROOTS},
    **{f"/api/{op}": (OLLAMA, op) for op in ("chat", "generate", "embed", "embeddings")},
}
NOT_SERVED = re.compile(
    r"(/v1|/api/v3)?/(assistants|audio|batches|containers|conversations|evals|files|fine_tuning|images|messages"
    r"|moderations|realtime|rerank|responses|threads|uploads|vector_stores|videos)(/.*)?"
)
"""What clients of OpenAI and Anthropic may ask for beyond models' calls."""
MODEL_LISTS = frozenset(f"{root}/models" for root in OPENAI_ROOTS)

_log = logging.getLogger("switchyard.app")


class App:
    """One worker's ASGI application."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._handle_call = runtime.calls.handle
        self._door = OllamaRoutes(runtime)
        self._admin: Handler | None = None
        self._billing: billing.Billing | None = None
        self._plain = dict(Operators(runtime).paths)
        self._operators = frozenset(self._plain)
        """Paths that no page in a browser may read."""
        if runtime.config.server.metrics.listen is not None:
            del self._plain[METRICS]  # they have a listener of their own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        found = MODEL_ROUTES.get(path)
        if found is not None and scope["method"] == "POST" and not self._runtime.config.server.cors_origins:
            await self._handle_call(scope, receive, send, *found)
            return
        if (path.rstrip("/") or "/") not in self._operators:
            send = self._with_cors(scope, send)
        if path != "/" and path.endswith("/"):
            # No redirect: clients lose the body of a POST on the way.
            path = path.rstrip("/") or "/"
            found = MODEL_ROUTES.get(path)
        if scope["method"] == "OPTIONS" and header(scope["headers"], b"access-control-request-method"):
            await reply(send, 204, b"")
            return
        if found is not None and scope["method"] == "POST":
            await self._handle_call(scope, receive, send, *found)
            return
        await self._answer(path, scope, receive, send)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything but model calls: errors in the caller's dialect; who leaves is worked for no longer."""
        request_id = secrets.token_hex(12)
        task = asyncio.current_task()
        assert task is not None
        connection = scope["connection"]
        gone = False

        def lost() -> None:
            nonlocal gone
            gone = True
            task.cancel()

        connection.on_lost = lost
        try:
            await self._other(path, scope, receive, send)
        except SwitchyardError as error:
            await reply_error(send, dialect(path), error, request_id)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
        except Exception as bug:  # noqa: BLE001 - a bug of ours: a clean 500 for the caller, the traceback for the log
            await reply_error(send, dialect(path), internal_error(_log, request_id, bug), request_id)
        finally:
            connection.on_lost = None

    async def _other(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        if path in self._plain:
            require(method, "GET", "HEAD")
            await self._plain[path](scope, receive, send)
        elif path == "/admin" or path.startswith("/admin/"):
            await self._administer(scope, receive, send)
        elif path in MODEL_LISTS:
            require(method, "GET", "HEAD")
            rights = await self._rights(scope)
            await reply_json(send, 200, model_list(visible(self._runtime.snapshot, rights)))
        elif root := next((root for root in MODEL_LISTS if path.startswith(root + "/")), None):
            require(method, "GET", "HEAD")
            await self._one_model(path[len(root) + 1 :], scope, send)
        elif path in billing.PATHS:
            require(method, "GET", "HEAD")
            await self._bill(path, scope, send)
        elif path in MODEL_ROUTES and not ollama_door.is_ours(path):
            require(method, "POST")
        elif not ollama_door.is_ours(path):
            raise NotFound(self._no_such_path(path))
        else:
            known = ollama_door.find(method, path)
            public = isinstance(known, ollama_door.Answer) or known.op in ollama_door.PUBLIC
            whose = None if public else await self._rights(scope)
            await self._door.handle(path, scope, receive, send, whose)

    async def _one_model(self, name: str, scope: Scope, send: Send) -> None:
        rights = await self._rights(scope)
        snapshot = self._runtime.snapshot
        entry = find_entry(snapshot, visible(snapshot, rights), name, rights)
        await reply_json(send, 200, model_entry(entry))

    async def _bill(self, path: str, scope: Scope, send: Send) -> None:
        key = await self._key(scope)
        if self._billing is None:
            self._billing = billing.Billing(self._runtime.store)
        await self._billing.handle(path, key, self._runtime.config.prices.usd_cny, scope, send)

    async def _rights(self, scope: Scope) -> Rights:
        return self._runtime.accounts.rights(await self._key(scope))

    async def _key(self, scope: Scope) -> Key:
        """The key of a request that is no model call. Raises Unauthorized and NotAllowed."""
        runtime = self._runtime
        credential, anonymous = runtime.credential(scope)
        if anonymous is not None:
            key = await runtime.ledger.identify_anonymous(anonymous)
        else:
            key = await runtime.ledger.identify(credential, runtime.address(scope))
        if not key.admits(runtime.address(scope)):
            raise NotAllowed("This API key may not be used from your network address.")
        return key

    # --- operators

    async def _administer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._admin is None:
            self._admin = await asyncio.to_thread(self._make_admin)
        trusted = self._runtime.config.server.trusted_proxies
        # All bodies here are JSON, whatever a client calls them (`curl -d` says form): FastAPI reads only what says so.
        # But for lists of names, which may be a CSV.
        headers = [
            pair for pair in scope["headers"] if pair[0] != b"content-type" or pair[1].lower().startswith(b"text/csv")
        ]
        headers.append((b"content-type", b"application/json"))
        inner = {**scope, "root_path": "/admin", "headers": headers, "scheme": client_scheme(scope, trusted)}
        if scope.get("client") is not None:
            # What counts wrong tokens and writes down changes is to know the caller, not the proxy in front.
            address = client_address(scope, trusted)
            inner["client"] = (address, scope["client"][1])
        await self._admin(inner, receive, send)

    def _make_admin(self) -> Handler:
        from router.admin import admin_app  # FastAPI costs 0.3 s and 30 MB: only those who administer pay

        def rate() -> float:
            return self._runtime.config.prices.usd_cny

        app: Handler = admin_app(self._runtime.keys, self._runtime.readiness, rate, lambda: self._pages_setup(rate))
        return app

    def _pages_setup(self, rate: Callable[[], float]) -> Setup:
        from router.admin.pages.overview_page import Facts
        from router.admin.pages.routes import Setup

        runtime = self._runtime

        def facts() -> Facts:
            return Facts(
                runtime.config_path.name if runtime.config_path is not None else None,
                runtime.config.origin.digest,
                runtime.config_loaded_at,
                runtime.config_problem,
                frozenset(provider.name for provider in runtime.snapshot.providers.values() if provider.local),
                {name: runtime.config.variables("providers", name, "api_key") for name in runtime.snapshot.providers},
            )

        return Setup(
            runtime.keys,
            runtime.readiness,
            runtime.metrics.current,
            facts,
            rate,
            lambda: runtime.draining,
            runtime.version,
        )

    def _is_local(self, scope: Scope) -> bool:
        return is_local(scope, self._runtime.config.server.trusted_proxies)

    # --- edges

    def _no_such_path(self, path: str) -> str:
        shown = path[:200]
        if path.startswith("/v1/v1/"):
            return f"there is no {shown}: the base URL already ends in /v1 and the client adds another; drop one"
        if path == METRICS:
            return "there is no /metrics here: the metrics have a listener of their own, server.metrics.listen"
        if NOT_SERVED.fullmatch(path):
            return f"{shown} is not served yet: there are /v1/chat/completions, /v1/completions and /v1/embeddings"
        known = [*MODEL_ROUTES, "/v1/models", *billing.PATHS, *self._plain, *self._door.paths]
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; the OpenAI API is below /v1, Ollama's below /api"
        return f"there is no {shown}{hint}"

    def _with_cors(self, scope: Scope, send: Send) -> Send:
        origins = self._runtime.config.server.cors_origins
        origin = header(scope["headers"], b"origin") if origins else None
        if origin is None or ("*" not in origins and origin not in origins):
            return send
        wanted = header(scope["headers"], b"access-control-request-headers")
        extra = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-methods", b"GET, POST, DELETE, HEAD, OPTIONS"),
            (b"access-control-allow-headers", (wanted or "authorization, content-type").encode("latin-1")),
            (b"access-control-expose-headers", b"x-request-id, x-switchyard-model, x-switchyard-provider, "
             b"x-switchyard-fallback, x-switchyard-attempts, x-switchyard-degraded, retry-after, x-should-retry, "
             b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
             b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"),
            (b"access-control-max-age", b"600"),
            (b"vary", b"origin"),
        ]  # fmt: skip

        async def with_headers(message: Any) -> None:  # an ASGI message
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        return with_headers


def dialect(path: str) -> Wire:
    """Whose error shape a caller of this path understands."""
    return OLLAMA if ollama_door.is_ours(path) else OPENAI
