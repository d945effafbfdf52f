"""The store's own functions (`router/ledger.lua`): Redis Functions under names that carry the text's hash.

Routers of different versions may share one store: each calls the functions of its own text. The text's first line is
`#!lua name=switchyard_@VERSION@` and the registered names end in `_@VERSION@`; the version is the beginning of the
text's SHA-256. Loading what is already there does no harm. Redis 7.0 or newer, or Valkey.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from redis.exceptions import ResponseError

from router.pipe import pack
from router.store import Store

__all__ = ["Library", "account_keys", "call", "exists", "fcall", "library", "load", "name", "not_found"]

_MARK: Final = "@VERSION@"
_NOT_FOUND: Final = ("ERR Function not found", "Function not found")
"""Both servers' words; the client cuts the first one off. There is no code for it."""


@dataclass(frozen=True, slots=True)
class Library:
    """A text with its version in all names."""

    code: bytes
    version: str

    @classmethod
    def of(cls, text: bytes) -> Library:
        version = hashlib.sha256(text).hexdigest()[:8]
        return cls(text.replace(_MARK.encode(), version.encode()), version)

    def name(self, function: str) -> bytes:
        return f"{function}_{self.version}".encode()

    @property
    def load_command(self) -> bytes:
        """`FUNCTION LOAD`, packed; the server's error when it is already there means nothing."""
        return pack("FUNCTION", "LOAD", self.code)


@cache
def library() -> Library:
    """The library that this version of the router calls."""
    return Library.of(Path(__file__).with_name("ledger.lua").read_bytes())


@cache
def name(function: str) -> bytes:
    """The versioned name of `reserve`, `put`, ..."""
    return library().name(function)


def fcall(function: str, keys: Sequence[bytes | str], arguments: Iterable[bytes | str | int]) -> bytes:
    """A call of a function, packed for `Links.ask`."""
    return pack("FCALL", name(function), len(keys), *keys, *arguments)


def account_keys(prefix: str) -> tuple[str, str]:
    """What a function declares that works on a whole account: two names that are never written.

    While a Cluster moves their slot it answers TRYAGAIN to both of its nodes' callers, because of the second. With one
    name it would run the function where only a part of the account has arrived: limits would begin anew there.
    https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#multi-keys-operations
    """
    return prefix + "-", prefix + "--"


def not_found(error: ResponseError) -> bool:
    """Whether the server lacks the library (a new, flushed or restored server)."""
    return str(error).startswith(_NOT_FOUND)


def exists(error: ResponseError) -> bool:
    """Whether `FUNCTION LOAD` was refused only because another router loaded the same library."""
    return "already exists" in str(error)


async def load(store: Store, text: Library | None = None) -> None:
    """Put the library on every primary of the store. Raises the client's `RedisError` or `OSError`."""
    wanted = text or library()
    for reply in await store.everywhere("FUNCTION", "LOAD", wanted.code):
        if isinstance(reply, ResponseError):
            if not exists(reply):
                raise reply
        elif isinstance(reply, BaseException):
            raise reply


async def call(
    store: Store,
    function: str,
    keys: Sequence[bytes | str],
    arguments: Sequence[bytes | str | int] = (),
    text: Library | None = None,
) -> Any:
    """Call a function for an administrative task; a server that lacks the library gets it first.

    All keys are in one slot. Raises the client's `RedisError` or `OSError`.
    """
    wanted = text or library()
    command = ("FCALL", wanted.name(function), len(keys), *keys, *arguments)
    try:
        return await store.run(*command)
    except ResponseError as error:
        if not not_found(error):
            raise
    await load(store, wanted)
    return await store.run(*command)
