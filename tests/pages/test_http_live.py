"""The pages of a real router with two workers: the numbers, who sees what, and the live tail."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve
from tests.pages.site import SECONDS, Site
from tests.simulators import router as routers
from tests.simulators.router import RouterProcess
from tests.simulators.server import Simulator

SCRIPT = "<img src=x onerror=alert(1)>"


class Office:
    """A router, what is asked of it, and keys."""

    def __init__(self, router: RouterProcess) -> None:
        self.router = router
        self.site = Site(router.port)
        assert self.site.sign_in(router.admin_token).status == 303

    def api(self, method: str, path: str, body: Any = None) -> Any:
        bearer = {"authorization": f"Bearer {self.router.admin_token}"}
        answer = Site(self.router.port).ask(method, path, json.dumps(body) if body is not None else None, bearer)
        assert answer.status in (200, 201), answer
        return json.loads(answer.body)

    def key(self, name: str, **more: Any) -> Any:
        return self.api("POST", "/admin/api/keys", {"name": name, **more})

    def call(self, credential: str = "", model: str = "chat") -> str:
        """One model call; its id."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
        bearer = {"authorization": f"Bearer {credential or self.router.key}"}
        answer = Site(self.router.port).ask("POST", "/v1/chat/completions", body, bearer)
        return answer.headers["x-request-id"]

    def visitor(self, credential: str) -> Site:
        site = Site(self.router.port)
        assert site.sign_in(credential).status == 303
        return site


@pytest.fixture(scope="module")
def office(module_serve: Serve, cloud: Simulator, local: Simulator) -> Office:
    config = routers.providers(cloud.url, local.url)
    config["models"]["*"] = {"targets": ["cloud/*"]}
    return Office(module_serve(config, routers.UNHURRIED, ["--workers", "2"]))


