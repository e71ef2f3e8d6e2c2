# SPDX-License-Identifier: Apache-2.0
"""servers.py by tables: a node with vllm_servers as the hosts of its servers, and every mistake as a sentence."""

import pytest

from ansible.module_utils.vllm_fleet.preflight import servers

BLOCK = {
    "chat": {"replicas": 2, "gpus": 1, "vllm_server_model": "meta-llama/Llama-3.3-70B-Instruct"},
    "coder": {"gpus": [2, 3], "vllm_server_args": {"max-model-len": "{{ length }}"}},
}


def plan(block, node="node1", hosts=(), groups=("all", "vllm"), of_node=("vllm",), **variables):
    nodes = {node: {"vllm_servers": block, "ansible_host": "192.0.2.1", **variables}}
    return servers.plan(nodes, [node, *hosts], {node: set(of_node), "": set(groups)})


def test_each_server_of_a_node_is_a_host():
    made = plan(BLOCK, vllm_server_model="acme/other", vllm_server_port=9000)
    assert made.problems == []
    assert [one.host for one in made.servers] == ["node1-chat-1", "node1-chat-2", "node1-coder"]
    assert made.servers[1].groups == ("entry_chat", "model_meta_llama_Llama_3_3_70B_Instruct")
    assert made.servers[1].variables == {
        "vllm_node": "node1",
        "vllm_server_name": "vllm-chat-2",
        "vllm_server_port": 9002,
        "vllm_server_gpus": 1,
        "vllm_server_model": "meta-llama/Llama-3.3-70B-Instruct",
    }
    assert made.servers[2].groups == ("entry_coder", "model_acme_other")
    assert made.servers[2].variables == {
        "vllm_node": "node1",
        "vllm_server_name": "vllm-coder",
        "vllm_server_port": 9100,
        "vllm_server_gpus": [2, 3],
        "vllm_server_args": {"max-model-len": "{{ length }}"},
    }


@pytest.mark.parametrize(
    ("block", "variables", "ports"),
    [
        ({"a": {}, "b": None}, {}, [8000, 8100]),
        ({"a": {"replicas": 1}, "b": {}}, {}, [8001, 8100]),
        ({"a": {"replicas": 2}}, {"vllm_server_port": "9000"}, [9001, 9002]),
        ({"a": {"vllm_server_port": 7000, "replicas": 2}, "b": {}}, {}, [7001, 7002, 8100]),
        ({"a": {"vllm_server_port": 7000}}, {}, [7000]),
    ],
)
def test_ports_are_a_hundred_for_each_entry(block, variables, ports):
    assert [one.variables["vllm_server_port"] for one in plan(block, **variables).servers] == ports


def test_a_node_without_an_address_is_reached_by_its_name():
    assert plan({"a": {}}, ansible_host="").servers[0].variables["ansible_host"] == "node1"


