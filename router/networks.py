"""Addresses and networks: who a request comes from, behind proxies or not, and whether that is where it may come from.

An address counts in one form: IPv4 inside IPv6 (`::ffff:192.0.2.1`) is IPv4, zone names (`%eth0`) are dropped. What is
no address is in no network. Answers are kept, in bounded tables: a key's calls come from few addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN: Final = "unknown"
"""The address of a caller that a trusted proxy does not tell. It is in no network."""
MOST_HOPS: Final = 64
"""Proxies in a row that are looked through."""

_FORWARDED: Final = b"x-forwarded-for"
_HOST_PORT: Final = re.compile(r"([0-9.]+):\d{1,5}|\[([^\]]*)\](?::\d{1,5})?")
_MAPPED_BITS: Final = 96


def network_problem(text: str) -> str | None:
    """What is wrong with a network as people write it (`10.0.0.0/8`, `2001:db8::/32`, one address), or None."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        return None
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return "must be a network such as 10.0.0.0/8 or 2001:db8::/32, or an address"
    return f"is an address inside a network: write {meant} for all of it, or the address alone"


def allowed(networks: tuple[str, ...], address: str) -> bool:
    """Whether calls may come from `address`. Without networks from everywhere."""
    return not networks or contains(networks, address)


@lru_cache(maxsize=16_384)
def contains(networks: tuple[str, ...], address: str) -> bool:
    """Whether `address` is in one of `networks`. Networks that are none hold nothing."""
    found = _address(address)
    return found is not None and any(found in network for network in _compiled(networks))


def client_address(scope: Mapping[str, Any], trusted: tuple[str, ...]) -> str:
    """Where an ASGI request comes from: the other end of its connection, or, where that is a proxy in a `trusted`
    network, the right-most address of X-Forwarded-For that is not. What stands left of it the caller may have written
    himself. `UNKNOWN` when a trusted proxy names something that is no address; empty for a unix socket.
    """
    client = scope.get("client")
    peer: str = client[0] if client else ""
    if trusted and contains(trusted, peer):
        return _behind(peer, scope["headers"], trusted)
    return _plain(peer) if peer.startswith("::ffff:") or "%" in peer else peer


def client_scheme(scope: Mapping[str, Any], trusted: tuple[str, ...]) -> str:
    """`https` or `http`: what an ASGI request's caller speaks. Behind a `trusted` proxy that is what its
    X-Forwarded-Proto says."""
    client = scope.get("client")
    if trusted and contains(trusted, client[0] if client else ""):
        told = next((value for name, value in scope["headers"] if name == b"x-forwarded-proto"), b"")
        if told:
            return "https" if told.split(b",")[0].strip().lower() == b"https" else "http"
    return "https" if scope.get("scheme") == "https" else "http"


def is_local(scope: Mapping[str, Any], trusted: tuple[str, ...]) -> bool:
    """Whether a request comes from this machine. One that a proxy of this machine passes on does not, also where the
    proxy is not listed as trusted, as long as it says for whom it asks."""
    address = client_address(scope, trusted)
    found = _address(address)
    if found is None or not found.is_loopback:
        return False
    client = scope.get("client")
    return contains(trusted, client[0] if client else "") or not any(
        name in (_FORWARDED, b"forwarded", b"x-real-ip") for name, _ in scope["headers"]
    )


def _behind(peer: str, headers: Sequence[tuple[bytes, bytes]], trusted: tuple[str, ...]) -> str:
    told = b",".join([value for name, value in headers if name == _FORWARDED]).decode("latin-1")
    nearest = peer
    for hop in reversed(told.rsplit(",", MOST_HOPS)):
        text = hop.strip()
        if not text:
            continue
        address = _hop(text) if len(text) <= 64 else None
        if address is None:
            return UNKNOWN
        nearest = address
        if not contains(trusted, nearest):
            break
    return _plain(nearest)


@lru_cache(maxsize=4096)
def _hop(text: str) -> str | None:
    """One entry of X-Forwarded-For as a plain address: some proxies add ports, and brackets around IPv6."""
    text = text.strip('"')
    if shape := _HOST_PORT.fullmatch(text):
        text = shape[1] or shape[2]
    address = _address(text)
    return None if address is None else str(address)


def _plain(text: str) -> str:
    address = _address(text)
    return text if address is None else str(address)


@lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if address.version == 6 else address


@lru_cache(maxsize=4096)
def _compiled(networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(network for text in networks if (network := _network(text)) is not None)


def _network(text: str) -> Network | None:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return None
    if network.version == 6 and network.prefixlen >= _MAPPED_BITS and (mapped := network.network_address.ipv4_mapped):
        return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_BITS))
    return network
