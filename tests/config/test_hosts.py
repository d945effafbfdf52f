"""Addresses as people write them."""

from __future__ import annotations

import pytest

from router.config_hosts import clean_url, is_loopback, is_own, ollama_problem, ollama_url, url_problem


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:5678", "http://1.2.3.4:5678"),
        (":5678", "http://127.0.0.1:5678"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("Example.COM", "http://example.com:11434"),
        ("example.com:1234", "http://example.com:1234"),
        ("http://example.com", "http://example.com:80"),
        ("https://example.com", "https://example.com:443"),
        ("https://example.com:8443/", "https://example.com:8443"),
        ("https://gw.example/ollama/", "https://gw.example:443/ollama"),
        ("example.com/ollama", "http://example.com:11434/ollama"),
        ("example.com:65536", "http://example.com:11434"),
        ("example.com:x", "http://example.com:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:5678", "http://[::1]:5678"),
        ("[::]", "http://[::1]:11434"),
        (' "1.2.3.4" ', "http://1.2.3.4:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(text: str, url: str) -> None:
    assert ollama_url(text) == url
    assert url_problem(url) is None
    assert ollama_problem(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://user:pw@h/", "user or password"),
        ("user:pw@h:11434", "user or password"),
        ("http://127.0.0.1:99999", "port"),
        ("http://[::1]:x/", "port"),
        ("http://h:0", "port 0"),
        ("http://h:80?x=1", "query"),
        ("http://h?x=1", "query"),
        ("ftp://h", "must be a URL"),
    ],
)
def test_what_is_no_address_of_ollama(text: str, says: str) -> None:
    wrong = ollama_problem(text)
    assert wrong
    assert says in wrong
    assert "pw" not in wrong


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://h/v1/", "https://h/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/v1/chat/completions/", "https://h/v1"),
        ("https://h/api/v3", "https://h/api/v3"),
        ("https://h", "https://h"),
    ],
)
def test_pasted_endpoints_are_cut_off(text: str, url: str) -> None:
    assert clean_url(text) == url


@pytest.mark.parametrize(
    "url", ["ftp://h", "h", "http://", "http://h:99999", "http://[x", "http://h?x=1", "http://a b"]
)
def test_what_is_no_base_url(url: str) -> None:
    assert url_problem(url)


@pytest.mark.parametrize(
    ("url", "listener", "own"),
    [
        ("http://127.0.0.1:8080", ("127.0.0.1", 8080), True),
        ("http://localhost:8080/v1", ("127.0.0.1", 8080), True),
        ("http://[::1]:8080", ("0.0.0.0", 8080), True),
        ("http://127.0.0.1:8080", ("0.0.0.0", 8080), True),
        ("http://127.0.0.1:8080", ("::", 8080), True),
        ("http://10.0.0.5:8080", ("10.0.0.5", 8080), True),
        ("http://10.0.0.5:8080", ("0.0.0.0", 8080), False),
        ("http://127.0.0.2:8080", ("127.0.0.1", 8080), False),
        ("http://127.0.0.1:8081", ("127.0.0.1", 8080), False),
        ("https://example.com", ("example.com", 443), True),
    ],
)
def test_our_own_address_is_known(url: str, listener: tuple[str, int], own: bool) -> None:
    assert is_own(url, [listener]) is own


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("gpu-box", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
