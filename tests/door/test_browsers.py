"""Pages of other sites do not reach a listener that asks for no key."""

from __future__ import annotations

import pytest

from router.browsers import host_allowed, origin_allowed


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:11434", True),
        ("127.0.0.1:11434", True),
        ("[::1]:11434", True),
        ("192.168.1.5", True),
        ("0.0.0.0:11434", True),
        ("box:11434", True),
        ("gpu.local", True),
        ("app.localhost", True),
        ("host.docker.internal:11434", True),
        ("", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evillocalhost", False),
        ("8.8.8.8", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:
    assert host_allowed(host, "Box") is allowed


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:8080", True),
        ("app://obsidian.md", True),
        ("https://chat.example", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
        ("http://[bad", False),
        ("ftp://localhost", False),
    ],
)
def test_origins(origin: str | None, allowed: bool) -> None:
    assert origin_allowed(origin, ["https://chat.example"]) is allowed
    assert origin_allowed(origin, ["*"])
