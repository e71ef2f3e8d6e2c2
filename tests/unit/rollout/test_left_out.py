# SPDX-License-Identifier: Apache-2.0
"""Who is left out of a run, with whom, what that means for the waves, the lock and the end of the run."""

from __future__ import annotations

import pytest
from test_waves import EDIT, SAME, fleet, plan, seen

from ansible.module_utils.vllm_fleet.rollout import gate, left_out, play_hosts

SKIP = {"rollout_unreachable": "skip"}
GONE = "no route"


def hosts(**nodes):
    """Hosts a, b, c, d: all to be skipped, d alone on its node, or as ``nodes`` says."""
    return {name: {**SKIP, **nodes.get(name, {})} for name in "abcd"}


def told(found):
    """What is left out, in short: the host that it goes with, or whether it is lost."""
    return {host: one["with"] or ("lost" if one["lost"] else "rests") for host, one in found.items()}


REPLICA = {"vllm_server_replica": "big"}
NODE = {"vllm_node": "n"}


@pytest.mark.parametrize(
    ("variables", "lost", "resting", "expected"),
    [
        (hosts(), "", "", {}),
        (hosts(), "a", "", {"a": "lost"}),
        (hosts(), "abc", "", {"a": "lost", "b": "lost", "c": "lost"}),
        # Nobody would be left: the run ends, and says why of all.
        (hosts(), "abcd", "", {}),
        (hosts(), "abc", "d", {"d": "rests"}),
        # One that is not to be skipped ends the run, whatever the others may.
        (hosts(b={"rollout_unreachable": "stop"}), "ab", "", {}),
        (hosts(b={"rollout_unreachable": "stop"}), "a", "", {"a": "lost"}),
        ({name: {} for name in "abcd"}, "a", "", {}),
        # Servers of a node that does not answer, and parts of a replica, go together; that of both, too.
        (hosts(a=NODE, b=NODE), "b", "", {"b": "lost", "a": "b"}),
        (hosts(a=REPLICA, c=REPLICA), "c", "", {"c": "lost", "a": "c"}),
        (hosts(a=REPLICA, b={**REPLICA, **NODE}, c=NODE), "c", "", {"c": "lost", "b": "c", "a": "c"}),
        # In maintenance is one server, and not its node.
        (hosts(a=NODE, b=NODE), "", "b", {"b": "rests"}),
        (hosts(a=REPLICA, c=REPLICA), "", "a", {"a": "rests", "c": "a"}),
        (hosts(), "a", "b", {"b": "rests", "a": "lost"}),
        (hosts(), "", "abcd", dict.fromkeys("abcd", "rests")),
    ],
)
def test_who_is_left_out(variables, lost, resting, expected):
    found = left_out.find(variables, "abcd", dict.fromkeys(lost, GONE), dict.fromkeys(resting, "monday"))
    assert told(found) == expected


def test_a_node_with_another_fault_is_not_left_out():
    unseen, refused = {"msg": "x", "unseen": True, "why": GONE}, {"msg": "x", "unseen": False, "why": "bad"}
    assert told(left_out.of_refusals(hosts(), "abcd", {"a": unseen})) == {"a": "lost"}
    assert left_out.of_refusals(hosts(), "abcd", {"a": unseen, "b": refused}) == {}


def test_who_is_out_of_reach_is_told_by_a_look_at_each():
    looks = hosts(a={"rollout_reached": {"unreachable": True, "msg": GONE}}, b={"rollout_reached": {"rc": 0}})
    assert left_out.of_looks(looks, "abcd") == {"a": {"why": GONE, "with": "", "lost": True}}


def without(hosts, *lost, rests=()):
    """These hosts left out of a run, as localhost knows it."""
    found = left_out.find({name: {**hosts[name], **SKIP} for name in hosts}, list(hosts), dict.fromkeys(lost, GONE))
    found |= {name: {"why": " since monday", "with": "", "lost": False} for name in rests}
    return {**hosts, "localhost": {"rollout_left_out": found}}


