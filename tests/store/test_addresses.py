"""`redis.url` in all its forms: what is read from it, and what is said about a wrong one."""

from __future__ import annotations

import pytest

from router.config_hosts import redis_problem
from router.nodes import read, slot_of, target
from router.pipe import Login, Place, Refused, pack

A, B = Place("a", 1), Place("b", 2)


@pytest.mark.parametrize(
    ("url", "kind", "seeds", "service", "db", "name"),
    [
        ("redis://h", "single", (Place("h", 6379),), "", 0, "redis://h:6379/0"),
        ("redis://u:p@h:7/3", "single", (Place("h", 7),), "", 3, "redis://h:7/3"),
        ("redis://[::1]:7/3", "single", (Place("::1", 7),), "", 3, "redis://[::1]:7/3"),
        ("unix://u:p@/run/r.sock?db=2", "single", (Place(path="/run/r.sock"),), "", 2, "unix:///run/r.sock"),
        ("redis+sentinel://u:p@a:1,b:2/main/4", "sentinel", (A, B), "main", 4, "redis+sentinel://a:1,b:2/main/4"),
        ("redis+sentinel://a/main", "sentinel", (Place("a", 26379),), "main", 0, "redis+sentinel://a:26379/main/0"),
        ("redis+cluster://u:p@a:1,b:2", "cluster", (A, B), "", 0, "redis+cluster://a:1,b:2"),
        ("redis+cluster://A/0", "cluster", (Place("a", 6379),), "", 0, "redis+cluster://a:6379"),
        ("redis+cluster://[::1]:1,[::2]:2", "cluster", (Place("::1", 1), Place("::2", 2)), "", 0,
         "redis+cluster://[::1]:1,[::2]:2"),
    ],
)  # fmt: skip
def test_what_is_read(url: str, kind: str, seeds: tuple[Place, ...], service: str, db: int, name: str) -> None:
    assert redis_problem(url) is None
    servers = read(url)
    assert (servers.kind, servers.seeds, servers.service, servers.login.db, servers.name) == (
        kind, seeds, service, db, name,
    )  # fmt: skip
    if "u:p@" in url:
        assert (servers.login.username, servers.login.password) == ("u", "p")
    assert servers.login.tls is None


@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel", "rediss+cluster"])
def test_tls_and_options(scheme: str) -> None:
    path = "/main" if "sentinel" in scheme else ""
    servers = read(f"{scheme}://u%40x:p%2Fw@a:1{path}?ssl_cert_reqs=none&sentinel_password=s%26")
    assert servers.login.tls is not None
    assert (servers.login.username, servers.login.password) == ("u@x", "p/w")
    if path:
        assert servers.sentinel_login.password == "s&"
        assert servers.sentinel_login.tls is not None
    assert not any(secret in repr(servers) for secret in ("p/w", "s&", "u@x"))
    assert not any(secret in str(servers.name) for secret in ("p/w", "s&", "u@x"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://canary:1/", "lacks the service's name"),
        ("redis+sentinel://a:1,:2/canary", "must name its servers"),
        ("redis+sentinel://a:canary/main", "port that is not a number"),
        ("redis+sentinel://a:0/main", "port that is not a number"),
        ("redis+sentinel://a:1/main/canary", "must end in /<service name>"),
        ("redis+sentinel://a:1/main#canary", "fragment"),
        ("redis+sentinel://u:canary/x@a:1/main", "port that is not a number"),
        ("redis+cluster://", "must name its servers"),
        ("redis+cluster://a:1/3", "only number 0"),
        ("redis+cluster://a:1/main/0", "only number 0"),
        ("redis+cluster://[canary:1", "is not a URL"),
        ("redis+canary://a:1", "must be embedded, or start with"),
    ],
)
def test_what_is_refused(url: str, said: str) -> None:
    problem = redis_problem(url)
    assert problem is not None
    assert said in problem
    assert "canary" not in problem


def test_slots() -> None:
    # The examples of the Cluster specification, and the edges of its table.
    assert slot_of("123456789") == 0x31C3
    assert slot_of("") == 0
    assert 0 <= min(map(slot_of, map(str, range(1000)))) <= max(map(slot_of, map(str, range(1000)))) < 16384


def test_redirections() -> None:
    assert target(Refused("MOVED 3999 127.0.0.1:6381"), A) == (3999, Place("127.0.0.1", 6381))
    assert target(Refused("ASK 7 :6381"), A) == (7, Place("a", 6381))
    assert target(Refused("MOVED 7 ?:6381"), A) == (7, Place("a", 6381))
    assert target(Refused("MOVED 7 ::1:6381"), A) == (7, Place("::1", 6381))


def test_commands_are_packed_in_bytes() -> None:
    assert pack("SET", "ü", b"\x00\r\n", -7) == b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xbc\r\n$3\r\n\x00\r\n\r\n$2\r\n-7\r\n"


def test_a_login_is_never_shown() -> None:
    login = Login("canary-user", "canary-password", 3)
    assert login.commands()[0] == pack("AUTH", "canary-user", "canary-password")
    assert Login(None, "canary").commands()[0] == pack("AUTH", "canary")
    assert "canary" not in f"{login!r} {login}"
