# SPDX-License-Identifier: Apache-2.0
"""No answer is never "fine": what a node's probe did not find right is visited."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.common import probes
from ansible.module_utils.vllm_fleet.rollout import steps

SERVER = {"changed": False, "actions": [], "confirmed": True, "release": {"number": 3}}
FOUND = {
    "docker_engine": {"right": True, "changed": False},
    "vllm_image": {"present": True, "content": "sha256:1"},
    "hf_snapshot": {"complete": True, "commit": "c1"},
    "vllm_server": SERVER,
    "vllm_chat": {"results": [{}]},
    "rocm": {"changed": False},
    "vllm_watchdog": {"changed": False, "systemd": True},
}
ARGS = {"vllm_image": {"tag": "1"}, "hf_snapshot": {"repo_id": "a/b", "cache": "/c"}}


def node(found=None, args=None, **variables):
    """Variables of a host whose probe found FOUND with the changes of ``found``; None takes a result away."""
    results = {**FOUND, **(found or {})}
    rows = [
        {"module": module, "args": {**ARGS.get(module, {}), **(args or {}).get(module, {})}, "result": result}
        for module, result in results.items()
        if result is not None
    ]
    return {"ansible_facts": {probes.FACT: rows}, **variables}


def plan(*nodes, **options):
    hostvars = {f"node{number}": variables for number, variables in enumerate(nodes, 1)}
    found = steps.plan(hostvars, list(hostvars), **options)
    return {name: hosts for name, hosts in found.items() if hosts and name not in ("hosts", "lock")}


def test_where_all_is_right_every_server_has_answered():
    assert plan(node(), node()) == {"answered": ["node1", "node2"]}
    assert plan(node(), node(), verify=True) == {}
    assert plan(node(), refused=["node1"]) == {"refused": ["node1"], "answered": ["node1"]}
    assert steps.plan({"node1": node()}, ["node1"])["hosts"] == ["node1"]


@pytest.mark.parametrize(
    ("second", "options", "held"),
    [
        (node(), {}, False),
        (node(), {"gateways": ["gateway1"]}, True),
        (node(), {"verify": True}, True),
        (node({"vllm_watchdog": {"changed": True}}), {}, True),
        (node({"vllm_server": {**SERVER, "changed": True}}), {}, True),
        (node({"vllm_chat": None}), {}, True),
        (node({"vllm_image": {"present": False}}), {}, True),
        (node({"docker_engine": None}), {}, True),
        ({"ansible_facts": {}}, {}, True),
    ],
)
def test_the_fleet_is_held_unless_nothing_at_all_is_to_change(second, options, held):
    found = steps.plan({"node1": node(), "node2": second}, ["node1", "node2"], **options)
    assert found["lock"] == (["node1", "node2"] if held else [])


@pytest.mark.parametrize(
    ("found", "needs"),
    [
        ({"docker_engine": {"right": False}}, {"engine": ["node2"]}),
        ({"docker_engine": {"right": True, "failed": True}}, {"engine": ["node2"]}),
        ({"docker_engine": {}}, {"engine": ["node2"]}),
        ({"rocm": {"changed": True}}, {"engine": ["node2"]}),
        ({"rocm": None}, {"engine": ["node2"]}),
        ({"vllm_image": {"present": False}}, {"image": ["node1", "node2"]}),
        ({"vllm_image": None}, {"image": ["node1", "node2"]}),
        ({"vllm_image": {"present": True, "content": "sha256:2"}}, {"image": ["node1", "node2"]}),
        ({"hf_snapshot": {"complete": False}}, {"weights": ["node1", "node2"]}),
        ({"hf_snapshot": {"complete": True, "commit": "c2"}}, {"weights": ["node1", "node2"]}),
        ({"hf_snapshot": None}, {"weights": ["node1", "node2"]}),
        # The probe of the server is of no use where it was not come to.
        ({"vllm_server": None}, {"answered": ["node1"]}),
        ({"vllm_server": {**SERVER, "changed": True}}, {"answered": ["node1"]}),
        ({"vllm_server": {**SERVER, "failed": True}}, {"answered": ["node1"]}),
        ({"vllm_server": {**SERVER, "actions": ["started"]}}, {"answered": ["node1"]}),
        ({"vllm_server": {**SERVER, "confirmed": False}}, {"answered": ["node1"]}),
        ({"vllm_server": {**SERVER, "release": None}}, {"answered": ["node1"]}),
        ({"vllm_server": {}}, {"answered": ["node1"]}),
        ({"vllm_chat": None}, {"answered": ["node1"]}),
        ({"vllm_chat": {"failed": True, "results": [{}]}}, {"answered": ["node1"]}),
        # The module ended before it had looked at anything, or the node has no Python.
        (
            dict.fromkeys(FOUND),
            {
                **{step: ["node2"] if step == "engine" else ["node1", "node2"] for step in steps.STEPS},
                "watchdog": ["node2"],
            },
        ),
        # The watchdog concerns no server.
        ({"vllm_watchdog": {"changed": True}}, {"watchdog": ["node2"], "answered": ["node1", "node2"]}),
        ({"vllm_watchdog": {"failed": True}}, {"watchdog": ["node2"], "answered": ["node1", "node2"]}),
        ({"vllm_watchdog": None}, {"watchdog": ["node2"], "answered": ["node1", "node2"]}),
    ],
)
def test_what_was_not_found_right_is_visited(found, needs):
    assert plan(node(), node(found)) == needs


@pytest.mark.parametrize(
    ("nodes", "needs"),
    [
        ([{"vllm_image_prune": True}], {"image": ["node1"]}),
        ([{"hf_cache_prune": "yes"}], {"weights": ["node1"]}),
        ([{"vllm_server_accelerator": "cpu", "found": {"rocm": None}}], {"answered": ["node1"]}),
        ([{"vllm_server_replica": "big"}, {}], {"answered": ["node2"]}),
        # Two models: each has images and commits of its own, in whichever folder.
        (
            [
                {},
                {
                    "found": {"hf_snapshot": {"complete": True, "commit": "c2"}},
                    "args": {"hf_snapshot": {"repo_id": "x/y"}},
                },
            ],
            {"answered": ["node1", "node2"]},
        ),
        (
            [
                {},
                {
                    "found": {"hf_snapshot": {"complete": True, "commit": "c2"}},
                    "args": {"hf_snapshot": {"cache": "/d"}},
                },
            ],
            {"weights": ["node1", "node2"]},
        ),
    ],
)
def test_variables_of_hosts_count(nodes, needs):
    assert plan(*(node(**one) for one in nodes)) == needs


BY_TAG = {"vllm_image": {"source": "pull", "digest": "", "tag": "1"}}
FIRST = {"vllm_image": {**BY_TAG["vllm_image"], "resolve": True}}


def test_what_a_tag_stands_for_has_to_be_known():
    image = FOUND["vllm_image"]
    first = node({"vllm_image": {**image, "resolved": True}}, FIRST)
    assert plan(first, node(args=BY_TAG)) == {"answered": ["node1", "node2"]}
    # The registry did not answer, the first host left, or another one has what the tag was before.
    assert plan(node({"vllm_image": {"failed": True}}, FIRST), node(args=BY_TAG)) == {"image": ["node1", "node2"]}
    assert plan(node(args=BY_TAG), node(args=BY_TAG)) == {"image": ["node1", "node2"]}
    older = node({"vllm_image": {**image, "content": "sha256:0"}}, BY_TAG)
    assert plan(first, older) == {"image": ["node1", "node2"]}
    assert plan(node(args={"vllm_image": {"source": "pull", "digest": "sha256:1"}})) == {"answered": ["node1"]}


def test_a_host_without_facts_needs_everything():
    assert plan({}) == {key: ["node1"] for key in (*steps.STEPS, "watchdog")}


def servers(*rows):
    """Hosts of nodes with several servers, from (node, name, model) or (node, name, model, image)."""
    lacks = {"docker_engine": {"right": False}, "vllm_image": None, "hf_snapshot": None, "vllm_server": None}
    return {
        f"{node_}-{name}": node(
            lacks, vllm_node=node_, vllm_server_model=model, vllm_image_tag=image[0] if image else "1"
        )
        for node_, name, model, *image in rows
    }


def test_of_several_servers_of_a_node_one_does_each_thing():
    hostvars = servers(("n1", "a", "m"), ("n1", "b", "m"), ("n1", "c", "x"), ("n2", "a", "m"), ("n2", "c", "x"))
    hostvars["n3"] = node({"docker_engine": {"right": False}}, vllm_server_model="x", vllm_image_tag="1")
    found = steps.plan(hostvars, list(hostvars))
    assert found["engine"] == ["n1-a", "n2-a", "n3"]
    assert found["image"] == ["n1-a", "n2-a", "n3"]
    # Those that want the same are together, and no node is twice in a batch.
    assert found["weights"] == ["n1-a", "n2-a", "n1-c", "n2-c", "n3"]
    assert found["batches"] == {"weights": [2, 3]}
    assert found["takes"] == {
        "n1-b": {"engine": "n1-a", "image": "n1-a", "weights": "n1-a"},
        "n1-c": {"engine": "n1-a", "image": "n1-a"},
        "n2-c": {"engine": "n2-a", "image": "n2-a"},
    }


def test_engine_and_driver_of_a_node_are_prepared_by_a_server_that_uses_gpus():
    hostvars = servers(("n1", "cpu", "m"), ("n1", "gpu", "m"), ("n2", "cpu", "m"))
    for host in ("n1-cpu", "n2-cpu"):
        hostvars[host]["vllm_server_accelerator"] = "cpu"
    found = steps.plan(hostvars, list(hostvars))
    assert found["engine"] == ["n1-gpu", "n2-cpu"]
    assert found["takes"]["n1-cpu"]["engine"] == "n1-gpu"
    assert found["image"] == ["n1-cpu", "n2-cpu"]


def test_each_image_of_a_node_is_fetched_by_the_first_that_wants_it():
    hostvars = servers(("n1", "a", "m", "1"), ("n1", "b", "m", "2"), ("n1", "c", "m", "2"))
    found = steps.plan(hostvars, list(hostvars))
    assert (found["image"], found["batches"]) == (["n1-a", "n1-b"], {"image": [1, 1]})
    assert found["takes"]["n1-c"] == {"engine": "n1-a", "image": "n1-b", "weights": "n1-a"}


def test_of_a_node_the_first_that_needs_the_step_does_it_and_all_others_take_it_over():
    hostvars = servers(("n1", "a", "m"), ("n1", "b", "m"))
    hostvars["n1-a"] = node(vllm_node="n1", vllm_server_model="m", vllm_image_tag="1")
    found = steps.plan(hostvars, list(hostvars))
    assert found["engine"] == ["n1-b"]
    assert found["takes"]["n1-a"]["engine"] == "n1-b"


def test_a_fleet_without_several_servers_has_one_batch_and_takes_nothing_over():
    hostvars = {"n1": node({"vllm_image": None}), "n2": node()}
    found = steps.plan(hostvars, list(hostvars))
    assert (found["image"], found["batches"], found["takes"]) == (["n1", "n2"], {}, {})


def test_the_weights_of_a_node_are_read_into_memory_by_one_of_its_servers_in_a_wave():
    chat, other = {"vllm_node": "n1", "vllm_server_model": "acme/chat"}, {"vllm_node": "n1", "vllm_server_model": "b/b"}
    hosts = {
        "a": chat,
        "b": chat,
        "c": other,
        "d": {**chat, "vllm_node": "n2"},
        "e": {"vllm_server_model": "acme/chat"},
    }
    assert [one for one in hosts if steps.warms(hosts, list(hosts), one)] == ["a", "c", "d", "e"]
    assert steps.warms(hosts, ["b", "c"], "b"), "a is in another wave"


@pytest.mark.parametrize(
    ("hostvars", "nothing"),
    [
        ({"localhost": {"deploy_steps": {"hosts": ["a"], "engine": [], "image": [], "weights": []}}}, True),
        ({"localhost": {"deploy_steps": {"hosts": ["a"], "engine": ["a"]}}}, False),
        ({"localhost": {"deploy_steps": {"hosts": ["a", "b"], "weights": ["b"]}}}, False),
        ({"localhost": {"deploy_steps": {"hosts": []}}}, False),
        ({"localhost": {}}, False),
        ({}, False),
    ],
)
def test_a_probe_is_a_plan_only_where_no_step_has_done_anything_since(hostvars, nothing):
    assert steps.nothing_done(hostvars) is nothing
