"""The live tail in a real browser when its stream comes and goes: the test says what the stream says and when, or
cuts a real one."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import Serve
from tests.pages import browser as browsers
from tests.pages.browser import PATIENCE, Visit, visit
from tests.simulators import router as routers
from tests.simulators.router import RouterProcess
from tests.simulators.server import Simulator

STREAMS: Final = """
window.streams = [];
window.EventSource = class extends EventTarget {
  static CLOSED = 2;
  readyState = 1;
  constructor() { super(); window.streams.push(this); }
  close() { this.readyState = 2; }
  say(name, data) { this.dispatchEvent(new MessageEvent(name, { data })); }
};
"""
"""In place of the browser's: they say what the test says."""
HIDE: Final = """(hidden) => {
  Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture(scope="module")
def router(module_serve: Serve, cloud: Simulator, local: Simulator) -> RouterProcess:
    return module_serve(routers.providers(cloud.url, local.url), routers.UNHURRIED)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as opened:
        yield opened


class Tail:
    """The live tail of a page whose streams are the test's."""

    def __init__(self, seen: Visit, router: RouterProcess) -> None:
        seen.page.add_init_script(STREAMS)
        self._seen = seen
        self.page = seen.sign_in(router.admin_token)
        expect(self.page.locator("#live")).to_have_text("Live")

    def opens(self) -> None:
        self.say("open", "")
        self.say("state", json.dumps({"stale": False}))

    def say(self, name: str, data: str) -> None:
        """By the stream that was opened last."""
        self.page.evaluate("([name, data]) => streams.at(-1).say(name, data)", [name, data])

    def tell(self, *calls: tuple[str, str]) -> None:
        for name, status in calls:
            self.say("row", row(name, status))

    def tell_all(self, *calls: tuple[str, str]) -> None:
        self.say("rows", "\n".join(row(name, status) for name, status in calls))

    def expect(self, *calls: tuple[str, str]) -> None:
        expect(self.page.locator("#tail-rows tr")).to_have_text([f"{name} {status}" for name, status in calls])

    def refresh(self) -> None:
        self._seen.refresh()

    @property
    def streams(self) -> Sequence[int]:
        """Their states; 2: closed."""
        found: Sequence[int] = self.page.evaluate("streams.map((stream) => stream.readyState)")
        return found


def row(name: str, status: str) -> str:
    """Calls are named by the number of their second."""
    return f'<tr id="r-{name}" data-at="{name}"><td>{name} {status}</td></tr>'


RUNNING, ENDED = "Running", "200 OK"


def test_a_stream_says_what_stands_there_and_a_page_of_before_does_not_come_back(
    router: RouterProcess, browser: Browser
) -> None:
    with visit(browser, router.url) as seen:
        tail = Tail(seen, router)
        tail.opens()
        old = row("9", RUNNING)
        tail.page.evaluate("(row) => document.querySelector('#tail-rows').insertAdjacentHTML('beforeend', row)", old)
        tail.refresh()  # brings the page's rows, as long as the stream has said none
        expect(tail.page.locator("#r-9")).to_have_count(0)
        tail.tell_all(("2", RUNNING), ("1", RUNNING))
        tail.expect(("2", RUNNING), ("1", RUNNING))
        tail.tell(("3", RUNNING), ("1", ENDED))
        tail.expect(("3", RUNNING), ("2", RUNNING), ("1", ENDED))
        tail.refresh()
        tail.expect(("3", RUNNING), ("2", RUNNING), ("1", ENDED))
        # Told anew while it is open: some calls were passed over.
        tail.tell_all(("4", RUNNING), ("3", ENDED), ("1", ENDED))
        tail.tell(("4", ENDED))
        tail.expect(("4", ENDED), ("3", ENDED), ("1", ENDED))
        assert seen.blame() == []


