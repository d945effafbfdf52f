"""Stores over TLS: the certificate is checked, by the links and by administrative commands alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from router.link import Links, NotSent
from router.store import StoreError, open_store
from tests.simulators.stores import Server, free_ports
from tests.simulators.tls import Authority, self_signed
from tests.store.conftest import LIBRARY, Open, add, until


class Encrypted(Server):
    """A server that speaks TLS on a port of its own; `port` stays plain for the test."""

    def __init__(self, directory: Path, leaf: Path, key: Path, authority: Path) -> None:
        self.tls_port = free_ports(1)[0]
        options = {
            "tls-port": self.tls_port,
            "tls-cert-file": leaf,
            "tls-key-file": key,
            "tls-ca-cert-file": authority,
            "tls-auth-clients": "no",
            "appendonly": "yes",
        }
        super().__init__(directory, options)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ca").mkdir()
    return Authority(tmp_path / "ca")


@pytest.fixture
def encrypted(tmp_path: Path, authority: Authority) -> Iterator[Encrypted]:
    authority.context("store")
    files = (tmp_path / "ca" / "store.pem", tmp_path / "ca" / "store.key")
    with Encrypted(tmp_path / "server", *files, authority.bundle) as server:
        yield server


async def test_a_store_over_tls(encrypted: Encrypted, authority: Authority, connected: Open) -> None:
    encrypted.run("CONFIG", "SET", "requirepass", "canary")
    url = f"rediss://:canary@127.0.0.1:{encrypted.tls_port}/0?ssl_ca_certs={authority.bundle}"
    store, links = await connected(url)
    assert await links.ask("t", add("t"), limit=10) == 1
    assert await store.run("GET", "sy:{t}:n") == b"1"
    assert store.name == f"rediss://127.0.0.1:{encrypted.tls_port}/0"
    encrypted.password = "canary"
    encrypted.run("CLIENT", "KILL", "TYPE", "normal")
    assert await links.ask("t", add("t"), limit=10) == 2


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("options", ["", "?ssl_cert_reqs=required"])
async def test_a_certificate_that_nobody_vouches_for(encrypted: Encrypted, tmp_path: Path, options: str) -> None:
    store = await open_store(f"rediss://127.0.0.1:{encrypted.tls_port}/0{options}", tmp_path, role="command")
    assert "certificate" in str(store.problem)
    links = Links(store, LIBRARY)
    with pytest.raises(NotSent):
        await links.ask("t", add("t"))
    await until(lambda: "certificate" in str(links.problem))
    await links.close()
    await store.close()


async def test_a_certificate_may_go_unchecked_when_the_url_says_so(tmp_path: Path, connected: Open) -> None:
    (tmp_path / "own").mkdir()
    self_signed(tmp_path / "own")
    leaf, key = tmp_path / "own" / "self.pem", tmp_path / "own" / "self.key"
    with Encrypted(tmp_path / "server", leaf, key, leaf) as server:
        _, links = await connected(f"rediss://127.0.0.1:{server.tls_port}/0?ssl_cert_reqs=none")
        assert await links.ask("t", add("t"), limit=10) == 1


async def test_tls_options_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="TLS"):
        await open_store(f"rediss://127.0.0.1:1/0?ssl_ca_certs={tmp_path}/missing.pem", tmp_path)
