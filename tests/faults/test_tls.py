"""Certificates that are not acceptable: no byte of the credential leaves, and another target answers."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.simulators.client import OPENAI, Client
from tests.simulators.dialects import SECRET, dialect_of
from tests.simulators.proxy import Proxy
from tests.simulators.router import KEY_VARIABLE, PATIENT, UNHURRIED, RouterProcess, providers
from tests.simulators.scripts import SCRIPTS
from tests.simulators.server import Simulator
from tests.simulators.tls import Authority, self_signed

USER, PASSWORD = "proxy-user", "p@ss:word/%"


class Setup:
    """HTTPS providers by name, a proxy, and a client of the router in front of them."""

    def __init__(self, client: Client, hosts: Mapping[str, Simulator], proxy: Proxy, bundle: Path) -> None:
        self.client = client
        self.hosts = hosts
        self.proxy = proxy
        self.bundle = bundle


@pytest.fixture(scope="module")
def setup(
    module_serve: Callable[..., RouterProcess],
    cloud: Simulator,
    local: Simulator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Setup]:
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    contexts: dict[str, ssl.SSLContext] = {
        "good": authority.context("good"),
        "expired": authority.context("expired", expired=True),
        "wrong-host": authority.context("wrong-host", host="DNS:other.example"),
        "self-signed": self_signed(directory),
    }
    with ExitStack() as stack:
        hosts = {
            name: stack.enter_context(Simulator(SCRIPTS, dialect_of, tls=context)) for name, context in contexts.items()
        }
        proxy = stack.enter_context(Proxy(USER, PASSWORD))
        proxied = f"http://{USER}:p%40ss%3Aword%2F%25@127.0.0.1:{proxy.port}"

        def row(url: str, **more: Any) -> dict[str, Any]:
            key = f"${{{KEY_VARIABLE}}}"
            row = {"vendor": "openai-compatible", "base_url": f"{url}/v1", "api_key": key, "timeouts": dict(PATIENT)}
            return {**row, **more}

        bundle = str(authority.bundle)
        rows = {name: row(host.url, ca_bundle=bundle) for name, host in hosts.items()}
        rows["untrusted"] = row(hosts["good"].url)
        rows["plain-port"] = row(cloud.url.replace("http:", "https:"), ca_bundle=bundle)
        rows["tunnelled"] = row(hosts["good"].url, ca_bundle=bundle, proxy=proxied)
        rows["tunnelled-expired"] = row(hosts["expired"].url, ca_bundle=bundle, proxy=proxied)
        rows["forwarded"] = row(cloud.url, proxy=proxied)
        rows["wrong-password"] = row(hosts["good"].url, ca_bundle=bundle, proxy=proxied.replace("%25", ""))
        rows["no-bundle"] = row(hosts["good"].url, ca_bundle=str(directory / "later.pem"))
        (directory / "later.pem").write_bytes((directory / "self.pem").read_bytes())
        router = module_serve(providers(cloud.url, local.url, **rows), UNHURRIED)
        yield Setup(Client(router.port, router.key), hosts, proxy, authority.bundle)
        assert not [line for line in router.err if PASSWORD in line or "p%40ss" in line or SECRET in line]


def test_a_good_certificate_is_accepted(setup: Setup) -> None:
    reply = setup.client.ask(OPENAI, "good/answer", stream=True)
    assert reply.headers["x-switchyard-provider"] == "good"
    assert OPENAI.read(reply, stream=True).complete
    assert setup.hosts["good"].requests[-1].headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("name", ["expired", "wrong-host", "self-signed", "untrusted", "plain-port"])
def test_a_bad_one_gets_nothing(setup: Setup, cloud: Simulator, name: str) -> None:
    host = setup.hosts.get({"untrusted": "good"}.get(name, name), cloud)
    before = len(host.requests)
    reply = setup.client.ask(OPENAI, f"{name}/bad-tls@{name}", stream=True)
    assert reply.status == 200, reply
    assert reply.headers["x-switchyard-fallback"] == "unreachable"
    assert len(host.requests) == before, "a request reached a host that could not prove itself"
    told = setup.client.ask(OPENAI, f"{name}/bad-tls@{name}2", stream=True, headers={"x-switchyard-no-fallback": "1"})
    assert told.status == 502
    message = OPENAI.error_of(told)
    assert ("TLS" if name == "plain-port" else "certificate") in message
    assert not cloud.asked(f"bad-tls@{name}")


def test_a_tunnel_through_the_proxy(setup: Setup) -> None:
    """CONNECT with the proxy's credentials; the provider's stay inside the TLS."""
    before = len(setup.proxy.heads)
    for stream in (False, True):  # a stream's tunnel is free when all of the answer has come, which is after its end
        reply = setup.client.ask(OPENAI, "tunnelled/answer", stream=stream)
        assert reply.headers["x-switchyard-provider"] == "tunnelled", reply
        assert OPENAI.read(reply, stream=stream).complete
    heads = setup.proxy.heads[before:]
    assert len(heads) == 1, "the tunnel is kept for the next call"
    assert heads[0].startswith("CONNECT 127.0.0.1:")
    assert SECRET not in heads[0]
    assert "proxy-authorization" not in setup.hosts["good"].requests[-1].headers


def test_a_plain_call_through_the_proxy(setup: Setup, cloud: Simulator) -> None:
    reply = setup.client.ask(OPENAI, "forwarded/answer", stream=False)
    assert reply.headers["x-switchyard-provider"] == "forwarded", reply
    assert setup.proxy.heads[-1].startswith(f"POST {cloud.url}/v1/chat/completions HTTP/1.1")


def test_a_bad_certificate_behind_the_proxy(setup: Setup) -> None:
    reply = setup.client.ask(OPENAI, "tunnelled-expired/answer", stream=False)
    assert reply.headers["x-switchyard-fallback"] == "unreachable"
    assert not setup.hosts["expired"].requests


def test_a_proxy_that_refuses(setup: Setup) -> None:
    reply = setup.client.ask(OPENAI, "wrong-password/answer", stream=False)
    assert reply.headers["x-switchyard-fallback"] == "unreachable"
    told = setup.client.ask(OPENAI, "wrong-password/again", stream=False, headers={"x-switchyard-no-fallback": "1"})
    assert told.status == 502
    assert "proxy" in OPENAI.error_of(told)


def test_a_new_bundle_is_used_without_a_restart(setup: Setup) -> None:
    """The bundle is replaced while the router runs: the next connection trusts what it says."""
    reply = setup.client.ask(OPENAI, "no-bundle/answer@1", stream=False)
    assert reply.headers["x-switchyard-fallback"] == "unreachable"
    later = setup.bundle.parent / "later.pem"
    fresh = later.with_suffix(".new")
    fresh.write_bytes(setup.bundle.read_bytes())
    fresh.replace(later)
    reply = setup.client.ask(OPENAI, "no-bundle/answer@2", stream=False)
    assert reply.headers["x-switchyard-provider"] == "no-bundle", reply
