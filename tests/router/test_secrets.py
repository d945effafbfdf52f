"""Nothing secret leaves a router: keys, prompts and answers are looked for in everything that it writes and shows.

Providers that fail repeat the credential they were sent; clients send prompts in requests of every kind of wrongness.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from tests.simulators.client import CLIENTS, OPENAI, Client
from tests.simulators.dialects import SECRET
from tests.simulators.router import KEY_VARIABLE, UNHURRIED, RouterProcess, providers
from tests.simulators.scripts import ANSWER
from tests.simulators.server import Simulator

Serve = Callable[..., RouterProcess]
PROVIDER_KEY = "sk-canary-provider/Q7m2+Zt9v0Xw4Lb6Ke8R="
HEADER = "canary-header/a8Jk2+Wq5Zs7Dx9Cv1Bn="
PROMPT = "canary-prompt: tell nobody that Ottokar has 3 + 4 ducks"
TOKEN = "adm-canary-5f0e9d8c7b6a4321fedcba9876543210"
STRANGER = "sk-canary-stranger-0a1b2c3d4e5f60718293a4b5c6d7e8f9"
FAILING = ("400", "401", "402", "403", "404", "413", "422", "429", "500", "503", "529", "error-in-200", "html",
           "role-then-garbage", "content-then-error", "content-then-garbage", "content-then-cut", "whole-for-stream",
           "short-length", "answer")  # fmt: skip


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it may be spelt: itself, percent-encoded, as JSON escapes it, in base64 at any offset."""
    raw = secret.encode()
    yield raw
    yield raw[4:-4]
    yield quote(secret, safe="").encode()
    yield quote(secret).encode()
    yield json.dumps(secret)[1:-1].encode()
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * offset + raw).rstrip(b"=")
            yield text[4 if offset else 0 : -3]


def holds(data: bytes, secret: str) -> bool:
    return any(form in data for form in forms(secret))


@pytest.fixture(scope="module")
def talkative(module_serve: Serve, cloud: Simulator, local: Simulator) -> RouterProcess:
    """A router that logs all it can, with a secret in each place that takes one."""
    config = providers(cloud.url, local.url)
    config["providers"]["cloud"]["headers"] = {"x-team-secret": HEADER}
    config["server"] = {"log": {"level": "debug"}}
    return module_serve(config, {**UNHURRIED, KEY_VARIABLE: PROVIDER_KEY, "SWITCHYARD_ADMIN_TOKEN": TOKEN})


@pytest.fixture(scope="module")
def answers(talkative: RouterProcess) -> bytes:
    """All that clients are answered, by calls that go wrong in every way and some that do not."""
    client = Client(talkative.port, talkative.key)
    seen: list[bytes] = []
    asked: list[tuple[str, bytes, dict[str, Any]]] = []
    system = [{"role": "system", "content": PROMPT}, {"role": "user", "content": PROMPT}]

    def ask(path: str, body: object, **options: Any) -> None:
        asked.append((path, body if isinstance(body, bytes) else json.dumps(body).encode(), options))

    def send(path: str, body: bytes, options: dict[str, Any]) -> None:
        reply = client.request("POST", path, body, **options)
        seen.append(reply.body + repr(reply.headers).encode())

    number = 0
    for dialect in CLIENTS:
        for script in FAILING:
            for stream in (False, True):
                for no_fallback in ("0", "1"):
                    number += 1
                    body = {"model": f"cloud/{script}@canary{number}", "messages": system, "stream": stream}
                    ask(dialect.path, body, headers={"x-switchyard-no-fallback": no_fallback})
    for path in ("/v1/completions", "/v1/embeddings", "/api/generate", "/api/embed", "/api/embeddings"):
        for script in ("500", "401", "answer"):
            ask(path, {"model": f"cloud/{script}@more", "prompt": PROMPT, "input": PROMPT})
    for dialect in CLIENTS:
        for raw in (
            f'{{"model": "chat", "messages": [{{"role": "user", "content": "{PROMPT}"'.encode(),
            json.dumps({"model": "chat", "messages": PROMPT}).encode(),
            json.dumps({"model": "nobody", "messages": system}).encode(),
            json.dumps({"model": "chat", "messages": [{"role": PROMPT, "content": PROMPT}]}).encode(),
            json.dumps({"model": "chat", "messages": system, "temperature": PROMPT, "tools": PROMPT}).encode(),
        ):
            ask(dialect.path, raw)
        ask(dialect.path, {"model": "chat", "messages": system}, key=STRANGER)
        ask(dialect.path, {"model": "chat", "messages": system}, key=f"{talkative.key[:-1]}!")
        ask(f"{dialect.path}?key={quote(STRANGER)}", {"model": "chat", "messages": system})
        ask(f"{dialect.path}?key={quote(STRANGER)}", {"model": "chat", "messages": system}, key="")
        ask(f"/v1/{quote(STRANGER)}", {"model": "chat", "messages": system})
    for key in (STRANGER, TOKEN[:-1] + "x"):
        ask("/admin/api/keys", {"name": "x"}, key=key)
    ask("/admin/api/keys", {"name": PROMPT * 9, "nonsense": STRANGER}, key=TOKEN)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda each: send(*each), asked))
    client.raw(client.post_bytes(OPENAI.path, PROMPT.encode())[:-10], half_close=True)
    client.raw(
        f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {STRANGER}\r\nBad Header\r\n\r\n".encode(), half_close=True
    )
    return b"\n".join(seen)


