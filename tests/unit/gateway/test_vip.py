# SPDX-License-Identifier: Apache-2.0
"""The address that gateways share: what is refused, and what keepalived gets."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.gateway import haproxy, keys, vip

VIP = {"address": "10.0.0.9/24", "interface": "eth0"}


def hosts(**more):
    found = {name: {"ansible_host": f"10.0.0.{n}", "gateway_vip": VIP} for n, name in ((2, "gw1"), (3, "gw2"))}
    return {name: {**variables, **more.get(name, {})} for name, variables in found.items()}


def described(hostvars, given=VIP, bind="*"):
    return vip.described(hostvars, list(hostvars), "gw1", given, bind)


def test_each_gateway_announces_itself_to_the_others():
    found = described(hosts(gw2={"gateway_address": "10.1.0.3"}))
    assert found == {**VIP, "id": 51, "source": "10.0.0.2", "peers": ["10.1.0.3"], "problems": []}
    assert (described(hosts(), {})["address"], described(hosts(), {})["problems"]) == ("", [])


@pytest.mark.parametrize(
    ("more", "given", "bind", "says"),
    [
        ({}, {**VIP, "address": "10.0.0.9"}, "*", "give an IPv4 address with the prefix of its network"),
        ({}, {**VIP, "address": "fd00::9/64"}, "*", "give an IPv4 address with the prefix of its network"),
        ({}, {**VIP, "interface": "eth0 }"}, "*", "has the interface 'eth0 }'"),
        ({}, {**VIP, "id": 256}, "*", "give a number from 1 to 255"),
        ({}, {**VIP, "password": "x"}, "*", "has password, which means nothing here"),
        ({}, VIP, "10.0.0.2", "but gw1 listens on 10.0.0.2"),
        ({"gw2": {"ansible_host": "gw2.example"}}, VIP, "*", "'gw2.example' is none: set gateway_address of gw2"),
        ({"gw2": {"ansible_host": "10.0.0.9"}}, VIP, "*", "is the own address of gw2"),
        ({"gw2": {"ansible_host": "10.0.0.2"}}, VIP, "*", "gw1, gw2 would all announce from 10.0.0.2"),
        ({"gw2": {"gateway_vip": {}}}, VIP, "*", "of the other not set"),
    ],
)
def test_what_cannot_work_is_refused(more, given, bind, says):
    assert says in " ".join(described(hosts(**more), given, bind)["problems"])


def test_a_gateway_that_is_to_go_is_not_asked():
    assert vip.standing(hosts(gw1={"gateway_absent": "yes"}), ["gw1", "gw2"]) == ["gw2"]


@pytest.mark.parametrize(
    ("addresses", "foreign", "says"),
    [
        ({"eth0": ["10.0.0.2"]}, "", []),
        ({"ens3": ["10.0.0.2"]}, "", ["gw1 has no interface eth0 for gateway_vip; it has ens3."]),
        ({"eth0": ["192.0.2.1"]}, "", ["gw1 does not have its own address 10.0.0.2 on eth0, which has 192.0.2.1"]),
        ({"eth0": ["10.0.0.2"]}, "/etc/x", ["keepalived on gw1 has a configuration of its own (/etc/x)"]),
    ],
)
def test_what_a_host_lacks(addresses, foreign, says):
    found = vip.not_on_host("gw1", described(hosts()), {"addresses": addresses, "foreign": foreign})
    assert [part in one for part, one in zip(says, found, strict=True)] == [True] * len(says)


def test_the_version_of_a_configuration_is_the_same_wherever_its_servers_are():
    text = "global\n    description vllm-fleet @version@\nbackend x\n    server n1 {} id 4\n"
    one, other = (haproxy.versioned(text.format(place)) for place in ("192.0.2.1:8000", "127.0.0.1:8100"))
    assert one.splitlines()[1] == other.splitlines()[1]
    assert "@version@" not in one
    assert haproxy.versioned(text.replace("id 4", "id 5").format("a:1")).splitlines()[1] != one.splitlines()[1]


def test_a_door_is_tried_with_a_key_that_opens_it():
    pool = {"names": ["org/small"], "head": "n1"}
    fronts = [{"port": 8080, "closed": True, "pools": [pool]}]
    clients = [{"name": "a", "key": "one", "models": ["large"]}, {"name": "b", "key": "two"}]
    hostvars = {"n1": {"vllm_server_api_key": "own"}}
    assert keys.doors(hostvars, fronts, clients, "*") == [{"host": "127.0.0.1", "port": 8080, "key": "two"}]
    assert keys.doors(hostvars, fronts, [], "::")[0] == {"host": "::1", "port": 8080, "key": "own"}
    assert keys.doors(hostvars, [{**fronts[0], "closed": False}], [], "192.0.2.1")[0]["key"] == ""
