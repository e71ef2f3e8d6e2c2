# SPDX-License-Identifier: Apache-2.0
"""Who may meet, and who may not come."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.replica.agreement import blocked, differing, incomplete

HOSTS = ["n1", "n2"]
REPLICA = {"name": "pair", "hosts": HOSTS}


@pytest.mark.parametrize(
    ("batch", "alive", "forks", "says"),
    [
        (["n1", "n2", "x"], ["n1", "n2", "x"], 3, ""),
        (["n2"], ["n2"], 5, "n1 is not in this play or failed earlier in it; --limit must name all hosts"),
        (["n2"], ["n1", "n2"], 5, "n1 is in another batch of this play"),
        (["n1", "n2"], ["n1", "n2"], 1, "run with --forks 2"),
    ],
)
def test_a_replica_of_which_not_all_can_meet_is_refused(batch, alive, forks, says):
    said = incomplete(REPLICA, batch, alive, forks)
    assert says in said if says else said == ""


@pytest.mark.parametrize(
    ("batch", "forks", "needed"),
    [
        ("a1 a2 b1 b2", 2, 0),
        ("a1 b1 a2 b2", 2, 3),
        ("a1 b1 c1 d1 a2 b2 c2 d2", 4, 5),
        ("a1 x y z a2", 2, 0),
        ("x y z", 1, 0),
        ("a1 a2", 1, 2),
    ],
)
def test_turns_that_would_never_come_together_are_counted(batch, forks, needed):
    hosts = batch.split()
    assert blocked(hosts, forks, {h: h[0] for h in hosts if len(h) == 2}) == needed


def test_what_hosts_do_not_have_in_common_is_named():
    assert differing({"n1": {"model": "a"}, "n2": {"model": "a"}}, HOSTS) == ""
    told = {"n1": {"model": "a", "args x": 1}, "n2": {"model": "a"}}
    assert differing(told, HOSTS) == "args x: n1 has 1, but n2 has None"
