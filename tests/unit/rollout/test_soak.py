# SPDX-License-Identifier: Apache-2.0
"""A new release among its peers: what ends its soak, and when it goes on; tables of cases."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.rollout import gate, play_hosts, soak, undo

WELL = {"age": 60.0, "running": True, "started": "T1", "events": []}
HOSTS = ("n1", "n2", "n3")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("10m", 600),
        ("90", 90),
        (90, 90),
        ("1.5h", 5400),
        ("skip", 0),
        ("", 0),
        (None, 0),
        (0, 0),
        (False, 0),
        ("2 m", 120),
    ],
)
def test_times(given, seconds):
    assert soak.seconds(given) == seconds


@pytest.mark.parametrize("given", ["soon", "10 years", "-5", "1h30m"])
def test_what_is_no_time(given):
    with pytest.raises(ValueError, match="expected a time such as 10m, or skip"):
        soak.seconds(given)


def hostvars(counts, **more):
    """Hosts, and a gateway that counted (answered, errors, response) of them."""
    servers = [
        dict(zip(("name", "answered", "errors", "response"), (host, *one), strict=True)) for host, one in counts.items()
    ]
    return {host: {"vllm_server_model": "m", **more} for host in HOSTS} | {
        "g": {"gateway_result": {"servers": servers}}
    }


def looks(first, then, said=WELL, wanted="10m", start=WELL):
    """Two looks at n1, the second one's result."""
    more = {"fleet": HOSTS, "gateways": ["g"], "wanted": wanted}
    one = soak.look({}, hostvars(first), ["n1"], {"n1": start}, **more)
    return soak.look(one, hostvars(then), ["n1"], {"n1": said}, **more)


QUIET = dict.fromkeys(HOSTS, (1000, 5, 50))
MORE = dict.fromkeys(HOSTS, (1100, 5, 50))


@pytest.mark.parametrize(
    ("then", "said", "wrong"),
    [
        (MORE, WELL, ""),
        (
            {**MORE, "n1": (1100, 25, 50)},
            WELL,
            "20 of its 100 answers at the gateways were errors (20%, of its peers 0%)",
        ),
        # Two errors are an accident, and what its peers have as well is not its fault.
        ({**MORE, "n1": (1100, 7, 50)}, WELL, ""),
        (dict.fromkeys(HOSTS, (1100, 25, 50)), WELL, ""),
        # Few answers say nothing.
        ({**MORE, "n1": (1010, 10, 900)}, WELL, ""),
        (
            {**MORE, "n1": (1100, 5, 400)},
            WELL,
            "its answers begin after 400 ms at the gateways, those of its peers after 50 ms",
        ),
        ({**MORE, "n1": (1100, 5, 120)}, WELL, ""),
        # A gateway was reloaded: it counts from nothing.
        ({**MORE, "n1": (60, 20, 50)}, WELL, "20 of its 60 answers at the gateways were errors"),
        (MORE, {**WELL, "running": False}, "its container does not run any more"),
        (MORE, {**WELL, "started": "T2"}, "its container was started again"),
        (MORE, {**WELL, "events": [{"kind": "hung", "why": "no step.\x1b[2J"}]}, "its watchdog says hung: no step.[2J"),
        (MORE, {**WELL, "events": [{"kind": "started"}, "x", {"kind": ["hung"]}]}, ""),
        # A look that fails is no verdict.
        (MORE, {"failed": True, "msg": "docker"}, ""),
        (MORE, {"unreachable": True}, ""),
    ],
)
def test_what_ends_it(then, said, wrong):
    found = looks(QUIET, then, said)
    assert wrong in found["wrong"].get("n1", "")
    assert bool(found["wrong"]) is bool(wrong)
    if wrong:
        assert found["ended"]
        assert found["wrong"]["n1"].startswith("n1: the new release did not pass its soak: ")


@pytest.mark.parametrize(
    ("age", "wanted", "left", "ended"),
    [
        (0.0, "10m", 600, False),
        (599.0, "10m", 1, False),
        (600.0, "10m", 0, True),
        (9e9, "10m", 0, True),
        (5.0, "20", 15, False),
    ],
)
def test_how_long_it_goes_on_is_what_the_node_remembers(age, wanted, left, ended):
    found = looks(QUIET, MORE, {**WELL, "age": age}, wanted)
    assert (found["left"], found["ended"]) == (left, ended)
    assert 1 <= found["pause"] <= 15


def test_a_look_that_fails_ends_nothing():
    found = looks(QUIET, MORE, {"failed": True, "msg": "docker"}, "10m", {**WELL, "age": 0.0})
    assert (found["left"], found["ended"]) == (585, False)
    assert looks(QUIET, MORE, {"unreachable": True}, "10m", {"failed": True})["left"] == 585


def test_a_note_that_somebody_removed_ends_it():
    assert looks(QUIET, MORE, {**WELL, "age": None})["ended"]


def test_what_is_wrong_is_kept_by_the_node_and_is_said_again():
    bad = looks(QUIET, {**MORE, "n1": (1100, 25, 50)})
    assert bad["keep"]["n1"]["wrong"] == "20 of its 100 answers at the gateways were errors (20%, of its peers 0%)"
    # A later run, whose gateways count anew, after the time is over.
    said = {**WELL, "age": 9e9, "wrong": bad["keep"]["n1"]["wrong"]}
    again = soak.look({}, hostvars(QUIET), ["n1"], {"n1": said}, fleet=HOSTS, gateways=["g"], wanted="10m")
    assert again["ended"]
    assert again["wrong"]["n1"] == (
        "n1: the new release did not pass its soak: 20 of its 100 answers at the gateways were errors (20%, of its peers "
        "0%), as an earlier run saw."
    )


