# SPDX-License-Identifier: Apache-2.0
"""What playbooks/restart.yml asks of the waves, and what it refuses."""

from __future__ import annotations

import pytest
from test_waves import SAME, fleet, plan

from ansible.module_utils.vllm_fleet.rollout import restart

RUNS = {"actions": [], "differences": [], "container": {"status": "running"}, "confirmed": True}


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (RUNS, ""),
        # Stopped, paused: a start is what is asked for.
        ({**RUNS, "actions": ["start"], "differences": [{"name": "state"}]}, ""),
        (
            {**RUNS, "actions": ["create"], "differences": [{"name": "image"}, {"name": "state"}]},
            "node1 runs something else than is described (image), so a restart would replace it",
        ),
        ({**RUNS, "actions": ["create"], "container": None}, "node1 has no server yet"),
        ({"failed": True, "not_reached": True, "msg": "no route"}, "node1 cannot be asked what it runs: no route."),
        ({**RUNS, "failed": True, "msg": "no engine"}, "node1 cannot be asked what it runs: no engine."),
        ({}, "node1 cannot be asked what it runs: it did not answer."),
    ],
)
def test_what_speaks_against_a_restart(result, why):
    said = restart.against({"node1": {"vllm_server_result": result}}, ["node1"])
    assert said[0].startswith(why) if why else said == [], said


def test_all_servers_are_restarted_in_waves_and_the_plan_says_so():
    hosts = fleet(SAME, SAME, SAME)
    for variables in hosts.values():
        variables["vllm_server_repair"] = restart.asked(variables["vllm_server_result"])
    made = plan(hosts)
    assert made["waves"] == [["node1"], ["node2"], ["node3"]]
    assert "node1, node2 and node3 are drained and restarted in that wave, with nothing changed." in made["says"]
    assert made["silent"] == []


def test_nobody_waits_for_requests_to_a_server_that_its_watchdog_keeps_out():
    assert restart.asked({"watchdog": {"state": "out"}})["silent"]
    assert not restart.asked({"watchdog": None})["silent"]