@pytest.mark.parametrize(
    ("block", "options", "says"),
    [
        ("{{ them }}", {}, "node1: vllm_servers is a template"),
        (["chat"], {}, "node1: vllm_servers is list ['chat']"),
        ({"a": "x"}, {}, "node1, entry a: it is 'x', expected keys"),
        ({"a": {"gpu": 2}}, {}, "node1, entry a: gpu is no key of an entry: write gpus."),
        ({"a": {"gateway_port": 81}}, {}, "node1, entry a: gateway_port is the gateways', and changes nothing for"),
        ({"a": {"replica": 2}}, {}, "write replicas."),
        (
            {"a": {"rocm_allow_reboot": True}},
            {},
            "rocm_allow_reboot is no key of an entry: write one of replicas, gpus",
        ),
        ({"a": {"replicas": 0}}, {}, "replicas is 0, expected a number from 1 to 99"),
        ({"a": {"replicas": "two"}}, {}, "replicas is 'two'"),
        ({"a": {"replicas": True}}, {}, "replicas is True"),
        ({"a": {"gpus": 0}}, {}, "gpus is 0, expected a number from 1, or a list"),
        ({"a": {"gpus": []}}, {}, "gpus is [], expected a list of indices"),
        ({"a": {"gpus": [0, 0]}}, {}, "which names one twice"),
        ({"a": {"gpus": ["x"]}}, {}, "gpus is ['x']"),
        ({"a": {"cpus": "all"}}, {}, "cpus is 'all'"),
        ({"a": {"gpus": [0], "replicas": 2}}, {}, "2 replicas would have the same ones"),
        ({"a": {"cpus": "0-7", "replicas": 2}}, {}, "2 replicas would have the same ones"),
        ({"a": {"gpus": 1, "vllm_server_gpus": 1}}, {}, "it has gpus and vllm_server_gpus, which are the same"),
        ({"a": {"gpus": [0, 1]}, "b": {"gpus": [1]}}, {}, "node1: node1-a and node1-b both have 1 in gpus"),
        ({"a": {"vllm_server_name": "x"}}, {}, "vllm_server_name is made of the entry's name"),
        ({"a": {"vllm_node": "x"}}, {}, "vllm_node is the name of the host"),
        ({"a": {"vllm_server_replica": "x"}}, {}, "vllm_server_replica is for a server over several nodes"),
        ({"a": {"vllm_server_state_dir": "/x"}}, {}, "node1, entry a: vllm_server_state_dir is one for all servers"),
        ({"a-b": {}, "a_b": {}}, {}, "node1, entry a_b: its group would be entry_a_b, as of the entry a-b: rename one"),
        ({"a": {}}, {"node": "fd00::1"}, "fd00::1: its name has ':', which Ansible's patterns read"),
        ({"a": {}}, {"node": "n,1"}, "n,1: its name has ','"),
        ({"a": {}}, {"node": "n[1]"}, "n[1]: its name has '['"),
        ({"a": {"vllm_server_port": "http"}}, {}, "node1, entry a: vllm_server_port is 'http'"),
        ({"a.b": {}}, {}, "node1, entry a.b: its name is part of the names"),
        ({"a_": {}}, {}, "entry a_: its name"),
        ({"a" * 61: {}}, {}, "at most 60"),
        ({"a-1": {}, "a": {"replicas": 1}}, {}, "its server node1-a-1 has the name of a server of node1"),
        ({"a": {}}, {"hosts": ["node1-a"]}, "its server node1-a has the name of a host of the inventory"),
        ({"a": {}}, {"groups": ["node1-a"]}, "its server node1-a has the name of a group"),
        ({"a": {}}, {"groups": ["node1"]}, "there is a group node1, too"),
        ({"a": {}}, {"of_node": ["vllm", "gateway"]}, "node1: it is a gateway, too"),
        ({"a": {}}, {"node": "localhost"}, "localhost: it cannot have vllm_servers"),
        ({"a": {}}, {"vllm_server_replica": "big"}, "leave out one of vllm_servers and vllm_server_replica"),
        ({"a": {}}, {"vllm_node": "m"}, "it has vllm_node, which vllm_servers gives"),
        ({"a": {}}, {"vllm_server_port": "{{ p }}"}, "expected a number that is known before the run"),
        ({"a": {}}, {"vllm_server_port": 80000}, "vllm_server_port is 80000, expected 1 to 65535: the servers' ports"),
        ({"a": {}, "b": {"vllm_server_port": 8000}}, {}, "node1-a and node1-b would both have port 8000"),
        ({"a": {"replicas": 99}, "b": {"vllm_server_port": 8050}}, {}, "node1-a-50 and node1-b would both have"),
        ({"a": {}, "b": {}}, {"vllm_server_port": 65500}, "node1-b would have port 65600, expected at most 65535"),
    ],
)
def test_what_is_wrong_is_a_sentence(block, options, says):
    problems = plan(block, **options).problems
    assert any(says in one for one in problems), problems
    assert all(one.endswith(".") and one.startswith(options.get("node", "node1")) for one in problems)


def test_nodes_with_the_same_mistake_have_one_sentence():
    nodes = {f"node{n}": {"vllm_servers": {"a": {"gpu": 1}}} for n in (1, 2, 3)}
    found = servers.plan(nodes, list(nodes), {"": set()}).problems
    assert found == ["node1, entry a: gpu is no key of an entry: write gpus. (And so of 2 more nodes.)"]


def test_nodes_named_by_addresses_have_one_sentence():
    (found,) = servers.plan({f"fd00::{n}": {"vllm_servers": {"a": {}}} for n in (1, 2)}, [], {}).problems
    assert found.startswith("fd00::1: its name has ':'") and found.endswith("(And so of 1 more node.)")


def test_a_server_with_the_name_of_another_node_is_refused():
    nodes = {"n": {"vllm_servers": {"a": {}}}, "n-a": {"vllm_servers": {"b": {}}}}
    (found,) = servers.plan(nodes, list(nodes), {"": set()}).problems
    assert found.startswith("n: its server n-a has the name of a node with vllm_servers: rename the entry")


def test_entries_of_two_nodes_have_no_group_in_common():
    nodes = {"n1": {"vllm_servers": {"a-b": {}}}, "n2": {"vllm_servers": {"a_b": {}}}}
    (found,) = servers.plan(nodes, list(nodes), {"": set()}).problems
    assert found.startswith("n2, entry a_b: its group would be entry_a_b")