def eventually(look: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not look():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_both_workers_know_a_session(office: Office) -> None:
    # Connections go to whichever worker takes them first.
    assert all(office.site.signed_in() for _ in range(20))
    gone = office.visitor(office.router.admin_token)
    cookie = gone.copy()
    gone.post("/admin/sign-out")
    assert not any(cookie.signed_in() for _ in range(20))


def test_a_call_is_in_the_numbers(office: Office) -> None:
    call = office.call()
    eventually(lambda: f'id="r-{call}"' in office.site.get("/admin/overview").text)
    eventually(lambda: f'id="r-{call}"' in office.site.get("/admin").text)
    whole = office.site.get("/admin").text
    assert office.router.admin_token not in whole
    assert office.router.key not in whole


def test_the_holder_of_a_key_sees_his_own_and_nothing_else(office: Office) -> None:
    mine = office.key("mine", team="red team", limits={"rpm": 50})
    other = office.key("secret-other-key", team="red team")
    boss = office.key("boss", rights={"admin": True})
    shown = [office.call(mine["key"]) for _ in range(2)]
    hidden = [office.call(other["key"]), office.call(), office.call(other["key"], model="error_in_200@pages")]
    site, chief = office.visitor(mine["key"]), office.visitor(boss["key"])
    for number in hidden:
        eventually(lambda number=number: f'id="r-{number}"' in chief.get("/admin/overview").text)  # type: ignore[misc]
    for path in ("/admin", "/admin/overview"):
        for number in shown:
            eventually(lambda number=number, path=path: f'id="r-{number}"' in site.get(path).text)  # type: ignore[misc]
        page = site.get(path).text
        for number in hidden:
            assert number not in page
        for text in (
            "secret-other-key",
            other["id"],
            "boss",
            "127.0.0.1",
            office.router.config_path.name,
            "error_in_200",
        ):
            assert text not in page
    eventually(lambda: "secret-other-key" in chief.get("/admin").text)


def test_the_tail_brings_a_call_at_once_and_only_to_who_may_see_it(office: Office) -> None:
    mine, other = office.key("tail-mine"), office.key("tail-other")
    holder = office.visitor(mine["key"])
    with office.site.watch() as all_calls, holder.watch() as own:
        assert (all_calls.status, own.status) == (200, 200)
        assert all_calls.headers["content-type"].startswith("text/event-stream")
        assert all_calls.headers["cache-control"] == "no-store"
        assert json.loads(all_calls.until("state")[-1].data) == {"stale": False}
        for tail in (all_calls, own):
            tail.until("rows")  # what comes from here on is told call by call
        hidden, shown = office.call(other["key"]), office.call(mine["key"])
        seen = all_calls.until("row", shown)
        if not any(hidden in event.data for event in seen):
            all_calls.until("row", hidden)
        events = own.until("row", shown)
        # Another call of his after that of the other key has been read by all workers.
        last = office.call(mine["key"])
        events += own.until("row", last)
    assert not any(hidden in event.data for event in events)
    row = next(event.data for event in events if shown in event.data)
    assert row.startswith("<tr")
    assert "tail-other" not in "".join(event.data for event in events)


def test_a_long_call_is_shown_when_it_begins_and_again_when_it_ends(office: Office) -> None:
    body = json.dumps({"model": "endless-slow@pages", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})
    with office.site.watch() as tail:
        tail.until("rows")
        began = time.time()
        caller = http.client.HTTPConnection("127.0.0.1", office.router.port, timeout=SECONDS)
        caller.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {office.router.key}"})
        call = str(caller.getresponse().headers["x-request-id"])
        begun = time.time()
        first = tail.until("row", call)[-1].data
        caller.close()
        ended = tail.until("row", call)[-1].data
    (at,) = {float(at) for row in (first, ended) for at in re.findall(r'data-at="([0-9.]+)"', row)}
    assert began - 0.01 < at < begun + 0.01  # when it began, in both
    assert "Running" in first
    assert "Client left" in ended


def test_what_clients_write_is_inert(office: Office) -> None:
    key = office.key(f"{SCRIPT} key")
    with office.site.watch() as tail:
        tail.until("rows")
        call = office.call(key["key"], model=f"{SCRIPT} model")
        row = tail.until("row", call)[-1].data
    holder = office.visitor(key["key"])
    for site in (office.site, holder):
        eventually(lambda site=site: call in site.get().text)  # type: ignore[misc]
    for text in (row, office.site.get().text, holder.get().text):
        assert SCRIPT not in text
        assert "&lt;img" in text


def test_a_tail_ends_with_its_session(office: Office) -> None:
    key = office.key("short-lived")
    holder = office.visitor(key["key"])
    with holder.watch() as tail:
        tail.until("state")
        office.api("DELETE", f"/admin/api/keys/{key['id']}")
        assert tail.until("end")[-1].data == "signed-out"
        assert list(tail.events()) == []
    assert holder.get("/admin/live").status == 401
    leaver = office.visitor(office.router.admin_token)
    with leaver.watch() as tail:
        tail.until("state")
        leaver.copy().post("/admin/sign-out")
        assert tail.until("end")[-1].data == "signed-out"


def test_who_leaves_is_not_worked_for(office: Office) -> None:
    for _ in range(30):
        with office.site.watch() as tail:
            assert tail.status == 200
    call = office.call()
    eventually(lambda: call in office.site.get("/admin/overview").text)


def test_calls_pay_nothing_for_the_pages(module_serve: Serve, cloud: Simulator, local: Simulator) -> None:
    router = module_serve(routers.providers(cloud.url, local.url))
    office = Office.__new__(Office)
    office.router = router
    office.call()
    maps = Path(f"/proc/{router.process.pid}/maps").read_text()
    assert "_speedups" not in maps or "markupsafe" not in maps
    assert Site(router.port).get("/admin").status == 200
    assert "markupsafe" in Path(f"/proc/{router.process.pid}/maps").read_text()


def test_a_restart_keeps_sessions_and_open_tails_do_not_hold_it_up(
    tmp_path: Path, cloud: Simulator, local: Simulator
) -> None:
    config = routers.providers(cloud.url, local.url)
    first = RouterProcess(tmp_path, config, routers.UNHURRIED).start()
    office = Office(first)
    with office.site.watch() as tail:
        tail.until("state")
        first.process.terminate()
        assert tail.until("end")[-1].data == "draining"
        assert first.wait(60) == 0
    assert not re.search("Traceback|ERROR", "\n".join(first.err))
    assert office.router.admin_token not in "\n".join(first.err)
    with RouterProcess(tmp_path, config, routers.UNHURRIED) as second:
        assert office.site.copy(second.port).signed_in()
