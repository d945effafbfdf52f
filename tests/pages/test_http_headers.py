"""What the pages' answers carry: headers, files, language and theme; and what is not theirs."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from pathlib import Path

import msgspec
import pytest

from router.admin.pages import overview_page
from router.admin.pages.security import CSP
from router.overview import Overviews
from router.overview_rows import Board, Sums
from tests.pages.house import GAUGES, STATE, TOKEN, House, opened_house
from tests.pages.site import Answer

pytestmark = pytest.mark.asyncio(loop_scope="module")


def private(answer: Answer) -> None:
    headers = answer.headers
    assert headers["content-security-policy"] == CSP
    assert "unsafe" not in CSP
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in headers


async def test_every_page_has_the_headers_that_keep_others_out(house: House) -> None:
    site = await house.sign_in(TOKEN)
    asked = [
        ("GET", "/admin", 200),
        ("HEAD", "/admin", 200),
        ("GET", "/admin/", 200),
        ("GET", "/admin/overview", 200),
        ("HEAD", "/admin/overview", 200),
        ("HEAD", "/admin/live", 200),
        ("GET", "/admin/nothing", 404),
        ("GET", "/admin/static/nothing.0123456789ab.js", 404),
        ("GET", "/admin/static/../../keys.py", 404),
        ("GET", "/admin/sign-in", 303),
        ("HEAD", "/admin/sign-out", 303),
        ("GET", "/admin/preferences", 303),
        ("DELETE", "/admin/sign-in", 405),
        ("DELETE", "/admin", 405),
        ("POST", "/admin/overview", 405),
    ]
    for method, path, status in asked:
        answer = await asyncio.to_thread(site.ask, method, path, None, {"accept": "text/html", "origin": site.origin})
        assert answer.status == status, (method, path)
        private(answer)
        if method == "HEAD":
            assert answer.body == b""
        if status == 303:  # Enter in the address bar, after a form was refused
            assert (answer.headers["location"], answer.set_cookies) == ("/admin", ())
        elif status >= 400:
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["allow"] == "GET, HEAD"
    assert await house.signed_in(site)
    private(await asyncio.to_thread(house.site().get))


async def test_programs_are_told_in_json_and_a_session_does_not_open_the_api(house: House) -> None:
    site = await house.sign_in(TOKEN)
    for path in ("/admin/nothing", "/admin/api/keys", "/admin/api/nothing", "/admin/openapi.json"):
        answer = await asyncio.to_thread(site.get, path, accept="text/html" if "api" in path else "*/*")
        assert (answer.status, answer.headers["content-type"]) == (401, "application/json"), path


async def test_files_are_kept_for_ever(house: House) -> None:
    page = await asyncio.to_thread(house.site().get)
    urls = sorted(set(re.findall(r'/admin/static/[^"]+', page.text)))
    assert urls
    for url in urls:
        assert re.search(r"\.[0-9a-f]{12}\.[a-z0-9]+$", url)
        whole = await asyncio.to_thread(house.site().get, url)
        assert whole.status == 200
        assert whole.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert whole.headers["x-content-type-options"] == "nosniff"
        packed = await asyncio.to_thread(house.site().get, url, accept_encoding="gzip")
        assert packed.headers.get("content-encoding") in ("gzip", None)
        assert len(packed.body) <= len(whole.body)


async def test_language_and_theme_are_kept_in_a_cookie(house: House) -> None:
    site = house.site()
    assert 'lang="zh-CN"' in (await asyncio.to_thread(site.get, accept_language="zh-CN,zh;q=0.9,en;q=0.8")).text
    assert 'lang="en"' in (await asyncio.to_thread(site.get, accept_language="de")).text
    answer = await asyncio.to_thread(site.post, "/admin/preferences", {"lang": "zh", "theme": "dark"})
    assert answer.status == 303
    assert answer.set_cookies[0].endswith("Path=/admin; HttpOnly; SameSite=Lax")
    page = await asyncio.to_thread(site.get)
    assert 'lang="zh-CN"' in page.text
    assert 'data-theme="dark"' in page.text
    await asyncio.to_thread(site.post, "/admin/preferences", {"lang": "en"})  # the theme stays
    page = await asyncio.to_thread(site.get)
    assert 'lang="en"' in page.text
    assert 'data-theme="dark"' in page.text
    await asyncio.to_thread(site.post, "/admin/preferences", {"lang": '"><script>', "theme": "javascript:"})
    site.cookies["switchyard_preferences"] = "<script>.<b>"
    page = await asyncio.to_thread(site.get)
    assert "<b>" not in page.text
    assert 'data-theme="auto"' in page.text


async def test_a_link_on_another_site_leads_to_the_page_all_the_same(house: House) -> None:
    site = await house.sign_in(TOKEN)
    stranger = house.site()  # the browser keeps a strict cookie back there
    assert (await asyncio.to_thread(stranger.get, sec_fetch_site="cross-site")).headers["refresh"] == "0"
    assert "refresh" not in (await asyncio.to_thread(stranger.get, sec_fetch_site="same-origin")).headers
    assert "refresh" not in (await asyncio.to_thread(site.get, sec_fetch_site="same-origin")).headers


async def test_calls_that_brought_nothing_and_did_not_fail_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview_page, "FRESH", 0.0)
    async with opened_house(tmp_path) as house:
        board = await Overviews(house.keys, lambda: None).board()
        today = Sums(calls=720, aborted=396)

        async def told(_: Overviews) -> Board:
            return msgspec.structs.replace(board, today=today)

        monkeypatch.setattr(Overviews, "board", told)
        site = await house.sign_in(TOKEN)

        async def words(lang: str) -> tuple[str, bool]:
            page = (await asyncio.to_thread(site.get, "/admin", accept_language=lang)).text
            return unescape(re.sub(r"<[^>]+>", "", page)), 'class="note warn" id="stat-aborted"' in page

        page, warned = await words("en")
        assert warned
        assert "Broken off: 396 (55%)" in page
        assert "No errors." in page
        assert "decision of the store" not in page
        monkeypatch.setitem(GAUGES, "store_refusals_total", {(): 613})
        today = Sums(calls=720, aborted=1)
        pages = [await words(lang) for lang in ("en", "zh")]
        assert not any(warned for _, warned in pages)
        for text in ("Refused without a decision of the store, since the router's start: 613", "No errors."):
            assert text in pages[0][0]
        assert "自启动以来未经存储判定而拒绝 613 次" in pages[1][0]


async def test_calls_that_the_store_did_not_decide_are_a_warning_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview_page, "FRESH", 0.0)
    async with opened_house(tmp_path) as house:
        site = await house.sign_in(TOKEN)

        async def warned() -> bool:
            page = (await asyncio.to_thread(site.get, "/admin")).text
            errors = page[page.index('id="errors"') :]
            assert "No errors." in errors
            warnings = {
                'class="note warn" id="stat-unasked"' in page,
                re.search(r'<p class="near"[^>]*>Refused without', page) is not None,
                "Refused without" in errors,
            }
            assert len(warnings) == 1
            return warnings.pop()

        assert not await warned()
        monkeypatch.setitem(GAUGES, "store_refusals_total", {(): 613})
        assert await warned()
        monkeypatch.setattr(overview_page, "LATELY", 0.0)
        assert not await warned()
        assert "since the router&#39;s start: 613" in (await asyncio.to_thread(site.get, "/admin")).text


async def test_what_is_wrong_in_the_config_is_told_to_administrators_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/etc/router/switchyard.yaml"
    monkeypatch.setitem(STATE, "config", f"{path}:3: no such setting")
    monkeypatch.setitem(STATE, "providers", {"cloud": "CLOUD_API_KEY is not set"})
    monkeypatch.setitem(GAUGES, "provider_down", {("cloud", "no_key"): 1})
    async with opened_house(tmp_path) as house:
        _, credential = await house.key()
        admin, holder = await house.sign_in(TOKEN), await house.sign_in(credential)
        for page in ("/admin", "/admin/overview"):
            whole = (await asyncio.to_thread(admin.get, page)).text
            own = (await asyncio.to_thread(holder.get, page)).text
            assert path in whole
            for text in ("switchyard.yaml", "no such setting", "CLOUD", "cloud"):
                assert text not in own
        chinese = (await asyncio.to_thread(admin.get, "/admin", accept_language="zh-CN")).text
        told = re.sub(r"<[^>]+>", "", chinese)
        assert "没有 API 密钥 (CLOUD_API_KEY)" in told
        assert "is not set" not in told
