"""Loaded by Python itself at start. What a program fetches from the internet comes from a server of the test instead:
`SEEDS_INTERNET` is its base URL."""

import os
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
