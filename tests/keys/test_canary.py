"""Secrets, followed everywhere: what was made stands nowhere but in the answer that made it."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

import pytest

from providers.errors import SwitchyardError
from router.changes import TeamChange
from router.issue import Row, issue
from router.keys import Change, Keys
from router.records import decode_key
from router.store import Store
from router.transfer import bring, export, read_export


async def test_no_secret_stands_in_logs_errors_audit_exports_or_the_stores_files(
    keys: Keys, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    first = await keys.bootstrap()
    assert first.key is not None
    assert first.admin_token is not None
    _, one = await keys.create(Change(name="one", team="web", admin=True))
    issued = await issue(keys, "web", [Row(1, {"name": "two"}), Row(2, {"name": "three"})], {})
    rotated = await keys.rotate("one", 3600)
    await keys.teams.change("web", TeamChange(owner="x"))
    secrets = [first.key, first.admin_token, one, rotated.credential, *(secret for _, secret in issued.keys)]
    for secret in secrets:  # a secret in a place where it does not belong
        for attempt in (
            keys.get(secret),
            keys.revoke(secret),
            keys.change("one", Change(team=secret)),
            keys.change("one", Change(networks=(secret,))),
            keys.create(Change(name=secret)),
            keys.create(Change(name="x", owner=f"by {secret}")),
            keys.create(Change(name="x", tags=(secret,))),
            keys.create(Change(name="x", team=secret)),
            keys.teams.create(TeamChange(name=secret)),
            keys.rotate(secret, 0),
            keys.teams.get(secret),
        ):
            with pytest.raises(SwitchyardError) as caught:
                await attempt
            told.append(caught.value.message)
        assert await keys.admin(secret + "x") is None
    text = [line async for line in export(keys, usage=True)]
    assert (await bring(keys, read_export(text))).keys == 0
    entries, _ = await keys.audit.entries(limit=1000)
    told += [str(entries), *text, caplog.text, repr(first), repr(keys), repr(store)]
    told += [repr(listed) for listed in await keys.list()]
    records = [await keys.cabinet.find(listed.key.id) for listed in await keys.list()]
    told += [repr(record) for record in records]
    forms = [form for secret in secrets for form in shapes(secret)]
    for place in told:
        assert not [form for form in forms if form.decode("latin-1") in place]
    digests = {digest for record in records if record for digest in (record.digest, record.old_digest) if digest}
    assert len(digests) == 5
    raw = (await keys.cabinet.keys(records[0].team, [records[0].id]))[0] if records[0] else None
    assert raw is not None
    assert decode_key(raw).digest in raw.decode()  # it is where it belongs, so the search below means something
    for place in (str(entries), caplog.text, *(repr(record) for record in records)):
        assert not [digest for digest in digests if digest in place]
    await store.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b'"name":"three"' in path.read_bytes() for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [form for form in forms if form in content], path.name


def shapes(secret: str) -> list[bytes]:
    hidden = secret[-49:-6].encode()
    return [hidden, base64.b64encode(hidden), hidden.hex().encode()]
