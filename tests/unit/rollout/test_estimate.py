# SPDX-License-Identifier: Apache-2.0
"""What a plan says of its cost: seconds by the nodes' own records, who serves meanwhile, what is brought and undone."""

from __future__ import annotations

import pytest
from test_waves import DEAD, EDIT, NONE, SAME, fleet, plan

PAST = {"release": 3, "same_image": True, "drain": 5.0, "load": 240.0, "verify": 4.5}


def aged(*pasts, answer=EDIT):
    return fleet(*({**answer, "past": past} for past in pasts))


def test_each_wave_takes_as_long_as_its_slowest_server():
    hosts = aged(PAST, {**PAST, "load": 200.0}, {**PAST, "load": 300.0, "drain": None}, PAST)
    made = plan(hosts)
    waves = made["estimate"]["waves"]
    assert [wave["replicas"] for wave in waves] == made["waves"]
    assert [wave["seconds"] for wave in waves] == [249.5, 209.5, 304.5]
    assert waves[2]["parts"] == {"load": 300.0, "verify": 4.5}
    assert (made["estimate"]["seconds"], made["estimate"]["unknown"]) == (763.5, 0)
    assert [wave["serving"] for wave in waves] == [{"m": {"least": least, "of": 4}} for least in (3, 3, 2)]
    assert made["cost"] == [
        "Wave 1, node1: about 4 m 10 s (drain 5 s, load 4 m 00 s, verify 4 s); 3 of 4 of m serve meanwhile.",
        "Wave 2, node2: about 3 m 30 s (drain 5 s, load 3 m 20 s, verify 4 s); 3 of 4 of m serve meanwhile.",
        "Wave 3, node3 and node4: about 5 m 04 s (load 5 m 00 s, verify 4 s); 2 of 4 of m serve meanwhile.",
        "All waves: about 12 m 44 s.",
        "playbooks/rollback.yml takes all of it back.",
    ]


@pytest.mark.parametrize(
    ("hosts", "seconds", "says"),
    [
        # Nothing is guessed.
        (fleet(NONE), None, "Wave 1, node1: its time is not known, no record has one; 0 of 1 of m serve meanwhile."),
        # Another node of the same model knows.
        (fleet(NONE, {**EDIT, "past": PAST}), 244.5, "Wave 1, node1: about 4 m 04 s (load 4 m 00 s, verify 4 s)"),
        (fleet(NONE, {**EDIT, "past": PAST}), 244.5, ", node1 by the record of node2; 1 of 2 of m"),
        (aged({**PAST, "same_image": False}), 249.5, ", node1 by a record of another image; 0 of 1"),
        # A start of what serves now, of which nothing but its summary is known.
        (fleet({**EDIT, "past": None, "release": {"downtime": 60.0, "ready": 58.0}}), 60.0, "about 1 m 00 s (load"),
        (fleet({**EDIT, "past": None, "release": {"downtime": None, "ready": 58.0}}), 58.0, "about 58 s (load 58 s)"),
        # What does not serve has no requests to wait for.
        (aged(PAST, answer=DEAD), 244.5, "about 4 m 04 s (load 4 m 00 s, verify 4 s)"),
        # A node may say anything.
        (aged({**PAST, "load": "long"}), None, "its time is not known"),
        (aged({**PAST, "load": float("nan")}), None, "its time is not known"),
        (aged({**PAST, "drain": -3}), 244.5, "(load 4 m 00 s, verify 4 s)"),
        (aged(["load"]), None, "its time is not known"),
    ],
)
def test_what_is_not_known_is_said(hosts, seconds, says):
    made = plan(hosts)
    assert made["estimate"]["waves"][0]["seconds"] == seconds
    assert says in made["cost"][0]


def test_nothing_to_replace_costs_nothing():
    made = plan(fleet(SAME, SAME))
    assert (made["estimate"]["waves"], made["cost"]) == ([], [])


def test_what_cannot_be_undone_and_what_no_record_has():
    hosts = aged(PAST, PAST)
    hosts["node1"] |= {
        "rocm_reboot_required": ["driver 6.14 is installed and 6.12 is loaded"],
        "rocm_allow_reboot": True,
        "vllm_image_prune": True,
    }
    hosts["node2"] |= {"rollout_remove_undescribed": True}
    hosts["node2"]["vllm_server_result"] = {
        **hosts["node2"]["vllm_server_result"],
        "servers": {"vllm": "running", "old": "running"},
    }
    cost = plan(hosts)["cost"]
    assert ", and the boot of node1, whose time is not known; " in cost[0]
    known = plan(hosts, rates={"boot": 130.0})
    assert "node1: about 6 m 20 s (drain 5 s, boot 2 m 10 s, load 4 m 00 s, verify 4 s); " in known["cost"][0]
    assert "boot" not in known["estimate"]["waves"][1]["parts"]
    assert "whose time is not known" in plan(hosts, rates={"boot": "long"})["cost"][0]
    assert cost[-1] == (
        "Cannot be undone: node1: the driver that is loaded now is gone after the reboot; node2: old and its records are "
        "removed; node1: images that nothing uses are deleted (vllm_image_prune)."
    )


@pytest.mark.parametrize(
    ("found", "rates", "says"),
    [
        ({"bytes": 690e9}, {"weights": 1e9}, "weights to node1, 690.0 GB each, about 11 m 30 s at the last rate."),
        ({"bytes": 690e9}, {}, "weights to node1, 690.0 GB each."),
        ({"bytes": 0}, {"weights": 1e9}, "weights to node1, of a size that is not known yet."),
        ({"bytes": "much"}, {"weights": "fast"}, "weights to node1, of a size that is not known yet."),
    ],
)
def test_what_is_brought_first(found, rates, says):
    lacks = {"failed": False, "actions": [], "failure": {"class": "cache_incomplete"}, "confirmed": True}
    hosts = fleet({**SAME, **lacks})
    hosts["node1"]["hf_cache_result"] = {"complete": False, **found}
    made = plan(hosts, check_mode=True, rates=rates)
    assert f"Before the waves: {says}" in made["cost"]
