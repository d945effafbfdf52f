"""Loaded by Python itself at start. What a program fetches from the internet comes from a server of the test instead:
`SEEDS_INTERNET` is its base URL. When it prints how much is kept in the file that `SEEDS_WRITES` names: who reads
the pipe may find several pieces in it at once."""

import io
import os
import sys
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter


class _Local(HTTPAdapter):
    def send(self, request: requests.PreparedRequest, *args: Any, **more: Any) -> requests.Response:
        request = request.copy()
        request.url = os.environ["SEEDS_INTERNET"] + request.path_url
        return super().send(request, *args, **more)


class _Session(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        self.mount("https://", _Local())


if "SEEDS_INTERNET" in os.environ:
    requests.Session = requests.sessions.Session = _Session  # type: ignore[misc]  # replacing it is the point


class _Told(io.FileIO):
    def write(self, data: Any) -> int:
        count = super().write(data)
        with open(os.environ["SEEDS_WRITES"], "a") as file:
            file.write(f"{time.monotonic()} {count}\n")
        return count


if "SEEDS_WRITES" in os.environ:
    sys.stdout = io.TextIOWrapper(
        _Told(1, "wb", closefd=False), sys.stdout.encoding, write_through=True
    )  # as with python -u
