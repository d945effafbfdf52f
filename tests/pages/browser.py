"""A real browser in front of a router's pages: Debian's Chromium, driven by Playwright. Everything that a page may be
blamed for is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

from tests.clients.environments import environment

CHROMIUM: Final = "/usr/bin/chromium"
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE: Final = 60_000
"""Milliseconds that anything may take on a busy machine."""
RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
_REPORTS: Final = """
window.reports = [];
addEventListener("securitypolicyviolation", (event) => {
  window.reports.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
window.shifts = [];
{
  const box = (rect) => `(${[rect.x, rect.y, rect.width, rect.height].join(" ")})`;
  const name = (node) => (node?.outerHTML ?? node?.parentElement?.outerHTML ?? "gone").slice(0, 200);
  const moved = (source) => `${box(source.previousRect)} to ${box(source.currentRect)}: ${name(source.node)}`;
  const keep = (list) => {
    for (const shift of list)
      if (!shift.hadRecentInput) window.shifts.push(`${shift.value} ${shift.sources.map(moved).join("; ")}`);
  };
  const observer = new PerformanceObserver((list) => keep(list.getEntries()));
  observer.observe({ type: "layout-shift" });
  window.painted = async () => {
    for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
    keep(observer.takeRecords());
  };
}
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS), timeout=2 * PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


@cache
def axe() -> str:
    """The source of axe-core."""
    packages = environment("axe").parents[1] / "lib"
    (found,) = packages.glob("python*/site-packages/axe_playwright_python/axe.min.js")
    return Path(found).read_text("utf-8")


@dataclass
class Visit:
    """A page in a context of its own, on a router at `url`."""

    page: Page
    url: str
    console: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    def sign_in(self, secret: str) -> Page:
        self.page.goto(f"{self.url}/admin")
        self.page.fill("#secret", secret)
        self.page.press("#secret", "Enter")
        self.arrive()
        return self.page

    def arrive(self) -> None:
        """Wait for the overview and its scripts."""
        self.page.wait_for_selector("#stat-requests")
        self.page.wait_for_load_state("load")

    def refresh(self) -> None:
        """As the page does by itself every few seconds. Comes back when what came is in place."""
        self.page.evaluate(
            """() => new Promise((done) => {
              const settled = () => requestAnimationFrame(() => done());
              document.body.addEventListener("htmx:afterSettle", settled, { once: true });
              htmx.trigger("#overview", "refresh");
            })"""
        )

    def violations(self) -> list[str]:
        """What axe finds: rule and place."""
        found = self.page.evaluate(
            "async (rules) => (await axe.run(document, { runOnly: rules })).violations",
            list(RULES),
        )
        return [
            f"{one['id']}: {node['html'][:200]} {node.get('failureSummary')}" for one in found for node in one["nodes"]
        ]

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector).strip()

    def blame(self) -> list[str]:
        """Everything that the page should not have said."""
        return [*self.console, *self.reports, *self.page.evaluate("window.reports ?? []")]

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.context.close()


def visit(
    browser: Browser, url: str, *, lang: str = "en", theme: str = "light", axe_too: bool = False, **more: Any
) -> Visit:
    """A fresh visitor whose browser prefers this language and theme. The page's own Content-Security-Policy holds; axe
    is put in from outside it."""
    context: BrowserContext = browser.new_context(
        locale={"en": "en-GB", "zh": "zh-CN"}[lang],
        color_scheme="dark" if theme == "dark" else "light",
        viewport=more.pop("viewport", {"width": 1440, "height": 900}),
        **more,
    )
    context.set_default_timeout(PATIENCE)
    context.add_init_script(_REPORTS)
    if axe_too:
        context.add_init_script(axe())
    page = context.new_page()
    found = Visit(page, url)

    def heard(message: ConsoleMessage) -> None:
        found.console.append(f"{message.type}: {message.text} {json.dumps(message.location)}")

    def asked(dialog: Dialog) -> None:
        found.console.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", heard)
    page.on("pageerror", lambda error: found.console.append(f"pageerror: {error}"))
    page.on("dialog", asked)
    return found
