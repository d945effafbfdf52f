"""The pages in a real browser, over a running router with simulated providers."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.conftest import Serve
from tests.pages import browser as browsers
from tests.pages.browser import PATIENCE, visit
from tests.simulators import router as routers
from tests.simulators.client import OPENAI, Client
from tests.simulators.router import RouterProcess
from tests.simulators.server import Simulator
from tests.simulators.waiting import until

PRICES: Final = {
    "prices": [
        {
            "provider": "cloud",
            "currency": "usd",
            "source": "https://example.com/prices",
            "looked_at": "2026-11-22",
            "models": {"*": {"input": 1000, "output": 2000}},
        }
    ]
}
"""7 tokens in and 3 out, as the simulator counts, cost 0.013 dollars."""
USD_CNY: Final = 7
SCRIPT: Final = "<img src=x onerror=window.struck=1>"
MODEL: Final = f"<script>window.struck=1</script>{SCRIPT}"
LONG: Final = "مفتاح-" + "very-long-name-" * 5 + "🤖"
WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {"lang": "en", "title": "Overview", "full": "At its limit", "down": "Down", "live": "Live", "pause": "Pause"},
    "zh": {"lang": "zh-CN", "title": "总览", "full": "已达上限", "down": "不可用", "live": "实时", "pause": "暂停"},
}


@dataclass(frozen=True)
class House:
    router: RouterProcess
    admin: Client
    keys: Mapping[str, tuple[str, str]]
    """Id and credential by name."""

    def client(self, name: str) -> Client:
        return Client(self.router.port, self.keys[name][1])

    def usage(self, **query: str) -> Any:
        """The ledger's sums of today."""
        asked = "&".join(f"{name}={value}" for name, value in {"since": "today", **query}.items())
        return self.admin.request("GET", f"/admin/api/usage?{asked}").json["total"]


