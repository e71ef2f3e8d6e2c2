# SPDX-License-Identifier: Apache-2.0
"""What the nodes of one server must have of the network between them: real sockets on loopback, a made-up sysfs."""

from __future__ import annotations

import json
import socket
import time

import pytest

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.replica import network

SEEN = json.dumps(
    [
        {"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "addr_info": [{"local": "127.0.0.1"}]},
        {"ifname": "ens1", "flags": ["UP", "LOWER_UP"], "addr_info": [{"local": "10.0.0.11"}, {"local": "fe80::1"}]},
        {"ifname": "ens2", "flags": ["UP"], "addr_info": [{"local": "10.0.1.11"}]},
    ]
)


@pytest.mark.parametrize(
    ("name", "address", "says"),
    [
        ("ens1", "10.0.0.11", ""),
        ("ens9", "10.0.0.11", "no network interface ens9 on this node; it has ens1, ens2"),
        ("ens2", "10.0.1.11", "ens2 is down"),
        ("ens1", "10.0.1.11", "does not have this node's address 10.0.1.11; it has 10.0.0.11"),
    ],
)
def test_an_interface_must_be_there_be_up_and_have_the_address(name, address, says):
    found = network.parse_interfaces(SEEN)
    if not says:
        network.check_interface(name, address, found)
        return
    with pytest.raises(Refused, match=says):
        network.check_interface(name, address, found)


def test_an_address_must_be_the_nodes_own():
    network.check_address("10.0.1.11", network.parse_interfaces(SEEN))
    with pytest.raises(Refused, match=r"does not have the address 203.0.113.11 .* it has 10.0.0.11"):
        network.check_address("203.0.113.11", network.parse_interfaces(SEEN))


@pytest.mark.parametrize(
    ("devices", "gid", "says"),
    [
        (["mlx5_0"], 3, ""),
        ([], None, ""),
        (["mlx5_7"], None, "no RDMA adapter mlx5_7 on this node; it has mlx5_0, mlx5_1"),
        (["mlx5_0", "mlx5_1"], None, "mlx5_1 has no active port"),
        (["mlx5_0"], 5, "mlx5_0 has no GID at index 5"),
    ],
)
def test_rdma_adapters_must_be_there_and_active(tmp_path, devices, gid, says):
    for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / "class/infiniband" / name / "ports/1"
        (port / "gids").mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "gids/3").write_text("0000:0000:0000:0000:0000:ffff:0a00:000b\n")
        (port / "gids/5").write_text("0000:0000:0000:0000:0000:0000:0000:0000\n")
    if not says:
        network.check_rdma(devices, gid, tmp_path, dev=tmp_path)
        return
    with pytest.raises(Refused, match=says):
        network.check_rdma(devices, gid, tmp_path, dev=tmp_path)


def test_rdma_without_its_devices_is_refused(tmp_path):
    with pytest.raises(Refused, match="does not exist on this node"):
        network.check_rdma(["mlx5_0"], None, tmp_path, dev=tmp_path / "none")


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def partner(offered, word):
    return {"host": "n1", "address": "127.0.0.1", "offered": offered, "word": word}


def test_partners_reach_what_is_offered_and_then_nobody_listens(port):
    offered, word = network.listen("127.0.0.1", [port], 1, frozenset)
    assert offered[0] == {"address": "127.0.0.1", "port": port, "own": False} and len(offered) == 2
    assert network.connect([partner(offered, word)], "") == []
    refused = f"cannot reach n1 at 127.0.0.1:{port}: Connection refused"
    end = time.monotonic() + 10
    while network.connect([partner(offered[:1], word)], "") != [refused]:
        assert time.monotonic() < end, "the listener does not end"  # it does a moment after its last answer


def test_the_ports_where_ranks_meet_may_be_at_another_address_of_the_head(port):
    """Such as a network for the rendezvous, beside that of the collectives: `interface` does not lead there."""
    offered, word = network.listen("127.0.0.1", [port], 1, frozenset, "127.0.0.2")
    assert [(one["address"], one["port"] == port) for one in offered] == [("127.0.0.2", True), ("127.0.0.1", False)]
    assert network.connect([partner(offered[:1], word)], "no-such-interface") == []
    (said,) = network.connect([partner(offered[1:], word)], "no-such-interface")
    assert "through no-such-interface" in said
    assert network.connect([partner(offered[1:], word)], "") == []


def test_a_check_that_was_left_is_no_obstacle_to_the_next(port):
    network.listen("127.0.0.1", [port], 5, frozenset)
    offered, word = network.listen("127.0.0.1", [port], 1, frozenset)
    assert network.connect([partner(offered, word)], "") == []


def test_somebody_else_on_the_port_is_named_and_one_who_answers_for_the_node_is_found(port):
    with socket.create_server(("127.0.0.1", port)) as other:
        with pytest.raises(Refused, match=rf"port {port} on 127.0.0.1 is already taken by"):
            network.listen("127.0.0.1", [port], 1, frozenset)
        offered = [{"address": "127.0.0.1", "port": port, "own": False}]
        other.settimeout(10)
        network.CONNECT_TIME, before = 0.5, network.CONNECT_TIME
        try:
            (said,) = network.connect([partner(offered, "word")], "")
        finally:
            network.CONNECT_TIME = before
        assert "no answer" in said
        # The server that runs now holds its port, and has nothing to say to strangers.
        assert network.connect([partner([{**offered[0], "own": True}], "word")], "") == []
