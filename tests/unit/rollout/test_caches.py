# SPDX-License-Identifier: Apache-2.0
"""From whom a host gets what an engine compiled."""

from __future__ import annotations

import pytest
from test_waves import EDIT, SAME, fleet

from ansible.module_utils.vllm_fleet.rollout import caches

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def cached(answer, key=KEY, **more):
    return {**answer, "engine_cache": {"key": key, "folder": "/x", "warm": False, "reset": False, **more}}


def done(hosts, *names, state="replaced"):
    for name in names:
        hosts[name]["rollout_outcome"] = {"state": state}
    return hosts


@pytest.mark.parametrize(
    ("hosts", "donor"),
    [
        # The canary, once it is through.
        (done(fleet(cached(EDIT), cached(EDIT)), "node2"), "node2"),
        (done(fleet(cached(EDIT), cached(EDIT)), "node2", state="failed"), ""),
        (fleet(cached(EDIT), cached(EDIT)), ""),
        # One that the run leaves as it is.
        (fleet(cached(EDIT), cached(SAME)), "node2"),
        (fleet(cached(EDIT), cached({**SAME, "confirmed": False})), ""),
        # Never between different keys.
        (fleet(cached(EDIT), cached(SAME, OTHER)), ""),
        (fleet(cached(EDIT), SAME), ""),
        (fleet(EDIT, cached(SAME)), ""),
        (fleet(cached(EDIT, "../../etc"), cached(SAME, "../../etc")), ""),
        (fleet({**EDIT, "engine_cache": "x"}, cached(SAME)), ""),
        # What is there already, is to be fresh, or is a rank's.
        (fleet(cached(EDIT, warm=True), cached(SAME)), ""),
        (fleet(cached(EDIT, reset=True), cached(SAME)), ""),
        (fleet(cached(EDIT), cached(SAME), vllm_server_replica="big"), ""),
        # One machine has one folder.
        (fleet(cached(EDIT), cached(SAME), vllm_node="node1"), ""),
        (fleet(cached(EDIT), cached(SAME), ansible_connection="local"), ""),
    ],
)
def test_who_gives(hosts, donor):
    """node1 is asked for, in the wave after that of node2, or node2 is none that is replaced."""
    replaced = "rollout_outcome" in hosts["node2"] or hosts["node2"]["vllm_server_result"]["actions"]
    plan = {"hosts": ["node2", "node1"] if replaced else ["node1"], "unchanged": [] if replaced else ["node2"]}
    assert caches.donor(hosts, plan, ["node1"], "node1") == donor


def test_those_that_can_give_take_turns():
    hosts = done(fleet(*[cached(EDIT)] * 6), "node1", "node2")
    plan, wave = {"hosts": list(hosts), "unchanged": []}, ["node3", "node4", "node5"]
    assert [caches.donor(hosts, plan, wave, name) for name in wave] == ["node1", "node2", "node1"]


def test_neither_hosts_outside_of_the_run_nor_those_of_the_same_wave_are_asked():
    hosts = done(fleet(cached(EDIT), cached(EDIT), cached(SAME)), "node2")
    assert caches.donor(hosts, {"hosts": ["node1", "node2"], "unchanged": []}, ["node1", "node2"], "node1") == ""


def test_a_large_fleet_is_not_looked_at_as_a_whole():
    looks = []

    class Counted(dict):
        def __getitem__(self, host):
            looks.append(host)
            return super().__getitem__(host)

    names = [f"node{n}" for n in range(1, 1001)]
    hosts = Counted(fleet(*[cached(EDIT, OTHER)] * 999, cached(EDIT)))
    assert caches.donor(hosts, {"hosts": names, "unchanged": []}, names[-1:], "node1000") == ""
    assert len(looks) <= 65