@pytest.fixture(scope="module")
def house(module_serve: Serve, cloud: Simulator, local: Simulator, tmp_path_factory: pytest.TempPathFactory) -> House:
    """A router after some calls: good ones, a fallback, a failed one, refused ones, and names nobody should trust."""
    prices = tmp_path_factory.mktemp("prices") / "own.yaml"
    prices.write_text(json.dumps(PRICES))
    config = routers.providers(cloud.url, local.url)
    config["models"]["failing"] = {"targets": ["cloud/500@pages"], "fallback": []}
    router = module_serve(config | {"prices": {"file": str(prices), "usd_cny": USD_CNY}}, routers.UNHURRIED)
    admin = Client(router.port, router.admin_token)
    noon = {"timezone": f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"}  # where today neither began just now nor ends soon
    assert admin.request("PATCH", "/admin/api/teams/default", noon).status == 200
    keys: dict[str, tuple[str, str]] = {}
    for name, limits in (
        ("used-up", {"max_requests": 2}),
        ("holder", {"budget": {"day": "5usd"}, "rpm": 600}),
        (SCRIPT, {"rpm": 100}),
        (LONG, {}),
    ):
        made = admin.request("POST", "/admin/api/keys", {"name": name, "limits": limits})
        assert made.status == 201, made
        keys[name] = (made.json["id"], made.json["key"])
    found = House(router, admin, keys)
    said = []
    for name, model in (
        *(("used-up", "chat"),) * 3,
        *(("holder", "chat"),) * 2,
        (SCRIPT, f"cloud/{MODEL}"),
        (LONG, f"cloud/{LONG}"),
        ("holder", "down/nobody"),  # a fallback answers
        ("holder", "failing"),
    ):
        said.append(found.client(name).ask(OPENAI, model, stream=True, max_tokens=10).status)
    assert said == [200, 200, 429, 200, 200, 200, 200, 200, 502], said
    until(lambda: found.usage()["calls"] == 8)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as opened:
        yield opened


def yuan(micro: int) -> str:
    return f"¥{micro * USD_CNY / 1_000_000:.2f}"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_numbers_are_the_ledgers_in_each_language_and_theme(
    house: House, browser: Browser, lang: str, theme: str
) -> None:
    words = WORDS[lang]
    with visit(browser, house.router.url, lang=lang, theme=theme, axe_too=True) as seen:
        page = seen.page
        page.goto(f"{seen.url}/admin")
        assert seen.violations() == []
        seen.sign_in(house.router.admin_token)
        expect(page.locator("#live")).to_have_text(words["live"])
        assert page.get_attribute("html", "lang") == words["lang"]
        assert words["title"] in page.title()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(part) for part in re.findall(r"\d+", background)[:3]) < 200) is (theme == "dark"), background

        ledger = house.usage()
        expect(page.locator("#stat-requests")).to_have_text(f"{ledger['calls']:,}", timeout=PATIENCE)
        assert seen.text("#stat-tokens-in") == str(ledger["tokens_in"])
        assert seen.text("#stat-tokens-out") == str(ledger["tokens_out"])
        assert seen.text("#stat-fallbacks") == str(ledger["fallbacks"])
        assert seen.text("#stat-errors").rstrip("%") == f"{ledger['errors'] / ledger['calls'] * 100:.0f}"
        expect(page.locator("#stat-refused")).to_have_text("1")  # refusals are counted beside the calls
        cost = seen.text("#stat-cost")
        assert (
            f"${ledger['cost_micro_usd'] / 1_000_000:.6f}" in cost
            or f"${ledger['cost_micro_usd'] / 1_000_000:.4f}" in cost
        )
        assert yuan(ledger["cost_micro_usd"]) in cost, cost
        columns = page.evaluate(
            """() => ["#chart-requests", "#chart-tokens", "#chart-cost"].map((chart) => {
              const cells = [...document.querySelectorAll(`${chart} tbody td`)];
              return cells.reduce((sum, cell) => sum + Number(cell.dataset.v), 0);
            })"""
        )
        assert columns[0] == ledger["calls"] + ledger["errors"]
        assert columns[1] == ledger["tokens_in"] + ledger["tokens_out"]
        factor = USD_CNY if lang == "zh" else 1
        assert columns[2] == pytest.approx(ledger["cost_micro_usd"] * factor / 1_000_000)

        assert words["full"] in seen.text(f'[data-key="{house.keys["used-up"][0]}"]')
        expect(page.locator(".plot canvas")).to_have_count(3)
        for part in ("tail", "keys", "errors", "system"):
            assert page.locator(f"#{part}").is_visible()
        assert seen.violations() == []
        assert seen.blame() == []


def test_names_of_others_are_inert_and_push_nothing_aside(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url) as seen:
        page = seen.sign_in(house.router.admin_token)
        assert SCRIPT[:30] in page.inner_text("#keys")
        assert MODEL[:30] in page.inner_text("#tail-rows")
        for width in (360, 1440, 3840):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            spilled = page.evaluate(
                """() => [...document.querySelectorAll(".card, .stat, .provider, .line, .bar")].filter((one) => {
                  const box = one.getBoundingClientRect();
                  return box.right > innerWidth + 1 || box.left < 0 || box.height > 900;
                }).map((one) => one.className + one.id)"""
            )
            assert [one for one in spilled if "rows" not in one] == [], width
        assert page.evaluate("window.struck") is None
        assert seen.blame() == []


def test_requests_appear_as_they_happen(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url) as seen:
        page = seen.sign_in(house.router.admin_token)
        expect(page.locator("#live")).to_have_text("Live")
        assert house.client("holder").ask(OPENAI, "cloud/seen-at-once", stream=True, max_tokens=10).status == 200
        row = page.locator("#tail-rows tr", has_text="seen-at-once")
        expect(row).to_contain_text("200 OK", timeout=PATIENCE)
        expect(row).to_contain_text("cloud")
        expect(row).to_contain_text("$0.01")
        assert page.locator("#tail-rows tr").first.text_content() == row.text_content()

        # Paused, it waits; going on, it shows what came.
        page.click("#pause")
        assert house.client("holder").ask(OPENAI, "cloud/seen-later", stream=True, max_tokens=10).status == 200
        expect(page.locator("#pause-note")).to_have_text("Paused: 1 new", timeout=PATIENCE)
        seen.refresh()
        assert page.locator("#tail-rows tr", has_text="seen-later").count() == 0
        page.click("#pause")
        expect(page.locator("#tail-rows tr", has_text="seen-later")).to_have_count(1)
        assert seen.blame() == []


