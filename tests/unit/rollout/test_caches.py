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
    assert caches.donor(hosts, list(hosts), "node1") == donor


def test_those_that_can_give_take_turns():
    hosts = done(fleet(*[cached(EDIT)] * 6), "node1", "node2")
    assert [caches.donor(hosts, list(hosts), name) for name in ("node3", "node4", "node5")] == [
        "node1",
        "node2",
        "node1",
    ]


def test_hosts_outside_of_the_run_are_not_asked():
    hosts = fleet(cached(EDIT), cached(SAME))
    assert caches.donor(hosts, ["node1"], "node1") == ""
