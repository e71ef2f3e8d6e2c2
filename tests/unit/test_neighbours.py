# SPDX-License-Identifier: Apache-2.0
"""What the controller tells a node of the servers that share it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plugin_utils import role_options

HOSTS = {
    "node1-chat-1": {"vllm_node": "node1", "vllm_server_name": "vllm-chat-1", "vllm_server_gpus": 1},
    "node1-chat-2": {"vllm_node": "node1", "vllm_server_name": "vllm-chat-2", "vllm_server_gpus": 1},
    "node2": {"vllm_server_model": "m"},
    "node1-small": {
        "vllm_node": "node1",
        "vllm_server_name": "vllm-small",
        "vllm_server_accelerator": "cpu",
        "vllm_server_cpus": "0-3",
    },
}
ALL = [
    {"name": "vllm-chat-1", "gpus": 1, "cpus": None, "accelerator": "rocm"},
    {"name": "vllm-chat-2", "gpus": 1, "cpus": None, "accelerator": "rocm"},
    {"name": "vllm-small", "gpus": None, "cpus": "0-3", "accelerator": "cpu"},
]


class Looked(dict):
    """Variables of all hosts, and which hosts were looked at."""

    def __init__(self):
        super().__init__(HOSTS)
        self.at = []

    def __getitem__(self, host):
        self.at.append(host)
        return super().__getitem__(host)


class Given(dict):
    """A host's variables, as a plugin has them."""

    def raw(self, name):
        return self[name]


def given(host, groups=None, **more):
    magic = {"inventory_hostname": host, "hostvars": Looked(), "groups": {"vllm": list(HOSTS), **(groups or {})}}
    return Given({**HOSTS[host], **magic, **more})


@pytest.mark.parametrize("host", ["node1-chat-1", "node1-small"])
def test_all_servers_of_the_node_in_the_order_of_the_inventory(host):
    found = role_options.shared_node(given(host))
    assert found["neighbours"] == ALL
    assert (found["gpus"], found["cpus"]) == (HOSTS[host].get("vllm_server_gpus"), HOSTS[host].get("vllm_server_cpus"))


def test_the_nodes_own_group_is_looked_at_alone():
    members = [host for host in HOSTS if host != "node2"]
    variables = given("node1-chat-1", {"node1": [*members, "node1-bench"]})
    assert role_options.shared_node(variables)["neighbours"] == ALL
    assert "node2" not in variables["hostvars"].at and "node1-bench" not in variables["hostvars"].at
    # A group that has the name by chance, without the host.
    assert role_options.shared_node(given("node1-chat-1", {"node1": ["node2"]}))["neighbours"] == ALL


def test_a_host_alone_looks_at_no_other():
    variables = given("node2")
    assert role_options.shared_node(variables) == {"gpus": None, "cpus": None, "neighbours": []}
    assert variables["hostvars"].at == []
    assert role_options.shared_node(given("node2", vllm_node="node2"))["neighbours"] == []


def test_a_node_of_a_replica_gives_it_all():
    variables = given("node2", vllm_server_replica="big", vllm_server_gpus=2)
    with pytest.raises(AnsibleFilterError, match="vllm_server_gpus is set, and a node of a server over several nodes"):
        role_options._shared(variables)
    assert role_options._preflight_shared(variables) == {}