def test_a_pause_counts_what_comes_also_beyond_what_is_shown(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url) as seen:
        rows = [f'<tr id="r-{number:024x}" data-at="{number}"><td>{number}</td></tr>' for number in range(120)]
        said = ["retry: 200\n\n"]
        seen.page.route(
            "**/admin/live", lambda route: route.fulfill(content_type="text/event-stream", body="".join(said))
        )
        page = seen.sign_in(house.router.admin_token)
        page.click("#pause")
        said += [f"event: row\ndata: {row}\n\n" for row in rows]
        expect(page.locator("#pause-note")).to_have_text("Paused: 120 new", timeout=PATIENCE)
        page.click("#pause")
        expect(page.locator("#tail-rows tr")).to_have_count(50)
        expect(page.locator("#pause-note")).to_have_text("")


def test_a_page_that_nobody_sees_leaves_its_connection_to_others(house: House, browser: Browser) -> None:
    """Browsers have six to one host: so many tabs, and a seventh would never load."""
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with visit(browser, house.router.url) as seen:
        first = seen.sign_in(house.router.admin_token)
        for _ in range(7):
            expect(seen.page.locator("#live")).to_have_text("Live")
            seen.page.evaluate(hide, arg=True)
            seen.page = seen.page.context.new_page()
            seen.page.goto(f"{seen.url}/admin")
        assert house.client("holder").ask(OPENAI, "cloud/unseen", stream=True, max_tokens=10).status == 200
        expect(seen.page.locator("#tail-rows tr", has_text="cloud/unseen")).to_be_visible(timeout=PATIENCE)
        with first.expect_response("**/admin/live"):
            first.evaluate(hide, arg=False)
        expect(first.locator("#tail-rows tr", has_text="cloud/unseen")).to_be_visible(timeout=PATIENCE)


def test_a_stream_that_went_silent_is_opened_anew(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url) as seen:
        seen.page.clock.install()
        page = seen.sign_in(house.router.admin_token)
        expect(page.locator("#live")).to_have_text("Live")
        with page.expect_response("**/admin/live"):
            page.clock.fast_forward(50_000)  # in which nothing was heard
        assert house.client("holder").ask(OPENAI, "cloud/after-silence", stream=True, max_tokens=10).status == 200
        expect(page.locator("#tail-rows tr", has_text="after-silence")).to_be_visible(timeout=PATIENCE)


def test_a_refresh_moves_nothing_and_keeps_what_the_reader_did(house: House, browser: Browser) -> None:
    for _ in range(30):  # so many that the tail has to be scrolled
        house.client("holder").ask(OPENAI, "chat", stream=False, max_tokens=10)
    with visit(browser, house.router.url) as seen:
        page = seen.sign_in(house.router.admin_token)
        expect(page.locator("#live")).to_have_text("Live")
        expect(page.locator("#tail-rows tr").nth(29)).to_be_attached(timeout=PATIENCE)
        page.click("#chart-cost button[data-table]")
        page.evaluate("document.querySelector('.tail .window').scrollTop = 40; scrollTo(0, 300)")
        page.focus("#pause")
        page.evaluate("window.canvas = document.querySelector('.plot canvas')")
        page.evaluate("painted().then(() => { window.shifts = [] })")  # what the reader himself moved
        house.client("holder").ask(OPENAI, "chat", stream=False, max_tokens=10)
        for _ in range(2):
            seen.refresh()
        page.evaluate("painted()")
        kept = page.evaluate(
            """() => ({
              canvas: window.canvas === document.querySelector(".plot canvas") && window.canvas.isConnected,
              open: document.querySelector("#chart-cost").hasAttribute("data-open"),
              expanded: document.querySelector("#chart-cost button[data-table]").getAttribute("aria-expanded"),
              scroll: [document.querySelector(".tail .window").scrollTop >= 40, scrollY],
              focus: document.activeElement.id,
              shifts: window.shifts,
            })"""
        )
        assert kept == {
            "canvas": True, "open": True, "expanded": "true", "scroll": [True, 300], "focus": "pause", "shifts": [],
        }  # fmt: skip
        assert seen.blame() == []


