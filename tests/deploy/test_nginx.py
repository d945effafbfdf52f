"""docker/nginx/switchyard.conf as it is, but for addresses and files, in a real nginx before a real router."""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Serve
from tests.deploy import fronts
from tests.simulators.client import Client
from tests.simulators.router import UNHURRIED, RouterProcess, providers
from tests.simulators.server import Simulator, free_port, refused_port
from tools.check_docs import ROOT

SNIPPET: Final = ROOT / "docker/nginx/switchyard.conf"
MAIN: Final = """
daemon off;
{user}
pid {place}/nginx.pid;
error_log {place}/error.log info;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    include {place}/switchyard.conf;
}}
"""
Front = Callable[..., int]
"""front(port, ...): an nginx before these routers; its port."""


def nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed")
    return found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    name = ["-subj", "/CN=llm.example.com", "-addext", "subjectAltName=IP:127.0.0.1"]
    out = ["-keyout", str(place / "key"), "-out", str(place / "pem")]
    subprocess.run(["openssl", "req", "-x509", *key, *name, *out], check=True, capture_output=True)
    return place


@pytest.fixture(scope="module")
def tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "pem"))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Front]:
    with ExitStack() as running:

        def start(*ports: int) -> int:
            place, port = tmp_path_factory.mktemp("nginx"), free_port()
            text = SNIPPET.read_text()
            servers = "".join(f"server 127.0.0.1:{one} max_fails=1 fail_timeout=5s;" for one in ports)
            for old, new in {
                "server 127.0.0.1:8080 max_fails=1 fail_timeout=5s;": servers,
                "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
                "/etc/nginx/tls/llm.example.com.pem": str(certificate / "pem"),
                "/etc/nginx/tls/llm.example.com.key": str(certificate / "key"),
            }.items():
                assert text.count(old) == 1, old
                text = text.replace(old, new)
            (place / "switchyard.conf").write_text(text)
            whoami = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
            user = f"user {whoami};" if whoami == "root" else ""
            (place / "nginx.conf").write_text(MAIN.format(place=place, user=user))
            command = [nginx(), "-p", str(place), "-e", str(place / "error.log"), "-c", str(place / "nginx.conf")]
            checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr
            assert "[warn]" not in checked.stderr, checked.stderr
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running.callback(process.wait)
            running.callback(process.terminate)
            fronts.listening(port, lambda: process.poll() is None)
            return port

        yield start


@pytest.fixture(scope="module")
def router(module_serve: Serve, cloud: Simulator, local: Simulator) -> RouterProcess:
    server = {"trusted_proxies": ["127.0.0.1"], "limits": {"max_body_bytes": 52428800}}
    return module_serve({**providers(cloud.url, local.url), "server": server}, UNHURRIED)


@pytest.fixture(scope="module")
def port(front: Front, router: RouterProcess) -> int:
    return front(router.port)


Link = Callable[[str], http.client.HTTPConnection]


@pytest.fixture
def link(port: int, tls: ssl.SSLContext) -> Iterator[Link]:
    """link(source address): a connection through nginx."""
    with ExitStack() as opened:

        def connect(source: str = "127.0.0.2") -> http.client.HTTPConnection:
            connection = fronts.connect(port, source, tls)
            opened.callback(connection.close)
            return connection

        yield connect


def get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str] | None = None) -> Any:
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]  # for the messages of failed tests
    return answer


def test_pieces_of_a_stream_come_one_by_one(link: Link, router: RouterProcess, cloud: Simulator) -> None:
    fronts.pieces_come_one_by_one(cloud, lambda body: fronts.post(link("127.0.0.2"), body, router.key))


def test_the_router_learns_who_asks_and_nobody_can_say_it_for_himself(
    link: Link, router: RouterProcess, fresh: Callable[[str], str]
) -> None:
    model = f"cloud/{fresh('answer')}"
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    lies = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    assert fronts.post(link("127.0.0.3"), body, router.key, lies).status == 200
    assert router.log_of(model)["client"] == "127.0.0.3"


def test_large_images_pass_and_larger_ones_are_refused_by_their_size(
    link: Link, router: RouterProcess, cloud: Simulator, fresh: Callable[[str], str]
) -> None:
    model = fresh("answer")
    answer = fronts.post(link("127.0.0.2"), fronts.picture(f"cloud/{model}", 30_000_000), router.key)
    assert answer.status == 200, answer.read()
    (asked,) = cloud.asked(model)
    assert len(asked.body) > 30_000_000
    too_large = link("127.0.0.2")
    too_large.putrequest("POST", "/v1/chat/completions")
    too_large.putheader("content-length", "52428801")
    too_large.endheaders()
    assert too_large.getresponse().status == 413


def test_what_is_for_machines_inside_is_not_there(link: Link, router: RouterProcess) -> None:
    token = {"authorization": f"Bearer {router.admin_token}"}
    assert Client(router.port, router.admin_token).request("GET", "/metrics").status == 200
    for path in (
        "/metrics",
        "/readyz",
        "//metrics",
        "/%6detrics",
        "/./metrics",
        "/x/../metrics",
        "/metrics?x=1",
        "/metrics/",
    ):
        answer = get(link("127.0.0.2"), path, token)
        assert answer.status in (400, 404), path
        assert b"switchyard_requests_total" not in answer.body, path
    assert get(link("127.0.0.2"), "/healthz").status == 200


@pytest.mark.parametrize("path", ["/admin/api/keys", "//admin/api/keys", "/%61dmin/api/keys", "/x/../admin/api/keys"])
def test_administration_is_open_to_the_networks_of_administrators(link: Link, router: RouterProcess, path: str) -> None:
    token = {"authorization": f"Bearer {router.admin_token}"}
    assert get(link("127.0.0.2"), path, token).status == 403
    assert get(link("127.0.0.1"), "/admin/api/keys", token).status == 200


def test_the_page_can_be_used_through_another_port(link: Link, router: RouterProcess, port: int) -> None:
    def sign_in(origin: str) -> int:
        connection = link("127.0.0.1")
        form = {"content-type": "application/x-www-form-urlencoded", "origin": origin}
        connection.request("POST", "/admin/sign-in", f"secret={router.admin_token}", form)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert sign_in(f"https://127.0.0.1:{port}") == 303
    assert sign_in("https://127.0.0.1") == 403


def test_a_post_that_was_sent_is_not_sent_again(front: Front, tls: ssl.SSLContext) -> None:
    with fronts.Counting() as one, fronts.Counting() as two:
        connection = fronts.connect(front(one.port, two.port), "127.0.0.2", tls)
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        assert fronts.post(connection, body, "k").status == 502
        connection.close()
        assert one.asked + two.asked == 1


def test_a_router_that_is_not_there_costs_no_call(front: Front, router: RouterProcess, tls: ssl.SSLContext) -> None:
    port = front(refused_port(), router.port)
    for _ in range(4):
        connection = fronts.connect(port, "127.0.0.2", tls)
        body = {"model": "cloud/answer", "messages": [{"role": "user", "content": "x"}]}
        assert fronts.post(connection, body, router.key).status == 200
        connection.close()


def test_connections_to_the_router_are_used_again_and_closed_before_it_closes_them(
    link: Link, router: RouterProcess
) -> None:
    from router.server import KEEP_ALIVE_SECONDS

    found = re.search(r"keepalive_timeout (\d+)s", SNIPPET.read_text())
    assert found is not None
    assert int(found[1]) < KEEP_ALIVE_SECONDS
    connection = link("127.0.0.2")
    for _ in range(3):
        assert get(connection, "/healthz").status == 200
