"""Certificates for simulated providers, made with the openssl program: one authority, good and bad leaves."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from tests.simulators.programs import need


class Authority:
    """A certificate authority in a directory. `bundle` is what clients are to trust."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.bundle = directory / "ca.pem"
        self._key = directory / "ca.key"
        config = directory / "ca.cnf"
        config.write_text(_CONFIG.format(directory=directory), "ascii")
        (directory / "index.txt").write_text("")
        (directory / "serial").write_text("01\n")
        self._config = config
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", "/CN=Simulated authority", "-keyout", str(self._key), "-out", str(self.bundle)),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )

    def context(self, name: str, *, host: str = "IP:127.0.0.1", expired: bool = False) -> ssl.SSLContext:
        """A server's context with a leaf for `host`, signed by this authority."""
        key, request, leaf = (self._directory / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        _openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName={host}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        dates = ("20200101000000Z", "20200201000000Z") if expired else ("20200101000000Z", "20491231000000Z")
        _openssl(
            *("ca", "-batch", "-config", str(self._config), "-notext", "-startdate", dates[0], "-enddate", dates[1]),
            *("-in", str(request), "-out", str(leaf)),
        )
        return _context(leaf, key)


def self_signed(directory: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody vouches for."""
    key, leaf = directory / "self.key", directory / "self.pem"
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-subj", "/CN=self", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(leaf)),
    )
    return _context(leaf, key)


def _context(leaf: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf, key)
    return context


def _openssl(*arguments: str) -> None:
    need("openssl")
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


_CONFIG = """
[ca]
default_ca = own
[own]
dir = {directory}
database = $dir/index.txt
serial = $dir/serial
new_certs_dir = $dir
certificate = $dir/ca.pem
private_key = $dir/ca.key
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""
