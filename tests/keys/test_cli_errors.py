"""What the command line says when something else answers, when a record is damaged, and when words come twice."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli.main import app
from router.keys import Change, Keys
from router.records import AUDIT, key_name
from router.store import Store
from tests.keys.test_cli import switchyard

STRANGE = [b"{}", b"[]", b'"x"', b'{"data": "abc", "next": null}', b'{"data": [{"id": 1}], "next": null}', b"<html>"]
VERBS = [
    ("keys", "ls"),
    ("keys", "create", "x"),
    ("keys", "show", "x"),
    ("keys", "set", "x", "--owner", "y"),
    ("keys", "rotate", "x"),
    ("keys", "rotate", "x", "--end-overlap"),
    ("keys", "revoke", "x"),
    ("keys", "issue", "--team", "t", "x"),
    ("teams", "ls"),
    ("teams", "create", "x"),
    ("teams", "show", "x"),
    ("teams", "set", "x", "--owner", "y"),
    ("teams", "revoke", "x"),
    ("audit", "ls"),
    ("audit", "verify"),
]


class Strange(http.server.BaseHTTPRequestHandler):
    answer = b""

    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(type(self).answer)

    do_GET = do_POST = do_PATCH = do_DELETE = _any

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def strange() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Strange) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_another_server_is_told_from_a_router(verb: tuple[str, ...], strange: str) -> None:
    for answer in STRANGE:
        Strange.answer = answer
        found = CliRunner().invoke(app, [*verb, "--url", strange, "--token", "t"])
        if (verb, answer) == (("audit", "ls"), STRANGE[4]):
            continue  # an entry may have any fields
        assert (found.exit_code, found.stdout) == (1, ""), answer
        assert "does not answer like a Switchyard router" in found.stderr
        assert isinstance(found.exception, SystemExit)


@pytest.mark.parametrize(
    "words",
    [
        ("--rpm", "1", "--rpm", "2"),
        ("--owner", "a", "--owner", "b"),
        ("--max-requests", "5", "--max-requests", "6"),
        ("--model-limit", "x:rpm=1,rpm=2"),
    ],
    ids=" ".join,
)
def test_what_is_given_twice_is_refused(words: tuple[str, ...]) -> None:
    found = CliRunner().invoke(app, ["keys", "create", "x", *words])
    assert (found.exit_code, found.stdout) == (2, "")
    assert "given twice" in found.stderr


async def test_another_pepper_is_told_once_and_looking_locks_nothing(tmp_path: Path, store: Store, keys: Keys) -> None:
    assert (await switchyard(tmp_path, "ls", SWITCHYARD_PEPPER="p" * 40))[0] == 0
    status, out, err = await switchyard(tmp_path, "create", "a")
    assert status == 0
    status, out, err = await switchyard(tmp_path, "ls", SWITCHYARD_PEPPER="p" * 40)
    assert (status, out, err.count("another pepper"), err.count("\n")) == (1, "", 1, 1)
    pepper = (tmp_path / "pepper").read_text().strip()
    assert (await switchyard(tmp_path, "ls", SWITCHYARD_PEPPER=pepper))[0] == 0


async def test_damage_is_named_and_the_rest_is_shown(tmp_path: Path, store: Store, keys: Keys) -> None:
    await keys.create(Change(name="alice"))
    broken, _ = await keys.create(Change(name="broken"))
    await keys.create(Change(name="off", state="disabled"))
    status, out, _ = await switchyard(tmp_path, "ls", "--search", "ALICE", verb="audit")
    assert (status, out.count("key.create"), "(alice)" in out) == (0, 1, True), out
    status, _, err = await switchyard(tmp_path, "rotate", "off")
    assert (status, "the key is disabled: no secret of it works now" in err) == (0, True)
    await store.run("LSET", AUDIT, 1, b'{"n": "one", "actor": 5}')
    status, out, err = await switchyard(tmp_path, "ls", verb="audit")
    assert (status, "damaged" in out, "key.create" in out, "Traceback" in err) == (0, True, True, False)
    for nonsense, expected in (("nonsense", 2), (f"1:{'a' * 64}", 1)):
        status, _, err = await switchyard(tmp_path, "verify", "--expect", nonsense, verb="audit")
        assert status == expected, err
    await store.run("SET", key_name(broken.team, broken.id), b"?")
    status, out, err = await switchyard(tmp_path, "ls", "--json")
    assert (status, sorted(key["name"] for key in json.loads(out))) == (0, ["alice", "off"])
    assert broken.id in err
    status, _, err = await switchyard(tmp_path, "export")
    assert (status, broken.id in err) == (1, True)


async def test_an_export_beside_running_calls_says_what_it_lacks(tmp_path: Path, store: Store, keys: Keys) -> None:
    key, _ = await keys.create(Change(name="k"))
    _, _, err = await switchyard(tmp_path, "export")
    assert "a router runs on this store" in err
    assert "calls are running" not in err
    await store.run("HSET", f"sy:{{{key.team}}}:holds", "call", "x")
    assert "1 calls are running" in (await switchyard(tmp_path, "export"))[2]
