"""A key gets a new secret: the old one works for as long as was asked, and never longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from providers.errors import InvalidRequest
from router.changes import parse_overlap
from router.credentials import load_pepper
from router.descriptions import describe_key
from router.keys import Change, Conflict, Keys
from router.limit_text import parse_limits
from router.store import Store


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("0", 0), ("0s", 0), ("90s", 90), ("7d", 604800)])
def test_an_overlap_is_read(text: str, seconds: int) -> None:
    assert parse_overlap(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1y", "366d", "soon", "1.5h"])
def test_what_is_no_overlap_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_overlap(text)
    assert caught.value.param == "overlap"


async def test_the_old_secret_works_until_the_overlap_is_over(store: Store, tmp_path: Path) -> None:
    now = 1_800_000_000.0
    keys = Keys(store, load_pepper(tmp_path, {}), clock=lambda: now)
    key, first = await keys.create(Change(name="k", team="web", limits=parse_limits({"rpm": 5})))
    made = await keys.rotate("k", 3600, expected_version=1)
    assert (made.key.id, made.key.limits, made.key.team, made.ended) == (key.id, key.limits, key.team, False)
    assert made.key.old_until == now + 3600
    assert made.credential != first
    for secret in (first, made.credential):
        assert await keys.authenticate(secret) == made.key
    now += 3599
    assert await keys.authenticate(first) is not None
    now += 1
    assert await keys.authenticate(first) is None
    assert await keys.authenticate(made.credential) is not None
    assert describe_key(made.key, None, now)["old_key_until"] is None
    assert (await keys.rotate("k", 60)).ended is False


async def test_at_most_two_secrets_work(keys: Keys) -> None:
    _, first = await keys.create(Change(name="k"))
    second = await keys.rotate("k", 3600)
    third = await keys.rotate("k", 3600)
    assert (second.ended, third.ended) == (False, True)
    secrets = (first, second.credential, third.credential)
    assert [await keys.authenticate(secret) is not None for secret in secrets] == [False, True, True]
    await keys.end_overlap("k")
    assert [await keys.authenticate(secret) is not None for secret in secrets] == [False, False, True]
    fourth = await keys.rotate("k", 0)
    assert await keys.authenticate(third.credential) is None
    assert (await keys.authenticate(fourth.credential)) == fourth.key


async def test_what_has_no_secret_has_none_to_rotate(keys: Keys) -> None:
    await keys.ensure_anonymous("guest")
    with pytest.raises(Conflict, match="no secret"):
        await keys.rotate("guest", 0)
    _, secret = await keys.create(Change(name="k"))
    await keys.rotate("k", 3600)
    await keys.revoke("k")
    with pytest.raises(Conflict, match="stays revoked"):
        await keys.rotate("k", 0)
    assert await keys.authenticate(secret) is None
