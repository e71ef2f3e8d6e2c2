# SPDX-License-Identifier: Apache-2.0
"""Which servers may go to maintenance, and that nobody takes them up before it ends."""

from __future__ import annotations

import pytest
from test_waves import DEAD, EDIT, SAME, fleet, plan, seen

from ansible.module_utils.vllm_fleet.rollout import left_out, messages, play_hosts, repair, restart, stop

NOTE = " since monday by ada"
RESTS = {**DEAD, "maintenance": NOTE}


def against(hosts, *going, gateways=(), limited=True):
    fleet = [host for host in hosts if host.startswith("node")]
    return stop.against(hosts, fleet, going, list(gateways), limited=limited)


@pytest.mark.parametrize(
    ("hosts", "going", "problem"),
    [
        (fleet(SAME, SAME), ["node1"], ""),
        (
            fleet(SAME, SAME),
            ["node1", "node2"],
            "only 0 replicas of m would stay (none) and rollout_min_available is 1",
        ),
        (fleet(SAME, SAME, rollout_min_available=2), ["node1"], "accept the gap with -e rollout_min_available=1."),
        (fleet(SAME, SAME, rollout_min_available=0), ["node1", "node2"], ""),
        # The only server of a model: a rollout brings it back, a maintenance does not.
        (fleet(SAME), ["node1"], "node1 is the only server of m, whose requests would all be refused until "),
        (fleet(SAME), ["node1"], "accept the gap with -e rollout_min_available=0."),
        (fleet(SAME, rollout_min_available="0"), ["node1"], ""),
        (fleet(DEAD), ["node1"], ""),
        (fleet(RESTS), ["node1"], ""),
        # What does not serve may go, and a second stop takes nothing away.
        (fleet(DEAD, SAME), ["node1"], ""),
        (fleet(RESTS, RESTS), ["node1", "node2"], ""),
        (fleet(RESTS, SAME), ["node1"], ""),
    ],
)
def test_as_many_stay_as_have_to(hosts, going, problem):
    said = " ".join(against(hosts, *going))
    assert problem in said and bool(problem) == bool(said), said


@pytest.mark.parametrize(
    ("hosts", "going", "without"),
    [
        (fleet(SAME), ["node1"], ["m"]),
        (fleet(SAME, SAME), ["node1"], []),
        (fleet(SAME, SAME), ["node1", "node2"], ["m"]),
        # A second stop, which takes nothing away, says it again.
        (fleet(RESTS), ["node1"], ["m"]),
        (fleet(SAME, DEAD) | {"gw": seen(node1="UP", node2="DOWN")}, ["node1"], ["m"]),
    ],
)
def test_a_model_that_has_no_server_until_its_start_is_named(hosts, going, without):
    names = [host for host in hosts if host.startswith("node")]
    assert stop.emptied(hosts, names, going, [host for host in hosts if host not in names]) == without
    assert messages.without_server(without, check_mode=False) == [
        f"{pool} has no server until start.yml" for pool in without
    ]


def test_servers_that_a_teardown_leaves_are_named_with_what_removes_them():
    found = {"host1": {"by": "node1", "servers": {"old": "running", "dead": "exited"}}}
    (said,) = messages.still_running(found)
    assert said.startswith("Still running, not described: old on host1. To remove one: ansible node1 -b ")
    assert messages.still_running({"host1": {"by": "node1", "servers": {"dead": "exited"}}}) == []


def test_a_gateway_knows_who_else_serves():
    hosts = fleet(SAME, SAME) | {"gw": seen(node1="UP", node2="DOWN")}
    assert "only 0 replicas of m would stay" in against(hosts, "node1", gateways=["gw"])[0]
    hosts["gw"] = seen(node1="UP", node2="UP")
    assert against(hosts, "node1", gateways=["gw"]) == []


def test_nodes_are_named_and_a_replica_goes_whole():
    hosts = fleet(SAME, SAME, SAME)
    assert against(hosts, *hosts, limited=False) == [stop.NO_LIMIT]
    hosts["node1"]["vllm_server_replica"] = hosts["node2"]["vllm_server_replica"] = "big"
    assert against(hosts, "node1")[0].startswith("node1 and node2 are one replica, and this run is limited to node1")
    assert against(hosts, "node1", "node2") == []


@pytest.mark.parametrize("where", ["preflight_result", "vllm_server_result", "__rollback_known"])
def test_a_server_in_maintenance_is_left_out_by_whatever_looked_there(where):
    hosts = fleet(EDIT, EDIT)
    hosts["node1"][where] = {**hosts["node1"].get(where, {}), "maintenance": NOTE}
    found = left_out.of_looks(hosts, ["node1", "node2"])
    assert found == {"node1": {"why": NOTE, "with": "", "lost": False}}
    given = {**hosts, "localhost": {"rollout_left_out": found}}
    assert play_hosts.part(given, list(hosts)) == ["node2"]
    # No failure of the run, and the last of its model is not replaced while the other rests.
    assert play_hosts.lost(given) == play_hosts.NOBODY
    (problem, away) = plan(given, play=["node2"])["problems"]
    assert "1 of 2 replicas of m serve (node2)" in problem
    assert away == "Left out: node1, in maintenance since monday by ada."
    # The run that ends it heeds no note.
    hosts["node1"]["maintenance_ends"] = True
    assert left_out.of_looks(hosts, ["node1", "node2"]) == {}


def test_the_inventory_has_a_server_in_maintenance_that_is_asked_nothing():
    hosts = fleet(EDIT, EDIT, EDIT, rollout_min_available=0)
    hosts["node1"]["rollout_maintenance"] = "yes"
    hosts["node1"]["vllm_server_replica"] = hosts["node2"]["vllm_server_replica"] = "big"
    assert play_hosts.present(hosts, list(hosts)) == ["node3"]
    made = plan(hosts, play=["node3"])
    assert made["waves"] == [["node3"]]
    assert made["says"].endswith(
        "Left out: node1, in maintenance, says rollout_maintenance of the inventory; node2 together with node1."
    )


def test_a_restart_leaves_it_out_and_says_what_starts_it():
    hosts = fleet(RESTS, SAME)
    given = {**hosts, "localhost": {"rollout_left_out": left_out.of_looks(hosts, ["node1", "node2"])}}
    assert restart.against(given, ["node1", "node2"]) == []
    (said,) = restart.against(given, ["node1"])
    assert said == "node1: left out, in maintenance. playbooks/start.yml ends that."


def test_a_repair_leaves_it_out():
    probe = {"reasons": ["GPU a is gone"], "sick": True, "gpus": [], "tries": 0, "reset": "amd-smi"}
    hosts = {"node1": {"repair_probe": {**probe, "maintenance": NOTE}}, "node2": {"repair_probe": probe}}
    made = repair.plan(hosts, ["node1", "node2"])
    assert made["hosts"] == ["node2"]
    assert made["refused"] == {}
    assert "node1 is left out: in maintenance since monday by ada." in made["says"]
