# SPDX-License-Identifier: Apache-2.0
"""The table of preflight: what was found for all servers of a node stands there once."""

from __future__ import annotations

from action_plugins import preflight_report as report
from ansible.module_utils.vllm_fleet.common import probes

CLOCK = {"level": "warning", "what": "clock", "expected": "synchronised", "got": "no", "remedy": "ntp"}
PORT = {**CLOCK, "what": "port"}


def shown(by_host, nodes=None):
    return [row[:3] for row in report.rows(by_host, everything=False, nodes=nodes)]


def test_what_all_servers_of_a_node_have_in_common_is_the_nodes():
    found = {"n1-a": [CLOCK, PORT], "n1-b": [CLOCK], "n2-a": [CLOCK], "n2-b": [], "n3": [CLOCK]}
    nodes = {"n1-a": "n1", "n1-b": "n1", "n2-a": "n2", "n2-b": "n2"}
    assert shown(found, nodes) == [
        ("n1, n2-a and n3", "warning", "clock"),
        ("n1-a", "warning", "port"),
    ]
    assert shown(found)[0][0] == "n1-a, n1-b, n2-a and n3"


def test_what_ends_the_run_is_left_to_its_last_lines():
    found = {"n1": [{**CLOCK, "level": "refused"}, PORT], "n2": [{**CLOCK, "level": "unseen"}]}
    assert [row[:3] for row in report.rows(found, everything=False, later=True)] == [("n1", "warning", "port")]


def test_nodes_are_counted_and_their_servers():
    assert report.summary(["refused", "ok"]) == "2 nodes: 1 refused, 1 fine"
    nodes = {"n1-a": "n1", "n1-b": "n1"}
    assert report.summary(["refused", "ok", "ok"], nodes) == "3 servers on 2 nodes: 1 refused, 2 fine"


def test_what_variables_say_of_a_host_that_shares_its_node():
    assert report.said_of({}) == {"replica": "", "node": "", "address": "", "ssh_port": ""}
    said = report.said_of({"vllm_node": "n", "vllm_server_gpus": 1})
    assert (said["gpus"], said["by_hand"], said["state_dir"]) == (1, "", "/var/lib/vllm-fleet")
    said = report.said_of(
        {"vllm_node": "n", "vllm_server_env": {"HIP_VISIBLE_DEVICES": "0"}, "vllm_server_state_dir": "/srv/x/"}
    )
    assert (said["gpus"], said["by_hand"]) == (None, "HIP_VISIBLE_DEVICES in vllm_server_env")
    assert said["state_dir"] == "/srv/x"
    assert report.said_of({"vllm_node": "n", "vllm_server_devices": ["/dev/kfd"]})["by_hand"] == "vllm_server_devices"
    assert report.said_of({"vllm_node": "n", "vllm_server_env": "x"})["by_hand"] == "", "reported elsewhere"


def probed(**result):
    return {probes.FACT: [{"module": "vllm_server", "args": {}, "result": result}]}


def test_options_that_the_image_does_not_know_are_a_finding_and_nothing_else_of_the_server_is():
    why = {
        "class": "bad_argument",
        "cause": "args: --max-model-lenn is no flag",
        "remedy": "Did you mean --max-model-len?",
    }
    (found,) = report.server_faults(
        probed(failed=True, failure={**why, "remedy": f"{why['remedy']}; nothing was touched"})
    )
    assert (found.level, found.what, found.got, found.remedy) == ("refused", "server", why["cause"], why["remedy"])
    taken = {**why, "class": "gpu_memory_taken"}
    for facts in (
        None,
        {},
        probed(failed=False),
        probed(failed=True, failure=taken),
        probed(failed=True, msg="crashed"),
    ):
        assert report.server_faults(facts) == []
