"""Where a request comes from, and whether it may: nothing that a caller writes moves him into another network."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.networks import MOST_HOPS, UNKNOWN, allowed, client_address, contains, is_local, network_problem
from tests.simulators.client import Client
from tests.simulators.router import UNHURRIED, RouterProcess

PROXIES = ("10.0.0.0/8", "fd00::/8", "127.0.0.1")


def scope(peer: str | None, *forwarded: str, name: bytes = b"x-forwarded-for") -> dict[str, object]:
    headers = [(b"host", b"x"), *((name, value.encode("latin-1", "replace")) for value in forwarded)]
    return {"client": (peer, 5) if peer is not None else None, "headers": headers}


ADDRESSES = [
    # Nothing is trusted, or the peer is not: what it says of itself is not looked at.
    ((), "192.0.2.7", ["203.0.113.9"], "192.0.2.7"),
    ((), "10.0.0.1", ["203.0.113.9"], "10.0.0.1"),
    (PROXIES, "192.0.2.7", ["10.0.0.9"], "192.0.2.7"),
    (PROXIES, "192.0.2.7", ["203.0.113.9, 10.0.0.1"], "192.0.2.7"),
    # A proxy of ours: the last one that is not ours is the caller, whatever stands before.
    (PROXIES, "10.0.0.1", [], "10.0.0.1"),
    (PROXIES, "10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["10.9.9.9, 203.0.113.9"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["127.0.0.1, 203.0.113.9, 10.0.0.2, fd00::1"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["1.1.1.1", "203.0.113.9", "10.0.0.2"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["10.0.0.9, 10.0.0.2"], "10.0.0.9"),
    (PROXIES, "10.0.0.1", ["garbage, 203.0.113.9"], "203.0.113.9"),
    # Forms.
    (PROXIES, "::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["[2001:DB8::1]:4711"], "2001:db8::1"),
    (PROXIES, "10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
    (PROXIES, "10.0.0.1", ["2001:db8:0:0::1"], "2001:db8::1"),
    (PROXIES, "10.0.0.1", ['"[2001:db8::1]:1"'], "2001:db8::1"),
    (PROXIES, "10.0.0.1", [" , 203.0.113.9 ,, "], "203.0.113.9"),
    (PROXIES, "10.0.0.1", ["[::ffff:10.0.0.3]:1, 10.0.0.2:99"], "10.0.0.3"),
    ((), "::ffff:192.0.2.7", [], "192.0.2.7"),
    ((), "fe80::1%eth0", [], "fe80::1"),
    ((), None, ["203.0.113.9"], ""),
    ((), "testclient", [], "testclient"),
    # A proxy of ours that does not say: nobody's address, least of all the proxy's.
    (PROXIES, "10.0.0.1", ["203.0.113.9, unknown"], UNKNOWN),
    (PROXIES, "10.0.0.1", ["_hidden"], UNKNOWN),
    (PROXIES, "10.0.0.1", ["203.0.113.9:99999999"], UNKNOWN),
    (PROXIES, "10.0.0.1", ["[203.0.113.9"], UNKNOWN),
    (PROXIES, "10.0.0.1", ["010.0.0.1"], UNKNOWN),
    (PROXIES, "10.0.0.1", ["1" * 5000], UNKNOWN),
    (PROXIES, "10.0.0.1", ["\xff\xfe"], UNKNOWN),
]


@pytest.mark.parametrize(("trusted", "peer", "told", "found"), ADDRESSES)
def test_the_address_of_a_caller(trusted: tuple[str, ...], peer: str | None, told: list[str], found: str) -> None:
    assert client_address(scope(peer, *told), trusted) == found


def test_other_headers_count_for_nothing() -> None:
    for name in (b"forwarded", b"x-real-ip", b"cf-connecting-ip", b"true-client-ip", b"x-forwarded"):
        assert client_address(scope("10.0.0.1", "203.0.113.9", name=name), PROXIES) == "10.0.0.1"


def test_a_long_chain_of_our_own_proxies_ends() -> None:
    told = ", ".join(["203.0.113.9"] + ["10.0.0.2"] * (2 * MOST_HOPS))
    assert client_address(scope("10.0.0.1", told), PROXIES) == UNKNOWN
    began = time.thread_time()
    assert client_address(scope("10.0.0.1", "," * 32_000), PROXIES) in (UNKNOWN, "10.0.0.1")
    assert time.thread_time() - began < 0.5


@given(st.text(st.characters(max_codepoint=255), max_size=200), st.sampled_from(["192.0.2.7", "2001:db8::7"]))
def test_spoofing_is_in_vain(written: str, attacker: str) -> None:
    """From outside directly; and through a proxy, which adds who asked it."""
    assert client_address(scope(attacker, written), PROXIES) == attacker
    assert client_address(scope("10.0.0.1", f"{written}, {attacker}"), PROXIES) == attacker
    assert client_address(scope("10.0.0.1", written, attacker), PROXIES) == attacker
    assert not is_local(scope("127.0.0.1", written, attacker), PROXIES)
    assert not allowed(("10.0.0.0/8",), client_address(scope("10.0.0.1", written, attacker), PROXIES))


@pytest.mark.parametrize(
    ("networks", "address", "inside"),
    [
        ((), "192.0.2.7", True),
        ((), "", True),
        (("192.0.2.0/24",), "192.0.2.7", True),
        (("192.0.2.0/24",), "192.0.3.7", False),
        (("192.0.2.0/24",), "::ffff:192.0.2.7", True),
        (("::ffff:192.0.2.0/120",), "192.0.2.7", True),
        (("192.0.2.7",), "192.0.2.7", True),
        (("2001:db8::/32", "192.0.2.0/24"), "2001:db8:1::5", True),
        (("2001:db8::/32",), "2001:db9::5", False),
        (("::/0",), "192.0.2.7", False),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("0.0.0.0/0", "::/0"), "", False),
        (("0.0.0.0/0", "::/0"), UNKNOWN, False),
        (("0.0.0.0/0",), "192.0.2.7:80", False),
        (("nonsense",), "192.0.2.7", False),
        (("fe80::/10",), "fe80::1%eth0", True),
    ],
)
def test_networks(networks: tuple[str, ...], address: str, inside: bool) -> None:
    assert allowed(networks, address) is inside


@pytest.mark.parametrize(
    ("peer", "told", "trusted", "local"),
    [
        ("127.0.0.1", [], (), True),
        ("::1", [], (), True),
        ("::ffff:127.0.0.1", [], (), True),
        ("127.8.9.1", [], (), True),
        ("192.0.2.7", [], (), False),
        ("192.0.2.7", ["127.0.0.1"], (), False),
        ("127.0.0.1", ["203.0.113.9"], (), False),  # nginx beside us that nobody listed
        ("127.0.0.1", ["127.0.0.1"], (), False),
        ("127.0.0.1", ["203.0.113.9"], PROXIES, False),
        ("127.0.0.1", [], PROXIES, True),
        (None, [], (), False),
    ],
)
def test_who_is_on_this_machine(peer: str | None, told: list[str], trusted: tuple[str, ...], local: bool) -> None:
    assert is_local(scope(peer, *told), trusted) is local


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.1", "2001:db8::/32", "::1", "0.0.0.0/0", "10.0.0.0/255.0.0.0"])
def test_a_network(text: str) -> None:
    assert network_problem(text) is None
    assert contains((text,), "10.0.0.1") or ":" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8 for all of it"),
        ("10.0.0.0/33", "must be a network such as"),
        ("", "must be a network such as"),
        ("localhost", "must be a network such as"),
        ("10.0.0", "must be a network such as"),
        ("2001:db8::1/32", "write 2001:db8::/32"),
    ],
)
def test_what_is_no_network(text: str, said: str) -> None:
    assert said in (network_problem(text) or "")


# --- at the doors of a router

Serve = Callable[..., RouterProcess]
TOKEN = "a-token-of-the-operator-0123456789"
ENV = {**UNHURRIED, "SWITCHYARD_ADMIN_TOKEN": TOKEN}


def status(router: RouterProcess, path: str, key: str = "", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Client(router.port, key).request("GET", path, headers=named).status


def test_metrics_are_closed_to_callers_behind_a_proxy(serve: Serve) -> None:
    """On loopback they are open, and a proxy of this machine comes from there for everybody."""
    router = serve({"providers": {}, "fallback": []}, ENV)
    assert status(router, "/metrics") == 200
    assert status(router, "/metrics", TOKEN, x_forwarded_for="203.0.113.9") == 200
    for told in ("203.0.113.9", "127.0.0.1", "::1", "", "nonsense"):
        assert status(router, "/metrics", x_forwarded_for=told) == 401, told
        reply = Client(router.port, "").request("GET", "/readyz", headers={"x-forwarded-for": told})
        assert reply.json.keys() == {"status"}, told
    assert status(router, "/metrics", forwarded="for=203.0.113.9") == 401


@pytest.mark.parametrize("trusted", [[], ["192.0.2.0/24"]])
def test_wrong_tokens_are_not_spread_over_made_up_addresses(serve: Serve, trusted: list[str]) -> None:
    """The spoof of H11: each try names another address, and the peer is no proxy of ours."""
    router = serve({"providers": {}, "fallback": [], "server": {"trusted_proxies": trusted}}, ENV)
    tries = [status(router, "/admin/api/keys", "wrong", x_forwarded_for=f"203.0.113.{n}") for n in range(14)]
    assert tries[:10] == [401] * 10
    assert 429 in tries[10:]


def test_callers_behind_a_trusted_proxy_are_told_apart(serve: Serve) -> None:
    router = serve({"providers": {}, "fallback": [], "server": {"trusted_proxies": ["127.0.0.0/8"]}}, ENV)

    def ask(told: str, key: str = "wrong") -> int:
        return status(router, "/admin/api/keys", key, x_forwarded_for=told)

    tries = [ask(f"192.0.2.{n}, 203.0.113.9") for n in range(14)]
    assert tries[:10] == [401] * 10
    assert 429 in tries[10:], "whatever it writes in front, the proxy names it"
    assert ask("203.0.113.10") == 401
    assert ask("203.0.113.10", TOKEN) == 200
    assert ask("203.0.113.9", TOKEN) == 200, "the right token passes the throttle of its neighbours"
    assert status(router, "/metrics", x_forwarded_for="203.0.113.9") == 401
    assert status(router, "/metrics") == 200


def test_many_addresses_cost_bounded_memory_and_little_time() -> None:
    dice = random.Random(3)
    networks = tuple(f"10.{number}.0.0/16" for number in range(50))
    for _ in range(40_000):
        contains(networks, f"{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(256)}")
    assert contains.cache_info().currsize <= 16_384
