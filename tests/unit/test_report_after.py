# SPDX-License-Identifier: Apache-2.0
"""What follows a report: the user's own command, what a plan had estimated, and how fast things came."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from report_runs import Run

from fleet_report import build, estimate, page, summary

WAVES = [
    {
        **{
            "replicas": ["node1"],
            "seconds": 250.0,
            "parts": {},
            "unknown": [],
            "lent": {},
            "other_image": [],
            "boots": [],
        },
        "serving": {"m": {"least": 1, "of": 2}},
    },
    {
        **{"replicas": ["node2"], "seconds": None, "parts": {}, "unknown": ["node2"], "lent": {}, "other_image": []},
        **{"boots": [], "serving": {"m": {"least": 1, "of": 2}}},
    },
]


def callback(folder, after=""):
    source = Path(__file__).resolve().parents[2] / "callback_plugins/vllm_fleet_report.py"
    spec = importlib.util.spec_from_file_location("vllm_fleet_report_after", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = object.__new__(module.CallbackModule)
    options = {"path": str(folder), "report_after": after}
    said: list[str] = []
    made.get_option = options.get
    made._display = type("Display", (), {"warning": staticmethod(said.append)})
    return made, said


def test_a_command_gets_the_folder_of_the_run_and_no_shell(tmp_path):
    script = tmp_path / "my copy"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$(dirname "$0")/got"\n')
    script.chmod(0o755)
    run = tmp_path / "run; 1"
    made, said = callback(tmp_path, f"'{script}' --to 's3://x y'")
    made._hand_on(run)
    assert said == []
    assert (tmp_path / "got").read_text().splitlines() == ["--to", "s3://x y", str(run)]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sh -c 'echo no room >&2; exit 3'", "report_after, sh: it ended with code 3: no room. The report is in "),
        ("/not/there", "report_after, /not/there: [Errno 2] No such file or directory"),
    ],
)
def test_a_command_that_fails_is_a_warning(tmp_path, command, says):
    made, said = callback(tmp_path, command)
    made._hand_on(tmp_path / "run")
    assert len(said) == 1
    assert said[0].startswith(says)


def test_no_command_runs_nothing(tmp_path):
    made, said = callback(tmp_path)
    made._hand_on(tmp_path)
    assert said == []


def test_rates_are_kept_beside_the_reports_and_others_stay(tmp_path):
    made, _ = callback(tmp_path / "reports")
    made._keep_rates({})
    assert not (tmp_path / "reports").exists()
    made._keep_rates({"weights": 1e9})
    made._keep_rates({"image": 2e8})
    file = tmp_path / "reports" / "rates.json"
    assert json.loads(file.read_text()) == {"weights": 1e9, "image": 2e8}
    file.write_text("{")
    made._keep_rates({"image": 1.0})
    assert json.loads(file.read_text()) == {"image": 1.0}


def report_of(run):
    about = {"id": "a", "playbook": "deploy.yml", "began": 0.0, "elapsed": run.at, "check_mode": False}
    about |= {"when": "now", "by": "ada", "inventory": [], "limit": "", "tags": [], "extra_vars": []}
    about |= {"configuration": None, "project": None, "version": "1", "failed": [], "unreachable": [], "benchmarks": {}}
    return build.build(about, run.events)


def test_what_was_estimated_stands_beside_what_it_took():
    run = Run(2).deploy()
    plan = {"estimate": {"waves": WAVES, "seconds": 250.0, "unknown": 1, "bring": []}}
    facts = {"ansible_facts": {"rollout_plan": plan}}
    run.task(
        "Plan the waves",
        "rollout",
        "set_fact",
        {"node1": (0.1, "ok", build.picked("set_fact", facts, failed=False))},
    )
    report = report_of(run)
    first, second = report["estimate"]["waves"]
    assert first["took"] == sum(estimate.took(next(n for n in report["nodes"] if n["name"] == "node1")).values())
    assert second["took"] is not None
    (line,) = [one for one in summary.lines(report, "x") if one.startswith("Estimated")]
    assert line.startswith("Estimated 4 m 10 s for 1 wave, took ")
    assert line.endswith("; 1 wave without an estimate.")
    assert "Estimated and real" in page.render(report)


@pytest.mark.parametrize(
    ("before", "after", "rate"),
    [
        ({"complete": False, "files": 0, "bytes": 0}, {"complete": True, "files": 9, "bytes": 4e9}, {"weights": 2e9}),
        (
            {"complete": False, "files": 9, "missing": ["x"] * 9},
            {"complete": True, "files": 9, "bytes": 4e9},
            {"weights": 2e9},
        ),
        # Of one that had a part, or all, nobody knows how much came.
        ({"complete": False, "files": 9, "missing": ["x"]}, {"complete": True, "files": 9, "bytes": 4e9}, {}),
        ({"complete": True, "files": 9, "bytes": 4e9}, {"complete": True, "files": 9, "bytes": 4e9}, {}),
    ],
)
def test_how_fast_weights_came(before, after, rate):
    tasks = {1: {"role": "hf_cache", "at": 10.0}, 2: {"role": "hf_cache", "at": 11.0}}
    events = [
        {
            **{"type": "result", "task": task, "host": "node1", "at": at, "status": "ok", "changed": changed},
            "data": build.picked("hf_snapshot", found, failed=False),
        }
        for task, at, changed, found in ((1, 10.5, False, before), (2, 12.0, True, after))
    ]
    assert estimate.rates(events, tasks, {(1, "node1"): 10.0}) == rate


def test_the_longest_boot_is_kept_with_the_waits_after_it():
    tasks = {
        1: {"role": "rocm", "file": "reboot_now", "action": "vllm_server"},
        2: {"role": "rocm", "file": "reboot_now", "action": "ansible.builtin.reboot"},
        3: {"role": "rocm", "file": "reboot_now", "action": "rocm_info"},
        4: {"role": "rocm", "file": "main", "action": "rocm_info"},
    }
    at = [(1, "n1", 5.0), (2, "n1", 100.0), (3, "n1", 110.0), (4, "n1", 200.0), (2, "n2", 60.0), (3, "n2", 65.0)]
    events = [
        {"type": "result", "task": task, "host": host, "at": when, "status": "ok", "changed": True, "data": {}}
        for task, host, when in at
    ]
    assert estimate.rates(events, tasks, {(2, "n1"): 10.0, (2, "n2"): 20.0}) == {"boot": 100.0}
    assert estimate.rates(events[:1], tasks, {}) == {}
