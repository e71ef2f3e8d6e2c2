# SPDX-License-Identifier: Apache-2.0
"""What the monitoring knows of an inventory."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.monitoring import fleet, settings

PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----"
HOSTS = {
    "n1": {"ansible_host": "192.0.2.1", "vllm_server_model": "a", "vllm_server_slo": {"ttft_p95": "2s"}},
    "n2-big": {"vllm_node": "n2", "ansible_host": "2001:db8::2", "vllm_server_name": "big", "vllm_server_model": "a"},
    "n2-small": {
        "vllm_node": "n2",
        "ansible_host": "2001:db8::2",
        "vllm_server_name": "small",
        "vllm_server_model": "b",
    },
    "g1": {"gateway_certificate": "/etc/ssl/g.pem"},
    "g2": {"gateway_absent": True},
}
SERVERS, GATEWAYS = ["n1", "n2-big", "n2-small"], ["g1", "g2"]


def test_a_target_is_a_machine():
    found = fleet.targets(HOSTS, SERVERS, GATEWAYS)
    assert [(one["labels"]["node"], one["targets"]) for one in found] == [
        ("n1", ["192.0.2.1:9110"]),
        ("n2", ["[2001:db8::2]:9110"]),
        ("g1", ["g1:9110"]),
    ]


def test_a_header_of_a_play_knows_no_hosts_yet():
    assert fleet.machines({}, SERVERS, GATEWAYS) == {}


@pytest.mark.parametrize("host", ["n1", "n2-big", "g1"])
def test_the_settings_of_a_machine_are_what_its_process_takes(host):
    import json

    found = settings.parse(json.dumps(fleet.settings(HOSTS, SERVERS, GATEWAYS, host)))
    assert list(found.servers) == {"n1": ["vllm"], "n2-big": ["big", "small"], "g1": []}[host]
    assert found.gateway == (8404 if host == "g1" else 0)
    assert ("gateway" in found.certificates) == (host == "g1")


def test_servers_of_one_replica_have_its_first_host():
    hosts = {name: {"vllm_server_replica": "deep"} for name in ("a", "b")}
    assert fleet.settings(hosts, ["a", "b"], [], "b")["servers"] == {"vllm": {"replica": "a"}}


def test_the_strictest_target_of_a_model_counts():
    hosts = {
        "n1": {"vllm_server_model": "m", "vllm_server_slo": {"ttft_p95": "2s", "itl_p95": "80ms"}},
        "n2": {"vllm_server_model": "m", "vllm_server_slo": {"ttft_p95": 1.5}},
    }
    rules = fleet.slo_rules(hosts, ["n1", "n2"])["groups"][0]["rules"]
    assert {(rule["labels"]["slo"], rule["expr"]) for rule in rules} == {
        ("ttft_p95", "vector(1.5)"),
        ("itl_p95", "vector(0.08)"),
    }
    assert fleet.slo_rules({"n1": {}}, ["n1"]) == {"groups": []}


@pytest.mark.parametrize(
    ("slo", "says"), [({"ttft_p95": "fast"}, "'fast'"), ({"ttft_p95": 0}, "found 0|is 0"), ({"ttft": "2s"}, "'ttft'")]
)
def test_a_target_that_is_none_is_refused(slo, says):
    with pytest.raises(ValueError, match=says):
        fleet.slo_rules({"n1": {"vllm_server_model": "m", "vllm_server_slo": slo}}, ["n1"])


def test_a_machine_that_was_not_reached_keeps_its_certificate():
    first = fleet.authorities("", {"n1": PEM.format("AAAA"), "n2": PEM.format("BBBB")}, ["n1", "n2"])
    again = fleet.authorities(first, {"n1": PEM.format("CCCC"), "n2": ""}, ["n1", "n2", "n3"])
    assert again == f"# n1\n{PEM.format('CCCC')}\n# n2\n{PEM.format('BBBB')}\n"
    assert fleet.authorities(again, {}, ["n2"]) == f"# n2\n{PEM.format('BBBB')}\n"
    assert fleet.authorities("", {"n1": "a node's own words"}, ["n1"]) == ""


@pytest.mark.parametrize(
    "text", ["[]", '{"servers": 1}', '{"interval": 0}', '{"gateway": "x"}', '{"unknown": 1}', "no JSON"]
)
def test_settings_that_are_wrong_are_refused(text):
    with pytest.raises(ValueError):
        settings.parse(text)