@pytest.mark.parametrize(
    ("hosts", "gateway", "waves", "problem"),
    [
        # It serves no more than anybody knows, so that two others stay, of which one may go.
        (fleet(SAME, EDIT, EDIT, rollout_min_available=1), None, [["node2"], ["node3"]], ""),
        (fleet(SAME, EDIT, EDIT, rollout_min_available=2), None, [], "rollout_min_available is 2, but 2 of 3"),
        # A gateway knows better: it is SSH alone that does not answer.
        (fleet(SAME, EDIT, EDIT, rollout_min_available=2), "UP", [["node2"], ["node3"]], ""),
        (fleet(SAME, EDIT, EDIT, rollout_min_available=2), "DOWN", [], "rollout_min_available is 2, but 2 of 3"),
    ],
)
def test_a_host_that_is_left_out_serves_where_a_gateway_says_so(hosts, gateway, waves, problem):
    given = without(hosts, "node1")
    gateways = []
    if gateway:
        given["gw"], gateways = seen(node1=gateway, node2="UP", node3="UP"), ["gw"]
    there = play_hosts.part(given, ["node1", "node2", "node3"])
    assert there == ["node2", "node3"]
    made = plan({name: given[name] for name in given if name != "gw"} | given, play=there, gateways=gateways)
    assert made["waves"] == waves
    said = " ".join(made["problems"]) or made["says"]
    assert problem in said
    assert "Left out: node1, which does not answer." in said
    if waves:
        shortage = gate.shortage(given, made, ["node2"], ["node1", "node2", "node3"], gateways=gateways)
        assert shortage == ""


def test_the_plan_tells_who_is_left_out_and_why():
    hosts = fleet(EDIT, EDIT, EDIT, EDIT, EDIT, rollout_min_available=0)
    hosts["node2"]["vllm_server_replica"] = hosts["node3"]["vllm_server_replica"] = "big"
    given = without(hosts, "node1", "node3", rests=["node4"])
    made = plan(given, play=play_hosts.part(given, list(hosts)))
    assert made["says"].endswith(
        " Left out: node1 and node3, which do not answer; node4, in maintenance since monday; node2 together with node3."
    )
    assert made["waves"] == [["node5"]]


def test_the_run_ends_with_the_nodes_that_did_not_answer():
    hosts = fleet(EDIT, EDIT, EDIT, EDIT)
    hosts["node2"]["vllm_server_replica"] = hosts["node3"]["vllm_server_replica"] = "big"
    given = without(hosts, "node3", rests=["node4"])
    assert play_hosts.lost(given) == ["node3"]
    (found,) = left_out.failures(given).values()
    assert found["msg"] == (
        "node3: no route. It was left out, and node2 with it (rollout_unreachable is skip): the next run takes it up."
    )
    assert play_hosts.lost(hosts) == play_hosts.lost({}) == play_hosts.NOBODY
    # After a failure no play comes any more: it is told with that.
    assert play_hosts.failed(given) == play_hosts.NOBODY
    given["localhost"]["rollout_plan"] = {"hosts": ["node1"]}
    given["node1"]["rollout_outcome"] = {"state": "failed"}
    assert play_hosts.failed(given) == ["node1", "node3"]


@pytest.mark.parametrize(
    ("lost", "rests", "asked"),
    [
        ((), (), ["node1", "node2"]),
        (("node1",), (), ["node2"]),
        # Of a server in maintenance the node may answer. Where all are lost the lock's own words end the run.
        ((), ("node1",), ["node1", "node2"]),
        (("node1", "node2"), (), ["node1", "node2"]),
    ],
)
def test_no_lock_is_asked_of_a_node_that_does_not_answer(lost, rests, asked):
    given = without(fleet(SAME, SAME, SAME, SAME), *lost, rests=rests)
    assert left_out.lock_nodes(given, ["node1", "node2", "node3"], 2) == asked


def test_no_lock_and_no_network_is_asked_of_a_node_that_the_inventory_has_in_maintenance():
    given = fleet(SAME, SAME, SAME)
    given["node1"] |= {"rollout_maintenance": True, "vllm_server_replica": "big"}
    given["node2"] |= {"vllm_server_replica": "big"}
    assert left_out.lock_nodes(given, list(given), 2) == ["node2"]
    assert play_hosts.in_replicas(given, list(given)) == play_hosts.NOBODY


def test_only_hosts_that_may_be_skipped_are_looked_at_first():
    given = {"a": SKIP, "b": {}, "c": {"rollout_unreachable": "stop"}, "d": {**SKIP, "rollout_maintenance": True}}
    assert play_hosts.skippable(given, "abcd") == ["a"]
    assert play_hosts.skippable({}, "abcd") == play_hosts.NOBODY
    assert play_hosts.present(without(fleet(SAME, SAME), "node1"), ["node1", "node2"]) == ["node2"]
    assert play_hosts.present({}, ["node1"]) == ["node1"]