UNSEEN: Final = """() => [...document.querySelectorAll(".stat .value, #providers, .plot, .head, .inner, #tail-rows")]
  .map((one) => one.querySelector("li, tbody tr, dt, .empty, h2, h3") ?? one)
  .map((row) => [row.getBoundingClientRect(), row.outerHTML.slice(0, 200)])
  .filter(([box]) => !box.height || box.top < 0 || box.bottom > innerHeight)
  .map(([box, html]) => `${box.top} to ${box.bottom}: ${html}`)"""
"""Heads and first rows that are not wholly in the window."""
TABS: Final = """() => [...document.querySelectorAll(".inner")].map((one) => {
  one.focus();
  return document.activeElement === one;
})"""
"""Which of the lists take the focus."""


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (2560, 1440)])
def test_a_screen_on_a_wall_shows_every_part_at_once(
    house: House, browser: Browser, width: int, height: int, lang: str
) -> None:
    size = {"width": width, "height": height}
    with visit(browser, house.router.url, lang=lang, theme="dark", axe_too=True, viewport=size) as seen:
        page = seen.sign_in(house.router.admin_token)
        expect(page.locator("#live")).to_have_text(WORDS[lang]["live"])
        expect(page.locator(".plot canvas")).to_have_count(3)
        for part in ("tail", "keys", "models", "gpu", "teams", "errors", "system", "providers"):
            assert page.locator(f"#{part}").is_visible(), part
        assert page.evaluate(UNSEEN) == []
        whole = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert whole == [width, height]
        assert page.evaluate(TABS) == [True] * 6
        assert seen.violations() == []
        page.emulate_media(media="print")  # on paper nothing is cut off
        assert page.evaluate("getComputedStyle(document.querySelector('#keys .inner')).display") == "contents"
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": 1440, "height": 900})
        assert page.evaluate(TABS) == [False] * 6
        assert seen.blame() == []


