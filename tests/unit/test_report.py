# SPDX-License-Identifier: Apache-2.0
"""A run's events to its report: what became of each node, its times, its figures, and the words for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from report_runs import BENCHMARK, FAILURE, STAGES, Run, summary

from ansible.module_utils.vllm_fleet.common.secrets import scrub_words
from fleet_report import build, index, page, timeline, words
from fleet_report import summary as terminal

ROOT = Path(__file__).resolve().parents[2]


def report_of(run, **more):
    return build.build(run.described(**more), run.events)


def node(report, name):
    return next(n for n in report["nodes"] if n["name"] == name)


@pytest.fixture(scope="module")
def four():
    return report_of(Run(4).deploy())


def test_a_deployment_in_waves(four):
    assert four["outcome"] == {"replaced": 4}
    first = node(four, "node1")
    assert (first["downtime"], first["ready"]) == (241.7, 236.4)
    assert (first["ttft"], first["tokens_per_second"]) == (0.11, 51.0)
    assert (first["release"]["release"], first["previous"]["release"]) == (7, 6)
    phases = [s["phase"] for s in first["timeline"]]
    assert phases == ["check", "stage", "drain", "check", "down", "load", "verify", "check", "admit"]
    for one in first["timeline"]:
        assert 0 <= one["from"] < one["to"] <= four["elapsed"]
    assert build.worth_a_page(four)
    lines = terminal.lines(four, "reports/x/index.html")
    assert lines[0].endswith(": 4 replaced")
    assert lines[2].split() == [
        "node1",
        "replaced",
        "7",
        "4",
        "m",
        "02",
        "s",
        "3",
        "m",
        "56",
        "s",
        "110",
        "ms",
        "(was",
        "140",
        "ms)",
        "51.0",
        "(was",
        "48.2)",
    ]
    assert lines[-1] == "Report: reports/x/index.html"


def test_a_request_through_the_gateway_is_seen_in_the_picture_and_not_in_the_figures():
    run = Run(1)
    run.play("rollout")
    answer = {"name": "capital", "api": "chat", "content": "Paris.", "ttft": 0.1, "tokens_per_second": 50.0}
    run.task("Verify", "vllm_server", "vllm_chat", {"node1": (1.0, "ok", {"results": [answer]})})
    through = {**answer, "ttft": 0.7, "tokens_per_second": 9.0}
    run.task("Ask", "gateway", "vllm_chat", {"node1": (2.0, "ok", {"results": [through]})}, file="verify_routing")
    (one,) = report_of(run)["nodes"]
    assert (one["ttft"], one["tokens_per_second"]) == (0.1, 50.0)
    assert [s["phase"] for s in one["timeline"]] == ["verify", "admit"]


def test_tasks_of_the_user_count_as_what_the_rollout_does_meanwhile():
    run = Run(1)
    run.play("rollout")
    mark = {"ansible_facts": {"rollout_outcome": {"state": "draining"}}}
    run.task("Look", "rollout", "ansible.builtin.command", {"node1": (1.0, "ok", {})}, file="plan")
    note = build.picked("ansible.builtin.set_fact", mark, failed=False)
    run.task("Note", "rollout", "ansible.builtin.set_fact", {"node1": (0.5, "ok", note)}, file="drain")
    run.task("Tell the balancer", "rollout", "ansible.builtin.uri", {"node1": (3.0, "ok", {})}, file="mine")
    run.task(
        "Note", "rollout", "ansible.builtin.set_fact", {"node1": (0.5, "ok", {"mark": "replacing"})}, file="replace"
    )
    run.task("Reboot", "rocm", "ansible.builtin.reboot", {"node1": (9.0, "ok", {})}, file="reboot")
    (one,) = report_of(run)["nodes"]
    assert [s["phase"] for s in one["timeline"]] == ["check", "drain", "check", "boot"]


def test_a_failed_canary_stops_the_rest():
    report = report_of(Run(4, failing=("node1",)).deploy())
    assert report["outcome"] == {"restored": 1, "untouched": 3}
    first = node(report, "node1")
    assert first["failure"]["class"] == "kv_cache_too_small"
    assert first["failure"]["evidence"] == FAILURE["evidence"]
    assert first["ready"] is None
    assert [s["phase"] for s in first["timeline"]][-2:] == ["failed", "restore"]
    text = "\n".join(terminal.lines(report, "x"))
    assert "node1: kv_cache_too_small: No room" in text
    assert FAILURE["remedy"] in text
    html = page.render(report)
    assert "The previous server is back on node1" in html
    assert "node1:/var/lib/vllm-fleet/vllm/logs/x.log" in html


def test_an_unreachable_node_is_one_failure_with_what_to_do():
    report = report_of(Run(3, unreachable=("node2",)).deploy())
    assert node(report, "node2")["outcome"] == "unreachable"
    assert "node2: unreachable: node2, port 22, does not answer in time" in "\n".join(terminal.lines(report, "x"))


def test_nodes_that_fail_alike_are_one_story_and_a_long_table_is_cut():
    report = report_of(Run(64, failing=("node20", "node23")).deploy())
    lines = terminal.lines(report, "x")
    assert lines[2].startswith("node20 ")
    assert "and 44 more nodes, in the report" in lines
    assert sum(line.startswith("node20, node23: kv_cache_too_small") for line in lines) == 1


def answers(nonsense=False):
    return [{"name": "capital", "api": "chat", "content": "Paris.", "ttft": 0.02, "tokens_per_second": 40.0}]


def noop(names=("node1", "node2")):
    run = Run(len(names))
    run.play("vllm_server")
    data = {"actions": [], "differences": [], "release": summary(3, 0.1, 50)}
    run.task("Run", "vllm_server", "vllm_server", dict.fromkeys(run.names, (0.5, "ok", data)), state="started")
    run.task("Verify", "vllm_server", "vllm_chat", {n: (0.5, "ok", {"results": answers()}) for n in run.names})
    return run


def noop_report():
    return report_of(noop())


def test_a_run_with_nothing_to_change_is_one_line_and_no_page():
    report = report_of(noop())
    assert not build.worth_a_page(report)
    expected = "2 nodes, nothing to change; 2 nodes answered as expected, first token after 20 ms, 40.0 tokens/s."
    assert terminal.lines(report) == [expected]


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_gateway_that_fails_before_the_waves_is_no_run_with_nothing_to_change(check_mode):
    run = Run(2)
    run.play("vllm_server")
    question = {"actions": ["create", "stop", "keep", "rename", "start"]}
    run.task(
        "Ask", "vllm_server", "vllm_server", dict.fromkeys(run.names, (1, "ok", question)), state="started", asked=True
    )
    run.task("Configure", "gateway", "ansible.builtin.copy", {"gateway1": (1, "failed", {"msg": "the disk is full"})})
    report = report_of(run, failed=["gateway1"], check_mode=check_mode)
    head = "Check: a run would fail." if check_mode else "2 nodes, none replaced: gateway1 failed."
    assert terminal.lines(report) == [head, "gateway1: the disk is full"]
    assert report_of(noop(), failed=["node1"])["failed_elsewhere"] == []


def test_what_one_host_did_for_all_is_a_failure_of_the_run_and_of_no_host():
    run = Run(2)
    run.play("vllm_server")
    held = {
        "msg": "One or more items failed",
        "results": [{"held": True}, {"failed": True, "msg": "Another run holds it"}],
    }
    kept = build.picked("fleet_lock", held, failed=True)
    assert kept == {"msg": "Another run holds it"}
    run.task("Lock", "fleet_lock", "fleet_lock", {"node1": (1, "failed", kept)})
    next(e for e in run.events if e["type"] == "task")["once"] = True
    report = report_of(run, failed=["node1"])
    assert report["outcome"] == {"untouched": 2}
    head, why = terminal.lines(report)
    assert head.endswith(": 2 not attempted") and why == "Another run holds it"
    html = page.render(report)
    assert "<h3>the run</h3>" in html and 'class="bad"' in html
    assert terminal.lines(report_of(run, failed=["node1"], check_mode=True)) == ["Check: a run would fail.", why]


def removal(check_mode=False):
    run = Run(2)
    run.play("teardown")
    gone = {"actions": ["remove"], "differences": [{"name": "state", "current": "running", "desired": "absent"}]}
    run.task("Remove", "teardown", "vllm_server", {"node1": (1, "ok", gone)}, state="absent", changed=True)
    run.task("Remove", "teardown", "vllm_server", {"node2": (1, "ok", {"actions": []})}, state="absent")
    return report_of(run, check_mode=check_mode)


def test_a_plan_that_points_to_what_was_said_of_a_node_says_no_more():
    run = Run(2)
    run.play("vllm_server")
    run.task("Ask", "vllm_server", "vllm_chat", {"node2": (1, "failed", {"msg": "no answer"})})
    run.task("Plan", "rollout", "assert", {"node1": (1, "failed", {"msg": "node2 could not be asked (see above)."})})
    [task for task in run.events if task["type"] == "task"][-1]["once"] = True
    assert terminal.lines(report_of(run, failed=run.names))[1:] == ["node2: verification: no answer"]


def test_a_node_that_is_refused_when_it_is_looked_at_has_not_failed():
    run = Run(2)
    run.play("vllm_server")
    wrong = {"failure": {**FAILURE, "class": "bad_argument", "cause": "no such flag"}, "msg": "x"}
    run.task(
        "Ask", "vllm_server", "vllm_server", dict.fromkeys(run.names, (1, "failed", wrong)), state="started", asked=True
    )
    head, *why = terminal.lines(report_of(run, failed=run.names), "x")
    assert head.endswith(": 2 refused") and why[0] == "node1, node2: bad_argument: no such flag"
    run = Run(2)
    run.play("vllm_server")
    told = {n: (1, "failed", {"msg": f"{n}: port: taken. Nothing was touched."}) for n in run.names}
    run.task("Refuse", "preflight", "preflight_report", told)
    head, *why = terminal.lines(report_of(run, failed=run.names))
    assert head.endswith(": 2 refused") and why == ["node1, node2: port: taken. Nothing was touched."]


def test_a_teardown_says_what_it_removed():
    report = removal()
    assert build.worth_a_page(report)
    head, *rest = terminal.lines(report, "x")
    assert head.endswith(": 1 removed, 1 had no server") and rest == ["Report: x"]
    page.render(report)
    assert terminal.lines(removal(check_mode=True)) == [
        "Check: 1 of 2 nodes would change.",
        "  node1: its server would be removed",
    ]


def test_a_maintenance_says_what_it_stops_and_which_model_has_no_server():
    def of(check_mode):
        run = Run(2)
        run.play("maintenance")
        gone = {"actions": ["stop"], "differences": [{"name": "state", "current": "running", "desired": "exited"}]}
        run.task("Stop", "maintenance", "vllm_server", {"node1": (1, "ok", gone)}, state="stopped", changed=True)
        fact = {"ansible_facts": {"maintenance_says": ["m has no server until start.yml"]}}
        note = build.picked("ansible.builtin.set_fact", fact, failed=False)
        run.task("Note", "maintenance", "ansible.builtin.set_fact", {"node1": (0, "ok", note)})
        return terminal.lines(report_of(run, check_mode=check_mode), "x")

    assert of(check_mode=True) == [
        "Check: 1 of 1 node would change.",
        "  node1: its server would be stopped",
        "m has no server until start.yml",
    ]
    head, *rest = of(check_mode=False)
    assert head.endswith(": 1 stopped") and rest == ["m has no server until start.yml", "Report: x"]


def test_what_a_drain_says_is_no_last_line():
    run = Run(1)
    run.play("rollout")
    drained = {"drained": True, "elapsed": 0.1, "says": "0 running, 0 waiting"}
    told = build.picked("vllm_drained", drained, failed=False)
    run.task("Wait", "rollout", "vllm_drained", {"node1": (1, "ok", told)})
    assert report_of(run)["says"] == []


def test_a_server_that_nobody_describes_is_no_server_of_the_host_that_removes_it():
    run = noop()
    gone = {"actions": ["remove"], "differences": []}
    run.task(
        "Remove",
        "rollout",
        "vllm_server",
        {"node1": (1, "ok", gone)},
        state="absent",
        changed=True,
        file="remove",
        of="old",
    )
    report = report_of(run)
    assert report["outcome"] == {"unchanged": 2} and report["removed"] == {"node1": ["old"]}
    assert build.worth_a_page(report)
    assert "Removed, not described any more: old on node1" in terminal.lines(report, "x")


def test_where_to_ask():
    run = noop(("node1", "node2", "node3"))
    for n, (bind, port) in {
        "node1": ("127.0.0.1", 8000),
        "node2": ("127.0.0.1", 8000),
        "node3": ("0.0.0.0", 8001),
    }.items():
        spec = {"spec": {"bind": bind, "port": port}}
        data = build.picked("vllm_server", spec, failed=False)
        run.task("Run", "vllm_server", "vllm_server", {n: (1, "ok", data)}, state="started")
    asked = "To ask: http://127.0.0.1:8000/v1 on node1, node2, port 8001 of node3"
    assert terminal.lines(report_of(run))[-1] == asked
    # Behind a gateway servers are not for clients, also where nothing is known of the gateway.
    assert len(terminal.lines(report_of(run, gateway_hosts=["gateway1"]))) == 1
    fact = {"ansible_facts": {"gateway_urls": ["http://192.0.2.10:8080/v1"]}}
    note = build.picked("ansible.builtin.set_fact", fact, failed=False)
    run.task("Record", "gateway", "ansible.builtin.set_fact", {"gateway1": (0, "ok", note)})
    assert terminal.lines(report_of(run, gateway_hosts=["gateway1"]))[-1] == "To ask: http://192.0.2.10:8080/v1"


def test_a_server_in_maintenance_is_left_out_and_one_that_goes_there_is_stopped():
    run = noop(("node1", "node2"))
    why = {"node2": {"why": " since noon", "with": "", "lost": False}}
    note = build.picked("set_fact", {"ansible_facts": {"deploy_steps": {"left_out": why}}}, failed=False)
    run.task("Record", "deploy", "set_fact", {"node1": (0, "ok", note)})
    first, second = terminal.lines(report_of(run))
    assert (
        first.startswith("1 node, nothing to change; 1 node answered") and "node2, in maintenance since noon" in second
    )
    run = Run(1)
    run.play("vllm_server")
    run.task(
        "Stop", "maintenance", "vllm_server", {"node1": (1, "ok", {"actions": ["stop"]})}, state="stopped", changed=True
    )
    report = report_of(run)
    assert build.worth_a_page(report) and terminal.lines(report, "x")[0].endswith(": 1 stopped")


@pytest.mark.parametrize(("playbook", "word"), [("rollback", "rolled back"), ("deploy", "replaced")])
def test_a_rollback_says_what_came_back_and_a_deployment_of_an_earlier_release_is_none(playbook, word):
    run = Run(1)
    if playbook == "rollback":
        run.play("rollback")
        run.task("Get the node's records", "rollback", "vllm_release_info", {"node1": (1, "ok", {})})
    run.deploy()
    for event in run.events:
        if event.get("data", {}).get("release"):
            event["data"]["release"] |= {"restores": 5}
    report = report_of(run)
    assert report["outcome"] == {word.replace(" ", "_"): 1}
    assert " ".join(terminal.lines(report, "x")[2].split()).startswith(f"node1 {word} 7 (as 5)")


@pytest.mark.parametrize(
    ("mark", "word"), [("replaced", "failed and taken back"), ("failed", "failed"), ("", "failed")]
)
def test_a_canary_that_did_not_pass_its_soak_is_taken_back_and_no_longer_failed(mark, word):
    run = Run(2)
    run.play("rollout")
    run.wave(["node1"])
    run.task("Record that the server is replaced", "rollout", "set_fact", {"node1": (0, "ok", {"mark": "replaced"})})
    run.task("Get the node's records", "rollback", "vllm_release_info", {"node1": (1, "ok", {})})
    if mark:
        run.wave(["node1"])
        run.task("Record that it is replaced", "rollout", "set_fact", {"node1": (0, "ok", {"mark": mark})})
    said = {"msg": "node1: the new release did not pass its soak: it leaks. Rolled back, because node1 failed."}
    run.task("Fail", "rollout", "fail", {"node1": (0, "failed", said)}, file="verdict")
    report = build.build(run.described(failed=["node1"]), run.events)
    assert report["outcome"] == {word.removeprefix("failed and ").replace(" ", "_"): 1, "untouched": 1}
    assert terminal.lines(report, "x")[0].endswith(f": 1 not attempted, 1 {word}")
    assert build.worth_a_page(report)


def test_a_row_for_each_gateway_says_what_changed():
    run = Run(2)
    run.play("gateway")
    service = ["/usr/local/sbin/vllm-fleet-gateway", "/etc/systemd/system/haproxy.service.d/vllm-fleet.conf"]
    found = {"differing": ["/etc/haproxy/vllm-fleet.cfg", *service]}
    looks = {"gateway1": (1, "ok", found), "gateway2": (1, "ok", {"differing": []})}
    run.task("Look", "gateway", "gateway_info", looks, file="main")
    run.task("Write", "gateway", "ansible.builtin.copy", {"gateway1": (1, "ok", {})}, file="install", changed=True)
    run.task("Keys", "gateway", "gateway_keys", {"gateway1": (1, "ok", {})}, file="install", changed=True)
    forgets = ["gateway1 forgets node2 (acme/tiny, serving now); its container stays"]
    fact = build.picked("set_fact", {"ansible_facts": {"gateway_forgets": forgets}}, failed=False)
    run.task("Record", "gateway", "ansible.builtin.set_fact", {"gateway1": (0, "ok", fact)}, file="main")
    # On behalf of a node: none of the gateway's own.
    run.task("Admit", "gateway", "haproxy", {"node1": (1, "ok", {})}, file="admit", changed=True)
    report = report_of(run)
    assert report["gateways"] == [
        {
            "name": "gateway1",
            "outcome": "changed",
            "changed": ["configuration", "service", "clients' keys"],
            "forgets": ["gateway1 forgets node2 (acme/tiny, serving now); its container stays"],
        },
        {"name": "gateway2", "outcome": "unchanged", "changed": [], "forgets": []},
    ]
    told = terminal.lines({**noop_report(), "gateways": report["gateways"], "check_mode": True})
    assert told[-2:] == ["gateway1: would change (configuration, service, clients' keys)", *forgets]
    alone = {**report, "nodes": [], "endpoints": ["http://192.0.2.10:8080/v1"]}
    # A run that changed gateways alone has a page, and the line of a run that changed no server.
    assert build.worth_a_page(report) and not build.worth_a_page({**report, "check_mode": True})
    assert page.headline(alone)["text"] == "gateway1 changed"
    assert forgets[0] in page.render(report)
    calm = terminal.lines({**noop_report(), "gateways": report["gateways"]}, "reports/x/index.html")
    assert calm[0].startswith("2 nodes, nothing to change; ") and calm[-1] == "Report: reports/x/index.html"
    starts = [line.split()[0] for line in terminal.lines(alone, "reports/x/index.html")]
    assert starts == ["gateway1:", "gateway1", "To", "Report:"]
    failed = report_of(run, failed=["gateway2"])["gateways"]
    assert [row["outcome"] for row in failed] == ["changed", "failed"]


def test_a_node_whose_wave_never_came_is_not_reached():
    run = Run(2)
    run.play("rollout")
    question = {"actions": ["create", "stop", "keep", "rename", "start"], "release": summary(3, 0.1, 50)}
    run.task("Ask", "vllm_server", "vllm_server", {"node1": (1, "ok", question)}, state="started", asked=True)
    run.task("Ask", "vllm_server", "vllm_server", {"node2": (1, "ok", {**question, "actions": []})}, asked=True)
    report = report_of(run)
    assert report["outcome"] == {"untouched": 1, "unchanged": 1}
    assert [s["phase"] for s in node(report, "node1")["timeline"]] == ["check"]


def test_a_verification_alone_is_one_line():
    run = Run(2)
    run.task("Verify", "vllm_server", "vllm_chat", {n: (0.5, "ok", {"results": answers()}) for n in run.names})
    report = report_of(run)
    assert not build.worth_a_page(report)
    assert terminal.lines(report) == ["2 nodes answered as expected, first token after 20 ms, 40.0 tokens/s."]


def test_a_verification_that_finds_a_wrong_answer_counts_the_right_ones():
    run = Run(3)
    wrong = {"msg": "expected a match of /Paris/.", "results": answers()}
    asked = {
        "node1": (0.5, "ok", {"results": answers()}),
        "node2": (0.5, "failed", wrong),
        "node3": (0.5, "failed", {"msg": "refused"}),
    }
    run.task("Verify", "vllm_server", "vllm_chat", asked)
    # Its task was rescued and nothing came of it: still no answer as expected.
    assert terminal.lines(report_of(run))[0].startswith("1 node answered as expected, ")
    report = report_of(run, failed=["node2", "node3"])
    assert report["outcome"] == {"answered": 1, "failed": 2}
    assert not build.worth_a_page(report)
    head, *told = terminal.lines(report)
    assert head.endswith(": 1 answered as expected, 2 failed")
    assert told == ["node2: verification: expected a match of /Paris/.", "node3: verification: refused"]


def test_the_class_of_what_cannot_be_staged_is_told():
    """Of any module that names one; hf_snapshot says all of it in one sentence."""
    says = "Repository acme/none was not found. Correct hf_cache_repo_id."
    result = {"msg": says, "failure": {"class": "model_not_found", "evidence": ["404"], "remedy": says}, "path": "/x"}
    kept = build.picked("hf_snapshot", result, failed=True)
    assert kept == {"msg": says, "failure": result["failure"]}
    assert build.picked("hf_swarm", {"msg": "no", "failure": "a word"}, failed=True) == {"msg": "no"}
    assert build.picked("hf_snapshot", result, failed=False) == {}
    run = Run(1)
    run.play("hf_cache")
    run.task("Copy", "hf_cache", "hf_snapshot", {"node1": (1.0, "failed", kept)})
    (one,) = report_of(run, failed=["node1"])["nodes"]
    told = one["failure"]
    assert (told["class"], told["cause"], told["evidence"], told["remedy"]) == ("model_not_found", says, ["404"], "")


def test_an_image_that_cannot_be_had_is_missing():
    run = Run(1)
    run.play("vllm_image")
    run.task("Load", "vllm_image", "long_command", {"node1": (1.0, "failed", {"msg": "no such file"})})
    failure = report_of(run, failed=["node1"])["nodes"][0]["failure"]
    assert (failure["class"], failure["cause"]) == ("image_missing", "no such file")


def test_a_check_run_says_what_is_brought_before_it_can_be_compared():
    run = Run(2)
    run.play("vllm_server")
    data = {"actions": [], "differences": [], "failure": {"class": "image_missing"}}
    run.task("Run", "vllm_server", "vllm_server", {"node1": (0.5, "ok", data)}, state="started", changed=True)
    run.task("Run", "vllm_server", "vllm_server", {"node2": (0.5, "ok", {})}, state="started")
    lines = terminal.lines(report_of(run, check_mode=True))
    assert lines == [
        "Check: 1 of 2 nodes would change.",
        "  node1: its image or weights, which come first, and then the server",
    ]


def test_a_look_at_the_gateway_belongs_to_what_follows():
    marks = {None: "check", "draining": "drain", "admitting": "admit"}
    task = {"action": "gateway_info", "role": "gateway", "file": "probe"}
    assert {mark: timeline.phase_of(task, None, mark) for mark in marks} == marks


def test_a_run_about_no_server_says_nothing():
    run = Run(2)
    run.play("docker_engine")
    run.task("Install", "docker_engine", "ansible.builtin.apt", {"node1": (1, "failed", {"msg": "no"})})
    report = report_of(run, failed=["node1"])
    assert terminal.lines(report) == []
    assert not build.worth_a_page(report)


def test_a_question_in_check_mode_by_a_role_that_only_looks_is_no_deployment():
    run = Run(1)
    data = {"actions": ["stop", "create", "start"]}
    run.task("Look", "status", "vllm_server", {"node1": (1, "ok", data)}, state="started", changed=True)
    run.events[-1]["only_status"] = True
    assert terminal.lines(report_of(run)) == []


def test_a_check_run_says_what_would_change_and_where():
    run = Run(3)
    run.play("vllm_server")
    data = {"actions": ["stop"], "differences": [{"name": "args.max-model-len", "current": 1, "desired": 2}]}
    run.task("Run", "vllm_server", "vllm_server", dict.fromkeys(run.names[:2], (0.5, "ok", data)), changed=True)
    run.task("Run", "vllm_server", "vllm_server", {"node3": (0.5, "ok", {})})
    report = report_of(run, check_mode=True)
    assert not build.worth_a_page(report)
    assert terminal.lines(report) == ["Check: 2 of 3 nodes would change.", "  node1, node2: args.max-model-len"]


@pytest.mark.parametrize("gone_back", [True, False])
def test_a_server_that_answers_wrongly(gone_back):
    run = Run(1)
    run.play("vllm_server")
    data = {
        "actions": ["create", "stop", "keep", "rename", "start"],
        "downtime": 3.0,
        "stages": [{"stage": "starting", "at": 0}, {"stage": "ready", "at": 2.5}],
    }
    run.task("Run", "vllm_server", "vllm_server", {"node1": (4.0, "ok", data)}, state="started", changed=True)
    run.task(
        "Verify", "vllm_server", "vllm_chat", {"node1": (1.0, "failed", {"msg": "expected Paris.", "results": []})}
    )
    back = {} if gone_back else {"failure": {"class": "unknown"}, "msg": "nothing to restore"}
    run.task("Restore", "vllm_server", "vllm_server", {"node1": (3.0, "ok", back)}, state="restored")
    run.task(
        "Say why",
        "vllm_server",
        "ansible.builtin.fail",
        # As the rollout's verdict has it, with the host.
        {"node1": (0.1, "failed", {"msg": "node1: expected Paris. It is back."})},
    )
    report = report_of(run, failed=["node1"])
    first = node(report, "node1")
    assert first["outcome"] == ("restored" if gone_back else "failed")
    assert (
        first["failure"] | {"class": "verification", "cause": "expected Paris.", "remedy": "It is back."}
        == first["failure"]
    )
    # Ready is not right: the time without a server goes on until the old one is back.
    assert first["downtime"] == (7.0 if gone_back else 3.0)


def test_figures_of_a_benchmark():
    report = report_of(noop(), benchmarks={"node1": BENCHMARK})
    assert build.worth_a_page(report)
    text = "\n".join(terminal.lines(report, "x"))
    assert "node1  200       4.8         621              212 ms (890 ms)    20 ms (31 ms)" in text
    assert "vllm bench serve" in page.render(report)


def test_a_reboot_counts_as_time_without_a_server():
    run = Run(1)
    run.play("vllm_server")
    one = {"node1": (3.0, "ok", {"actions": ["stop"]})}
    run.task("Stop the server before the reboot", "rocm", "vllm_server", one, state="stopped", changed=True)
    run.task(
        "Reboot and wait for the node", "rocm", "ansible.builtin.reboot", {"node1": (300.0, "ok", {})}, changed=True
    )
    stages = [*STAGES[:-1], {"stage": "ready", "at": 100.0}]
    started = {"actions": ["start"], "stages": stages, "downtime": None, "differences": []}
    run.task(
        "Run the server", "vllm_server", "vllm_server", {"node1": (101.0, "ok", started)}, state="started", changed=True
    )
    report = report_of(run)
    first = node(report, "node1")
    assert (first["outcome"], first["downtime"], first["down"]) == ("started", 404.0, [[0.0, 404.0]])
    assert [s["phase"] for s in first["timeline"]] == ["down", "boot", "check", "load"]
    assert "reboots</span>" in page.render(report)


def test_a_server_that_was_restarted_is_told_with_the_reason():
    run = Run(1)
    run.play("vllm_server")
    data = {
        "actions": ["stop", "start"],
        "differences": [{"name": "state", "current": "running", "desired": "restarted"}],
        "downtime": 100.4,
        "stages": [*STAGES[:-1], {"stage": "ready", "at": 100.0}],
        "notes": ["restarted because its engine did no step"],
    }
    one, same = {"node1": (101.0, "ok", data)}, {"node1": (0.3, "ok", {"actions": [], "differences": []})}
    run.task("Restart the server", "vllm_server", "vllm_server", one, state="restarted", changed=True, file="restart")
    run.task("Ensure the server runs and is ready", "vllm_server", "vllm_server", same, state="started")
    report = report_of(run)
    first = node(report, "node1")
    assert (first["outcome"], first["changed"], first["downtime"]) == ("restarted", True, 100.4)
    assert first["notes"] == data["notes"]
    assert "restarted because its engine did no step" in page.render(report)
    assert "1 restarted" in "\n".join(terminal.lines(report, "page.html"))


def test_a_check_run_says_which_server_would_be_restarted():
    run = Run(1)
    run.play("vllm_server")
    asked = {"node1": (0.3, "ok", {"actions": [], "differences": []})}
    run.task("Ensure the server runs and is ready", "vllm_server", "vllm_server", asked, asked=True)
    noted = {"node1": (0.1, "ok", {"repair": "its engine did no step"})}
    run.task("Record how it is mended", "vllm_server", "ansible.builtin.set_fact", noted, file="verify")
    told = "\n".join(terminal.lines(report_of(run, check_mode=True)))
    assert told == "Check: 1 of 1 node would change.\n  node1: state"


def test_a_check_run_counts_a_server_that_its_watchdog_keeps_out():
    run = Run(1)
    run.play("vllm_server")
    found = {"actions": [], "differences": [], "confirmed": True, "watchdog": {"state": "out", "why": "3 restarts"}}
    asked = {"node1": (0.3, "ok", build.picked("vllm_server", found, failed=False))}
    run.task("Ensure the server runs and is ready", "vllm_server", "vllm_server", asked, asked=True)
    told = "\n".join(terminal.lines(report_of(run, check_mode=True)))
    assert told == "Check: 1 of 1 node would change.\n  node1: state"


def test_a_burn_in_stands_on_the_page():
    run = Run(2)
    run.play("burnin")
    finding = {"level": "refused", "what": "all_reduce_perf", "expected": "304 <GB/s>", "got": "250", "remedy": "look"}
    good = {**finding, "level": "ok", "what": "gst", "remedy": ""}
    run.task(
        "Check the results of gst", "burnin", "burnin_report", {n: (1.0, "ok", {"finding": good}) for n in run.names}
    )
    run.task(
        "Check the results of all_reduce_perf", "burnin", "burnin_report", {"node2": (1.0, "ok", {"finding": finding})}
    )
    report = report_of(run)
    assert build.worth_a_page(report)
    assert [n["outcome"] for n in report["nodes"]] == ["tried", "tried"]
    assert node(report, "node2")["burn_in"] == [good, finding]
    html = page.render(report)
    assert "2 nodes: 2 burned in" in html
    assert "304 &lt;GB/s&gt;" in html
    assert ">below<" in html


def test_a_run_that_only_measures_says_so():
    run = Run(2)
    run.play("benchmark")
    run.task("Measure the server", "benchmark", "docker_container_exec", dict.fromkeys(run.names, (9.0, "ok", {})))
    report = report_of(run, benchmarks=dict.fromkeys(run.names, BENCHMARK))
    assert terminal.lines(report, "x")[0].endswith(": 2 measured")


def test_what_a_server_says_is_text_and_never_markup():
    run = noop()
    run.events[-1]["data"] = {"results": [{**answers()[0], "content": "<script>alert(1)</script>"}]}
    html = page.render(report_of(run))
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_report_is_plain_json(four):
    assert json.loads(json.dumps(four)) == four


@pytest.mark.parametrize(
    ("data", "phases", "gap"),
    [
        ({"actions": []}, ["check"], None),
        ({"actions": ["create", "start"], "stages": STAGES}, ["check", "load"], None),
        (
            {"actions": ["create", "stop", "keep", "rename", "start"], "stages": STAGES, "downtime": 240.0},
            ["check", "down", "load"],
            [60.0, 300.0],
        ),
        # Clocks that do not agree never make a stretch that begins before its task.
        ({"actions": ["stop", "create", "start"], "stages": STAGES, "downtime": 900.0}, ["down", "load"], [0.0, 300.0]),
        ({"actions": ["create", "start"], "failure": FAILURE}, ["failed"], None),
        ({"failure": FAILURE}, ["failed"], None),
    ],
)
def test_what_a_start_was_made_of(data, phases, gap):
    stretches, down = timeline.server_stretches(0.0, 300.0, data)
    assert [s["phase"] for s in timeline.joined(stretches)] == phases
    assert down == gap


@pytest.mark.parametrize(("length", "last", "number"), [(3.9, 3, 4), (960, 960, 9), (1211, 1200, 5), (50000, 43200, 7)])
def test_an_axis_has_round_times(length, last, number):
    assert (timeline.ticks(length)[-1], len(timeline.ticks(length))) == (last, number)


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (words.duration, None, words.DASH),
        (words.duration, 0.84, "0.8 s"),
        (words.duration, 9.96, "10 s"),
        (words.duration, 59.7, "1 m 00 s"),
        (words.duration, 3725, "1 h 02 m"),
        (words.axis, 5400, "1 h 30 m"),
        (words.axis, 300, "5 m"),
        (words.axis, 2, "2 s"),
        (words.latency, 0.0214, "21 ms"),
        (words.latency, 1.4249, "1.42 s"),
        (words.rate, 48.23, "48.2"),
        (words.rate, 1234.5, "1234"),
    ],
)
def test_numbers_as_a_person_reads_them(write, value, text):
    assert write(value) == text


def test_a_page_of_all_runs_has_those_whose_folder_is_there(tmp_path):
    good, bad = report_of(Run(2).deploy(), id="a"), report_of(Run(2, failing=("node1",)).deploy(), id="b", limit="<b>")
    for report in (good, {**good, "id": "gone"}, bad):
        (tmp_path / report["id"]).mkdir()
        index.add(tmp_path, report)
    (tmp_path / "gone").rmdir()
    with (tmp_path / index.LINES).open("a") as file:
        file.write('{"id": "cut off\n"7"\n{"id": "of a run that was ki')
    (tmp_path / "c").mkdir()
    index.add(tmp_path, {**good, "id": "c"})
    (tmp_path / "d").mkdir()
    index.add(tmp_path, {**good, "id": "d"})
    html = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="(\w+)/index.html"', html) == ["d", "c", "b", "a"]
    assert html.count('class="dot bad"') == 1 and "limit &lt;b&gt;" in html
    assert 'href="../index.html"' in page.render(good)
    said = page.command(report_of(Run(1), limit="all:!node7", tags=["stage", "rollout"], extra_vars=["hf_token"]))
    assert (
        said
        == "ansible-playbook deploy.yml -i inventory/tensorwave --limit 'all:!node7' --tags stage,rollout -e hf_token=…"
    )


def aged(report, number):
    """The same run at another time, with other figures."""
    nodes = [
        {**node, "tokens_per_second": 40.0 + number, "release": {**node["release"], "release": number}}
        for node in report["nodes"]
    ]
    return {**report, "id": f"run{number:05d}", "when": f"2026-11-24 05:{number % 60:02d} UTC", "nodes": nodes}


def test_releases_of_a_node_over_time_are_a_line(tmp_path):
    first = report_of(Run(2).deploy(), id="a")
    for number in range(1, 4):
        report = aged(first, number)
        (tmp_path / report["id"]).mkdir()
        index.add(tmp_path, report)
    html = (tmp_path / "releases.html").read_text()
    assert html.count("<details") == 2
    assert html.count("<polyline") == 2 * 3
    assert "release 3, 2026-11-24 05:03 UTC: 43.0" in html
    assert re.findall(r'href="(run\w+)/index.html"', html)[:3] == ["run00003", "run00002", "run00001"]
    html = (tmp_path / "index.html").read_text()
    assert 'href="releases.html"' in html and "3 with a page." in html
    assert re.findall(r">4[123]\.0<", html) == [">43.0<", ">42.0<", ">41.0<"]
    assert "args.max-model-len" in html


def test_pages_are_made_of_a_folder_of_reports_alone_whatever_version_wrote_them(tmp_path):
    first = report_of(Run(2).deploy(), id="a")
    old = {name: first[name] for name in ("id", "when", "playbook", "limit", "elapsed", "by", "outcome")}
    reports = {
        "run00001": {**aged(first, 1), "nodes": []},
        # What an earlier version did not know, and what a later one may have made of it.
        "run00002": {**old, "nodes": [{"name": "node1", "outcome": "replaced", "changed": True, "failure": None}]},
        "run00003": {**aged(first, 3), "format": 99, "more": {}},
        "run00004": ["no report"],
    }
    for name, report in reports.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    (tmp_path / "run00005").mkdir()
    (tmp_path / "run00005" / "report.json").write_text("{cut off")
    # A file of an earlier version, which knows one run whose report cannot be read.
    line = {**old, "id": "run00005", "level": "good", "text": "1 node: 1 replaced"}
    (tmp_path / index.LINES).write_text(json.dumps(line) + "\n")
    (tmp_path / "run00006").mkdir()
    index.add(tmp_path, aged(first, 6))
    there = ["run00006", "run00005", "run00003", "run00002", "run00001"]
    html = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="(run\w+)/index.html"', html) == there
    (tmp_path / index.LINES).unlink()
    (tmp_path / "run00006" / "report.json").write_text(json.dumps(aged(first, 6)))
    assert index.rebuild(tmp_path) == 4
    assert re.findall(r'href="(run\w+)/index.html"', (tmp_path / "index.html").read_text()) == [
        name for name in there if name != "run00005"
    ]


def test_the_command_that_makes_the_pages_again(tmp_path):
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "report.json").write_text(json.dumps(aged(report_of(Run(1).deploy(), id="a"), 1)))
    command = [sys.executable, "-m", "fleet_report.index", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"1 runs: {tmp_path}/index.html\n"
    assert 'href="run1/index.html"' in (tmp_path / "index.html").read_text()


def test_tens_of_thousands_of_runs_stay_quick(tmp_path):
    """A run more costs the reading of a file, not of all reports; each page has some hundred runs."""
    first = report_of(Run(4).deploy(), id="a")
    many = 20_000
    lines = [json.dumps({**index.line(first), "id": f"run{number:05d}"}) for number in range(1, many)]
    (tmp_path / index.LINES).write_text("".join(f"{line}\n" for line in lines))
    for number in [*range(1, 11), *range(many - 999, many + 2)]:
        (tmp_path / f"run{number:05d}").mkdir()
    index.add(tmp_path, aged(first, many))
    pages = sorted(path.name for path in tmp_path.glob("runs-*.html"))
    assert (pages[0], pages[-1], len(pages)) == ("runs-00001.html", "runs-00039.html", 39)
    begun = time.process_time()
    index.add(tmp_path, aged(first, many + 1))
    took = time.process_time() - begun
    assert took < 2, f"{took:.2f} s of a processor"
    html = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="(run\d+)/index.html"', html)[:2] == ["run20001", "run20000"]
    assert html.count('href="runs-') == 39
    assert "run00010/index.html" in (tmp_path / "runs-00001.html").read_text()


def test_node10_comes_after_node9():
    assert sorted(["node10", "node9", "n"], key=words.natural) == ["n", "node9", "node10"]


def pair(run):
    """The same events, where node1 and node2 are one server."""
    replica = {"name": "pair", "head": "node1", "hosts": ["node1", "node2"]}
    for event in run.events:
        if event["type"] == "result" and event["host"] in ("node1", "node2") and "stages" in event["data"]:
            event["data"] = {**event["data"], "replica": {**replica, "rank": int(event["host"] == "node2")}}
    return run


def test_a_server_over_several_nodes_is_one_line():
    report = report_of(pair(Run(3).deploy()))
    assert [n["name"] for n in report["nodes"]] == ["pair (node1+node2)", "node3"]
    assert report["outcome"] == {"replaced": 2}
    one = report["nodes"][0]
    assert [m["name"] for m in one["members"]] == ["node1", "node2"]
    assert one["downtime"] == 241.7
    lines = terminal.lines(report, "x")
    assert lines[0].startswith("2 servers on 3 nodes in ")
    assert [line.split()[0] for line in lines[2:4]] == ["pair", "node3"]
    html = page.render(report)
    assert html.count("pair (node1+node2)") > 2
    assert ">node2<" not in html


def test_a_failure_of_one_node_is_its_replicas_and_told_once():
    run = pair(Run(3, failing=("node1", "node2")))
    run.wave(["node1", "node2"])
    for event in pair(run).events:
        if event["type"] == "result" and event["data"].get("failure"):
            event["data"] = {**event["data"], "failure": {**FAILURE, "host": "node2"}}
    report = report_of(run)
    assert report["outcome"] == {"restored": 1, "untouched": 1}
    lines = terminal.lines(report, "x")
    assert sum("kv_cache_too_small" in line for line in lines) == 1
    assert "pair (node1+node2): kv_cache_too_small: node2: No room" in "\n".join(lines)
    assert "node2:/var/lib/vllm-fleet/vllm/logs/x.log" in page.render(report)


def test_servers_of_one_node_are_counted_and_drawn_together():
    run = Run(6)
    machines = {name: f"host{number // 3}" for number, name in enumerate(run.names)}
    made = report_of(run.deploy(), machines=machines)
    made["undescribed"] = {"host1": ["vllm-a", "vllm-b"]}
    lines = terminal.lines(made, "page")
    assert lines[0].startswith("6 servers on 2 nodes in ")
    assert (
        "Not described any more: vllm-a, vllm-b on host1; deploy.yml with -e rollout_remove_undescribed=true removes them"
        in lines
    )
    shown = page.render(made)
    assert shown.count('<details class="host" open>') == 2, "few are all shown"
    assert shown.count('<tr class="host">') == 2
    assert "3 servers: 3 replaced, at most" in shown
    assert "Not described any more" in shown
    assert 'class="host"' not in page.render(report_of(run))


def test_many_servers_are_folded_by_node_but_for_those_that_failed():
    run = Run(72, failing=("node3",))
    machines = {name: f"host{number // 8 + 1}" for number, name in enumerate(run.names)}
    made = report_of(run.deploy(), machines=machines)
    assert page.render(made).count('<details class="host" open>') == 1
    assert len(page.grouped(made["nodes"])) == 9


@pytest.mark.parametrize(
    ("now", "before", "least", "level"),
    [(0.011, 0.002, 0.05, "same"), (0.3, 0.2, 0.05, "worse"), (0.2, 0.3, 0.05, "better"), (0.011, 0.002, 0.0, "worse")],
)
def test_a_first_token_some_milliseconds_later_is_not_worse(now, before, least, level):
    assert page.change(now, before, lower_is_better=True, least=least)["level"] == level


def test_the_list_of_runs_names_a_playbook_without_its_folder():
    line = index.line(report_of(Run(1).deploy()) | {"playbook": "/tmp/x/playbooks/deploy.yml"})
    assert "<td>deploy</td>" in index.render([line])


def refusals(run, told, **more):
    """Lines of a preflight that says ``told``, {host: (status, address, sentences)}."""
    results = {
        host: (
            1,
            status,
            {"msg": "x", "sentences": said, "address": at, "ending": "Nothing was touched.", "further": ""},
        )
        for host, (status, at, said) in told.items()
    }
    run.task("Refuse", "preflight", "preflight_report", results)
    lost = [host for host, (status, *_) in told.items() if status == "unreachable"]
    return report_of(run, failed=[host for host in told if host not in lost], unreachable=lost, **more)


def test_what_preflight_refuses_is_told_finding_by_finding_with_the_hosts_that_have_it():
    run = Run(4)
    run.play("vllm_server")
    told = {
        "node1": ("failed", "", ["port: taken", "disk: node1 is full", "node1 and node2 are one"]),
        "node2": ("failed", "", ["port: taken", "disk: node2 is full", "node1 and node2 are one"]),
        "node3": ("unreachable", "192.0.2.1", ["connection: 192.0.2.1 is silent; `ping 192.0.2.1`"]),
        "node4": ("unreachable", "192.0.2.11", ["connection: 192.0.2.11 is silent; `ping 192.0.2.11`"]),
    }
    report = refusals(run, told)
    assert terminal.lines(report)[1:] == [
        "node1 and node2: port: taken",
        "node1 and node2: disk: the node is full",
        "node1 and node2: node1 and node2 are one",
        "node3 and node4: connection: ADDRESS is silent; `ping ADDRESS` (ADDRESS: 192.0.2.1, 192.0.2.11)",
        "Nothing was touched.",
    ]
    counts = {"findings": {"hosts": 4, "ok": 9, "warning": 1, "refused": 4, "unseen": 2}, "judges": True}
    for check_mode in (False, True):
        head = terminal.lines({**report, **counts, "check_mode": check_mode})[0]
        assert head == "A deployment would be refused: 4 hosts, 4 refusals, 2 out of reach, 1 warning (see above)."
    counts["findings"]["refused"] = 0
    assert terminal.lines({**report, **counts})[0].startswith(
        "Whether a deployment would be accepted is not known: 4 ho"
    )


def test_an_accepted_preflight_says_so_and_what_to_type():
    run = Run(4)
    run.play("vllm_server")
    report = {**report_of(run), "judges": True, "next": "make deploy INVENTORY=inventory/mine"}
    for warnings, more in ((0, ""), (2, ", 2 warnings (see above)")):
        report["findings"] = {"hosts": 4, "warning": warnings}
        said = [f"A deployment would be accepted: 4 hosts, no refusal{more}.", f"Next: {report['next']}"]
        assert terminal.lines(report) == said
    report["not_checked"] = ["vLLM flags", "image"]
    assert terminal.lines(report)[0].endswith(" (see above). Not checked: vLLM flags, image (see above).")
    report["not_checked"] = list("abcde")
    assert terminal.lines(report)[0].endswith(" Not checked: a, b, c, 2 more (see above).")


def test_where_a_key_is_needed_the_last_line_says_so():
    run = noop(("node1",))
    spec = {"spec": {"bind": "10.0.0.1", "port": 8000, "env": {"VLLM_API_KEY": "***"}}}
    data = build.picked("vllm_server", spec, failed=False)
    run.task("Run", "vllm_server", "vllm_server", {"node1": (1, "ok", data)}, state="started")
    report = report_of(run)
    assert report["endpoints"] == ["http://10.0.0.1:8000/v1 (node1)"]
    line = terminal.lines(report)[-1]
    assert line.endswith(' (node1), with the key (-H "Authorization: Bearer $KEY")') and scrub_words(line) == line
    closed = build.picked(
        "set_fact", {"ansible_facts": {"gateway_urls": ["http://g/v1"], "gateway_closed": True}}, failed=False
    )
    run.task("Record", "gateway", "set_fact", {"gateway1": (0, "ok", closed)})
    assert terminal.lines(report_of(run, gateway_hosts=["gateway1"]))[-1].startswith(
        "To ask: http://g/v1, with the key (-H "
    )