def test_after_a_silence_the_tail_is_what_the_new_stream_says(router: RouterProcess, browser: Browser) -> None:
    with visit(browser, router.url) as seen:
        seen.page.clock.install()
        tail = Tail(seen, router)
        tail.opens()
        tail.tell_all(("2", RUNNING), ("1", ENDED))
        tail.page.clock.run_for(1000)
        tail.expect(("2", RUNNING), ("1", ENDED))
        tail.page.clock.fast_forward(50_000)  # in which nothing was heard
        tail.page.clock.run_for(2000)
        tail.page.wait_for_function("streams.length > 1")
        assert tail.streams == [2, 1]
        tail.opens()
        tail.tell_all(("4", RUNNING), ("3", ENDED), ("2", ENDED), ("1", ENDED))
        tail.page.clock.run_for(1000)
        tail.expect(("4", RUNNING), ("3", ENDED), ("2", ENDED), ("1", ENDED))


def test_a_tab_that_is_shown_again_shows_what_its_new_stream_says(router: RouterProcess, browser: Browser) -> None:
    with visit(browser, router.url) as seen:
        tail = Tail(seen, router)
        tail.opens()
        tail.tell_all(("1", RUNNING))
        tail.expect(("1", RUNNING))
        for late in (False, True):  # the refresh comes before what the stream says, or after it
            tail.page.evaluate(HIDE, arg=True)
            assert set(tail.streams) == {2}
            tail.page.evaluate(HIDE, arg=False)
            assert tail.streams[-1] == 1
            tail.opens()
            if not late:
                tail.refresh()
                expect(tail.page.locator("#r-1")).to_have_count(0)  # as long as the stream has said nothing
            tail.tell_all(("2", RUNNING), ("1", ENDED))
            if late:
                tail.refresh()
            tail.expect(("2", RUNNING), ("1", ENDED))
        assert seen.blame() == []


def test_a_pause_outlives_its_stream_and_no_end_is_lost_in_it(router: RouterProcess, browser: Browser) -> None:
    with visit(browser, router.url) as seen:
        tail = Tail(seen, router)
        tail.opens()
        tail.tell_all(("100", RUNNING), ("99", RUNNING))
        tail.expect(("100", RUNNING), ("99", RUNNING))
        tail.page.click("#pause")
        many = [(str(number), ENDED) for number in range(10, 70)]
        tail.tell(("99", ENDED), *many)
        expect(tail.page.locator("#pause-note")).to_have_text("Paused: 60 new")
        tail.expect(("100", RUNNING), ("99", RUNNING))
        tail.page.click("#pause")
        newest = [(str(number), ENDED) for number in range(69, 21, -1)]
        tail.expect(("100", RUNNING), ("99", ENDED), *newest)

        tail.page.click("#pause")
        tail.tell(("100", RUNNING))
        tail.page.evaluate(HIDE, arg=True)
        tail.page.evaluate(HIDE, arg=False)
        tail.opens()
        tail.tell_all(("102", RUNNING), ("101", RUNNING), ("100", ENDED))
        tail.tell(("102", ENDED), *many)
        expect(tail.page.locator("#pause-note")).to_have_text("Paused: 14 new")  # 102, 101 and 10 to 21
        tail.expect(("100", RUNNING), ("99", ENDED), *newest)
        tail.page.click("#pause")
        tail.expect(("102", ENDED), ("101", RUNNING), ("100", ENDED), *newest[:47])
        assert seen.blame() == []


def begun(router: RouterProcess, page: Page) -> tuple[http.client.HTTPConnection, Any]:
    """A call that goes on until its caller leaves, and its row."""
    body = {"model": "cloud/endless-slow@gaps", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    caller = http.client.HTTPConnection("127.0.0.1", router.port, timeout=PATIENCE / 1000)
    caller.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": f"Bearer {router.key}"})
    return caller, page.locator(f"#r-{caller.getresponse().headers['x-request-id']}")


def test_what_ended_unseen_has_ended_when_the_tab_is_shown_again(router: RouterProcess, browser: Browser) -> None:
    with visit(browser, router.url) as seen:
        page = seen.sign_in(router.admin_token)
        caller, row = begun(router, page)
        expect(row).to_contain_text("Running")
        page.evaluate(HIDE, arg=True)
        caller.close()
        page.evaluate(HIDE, arg=False)
        expect(row).to_contain_text("Client left")
        assert seen.blame() == []