def test_names_of_ordinary_length_leave_room_on_a_phone(house: House, browser: Browser) -> None:
    name = "mobile-app-backend-production-europe"
    limits = {"models": {"chat*": {"max_requests": 1}}}
    made = house.admin.request("POST", "/admin/api/keys", {"name": name, "limits": limits})
    assert Client(house.router.port, made.json["key"]).ask(OPENAI, "chat", stream=False).status == 200
    with visit(browser, house.router.url, viewport={"width": 360, "height": 740}) as seen:
        page = seen.sign_in(house.router.admin_token)
        row = page.locator("#tail-rows tr", has_text=name)
        expect(row).to_be_visible(timeout=PATIENCE)
        expect(page.locator("#keys .bar.full .verdict").first).to_be_attached(timeout=PATIENCE)
        model = row.locator(".c-model").bounding_box()
        assert model
        assert model["width"] > 100
        assert (
            page.evaluate(
                """() => [...document.querySelectorAll(".bar")].flatMap((bar) => {
              const amount = bar.querySelector(".amount").getBoundingClientRect();
              return [...bar.querySelector(".what").children].filter((one) => {
                const box = one.getBoundingClientRect();
                const beside = box.bottom > amount.top && box.top < amount.bottom;
                return (beside && box.right > amount.left) || one.scrollWidth > one.clientWidth + 1;
              }).map((one) => one.outerHTML);
            })"""
            )
            == []
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_paper_is_light(house: House, browser: Browser, theme: str) -> None:
    with visit(browser, house.router.url, theme=theme) as seen:
        page = seen.sign_in(house.router.admin_token)
        page.click(f'button[name="theme"][value="{theme}"]')
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        page.evaluate("document.body.addEventListener('htmx:beforeRequest', (asking) => asking.preventDefault())")
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(243, 245, 248)"
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
        page.wait_for_function(
            """() => {
              const canvas = document.querySelector("#plot-requests canvas");
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              const at = (place) => `${data[place]} ${data[place + 1]} ${data[place + 2]}`;
              for (let place = 0; place < data.length; place += 4) if (at(place) === "43 117 184") return true;
              return false;
            }"""
        )  # the light theme's blue, also in the bars


def test_a_key_holder_sees_only_its_own(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url, axe_too=True) as seen:
        page = seen.sign_in(house.keys["holder"][1])
        expect(page.locator("#live")).to_have_text("Live")
        mine = house.keys["holder"][0]
        until(lambda: seen.text("#stat-requests") == str(house.usage(key=mine)["calls"]))  # it refreshes itself
        own = house.usage(key=mine)
        assert seen.text("#stat-tokens-in") == str(own["tokens_in"])
        whole = page.content()
        for secret in ("used-up", "struck", LONG[:20], "127.0.0.1", "providers-title", "config_digest"):
            assert secret not in page.inner_text("body"), secret
            assert secret not in whole or secret == "127.0.0.1", secret
        assert "Budget, day" in seen.text("#keys")
        # Others' calls do not come by the stream either.
        house.client(SCRIPT).ask(OPENAI, "cloud/not-yours", stream=True, max_tokens=10)
        house.client("holder").ask(OPENAI, "cloud/yours", stream=True, max_tokens=10)
        expect(page.locator("#tail-rows tr", has_text="yours")).to_have_count(1, timeout=PATIENCE)
        assert "not-yours" not in page.inner_text("body")
        assert seen.violations() == []
        assert seen.blame() == []


def test_everything_is_reached_by_keyboard(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url) as seen:
        page = seen.page
        page.goto(f"{seen.url}/admin")
        expect(page.locator("#secret")).to_be_focused()
        page.keyboard.type(house.router.admin_token)
        page.keyboard.press("Enter")
        seen.arrive()
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            at = page.evaluate(
                """() => { const e = document.activeElement; const s = getComputedStyle(e);
                  return [e.id || e.name || e.className || e.tagName, e.value ?? "", s.outlineStyle !== "none"]; }"""
            )
            if at[0] == "BODY":
                break
            reached.append(at)
        names = [name for name, _, _ in reached]
        assert names[0] == "skip"
        assert [value for name, value, _ in reached if name in ("lang", "theme")] == [
            "en",
            "zh",
            "auto",
            "light",
            "dark",
        ]
        assert {"window", "pause"} <= set(names)
        assert all(outlined for *_, outlined in reached), reached

        page.keyboard.press("Home")
        page.focus(".skip")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "overview"
        page.focus("#chart-requests button[data-table]")
        page.keyboard.press("Enter")
        expect(page.locator("#chart-requests table")).to_be_visible()
        page.focus('button[name="theme"][value="dark"]')
        before = page.evaluate("document.querySelector('#plot-cost canvas').toDataURL()")
        with page.expect_response("**/admin/preferences"):  # the choice is told beside the page
            page.keyboard.press("Space")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        page.wait_for_function(
            "(before) => document.querySelector('#plot-cost canvas').toDataURL() !== before", arg=before
        )
        page.focus('button[name="lang"][value="zh"]')
        page.keyboard.press("Enter")
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")  # the choice was kept
        page.locator('form[action="/admin/sign-out"] button').focus()
        page.keyboard.press("Enter")
        expect(page.locator("#secret")).to_be_visible()
        assert seen.blame() == []


def test_who_leaves_while_a_refresh_is_on_its_way_hears_of_no_failure(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url) as seen:
        page = seen.sign_in(house.router.admin_token)
        with page.expect_request("**/admin/overview"):
            page.route("**/admin/overview", lambda _: None)  # no answer comes
            page.evaluate("htmx.trigger('#overview', 'refresh')")
        page.click('form[action="/admin/sign-out"] button')
        expect(page.locator("#secret")).to_be_visible()
        assert seen.blame() == []


def test_a_page_of_an_older_router_loads_itself_again(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url) as seen:
        page = seen.sign_in(house.router.admin_token)

        def upgraded(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, body=re.sub('data-build="', 'data-build="newer ', answer.text()))

        with page.expect_navigation(wait_until="load"):
            page.route("**/admin/overview", upgraded, times=1)
            page.evaluate("htmx.trigger('#overview', 'refresh')")
        assert seen.blame() == []


def test_without_scripts_it_is_a_plain_page(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url, lang="zh", java_script_enabled=False) as seen:
        page = seen.sign_in(house.router.admin_token)
        assert page.locator("#chart-requests table").is_visible()
        assert not page.locator("#chart-requests .canvas").is_visible()
        assert not page.locator("#pause").is_visible()
        assert not page.locator("#live").is_visible()
        assert page.locator("noscript").count() == 1
        page.click('button[name="theme"][value="dark"]')
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        page.click('button[name="lang"][value="en"]')
        expect(page.locator("html")).to_have_attribute("lang", "en")


def test_a_wrong_secret_is_refused_in_words(house: House, browser: Browser) -> None:
    with visit(browser, house.router.url, lang="zh", axe_too=True) as seen:
        page = seen.page
        page.goto(f"{seen.url}/admin")
        page.fill("#secret", "sk-wrong")
        page.press("#secret", "Enter")
        expect(page.locator("#problem")).to_contain_text("令牌或密钥不正确")
        assert "sk-wrong" not in page.content()
        assert seen.violations() == []
        assert [line for line in seen.blame() if "status of 401" not in line] == []


def test_it_says_what_is_wrong_and_finds_the_router_again(
    serve: Serve, browser: Browser, cloud: Simulator, local: Simulator
) -> None:
    config = routers.providers(cloud.url, local.url)
    router = serve(config, routers.UNHURRIED)
    client = Client(router.port, router.key)
    assert {client.ask(OPENAI, "down/nobody", stream=False).status for _ in range(5)} == {200}  # the breaker opens
    router.write_config({**config, "models": {"chat": {"targets": ["nowhere/x"]}}})
    router.process.send_signal(signal.SIGHUP)
    router.wait_line("config not reloaded", router.err)
    small = {"width": 360, "height": 740}
    with visit(browser, router.url, lang="zh", theme="dark", axe_too=True, viewport=small) as seen:
        page = seen.sign_in(router.admin_token)
        expect(page.locator("#live")).to_have_text("实时")
        expect(page.locator(".notice")).to_contain_text("models.chat", timeout=PATIENCE)
        problem = seen.text(".notice")
        assert re.search(r"switchyard\.yaml:\d+:\d+: models\.chat", problem), problem
        assert "继续使用之前的配置" in problem
        expect(page.locator('[data-provider="down"]')).to_contain_text("无法连接", timeout=PATIENCE)
        assert page.locator('[data-provider="down"].up').count() == 0
        expect(page.locator('[data-provider="cloud"]')).to_contain_text("可用")
        page.click("#chart-tokens button[data-table]")
        page.click("#pause")
        assert seen.violations() == []
        assert seen.blame() == []

        router.write_config(config)
        router.stop()
        expect(page.locator("#live")).to_have_text(re.compile(r"自 \d\d:\d\d:\d\d 起没有新数据"), timeout=PATIENCE)
        assert seen.violations() == []
        router.code = None
        router.start()
        expect(page.locator("#live")).to_have_text("实时", timeout=2 * PATIENCE)
        expect(page.locator(".notice")).to_have_count(0)
        assert page.evaluate("window.reports") == []
