# SPDX-License-Identifier: Apache-2.0
"""Which nodes are repaired, and which are not."""

from __future__ import annotations

import pytest
from test_waves import DEAD, SAME, fleet, plan, seen

from ansible.module_utils.vllm_fleet.rollout import play_hosts, repair

SICK = {"reasons": ["GPU a has 1 uncorrectable error"], "sick": True, "tries": 0, "reset": "amd-smi"}
WELL = {"reasons": [], "sick": False, "tries": 3, "reset": ""}
LEFT = {"reasons": ["an earlier repair did not come to its end"], "sick": False, "tries": 3, "reset": ""}


def nodes(*probes, **more):
    return {f"node{n}": {"repair_probe": probe, **more} for n, probe in enumerate(probes, 1)}


@pytest.mark.parametrize(
    ("hosts", "options", "repaired", "refused"),
    [
        (nodes(WELL, WELL), {}, [], []),
        (nodes(WELL, SICK), {}, ["node2"], []),
        # One that was begun is brought to its end, whatever the limits say.
        (nodes(LEFT, WELL), {}, ["node1"], []),
        (nodes({**SICK, "tries": 2}), {}, ["node1"], []),
        (nodes({**SICK, "tries": 3}), {}, [], ["node1"]),
        (nodes({**SICK, "tries": 3}), {"tries": 4}, ["node1"], []),
        # Nothing may be done.
        (nodes({**SICK, "reset": ""}), {}, [], ["node1"]),
        (nodes(SICK), {"reset": False}, [], ["node1"]),
        (nodes({**SICK, "reset": ""}, rocm_allow_reboot="yes"), {}, ["node1"], []),
        # A user's reason, for nodes that are named.
        (nodes({**WELL, "tries": 0, "reset": "amd-smi"}), {"because": "links", "limited": True}, ["node1"], []),
        (nodes({**WELL, "reset": "amd-smi"}), {"because": "links", "limited": True}, [], ["node1"]),
        (nodes(WELL, SICK), {"because": "links"}, [], ["node1", "node2"]),
        # On a node without GPUs of AMD nobody was asked.
        (nodes({"skipped": True}, SICK), {}, ["node2"], []),
        (nodes(SICK, WELL, WELL), {}, ["node1"], []),
    ],
)
def test_who_is_repaired(hosts, options, repaired, refused):
    found = repair.plan(hosts, list(hosts), **options)
    assert (list(found["reasons"]), list(found["refused"])) == (repaired, refused)
    assert found["hosts"] == repaired


def test_partners_of_a_replica_take_part_and_the_plan_says_why():
    hosts = nodes(WELL, SICK, WELL, {**SICK, "tries": 3})
    hosts["node1"]["vllm_server_replica"] = hosts["node2"]["vllm_server_replica"] = "big"
    found = repair.plan(hosts, list(hosts))
    assert found["hosts"] == ["node1", "node2"]
    assert found["says"].splitlines() == [
        "node2: GPU a has 1 uncorrectable error.",
        "node4 is not repaired: GPU a has 1 uncorrectable error; it was repaired 3 times within a day (repair_tries is 3): "
        "a GPU that is sick again is for its provider.",
        "Not touched, for nothing is wrong with their GPUs: node1 and node3.",
    ]


def test_a_repair_is_a_rollout_of_its_nodes_alone():
    hosts = fleet(SAME, SAME, SAME, gateway_result=None)
    every = list(hosts)
    hosts["localhost"] = {}
    assert play_hosts.part(hosts, every) == every
    hosts["localhost"]["repair_plan"] = {"hosts": [], "refused": {}}
    assert play_hosts.part(hosts, every) == play_hosts.unplanned(hosts, every) == ["all:!all"]
    assert play_hosts.unrepaired(hosts) == ["all:!all"]
    hosts["localhost"]["repair_plan"] = {"hosts": ["node2"], "refused": {"node3": "why"}}
    assert play_hosts.part(hosts, every) == play_hosts.unplanned(hosts, every) == ["node2"]
    assert play_hosts.unrepaired(hosts) == ["node3"]
    # It is as described, and has its wave all the same; the others serve, and count.
    hosts["node2"]["repair_reasons"] = ["GPU a is gone"]
    made = plan(hosts, play=["node2"])
    assert (made["waves"], made["sick"], made["unchanged"]) == ([["node2"]], ["node2"], [])
    assert made["says"].endswith("node2 will be drained and repaired in that wave: GPU a is gone.")


def test_a_server_in_quarantine_serves_nobody_and_costs_no_replica():
    hosts = fleet(SAME, SAME, repair_reasons=["GPU a is gone"], rollout_min_available=1)
    hosts["node1"]["repair_reasons"] = []
    hosts["gateway1"] = seen(node1="UP", node2="DOWN")
    assert plan(hosts, play=["node2"], gateways=["gateway1"])["waves"] == [["node2"]]
    # Without a gateway that says so it counts as one that serves, and one has to stay.
    assert plan(fleet(SAME, SAME, repair_reasons=["x"]), waves=["100%"])["waves"] == [["node1"], ["node2"]]
    assert plan(fleet(SAME, repair_reasons=["x"], rollout_min_available=1))["problems"]
    assert plan(fleet(DEAD, repair_reasons=["x"], rollout_min_available=1))["problems"] == []


def test_a_replica_is_repaired_whole_or_not_at_all():
    hosts = nodes(SICK, {**SICK, "tries": 3}, SICK)
    hosts["node1"]["vllm_server_replica"] = hosts["node2"]["vllm_server_replica"] = "big"
    found = repair.plan(hosts, list(hosts))
    assert found["hosts"] == ["node3"] and list(found["refused"]) == ["node2", "node1"]
    assert found["refused"]["node1"] == "its server is one with node2, which is not repaired"
