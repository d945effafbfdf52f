"""Free ports on the loopback address, also when several test processes run at once.

They are taken from below the ports that the system gives to connections (32768 and up on Linux, 49152 on macOS), so
that no connection takes one between the look and the server's start. Processes of one run never look at the same
port; two runs begin at places of their own.
"""

from __future__ import annotations

import os
import random
import socket
from functools import cache
from itertools import cycle, islice

FIRST, LAST = 10_240, 32_000
SHARES = 16
"""Processes of one run that get ports of their own."""
_held: list[socket.socket] = []


@cache
def _own() -> cycle[int]:
    share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
    ports = range(FIRST + share, LAST, SHARES)
    begin = random.randrange(len(ports))
    return cycle([*ports[begin:], *ports[:begin]])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(number: int) -> list[int]:
    """Ports where nothing listens right now (connections are refused); none is named twice in a run."""
    return list(islice(filter(_free, _own()), number))


def free_port() -> int:
    return free_ports(1)[0]


def refused_port() -> int:
    """A port where nothing listens as long as this process lives: it is held, so that no server of another run takes
    it."""
    for port in _own():
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
            continue
        _held.append(held)
        return port
    raise AssertionError("the ports never end")
