# SPDX-License-Identifier: Apache-2.0
"""The alert rules, by Prometheus' own promtool: each fires when it should, not when it nearly should, and alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from synthetic_fleet import promtool

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "roles/monitoring/files/rules/vllm-fleet.yml"
CASES = yaml.safe_load((Path(__file__).parent / "alert_cases.yml").read_text())
SERVER = 'node="n1",server="vllm",replica="n1",model="m",release="7"'


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule]


def story(case: dict[str, Any], kind: str, severities: dict[str, str]) -> dict[str, Any]:
    given = case[kind]
    expected = {}
    if kind == "fires":
        labels = dict(re.findall(r'(\w+)="([^"]*)"', given["labels"].replace("$S", SERVER)))
        expected[case["alert"]] = [{"exp_labels": {**labels, "severity": severities[case["alert"]]}}]
    return {
        "name": f"{case['alert']} {kind}",
        "interval": given.get("interval", "1m"),
        "input_series": [
            {"series": series.replace("$S", SERVER), "values": values} for series, values in given["series"].items()
        ],
        "alert_rule_test": [
            {"eval_time": given["at"], "alertname": name, "exp_alerts": expected.get(name, [])} for name in severities
        ],
    }


def test_every_alert_fires_when_it_should_and_alone(tmp_path: Path) -> None:
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in rules()}
    assert {case["alert"] for case in CASES} == set(severities), "each alert has a case, and each case an alert"
    # promtool compares annotations as well; what they say is looked at below.
    bare = yaml.safe_load(RULES.read_text())
    for group in bare["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(bare))
    tests = [story(case, kind, severities) for case in CASES for kind in ("fires", "quiet")]
    # Rules are evaluated as often as there are figures: a day of figures each minute takes ten seconds.
    for interval in {one["interval"] for one in tests}:
        made = {"rule_files": ["rules.yml"], "evaluation_interval": interval}
        made["tests"] = [one for one in tests if one["interval"] == interval]
        (tmp_path / f"{interval}.yml").write_text(yaml.safe_dump(made))
        promtool("test", "rules", str(tmp_path / f"{interval}.yml"))


def test_the_rules_are_as_prometheus_wants_them() -> None:
    promtool("check", "rules", str(RULES))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    page = (ROOT / "docs/alerts.md").read_text()
    says, runbook = rule["annotations"]["summary"].strip(), rule["annotations"]["runbook"]
    assert says.endswith("."), "a sentence"
    assert runbook == f"docs/alerts.md#{rule['alert'].lower()}"
    assert f"\n## {rule['alert']}\n" in page
    if "server" in rule["expr"] and "$labels.server" in says:
        assert "$labels.node" in says and "$labels.model" in says
