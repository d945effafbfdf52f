"""`switchyard prices`, and what `switchyard check` says of price files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prices.support import CONFIG

ROOT = Path(__file__).parents[2]
OWN = """
prices:
  - provider: paid
    currency: cny
    source: https://example.com/contract
    looked_at: "2026-11-22"
    models:
      our-model: {input: 7.1, output: 14.2, call: 0.71}
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", *arguments, "--config", str(folder / "switchyard.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "switchyard.yaml").write_text(CONFIG + "prices: {file: own.yaml}\n")
    return tmp_path


def test_the_lists_are_shown(folder: Path) -> None:
    done = run(folder, "prices", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["prices"]
    assert rows[0]["own"]
    assert (rows[0]["provider"], rows[0]["model"], rows[0]["currency"]) == ("paid", "our-model", "cny")
    assert (rows[0]["input"], rows[0]["output"], rows[0]["call"]) == (1.0, 2.0, 0.1)
    assert any(row["vendor"] == "openai" and row["model"] == "gpt-4o-mini" for row in rows)
    table = run(folder, "prices")
    assert table.returncode == 0
    assert "paid/our-model" in table.stdout
    assert "example.com" in table.stdout
    assert max(map(len, table.stdout.splitlines())) <= 160


def test_one_model_s_price_is_shown(folder: Path) -> None:
    done = run(folder, "prices", "paid/our-model")
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.split() == ["MODEL", "INPUT", "CACHED", "OUTPUT", "LOOKED", "AT", "SOURCE", "MORE"]
    assert row.split() == ["paid/our-model", "1", "2", "2026-11-22", "example.com", "call", "0.1"]
    free = run(folder, "prices", "box/llama3.2", "--json")
    assert json.loads(free.stdout)["targets"][0]["price"]["source"] == "local"


def test_a_listed_model_that_nobody_serves(tmp_path: Path) -> None:
    (tmp_path / "switchyard.yaml").write_text("providers: {box: {vendor: ollama}}\n")
    for name in ("deepseek-v4-pro", "deepseek/deepseek-v4-pro"):
        done = run(tmp_path, "prices", name)
        assert done.returncode == 1
        assert "deepseek/deepseek-v4-pro" in done.stdout
        assert "off-peak" in done.stdout
        assert f"No provider of the config serves {name}" in done.stderr
        found = json.loads(run(tmp_path, "prices", name, "--json").stdout)
        assert found["targets"] == []
        assert found["listed"][0]["source"].startswith("https://")
    nobody = run(tmp_path, "prices", "no-such-model")
    assert (nobody.returncode, nobody.stdout) == (1, "")


def test_an_unknown_price_is_said(folder: Path) -> None:
    done = run(folder, "prices", "paid/another")
    assert done.returncode == 1
    assert "unknown" in done.stdout
    assert json.loads(run(folder, "prices", "paid/another", "--json").stdout)["targets"] == [
        {"target": "paid/another", "price": None}
    ]


@pytest.mark.parametrize("verb", ["check", "prices", "serve"])
def test_a_bad_price_file_is_reported_with_its_place(folder: Path, verb: str) -> None:
    (folder / "own.yaml").write_text(OWN.replace("7.1,", "seven,"))
    done = run(folder, verb)
    assert done.returncode == 1
    assert f"{folder}/own.yaml:8:26: " in done.stderr
    assert "Traceback" not in done.stderr
