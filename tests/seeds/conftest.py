"""A router with its keyless door where the programs expect an Ollama, and what they need besides it."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.simulators.router import ROOT

PORT = 11434
"""Written in the programs: http://localhost:11434."""


@pytest.fixture(scope="module")
def door() -> None:
    """The port of the keyless door, free to be used."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            try:
                answered = probe.connect_ex((host, PORT)) == 0
            except OSError as no_family:
                if no_family.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                continue
            if answered:
                pytest.skip(
                    f"port {PORT} is in use by another program (an Ollama?): these programs must reach us there"
                )


def shipped_config() -> dict[str, Any]:
    """The default config with the keyless door as its only listener."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "switchyard.yaml").read_text("utf-8"))
    config["server"]["listen"] = [{"host": "127.0.0.1", "port": PORT, "anonymous": "guest"}]
    del config["data_dir"]
    return config


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A small JPEG."""
    made = BytesIO()
    drawn = Image.new("RGB", (48, 32), (30, 120, 200))
    drawn.paste((240, 220, 160), (0, 20, 48, 32))
    drawn.save(made, format="JPEG")
    return made.getvalue()


@pytest.fixture(scope="session")
def internet(picture: bytes) -> Iterator[str]:
    """Base URL of a server that has the picture under every path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "image/jpeg")
            self.send_header("content-length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(5)


@pytest.fixture(scope="session")
def programs() -> Path:
    return Path(__file__).parent / "programs"
