"""promtool and amtool accept the samples; every alert says what to do and has tests of both kinds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from router.cli.main import app
from tests.boards.queries import ROOT, RULES, metrics, rules
from tools.check_docs import Page
from tools.dashboards.queries import FAILED

TESTS = sorted((RULES / "tests").glob("*.yml"))
ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"]: rule for rule in rules("recording.yml")}


def run(tool: str, *arguments: str, cwd: Path = RULES) -> str:
    """What the tool says. Debian's packages are prometheus and prometheus-alertmanager."""
    if shutil.which(tool) is None:
        assert "CI" not in os.environ, f"{tool} is missing"
        pytest.skip(f"{tool} is missing")
    done = subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cases() -> list[dict[str, Any]]:
    return [case for file in TESTS for case in yaml.safe_load(file.read_text("utf-8"))["tests"]]


def test_promtool_takes_the_rules() -> None:
    said = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", "recording.yml", "alerts.yml")
    assert said.count("SUCCESS") == 2


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_promtool_runs_the_unit_tests(file: Path) -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", str(file))


def test_promtool_takes_the_scrape_config(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    for name in ("recording.yml", "alerts.yml"):
        shutil.copy(RULES / name, tmp_path)
    text = (RULES / "prometheus.yml").read_text("utf-8")
    assert text.count("/run/secrets/switchyard_metrics_token") == 1
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/switchyard_metrics_token", str(token)))
    assert "SUCCESS" in run("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)


def test_amtool_takes_the_alertmanager_config() -> None:
    assert "SUCCESS" in run("amtool", "check-config", "alertmanager.yml")
    routed = run("amtool", "config", "routes", "test", "--config.file=alertmanager.yml", "severity=critical")
    assert routed.strip() == "pager"


def test_the_job_is_the_one_that_the_alerts_know() -> None:
    (scrape,) = yaml.safe_load((RULES / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scrape["job_name"] == "switchyard"


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_rule_is_named_by_level_metric_and_operations(name: str) -> None:
    level, metric, operations = name.split(":")
    assert level.startswith("job")
    assert metric.startswith("switchyard_")
    assert re.fullmatch(r"ratio|(ratio_|p\d\d_)?rate\d+[mh]|increase\d+[mh]", operations)
    by = re.findall(r"by \(([^)]*)\)", RECORDED[name]["expr"])
    for labels in by:
        kept = [label for label in re.split(", *", labels) if label != "le"]
        assert "_".join(kept) == level


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do_in_both_languages(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "summary_zh", "description_zh", "runbook"}
    assert len(notes["description"]) > 120
    for field in ("summary_zh", "description_zh"):
        assert re.search("[一-龥]", notes[field])
    assert not re.search("[一-龥]", notes["summary"] + notes["description"])
    page, _, anchor = notes["runbook"].partition("#")
    assert anchor in Page(Path(page)).anchors()
    for text in notes.values():  # labels that the expression leaves
        for label in re.findall(r"\$labels\.(\w+)", text):
            assert (
                label in str(rule["expr"])
                or any(label in recorded for recorded in metrics(rule["expr"]))
                or label
                in (
                    "instance",
                    "job",
                )
            )


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_reads_well_whatever_its_value(name: str) -> None:
    notes = ALERTS[name]["annotations"]
    for text in notes.values():
        assert not re.search(r"\| *humanize *}}", text), "0.05 of something is no 50m"
    for field in ("summary", "description"):
        assert not re.search(r"\$value( *\| *printf[^}]*)? *}} [a-z]+s\b", notes[field]), "there may be one"


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_names_options_that_there_are(name: str) -> None:
    for text in ALERTS[name]["annotations"].values():
        for verb, options in re.findall(r"`switchyard ([a-z]+)((?: --[a-z-]+)*)", text):
            shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
            assert shown.exit_code == 0, verb
            assert set(options.split()) <= set(re.findall(r"--[a-z-]+", shown.stdout))


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_test_that_fires_and_one_that_does_not(name: str) -> None:
    wanted = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
    expected = [
        bool(check["exp_samples"]) for case in cases() for check in case["promql_expr_test"] if check["expr"] == wanted
    ]
    assert set(expected) == {True, False}


def test_unit_tests_evaluate_what_is_recorded_before_the_alerts() -> None:
    """Without an order promtool takes any."""
    names = [
        group["name"]
        for file in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((RULES / file).read_text("utf-8"))["groups"]
    ]
    for file in TESTS:
        assert yaml.safe_load(file.read_text("utf-8"))["group_eval_order"] == names, file.name


def test_every_unit_test_is_of_an_alert_that_exists() -> None:
    for case in cases():
        assert case["name"].partition(":")[0] in ALERTS


def test_recorded_metrics_that_rules_read_exist() -> None:
    for rule in [*ALERTS.values(), *RECORDED.values()]:
        assert {name for name in metrics(rule["expr"]) if ":" in name} <= set(RECORDED)


def test_boards_and_rules_agree_on_what_a_failed_attempt_is() -> None:
    assert FAILED in RECORDED["job_provider:switchyard_attempt_failures:ratio_rate5m"]["expr"]


def test_the_samples_hold_no_secret() -> None:
    for file in (*RULES.glob("*.yml"), *(ROOT / "config/grafana").rglob("*.y*ml")):
        for line in file.read_text("utf-8").splitlines():
            assert not re.search(r"(password|token|secret|api_key): *['\"]?[A-Za-z0-9+/]{8,}", line), f"{file}: {line}"
