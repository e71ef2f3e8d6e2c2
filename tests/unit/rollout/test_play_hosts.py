# SPDX-License-Identifier: Apache-2.0
"""A play has the hosts that need it, and none before the plays that it follows came to their end."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.rollout import play_hosts

NOBODY = play_hosts.NOBODY
ACCEPTED = {"problems": [], "play": ["node1"], "hosts": ["node1"], "unchanged": [], "leftovers": []}
STEPS = {
    "hosts": ["node1", "node2"],
    "refused": [],
    "lock": ["node1", "node2"],
    "engine": ["node2"],
    "image": [],
    "weights": ["node1", "node2"],
    "answered": [],
}


@pytest.mark.parametrize(
    ("steps", "done", "hosts"),
    [
        # No node was checked, or one was lost meanwhile.
        (None, [], {}),
        ({**STEPS, "refused": ["node1"]}, [], {"refused": ["node1"]}),
        (STEPS, [], {"lock": ["node1", "node2"]}),
        (STEPS, ["lock"], {"lock": ["node1", "node2"], "engine": ["node2"]}),
        (STEPS, ["lock", "engine"], {"lock": STEPS["hosts"], "engine": ["node2"], "weights": STEPS["hosts"]}),
        # A step that no host needs is passed over.
        ({**STEPS, "engine": []}, ["lock"], {"lock": STEPS["hosts"], "weights": STEPS["hosts"]}),
        ({**STEPS, "engine": [], "weights": []}, ["lock"], {"lock": STEPS["hosts"]}),
        ({**STEPS, "lock": [], "engine": [], "weights": []}, [], {}),
    ],
)
def test_a_step_has_hosts_once_all_before_it_are_done(steps, done, hosts):
    hostvars = {"localhost": {"deploy_steps": steps, "deploy_done": done}}
    found = {name: play_hosts.step(hostvars, name) for name in ("refused", "lock", "engine", "image", "weights")}
    assert {name: those for name, those in found.items() if those != NOBODY} == hosts
    assert play_hosts.step({}, "engine") == NOBODY


@pytest.mark.parametrize(
    ("stage", "steps", "made", "prepare", "change"),
    [
        (None, None, None, True, True),  # no node in the run
        ("begun", None, None, False, False),  # a node was lost
        ("begun", {**STEPS, "refused": ["node1"]}, ACCEPTED, False, False),
        ("begun", STEPS, None, False, False),  # lost in a step
        ("begun", {**STEPS, "engine": [], "weights": []}, None, True, False),  # lost in the plan
        ("begun", {**STEPS, "engine": [], "weights": []}, {**ACCEPTED, "problems": ["No."]}, True, False),
        ("begun", {**STEPS, "engine": [], "weights": []}, ACCEPTED, True, True),
    ],
)
def test_gateways_change_after_nodes_and_plan_alone(stage, steps, made, prepare, change):
    hosts = {
        "localhost": {"deploy_stage": stage, "deploy_steps": steps, "deploy_done": ["lock"], "rollout_plan": made},
        "gw": {"gateway_takes_part": True},
        "gw2": {},
    }
    for part, may in {"prepare": prepare, "rollout": change}.items():
        assert play_hosts.gateways_of(hosts, ["gw", "gw2"], part) == (["gw"] if may else NOBODY)


def test_no_wave_begins_before_every_gateway_of_the_run_is_ready():
    hosts = {"localhost": {"rollout_plan": {**ACCEPTED, "leftovers": ["node1"]}}, "gw": {}, "gw2": {}}
    both = (play_hosts.waves, play_hosts.leftovers)
    assert [found(hosts, ["gw", "gw2"]) for found in both] == [["node1"]] * 2
    hosts["gw"] = {"gateway_takes_part": True}
    assert [found(hosts, ["gw", "gw2"]) for found in both] == [NOBODY] * 2
    hosts["gw"]["gateway_ready"] = True
    assert [found(hosts, ["gw", "gw2"]) for found in both] == [["node1"]] * 2
    assert play_hosts.leftovers({"localhost": {"rollout_plan": ACCEPTED}}, []) == NOBODY
    assert play_hosts.leftovers({"localhost": {"rollout_plan": {**ACCEPTED, "problems": ["No."]}}}, []) == NOBODY


def test_servers_that_answered_are_planned_by_no_task():
    steps = {**STEPS, "engine": [], "weights": [], "answered": ["node1", "node2"]}
    hostvars = {"localhost": {"deploy_steps": steps, "deploy_done": ["lock"]}}
    assert play_hosts.unplanned(hostvars, ["node1", "node2"]) == NOBODY
    # Of a limited run, those outside the limit count for nothing.
    assert play_hosts.unplanned(hostvars, ["node1", "node2", "outside"]) == NOBODY
    # One more than those that need it: the run goes on where all of these fail.
    steps["answered"] = ["node2"]
    assert play_hosts.unplanned(hostvars, ["node1", "node2"]) == ["node1", "node2"]
    steps["hosts"] = ["node1", "node2", "node3"]
    assert play_hosts.unplanned(hostvars, steps["hosts"]) == ["node1", "node3", "node2"]
    # A rollback probes nothing before.
    assert play_hosts.unplanned({}, ["node1", "node2"]) == ["node1", "node2"]
    assert play_hosts.unplanned({"localhost": {"deploy_steps": steps}}, ["node1", "node2"]) == ["node1", "node2"]


def test_the_network_is_checked_between_the_nodes_of_replicas():
    hostvars = {"node1": {}, "node2": {"vllm_server_replica": "big"}, "node3": {"vllm_server_replica": "big"}}
    assert play_hosts.in_replicas(hostvars, ["node1", "node2", "node3", "away"]) == ["node2", "node3"]
    assert play_hosts.in_replicas(hostvars, ["node1"]) == NOBODY
    assert play_hosts.in_replicas({}, ["node1"]) == NOBODY


def test_a_step_of_several_batches_ends_with_the_last_one():
    made = {**STEPS, "weights": ["a", "b", "c"], "batches": {"weights": [2, 1]}}
    hosts = {"localhost": {"deploy_steps": made, "deploy_done": ["lock", "engine"]}}
    assert play_hosts.batches(hosts, "weights") == [2, 1]
    assert play_hosts.batches(hosts, "engine") == play_hosts.batches({}, "weights") == []
    ends = [play_hosts.step_ends(hosts, "weights", batch) for batch in (["a", "b"], ["a"], ["c"])]
    assert ends == [False, False, True]
    assert play_hosts.step_ends(hosts, "engine", ["node2"])


def test_what_one_server_of_a_node_found_is_taken_over_once_all_steps_are_done():
    made = {**STEPS, "takes": {"b": {"engine": "a", "weights": "a"}, "c": {"image": "b"}}}
    hosts = {"localhost": {"deploy_steps": made, "deploy_done": ["lock", "engine"]}, "b": {}}
    hosts["a"] = {"rocm_reboot_required": [], "hf_cache_commit": "c1", "vllm_image_ref": "i"}
    assert play_hosts.takers(hosts) == NOBODY
    hosts["localhost"]["deploy_done"].append("weights")
    assert play_hosts.takers(hosts) == ["b"]  # nothing was noted for c
    assert play_hosts.taken(hosts, "b") == {"rocm_reboot_required": [], "hf_cache_commit": "c1"}
