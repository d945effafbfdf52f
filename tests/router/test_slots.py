"""The places of workers: shares that add up, a directory that outlives no parent, configs that are told apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import Config, ConfigErrors, load_config
from router.limits import Limit
from router.slots import ALONE, VARIABLE, Slot, SlotDirectory, Told, disagreement, inherited_slot
from router.snapshot import compile_snapshot
from tests.simulators.router import ROOT


@given(st.integers(1, 10_000), st.integers(1, 256))
def test_shares_add_up(amount: int, count: int) -> None:
    shares = [Slot(number, count).share(amount) for number in range(count)]
    assert sum(shares) == max(amount, count)
    assert max(shares) - min(shares) <= 1
    assert ALONE.share(amount) == amount


def test_places_of_a_provider_are_divided(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "providers:\n  a: {vendor: ollama, base_url: here, max_concurrency: 5, queue: 0}\n"
        "  b: {vendor: ollama, base_url: there}\n"
    )
    config = load_config(file, {})
    compiled = [compile_snapshot(config, slot=Slot(number, 3)).providers for number in range(3)]
    assert [providers["a"].max_concurrency for providers in compiled] == [2, 2, 1]
    assert {providers["a"].queue for providers in compiled} == {0}
    assert {providers["b"].max_concurrency for providers in compiled} == {None}
    assert sum(providers["b"].queue for providers in compiled) == 32


LIMITS = """
providers:
  cloud:
    vendor: openai
    api_key: x
    limits: {rpm: 500, tpm: "${TPM}", concurrency: 8}
    model_limits:
      "gpt-4o*": {rpm: 60}
      "o3": {tpm: 1000, concurrency: "${NONE:-}"}
  free: {vendor: openai, api_key: x}
