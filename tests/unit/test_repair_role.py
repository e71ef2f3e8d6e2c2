# SPDX-License-Identifier: Apache-2.0
"""Role repair as data: on which nodes its steps are done."""

from __future__ import annotations

from pathlib import Path

import role_variables

ROLE = Path(__file__).resolve().parents[2] / "roles/repair"


def test_the_server_that_repairs_a_node_does_so_for_the_others_of_it(tmp_path):
    sick, well = {"sick": True}, {"sick": False}
    hosts = {
        "n1-a": {"vllm_node": "n1", "repair_probe": well},
        "n1-b": {"vllm_node": "n1", "repair_probe": sick},
        "n2": {"repair_probe": well},
        "n3": {"repair_probe": well, "repair_because": "links"},
        "n4": {"repair_probe": sick},
    }
    local = {"localhost": {"repair_plan": {"hosts": list(hosts)}}}
    found = role_variables.rendering(tmp_path, ROLE, hosts | local, {"sick": "__repair_sick"})
    assert [host for host in hosts if found[host]["sick"]] == ["n1-a", "n1-b", "n3", "n4"]
