"""The pages' addresses. Plain ASGI: `Pages` answers what `owns` says is its."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from providers.errors import MethodNotAllowed, StoreUnavailable, SwitchyardError, TooLarge
from router.admin.pages.assets import BELOW, Assets
from router.admin.pages.live import Tail, TeamFeed, Watch
from router.admin.pages.overview_page import Current, Describe, Facts, Sights
from router.admin.pages.render import Look, Renderer, chosen, look_of
from router.admin.pages.security import (
    PATH,
    Pairs,
    ours,
    page_headers,
    preferences_cookie,
    session_cookie,
    session_name,
    sessions_of,
    takes_gzip,
)
from router.admin.pages.sessions import LONGEST, Sessions, Viewer
from router.admin.pages.signin import SignIn, SignInRefused, read_form
from router.http import ClientGone, Receive, Scope, Send, header, reply, require
from router.keys import Keys
from router.overview import Overviews

HTML: Final = b"text/html; charset=utf-8"
HEARTBEAT: Final = 15.0
"""Seconds after which an open stream says that it lives."""
TICK: Final = 0.25
"""Seconds until a stream sees that the router is ending."""
CHECKED: Final = 1.0
"""Seconds after which a stream looks again whether its viewer may still see it."""
WRITE_STALL: Final = 30.0
"""Seconds that a viewer may take nothing before his stream ends."""
RETRY_SECONDS: Final = 5
WORTH_PACKING: Final = 8192
"""Bytes of a page from which on it is sent packed."""

_log = logging.getLogger("switchyard.pages")


class Asked(NamedTuple):
    """One request of a browser. address: the caller's, behind proxies."""

    scope: Scope
    receive: Receive
    send: Send
    path: str
    look: Look
    https: bool
    address: str
    cookie: str
    """The name of a session's cookie."""
    sessions: tuple[str, ...]
    """The secrets in its cookies of that name."""


Handler = Callable[[Asked], Awaitable[None]]


class Setup(NamedTuple):
    """What the pages need of the router. draining: whether it is ending."""

    keys: Keys
    describe: Describe
    current: Current
    facts: Callable[[], Facts]
    rate: Callable[[], float | None]
    draining: Callable[[], bool]
    version: str


