"""Issued keys, the provider's key, the admin token, the store's password and the pepper: after traffic of every kind
they are looked for, however spelt, in all that a router and its store write, keep and show."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.router.test_secrets import FAILING, holds
from tests.simulators.client import CLIENTS, OPENAI, Client, Reply
from tests.simulators.router import KEY_VARIABLE, UNHURRIED
from tests.simulators.stores import Server, until
from tests.stores.books import dump
from tests.stores.paid import Paid
from tests.stores.stands import House, Stand, housed

PEPPER = "canary-pepper-9Zx8Yw7Vu6Ts5Rq4Po3Nm2Lk1Ji0"
PROVIDER_KEY = "sk-canary-provider/Q7m2+Zt9v0Xw4Lb6Ke8R="
TOKEN = "adm-canary-5f0e9d8c7b6a4321fedcba9876543210"
PASSWORD = "canary-p4ss+word/of=the*store"
PROMPT = "canary-prompt: nobody is to know that Ottokar has 3 + 4 ducks"


class _Locked(Stand):
    @property
    def url(self) -> str:
        assert isinstance(self.box, Server)
        return f"redis://:{quote(PASSWORD, safe='')}@{self.box.address}/0"


@dataclass
class Found:
    """Everything, by place; and the keys that were issued on the way."""

    places: dict[str, bytes]
    answers: dict[str, bytes]
    keys: dict[str, str]


def _traffic(home: House, keys: dict[str, str]) -> Iterator[bytes]:
    """Calls that go well, and wrong in every way; all that was answered."""
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": PROMPT}]
    clients = {name: Client(home.router.port, key) for name, key in keys.items()}
    asked: list[tuple[Client, str, bytes, dict[str, Any]]] = []

    def ask(client: Client, path: str, body: object, **more: Any) -> None:
        asked.append((client, path, body if isinstance(body, bytes) else json.dumps(body).encode(), more))

    number = 0
    for client in clients.values():
        for dialect in CLIENTS:
            for script in ("even", *FAILING):
                number += 1
                body = {"model": f"sim/{script}@c{number}", "messages": messages, "stream": bool(number % 2)}
                ask(client, dialect.path, {**body, "user": keys["first"]})
            ask(client, dialect.path, {"model": keys["first"], "messages": messages})
            ask(client, dialect.path, {"model": f"sim/{keys['first']}", "messages": messages})
            ask(client, dialect.path, {"model": "sim/even", "messages": keys["first"]})
            ask(client, dialect.path, {"model": "sim/even", "messages": messages, "temperature": keys["first"]})
            ask(client, dialect.path, b'{"model": "sim/even", "' + keys["first"].encode())
            ask(client, f"{dialect.path}?key={quote(keys['first'])}", {"model": "sim/even", "messages": messages})
            ask(client, dialect.path, {"model": "sim/even", "messages": messages}, key=keys["first"][:-1] + "x")
            ask(client, dialect.path, {"model": "sim/even", "messages": messages}, headers={"x-switchyard-tags": "a"})
        ask(client, "/admin/api/keys", {"name": "x"})
        ask(client, "/v1/embeddings", {"model": "sim/even", "input": PROMPT})
    admin = home.admin
    wrong: list[dict[str, Any]] = [
        {"name": "y", "nonsense": keys["first"]},
        {"name": 3},
        {"name": "y", "limits": {"rpm": TOKEN}},
    ]
    for body in wrong:
        ask(admin, "/admin/api/keys", body)
    ask(admin, "/admin/api/keys", {"name": "y"}, key=TOKEN[:-1] + "x")
    ask(admin, "/admin/api/nowhere", {"token": TOKEN})

    def send(one: tuple[Client, str, bytes, dict[str, Any]]) -> bytes:
        client, path, body, more = one
        reply = client.request("POST", path, body, **more)
        return reply.body + repr(reply.headers).encode()

    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(send, asked)


def _frozen(home: House, keys: dict[str, str]) -> Iterator[bytes]:
    """Calls while the store stands still, streams that end meanwhile, and what lies in the journal then."""
    store = home.stand.box
    assert isinstance(store, Server)
    with home.load(keys["first"], model="sim/lasting@2", callers=6, most=1, stream=True) as load:
        until(lambda: len(home.paid.asked("lasting@2")) == 6, "streams run")
        os.kill(store.pid, signal.SIGSTOP)
        try:
            load.wait()
            until(lambda: len(home.journal()) >= 6, "the journal has them")
            yield b"\n".join(line.encode() for line in home.journal())
            yield home.ready().body
            yield home.client(keys["limited"]).ask(OPENAI, "sim/even", stream=False).body
        finally:
            os.kill(store.pid, signal.SIGCONT)
    home.until_ready()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    directory = tmp_path_factory.mktemp("canaries")
    env = {KEY_VARIABLE: PROVIDER_KEY, "SWITCHYARD_ADMIN_TOKEN": TOKEN, "SWITCHYARD_PEPPER": PEPPER}
    with Paid() as paid, Server(directory / "redis", {"appendonly": "yes"}, password=PASSWORD) as store:
        more = {"server": {"log": {"level": "debug"}}}
        with housed(_Locked(store), directory / "router", paid, 2, env, **more) as home:
            home.router.admin_token = TOKEN
            keys = {"banner": home.router.key}
            for name, limits in (("first", {}), ("limited", {"max_requests": 3}), ("rotated", {}), ("revoked", {})):
                key_id, keys[name] = home.key(name, team="canaries", limits=limits)
                if name == "rotated":
                    answer = home.admin.request("POST", f"/admin/api/keys/{key_id}/rotate", {"overlap": "1h"})
                    keys["rotated again"] = answer.json["key"]
                elif name == "revoked":
                    assert home.admin.request("DELETE", f"/admin/api/keys/{key_id}").status == 200
            answers = {"answers": b"\n".join(_traffic(home, keys)), "journal": b"\n".join(_frozen(home, keys))}
            home.router.write_config({"providers": {"sim": {"vendor": "openai", "api_kee": PROVIDER_KEY}}})
            os.kill(home.router.process.pid, signal.SIGHUP)
            home.router.wait_line("config", home.router.err)
            home.books()
            places = dict(_shown(home, directory))
        places["standard output"] = "\n".join(line for line in home.router.out if keys["banner"] not in line).encode()
        places["standard error"] = "\n".join(home.router.err).encode()
        yield Found(places, answers, keys)


def _shown(home: House, directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in (
        "/metrics", "/readyz", "/healthz", "/v1/models", "/admin/api/status", "/admin/api/keys", "/admin/api/teams",
        "/admin/api/audit", "/admin/api/audit/verify", "/admin/api/usage", "/admin/api/usage.csv",
        "/admin/api/requests?limit=1000", "/admin/openapi.json",
    ):  # fmt: skip
        key = TOKEN if path.startswith("/admin") else None
        yield path, _told(Client(home.router.port, home.router.key), path, key)
    yield "the store", repr(dump([home.stand.box.client()])).encode()  # type: ignore[union-attr]  # a single server
    (home.router.directory / "prices.yaml").touch()
    for path_ in directory.rglob("*"):
        # The workers' copy of the config is what the operator wrote, for them alone.
        if path_.name == "config.yaml":
            assert (path_.stat().st_mode & 0o77, path_.parent.stat().st_mode & 0o77) == (0, 0)
        elif path_.is_file() and path_.name != "switchyard.yaml":
            yield str(path_.relative_to(directory)), path_.read_bytes()


def _told(client: Client, path: str, key: str | None) -> bytes:
    """What is told at a path; a store that is slow for a moment, on a busy machine, is asked again."""
    replies: list[Reply] = []

    def ask() -> bool:
        replies.append(client.request("GET", path, key=key))
        return replies[-1].status != 503

    until(ask, path)
    return replies[-1].body


SECRETS = ("provider", "token", "password", "pepper", "prompt")
KEYS = ("banner", "first", "limited", "rotated", "rotated again", "revoked")


def _secret(found: Found, name: str) -> str:
    fixed = dict(zip(SECRETS, (PROVIDER_KEY, TOKEN, PASSWORD, PEPPER, PROMPT), strict=True))
    return fixed.get(name) or found.keys[name]


@pytest.mark.parametrize("name", [*SECRETS, *KEYS])
def test_nothing_keeps_or_shows_it(found: Found, name: str) -> None:
    # The process of a key's making shows it once; its random part alone must not be found either.
    secret = _secret(found, name)
    places = [place for place, data in found.places.items() if holds(data, secret)]
    assert places == [], [line[:300] for line in found.places[places[0]].splitlines() if holds(line, secret)][:3]
    assert not holds(found.answers["journal"], secret)


@pytest.mark.parametrize("name", ["provider", "token", "password", "pepper"])
def test_no_client_is_told(found: Found, name: str) -> None:
    assert not holds(found.answers["answers"], _secret(found, name))


def test_what_was_searched_was_there(found: Found) -> None:
    """What finds nothing proves nothing."""
    assert len(found.answers["answers"]) > 50_000
    assert found.answers["journal"].count(b'"command"') >= 6
    assert len(found.places["standard error"].splitlines()) > 100
    assert b"canaries" in found.places["/admin/api/usage.csv"]
    assert b"create" in found.places["/admin/api/audit"]
    assert b"digest" in found.places["the store"]
    assert any("appendonly" in place and b"digest" in data for place, data in found.places.items())
    assert holds(PASSWORD.encode(), PASSWORD)


def test_what_the_command_line_prints(found: Found, tmp_path: Path, paid: Paid) -> None:
    """Digests are in exports, credentials nowhere."""
    env = {**UNHURRIED, KEY_VARIABLE: PROVIDER_KEY, "SWITCHYARD_ADMIN_TOKEN": TOKEN}
    with (
        Server(tmp_path / "redis", {"appendonly": "yes"}, password=PASSWORD) as store,
        housed(_Locked(store), tmp_path / "router", paid, 1, env) as home,
    ):
        home.router.admin_token = TOKEN
        _, key = home.key("shown once")
        assert home.client(key).ask(OPENAI, "sim/even", stream=False).status == 200
        home.books()
        verbs = ["config show", "config show --json", "config show --origin", "keys export --usage", "keys ls"]
        verbs += ("usage --csv", "audit ls --json", "logs", "check", "providers", "doctor")
        with ThreadPoolExecutor(2) as pool:
            done = dict(zip(verbs, pool.map(lambda verb: home.run(*verb.split(), env=env), verbs), strict=True))
    told = {verb: (one.stdout + one.stderr).encode() for verb, one in done.items()}
    assert b"digest" in told["keys export --usage"], told["keys export --usage"]
    assert b"sim" in told["config show"]
    for secret in (PROVIDER_KEY, TOKEN, PASSWORD, key):
        assert [verb for verb, text in told.items() if holds(text, secret)] == []