def one_look(counts, **said):
    return soak.look({}, hostvars(counts), ["n1"], {"n1": {**WELL, **said}}, fleet=HOSTS, gateways=["g"], wanted="10m")


def test_a_later_run_holds_what_it_sees_against_the_first_look_of_the_earlier_one():
    first = one_look(QUIET)["keep"]["n1"]["first"]
    assert first == {"counts": {"g": {h: [1000, 5, 50] for h in HOSTS}}, "started": "T1"}
    leaked = {**MORE, "n1": (1100, 25, 50)}
    assert "20 of its 100 answers" in one_look(leaked, first=first, age=9e9)["wrong"]["n1"]
    assert "started again" in one_look(MORE, first=first, started="T2", age=9e9)["wrong"]["n1"]
    assert one_look(MORE, first=first, age=9e9)["keep"] == {}
    assert one_look(leaked, age=None)["keep"] == {}, "of a release that is not on trial nothing is kept"


@pytest.mark.parametrize(
    "first",
    [
        "x",
        {},
        {"counts": []},
        {"counts": {"g": [1]}},
        {"counts": {"g": {"n1": [1, "2", 3]}}},
        {"counts": {}, "started": 1},
    ],
)
def test_what_a_node_remembers_in_another_form_is_nothing(first):
    assert one_look(QUIET, first=first)["first"] == one_look(QUIET)["first"]


def fleet(**changes):
    hosts = {host: {"vllm_server_model": "m", "vllm_server_result": {"trial": False}} for host in HOSTS}
    for host, change in changes.items():
        hosts[host] |= change
    plan = {"hosts": ["n1", "n2", "n3"], "play": list(HOSTS), "problems": []}
    return {**hosts, "localhost": {"rollout_plan": plan}}


DONE = {"rollout_outcome": {"state": "replaced"}}
TRIAL = {"vllm_server_result": {"trial": True}}


def test_who_is_watched_before_a_wave():
    plan = fleet()["localhost"]["rollout_plan"]
    assert soak.hosts(fleet(), plan, ["n1"], "10m") == [], "nothing is new yet"
    assert soak.hosts(fleet(n1=DONE), plan, ["n2"], "10m") == ["n1"]
    assert soak.hosts(fleet(n1=DONE), plan, ["n2"], "skip") == []
    # Of a run that was interrupted meanwhile.
    later = {**plan, "hosts": ["n2", "n3"]}
    assert soak.hosts(fleet(n1=TRIAL), later, ["n2"], "10m") == ["n1"]
    failed = {
        "rollout_outcome": {"state": "failed", "serving": True, "soak": True, "msg": "n1: the new release did not ..."}
    }
    assert soak.hosts(fleet(n1={**TRIAL, **failed}), later, ["n2"], "10m") == []


@pytest.mark.parametrize(
    ("more", "back"),
    [
        ({}, True),
        ({"rollout_on_failure": "stop"}, False),
        ({"rollout_soak": "skip"}, False),
        ({"vllm_server_result": {"trial": True, "trial_failed": False}}, False),
    ],
)
def test_what_has_not_passed_and_is_drained_is_not_admitted_before_it_goes_back(more, back):
    variables = {
        "rollout_on_failure": "rollback",
        "rollout_soak": "10m",
        "vllm_server_result": {"trial": True, "trial_failed": True},
        **more,
    }
    assert soak.goes_back(variables) is back


@pytest.mark.parametrize("resumed", [False, True])
def test_one_that_does_not_pass_closes_the_waves_and_goes_back(resumed):
    failed = {"rollout_outcome": {"state": "failed", "serving": True, "soak": True, "msg": "n1: it leaks."}}
    hostvars = fleet(n1={**(TRIAL if resumed else {}), **failed, "rollout_on_failure": "rollback"})
    hostvars["n2"]["rollout_on_failure"] = "rollback"
    plan = hostvars["localhost"]["rollout_plan"]
    plan["hosts"] = ["n2", "n3"] if resumed else ["n1", "n2", "n3"]
    closed = gate.closed(hostvars, plan, ["n2"], list(HOSTS), gateways=[], max_failures=0)
    assert closed == "n1 failed and rollout_max_failures is 0"
    assert play_hosts.failed(hostvars) == ["n1"]
    assert undo.settled(hostvars) == []
    assert undo.hosts(hostvars) == ["n1"]
    hostvars["localhost"]["rollout_undo"] = undo.begin(hostvars, ["n1"])
    hostvars["n1"] |= {"rollout_outcome": {"state": "replaced"}, "__rollback_known": {"target": {"release": 2}}}
    hostvars["localhost"]["rollout_plan"] = {"hosts": ["n1"], "play": ["n1"], "problems": []}
    assert play_hosts.failed(hostvars) == ["n1"]
    assert gate.verdict(hostvars, plan, "n1", max_failures=0) == (
        "n1: it leaks. Replaced before: none. The run stopped there, as rollout_max_failures is 0; not touched: n2 and n3. "
        "Rolled back, because n1 failed: n1 serves release 2 again."
    )
