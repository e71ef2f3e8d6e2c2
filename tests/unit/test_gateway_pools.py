"""Which servers stand behind a gateway: from the inventory alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles" / "gateway" / "filter_plugins" / "gateway_pools.py"
spec = importlib.util.spec_from_file_location("gateway_pools", SOURCE)
pools = sys.modules["gateway_pools"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pools)


def host(name, **more):
    return {
        "inventory_hostname": name,
        "ansible_host": f"192.0.2.{name[-1]}",
        "vllm_server_model": "org/m",
        "vllm_server_bind": "0.0.0.0",
        "vllm_server_api_key": "k",
        **more,
    }


def find(*hosts, ports=None, port=8080):
    hostvars = {entry["inventory_hostname"]: entry for entry in hosts}
    hostvars["gw"] = {"inventory_hostname": "gw", "ansible_host": "192.0.2.100"}
    names = [entry["inventory_hostname"] for entry in hosts]
    return pools.gateway_pools(hostvars, names, "gw", port=port, ports=ports or {}, offset=10000)


def test_where_an_administrator_keeps_a_server_out():
    def look(gateway, *states):
        servers = [{"name": name, "status": status} for name, status in states]
        return {"item": gateway, "servers": servers}

    looks = [
        look("gw1", ("n1", "MAINT"), ("n2", "UP")),
        look("gw2", ("n1", "DRAIN"), ("n2", "MAINT")),
        look("gw3", ("n1", "MAINT (resolution)"), ("n2", "MAINT (via a/b)")),
        {"item": "gw4", "unreachable": True},
    ]
    assert pools.gateway_kept_out(looks, "n1") == ["gw1"]
    assert pools.gateway_kept_out(looks, "n2") == ["gw2"]


def test_one_pool():
    found = find(host("n1"), host("n2", vllm_server_port=8001, gateway_server_address="10.0.0.2"))
    assert found["problems"] == []
    (pool,) = found["pools"]
    assert (pool["name"], pool["model"], pool["port"], pool["local_port"]) == ("org_m", "org/m", 8080, 18080)
    assert pool["servers"] == [
        {"name": "n1", "address": "192.0.2.1", "port": 8000},
        {"name": "n2", "address": "10.0.0.2", "port": 8001},
    ]


def test_hosts_of_one_replica_are_one_server():
    found = find(host("n1", vllm_server_replica="a"), host("n2", vllm_server_replica="a"), host("n3"))
    assert [server["name"] for server in found["pools"][0]["servers"]] == ["n1", "n3"]
    hostvars = {name: host(name, vllm_server_replica="a") for name in ("n1", "n2")}
    place = pools.gateway_place(hostvars, ["n1", "n2"], "n2")
    assert place == {"backend": "org_m", "server": "n1", "model": "org/m", "head": False}


def test_pools_of_two_models_have_ports_of_their_own():
    two = (host("n1"), host("n2", vllm_server_args={"served-model-name": ["chat", "c"]}))
    found = find(*two, ports={"chat": 8081})
    assert found["problems"] == []
    assert [(pool["name"], pool["port"]) for pool in found["pools"]] == [("org_m", 8080), ("chat", 8081)]
    (problem, *_) = find(*two)["problems"]
    assert (
        problem
        == "org/m and chat would both be on port 8080 of the gateway: give each its own in gateway_ports, such as {chat: 8081}."
    )


@pytest.mark.parametrize(
    ("hosts", "ports", "says"),
    [
        ([], {}, "Group vllm has no hosts"),
        ([host("n1", vllm_server_model="")], {}, "n1 has no vllm_server_model"),
        ([host("n1", vllm_server_bind="127.0.0.1")], {}, "n1 serves on 127.0.0.1 alone, where gw cannot reach it"),
        ([host("n1"), host("n2", vllm_server_api_key="other")], {}, "n2 and n1 serve org/m with different keys"),
        (
            [host("n1")],
            {"other": 8081},
            "gateway_ports names other, which no host of group vllm serves; served are org/m",
        ),
        (
            [host("n1", vllm_server_replica="a"), host("n2", vllm_server_replica="a", vllm_server_model="x")],
            {},
            "n2 and n1 are one replica (a) but serve x and org/m",
        ),
    ],
)
def test_what_no_gateway_can_serve(hosts, ports, says):
    assert any(says in problem for problem in find(*hosts, ports=ports)["problems"])


def test_a_gateway_beside_its_server():
    one = {"inventory_hostname": "n1", "ansible_connection": "local", "vllm_server_model": "m"}
    found = pools.gateway_pools({"n1": one}, ["n1"], "n1", port=8080, ports={}, offset=10000)
    assert found["problems"] == []
    assert found["pools"][0]["servers"] == [{"name": "n1", "address": "127.0.0.1", "port": 8000}]


def test_the_port_on_loopback():
    assert pools.local_port(8080, 10000) == 18080
    assert pools.local_port(60000, 10000) == 50000
    assert pools.gateway_local_url({"gateway_ports": {"m": 9000}}, "m", 8080, 10000) == "http://127.0.0.1:19000"
    assert pools.gateway_local_url({}, "m", 8080, 10000) == "http://127.0.0.1:18080"
