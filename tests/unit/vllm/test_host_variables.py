# SPDX-License-Identifier: Apache-2.0
"""Where a server is asked: every address that it may listen on makes a URL that the project's own client takes."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.server import release_store
from ansible.module_utils.vllm_fleet.vllm import host_variables
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest

BINDS = [
    ("127.0.0.1", "http://127.0.0.1:8000"),
    ("0.0.0.0", "http://127.0.0.1:8000"),
    ("::", "http://127.0.0.1:8000"),
    ("::1", "http://[::1]:8000"),
    ("fd00::5", "http://[fd00::5]:8000"),
    ("localhost", "http://127.0.0.1:8000"),
]


@pytest.mark.parametrize(("bind", "url"), BINDS)
def test_a_bind_and_the_url_to_ask(bind, url):
    assert host_variables.url(bind, 8000) == host_variables.own_url({"vllm_server_bind": bind}) == url
    spec = {"network_mode": "host", "bind": bind, "port": 8000}
    assert release_store.inside_url(spec) == url
    ChatRequest(url=url, prompt="x")  # raises ValueError for what cannot be read


FLEET = {
    "node1-chat-1": {"vllm_node": "node1"},
    "node2": {},
    "node1-coder": {"vllm_node": "node1"},
    "node1": {},
    "node3": {"vllm_node": ""},
    "alone": {"vllm_node": "other"},
}
NODES = [
    ("node1-chat-1", "node1", ["node1-chat-1", "node1-coder", "node1"]),
    ("node2", "node2", ["node2"]),
    ("node3", "node3", ["node3"]),
    ("alone", "other", ["alone"]),
]


@pytest.mark.parametrize(("host", "node", "neighbours"), NODES)
def test_servers_of_one_node(host, node, neighbours):
    assert host_variables.node_of(FLEET[host], host) == node
    assert host_variables.neighbours(FLEET, list(FLEET), host) == neighbours


def test_a_host_without_vllm_node_looks_at_no_other():
    only = {"node2": {}}  # any other would raise KeyError
    assert host_variables.neighbours(only, ["node1", "node2"], "node2") == ["node2"]
    assert host_variables.neighbours({"a": {"vllm_node": 7}, "b": {"vllm_node": "7"}}, ["b", "a"], "a") == ["b", "a"]


@pytest.mark.parametrize("odd", [None, 1, "x", ["vllm"], {1: "running"}, {"../x": "running"}, {"x" * 200: "y"}])
def test_what_is_no_server_of_a_node_is_not_believed(odd):
    assert host_variables.servers_seen({"servers": odd}) == {}


def test_servers_of_a_node_are_believed_up_to_a_number():
    assert host_variables.servers_seen({"servers": {"vllm": "running"}}) == {"vllm": "running"}
    assert host_variables.servers_seen({"servers": {f"v{n}": "running" for n in range(500)}}) == {}
