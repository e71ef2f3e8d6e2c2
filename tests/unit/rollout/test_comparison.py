# SPDX-License-Identifier: Apache-2.0
"""A new release against the one before: what passes, what does not, and why, in tables of cases."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.rollout import comparison

LIMITS = {"ttft": 1.5, "itl": 1.3, "tokens_per_second": 0.8, "answers": 0.9}


def figures(ttft=0.1, itl=0.02, rate=200.0, right=20, spread=(0.98, 1.0, 1.02), of="x", errors=0):
    """What vllm_measure returns; ``spread`` are the three runs, as shares of the figures."""
    runs = [
        {"ttft": ttft * by, "itl": itl * by, "tokens_per_second": rate / by, "requests": 10, "errors": errors}
        for by in spread
    ]
    each = {str(n): [n < right, f"mark{n if n < right else 'wrong'}"] for n in range(20)}
    answers = {"of": of, "asked": 20, "right": right, "errors": 0, "each": each}
    return {"answers": answers, "load": {"of": of, "runs": runs}}


@pytest.mark.parametrize(
    ("new", "before", "wrong"),
    [
        ({}, {}, ""),
        ({"ttft": 0.14}, {}, ""),
        ({"ttft": 0.16}, {}, "time to first token is 160.0 ms, 100.0 ms with release 3 on this node (factor 1.60"),
        ({"itl": 0.04}, {}, "inter-token latency is 40.0 ms, 20.0 ms with release 3 on this node (factor 2.00"),
        ({"rate": 150}, {}, "tokens per second is 150.0/s, 200.0/s with release 3"),
        ({"rate": 170}, {}, ""),
        ({"right": 18}, {}, ""),
        ({"right": 14}, {}, "14 of 20 known answers are right, 20 with release 3 on this node (factor 0.70"),
        # A small model that never knew better, and one that knew nothing.
        ({"right": 9}, {"right": 10}, ""),
        ({"right": 0}, {"right": 0}, ""),
        ({"right": 0}, {"right": 1}, "0 of 20 known answers are right, 1 with"),
        # Whatever the factor, nobody notices a few milliseconds.
        ({"ttft": 0.004}, {"ttft": 0.001}, ""),
        # One of three runs is within the limit: that may be noise.
        ({"itl": 0.04, "spread": (0.5, 1.0, 1.1)}, {}, ""),
        # Faster is no fault.
        ({"ttft": 0.01, "itl": 0.001, "rate": 900}, {}, ""),
        # Other questions, another load: nothing to compare with.
        ({"ttft": 0.3, "itl": 0.1, "rate": 9, "right": 3}, {"of": "y"}, ""),
        ({"errors": 1}, {}, "3 of 30 requests of rollout_gate_load ended with an error"),
    ],
)
def test_a_release_against_the_one_before(new, before, wrong):
    found = comparison.judge("n1", figures(**new), figures(**before), {}, LIMITS, release=3)
    assert wrong in found["wrong"]
    assert bool(found["wrong"]) is bool(wrong)
    assert found["wrong"].count("\n") == 0


@pytest.mark.parametrize(
    ("new", "peers", "wrong"),
    [
        ({}, {}, ""),
        ({"itl": 0.04}, {"n2": {}}, "inter-token latency is 40.0 ms, 20.0 ms with its peers"),
        # Of another machine no speed is compared, but the answers are.
        ({"itl": 0.04}, {"n2": {"alike": False}}, ""),
        ({"right": 3}, {"n2": {"alike": False}}, "3 of 20 known answers are right, 20 with its peers"),
    ],
)
def test_a_first_release_against_its_peers(new, peers, wrong):
    beside = {
        host: {**figures(**{k: v for k, v in one.items() if k != "alike"}), "alike": one.get("alike", True)}
        for host, one in peers.items()
    }
    found = comparison.judge("n1", figures(**new), {}, beside, LIMITS)
    assert wrong in found["wrong"]
    assert bool(found["wrong"]) is bool(wrong)


def test_garbage_beside_good_peers_fails_although_the_release_before_was_garbage_too():
    beside = {"n2": {**figures(), "alike": False}}
    found = comparison.judge("n1", figures(right=2), figures(right=2), beside, LIMITS, release=3)
    assert found["wrong"].startswith("n1: 2 of 20 known answers are right, 20 with its peers")


def test_a_limit_that_is_not_given_is_not_judged():
    assert not comparison.judge("n1", figures(itl=9, right=0), figures(), {}, {"ttft": 1.5})["wrong"]
    assert comparison.measured_speeds({"itl": 1.3})
    assert not comparison.measured_speeds({"answers": 0.9, "ttft": None})


def test_the_table_says_the_figures_the_noise_and_the_agreement():
    found = comparison.judge(
        "n1", figures(itl=0.04), figures(), {"n2": {**figures(), "alike": True}}, LIMITS, release=3
    )
    lines = found["says"].splitlines()
    assert lines[0] == "n1, the new release (peers: n2; 100% of the answers are the same to the letter)"
    assert lines[1].split() == ["figure", "new", "release", "3", "peers", "factor", "limit", "noise"]
    assert lines[3].split() == [
        "inter-token",
        "latency",
        "40.0",
        "ms",
        "20.0",
        "ms",
        "20.0",
        "ms",
        "2.00",
        "!",
        "1.3",
        "2%",
    ]
    first = comparison.judge("n1", figures(), {}, {}, LIMITS)
    assert "no peers yet; nothing to compare with, the figures are kept for the next release" in first["says"]


@pytest.mark.parametrize(
    "hostile",
    [
        {
            "answers": {"of": "x", "asked": "20", "right": True},
            "load": {"of": "x", "runs": ["a", None, {"itl": "nan"}]},
        },
        {
            "answers": {"of": "x", "asked": float("nan"), "right": -1},
            "load": {"of": "x", "runs": [{"itl": float("inf")}]},
        },
        {"answers": {"of": "x"}, "load": {"of": "x"}},
        {"answers": {"of": "x", "asked": 2, "right": 2, "each": {"0": 5, "1": []}}, "load": {"of": "x", "runs": 7}},
        {"answers": ["x"], "load": "x"},
        {},
    ],
)
def test_what_is_no_number_is_no_figure(hostile):
    assert not comparison.judge("n1", figures(), hostile, {}, LIMITS)["wrong"]
    comparison.judge("n1", hostile, figures(), {}, LIMITS)


def test_peers_are_those_of_the_model_that_have_not_failed():
    server = {"vllm_server_model": "m", "vllm_server_accelerator": "rocm", "preflight_gpu_found": "MI300X"}
    hosts = {
        "n1": server,
        "n2": {**server, "rollout_figures": {"a": 1}},
        "n3": {**server, "rollout_figures": {"a": 1}, "preflight_gpu_found": "MI355X"},
        "n4": {**server, "rollout_figures": {"a": 1}, "rollout_outcome": {"state": "failed"}},
        "n5": {**server, "rollout_figures": {"a": 1}, "vllm_server_model": "other"},
        "n6": server,
    }
    found = comparison.peers_of(hosts, list(hosts), "n1")
    assert {host: one["alike"] for host, one in found.items()} == {"n2": True, "n3": False}


@pytest.mark.parametrize(
    ("variables", "judged"),
    [
        ({"rollout_gate": LIMITS, "vllm_server_result": {"confirmed": False}}, True),
        ({"vllm_server_result": {"confirmed": False}}, False),
        ({"rollout_gate": {}, "vllm_server_result": {"confirmed": False}}, False),
        # Restarted, or admitted after a killed run: it was judged before it was confirmed.
        ({"rollout_gate": LIMITS, "vllm_server_result": {"confirmed": True}}, False),
        ({"rollout_gate": LIMITS, "vllm_server_result": {"confirmed": False}, "__rollback_known": {}}, False),
    ],
)
def test_who_is_judged(variables, judged):
    assert comparison.wants(variables) is judged
