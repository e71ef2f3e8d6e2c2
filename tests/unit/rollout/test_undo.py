# SPDX-License-Identifier: Apache-2.0
"""Who goes back after a failed rollout, and what is said of it: tables of cases."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.rollout import gate, play_hosts, undo

DONE = {"state": "replaced", "serving": True}
FAILED = {"state": "failed", "serving": True, "msg": "n3: it answers wrongly."}
LOST = {"state": "replacing"}
LEFT = {"state": "failed", "msg": "It was not touched: too few would stay."}


def fleet(outcomes, plan=(), trial=(), **more):
    """Hostvars of n1, n2, ... after the waves; ``plan``: those that were to be replaced, by default all."""
    hosts = list(outcomes)
    planned = list(plan) or hosts
    found = {
        host: {
            "vllm_server_model": "m",
            "rollout_on_failure": "rollback",
            "vllm_server_result": {"trial": host in trial},
            **({"rollout_outcome": end} if end else {}),
            **more,
        }
        for host, end in outcomes.items()
    }
    return {**found, "localhost": {"rollout_plan": {"hosts": planned, "play": hosts, "problems": []}}}


@pytest.mark.parametrize(
    ("hostvars", "back"),
    [
        (fleet({"n1": DONE, "n2": DONE, "n3": FAILED, "n4": {}}), ["n1", "n2"]),
        (fleet({"n1": DONE, "n2": LOST}), ["n1"]),
        (fleet({"n1": DONE, "n2": DONE}), []),
        (fleet({"n1": FAILED, "n2": {}}), []),
        (fleet({"n1": DONE, "n2": FAILED}, rollout_on_failure="stop"), []),
        (fleet({"n1": DONE, "n2": FAILED}, rollout_max_failures=1), []),
        # A repair, a restart and a rollback bring no release.
        ({**fleet({"n1": DONE, "n2": FAILED}, restart_asked={"restart": True})}, []),
        ({**fleet({"n1": DONE, "n2": FAILED}, __rollback_known={"current": {}})}, []),
        # A wave that could not begin is no failure of the release.
        (fleet({"n1": DONE, "n2": LEFT}), []),
        # What an earlier run of the same rollout brought, which was killed; and what has served for long.
        (fleet({"n1": {}, "n2": {}, "n3": DONE, "n4": FAILED}, plan=["n3", "n4"], trial=["n1"]), ["n1", "n3"]),
        ({"localhost": {}}, []),
        ({}, []),
    ],
)
def test_who_goes_back(hostvars, back):
    assert undo.hosts(hostvars) == back
    assert play_hosts.undone(hostvars) == (back or play_hosts.NOBODY)


@pytest.mark.parametrize(
    ("hostvars", "settled"),
    [
        (fleet({"n1": DONE, "n2": DONE}), ["n1", "n2"]),
        (fleet({"n1": DONE, "n2": DONE}, rollout_on_failure="stop"), []),
        (fleet({"n1": DONE, "n2": FAILED}), []),
        # Killed before the last step, or by a run that had it otherwise.
        (
            {
                **fleet({"n1": {}, "n2": {}}, trial=["n2"]),
                "localhost": {"rollout_plan": {"hosts": [], "play": ["n1", "n2"]}},
            },
            ["n2"],
        ),
        ({"localhost": {}}, []),
    ],
)
def test_whose_release_is_no_trial_any_more(hostvars, settled):
    assert undo.settled(hostvars) == settled


def begun(**changes):
    """The same fleet after the way back: n1 and n2 were done, n3 failed, n4 was not touched."""
    hostvars = fleet({"n1": DONE, "n2": DONE, "n3": FAILED, "n4": {}})
    for host in ("n1", "n2"):
        hostvars[host]["__rollout_trial"] = {"age": 5.0}
    noted = undo.begin(hostvars, ["n1", "n2"])
    hostvars["localhost"] |= {"rollout_undo": noted, "rollout_plan": {"hosts": ["n1", "n2"], "problems": []}}
    for host in ("n1", "n2"):
        hostvars[host] |= {"__rollback_known": {"target": {"release": 4}}, **changes.get(host, {})}
    hostvars["localhost"]["rollout_plan"] |= changes.get("plan", {})
    return hostvars


def test_all_went_back():
    hostvars = begun()
    assert undo.hosts(hostvars) == [], "once"
    assert undo.stuck(hostvars) == {}
    assert play_hosts.failed(hostvars) == ["n3"]
    assert undo.settled(hostvars) == ["n1", "n2"]
    assert gate.verdict(hostvars, hostvars["localhost"]["rollout_plan"], "n3", max_failures=0) == (
        "n3: it answers wrongly. Replaced before: n1 and n2. The run stopped there, as rollout_max_failures is 0; not touched: "
        "n4. Rolled back, because n3 failed: n1 and n2 serve release 4 again."
    )


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        (
            {"n2": {"rollout_outcome": {"state": "failed", "serving": True, "msg": "n2: it does not start."}}},
            "Rolled back, because n3 failed: n1 serves release 4 again. Not rolled back: n2, which still serves the new "
            "release: it does not start.",
        ),
        (
            {"n2": {"rollout_outcome": {"state": "failed", "serving": False, "msg": "n2: nothing starts."}}},
            "Not rolled back: n2, which serves nothing: nothing starts.",
        ),
        (
            {"n2": {"rollout_undo_problem": "There is no earlier release to go back to.", "rollout_outcome": {}}},
            "Not rolled back: n2, which still serves the new release: There is no earlier release to go back to.",
        ),
        (
            {
                "n1": {"rollout_outcome": {}},
                "n2": {"rollout_outcome": {}},
                "plan": {"hosts": [], "problems": ["No gateway."]},
            },
            "Not rolled back: n1, which still serves the new release: No gateway. Not rolled back: n2, which still serves "
            "the new release: No gateway.",
        ),
    ],
)
def test_a_server_that_does_not_go_back_is_told_with_what_it_serves(changes, ends):
    hostvars = begun(**changes)
    plan = hostvars["localhost"]["rollout_plan"]
    assert gate.verdict(hostvars, plan, "n3", max_failures=0).endswith(ends)
    stuck = undo.stuck(hostvars)
    assert play_hosts.failed(hostvars)[-1] in {*stuck, "n3"}
    for host in stuck:
        assert gate.verdict(hostvars, plan, host, max_failures=0).startswith(
            f"{host}: it could not be rolled back, and "
        )
        assert host in undo.told(hostvars)


def test_where_no_server_can_go_back_no_wave_begins_and_the_failed_release_is_not_tried_again():
    hostvars = begun()
    for host in ("n1", "n2"):
        hostvars[host] |= {"rollout_undo_problem": "There are no weights.", "rollout_outcome": {}}
    # Nobody has planned a way back.
    hostvars["localhost"]["rollout_plan"] = dict(hostvars["localhost"]["rollout_undo"]["plan"])
    assert undo.going(hostvars) == []
    assert undo.waves(hostvars) == []
    assert undo.settled(hostvars) == []
    assert [*undo.stuck(hostvars)] == ["n1", "n2"]


def test_a_server_that_has_nothing_to_go_back_from_is_not_stuck():
    hostvars = begun(n2={"rollout_outcome": {}}, plan={"hosts": ["n1"], "unchanged": ["n2"]})
    assert undo.stuck(hostvars) == {}
    assert undo.waves(hostvars) == ["n1"]


def test_a_server_that_was_only_restarted_in_its_wave_does_not_go_back():
    hostvars = fleet({"n1": DONE, "n2": DONE, "n3": FAILED})
    hostvars["n1"]["__rollout_trial"] = {"age": None}
    hostvars["n2"]["__rollout_trial"] = {"failed": True, "msg": "Docker does not answer"}
    noted = undo.begin(hostvars, undo.hosts(hostvars))
    assert noted["hosts"] == ["n2"], "one that could not be asked is told"
    assert undo.no_look(hostvars, "n1") == ""
    assert undo.no_look(hostvars, "n2") == "its node could not be asked (Docker does not answer)"
    hostvars["localhost"] |= {"rollout_undo": noted, "rollout_plan": {"hosts": [], "problems": []}}
    assert "Replaced before: n1 and n2." in undo.verdict(hostvars, "n3", 0)


def test_a_repair_takes_nothing_back():
    hostvars = fleet({"n1": DONE, "n2": FAILED})
    hostvars["localhost"]["repair_plan"] = {"hosts": ["n1", "n2"]}
    assert undo.hosts(hostvars) == []
