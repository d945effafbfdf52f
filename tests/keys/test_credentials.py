"""Keys as text: the format, the checksum, the pepper file, and where a request carries its key."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import Unauthorized
from router.credentials import (
    ALPHABET,
    credential_of,
    key_id_of,
    load_pepper,
    load_peppers,
    masked,
    new_admin_token,
    new_credential,
    new_id,
    not_a_key,
)
from router.store import StoreError

ids = st.text(ALPHABET, min_size=12, max_size=12)
KEY = new_credential(new_id())
OTHER = new_credential(new_id())


@given(ids)
def test_a_key_has_its_format_and_tells_its_id(key_id: str) -> None:
    credential = new_credential(key_id)
    assert len(credential) == 68
    assert credential.startswith(f"sk-sy-{key_id}-")
    assert key_id_of(credential) == key_id


@given(ids, st.integers(6, 67), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_found_without_a_store(key_id: str, place: int, character: str) -> None:
    credential = new_credential(key_id)
    changed = credential[:place] + character + credential[place + 1 :]
    assert (key_id_of(changed) is None) == (changed != credential)


@given(st.text(max_size=100))
def test_any_text_is_no_key_rather_than_an_error(text: str) -> None:
    assert key_id_of(text) is None
    assert key_id_of("sk-sy-" + text) is None


@pytest.mark.parametrize(
    "junk",
    ["", "'", "*", KEY + "\r\n", KEY + "\n", " " + KEY, KEY * 200, KEY[:-1], KEY.upper()],
    ids=["nothing", "quote", "star", "CRLF after", "LF after", "blank before", "many times", "cut", "in capitals"],
)
def test_junk_is_no_key(junk: str) -> None:
    assert key_id_of(junk) is None


def test_keys_do_not_repeat() -> None:
    assert len({new_credential("0" * 12) for _ in range(1000)}) == 1000


def test_what_a_text_shows_of_a_misplaced_secret() -> None:
    token = new_admin_token()
    assert masked(f"<{KEY}> {OTHER}") == f"<{KEY[:19]}***> {OTHER[:19]}***"
    assert masked(f"cloud/{token}") == masked(f"cloud/{token[:-1]}") == "cloud/sy-admin-***"
    assert masked("happy-days, sk-sy-mine") == "happy-days, sk-sy-mine"


B = b"authorization"


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        ([], b"", None),
        ([(B, b"Bearer k")], b"", "k"),
        ([(B, b"bearer   k ")], b"", "k"),
        ([(B, b"BEARER k")], b"", "k"),
        ([(B, b"Bearer ")], b"", None),
        ([(B, b"")], b"", None),
        ([(b"x-api-key", b" k ")], b"", "k"),
        ([(b"x-goog-api-key", b"k")], b"", "k"),
        ([], b"alt=sse&key=k%2D1", "k-1"),
        ([], b"monkey=k", None),
        ([], b"key=", None),
        ([(B, b"Bearer k"), (b"x-api-key", b"k")], b"key=k", "k"),
        ([(B, b"Basic dTpw"), (b"x-api-key", b"k")], b"", "k"),
        ([(B, b"Bearer \xff")], b"", "\xff"),
    ],
)
def test_where_a_request_carries_its_key(headers: list[tuple[bytes, bytes]], query: bytes, found: str | None) -> None:
    assert credential_of(headers, query) == found


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([(B, b"Bearer " + KEY.encode()), (b"x-api-key", OTHER.encode())], b""),
        ([(B, b"Bearer " + KEY.encode()), (B, b"Bearer " + OTHER.encode())], b""),
        ([(b"x-goog-api-key", KEY.encode())], b"key=" + OTHER.encode()),
        ([], b"key=" + KEY.encode() + b"&key=" + OTHER.encode()),
    ],
    ids=["two headers", "one header twice", "header and query", "query twice"],
)
def test_two_different_keys_are_refused(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    with pytest.raises(Unauthorized, match="two different API keys") as caught:
        credential_of(headers, query)
    assert "sk-sy" not in caught.value.message


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"Basic dXNlcjpwYXNz", "uses the scheme 'basic'"),
        (b"Token abc", "uses the scheme 'token'"),
        (KEY.encode(), "does not start with the word Bearer"),
        (b"Bearer" + KEY.encode(), "does not start with the word Bearer"),
    ],
    ids=["basic", "token", "bare", "no blank"],
)
def test_another_scheme_is_named_with_the_way_to_do_it_and_nothing_of_its_value(value: bytes, told: str) -> None:
    with pytest.raises(Unauthorized, match=told) as caught:
        credential_of([(B, value)])
    assert "'Authorization: Bearer <key>'" in caught.value.message
    assert not any(word in caught.value.message for word in ("dXNl", "abc", KEY[6:18]))


def test_an_admin_token_in_a_keys_place_is_told_so() -> None:
    token = new_admin_token()
    told = not_a_key(token).message
    assert "admin token" in told
    assert "switchyard keys create" in told
    assert token[len("sy-admin-") :] not in told
    assert not_a_key("sk-other").message == "Incorrect API key provided."


def test_the_pepper_is_made_once_and_private(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        peppers = set(pool.map(lambda _: load_pepper(tmp_path, {}), range(16)))
    assert len(peppers) == 1
    assert len(peppers.pop()) == 32
    assert stat.S_IMODE((tmp_path / "pepper").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["pepper"]


def test_a_pepper_of_the_environment_wins_and_must_be_long(tmp_path: Path) -> None:
    assert load_pepper(tmp_path, {"SWITCHYARD_PEPPER": "p" * 32}) == b"p" * 32
    assert load_pepper(tmp_path, {"SWITCHYARD_PEPPER": "Ab" * 32 + "\n"}) == b"\xab" * 32
    assert load_peppers(tmp_path, {"SWITCHYARD_PEPPER": "ab" * 32}) == (b"\xab" * 32, b"ab" * 32)
    assert not (tmp_path / "pepper").exists()
    with pytest.raises(StoreError, match="too short"):
        load_pepper(tmp_path, {"SWITCHYARD_PEPPER": "short"})


def test_a_damaged_pepper_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text("half")
    with pytest.raises(StoreError, match="restore it from a backup"):
        load_pepper(tmp_path, {})