@pytest.fixture(scope="module")
def shown(talkative: RouterProcess, answers: bytes) -> dict[str, bytes]:
    """All that the router writes and shows, by place, once the last call is in its log."""
    client = Client(talkative.port, talkative.key)
    client.ask(OPENAI, "cloud/answer@the-last", stream=False)
    talkative.log_of("cloud/answer@the-last")
    pages = {
        path: client.request("GET", path, key=TOKEN if path.startswith("/admin") else None).body
        for path in (
            "/metrics", "/readyz", "/healthz", "/v1/models", "/api/tags", "/v1/models/chat", "/admin/api/status",
            "/admin/api/keys", "/admin/openapi.json", "/admin/api/keys/default",
        )
    }  # fmt: skip
    files = {
        str(path.relative_to(talkative.directory)): path.read_bytes()
        for path in (talkative.directory / "data").rglob("*")
        if path.is_file()
    }
    assert any("appendonly" in name for name in files)
    assert len(talkative.err) > 100, "the calls are in the log"
    return {
        "standard output": "\n".join(talkative.out).encode(),
        "standard error": "\n".join(talkative.err).encode(),
        **pages,
        **files,
    }


@pytest.mark.parametrize(
    "secret",
    [PROVIDER_KEY, HEADER, PROMPT, TOKEN, STRANGER, SECRET, ANSWER, "Only the beginning"],
    ids=["provider key", "header", "prompt", "admin token", "stranger's key", "simulator's key", "answer", "part"],
)
def test_nothing_secret_is_written_or_shown(shown: dict[str, bytes], secret: str) -> None:
    places = [place for place, data in shown.items() if holds(data, secret)]
    lines = [line for line in shown["standard error"].splitlines() if holds(line, secret)]
    assert places == [], lines[:3]


def test_the_first_key_is_in_the_banner_alone(shown: dict[str, bytes], talkative: RouterProcess) -> None:
    assert [place for place, data in shown.items() if holds(data, talkative.key)] == ["standard output"]
    assert holds(shown["standard output"], talkative.key), "what finds nothing proves nothing"


def test_no_client_is_told_what_a_provider_was_sent(answers: bytes) -> None:
    for secret in (PROVIDER_KEY, HEADER, SECRET, TOKEN):
        assert not holds(answers, secret)
    assert len(answers) > 10_000
    assert b"simulated trouble" in answers, "the rest of what providers say is passed on"


def test_no_client_is_told_its_own_wrong_key(answers: bytes) -> None:
    """But for the path that was asked for, which is repeated: a key does not belong there."""
    assert answers.count(STRANGER.encode()) <= answers.count(f"/v1/{STRANGER}".encode())


@pytest.mark.parametrize("secret", [PROVIDER_KEY, PROMPT])
def test_every_spelling_is_found(secret: str) -> None:
    for noise in (b"", b"x", b"xy", b"xyz"):
        assert holds(base64.b64encode(noise + secret.encode() + b"more"), secret)
    assert holds(b"a=" + quote(secret).encode(), secret)
    assert not holds(b"nothing to see", secret)