class Pages:
    """The pages of one worker."""

    def __init__(self, setup: Setup, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys = setup.keys
        self._assets = Assets()
        self._renderer = Renderer(self._assets, setup.version, keys.clock)
        self._sessions = Sessions(keys, monotonic=monotonic)
        self._sign_in = SignIn(keys, self._sessions)
        overviews = Overviews(keys, setup.rate)
        self._sights = Sights(overviews, setup.describe, setup.current, setup.facts, monotonic)
        self._tail = Tail(TeamFeed(keys, monotonic), overviews.newest)
        self._rate = setup.rate
        self._draining = setup.draining
        self._monotonic = monotonic
        self._routes: Mapping[str, tuple[tuple[str, ...], Handler]] = {
            PATH: (_READ, self._page),
            f"{PATH}/overview": (_READ, self._fragment),
            f"{PATH}/live": (_READ, self._live),
            f"{PATH}/sign-in": (("POST",), self._signing_in),
            f"{PATH}/sign-out": (("POST",), self._signing_out),
            f"{PATH}/preferences": (("POST",), self._preferences),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        https = scope.get("scheme") == "https"
        client = scope.get("client")
        cookie = session_name(self._keys.pepper_check(), https=https)
        asked = Asked(
            scope,
            receive,
            send,
            scope["path"].rstrip("/"),
            look_of(headers),
            https,
            str(client[0]) if client else "",
            cookie,
            sessions_of(headers, cookie),
        )
        try:
            await self._dispatch(asked)
        except ClientGone:
            raise
        except StoreUnavailable:
            extra = [(b"retry-after", b"%d" % RETRY_SECONDS)]
            if asked.path == PATH:
                extra.append((b"refresh", b"%d" % RETRY_SECONDS))  # a screen on a wall comes back by itself
            await self._message(asked, 503, "store_down", extra)
        except TooLarge:
            await self._message(asked, 413, "too_large", [(b"connection", b"close")])
        except MethodNotAllowed as error:
            await self._message(asked, 405, "method_not_allowed", [(b"allow", error.allow.encode())])
        except SwitchyardError as error:
            _log.warning("a page could not be shown: %s", error.code)
            await self._message(asked, error.status, "failed")
        except Exception:  # noqa: BLE001 - a bug of ours: a clean page for the caller, the traceback for the log
            _log.exception("a page failed inside the router")
            await self._message(asked, 500, "failed")

    async def _dispatch(self, asked: Asked) -> None:
        method = asked.scope["method"]
        if asked.path.startswith(BELOW):
            require(method, *_READ)
            await self._static(asked)
            return
        found = self._routes.get(asked.path)
        if found is None:
            await self._message(asked, 404, "not_found")
            return
        allowed, handle = found
        if method in _READ and method not in allowed:
            # Enter in the address bar, after a form was refused.
            await self._redirect(asked, [])
            return
        require(method, *allowed)
        if method == "POST" and not ours(asked.scope["headers"]):
            if asked.path == f"{PATH}/sign-in":
                await self._sign_in_page(asked, 403, "cross_site")
            else:
                await self._message(asked, 403, "cross_site")
            return
        await handle(asked)

    # --- pages

    async def _page(self, asked: Asked) -> None:
        viewer = await self._viewer(asked)
        if viewer is not None:
            await self._overview(asked, viewer, "overview.html", "own.html")
            return
        extra: Pairs = []
        if asked.sessions:
            extra.append(session_cookie(asked.cookie, "", 0, https=asked.https))
        elif header(asked.scope["headers"], b"sec-fetch-site") == "cross-site":
            # A link on another site: the browser keeps the cookie back once, and brings it when the page asks again.
            extra.append((b"refresh", b"0"))
        self._sights.warm()
        await self._sign_in_page(asked, 200, None, extra=extra)

    async def _fragment(self, asked: Asked) -> None:
        viewer = await self._viewer(asked)
        if viewer is None:
            await self._reply(asked, 401, b"<p>401</p>", HTML, [(b"hx-redirect", PATH.encode())])
        else:
            await self._overview(asked, viewer, "overview_body.html", "own_body.html")

    async def _overview(self, asked: Asked, viewer: Viewer, whole: str, own: str) -> None:
        states = await self._sights.states()
        away = states.router.store is not None
        told: dict[str, object]
        if viewer.admin or viewer.key is None:
            board, stale = await self._sights.board(away=away)
            zone = _zone(board)
            told = {"board": board, "providers": states.providers, "gpu": states.gpu, "router": states.router}
        else:
            mine, stale = await self._sights.own(viewer.key, away=away)
            zone = _zone(mine)
            told = {"own": mine, "router": states.for_holders}
        template = whole if viewer.admin else own
        await self._html(asked, 200, template, {**told, "stale": stale}, viewer=viewer, zone=zone)

    async def _sign_in_page(
        self, asked: Asked, status: int, problem: str | None, retry_after: int | None = None, extra: Sequence[Any] = ()
    ) -> None:
        more = [*extra, *([(b"retry-after", b"%d" % retry_after)] if retry_after is not None else [])]
        await self._html(asked, status, "sign_in.html", {"problem": problem, "retry_after": retry_after}, more)

    # --- forms

    async def _signing_in(self, asked: Asked) -> None:
        try:
            made = await self._sign_in.open(asked.scope["headers"], asked.receive, asked.address)
        except SignInRefused as error:
            extra = [(b"connection", b"close")] if error.status == 413 else []
            await self._sign_in_page(asked, error.status, error.problem, error.retry_after, extra)
            return
        except StoreUnavailable:
            await self._sign_in_page(asked, 503, "store_down", RETRY_SECONDS)
            return
        for old in asked.sessions:
            await self._sessions.close(old)
        self._sights.warm()
        await self._redirect(asked, [session_cookie(asked.cookie, made, LONGEST, https=asked.https)])

    async def _signing_out(self, asked: Asked) -> None:
        closed = [await self._sessions.close(secret) for secret in asked.sessions]
        gone = session_cookie(asked.cookie, "", 0, https=asked.https)
        if all(closed):
            await self._redirect(asked, [gone])
        else:
            await self._sign_in_page(asked, 503, "sign_out_late", extra=[gone])

    async def _preferences(self, asked: Asked) -> None:
        headers = asked.scope["headers"]
        form = await read_form(headers, asked.receive)
        look = chosen(headers, form.get("lang", asked.look.lang_choice), form.get("theme", asked.look.theme))
        await self._redirect(asked, [preferences_cookie(look.cookie, https=asked.https)])

    # --- files

    async def _static(self, asked: Asked) -> None:
        asset = self._assets.find(asked.path)
        if asset is None:
            await self._message(asked, 404, "not_found")
            return
        extra: Pairs = [(b"cache-control", b"public, max-age=31536000, immutable"), (b"vary", b"accept-encoding")]
        body = asset.data
        if asset.packed is not None and takes_gzip(asked.scope["headers"]):
            body = asset.packed
            extra.append((b"content-encoding", b"gzip"))
        await self._reply(asked, 200, body, asset.content_type, extra, private=False)

    # --- the live tail

    async def _live(self, asked: Asked) -> None:
        found = await self._found(asked)
        if found is None:
            await self._reply(asked, 401, b"", HTML)
            return
        viewer, secret = found
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"x-accel-buffering", b"no"),
            *page_headers(https=asked.https),
        ]
        if asked.scope["method"] == "HEAD" or self._draining():
            await asked.send({"type": "http.response.start", "status": 200, "headers": headers})
            await asked.send(
                {"type": "http.response.body", "body": _event("end", "draining") if self._draining() else b""}
            )
            return
        with self._tail.watch(None if viewer.admin or viewer.key is None else viewer.key.id) as watch:
            await asked.send({"type": "http.response.start", "status": 200, "headers": headers})
            # Whoever takes nothing is let go; the client's leaving cancels this task (see router.app).
            try:
                await self._write(asked, b"retry: 3000\n" + _state(watch.stale))
                await self._follow(asked, viewer, secret, watch)
            except TimeoutError:
                return
            await self._write(asked, b"", more=False)

    async def _follow(self, asked: Asked, viewer: Viewer, secret: str, watch: Watch) -> None:
        stale = watch.stale
        spoke = checked = self._monotonic()
        while True:
            newest, rows = await watch.next(TICK)
            if self._draining():
                await self._write(asked, _event("end", "draining"))
                return
            now = self._monotonic()
            if now - checked >= CHECKED:
                try:
                    still, checked = await self._still(asked, viewer, secret)
                except StoreUnavailable:
                    # Nobody can say any more whether he may: he stays where he is, and comes again.
                    await self._write(asked, _event("end", "away"))
                    return
                if not still:
                    await self._write(asked, _event("end", "signed-out"))
                    return
            if watch.behind:
                return
            news = b""
            if watch.stale != stale or watch.skipped:
                stale = watch.stale
                news += _state(stale, skipped=watch.skipped)
                watch.skipped = False
            zone = await self._zone(viewer) if rows or newest is not None else ""
            if newest is not None:
                told = {"requests": newest}
                html = await self._renderer.render(
                    "tail_rows.html", asked.look, told, viewer=viewer, zone=zone, rate=self._rate()
                )
                news += _event("rows", html.decode())
            for row in rows:
                made = self._renderer.row(row, look=asked.look, viewer=viewer, zone=zone, rate=self._rate())
                news += _event("row", made)
            if not news and now - spoke >= HEARTBEAT:
                news = _state(stale)  # no comment: pages do not see those
            if news:
                spoke = now
                await self._write(asked, news)

    async def _still(self, asked: Asked, viewer: Viewer, secret: str) -> tuple[bool, float]:
        """Whether he may still see the stream, and when that was asked (monotonic): his streams share the answer.
        Raises StoreUnavailable."""
        now, at = await self._sessions.lately(secret, asked.address)
        return now is not None and now.admin == viewer.admin, at

    async def _zone(self, viewer: Viewer) -> str:
        """The time zone of the page that the rows go to."""
        key = None if viewer.admin else viewer.key
        return _zone(
            self._sights.last(key) or (await (self._sights.board() if key is None else self._sights.own(key)))[0]
        )

    async def _write(self, asked: Asked, data: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(WRITE_STALL):
            await asked.send({"type": "http.response.body", "body": data, "more_body": more})

    # --- small parts

    async def _viewer(self, asked: Asked) -> Viewer | None:
        found = await self._found(asked)
        return None if found is None else found[0]

    async def _found(self, asked: Asked) -> tuple[Viewer, str] | None:
        """Who asks, and the secret of his session."""
        away: StoreUnavailable | None = None
        for secret in asked.sessions:
            try:
                viewer = await self._sessions.find(secret, asked.address)
            except StoreUnavailable as error:
                away = error
                continue
            if viewer is not None:
                return viewer, secret
        if away is not None:
            raise away
        return None

    async def _html(
        self,
        asked: Asked,
        status: int,
        template: str,
        told: Mapping[str, object],
        extra: Sequence[Any] = (),
        *,
        viewer: Viewer | None = None,
        zone: str = "UTC",
    ) -> None:
        body = await self._renderer.render(template, asked.look, told, viewer=viewer, zone=zone, rate=self._rate())
        if len(body) >= WORTH_PACKING and takes_gzip(asked.scope["headers"]):
            # No secret of the viewer is in it that a length could tell; level 1 makes a tenth of it in a millisecond.
            body = await asyncio.to_thread(gzip.compress, body, 1, mtime=0)
            extra = [*extra, (b"content-encoding", b"gzip")]
        await self._reply(asked, status, body, HTML, extra)

    async def _message(self, asked: Asked, status: int, code: str, extra: Sequence[Any] = ()) -> None:
        await self._html(asked, status, "message.html", {"status": status, "code": code}, extra)

    async def _redirect(self, asked: Asked, extra: Sequence[Any]) -> None:
        await self._reply(asked, 303, b"", HTML, [(b"location", PATH.encode()), *extra])

    async def _reply(
        self,
        asked: Asked,
        status: int,
        body: bytes,
        content_type: bytes,
        extra: Sequence[Any] = (),
        *,
        private: bool = True,
    ) -> None:
        headers = [*page_headers(https=asked.https, private=private), *extra]
        await reply(asked.send, status, body, content_type, headers)


_READ: Final = ("GET", "HEAD")


def _zone(numbers: Any) -> str:
    return "UTC" if numbers is None else str(numbers.zone)


def _event(name: str, data: str) -> bytes:
    """An event of server-sent events; every line of the data is one of its own."""
    lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
    return f"event: {name}\n{lines}\n".encode()


def _state(stale: bool, /, *, skipped: bool = False) -> bytes:
    return _event("state", json.dumps({"stale": stale} | ({"skipped": True} if skipped else {})))
