# SPDX-License-Identifier: Apache-2.0
"""When a server is verified, and what is said after wrong answers."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.server import verification

SAME = {"changed": False, "actions": [], "confirmed": True}
NEW = {"changed": True, "actions": ["create", "start"], "confirmed": False}


@pytest.mark.parametrize(
    ("result", "mode", "tags", "check_mode", "left_alone"),
    [
        (SAME, "deploy", ["all"], False, False),
        (NEW, "deploy", ["all"], False, False),
        (NEW, "deploy", ["all"], True, True),
        (SAME, "deploy", ["all"], True, False),
        ({}, "deploy", ["verify"], True, False),
        (SAME, "plan", ["all"], False, False),
        (NEW, "plan", ["all"], False, True),
        ({**SAME, "confirmed": False}, "plan", ["all"], False, True),
        ({**SAME, "actions": ["start"]}, "plan", ["rollout"], False, True),
        ({}, "plan", ["all"], False, False),
        (NEW, "plan", ("verify",), False, False),
        (NEW, "plan", ("verify",), True, True),
    ],
)
def test_a_server_that_would_change_is_left_alone(result, mode, tags, check_mode, left_alone):
    assert verification.will_change(result, mode, tags, check_mode=check_mode) is left_alone


BACK = {"container": {"status": "running"}}


@pytest.mark.parametrize(
    ("restored", "result", "says"),
    [
        (BACK, NEW, "The previous server is back and ready."),
        ({"container": None, "msg": "there is none."}, NEW, "It was left as it is: there is none."),
        ({**BACK, "failure": {}, "msg": "it stalled."}, NEW, "It was left as it is: it stalled."),
        ({"container": None}, NEW, "It was left as it is: there is no previous server to put back"),
        ({"skipped": True}, {**SAME, "actions": ["start"]}, "This run only started the server, which was good before;"),
        ({"skipped": True}, SAME, "The server itself was not touched by this run."),
    ],
)
def test_what_serves_after_wrong_answers(restored, result, says):
    assert verification.after_wrong_answers(restored, result).startswith(says)