"""


def test_shared_limits_of_a_provider(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(LIMITS)
    providers = compile_snapshot(load_config(file, {"TPM": "2000"})).providers
    assert providers["free"].limits == ()
    assert providers["cloud"].limits == (
        Limit(measure="requests", window="minute", amount=500),
        Limit(measure="tokens", window="minute", amount=2000),
        Limit(measure="running", window="now", amount=8),
        Limit(measure="requests", window="minute", amount=60, models="gpt-4o*"),
        Limit(measure="tokens", window="minute", amount=1000, models="o3"),
    )
    assert [limit.name for limit in providers["cloud"].limits][-2:] == ["rpm[gpt-4o*]", "tpm[o3]"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("providers: {a: {vendor: demo, limits: {rpm: 0}}}", "providers.a.limits.rpm must be at least 1, not 0"),
        (
            "providers: {a: {vendor: demo, limits: {rpm: 1.5}}}",
            "providers.a.limits.rpm must be a whole number, not 1.5",
        ),
        (
            "providers: {a: {vendor: demo, limits: {tpm: 9999999999999999}}}",
            "providers.a.limits.tpm must be at most 1125899906842624, not 9999999999999999",
        ),
        (
            "providers: {a: {vendor: demo, limits: {rps: 1}}}",
            'unknown setting "rps" in providers.a.limits; did you mean "rpm"?',
        ),
        (
            'providers: {a: {vendor: demo, model_limits: {"**": {rpm: 1}}}}',
            'the name ** holds "**": one "*" already stands for any text',
        ),
        (
            "server: {trusted_proxies: [10.0.0.1/8]}",
            "server.trusted_proxies[0] is an address inside a network: write 10.0.0.0/8 for all of it, or the address"
            ' alone, not "10.0.0.1/8"',
        ),
        (
            "server: {trusted_proxies: [nginx]}",
            "server.trusted_proxies[0] must be a network such as 10.0.0.0/8 or 2001:db8::/32, or an address, not"
            ' "nginx"',
        ),
    ],
)
def test_what_is_no_limit_and_no_network(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigErrors) as caught:
        load_config(file, {})
    assert [problem.message for problem in caught.value.problems] == [said]


def test_trusting_everybody_is_worth_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text('server: {trusted_proxies: ["0.0.0.0/0", 10.0.0.0/8]}')
    config = load_config(file, {})
    assert config.server.trusted_proxies == ("0.0.0.0/0", "10.0.0.0/8")
    assert [str(warning).partition(": ")[2] for warning in config.warnings if "caller" in warning.message] == [
        "server.trusted_proxies[0] lets every caller choose its own address: list only the proxies in front"
    ]


def test_a_place_is_handed_over(tmp_path: Path) -> None:
    slot = Slot(2, 4, tmp_path / "a b")
    environ = {VARIABLE: slot.variable(), "OTHER": "1"}
    assert inherited_slot(environ) == slot
    assert environ == {"OTHER": "1"}, "what a worker starts has no place"
    assert inherited_slot(environ) is ALONE
    assert ALONE.told() == {}
    ALONE.tell(Told(1, "x"))


def test_what_workers_tell(tmp_path: Path) -> None:
    directory = SlotDirectory(tmp_path)
    slots = [directory.slot(number, 2) for number in range(2)]
    for number, slot in enumerate(slots):
        slot.tell(Told(100 + number, "aaa"))
    assert slots[0].told() == {0: Told(100, "aaa"), 1: Told(101, "aaa")}
    assert directory.serving() == {100, 101}
    assert disagreement(slots[0].told()) is None
    slots[1].tell(Told(101, "bbb"))
    said = disagreement(slots[0].told())
    assert said is not None
    assert "0: aaa, 1: bbb" in said
    directory.clear(1)
    assert slots[0].told() == {0: Told(100, "aaa")}
    assert disagreement(slots[0].told()) is None
    directory.close()
    assert slots[0].told() == {}
    slots[0].tell(Told(100, "aaa"))  # nobody is there to read it
    assert list((tmp_path / "workers").iterdir()) == []


def test_the_config_in_force_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("models: {}\nfallback: []\n")
    first = load_config(file, {})
    directory = SlotDirectory(tmp_path)
    directory.keep_config(first.origin.data, 1000.5)
    copy = directory.slot(0, 1).config_copy
    assert copy is not None
    assert copy.stat().st_mode & 0o777 == 0o600
    assert directory.path.stat().st_mode & 0o777 == 0o700
    file.write_text("nonsense: [")
    again = load_config(file, {}, copy)
    assert again.origin.digest == first.origin.digest
    assert again.origin.file == str(file), "messages name the operator's file"
    assert again == first
    assert "fallback" not in repr(Config()._origin)
    slot = directory.slot(0, 1)
    assert not slot.behind(first.origin.data)
    assert slot.behind(b"another")
    assert not ALONE.behind(b"another")
    assert repr(first.origin.data) not in repr(first.origin)
    assert slot.refused() is None
    directory.keep_config(first.origin.data, 1000.5, "line 3: 温 is wrong")
    assert slot.refused() == "line 3: 温 is wrong"
    assert slot.config_since() == 1000.5, "not the time at which it was written again"
    directory.keep_config(first.origin.data, 1000.5)
    assert slot.refused() is None
    assert ALONE.refused() is None
    assert ALONE.config_since() is None
    directory.close()
    assert slot.refused() is None, "the parent has ended"
    assert slot.config_since() is None


def test_workers_that_ended_are_told_to_all(tmp_path: Path) -> None:
    directory = SlotDirectory(tmp_path)
    slots = [directory.slot(number, 2) for number in range(2)]
    assert [slot.ended() for slot in slots] == [0, 0]
    since = slots[0].router_since()
    assert since is not None
    for _ in range(3):
        directory.ended_unasked()
    assert [slot.ended() for slot in slots] == [3, 3]
    assert slots[1].router_since() == since
    assert ALONE.ended() == 0
    assert ALONE.router_since() is None
    directory.close()
    assert slots[0].ended() is None, "which is not 0"
    assert slots[0].router_since() is None


def test_what_a_killed_parent_left_is_removed_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from router.slots import SlotDirectory\n"
        "made = SlotDirectory(Path(sys.argv[1])); made.keep_config(b'x', 1.0)\n"
        "print(made.path, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        mine = SlotDirectory(tmp_path)
        assert (left / "config.yaml").exists()
        os.kill(other.pid, signal.SIGKILL)
    mine.close()
    mine = SlotDirectory(tmp_path)
    assert list((tmp_path / "workers").iterdir()) == [mine.path]
    mine.close()
