"""Pages from templates: read and compiled once, when the first page is asked for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from router.admin.pages import texts
from router.admin.pages.assets import Assets
from router.admin.pages.security import PREFERENCES, cookies
from router.admin.pages.sessions import Viewer
from router.http import Headers, header
from router.overview_rows import RequestRow

TEMPLATES: Final = Path(__file__).parent / "templates"
AUTO: Final = "auto"
THEMES: Final = (AUTO, "light", "dark")
LANGUAGES: Final = (AUTO, "en", "zh")
REFRESH_SECONDS: Final = 5
MOST_ROWS: Final = 1000
"""Rows that are kept as they were made: some hundred kilobytes."""
TURN: Final = 0.001
"""Seconds of rendering after which others have their turn."""


@dataclass(frozen=True, slots=True)
class Look:
    """How somebody wants the pages. lang: `en` or `zh`; lang_choice and theme may be `auto`."""

    lang: str
    lang_choice: str
    theme: str

    @property
    def cookie(self) -> str:
        return f"{self.lang_choice}.{self.theme}"


def look_of(headers: Headers) -> Look:
    """The look that was chosen before, else what the browser prefers."""
    found = cookies(headers, PREFERENCES)
    lang, _, theme = found[0].partition(".") if found else (AUTO, "", AUTO)
    return chosen(headers, lang, theme)


def chosen(headers: Headers, lang: str, theme: str) -> Look:
    """What is neither a language nor a theme counts as `auto`."""
    lang = lang if lang in LANGUAGES else AUTO
    theme = theme if theme in THEMES else AUTO
    spoken = texts.preferred(header(headers, b"accept-language") or "") if lang == AUTO else lang
    return Look(spoken, lang, theme)


@lru_cache(maxsize=64)
def _helpers(lang: str, zone: str, rate: float | None) -> Mapping[str, Any]:
    return texts.helpers(lang, zone, rate)


class Renderer:
    """The templates with what all of them are told."""

    def __init__(self, assets: Assets, version: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            cache_size=-1,
        )
        environment.globals |= {"asset": assets.url, "version": version, "refresh_seconds": REFRESH_SECONDS}
        self._rows: OrderedDict[tuple[object, ...], Markup] = OrderedDict()
        self._templates = {name: environment.get_template(name) for name in environment.list_templates(["html"])}

    async def render(
        self,
        name: str,
        look: Look,
        told: Mapping[str, object],
        *,
        viewer: Viewer | None = None,
        zone: str = "UTC",
        rate: float | None = None,
    ) -> bytes:
        """zone: IANA name. rate: CNY for one USD. A long page is made piece by piece: calls go on meanwhile."""
        context = {
            "lang": look.lang,
            "lang_choice": look.lang_choice,
            "theme": look.theme,
            "now": self._clock(),
            "viewer": viewer,
            "row_html": None if viewer is None else partial(self.row, look=look, viewer=viewer, zone=zone, rate=rate),
            **_helpers(look.lang, zone, rate),
            **told,
        }
        parts: list[str] = []
        turn = time.monotonic() + TURN
        for part in self._templates[name].generate(context):
            parts.append(part)
            if time.monotonic() > turn:
                await asyncio.sleep(0)
                turn = time.monotonic() + TURN
        return "".join(parts).encode("utf-8", "replace")

    def row(self, row: RequestRow, *, look: Look, viewer: Viewer, zone: str, rate: float | None) -> Markup:
        """A row of the live requests. What was made is kept: most of a page's rows stood in the one before."""
        name = (row, look.lang, viewer.admin, zone, rate)
        made = self._rows.get(name)
        if made is None:
            told = {"row": row, "viewer": viewer, **_helpers(look.lang, zone, rate)}
            made = Markup(self._templates["request_row.html"].render(told))  # noqa: S704 - autoescaped
            self._rows[name] = made
            if len(self._rows) > MOST_ROWS:
                self._rows.popitem(last=False)
        return made
