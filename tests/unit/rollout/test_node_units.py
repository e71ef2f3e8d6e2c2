# SPDX-License-Identifier: Apache-2.0
"""Servers of one node: in waves alone, together where the node boots; what nobody describes any more."""

from __future__ import annotations

import pytest
from test_waves import EDIT, SAME, plan

from ansible.module_utils.vllm_fleet.rollout import messages, node_units, play_hosts, recovery, repair

REPLACED = {"rollout_outcome": {"state": "replaced", "serving": True}}
BOOT = {"rocm_reboot_required": ["the driver is new"], "rocm_allow_reboot": True}


def nodes(layout, **more):
    """Hosts from {node: {server: (answer, model, more)}}; their names begin with the node's."""
    return {
        f"{node}-{name}": {
            **{"vllm_node": node, "vllm_server_name": f"vllm-{name}", "vllm_server_model": model},
            **{"vllm_server_result": answer, **more, **(rest[0] if rest else {})},
        }
        for node, servers in layout.items()
        for name, (answer, model, *rest) in servers.items()
    }


TWO = {node: {"a": (EDIT, "m"), "b": (EDIT, "m"), "x": (SAME, "other")} for node in ("node1", "node2")}


def test_servers_of_one_node_are_in_waves_like_any():
    made = plan(nodes(TWO), waves=[1, "100%"])
    assert made["waves"] == [["node1-a"], ["node1-b", "node2-a", "node2-b"]]
    assert made["boots"] == {}
    assert made["unchanged"] == ["node1-x", "node2-x"]


def test_a_node_that_boots_takes_all_of_its_servers_at_once():
    hosts = nodes(TWO)
    hosts["node1-b"] |= BOOT
    made = plan(hosts, waves=[1, "100%"])
    assert made["problems"] == []
    assert made["waves"] == [["node1-a", "node1-b", "node1-x"], ["node2-a", "node2-b"]]
    assert set(made["reboot"]) == {"node1-a", "node1-b", "node1-x"}
    assert list(made["boots"]) == ["node1-a", "node1-b", "node1-x"]
    assert made["boots"]["node1-x"] == {"by": "node1-a", "hosts": ["node1-a", "node1-b", "node1-x"]}
    assert "node1 will be drained and rebooted in that wave: the driver is new." in made["says"]


def test_a_node_boots_with_all_of_its_servers_in_the_run():
    hosts = nodes(TWO)
    hosts["node1-a"] |= BOOT
    [problem] = plan(hosts, play=["node1-a", "node1-b"])["problems"]
    assert problem.startswith("node1 has to be rebooted or repaired")
    assert "node1-x of it are not in this run: name the node with --limit node1." in problem


def test_a_node_whose_boot_leaves_too_few_of_a_model_waits():
    hosts = nodes({"node1": {"a": (SAME, "m", BOOT), "b": (SAME, "m")}, "node2": {"a": (SAME, "m")}})
    assert plan(hosts)["problems"] == []
    hosts["node2-a"]["rollout_min_available"] = 2
    [problem] = plan(hosts)["problems"]
    assert problem == messages.node_stuck("node1", "m", 2, 2, 3)
    # A single server of a node is judged as any.
    alone = nodes({"node1": {"a": (SAME, "m", BOOT)}}, rollout_min_available=1)
    assert "of m serve (node1-a), so none of them can be replaced" in plan(alone)["problems"][0]


def test_nothing_of_a_node_is_done_before_all_of_it_came_so_far():
    hosts = {"a": {"rollout_outcome": {"ready": True}}, "b": {"rollout_outcome": {"state": "failed"}}, "c": {}}
    assert recovery.node_lacks(hosts, ["a", "b", "c"], "ready") == ["b", "c"]


def test_a_sick_gpu_is_repaired_for_all_servers_of_its_node():
    sick = {"reasons": ["GPU 3 is sick"], "sick": True, "tries": 0, "reset": "amd-smi"}
    well = {"reasons": [], "sick": False, "tries": 1, "reset": "amd-smi"}
    hosts = {
        "n1-a": {"vllm_node": "n1", "repair_probe": well},
        "n1-b": {"vllm_node": "n1", "repair_probe": sick},
        "n2-a": {"vllm_node": "n2", "repair_probe": well},
    }
    made = repair.plan(hosts, list(hosts))
    assert made["reasons"] == {"n1-a": ["GPU 3 is sick"], "n1-b": ["GPU 3 is sick"]}
    assert made["hosts"] == ["n1-a", "n1-b"]
    assert made["says"] == "n1: GPU 3 is sick.\nNot touched, for nothing is wrong with their GPUs: n2."
    # Repairs that the node's servers noted count together.
    hosts["n1-a"]["repair_probe"] = {**well, "tries": 3}
    assert list(repair.plan(hosts, list(hosts))["refused"]) == ["n1-b", "n1-a"]


