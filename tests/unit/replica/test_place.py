# SPDX-License-Identifier: Apache-2.0
"""What playbooks ask about a server over several nodes: its place in preflight, and how far its nodes go back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

import plugin_utils  # noqa: F401
from ansible.module_utils.vllm_fleet.replica import place as places
from ansible.module_utils.vllm_fleet.rollout import rollback
from plugin_utils import role_options
from plugin_utils.variables import Variables

ROOT = Path(__file__).resolve().parents[3]

PAIR = {
    "n1": {"vllm_server_replica": "pair", "ansible_host": "10.0.0.1"},
    "n2": {"vllm_server_replica": "pair", "ansible_host": "10.0.0.2", "vllm_server_interface": "ens1"},
    "n3": {"ansible_host": "10.0.0.3"},
}
SETTINGS = {"backend": "mp", "master_addr": "", "master_port": 0}


def seen(host, args=None, **changes):
    return places.checked(PAIR | changes, host, list(PAIR), {"tensor-parallel-size": 2, **(args or {})}, SETTINGS)


def of_role(role, name, **variables):
    """Evaluate a variable of a role, by Ansible itself."""
    variables |= yaml.safe_load((ROOT / "roles" / role / "vars/main.yml").read_text())
    trusted = {key: trust_as_template(value) if isinstance(value, str) else value for key, value in variables.items()}
    return Templar(DataLoader(), trusted).template(trusted[name])


@pytest.mark.parametrize(
    ("own", "hosts", "stopped"),
    [({}, 1, True), ({"vllm_server_replica": ""}, 1, True), ({"vllm_server_replica": "pair"}, 2, False)],
)
def test_an_empty_name_makes_no_replica_of_the_hosts_that_have_none(own, hosts, stopped):
    groups = {"groups": {"vllm": [*PAIR, "n4"]}, "hostvars": {**PAIR, "n4": {}}, "inventory_hostname": "n1"}
    assert role_options.replica_size(Variables(Templar(DataLoader()), {**groups, **own})) == hosts
    boot = {"rollout_outcome": {"state": "draining"}, "rocm_stop_result": {"changed": True}}
    assert of_role("rollout", "__rollout_stopped_for_boot", **boot, **own) is stopped


def test_an_empty_list_is_an_answer_and_none_is_left_to_the_module():
    given = {"args": {}, "env": {}, "entrypoint": [], "devices": [], "capabilities": None, "volumes": [], "bind": "::1"}
    given |= {
        "network_mode": "bridge",
        "accelerator": "rocm",
        "image": "i",
        "model": "m",
        "state_dir": "/s",
        **SETTINGS,
    }
    place = places.options(PAIR, "n3", list(PAIR), given)
    assert (place["devices"], place["capabilities"], place["entrypoint"]) == ([], None, None)


def test_a_place_in_a_replica_or_what_is_wrong_with_it():
    assert seen("n2")["replica"]["rank"] == 1
    assert seen("n3") == {"replica": {}, "findings": []}
    odd = seen("n1", {"tensor-parallel-size": 3})
    assert odd["replica"] == {}
    (found,) = odd["findings"]
    assert (found["level"], found["what"]) == ("refused", "replica pair")
    assert "expected a multiple of 2" in found["got"]
    (found,) = seen("n1", n2={"vllm_server_replica": "pair", "ansible_host": "gpu2.example"})["findings"]
    assert "expected an IP address" in found["got"]


def test_a_node_connects_to_what_its_partners_offer():
    offer = {"offered": [{"address": "10.1.0.1", "port": 29500, "own": False}], "word": "w"}
    told = {host: {**values, "heard": offer} for host, values in PAIR.items()}
    assert places.offers(seen("n2")["replica"], told, "heard") == [{"host": "n1", "address": "10.0.0.1", **offer}]
    assert places.offers(seen("n1")["replica"], PAIR, "heard") == []  # it could not listen, or is not in this run


@pytest.mark.parametrize(
    ("listening", "connected", "level", "got"),
    [
        ({}, {"reached": [{"host": "n1"}]}, "ok", "10.0.0.2 through ens1, reaches n1"),
        ({"failure": {"cause": "no ens1", "evidence": [], "remedy": "R"}}, {"skipped": True}, "refused", "no ens1"),
        ({}, {"failure": {"cause": "a", "evidence": ["a", "b"], "remedy": "R"}}, "refused", "a; b"),
        ({"unreachable": True, "msg": "no route"}, {"skipped": True}, "unknown", "no route"),
    ],
)
def test_what_the_network_is_called_in_the_table(listening, connected, level, got):
    (found,) = places.findings(seen("n2")["replica"], listening, connected)
    assert (found["level"], found["what"], found["got"]) == (level, "network of replica pair", got)
    assert found["expected"] == "10.0.0.2 through ens1, and all nodes reach each other"


def test_partners_are_those_of_the_same_name():
    assert places.partners("n1", PAIR, list(PAIR)) == ["n1", "n2"]
    assert places.partners("n3", {**PAIR, "n4": {}}, [*PAIR, "n4"]) == ["n3"]


def known(*runs, restores=None):
    """What vllm_release_info says of a node whose releases these runs brought; the last one runs."""
    releases = [{"release": n, "run": run, "restores": None} for n, run in enumerate(runs, 1)]
    releases[-1]["restores"] = restores
    return {"current": releases[-1], "releases": releases}


@pytest.mark.parametrize(
    ("nodes", "stay"),
    [
        ([known("1", "2"), known("1", "2")], [False, False]),
        # Run 3 changed the second node alone: the first keeps what it has.
        ([known("1", "2"), known("1", "2", "3")], [True, False]),
        # And when that was taken back by run 4, both go on to what was before 2.
        ([known("1", "2"), known("1", "2", "3", "4", restores=2)], [False, False]),
        # Nobody knows what the second one serves.
        ([known("1", "2"), {"current": None, "releases": []}], [False, False]),
    ],
)
def test_a_node_that_the_last_change_left_alone_stays(nodes, stay):
    assert [rollback.stays(nodes, one) for one in nodes] == stay
