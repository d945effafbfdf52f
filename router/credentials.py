"""API keys as text: their format, their digest, and where a request carries them. No store is needed for any of it.

    sk-sy-<12 characters: public id>-<43 characters: 32 random bytes><6 characters: CRC-32 of all before>

Everything is base62. The id is for look-ups, logs and conversation; the checksum lets junk be refused without a
look-up and lets
scanners for leaked secrets be sure. Only HMAC-SHA-256 of the whole text under a pepper is kept: a fast digest is
right for 256 random
bits, and without the pepper a stolen store is of no use for guessing.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes
from zlib import crc32

from providers.errors import Unauthorized
from router.embedded import StoreError
from router.secret_file import resolve

PREFIX: Final = "sk-sy-"
ADMIN_PREFIX: Final = "sy-admin-"
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 43
"""62^43 > 2^256: the least that holds 32 bytes."""
CHECK_LENGTH: Final = 6
PEPPER_LENGTH: Final = 32
SHORTEST_TOKEN: Final = 20
"""Characters of an admin token that an operator chooses."""

_SHAPE: Final = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{ID_LENGTH}}})-[0-9A-Za-z]{{{SECRET_LENGTH}}}([0-9A-Za-z]{{{CHECK_LENGTH}}})"
)
_SECRETS: Final = re.compile(
    rf"({PREFIX}[0-9A-Za-z]{{{ID_LENGTH}}}-)[0-9A-Za-z]{{{SECRET_LENGTH + CHECK_LENGTH}}}|({ADMIN_PREFIX})[0-9A-Za-z]+"
)
_LENGTH: Final = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + CHECK_LENGTH


def base62(number: int, length: int) -> str:
    """`number` in `length` digits, padded with zeros."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


def checksum(text: str) -> str:
    return base62(crc32(text.encode("ascii")), CHECK_LENGTH)


def new_id() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))


def new_credential(key_id: str) -> str:
    """A new secret for the key `key_id`, from the system's random source."""
    text = f"{PREFIX}{key_id}-{base62(int.from_bytes(secrets.token_bytes(32)), SECRET_LENGTH)}"
    return text + checksum(text)


def new_admin_token() -> str:
    text = ADMIN_PREFIX + base62(int.from_bytes(secrets.token_bytes(32)), SECRET_LENGTH)
    return text + checksum(text)


def key_id_of(credential: str) -> str | None:
    """The public id, when the text has the format and its checksum is right."""
    if len(credential) != _LENGTH:
        return None
    shape = _SHAPE.fullmatch(credential)
    if shape is None or checksum(credential[:-CHECK_LENGTH]) != shape[2]:
        return None
    return shape[1]


def masked(text: str) -> str:
    """The text, with no more than the public id of keys of ours in it, and of admin tokens that we made no more than
    that they are some: clients put them in the wrong place."""
    return _SECRETS.sub(r"\1\2***", text) if "sy-" in text else text


def shown_name(name: str) -> str:
    """A name that a client sent (a model's), for logs and tables: masked, at most 200 characters."""
    return masked(name)[:200]


def digest(pepper: bytes, credential: str) -> bytes:
    """What is kept of a credential."""
    return hmac.digest(pepper, credential.encode("utf-8", "surrogateescape"), "sha256")


# --- the pepper

_HEX: Final = re.compile(rf"[0-9a-fA-F]{{{2 * PEPPER_LENGTH}}}")


def load_pepper(data_dir: Path, environ: Mapping[str, str]) -> bytes:
    """SWITCHYARD_PEPPER, as it is or in the file that it names (`file:/path`), else `data_dir/pepper`, made at the
    first start. 64 hexadecimal digits mean the same bytes in all of them.

    All routers of one store need the same pepper: with a remote store, copy the file or set the variable.
    """
    return load_peppers(data_dir, environ)[0]


