"""What pages of other sites can do through the browser of somebody who is signed in: nothing, but a link works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.conftest import Serve
from tests.pages.browser import PATIENCE, chromium
from tests.simulators import router as routers
from tests.simulators.server import Simulator

PAGE = """<!doctype html><title>Another site</title>
<a id="link" href="{url}/admin">The router</a>
<form id="out" method="post" action="{url}/admin/sign-out"><button>Win a prize</button></form>
<form id="in" method="post" action="{url}/admin/sign-in"><input name="secret" value="{secret}"><button>Go</button>
</form>
<iframe src="{url}/admin"></iframe>
<img id="picture" src="{url}/admin/overview">
"""


@pytest.fixture
def stranger() -> Iterator[Any]:
    """A server of another site: pages of `localhost` are strangers to those of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = server.page.encode()  # type: ignore[attr-defined]  # set by the test
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_another_site_cannot_act_for_who_is_signed_in(
    serve: Serve, cloud: Simulator, local: Simulator, stranger: Any
) -> None:
    router = serve(routers.providers(cloud.url, local.url), routers.UNHURRIED)
    stranger.page = PAGE.format(url=router.url, secret=router.key)
    outside = f"http://localhost:{stranger.server_address[1]}/"
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{router.url}/admin")
        page.fill("#secret", router.admin_token)
        page.press("#secret", "Enter")
        page.wait_for_selector("#stat-requests")
        for form in ("#out", "#in"):
            page.goto(outside)
            with page.expect_response(f"{router.url}/admin/sign-*") as answer:
                page.click(f"{form} button")
            assert answer.value.status == 403
        page.goto(outside)
        page.frames[1].wait_for_url(lambda url: url.startswith("chrome-error:"))
        read = "fetch(url, {credentials: 'include'}).then(() => 'read', () => 'refused')"
        assert page.evaluate(f"url => {read}", f"{router.url}/admin/overview") == "refused"
        # The strict cookie stays back on the way from there; the page asks once more, and is shown.
        page.click("#link")
        page.wait_for_selector("#stat-requests")
        assert page.url == f"{router.url}/admin"