def test_a_node_is_repaired_for_what_the_watchdog_of_any_of_its_servers_has_read():
    """With a kernel's log that has lost it, the server that repairs the node finds its GPUs well."""
    sick, well = {"reasons": ["GPU 3 is sick"], "sick": True}, {"reasons": [], "sick": False}
    hosts = {
        "n1-a": {"vllm_node": "n1", "repair_probe": well},
        "n1-b": {"vllm_node": "n1", "repair_probe": sick},
        "n1-cpu": {"vllm_node": "n1", "repair_probe": {"skipped": True}},
        "n2-a": {"vllm_node": "n2", "repair_probe": {**well, "reasons": ["an earlier repair"]}},
        "n3": {"repair_probe": sick},
    }
    made = {"repair_plan": {"hosts": list(hosts)}}
    found = {host: repair.sick({**hosts, "localhost": made}, host) for host in hosts}
    assert found == {"n1-a": True, "n1-b": True, "n1-cpu": True, "n2-a": False, "n3": True}


def seen(**servers):
    return {**SAME, "servers": {f"vllm-{name}": state for name, state in servers.items()}}


def test_what_no_host_of_a_node_describes_is_told():
    here = seen(a="running", b="running", old="running")
    hosts = nodes({"node1": {"a": (here, "m"), "b": (here, "m")}, "node2": {"a": (seen(a="running"), "m")}})
    made = plan(hosts, play=["node1-a"])
    assert made["undescribed"] == {"node1": {"by": "node1-a", "servers": {"vllm-old": "running"}}}
    assert "Not described any more, and left alone" in made["says"]
    assert "node1 (vllm-old)" in made["says"]
    assert plan(hosts, play=["node2-a"])["undescribed"] == {}
    # Of hosts without vllm_node, the same address is the same machine.
    lone = {"vllm_server_model": "m", "vllm_server_result": {**SAME, "servers": {"vllm": "running", "b": "exited"}}}
    hosts = {"node1": {**lone, "ansible_host": "192.0.2.1"}, "node2": {**lone, "ansible_host": "192.0.2.1"}}
    assert set(plan(hosts)["undescribed"]["node1"]["servers"]) == {"b"}
    hosts["node2"]["vllm_server_name"] = "b"
    assert plan(hosts)["undescribed"] == {}


@pytest.mark.parametrize(
    ("more", "gateway", "removes"),
    [
        ({}, {"gateway_ready": True}, False),
        ({"rollout_remove_undescribed": True}, {"gateway_ready": True}, True),
        ({"rollout_remove_undescribed": True}, {"gateway_ready": True, "gateway_keeps": False}, True),
        ({"rollout_remove_undescribed": True}, {"gateway_ready": True, "gateway_keeps": True}, False),
        ({"rollout_remove_undescribed": "yes"}, {}, False),
        ({"rollout_remove_undescribed": True}, {"gateway_absent": True}, True),
        ({"rollout_remove_undescribed": True, "rollout_drain_tasks": "x.yml"}, {"gateway_ready": True}, False),
        ({"rollout_remove_undescribed": True, "rollout_outcome": {"state": "failed"}}, {"gateway_ready": True}, False),
    ],
)
def test_a_server_that_nobody_describes_is_removed_where_that_is_asked_for_and_safe(more, gateway, removes):
    found = {"problems": [], "hosts": ["n1-a"], "undescribed": {"n1": {"by": "n1-a", "servers": {"old": "running"}}}}
    hosts = {"localhost": {"rollout_plan": found}, "n1-a": {**REPLACED, **more}, "gw": gateway}
    assert play_hosts.removers(hosts, ["gw"]) == (["n1-a"] if removes else play_hosts.NOBODY)
    assert play_hosts.removers({}, ["gw"]) == play_hosts.NOBODY


@pytest.mark.parametrize(
    ("more", "a", "b", "removes"),
    [
        ({}, REPLACED, REPLACED, True),
        ({"hosts": []}, {}, {}, True),
        # One that was lost on the way, and waves that did not begin, have no failure of their own.
        ({}, {"rollout_outcome": {"state": "draining"}}, REPLACED, False),
        ({}, {"rollout_outcome": {"state": "replacing"}}, REPLACED, False),
        ({}, REPLACED, {}, False),
        ({}, {}, {}, False),
        # rollout_max_failures lets the waves go on past one that answered wrongly in the plan.
        ({"wrong": ["b"]}, REPLACED, REPLACED, False),
    ],
)
def test_nothing_is_removed_where_a_server_was_not_replaced_or_is_wrong(more, a, b, removes):
    found = {
        "problems": [],
        "wrong": [],
        "hosts": ["a", "b"],
        "undescribed": {"n": {"by": "c", "servers": {"old": "up"}}},
    }
    hosts = {
        "localhost": {"rollout_plan": {**found, **more}},
        "a": a,
        "b": b,
        "c": {"rollout_remove_undescribed": True},
    }
    assert play_hosts.removers(hosts, []) == (["c"] if removes else play_hosts.NOBODY)


@pytest.mark.parametrize(
    ("reboot", "canaries"),
    [
        (["b", "c", "d"], ["b", "c"]),
        (["d"], ["d"]),
        (["a"], ["a"]),
        ([], []),
    ],
)
def test_the_first_wave_that_boots_tries_the_driver_for_all(reboot, canaries):
    made = {"hosts": ["a", "b", "c", "d"], "serial": [1, 2, 1], "reboot": reboot}
    found = [host for host in made["hosts"] if host in reboot and node_units.canary(made, host)]
    assert found == canaries
    assert not node_units.canary({}, "a")
