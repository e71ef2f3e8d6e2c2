# SPDX-License-Identifier: Apache-2.0
"""What serves on a node whose replacement failed: tables of what vllm_server returned."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.rollout import recovery

RUNS = {"container": {"status": "running"}}
GONE = {"container": None}
FAILED = {"failed": True, "actions": ["stop", "start"], "container": {"status": "exited"}}


@pytest.mark.parametrize(
    ("states", "left"),
    [
        ({"a": "drained", "b": "drained"}, []),
        ({"a": "drained", "b": "failed"}, ["b"]),
        ({"a": None, "b": "draining"}, ["a", "b"]),
    ],
)
def test_partners_that_were_not_drained(states, left):
    hostvars = {host: {"rollout_outcome": {"state": state}} if state else {} for host, state in states.items()}
    assert recovery.not_drained(hostvars, ["a", "b"]) == left


@pytest.mark.parametrize(
    ("stage", "result", "restored", "back"),
    [
        ("", {}, {}, False),
        # It was never stopped.
        ("draining", {}, {}, True),
        ("drained", FAILED, {}, True),
        ("replacing", {"failed": True, "actions": []}, {}, True),
        ("replacing", {"failed": True}, {}, True),
        ("replacing", {"failed": True, "actions": ["remove_next"]}, {}, True),
        ("replacing", {"failed": True, "actions": ["create", "stop"]}, {}, False),
        # The new one failed, and the module put the old one back, or did not.
        ("replacing", {**FAILED, "rolled_back": True}, {}, True),
        ("replacing", FAILED, {}, False),
        # The new one answered wrongly, and the role put the old one back, or had none, or it did not become ready.
        ("replacing", {"actions": ["start"]}, RUNS, True),
        ("replacing", {"actions": ["start"]}, {**RUNS, "failure": {"class": "ready_timeout"}}, False),
        ("replacing", {"actions": ["start"]}, GONE, False),
        ("replacing", {"actions": ["start"]}, {"skipped": True}, False),
        ("admitting", {"actions": ["start"]}, {}, False),
    ],
)
def test_whether_the_old_server_is_back(stage, result, restored, back):
    assert recovery.old_is_back(stage, result, restored) is back


@pytest.mark.parametrize(
    ("result", "restored", "loads"),
    [
        ({}, {}, False),
        ({**RUNS, "confirmed": True}, {}, True),
        (FAILED, {**RUNS, "confirmed": True}, True),
        ({**RUNS, "confirmed": False}, RUNS, False),
        ({**FAILED, "confirmed": True}, {**GONE, "confirmed": True}, False),
        ({"confirmed": True}, {"skipped": True}, False),
    ],
)
def test_whether_an_old_server_loads(result, restored, loads):
    assert recovery.old_loads(result, restored) is loads


@pytest.mark.parametrize(
    ("errors", "answered"),
    [([], False), ([None], True), (["unauthorized"], True), (["refused"], True), (["timeout"], False)],
)
def test_another_key_or_port_is_not_held_against_the_old_server(errors, answered):
    assert recovery.answers([{"error": error} for error in errors]) is answered


def test_a_result_without_a_word_on_errors_is_no_answer():
    assert recovery.answers([{}]) is False
