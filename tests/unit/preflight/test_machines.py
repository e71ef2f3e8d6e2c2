# SPDX-License-Identifier: Apache-2.0
"""machines.py by tables: hosts that share a machine say so and are not in each other's way."""

import pytest

from ansible.module_utils.vllm_fleet.preflight import machines


def place(machine="m1", name="vllm", port=8000, bind="127.0.0.1", replica="", node="n", **more):
    return {"machine": machine, "name": name, "port": port, "bind": bind, "replica": replica, "node": node, **more}


@pytest.mark.parametrize(
    ("places", "refused", "words"),
    [
        ([place("m1", node=""), place("m2", node="")], "", ""),
        ([place(""), place("")], "", ""),  # not known is not the same
        ([place(), place(port=8001)], "ab", "a and b are the same machine, with one vllm_server_name (vllm)"),
        (
            [place(), place("m2", node="o"), place()],
            "ac",
            "a and c are the same machine, with one vllm_server_name (vllm)",
        ),
        ([place(), place(), place()], "abc", "a, b and c are the same machine, with one vllm_server_name"),
        ([place(), place(name="b")], "ab", "a and b are the same machine, with one vllm_server_port (8000)"),
        ([place(), place(name="b", bind="localhost")], "ab", "vllm_server_port (8000)"),
        ([place(bind="10.0.0.1"), place(name="b", bind="0.0.0.0")], "ab", "vllm_server_port (8000)"),
        ([place(), place(name="b", bind="10.0.0.1")], "", ""),
        ([place(), place(name="b", port=8001)], "", ""),
        ([place(port=0), place(name="b", port=0)], "", ""),
        ([place(replica="r"), place(replica="r")], "ab", "with one vllm_server_name (vllm)"),
        ([place(replica="r"), place(name="b", replica="r")], "", ""),  # of these the head alone has a port
        ([place(replica="r"), place(name="b", replica="s")], "ab", "vllm_server_port (8000)"),
        # Servers of one machine say so.
        ([place(node=""), place(name="b", port=1, node="")], "ab", "a and b are the same machine"),
        ([place(node=""), place(name="b", port=1)], "ab", "a and b are the same machine"),
        ([place(), place(name="b", port=1, node="o")], "ab", "a and b are the same machine"),
        ([place(node="", replica="r"), place(name="b", node="", replica="r")], "", ""),
        ([place(), place("m2", name="b")], "ab", "a and b are different machines, with one vllm_node (n)"),
        ([place(), place("", name="b"), place("m2", name="c")], "abc", "a and c are different machines"),
        ([place(agent=9), place(name="b", port=1, agent=9)], "ab", "has port 9, which"),
        ([place(agent=1), place(name="b", port=1)], "a", "the watchdog of a has port 1, which b has, too"),
    ],
)
def test_hosts_that_are_one_machine(places, refused, words):
    found = machines.machines(dict(zip("abc", places, strict=False)))
    assert set(found) == set(refused)
    assert all(one.level == "refused" and words in one.got for one in found.values())


def server(node="n", gpus=1, replica="", rocm=True, by_hand="", state_dir="/var/lib/vllm-fleet"):
    given = {"node": node, "gpus": gpus, "replica": replica, "rocm": rocm}
    return {**given, "by_hand": by_hand, "state_dir": state_dir}


BY_HAND = server(gpus=None, by_hand="vllm_server_devices")


@pytest.mark.parametrize(
    ("hosts", "refused"),
    [
        ([server(), server()], {}),
        ([server(gpus=None)], {}),
        ([server(gpus=None), server("o", gpus=None)], {}),
        ([server(gpus=None), server()], {"a": "vllm_server_gpus"}),
        ([server(gpus=None), server(gpus="")], {"a": "vllm_server_gpus", "b": "vllm_server_gpus"}),
        ([server(gpus=None, rocm=False), server(gpus=None, rocm=False)], {}),
        ([server(replica="r"), server()], {"a": "vllm_server_replica"}),
        ([server(replica="r"), server("o", replica="r")], {}),
        # GPUs that were split by hand stay so, as long as the project chooses none beside them.
        ([BY_HAND, BY_HAND], {}),
        ([BY_HAND, server(gpus=None, rocm=False)], {}),
        ([BY_HAND, server(gpus=None)], {"b": "vllm_server_gpus"}),
        ([BY_HAND, server()], {"a": "vllm_server_gpus"}),
        # Records in two folders: neither server would see what the other has.
        ([server(), server(state_dir="/srv")], {"a": "vllm_server_state_dir", "b": "vllm_server_state_dir"}),
        ([server(), server("o", state_dir="/srv")], {}),
        ([server(), server(state_dir="")], {}),
    ],
)
def test_servers_of_one_node(hosts, refused):
    found = machines.sharing(dict(zip("abc", hosts, strict=False)))
    assert {host: one.what for host, one in found.items()} == refused
    assert all(one.remedy for one in found.values())


def test_a_choice_by_hand_beside_a_wish_is_named():
    found = machines.sharing({"a": BY_HAND, "b": server()})
    assert found["a"].remedy.endswith(", and take vllm_server_devices away")


def test_hosts_of_one_address_are_a_line_that_was_copied():
    """First that, and then what to set where it is meant; behind one address each may have an SSH port of its own."""
    copied = {"address": "192.0.2.1", "ssh_port": "", "node": ""}
    found = machines.machines({"a": place(**copied), "b": place(name="b", port=1, **copied)})
    assert (found["a"].what, found["a"]) == ("ansible_host", found["b"])
    assert found["a"].got == "a and b have the same one, 192.0.2.1: it was probably copied"
    correct, _, meant = found["a"].remedy.partition("; ")
    assert correct == "correct the ansible_host of b" and "the same vllm_node" in meant
    ports = {"a": place(**{**copied, "ssh_port": "1"}), "b": place(name="b", port=1, **{**copied, "ssh_port": "2"})}
    assert machines.machines(ports)["a"].what == "one machine"
    assert (
        machines.machines({"a": place(**{**copied, "node": "n"}), "b": place(name="b", port=1, address="192.0.2.1")})
        == {}
    )