def load_peppers(data_dir: Path, environ: Mapping[str, str]) -> tuple[bytes, ...]:
    """As `load_pepper`, and the other way to read a variable of 64 hexadecimal digits: as text, as it once was. Which
    one a store means is known by its stamp (`router.pepper`)."""
    if given := environ.get("SWITCHYARD_PEPPER", ""):
        try:
            given = resolve(given)
        except ValueError as error:
            raise StoreError(f"SWITCHYARD_PEPPER {error}") from error
        if len(given) < PEPPER_LENGTH:
            raise StoreError(
                "SWITCHYARD_PEPPER is too short: 32 or more random characters are needed (openssl rand -hex 32)"
            )
        text = given.encode()
        return (bytes.fromhex(given.strip()), text) if _HEX.fullmatch(given.strip()) else (text,)
    path = data_dir / "pepper"
    try:
        with contextlib.suppress(FileNotFoundError):
            return (_read_pepper(path),)
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_pepper(path)
        return (_read_pepper(path),)
    except OSError as error:
        raise StoreError(f"{path} cannot be used: {error.strerror}; run this as the user that serves") from error


def _make_pepper(path: Path) -> None:
    """Whole or not at all, and the first of several starters wins."""
    made = path.with_name(f"pepper.{secrets.token_hex(6)}.new")
    handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_bytes(PEPPER_LENGTH).hex().encode() + b"\n")
        os.fsync(handle)
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.close(handle)
        os.unlink(made)


def _read_pepper(path: Path) -> bytes:
    text = path.read_text("ascii", "replace").strip()
    try:
        pepper = bytes.fromhex(text)
    except ValueError:
        pepper = b""
    if len(pepper) != PEPPER_LENGTH:
        raise StoreError(f"{path} is damaged: restore it from a backup (without it every key must be made anew)")
    return pepper


# --- where a request carries its key

_HOW: Final = "send it as 'Authorization: Bearer <key>', 'x-api-key: <key>', 'x-goog-api-key: <key>' or '?key=<key>'"
_SCHEMES: Final = frozenset(
    {"basic", "digest", "negotiate", "ntlm", "token", "apikey", "api-key", "key", "aws4-hmac-sha256", "hmac"}
)
"""The only words of an Authorization header that an error may repeat: an unknown first word may be the key itself."""


def credential_of(headers: Iterable[tuple[bytes, bytes]], query: bytes = b"") -> str | None:
    """The one key of a request (ASGI headers, names in lower case), or None. Raises `Unauthorized`; never repeats what
    it read.
    """
    found: bytes | None = None
    foreign: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                if value.strip():
                    foreign = scheme
                continue
            value = rest.strip()
        elif name == b"x-api-key" or name == b"x-goog-api-key":
            value = value.strip()
        else:
            continue
        if value:
            if found is not None and found != value:
                raise _two_keys()
            found = value
    if query and b"key=" in query:
        for pair in query.split(b"&"):
            if pair.startswith(b"key="):
                value = unquote_to_bytes(pair[4:].replace(b"+", b" ")).strip()
                if value:
                    if found is not None and found != value:
                        raise _two_keys()
                    found = value
    if found is not None:
        return found.decode("latin-1")
    if foreign is not None:
        word = foreign.decode("latin-1").lower()
        seen = f"uses the scheme '{word}'" if word in _SCHEMES else "does not start with the word Bearer"
        raise Unauthorized(f"The Authorization header {seen}, which is not how an API key is read here: {_HOW}.")
    return None


def missing() -> Unauthorized:
    return Unauthorized(f"No API key was sent: {_HOW}.")


def not_a_key(credential: str) -> Unauthorized:
    """For what has not the form of a key."""
    if credential.startswith(ADMIN_PREFIX):
        return Unauthorized(
            "This is an admin token, which is for /admin only: calls need a key, which `switchyard keys create` makes."
        )
    return Unauthorized("Incorrect API key provided.")


def _two_keys() -> Unauthorized:
    return Unauthorized("The request carries two different API keys: send one only.")
